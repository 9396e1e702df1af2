/* The worker's part of the class layer's maths, without any network (kernels/backend.h has the
 * rest): merging what the shards say about a row, the loss, and the way back through the
 * normalisation of the feature. Everything is a pure function of its inputs, in a fixed order. */
#ifndef SFC_WORKER_HEAD_EXCHANGE_H
#define SFC_WORKER_HEAD_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/exact_sum.h"
#include "proto/base/status.h"

/* A feature shorter than this is a zero feature: gradient 0. */
#define SFC_ZERO_NORM 1e-12

/* What one shard answered to Logits. */
struct sfc_logits_part {
    const struct sfc_sum256 *sums; /* [rows] */
    const float *target;           /* [rows] */
    const uint8_t *has_target;     /* [rows], 0 or 1 */
};

/* Adds the parts of `count` shards. lse [rows], target [rows] (0 for rows without label). Every row
 * with a label must have its target on exactly one shard, a row without label (UINT64_MAX) on none;
 * everything must be finite. The message of SFC_ECORRUPT names the row and the shard. */
int sfc_head_merge_logits(const struct sfc_logits_part *parts, size_t count, uint32_t rows,
                          double shift, const uint64_t *labels, double *lse, float *target,
                          struct sfc_error *err);

/* Sum of lse - target over the rows that have a label, in row order. */
double sfc_head_loss_sum(uint32_t rows, const uint64_t *labels, const double *lse,
                         const float *target);

/* sum [n] += part [n]; SFC_ECORRUPT on overflow. */
int sfc_head_add_dx(int64_t *sum, const int64_t *part, size_t n, struct sfc_error *err);

/* df = (dx - x^ (x^ . dx)) / |x| per row, in double, rounded once; dx in units of 2^-44, x^ = x /
 * |x|. Returns the number of zero features. */
uint32_t sfc_head_backward(uint32_t rows, uint32_t dim, const float *features, const int64_t *dx,
                           float *dfeatures);

/* Number of the first element that is not finite, or n. */
size_t sfc_head_first_bad(const float *v, size_t n);

/* XXH3-128 (canonical form) of the features' bytes followed by those of the log-sum-exps. */
void sfc_head_digest(uint32_t rows, uint32_t dim, const float *features, const double *lse,
                     uint8_t digest[16]);

#endif

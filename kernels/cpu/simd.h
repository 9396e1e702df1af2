/* Elementwise loops of the CPU backend, compiled for several instruction sets and chosen at run
 * time. All work on vectors of 16 floats in a fixed lane order, so results depend on the
 * instruction set only through fused multiply-add; the level is part of the numerics class.
 *
 * Conventions: `width` (columns of a slot, columns of scratch) and `pitch` are multiples of 16;
 * scratch is 64-byte aligned; `dim` is any number >= 1 and `pitch` the next multiple of 16. */
#ifndef SFC_KERNELS_CPU_SIMD_H
#define SFC_KERNELS_CPU_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/adamw.h"
#include "kernels/hd/cosine.h"
#include "kernels/lag.h"

/* How a block store holds the numbers of a row: a record of its tensors side by side, [dim] each,
 * the weights first, so that an update and a catch-up touch one range of memory.
 * F32    w and m in f32
 * BF16   w (high), m and v in bf16, rounded by updates
 * SPLIT  w as high, the nearest bf16 (ties away from zero), which products read, and low [dim], the
 *        rest of the integer bits, exact together; m and v in f32
 * v, AdamW's second moment, is there when a record has three tensors. */
enum sfc_store_format { SFC_STORE_F32, SFC_STORE_BF16, SFC_STORE_SPLIT };

/* What products multiply:
 * F32    f32
 * BF16   numbers rounded to bf16, as bf16
 * WIDE   numbers rounded to bf16, as f32 */
enum sfc_operand { SFC_OPERAND_F32, SFC_OPERAND_BF16, SFC_OPERAND_WIDE };

/* The records of a block. Mode dense: row r is as it was after step last[r], and lag[last[r]] is
 * the way from there to the state before the step in work; else last is NULL. */
struct sfc_store {
    enum sfc_store_format format;
    char *records;
    size_t tensors; /* of a record: weights and moments of the optimiser */
    uint32_t *last;
    const struct sfc_lag *lag;
    uint32_t now;         /* the step in work */
    bool nearest;         /* BF16: updates round to the nearest instead of stochastically */
    uint64_t seed;        /* of the rounding */
    uint64_t first_class; /* of row 0 */
    float *scratch;       /* BF16, SPLIT: [2, pitch] for updates */
};

/* Bytes of one tensor of a row; SPLIT: high and low count as one. */
static inline size_t sfc_tensor_bytes(enum sfc_store_format format, size_t dim)
{
    return dim * (format == SFC_STORE_BF16 ? sizeof(uint16_t) : sizeof(float));
}

/* Tensor 0 (weights) or 1, 2, .. (moments) of a row; the tensors of one row lie side by side. */
static inline void *sfc_store_at(const struct sfc_store *store, size_t row, size_t tensor,
                                 size_t dim)
{
    return store->records + (row * store->tensors + tensor) * sfc_tensor_bytes(store->format, dim);
}

struct sfc_update {
    float gradient_scale;             /* scale / batch */
    float lr, momentum, weight_decay; /* of SGD */
    struct sfc_adamw adamw;
};

/* The loops over 16-bit formats; like those of struct sfc_simd where nothing else is said. */
struct sfc_simd_half {
    /* Of a BF16 or SPLIT store into a tile of operands (of SPLIT not F32); the norm is that of the
     * tile. */
    void (*gather)(const struct sfc_store *store, enum sfc_operand operand, const uint32_t *rows,
                   size_t n, size_t dim, size_t pitch, void *tile, float *inverse_norm);
    void (*update)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, const float *dw, const float *inverse_norm,
                   const struct sfc_update *u);
    void (*adamw)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                  size_t pitch, const float *dw, const float *inverse_norm,
                  const struct sfc_update *u);
    void (*logits)(const float *cos, size_t stride, size_t n, size_t width,
                   const float *inverse_norm, float filter, int16_t *q);
    void (*exp_sum)(const int16_t *q, size_t n, size_t width, float scale, const float *add,
                    double *sum);
    /* q -> p in bf16, in the same place; 0 at targets. */
    bool (*softmax)(int16_t *q, size_t n, size_t width, float scale, const float *add,
                    const float *high, const float *low);
    void (*scale_rows)(const uint16_t *p, size_t n, size_t width, const float *inverse_norm,
                       float factor, uint16_t *out, size_t stride);
    /* The same without rounding the result. */
    void (*scale_rows_wide)(const uint16_t *p, size_t n, size_t width, const float *inverse_norm,
                            float factor, float *out, size_t stride);
    /* n floats to bf16 (nearest, ties to even; low unused) or to the halves of SPLIT, and back. */
    void (*pack)(const float *in, size_t n, enum sfc_store_format format, uint16_t *high,
                 uint16_t *low);
    void (*unpack)(const uint16_t *high, const uint16_t *low, size_t n,
                   enum sfc_store_format format, float *out);
};

struct sfc_simd {
    const char *name;
    const struct sfc_simd_half *half;

    /* Copies rows[0..n) of w, caught up, to tile [n, pitch] with zero padding, in this order, and
     * writes 1 / norm of each (0 for a norm below 1e-12, NaN for one above 1.8e19). Changes nothing
     * in the store. */
    void (*gather)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, float *tile, float *inverse_norm);
    /* out [pitch] = in [dim] / |in| with zero padding; false (and zeros) for a norm below 1e-12. */
    bool (*unit_row)(const float *in, size_t dim, size_t pitch, float *out);
    /* z = scale * clamp(cos * inverse_norm[row]) for n rows of `width` columns taken from products
     * of `stride` columns; with filter <= 1, cosines above it become -0.0. */
    void (*logits)(const float *cos, size_t stride, size_t n, size_t width,
                   const float *inverse_norm, float scale, float filter, float *z);
    /* sum[column] += exp(z + add[row]), rows in order. */
    void (*exp_sum)(const float *z, size_t n, size_t width, const float *add, double *sum);
    /* z -> exp(z + add[row] - lse) with lse = high + low per column, filtered entries (-0.0) -> 0.
     * A column of high = inf gets 0. Returns whether all results are finite. */
    bool (*softmax)(float *z, size_t n, size_t width, const float *add, const float *high,
                    const float *low);
    /* out[row, 0..width) = p[row] * (inverse_norm[row] * factor), out has `stride` columns. */
    void (*scale_rows)(const float *p, size_t n, size_t width, const float *inverse_norm,
                       float factor, float *out, size_t stride);
    /* sum[row, dim] += fixed point (kernels/exact_sum.h) of dx[row, pitch]; saturates at 2^18. */
    void (*add_fixed)(const float *dx, size_t n, size_t dim, size_t pitch, int64_t *sum);
    /* Catches rows[0..n) up, then SGD from dw^ [n, pitch], through the normalisation. */
    void (*update)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, const float *dw, const float *inverse_norm,
                   const struct sfc_update *u);
    /* The same with AdamW; such rows are always up to date. */
    void (*adamw)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                  size_t pitch, const float *dw, const float *inverse_norm,
                  const struct sfc_update *u);
};

/* The best level that this CPU has; level "avx512", "avx2" or "base" through SFC_CPU_LEVEL (for
 * tests) never exceeds what it has. */
const struct sfc_simd *sfc_simd_select(void);

extern const struct sfc_simd sfc_simd_base;
#ifdef __x86_64__
extern const struct sfc_simd sfc_simd_avx2;
extern const struct sfc_simd sfc_simd_avx512;
#endif

#endif

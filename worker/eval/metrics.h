/* Verification metrics (pure). Embeddings are L2-normalised rows; scores are squared distances
 * (pairs) or cosines (labelled sets).
 *
 * Pairs: the protocol of "Labeled Faces in the Wild" (Huang et al., 2007) as insightface runs it:
 * 10 folds of consecutive pairs; thresholds 0, 0.01 .. 3.99 on the squared distance; the threshold
 * that is best on nine folds is used on the tenth. Labelled sets: TAR at FAR over all pairs of
 * different rows; the threshold of a FAR is the score that exactly floor(FAR * impostor pairs)
 * impostor pairs exceed. A FAR is supported when it stands for at least 10 false accepts. */
#ifndef SFC_WORKER_EVAL_METRICS_H
#define SFC_WORKER_EVAL_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_EVAL_FOLDS             10
#define SFC_EVAL_FAR_LEVEL         7 /* 1e-1, 1e-2 ... 1e-7 */
#define SFC_EVAL_MIN_FALSE_ACCEPTS 10

struct sfc_pair_result {
    uint64_t pairs;
    double accuracy;  /* mean over the folds */
    double deviation; /* population standard deviation over the folds */
    double threshold; /* mean of the folds' thresholds, squared distance */
};

struct sfc_far_result {
    uint64_t genuine, impostor; /* pairs */
    struct {
        double far;
        bool supported;
        double tar;
        double threshold; /* cosine: accept above */
    } level[SFC_EVAL_FAR_LEVEL];
};

/* L2-normalises rows in place; a row of norm below 1e-12 becomes 0. */
void sfc_normalise_rows(float *rows, uint64_t count, uint32_t dim);

/* distance[i]: squared distance of pair i; same[i]: genuine. SFC_EINVAL: fewer than 10 pairs, a
 * distance that isn't finite, or only one kind of pair. */
int sfc_evaluate_pairs(const float *distance, const bool *same, uint64_t pairs,
                       struct sfc_pair_result *out, struct sfc_error *err);

/* TAR at FAR from scores of pairs that are already there (the pairs file). */
int sfc_evaluate_scores(const float *cosine, const bool *same, uint64_t pairs,
                        struct sfc_far_result *out, struct sfc_error *err);

/* All pairs of `count` rows with labels; rows are unit rows. O(count^2 dim) time, a fixed histogram
 * of memory (cosine resolution 2^-20). threads: pairs are counted, so the result does not depend on
 * it. */
int sfc_evaluate_labelled(const float *rows, const uint64_t *labels, uint64_t count, uint32_t dim,
                          unsigned threads, struct sfc_far_result *out, struct sfc_error *err);

#endif

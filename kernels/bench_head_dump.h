/* What the first steps of a benchmark took and gave, as raw little-endian files, so that another
 * implementation can be checked on the same numbers (tests/bench/peer_torch.py):
 *
 *   head.json      classes, dim, batch, steps, scale, margin, rate, optimizer (sgd or adamw),
 *                  momentum_mode (sampled or dense), momentum (of sgd), beta1, beta2, epsilon (of
 *                  adamw), weight_decay, dtype, gemm (f32 or bf16), rounding (stochastic or
 * nearest) w.f32          [classes, dim] W before step 1 (moments are 0) STEP.labels.u64 [batch]
 *   STEP.sample.u64        [sampled] class ids, ascending
 *   STEP.features.f32      [batch, dim] raw
 *   STEP.lse.f64           [batch]
 *   STEP.target_logit.f32  [batch]
 *   STEP.dx.f64            [batch, dim] gradient of the unit features
 *   STEP.w.f32, STEP.m.f32 [sampled, dim] W and momentum (adamw: first moment) of the sampled rows
 *                          after the step
 *   STEP.v.f32             [sampled, dim] with adamw: their second moment
 *
 * with STEP = 1, 2. */
#ifndef SFC_KERNELS_BENCH_HEAD_DUMP_H
#define SFC_KERNELS_BENCH_HEAD_DUMP_H

#include "kernels/backend.h"

#define SFC_BENCH_DUMP_STEPS 2

struct sfc_bench_dump {
    const char *directory; /* exists */
    const struct sfc_head_config *config;
    struct sfc_head *head; /* holds all blocks */
    double rate;
    const uint64_t *labels; /* and below: inputs and answers of the step, as they are then */
    const float *features;
    const double *lse;
    const float *target_logit;
    const int64_t *dx;
    uint64_t *sample; /* of the present step; sfc_bench_dump_close frees it */
    size_t sampled;
};

/* Before step 1. Errors name the file. */
int sfc_bench_dump_start(const struct sfc_bench_dump *dump, struct sfc_error *err);
/* Before the commit of a step, and after it. */
int sfc_bench_dump_answers(struct sfc_bench_dump *dump, uint64_t step, struct sfc_error *err);
int sfc_bench_dump_rows(const struct sfc_bench_dump *dump, uint64_t step, struct sfc_error *err);
void sfc_bench_dump_close(struct sfc_bench_dump *dump);

#endif

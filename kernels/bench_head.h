/* Times the head's step in this process: `shardfc bench head` and tests/bench. */
#ifndef SFC_KERNELS_BENCH_HEAD_H
#define SFC_KERNELS_BENCH_HEAD_H

#include <stdio.h>

#include "kernels/backend.h"

struct sfc_bench_head_options {
    const char *backend; /* sfc_backend_open */
    unsigned threads;
    uint64_t classes;
    uint32_t sample_ppm, batch, micro_batch, dim, block_size;
    uint32_t steps; /* timed, after those that warm up; at least 1 */
    enum sfc_dtype dtype, gemm;
    enum sfc_rounding rounding;
    enum sfc_momentum_mode momentum_mode;
    enum sfc_optimizer optimizer;
    bool exact; /* time the exact sums alone as well; cpu only */
    /* NULL, or a directory that exists: the initial W and what the first two steps took and gave
     * (kernels/bench_head_dump.h). */
    const char *dump;
    /* NULL, or steps on demand instead of `steps`: each line of `requests` is a number of steps, to
     * which one line of JSON on `answers` gives their times. */
    FILE *requests, *answers;
};

/* The least that this machine needs: three products at the speed that oneDNN has on the step's
 * shapes plus the bytes at the speeds of streaming. */
struct sfc_bench_floor {
    double ms, gemm_ms, bytes_ms;
    double gflops, read_gb_s, update_gb_s;
};

/* Milliseconds are medians over the steps. has_floor, has_exact: whether these were measured (a
 * backend that can't measure its ceilings has no floor); else they are 0. */
struct sfc_bench_head_result {
    double step_ms, best_ms;
    double plan_ms, logits_ms, gradient_ms, commit_ms;
    double init_ms; /* creation with the initial values of W */
    bool has_floor, has_exact;
    /* measured just before and just after the steps, and their mean */
    struct sfc_bench_floor before, after, floor;
    double exact_ms; /* all fixed-point additions of one step, mean of before and after the steps */
    uint64_t sampled, state_bytes;
    uint64_t peak_rss_bytes; /* without what measuring the floor takes */
    /* 0: no device memory; else all that was in use of it, by other programs and CUDA too */
    uint64_t peak_device_bytes;
    uint64_t steps; /* timed */
    uint32_t block_size;
    bool native; /* with a floor: bf16 operands are multiplied as such, not in f32 arithmetic */
    char numerics[256];
};

int sfc_bench_head(const struct sfc_bench_head_options *options,
                   struct sfc_bench_head_result *result, struct sfc_error *err);
/* False when the two floors differ by more than 5 %: something else ran beside the steps. Means
 * nothing without a floor. */
bool sfc_bench_head_quiet(const struct sfc_bench_head_result *result);
/* One JSON object and a newline; a table for people. */
void sfc_bench_head_json(FILE *out, const struct sfc_bench_head_options *options,
                         const struct sfc_bench_head_result *result);
void sfc_bench_head_table(FILE *out, const struct sfc_bench_head_options *options,
                          const struct sfc_bench_head_result *result);

#endif

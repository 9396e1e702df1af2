/* What the machine can do at best, measured with the backend's own threads, for benchmarks. */
#ifndef SFC_KERNELS_CPU_FLOOR_H
#define SFC_KERNELS_CPU_FLOOR_H

#include "kernels/backend.h"

struct sfc_cpu_floor {
    bool bf16;          /* the products are native bf16 (kernels/cpu/products.h) */
    double gflops;      /* mean over the three products of a step, hot operands */
    double read_gb_s;   /* contiguous reads */
    double update_gb_s; /* w and m read and written in place, contiguous */
    double exact_ms;    /* fixed-point additions of one step */
};

/* backend must be the cpu backend; sampled: rows of W in a step. */
int sfc_cpu_floor(struct sfc_backend *backend, const struct sfc_head_config *config,
                  uint64_t sampled, struct sfc_cpu_floor *out, struct sfc_error *err);
/* Bytes of the streams, which are by far the most that measuring takes: the same for any sensible
 * number of threads. */
uint64_t sfc_cpu_floor_memory(unsigned threads);

#endif

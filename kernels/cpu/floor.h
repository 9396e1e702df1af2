/* What the machine can do at best, measured with the backend's own threads, for benchmarks. */
#ifndef SFC_KERNELS_CPU_FLOOR_H
#define SFC_KERNELS_CPU_FLOOR_H

#include "kernels/backend_impl.h"

/* head_ceilings; the products have hot operands. */
int sfc_cpu_floor(struct sfc_backend *backend, const struct sfc_head_config *config,
                  uint64_t sampled, struct sfc_head_ceilings *out, struct sfc_error *err);
/* Bytes of the streams, which are by far the most that measuring takes: the same for any sensible
 * number of threads. */
uint64_t sfc_cpu_floor_memory(const struct sfc_backend *backend);

#endif

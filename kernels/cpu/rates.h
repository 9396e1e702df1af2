/* How fast the building blocks of a head's step are on this machine, one by one, with the backend's
 * own threads: for `shardfc bench kernels`. */
#ifndef SFC_KERNELS_CPU_RATES_H
#define SFC_KERNELS_CPU_RATES_H

#include "kernels/backend.h"

#define SFC_CPU_MAX_RATES 24

struct sfc_cpu_rate {
    const char *name; /* lower case words with '_' */
    const char *what; /* for people */
    const char *unit;
    double value; /* best of some repetitions, all threads together */
};

/* backend must be the cpu backend. dim: 1..SFC_MAX_DIM; batch >= 1. out: room for
 * SFC_CPU_MAX_RATES. */
int sfc_cpu_rates(struct sfc_backend *backend, uint32_t dim, uint32_t batch,
                  struct sfc_cpu_rate *out, size_t *count, struct sfc_error *err);
/* Whether this CPU multiplies bf16 by itself (else the rates of such products are left out), and
 * whether a head with bf16 products does so (kernels/cpu/products.h). */
bool sfc_cpu_multiplies_bf16(void);
bool sfc_cpu_uses_native_bf16(const struct sfc_backend *backend);

#endif

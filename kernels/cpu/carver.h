/* Hands out 64-byte aligned ranges of a mapping; with base NULL it only measures. */
#ifndef SFC_KERNELS_CPU_CARVER_H
#define SFC_KERNELS_CPU_CARVER_H

#include <stddef.h>

struct sfc_cpu_carver {
    char *base;
    size_t used;
};

static inline void *sfc_cpu_carve(struct sfc_cpu_carver *carver, size_t count, size_t size)
{
    char *at = carver->base ? carver->base + carver->used : NULL;
    carver->used += (count * size + 63) / 64 * 64;
    return at;
}

#endif

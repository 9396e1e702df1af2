#include "kernels/cpu/simd.h"

#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
static const struct sfc_simd *best(const char *wanted)
{
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (!strcmp(wanted, "base") || !avx2)
        return &sfc_simd_base;
    if (!strcmp(wanted, "avx2") || !avx512)
        return &sfc_simd_avx2;
    return &sfc_simd_avx512;
}
#else
static const struct sfc_simd *best(const char *wanted)
{
    (void)wanted;
    return &sfc_simd_base;
}
#endif

const struct sfc_simd *sfc_simd_select(void)
{
    const char *wanted = getenv("SFC_CPU_LEVEL");
    return best(wanted ? wanted : "");
}

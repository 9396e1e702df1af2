#include "kernels/cpu/products.h"

#include <dnnl.h>

enum sfc_cpu_products sfc_cpu_products_of(struct sfc_cpu_features f)
{
    return f.amx_bf16 || (f.avx512_bf16 && f.amd) ? SFC_CPU_PRODUCTS_NATIVE
                                                  : SFC_CPU_PRODUCTS_BY_F32;
}

#ifdef __x86_64__
static bool is_amd(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
}
#else
static bool is_amd(void)
{
    return false;
}
#endif

static bool has(unsigned isa, unsigned feature)
{
    return (isa & feature) == feature;
}

struct sfc_cpu_features sfc_cpu_features(void)
{
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    return (struct sfc_cpu_features){
        .avx512_bf16 = has(isa, dnnl_cpu_isa_avx512_core_bf16),
        .amx_bf16 = has(isa, dnnl_cpu_isa_avx512_core_amx),
        .amd = is_amd(),
    };
}

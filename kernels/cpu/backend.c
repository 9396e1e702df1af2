#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/floor.h"
#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"

/* Changes whenever the same inputs give other bits: order of sums, tiles, formulas. */
#define NUMERICS_VERSION 4

static void cpu_close(struct sfc_backend *backend)
{
    struct sfc_cpu *cpu = (struct sfc_cpu *)backend;
    sfc_cpu_pool_free(cpu->pool);
    free(cpu->store_dir);
    if (cpu->engine)
        dnnl_engine_destroy(cpu->engine);
    free(cpu);
}

static const char *cpu_numerics(const struct sfc_backend *backend)
{
    return ((const struct sfc_cpu *)backend)->numerics;
}

static int cpu_set_store(struct sfc_backend *backend, const char *dir, struct sfc_error *err)
{
    struct sfc_cpu *cpu = (struct sfc_cpu *)backend;
    int rc = dir ? sfc_cpu_try_dir(dir, err) : SFC_OK;
    char *copy = rc || !dir ? NULL : strdup(dir);
    if (!rc && dir && !copy)
        rc = sfc_fail(err, SFC_ENOMEM, "cpu backend: out of memory");
    if (rc)
        return rc;
    free(cpu->store_dir);
    cpu->store_dir = copy;
    return SFC_OK;
}

static const struct sfc_backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .numerics = cpu_numerics,
    .set_store = cpu_set_store,
    .head_ceilings = sfc_cpu_floor,
    .head_ceilings_memory = sfc_cpu_floor_memory,
    .head_memory = sfc_cpu_head_memory,
    .head_new = sfc_cpu_head_new,
    .head_free = sfc_cpu_head_free,
    .head_read = sfc_cpu_head_read,
    .head_write = sfc_cpu_head_write,
    .head_read_rows = sfc_cpu_head_read_rows,
    .head_write_rows = sfc_cpu_head_write_rows,
    .head_rearrange = sfc_cpu_head_rearrange,
    .head_plan = sfc_cpu_head_plan,
    .head_prefetch = sfc_cpu_head_prefetch,
    .head_sample = sfc_cpu_head_sample,
    .head_logits = sfc_cpu_head_logits,
    .head_gradient = sfc_cpu_head_gradient,
    .head_commit = sfc_cpu_head_commit,
    .head_finite = sfc_cpu_head_finite,
    .head_inverse_norms = sfc_cpu_head_inverse_norms,
    .head_extents = sfc_cpu_head_extents,
    .dense_memory = sfc_cpu_dense_memory,
    .dense_new = sfc_cpu_dense_new,
    .dense_free = sfc_cpu_dense_free,
    .dense_read = sfc_cpu_dense_read,
    .dense_write = sfc_cpu_dense_write,
    .dense_push = sfc_cpu_dense_push,
    .dense_pull = sfc_cpu_dense_pull,
    .dense_prepare = sfc_cpu_dense_prepare,
    .dense_sums = sfc_cpu_dense_sums,
    .dense_load = sfc_cpu_dense_load,
    .dense_extents = sfc_cpu_dense_extents,
    .dense_commit = sfc_cpu_dense_commit,
};

static const char *isa_name(dnnl_cpu_isa_t isa)
{
    switch ((int)isa) {
    case dnnl_cpu_isa_sse41:
        return "sse41";
    case dnnl_cpu_isa_avx:
        return "avx";
    case dnnl_cpu_isa_avx2:
        return "avx2";
    case dnnl_cpu_isa_avx2_vnni:
        return "avx2_vnni";
    case dnnl_cpu_isa_avx512_core:
        return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni:
        return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16:
        return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_amx:
        return "avx512_core_amx";
    default:
        return "other";
    }
}

static const char *products_name(enum sfc_cpu_products products)
{
    return products == SFC_CPU_PRODUCTS_NATIVE ? "gemm-bf16-native" : "gemm-bf16-by-f32";
}

int sfc_backend_cpu_open(unsigned threads, struct sfc_backend **out, struct sfc_error *err)
{
    return sfc_backend_cpu_open_products(threads, sfc_cpu_products_of(sfc_cpu_features()), out,
                                         err);
}

int sfc_backend_cpu_open_products(unsigned threads, enum sfc_cpu_products products,
                                  struct sfc_backend **out, struct sfc_error *err)
{
    struct sfc_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return sfc_fail(err, SFC_ENOMEM, "cpu backend: out of memory");
    const dnnl_version_t *version = dnnl_version();
    cpu->base.ops = &cpu_ops;
    cpu->threads = threads;
    cpu->products = products;
    snprintf(cpu->numerics, sizeof cpu->numerics, "cpu %s %s %s onednn-%d.%d.%d n%d",
             isa_name(dnnl_get_effective_cpu_isa()), sfc_simd_select()->name,
             products_name(products), version->major, version->minor, version->patch,
             NUMERICS_VERSION);
    int rc = SFC_OK;
    if (dnnl_engine_create(&cpu->engine, dnnl_cpu, 0))
        rc = sfc_fail(err, SFC_EDEVICE, "cpu backend: oneDNN has no CPU engine");
    if (!rc)
        rc = sfc_cpu_pool_new(threads, &cpu->pool, err);
    if (rc) {
        cpu_close(&cpu->base);
        return rc;
    }
    *out = &cpu->base;
    return SFC_OK;
}

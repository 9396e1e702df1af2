#include "kernels/cpu/gemm.h"

#include <pthread.h>
#include <string.h>

/* One creation at a time: workers that create the same shapes share them through oneDNN's primitive
 * cache, whose synchronisation ThreadSanitizer can't see; and the second finds what the first has
 * made. */
static pthread_mutex_t creation = PTHREAD_MUTEX_INITIALIZER;

static int describe(const struct sfc_gemm_shape *shape, dnnl_memory_desc_t md[3],
                    dnnl_engine_t engine, dnnl_primitive_desc_t *out, struct sfc_error *err)
{
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t sum = NULL;
    dnnl_data_type_t type = shape->bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t a = {shape->m, shape->k}, b = {shape->k, shape->n}, c = {shape->m, shape->n};
    dnnl_status_t status =
        dnnl_memory_desc_init_by_tag(&md[0], 2, a, type, shape->a_transposed ? dnnl_ba : dnnl_ab);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&md[1], 2, b, type,
                                              shape->b_transposed ? dnnl_ba : dnnl_ab);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&md[2], 2, c, dnnl_f32, dnnl_ab);
    if (!status)
        status = dnnl_matmul_desc_init(&desc, &md[0], &md[1], NULL, &md[2]);
    if (!status)
        status = dnnl_primitive_attr_create(&attr);
    if (!status)
        status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!status && shape->accumulate) {
        status = dnnl_post_ops_create(&sum);
        if (!status)
            status = dnnl_post_ops_append_sum(sum, 1.0f);
        if (!status)
            status = dnnl_primitive_attr_set_post_ops(attr, sum);
    }
    if (!status)
        status = dnnl_primitive_desc_create(out, &desc, attr, engine, NULL);
    if (sum)
        dnnl_post_ops_destroy(sum);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    if (status)
        return sfc_fail(err, SFC_EDEVICE, "oneDNN has no matmul of %lld x %lld x %lld (status %d)",
                        (long long)shape->m, (long long)shape->n, (long long)shape->k, status);
    return SFC_OK;
}

int sfc_gemm_scratch(dnnl_engine_t engine, const struct sfc_gemm_shape *shape, size_t *bytes,
                     struct sfc_error *err)
{
    dnnl_memory_desc_t md[3];
    dnnl_primitive_desc_t pd = NULL;
    int rc = describe(shape, md, engine, &pd, err);
    if (rc)
        return rc;
    *bytes =
        dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
    dnnl_primitive_desc_destroy(pd);
    return SFC_OK;
}

static int create(struct sfc_gemm *gemm, dnnl_engine_t engine, const struct sfc_gemm_shape *shape,
                  struct sfc_error *err)
{
    dnnl_memory_desc_t md[3];
    dnnl_primitive_desc_t pd = NULL;
    const char *name = "";
    int rc = describe(shape, md, engine, &pd, err);
    if (rc)
        return rc;
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    gemm->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    dnnl_status_t status = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    gemm->brg = !status && !strncmp(name, "brg:", 4);
    if (!status)
        status = dnnl_primitive_create(&gemm->primitive, pd);
    if (!status)
        status = dnnl_memory_create(&gemm->a, &md[0], engine, DNNL_MEMORY_NONE);
    if (!status)
        status = dnnl_memory_create(&gemm->b, &md[1], engine, DNNL_MEMORY_NONE);
    if (!status)
        status = dnnl_memory_create(&gemm->c, &md[2], engine, DNNL_MEMORY_NONE);
    if (!status)
        status = dnnl_memory_create(&gemm->scratchpad, scratch, engine, DNNL_MEMORY_NONE);
    dnnl_primitive_desc_destroy(pd);
    if (status)
        return sfc_fail(err, SFC_EDEVICE,
                        "oneDNN can't make its matmul of %lld x %lld x %lld (status %d)",
                        (long long)shape->m, (long long)shape->n, (long long)shape->k, status);
    return SFC_OK;
}

int sfc_gemm_init(struct sfc_gemm *gemm, dnnl_engine_t engine, const struct sfc_gemm_shape *shape,
                  struct sfc_error *err)
{
    pthread_mutex_lock(&creation);
    int rc = create(gemm, engine, shape, err);
    pthread_mutex_unlock(&creation);
    if (rc)
        sfc_gemm_close(gemm);
    return rc;
}

void sfc_gemm_close(struct sfc_gemm *gemm)
{
    dnnl_memory_t memories[] = {gemm->a, gemm->b, gemm->c, gemm->scratchpad};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
        if (memories[i])
            dnnl_memory_destroy(memories[i]);
    if (gemm->primitive)
        dnnl_primitive_destroy(gemm->primitive);
    memset(gemm, 0, sizeof *gemm);
}

int sfc_gemm_run(struct sfc_gemm *gemm, dnnl_stream_t stream, const void *a, const void *b,
                 float *c, void *scratch, struct sfc_error *err)
{
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, gemm->a},
        {DNNL_ARG_WEIGHTS, gemm->b},
        {DNNL_ARG_DST, gemm->c},
        {DNNL_ARG_SCRATCHPAD, gemm->scratchpad},
    };
    dnnl_status_t status = dnnl_memory_set_data_handle(gemm->a, (void *)(uintptr_t)a);
    if (!status)
        status = dnnl_memory_set_data_handle(gemm->b, (void *)(uintptr_t)b);
    if (!status)
        status = dnnl_memory_set_data_handle(gemm->c, c);
    if (!status)
        status = dnnl_memory_set_data_handle(gemm->scratchpad, scratch);
    if (!status)
        status = dnnl_primitive_execute(gemm->primitive, stream, 4, args);
    if (!status)
        status = dnnl_stream_wait(stream);
    if (status)
        return sfc_fail(err, SFC_EDEVICE, "oneDNN's matmul failed (status %d)", status);
    return SFC_OK;
}

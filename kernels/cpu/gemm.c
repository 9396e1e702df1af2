#include "kernels/cpu/gemm.h"

#include <pthread.h>
#include <string.h>

/* One creation at a time: workers that create the same shapes share them through oneDNN's primitive
 * cache, whose synchronisation ThreadSanitizer can't see; and the second finds what the first has
 * made. */
static pthread_mutex_t creation = PTHREAD_MUTEX_INITIALIZER;

/* md[1] may be left to oneDNN (dnnl_format_tag_any). */
static int describe_with(const struct sfc_gemm_shape *shape, dnnl_format_tag_t b_tag,
                         dnnl_memory_desc_t md[3], dnnl_engine_t engine, dnnl_primitive_desc_t *out,
                         struct sfc_error *err)
{
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t sum = NULL;
    dnnl_data_type_t type = shape->bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t a = {shape->m, shape->k}, b = {shape->k, shape->n}, c = {shape->m, shape->n};
    dnnl_status_t status =
        dnnl_memory_desc_init_by_tag(&md[0], 2, a, type, shape->a_transposed ? dnnl_ba : dnnl_ab);
    if (!status)
        status = dnnl_memory_desc_init_by_tag(&md[1], 2, b, type, b_tag);
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

/* brgemm by name. */
static bool is_brg(dnnl_primitive_desc_t pd)
{
    const char *name = "";
    return !dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name) &&
           !strncmp(name, "brg:", 4);
}

/* Columns of a strip where B is laid out in whole strips without padding, else 0. */
static size_t strip_of(const dnnl_memory_desc_t *b)
{
    const dnnl_blocking_desc_t *blocking = &b->format_desc.blocking;
    if (b->format_kind != dnnl_blocked || blocking->inner_nblks != 2 ||
        blocking->inner_idxs[0] != 0 || blocking->inner_idxs[1] != 1)
        return 0;
    dnnl_dim_t rows = blocking->inner_blks[0], strip = blocking->inner_blks[1];
    bool whole = b->dims[0] % rows == 0 && b->dims[1] % strip == 0;
    bool in_order = (b->dims[0] == rows || blocking->strides[0] == rows * strip) &&
                    (b->dims[1] == strip || blocking->strides[1] == b->dims[0] * strip);
    return whole && in_order ? (size_t)strip : 0;
}

/* *strip: of B, 0 where it is plain. */
static int describe(const struct sfc_gemm_shape *shape, dnnl_memory_desc_t md[3],
                    dnnl_engine_t engine, dnnl_primitive_desc_t *out, size_t *strip,
                    struct sfc_error *err)
{
    dnnl_format_tag_t plain = shape->b_transposed ? dnnl_ba : dnnl_ab;
    *strip = 0;
    if (shape->b_packed && !shape->bf16) {
        int rc = describe_with(shape, dnnl_format_tag_any, md, engine, out, err);
        if (rc)
            return rc;
        md[1] = *dnnl_primitive_desc_query_md(*out, dnnl_query_weights_md, 0);
        *strip = is_brg(*out) ? strip_of(&md[1]) : 0;
        if (*strip)
            return SFC_OK;
        dnnl_primitive_desc_destroy(*out);
    }
    return describe_with(shape, plain, md, engine, out, err);
}

int sfc_gemm_scratch(dnnl_engine_t engine, const struct sfc_gemm_shape *shape, size_t *bytes,
                     struct sfc_error *err)
{
    dnnl_memory_desc_t md[3];
    dnnl_primitive_desc_t pd = NULL;
    size_t strip;
    int rc = describe(shape, md, engine, &pd, &strip, err);
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
    int rc = describe(shape, md, engine, &pd, &gemm->strip, err);
    if (rc)
        return rc;
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    gemm->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    gemm->shape = *shape;
    gemm->brg = is_brg(pd);
    dnnl_status_t status = dnnl_primitive_create(&gemm->primitive, pd);
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

/* Columns first .. first + n - 1 of B, stored as rows of k numbers. */
static void pack_columns(const struct sfc_gemm *gemm, const float *rows, size_t first, size_t n,
                         float *out)
{
    size_t k = (size_t)gemm->shape.k, strip = gemm->strip;
    for (size_t i = 0; i < n; i++, rows += k) {
        float *column = out + (first + i) / strip * strip * k + (first + i) % strip;
        for (size_t r = 0; r < k; r++)
            column[r * strip] = rows[r];
    }
}

static void pack_rows(const struct sfc_gemm *gemm, const float *rows, size_t first, size_t n,
                      float *out)
{
    size_t k = (size_t)gemm->shape.k, columns = (size_t)gemm->shape.n, strip = gemm->strip;
    for (size_t i = 0; i < n; i++, rows += columns)
        for (size_t c = 0; c < columns; c += strip)
            memcpy(out + c * k + (first + i) * strip, rows + c, strip * sizeof *out);
}

void sfc_gemm_pack(const struct sfc_gemm *gemm, const void *rows, size_t first, size_t n, void *out)
{
    const struct sfc_gemm_shape *s = &gemm->shape;
    size_t length = (size_t)(s->b_transposed ? s->k : s->n);
    size_t bytes = length * (s->bf16 ? sizeof(uint16_t) : sizeof(float));
    if (!gemm->strip)
        memcpy((char *)out + first * bytes, rows, n * bytes);
    else if (s->b_transposed)
        pack_columns(gemm, rows, first, n, out);
    else
        pack_rows(gemm, rows, first, n, out);
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

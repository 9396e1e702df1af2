#include "kernels/reference/reference.h"

#include <stdlib.h>

static void ref_close(struct sfc_backend *backend)
{
    free(backend);
}

static const char *ref_numerics(const struct sfc_backend *backend)
{
    (void)backend;
    return "reference f64 n1";
}

static const struct sfc_backend_ops ref_ops = {
    .name = "reference",
    .close = ref_close,
    .numerics = ref_numerics,
    .eager_dense = true,
    .head_memory = sfc_ref_head_memory,
    .head_new = sfc_ref_head_new,
    .head_free = sfc_ref_head_free,
    .head_read = sfc_ref_head_read,
    .head_write = sfc_ref_head_write,
    .head_plan = sfc_ref_head_plan,
    .head_sample = sfc_ref_head_sample,
    .head_logits = sfc_ref_head_logits,
    .head_gradient = sfc_ref_head_gradient,
    .head_commit = sfc_ref_head_commit,
    .head_finite = sfc_ref_head_finite,
    .head_inverse_norms = sfc_ref_head_inverse_norms,
    .head_extents = sfc_ref_head_extents,
    .dense_memory = sfc_ref_dense_memory,
    .dense_new = sfc_ref_dense_new,
    .dense_free = sfc_ref_dense_free,
    .dense_read = sfc_ref_dense_read,
    .dense_write = sfc_ref_dense_write,
    .dense_push = sfc_ref_dense_push,
    .dense_pull = sfc_ref_dense_pull,
    .dense_prepare = sfc_ref_dense_prepare,
    .dense_sums = sfc_ref_dense_sums,
    .dense_load = sfc_ref_dense_load,
    .dense_extents = sfc_ref_dense_extents,
    .dense_commit = sfc_ref_dense_commit,
};

int sfc_backend_reference_open(unsigned threads, struct sfc_backend **out, struct sfc_error *err)
{
    (void)threads; /* never changes a result; here not even the speed */
    struct sfc_backend *backend = calloc(1, sizeof *backend);
    if (!backend) {
        return sfc_fail(err, SFC_ENOMEM, "reference backend: out of memory");
    }
    backend->ops = &ref_ops;
    *out = backend;
    return SFC_OK;
}

/* What a head may be configured to. */
#include "kernels/backend_impl.h"
#include "kernels/lag.h"
#include "kernels/rng/sample.h"

#define MAX_CLASSES    ((uint64_t)1 << 40)
#define MAX_BLOCK_SIZE (1u << 20)
#define MAX_BATCH      (1u << 20)
#define MAX_SLOTS      65536u
/* An exponential below exp(-87) counts as 0 (f32, kernels/exact_sum.h), and a row whose sum is 0
 * has no softmax. With a scale s > 80 a class at cosine 0, where training starts, adds exp(80 - s).
 */
#define MAX_SCALE 160.0
/* With one class in the sample there is no other whose exponential is larger: its logit, at least
 * -scale * (1 + m3), must count at cosine -1. logq divides by 2^20 meanwhile. */
#define LONE_LOGIT      87.0
#define LONE_LOGIT_LOGQ 73.0

static int check_integer(const char *field, uint64_t value, uint64_t low, uint64_t high,
                         struct sfc_error *err)
{
    if (value >= low && value <= high)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL, "head: %s %llu is outside %llu..%llu", field,
                    (unsigned long long)value, (unsigned long long)low, (unsigned long long)high);
}

static int check_real(const char *field, double value, double low, double high,
                      struct sfc_error *err)
{
    if (value >= low && value <= high)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL, "head: %s %g is outside %g..%g", field, value, low, high);
}

static int check_shape(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc = check_integer("classes", c->classes, 1, MAX_CLASSES, err);
    if (!rc)
        rc = check_integer("dim", c->dim, 1, SFC_MAX_DIM, err);
    if (!rc)
        rc = check_integer("block_size", c->block_size, 1, MAX_BLOCK_SIZE, err);
    if (!rc)
        rc = check_integer("number of blocks", sfc_head_block_count(c), 1, UINT32_MAX, err);
    if (!rc)
        rc = check_integer("sample_ppm", c->sample_ppm, 1, 1000000, err);
    if (!rc)
        rc = check_integer("batch", c->batch, 1, MAX_BATCH, err);
    if (!rc)
        rc = check_integer("micro_batch", c->micro_batch, 1, c->batch, err);
    if (!rc && c->batch % c->micro_batch)
        rc = sfc_fail(err, SFC_EINVAL, "head: batch %u is not a multiple of micro_batch %u",
                      c->batch, c->micro_batch);
    if (!rc)
        rc = check_integer("slots", c->slots, c->batch / c->micro_batch, MAX_SLOTS, err);
    return rc;
}

static int check_numbers(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc = check_real("scale", c->scale, 1e-3, MAX_SCALE, err);
    if (!rc)
        rc = check_real("margin_m1", c->margin_m1, 1e-3, 8, err);
    if (!rc)
        rc = check_real("margin_m2", c->margin_m2, 0, 3.14, err);
    if (!rc)
        rc = check_real("margin_m3", c->margin_m3, 0, 4, err);
    if (!rc && c->has_filter)
        rc = check_real("filter", c->filter, -1, 1, err);
    if (!rc)
        rc = check_real("momentum", c->momentum, 0, 0.9999, err);
    if (!rc)
        rc = check_real("weight_decay", c->weight_decay, 0, 1, err);
    if (!rc)
        rc = check_real("init_std", c->init_std, 0, 1e3, err);
    return rc;
}

static int check_choices(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc =
        check_integer("margin_grad", (uint64_t)c->margin_grad, 0, SFC_MARGIN_GRAD_IDENTITY, err);
    if (!rc)
        rc = check_integer("correction", (uint64_t)c->correction, 0, SFC_CORRECTION_LOGQ, err);
    if (!rc)
        rc = check_integer("optimizer", (uint64_t)c->optimizer, 0, SFC_OPTIMIZER_ADAMW, err);
    if (!rc)
        rc = check_integer("momentum_mode", (uint64_t)c->momentum_mode, 0, SFC_MOMENTUM_DENSE, err);
    if (!rc)
        rc = check_integer("dtype", (uint64_t)c->dtype, 0, SFC_DTYPE_BF16, err);
    if (!rc)
        rc = check_integer("gemm", (uint64_t)c->gemm, 0, SFC_DTYPE_BF16, err);
    if (!rc)
        rc = check_integer("rounding", (uint64_t)c->rounding, 0, SFC_ROUNDING_NEAREST, err);
    if (!rc && c->optimizer == SFC_OPTIMIZER_ADAMW && c->momentum_mode == SFC_MOMENTUM_DENSE)
        rc = sfc_fail(err, SFC_EINVAL, "head: AdamW has no dense momentum mode");
    if (!rc && c->optimizer == SFC_OPTIMIZER_ADAMW)
        rc = sfc_adamw_check("head", c->beta1, c->beta2, c->epsilon, err);
    if (!rc && c->momentum_mode == SFC_MOMENTUM_DENSE)
        rc = check_integer("steps (of momentum mode dense)", c->steps, 1, SFC_LAG_MAX_STEPS, err);
    return rc;
}

static bool may_sample_one(const struct sfc_head_config *c)
{
    return sfc_head_block_count(c) == 1 &&
           sfc_sample_quota((uint32_t)c->classes, c->sample_ppm, 0) == 1;
}

static int check_lone_class(const struct sfc_head_config *c, struct sfc_error *err)
{
    double least = c->scale * (1 + c->margin_m3);
    double limit = c->correction == SFC_CORRECTION_LOGQ ? LONE_LOGIT_LOGQ : LONE_LOGIT;
    if (least <= limit || !may_sample_one(c))
        return SFC_OK;
    return sfc_fail(
        err, SFC_EINVAL,
        "head: a sample may be one class alone (%llu classes, sample_ppm %u), whose "
        "exponential is 0 at scale * (1 + margin_m3) = %g; take at most %g, more classes "
        "or a larger sample",
        (unsigned long long)c->classes, c->sample_ppm, least, limit);
}

int sfc_head_check(const struct sfc_backend *backend, const struct sfc_head_config *config,
                   struct sfc_error *err)
{
    int rc = check_shape(config, err);
    if (!rc)
        rc = check_numbers(config, err);
    if (!rc)
        rc = check_choices(config, err);
    if (!rc)
        rc = check_lone_class(config, err);
    if (!rc && backend->ops->head_check)
        rc = backend->ops->head_check(backend, config, err);
    return rc;
}

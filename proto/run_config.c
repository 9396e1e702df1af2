#include "proto/run_config.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "proto/base/bytes.h"
#include "proto/limits.h"
#include "proto/wire.h"

const char *const sfc_run_margin_grads[] = {"exact", "identity", NULL};
const char *const sfc_run_corrections[] = {"none", "logq", NULL};
const char *const sfc_run_optimizers[] = {"sgd", "adamw", NULL};
const char *const sfc_run_momentum_modes[] = {"sampled", "dense", NULL};
const char *const sfc_run_dtypes[] = {"f32", "bf16", NULL};
const char *const sfc_run_roundings[] = {"stochastic", "nearest", NULL};

int sfc_run_choice(const char *const *choices, const char *text)
{
    for (int i = 0; choices[i] != NULL; i++) {
        if (text != NULL && strcmp(choices[i], text) == 0) {
            return i;
        }
    }
    return -1;
}

struct whole {
    const char *name;
    uint64_t value, min, max;
};

static int check_whole(const struct whole *fields, size_t count, struct sfc_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (fields[i].value < fields[i].min || fields[i].value > fields[i].max) {
            return sfc_fail(err, SFC_EINVAL, "%s is %" PRIu64 ", allowed %" PRIu64 " to %" PRIu64,
                            fields[i].name, fields[i].value, fields[i].min, fields[i].max);
        }
    }
    return SFC_OK;
}

struct real {
    const char *name;
    double value, min, max;
};

static int check_real(const struct real *fields, size_t count, struct sfc_error *err)
{
    for (size_t i = 0; i < count; i++) { /* written so that NaN is refused */
        if (!(fields[i].value >= fields[i].min && fields[i].value <= fields[i].max)) {
            return sfc_fail(err, SFC_EINVAL, "%s is %g, allowed %g to %g", fields[i].name,
                            fields[i].value, fields[i].min, fields[i].max);
        }
    }
    return SFC_OK;
}

static int check_choice(const char *name, const char *text, const char *const *choices,
                        struct sfc_error *err)
{
    if (sfc_run_choice(choices, text) < 0) {
        return sfc_fail(err, SFC_EINVAL, "%s is \"%.40s\", allowed %s or %s", name,
                        text != NULL ? text : "", choices[0], choices[1]);
    }
    return SFC_OK;
}

static int check_class_layer(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    const struct whole whole[] = {
        {"classes", c->classes, 1, SFC_LIMIT_CLASSES},
        {"dim", c->dim, 1, SFC_LIMIT_DIM},
        {"block_size", c->block_size, 1, SFC_LIMIT_BLOCK_SIZE},
        {"sample_ppm", c->sample_ppm, 1, 1000000},
    };
    const struct real real[] = {
        {"margin_m1", c->margin_m1, 0, 16}, {"margin_m2", c->margin_m2, -4, 4},
        {"margin_m3", c->margin_m3, -2, 2}, {"scale", c->scale, 1e-3, SFC_LIMIT_SCALE},
        {"filter", c->filter, -1, 1},       {"init_std", c->init_std, 0, 1e3},
    };
    int code = check_whole(whole, sizeof whole / sizeof *whole, err);
    code = code != SFC_OK ? code : check_real(real, sizeof real / sizeof *real, err);
    if (code != SFC_OK) {
        return code;
    }
    uint64_t blocks = (c->classes - 1) / c->block_size + 1;
    if (blocks > SFC_LIMIT_BLOCKS) {
        return sfc_fail(err, SFC_EINVAL,
                        "%" PRIu64 " classes in blocks of %u are %" PRIu64
                        " blocks, allowed %llu: make block_size larger",
                        c->classes, c->block_size, blocks, SFC_LIMIT_BLOCKS);
    }
    code = check_choice("margin_grad", c->margin_grad, sfc_run_margin_grads, err);
    code =
        code != SFC_OK ? code : check_choice("correction", c->correction, sfc_run_corrections, err);
    code = code != SFC_OK ? code : check_choice("dtype", c->dtype, sfc_run_dtypes, err);
    code = code != SFC_OK ? code : check_choice("gemm", c->gemm, sfc_run_dtypes, err);
    return code != SFC_OK ? code : check_choice("rounding", c->rounding, sfc_run_roundings, err);
}

static int check_optimizer(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    const struct whole whole[] = {
        {"steps", c->steps, 1, SFC_LIMIT_STEPS},
        {"warmup_steps", c->warmup_steps, 0, SFC_LIMIT_STEPS},
        {"global_batch", c->global_batch, 1, SFC_LIMIT_BATCH},
        {"micro_batch", c->micro_batch, 1, SFC_LIMIT_BATCH},
    };
    const struct real real[] = {
        {"momentum", c->momentum, 0, 0.99999},
        {"beta1", c->beta1, 0, SFC_LIMIT_BETA1},
        {"beta2", c->beta2, 0, SFC_LIMIT_BETA2},
        {"epsilon", c->epsilon, 0, SFC_LIMIT_EPSILON_MAX},
        {"weight_decay", c->weight_decay, 0, 1e3},
        {"lr", c->lr, 0, 1e6},
        {"lr_power", c->lr_power, 0, 100},
        {"lr_end", c->lr_end, 0, 1},
        {"clip", c->clip, 0, 1e12},
    };
    int code = check_whole(whole, sizeof whole / sizeof *whole, err);
    code = code != SFC_OK ? code : check_real(real, sizeof real / sizeof *real, err);
    code = code != SFC_OK ? code : check_choice("optimizer", c->optimizer, sfc_run_optimizers, err);
    code = code != SFC_OK
               ? code
               : check_choice("momentum_mode", c->momentum_mode, sfc_run_momentum_modes, err);
    if (code != SFC_OK) {
        return code;
    }
    if (strcmp(c->momentum_mode, "dense") == 0) {
        if (strcmp(c->optimizer, "adamw") == 0) {
            return sfc_fail(err, SFC_EINVAL,
                            "momentum_mode dense needs optimizer sgd: adamw has no closed form for "
                            "rows without a gradient");
        }
        if (c->steps > SFC_LIMIT_DENSE_STEPS) {
            return sfc_fail(err, SFC_EINVAL, "steps is %" PRIu64 ", momentum_mode dense allows %u",
                            c->steps, SFC_LIMIT_DENSE_STEPS);
        }
    }
    if (strcmp(c->optimizer, "adamw") == 0 && c->epsilon < SFC_LIMIT_EPSILON_MIN) {
        return sfc_fail(err, SFC_EINVAL, "epsilon is %g, adamw allows %g to %g", c->epsilon,
                        SFC_LIMIT_EPSILON_MIN, SFC_LIMIT_EPSILON_MAX);
    }
    if (c->global_batch % c->micro_batch != 0) {
        return sfc_fail(err, SFC_EINVAL, "global_batch %u is not a multiple of micro_batch %u",
                        c->global_batch, c->micro_batch);
    }
    if (c->global_batch / c->micro_batch > SFC_LIMIT_MICRO_BATCHES) {
        return sfc_fail(err, SFC_EINVAL, "%u micro-batches per step, allowed %u",
                        c->global_batch / c->micro_batch, SFC_LIMIT_MICRO_BATCHES);
    }
    return SFC_OK;
}

uint64_t sfc_run_segment_length(const Shardfc__V1__DenseSegment *segment)
{
    uint64_t length = 1;
    for (size_t i = 0; i < segment->n_shape; i++) {
        length *= segment->shape[i];
    }
    return length;
}

uint64_t sfc_run_dense_size(const Shardfc__V1__RunConfig *config)
{
    uint64_t size = 0;
    for (size_t i = 0; i < config->n_segments; i++) {
        size += sfc_run_segment_length(config->segments[i]);
    }
    return size;
}

static int check_segment(const Shardfc__V1__DenseSegment *s, uint64_t *total, struct sfc_error *err)
{
    int code = sfc_wire_check_text(s->name, SFC_LIMIT_NAME, 1, "segment name", err);
    if (code != SFC_OK) {
        return code;
    }
    uint64_t length = 1;
    bool fits = s->n_shape <= SFC_LIMIT_RANK;
    for (size_t i = 0; fits && i < s->n_shape; i++) {
        fits = s->shape[i] > 0 && sfc_u64_mul(length, s->shape[i], &length);
    }
    fits = fits && length <= SFC_LIMIT_DENSE_SIZE - *total;
    if (!fits) {
        return sfc_fail(err, SFC_EINVAL,
                        "segment %s: at most %u dimensions of at least 1, at most %llu floats in "
                        "all segments",
                        s->name, SFC_LIMIT_RANK, SFC_LIMIT_DENSE_SIZE);
    }
    if (s->role > SHARDFC__V1__DENSE_SEGMENT__ROLE__STATISTIC || (int)s->role < 0) {
        return sfc_fail(err, SFC_EINVAL, "segment %s: role %d, allowed 0 to 2", s->name,
                        (int)s->role);
    }
    const struct real real[] = {{"init_std of a segment", s->init_std, 0, 1e3},
                                {"init_mean of a segment", s->init_mean, -1e3, 1e3}};
    *total += length;
    return check_real(real, 2, err);
}

static int check_backbone(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    uint64_t total = 0;
    int code = sfc_wire_check_text(c->backbone, SFC_LIMIT_NAME, 1, "backbone", err);
    if (code != SFC_OK) {
        return code;
    }
    bool none = strcmp(c->backbone, "none") == 0;
    if (none != (c->n_segments == 0)) {
        return sfc_fail(err, SFC_EINVAL, "backbone \"%s\" with %zu segments", c->backbone,
                        c->n_segments);
    }
    if (c->n_segments > SFC_LIMIT_SEGMENTS) {
        return sfc_fail(err, SFC_EINVAL, "%zu segments, allowed %u", c->n_segments,
                        SFC_LIMIT_SEGMENTS);
    }
    for (size_t i = 0; i < c->n_segments; i++) {
        code = check_segment(c->segments[i], &total, err);
        if (code != SFC_OK) {
            return code;
        }
    }
    if (none) {
        return SFC_OK;
    }
    const struct whole block = {"dense_block_size", c->dense_block_size, 1, SFC_LIMIT_DENSE_BLOCK};
    code = check_whole(&block, 1, err);
    if (code == SFC_OK && (total - 1) / c->dense_block_size + 1 > SFC_LIMIT_BLOCKS) {
        code = sfc_fail(err, SFC_EINVAL,
                        "%" PRIu64 " floats in dense blocks of %u are more than %llu blocks", total,
                        c->dense_block_size, SFC_LIMIT_BLOCKS);
    }
    return code;
}

int sfc_run_data_check(const Shardfc__V1__DataSet *data, struct sfc_error *err)
{
    if (data == NULL) {
        return sfc_fail(err, SFC_EINVAL, "data is missing");
    }
    if ((int)data->kind < 0 || data->kind > SHARDFC__V1__DATA_SET__KIND__SESSION) {
        return sfc_fail(err, SFC_EINVAL, "data.kind is %d, allowed 0 to 2", (int)data->kind);
    }
    const struct whole whole[] = {
        {"data.samples", data->samples, 0, SFC_LIMIT_SAMPLES},
        {"data.width", data->width, 0, SFC_LIMIT_SIDE},
        {"data.height", data->height, 0, SFC_LIMIT_SIDE},
        {"data.channels", data->channels, 0, SFC_LIMIT_CHANNELS},
        {"data.hot_classes", data->hot_classes, 0, SFC_LIMIT_HOT_CLASSES},
    };
    int code = sfc_wire_check_text(data->digest, SFC_LIMIT_NAME, 0, "data.digest", err);
    return code != SFC_OK ? code : check_whole(whole, sizeof whole / sizeof *whole, err);
}

static int check_data(const Shardfc__V1__RunConfig *c, struct sfc_error *err)
{
    int code = sfc_run_data_check(c->data, err);
    if (code != SFC_OK) {
        return code;
    }
    if (c->data->kind != SHARDFC__V1__DATA_SET__KIND__SESSION && c->data->samples == 0) {
        return sfc_fail(err, SFC_EINVAL, "data.samples is 0, allowed 1 to %llu", SFC_LIMIT_SAMPLES);
    }
    if (c->data->hot_classes > 0 && c->data->kind != SHARDFC__V1__DATA_SET__KIND__SYNTHETIC) {
        return sfc_fail(err, SFC_EINVAL, "data.hot_classes is for synthetic data only");
    }
    if (c->data->hot_classes > c->classes) {
        return sfc_fail(err, SFC_EINVAL, "data.hot_classes is %" PRIu64 " of %" PRIu64 " classes",
                        c->data->hot_classes, c->classes);
    }
    if (c->augmentation == NULL) {
        return SFC_OK;
    }
    const struct real real[] = {
        {"augmentation.affine", c->augmentation->affine, 0, 1},
        {"augmentation.blur", c->augmentation->blur, 0, 1},
        {"augmentation.noise", c->augmentation->noise, 0, 2},
    };
    return check_real(real, sizeof real / sizeof *real, err);
}

int sfc_run_config_check(const Shardfc__V1__RunConfig *config, struct sfc_error *err)
{
    if (config == NULL) {
        return sfc_fail(err, SFC_EINVAL, "the run's configuration is missing");
    }
    int code = sfc_wire_check_text(config->name, SFC_LIMIT_NAME, 1, "name", err);
    code = code != SFC_OK ? code : check_class_layer(config, err);
    code = code != SFC_OK ? code : check_optimizer(config, err);
    code = code != SFC_OK ? code : check_backbone(config, err);
    return code != SFC_OK ? code : check_data(config, err);
}

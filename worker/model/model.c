/* From the table of a backbone to layers with shapes and parameters. */
#include "worker/model/layers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM_LIMIT 65536u

/* The state of an expansion: the tensor that the next row reads. */
struct builder {
    struct sfc_model *model;
    size_t tensor;
    struct sfc_shape shape;
    struct sfc_error *err;
};

static int grow(void **array, size_t *room, size_t count, size_t item, struct sfc_error *err)
{
    if (count < *room) {
        return SFC_OK;
    }
    size_t wanted = *room == 0 ? 32 : *room * 2;
    void *bigger = realloc(*array, wanted * item);
    if (bigger == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "backbone table of %zu entries", wanted);
    }
    *array = bigger;
    *room = wanted;
    return SFC_OK;
}

#define NAME_SIZE sizeof((struct sfc_layer *)0)->name

/* out = name.part */
static int join(struct builder *b, const char *name, const char *part, char out[static NAME_SIZE])
{
    int n = snprintf(out, NAME_SIZE, "%s.%s", name, part);
    if (n < 0 || (size_t)n >= NAME_SIZE) {
        return sfc_fail(b->err, SFC_EINVAL, "layer name %s.%s is too long", name, part);
    }
    return SFC_OK;
}

/* Starts a layer that reads the current tensor; its output has the current shape until changed. */
static int add_layer(struct builder *b, enum sfc_layer_kind kind, const char *name,
                     struct sfc_layer **out)
{
    struct sfc_model *m = b->model;
    int rc = grow((void **)&m->layers, &m->layer_room, m->layer_count, sizeof *m->layers, b->err);
    if (rc != SFC_OK) {
        return rc;
    }
    struct sfc_layer *layer = &m->layers[m->layer_count++];
    *layer = (struct sfc_layer){.kind = kind, .input = b->tensor, .in = b->shape, .out = b->shape};
    int n = snprintf(layer->name, sizeof layer->name, "%s", name);
    if (n < 0 || (size_t)n >= sizeof layer->name) {
        return sfc_fail(b->err, SFC_EINVAL, "layer name %s is too long", name);
    }
    b->tensor = m->layer_count;
    *out = layer;
    return SFC_OK;
}

struct param_init {
    enum sfc_param_role role;
    double mean, std;
};

static int add_param(struct builder *b, const char *layer, const char *what, const uint64_t *shape,
                     uint32_t rank, struct param_init init, size_t *index)
{
    struct sfc_model *m = b->model;
    int rc = grow((void **)&m->params, &m->param_room, m->param_count, sizeof *m->params, b->err);
    if (rc != SFC_OK) {
        return rc;
    }
    struct sfc_param *p = &m->params[m->param_count];
    *p = (struct sfc_param){.rank = rank,
                            .offset = m->size,
                            .length = 1,
                            .role = init.role,
                            .init_mean = init.mean,
                            .init_std = init.std};
    int n = snprintf(p->name, sizeof p->name, "%s.%s", layer, what);
    if (n < 0 || (size_t)n >= sizeof p->name) {
        return sfc_fail(b->err, SFC_EINVAL, "parameter name %s.%s is too long", layer, what);
    }
    for (uint32_t i = 0; i < rank; i++) {
        p->shape[i] = shape[i];
        p->length *= shape[i];
    }
    m->size += p->length;
    *index = m->param_count++;
    return SFC_OK;
}

/* He initialisation; without a PReLU behind it the gain is 1. */
static struct param_init weight_init(uint64_t fan_in, bool linear)
{
    return (struct param_init){SFC_PARAM_WEIGHT, 0.0, sqrt((linear ? 1.0 : 2.0) / (double)fan_in)};
}

static int add_norm(struct builder *b, const char *name, bool prelu)
{
    struct sfc_layer *layer;
    int rc = add_layer(b, SFC_LAYER_NORM, name, &layer);
    if (rc != SFC_OK) {
        return rc;
    }
    layer->prelu = prelu;
    struct {
        const char *what;
        struct param_init init;
        size_t *index;
    } parts[] = {
        {"weight", {SFC_PARAM_WEIGHT_NO_DECAY, 1.0, 0.0}, &layer->params.gamma},
        {"bias", {SFC_PARAM_WEIGHT_NO_DECAY, 0.0, 0.0}, &layer->params.beta},
        {"running_mean", {SFC_PARAM_STATISTIC, 0.0, 0.0}, &layer->params.mean},
        {"running_var", {SFC_PARAM_STATISTIC, 1.0, 0.0}, &layer->params.var},
        {"slope", {SFC_PARAM_WEIGHT_NO_DECAY, 0.25, 0.0}, &layer->params.slope},
    };
    size_t count = sizeof parts / sizeof parts[0] - (prelu ? 0 : 1);
    uint64_t channels = b->shape.channels;
    for (size_t i = 0; i < count && rc == SFC_OK; i++) {
        rc = add_param(b, name, parts[i].what, &channels, 1, parts[i].init, parts[i].index);
    }
    return rc;
}

static int add_norm_behind(struct builder *b, const char *name, bool prelu)
{
    char norm[NAME_SIZE];
    int rc = join(b, name, "norm", norm);
    return rc != SFC_OK ? rc : add_norm(b, norm, prelu);
}

struct conv_form {
    uint32_t channels, kernel, stride, pad, groups;
    bool linear;
};

static int add_conv(struct builder *b, const char *name, struct conv_form f)
{
    struct sfc_shape in = b->shape;
    uint64_t high = (uint64_t)in.height + 2ull * f.pad, wide = (uint64_t)in.width + 2ull * f.pad;
    if (f.kernel == 0 || f.stride == 0 || f.channels == 0 || high < f.kernel || wide < f.kernel ||
        in.channels % f.groups != 0 || f.channels % f.groups != 0) {
        return sfc_fail(
            b->err, SFC_EINVAL,
            "%s: a %u x %u convolution to %u channels, stride %u, pad %u, %u groups does "
            "not fit %u x %u x %u",
            name, f.kernel, f.kernel, f.channels, f.stride, f.pad, f.groups, in.width, in.height,
            in.channels);
    }
    struct sfc_layer *layer;
    int rc = add_layer(b, SFC_LAYER_CONV, name, &layer);
    if (rc != SFC_OK) {
        return rc;
    }
    layer->out = (struct sfc_shape){.height = (uint32_t)((high - f.kernel) / f.stride + 1),
                                    .width = (uint32_t)((wide - f.kernel) / f.stride + 1),
                                    .channels = f.channels};
    layer->kernel = f.kernel;
    layer->stride = f.stride;
    layer->pad = f.pad;
    layer->groups = f.groups;
    b->shape = layer->out;
    uint64_t shape[4] = {f.channels, in.channels / f.groups, f.kernel, f.kernel};
    rc = add_param(b, name, "weight", shape, 4,
                   weight_init(shape[1] * shape[2] * shape[3], f.linear), &layer->params.weight);
    return rc != SFC_OK ? rc : add_norm_behind(b, name, !f.linear);
}

static int add_sum(struct builder *b, const char *name, size_t other)
{
    char full[NAME_SIZE];
    struct sfc_layer *layer;
    int rc = join(b, name, "add", full);
    if (rc == SFC_OK) {
        rc = add_layer(b, SFC_LAYER_ADD, full, &layer);
    }
    if (rc == SFC_OK) {
        layer->other = other;
    }
    return rc;
}

static int add_part(struct builder *b, const char *name, const char *part, struct conv_form form)
{
    char full[NAME_SIZE];
    int rc = join(b, name, part, full);
    return rc != SFC_OK ? rc : add_conv(b, full, form);
}

static int add_bottleneck(struct builder *b, const char *name, const struct sfc_row *row,
                          uint32_t stride)
{
    size_t input = b->tensor;
    struct sfc_shape in = b->shape;
    uint32_t wide = in.channels * row->expand;
    int rc = add_part(b, name, "expand", (struct conv_form){wide, 1, 1, 0, 1, false});
    if (rc == SFC_OK) {
        rc = add_part(b, name, "depthwise", (struct conv_form){wide, 3, stride, 1, wide, false});
    }
    if (rc == SFC_OK) {
        rc = add_part(b, name, "project", (struct conv_form){row->channels, 1, 1, 0, 1, true});
    }
    bool same = stride == 1 && in.channels == row->channels;
    return rc == SFC_OK && same ? add_sum(b, name, input) : rc;
}

static int add_bottlenecks(struct builder *b, const struct sfc_row *row)
{
    int rc = SFC_OK;
    for (uint32_t i = 0; i < row->repeat && rc == SFC_OK; i++) {
        char name[NAME_SIZE], number[16];
        snprintf(number, sizeof number, "%u", i);
        rc = join(b, row->name, number, name);
        if (rc == SFC_OK) {
            rc = add_bottleneck(b, name, row, i == 0 ? row->stride : 1);
        }
    }
    return rc;
}

static int add_dense(struct builder *b, const char *name, uint32_t channels)
{
    struct sfc_layer *layer;
    int rc = add_layer(b, SFC_LAYER_DENSE, name, &layer);
    if (rc != SFC_OK) {
        return rc;
    }
    layer->out = (struct sfc_shape){1, 1, channels};
    b->shape = layer->out;
    uint64_t shape[2] = {channels, sfc_shape_floats(layer->in)};
    return add_param(b, name, "weight", shape, 2, weight_init(shape[1], true),
                     &layer->params.weight);
}

static int add_global(struct builder *b, const struct sfc_row *row)
{
    struct sfc_layer *layer;
    bool pool = row->kind == SFC_ROW_GLOBAL_POOL;
    int rc =
        add_layer(b, pool ? SFC_LAYER_GLOBAL_POOL : SFC_LAYER_GLOBAL_DEPTHWISE, row->name, &layer);
    if (rc != SFC_OK) {
        return rc;
    }
    layer->out = (struct sfc_shape){1, 1, layer->in.channels};
    b->shape = layer->out;
    if (pool) {
        return SFC_OK;
    }
    uint64_t shape[4] = {layer->in.channels, 1, layer->in.height, layer->in.width};
    rc = add_param(b, row->name, "weight", shape, 4, weight_init(shape[2] * shape[3], row->linear),
                   &layer->params.weight);
    return rc != SFC_OK ? rc : add_norm_behind(b, row->name, !row->linear);
}

static int add_row(struct builder *b, const struct sfc_row *row)
{
    uint32_t channels = row->channels == 0 ? b->model->dim : row->channels;
    uint32_t groups = row->groups == 0 ? 1 : row->groups;
    switch (row->kind) {
    case SFC_ROW_CONV:
        return add_conv(
            b, row->name,
            (struct conv_form){channels, row->kernel, row->stride, row->pad, groups, row->linear});
    case SFC_ROW_DEPTHWISE:
        return add_conv(b, row->name,
                        (struct conv_form){b->shape.channels, row->kernel, row->stride, row->pad,
                                           b->shape.channels, row->linear});
    case SFC_ROW_BOTTLENECK:
        return add_bottlenecks(b, row);
    case SFC_ROW_GLOBAL_DEPTHWISE:
    case SFC_ROW_GLOBAL_POOL:
        return add_global(b, row);
    case SFC_ROW_DENSE:
        return add_dense(b, row->name, channels);
    case SFC_ROW_NORM:
        return add_norm(b, row->name, !row->linear);
    }
    return sfc_fail(b->err, SFC_EINTERNAL, "%s: row of unknown kind", row->name);
}

int sfc_model_build(const struct sfc_backbone *backbone, uint32_t dim, struct sfc_model **out,
                    struct sfc_error *err)
{
    if (dim == 0 || dim > DIM_LIMIT) {
        return sfc_fail(err, SFC_EINVAL, "embedding width %u is not within 1 to %u", dim,
                        DIM_LIMIT);
    }
    struct sfc_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "backbone %s", backbone->name);
    }
    model->input = backbone->input;
    model->dim = dim;
    struct builder b = {
        .model = model,
        .shape = {backbone->input.height, backbone->input.width, backbone->input.channels},
        .err = err};
    int rc = SFC_OK;
    for (size_t i = 0; i < backbone->row_count && rc == SFC_OK; i++) {
        rc = add_row(&b, &backbone->rows[i]);
    }
    if (rc == SFC_OK && (b.tensor == 0 || sfc_shape_floats(b.shape) != dim)) {
        rc = sfc_fail(err, SFC_EINVAL, "backbone %s ends in %u x %u x %u, not in %u features",
                      backbone->name, b.shape.width, b.shape.height, b.shape.channels, dim);
    }
    if (rc != SFC_OK) {
        sfc_model_free(model);
        return rc;
    }
    *out = model;
    return SFC_OK;
}

static int unknown_name(const char *name, struct sfc_error *err)
{
    char known[256] = "";
    for (size_t i = 0; i < sfc_backbone_count; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ", ",
                 sfc_backbones[i]->name);
    }
    return sfc_fail(err, SFC_ENOTFOUND, "no backbone is called '%s'; known: %s", name, known);
}

int sfc_model_new(const char *name, struct sfc_model_input input, uint32_t dim,
                  struct sfc_model **out, struct sfc_error *err)
{
    const struct sfc_backbone *found = NULL;
    for (size_t i = 0; i < sfc_backbone_count; i++) {
        if (strcmp(sfc_backbones[i]->name, name) == 0) {
            found = sfc_backbones[i];
        }
    }
    if (found == NULL) {
        return unknown_name(name, err);
    }
    struct sfc_model_input want = found->input;
    if (input.width != want.width || input.height != want.height ||
        input.channels != want.channels) {
        return sfc_fail(err, SFC_EINVAL,
                        "backbone %s takes images of %u x %u x %u (width x height x channels), not "
                        "%u x %u x %u",
                        name, want.width, want.height, want.channels, input.width, input.height,
                        input.channels);
    }
    return sfc_model_build(found, dim, out, err);
}

void sfc_model_free(struct sfc_model *model)
{
    if (model != NULL) {
        free(model->layers);
        free(model->params);
        free(model);
    }
}

uint64_t sfc_model_size(const struct sfc_model *model)
{
    return model->size;
}

const struct sfc_param *sfc_model_params(const struct sfc_model *model, size_t *count)
{
    *count = model->param_count;
    return model->params;
}

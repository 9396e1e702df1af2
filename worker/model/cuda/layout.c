#include "worker/model/cuda/layout.h"

#include <stdlib.h>
#include <string.h>

#define NUMBERS_LIMIT (UINT32_C(1) << 31)

bool sfc_layer_is_window(const struct sfc_layer *layer)
{
    bool depthwise = layer->kind == SFC_LAYER_CONV && layer->groups == layer->in.channels &&
                     layer->out.channels == layer->in.channels;
    return depthwise || layer->kind == SFC_LAYER_GLOBAL_DEPTHWISE ||
           layer->kind == SFC_LAYER_GLOBAL_POOL;
}

struct sfc_window sfc_layer_window(const struct sfc_layer *layer, uint32_t batch)
{
    bool conv = layer->kind == SFC_LAYER_CONV;
    return (struct sfc_window){.batch = batch,
                               .channels = layer->in.channels,
                               .in_height = layer->in.height,
                               .in_width = layer->in.width,
                               .out_height = layer->out.height,
                               .out_width = layer->out.width,
                               .kernel_height = conv ? layer->kernel : layer->in.height,
                               .kernel_width = conv ? layer->kernel : layer->in.width,
                               .stride = conv ? layer->stride : 1,
                               .pad = conv ? layer->pad : 0};
}

struct sfc_plain_conv sfc_layer_plain(const struct sfc_layer *layer, uint32_t batch)
{
    return (struct sfc_plain_conv){.window = sfc_layer_window(layer, batch),
                                   .out_channels = layer->out.channels,
                                   .groups = layer->kind == SFC_LAYER_CONV ? layer->groups : 1};
}

/* A place for `bytes` bytes at the end. */
static size_t take(struct sfc_lane_layout *layout, size_t bytes)
{
    size_t at = layout->total;
    layout->total +=
        (bytes + SFC_LAYOUT_ALIGNMENT - 1) / SFC_LAYOUT_ALIGNMENT * SFC_LAYOUT_ALIGNMENT;
    return at;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static int check_numbers(const struct sfc_model *model, uint32_t batch, struct sfc_error *err)
{
    size_t image = (size_t)model->input.width * model->input.height * model->input.channels;
    size_t most = larger(image * batch, model->size);
    for (size_t i = 0; i < model->layer_count; i++) {
        most = larger(most, sfc_shape_floats(model->layers[i].out) * batch);
    }
    if (most >= NUMBERS_LIMIT) {
        return sfc_fail(err, SFC_EINVAL,
                        "micro-batch of %u rows: a tensor of the backbone would have %zu numbers, "
                        "and a device takes less than %u; make the micro-batch smaller",
                        batch, most, NUMBERS_LIMIT);
    }
    return SFC_OK;
}

static int alloc_tables(struct sfc_lane_layout *layout, size_t layers, size_t slots,
                        struct sfc_error *err)
{
    layout->tensors = calloc(layers + 1, sizeof *layout->tensors);
    layout->slots = calloc(slots + 1, sizeof *layout->slots);
    layout->weights = calloc(layers, sizeof *layout->weights);
    layout->saved = calloc(layers, sizeof *layout->saved);
    if (layout->tensors == NULL || layout->slots == NULL || layout->weights == NULL ||
        layout->saved == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the layout of a lane");
    }
    return SFC_OK;
}

/* Bytes of the sums of chunks that the layer's backward or forward pass makes. */
static size_t partial_bytes(const struct sfc_layer *l, uint32_t batch)
{
    if (l->kind == SFC_LAYER_NORM) {
        struct sfc_cut cut = sfc_cut_rows(batch * l->in.height * l->in.width, l->in.channels);
        return 3 * sizeof(double) * cut.chunks * l->in.channels;
    }
    if (l->kind == SFC_LAYER_ADD || l->kind == SFC_LAYER_GLOBAL_POOL || !sfc_layer_is_window(l)) {
        return 0;
    }
    struct sfc_window w = sfc_layer_window(l, batch);
    struct sfc_cut cut = sfc_cut_rows(batch * w.out_height * w.out_width, w.channels);
    return sizeof(double) * cut.chunks * w.kernel_height * w.kernel_width * w.channels;
}

/* Numbers of the layer's packed weights; 0: it has none. */
static size_t weight_numbers(const struct sfc_model *model, const struct sfc_layer *l)
{
    if (l->kind == SFC_LAYER_GLOBAL_POOL) { /* a window whose weights are 1 / pixels */
        return sfc_shape_floats(l->in);
    }
    bool none = l->kind == SFC_LAYER_NORM || l->kind == SFC_LAYER_ADD;
    return none ? 0 : (size_t)model->params[l->params.weight].length;
}

static void place_layers(struct sfc_lane_layout *layout, const struct sfc_model *model,
                         uint32_t batch, size_t number_size)
{
    size_t dw = 0, channels = 0, partial = 0;
    for (size_t i = 0; i < model->layer_count; i++) {
        const struct sfc_layer *l = &model->layers[i];
        size_t numbers = weight_numbers(model, l);
        bool window = sfc_layer_is_window(l);
        layout->tensors[i + 1] = take(layout, batch * sfc_shape_floats(l->out) * number_size);
        layout->weights[i] = take(layout, numbers * (window ? sizeof(float) : number_size));
        if (l->kind == SFC_LAYER_NORM) {
            layout->saved[i] = take(layout, 4 * sizeof(float) * l->in.channels);
            channels = larger(channels, l->in.channels);
        }
        dw = window ? dw : larger(dw, numbers * sizeof(float));
        partial = larger(partial, partial_bytes(l, batch));
    }
    layout->dw = take(layout, dw);
    layout->norm = take(layout, 2 * sizeof(float) * channels);
    layout->partial = take(layout, partial);
}

int sfc_lane_layout_init(struct sfc_lane_layout *layout, const struct sfc_model *model,
                         const struct sfc_backward_plan *plan, uint32_t batch,
                         enum sfc_number number, struct sfc_error *err)
{
    size_t image = (size_t)model->input.width * model->input.height * model->input.channels;
    size_t number_size = sfc_number_size(number);
    memset(layout, 0, sizeof *layout);
    int rc = check_numbers(model, batch, err);
    if (rc == SFC_OK) {
        rc = alloc_tables(layout, model->layer_count, plan->slot_count, err);
    }
    if (rc != SFC_OK) {
        sfc_lane_layout_close(layout);
        return rc;
    }
    layout->params = take(layout, model->size * sizeof(float));
    layout->gradient = take(layout, model->size * sizeof(float));
    layout->images = take(layout, batch * image * sizeof(float));
    layout->features = take(layout, (size_t)batch * model->dim * sizeof(float));
    layout->tensors[0] = take(layout, batch * image * number_size);
    for (size_t i = 0; i < plan->slot_count; i++) {
        layout->slots[i] = take(layout, batch * plan->slot_floats[i] * number_size);
    }
    place_layers(layout, model, batch, number_size);
    return SFC_OK;
}

void sfc_lane_layout_finish(struct sfc_lane_layout *layout, size_t workspace)
{
    layout->workspace = take(layout, workspace);
}

void sfc_lane_layout_close(struct sfc_lane_layout *layout)
{
    free(layout->tensors);
    free(layout->slots);
    free(layout->weights);
    free(layout->saved);
    memset(layout, 0, sizeof *layout);
}

/* A lane on the CPU: one thread's plan of oneDNN's primitives, of activations and scratch for one
 * backbone. */
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/openmp.h"
#include "worker/model/lane_impl.h"
#include "worker/model/loops.h"
#include "worker/model/plan.h"
#include "worker/model/product.h"

struct lane_layer {
    const struct sfc_layer *layer;
    struct sfc_product product;  /* CONV, DENSE */
    struct sfc_norm_saved saved; /* NORM: of the last forward or embed */
    float *x, *y, *other;        /* activations */
    float *dy, *dx, *sum_into, *other_sum_into;
};

struct cpu_lane {
    struct sfc_lane base;
    const struct sfc_model *model;
    uint32_t batch;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct lane_layer *layers;
    float **tensors; /* layer_count + 1 */
    float **slots;
    struct sfc_backward_plan plan;
    struct sfc_product_buffers shared;
    struct sfc_norm_scratch norm;
    float *global_weights, *global_gradient; /* [pixel][channel] of a global depthwise layer */
    const float *params;                     /* of the last training forward; NULL: none */
    void **blocks;                           /* everything that must be freed */
    size_t block_count, block_room;
    uint64_t memory;
};

static int lane_alloc(struct cpu_lane *lane, size_t bytes, void **out, struct sfc_error *err)
{
    bytes = (bytes + SFC_ALIGNMENT - 1) / SFC_ALIGNMENT * SFC_ALIGNMENT + SFC_ALIGNMENT;
    void *block = lane->block_count < lane->block_room ? aligned_alloc(SFC_ALIGNMENT, bytes) : NULL;
    if (block == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "lane of %u rows: %zu bytes on top of %llu", lane->batch,
                        bytes, (unsigned long long)lane->memory);
    }
    memset(block, 0, bytes); /* touched now, not in the first step */
    lane->blocks[lane->block_count++] = block;
    lane->memory += bytes;
    *out = block;
    return SFC_OK;
}

static int alloc_floats(struct cpu_lane *lane, size_t count, float **out, struct sfc_error *err)
{
    void *block = NULL;
    int rc = lane_alloc(lane, count * sizeof(float), &block, err);
    if (rc == SFC_OK) {
        *out = block;
    }
    return rc;
}

static bool is_product(const struct sfc_layer *layer)
{
    return layer->kind == SFC_LAYER_CONV || layer->kind == SFC_LAYER_DENSE;
}

static int alloc_tables(struct cpu_lane *lane, struct sfc_error *err)
{
    size_t layers = lane->model->layer_count;
    lane->block_room = layers * 5 + lane->plan.slot_count + 16;
    lane->layers = calloc(layers, sizeof *lane->layers);
    lane->tensors = calloc(layers + 1, sizeof *lane->tensors);
    lane->slots = calloc(lane->plan.slot_count, sizeof *lane->slots);
    lane->blocks = calloc(lane->block_room, sizeof *lane->blocks);
    if (lane->layers == NULL || lane->tensors == NULL || lane->slots == NULL ||
        lane->blocks == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "tables of a lane");
    }
    return SFC_OK;
}

static int alloc_activations(struct cpu_lane *lane, struct sfc_error *err)
{
    const struct sfc_model *m = lane->model;
    size_t image = (size_t)m->input.width * m->input.height * m->input.channels;
    int rc = alloc_floats(lane, lane->batch * image, &lane->tensors[0], err);
    for (size_t i = 0; i < m->layer_count && rc == SFC_OK; i++) {
        rc = alloc_floats(lane, lane->batch * sfc_shape_floats(m->layers[i].out),
                          &lane->tensors[i + 1], err);
    }
    for (size_t i = 0; i < lane->plan.slot_count && rc == SFC_OK; i++) {
        rc = alloc_floats(lane, lane->batch * lane->plan.slot_floats[i], &lane->slots[i], err);
    }
    return rc;
}

/* Scratch as large as the largest layer of its kind wants. */
static int alloc_scratch(struct cpu_lane *lane, struct sfc_error *err)
{
    const struct sfc_model *m = lane->model;
    size_t channels = 1, global = 1;
    for (size_t i = 0; i < m->layer_count; i++) {
        const struct sfc_layer *l = &m->layers[i];
        if (l->kind == SFC_LAYER_NORM && l->in.channels > channels) {
            channels = l->in.channels;
        }
        if (l->kind == SFC_LAYER_GLOBAL_DEPTHWISE && sfc_shape_floats(l->in) > global) {
            global = sfc_shape_floats(l->in);
        }
    }
    void *total = NULL;
    int rc = lane_alloc(lane, 3 * channels * sizeof(double), &total, err);
    lane->norm.total = total;
    if (rc == SFC_OK) {
        rc = alloc_floats(lane, 4 * channels, &lane->norm.part, err);
    }
    if (rc == SFC_OK) {
        rc = alloc_floats(lane, global, &lane->global_weights, err);
    }
    return rc != SFC_OK ? rc : alloc_floats(lane, global, &lane->global_gradient, err);
}

static float *slot_at(const struct cpu_lane *lane, size_t slot)
{
    return slot == SFC_NO_SLOT ? NULL : lane->slots[slot];
}

static int open_layer(struct cpu_lane *lane, size_t i, struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[i];
    const struct sfc_backward_step *step = &lane->plan.steps[i];
    struct lane_layer *at = &lane->layers[i];
    at->layer = l;
    at->x = lane->tensors[l->input];
    at->y = lane->tensors[i + 1];
    at->other = lane->tensors[l->other];
    at->dy = slot_at(lane, step->dy);
    at->dx = slot_at(lane, step->dx);
    at->sum_into = slot_at(lane, step->sum_into);
    at->other_sum_into = slot_at(lane, step->other_sum_into);
    if (is_product(l)) {
        struct sfc_product_place place = {at->x, at->y, at->dx, at->dy};
        return sfc_product_init(&at->product, lane->engine, l, lane->batch, place, err);
    }
    if (l->kind != SFC_LAYER_NORM) {
        return SFC_OK;
    }
    int rc = alloc_floats(lane, l->in.channels, &at->saved.mean, err);
    if (rc == SFC_OK) {
        rc = alloc_floats(lane, l->in.channels, &at->saved.inverse_std, err);
    }
    return rc != SFC_OK ? rc : alloc_floats(lane, l->in.channels, &at->saved.unbiased_var, err);
}

/* One weight buffer and one scratchpad serve all products, one after another. */
static int bind_products(struct cpu_lane *lane, struct sfc_error *err)
{
    size_t layers = lane->model->layer_count;
    struct sfc_product_buffers *shared = &lane->shared;
    for (size_t i = 0; i < layers; i++) {
        const struct sfc_product *p = &lane->layers[i].product;
        shared->weights_size =
            p->weights_size > shared->weights_size ? p->weights_size : shared->weights_size;
        shared->scratchpad_size = p->scratchpad_size > shared->scratchpad_size
                                      ? p->scratchpad_size
                                      : shared->scratchpad_size;
    }
    int rc = lane_alloc(lane, shared->weights_size, &shared->weights, err);
    if (rc == SFC_OK) {
        rc = lane_alloc(lane, shared->scratchpad_size, &shared->scratchpad, err);
    }
    for (size_t i = 0; i < layers && rc == SFC_OK; i++) {
        if (is_product(lane->layers[i].layer)) {
            rc = sfc_product_bind(&lane->layers[i].product, shared, err);
        }
    }
    return rc;
}

static int open_engine(struct cpu_lane *lane, struct sfc_error *err)
{
    dnnl_status_t s = dnnl_engine_create(&lane->engine, dnnl_cpu, 0);
    if (s == dnnl_success) {
        s = dnnl_stream_create(&lane->stream, lane->engine, dnnl_stream_default_flags);
    }
    return s == dnnl_success ? SFC_OK : sfc_product_fail(s, "lane", "CPU engine", err);
}

/* A lane as the seam knows it is the first thing in ours. */
static struct cpu_lane *own(struct sfc_lane *lane)
{
    return (struct cpu_lane *)lane;
}

static void cpu_lane_free(struct sfc_lane *base)
{
    struct cpu_lane *lane = own(base);
    for (size_t i = 0; lane->layers != NULL && i < lane->model->layer_count; i++) {
        sfc_product_close(&lane->layers[i].product);
    }
    if (lane->stream != NULL) {
        dnnl_stream_destroy(lane->stream);
    }
    if (lane->engine != NULL) {
        dnnl_engine_destroy(lane->engine);
    }
    for (size_t i = 0; i < lane->block_count; i++) {
        free(lane->blocks[i]);
    }
    sfc_backward_plan_close(&lane->plan);
    free(lane->blocks);
    free(lane->slots);
    free(lane->tensors);
    free(lane->layers);
    free(lane);
}

static const struct sfc_lane_ops cpu_lane_ops;

static int cpu_lane_new(const struct sfc_lane_device *device, const struct sfc_model *model,
                        uint32_t batch, struct sfc_lane **out, struct sfc_error *err)
{
    (void)device;
    omp_set_num_threads(1); /* before any primitive: they are cut for this many threads */
    struct cpu_lane *lane = calloc(1, sizeof *lane);
    if (lane == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "lane");
    }
    lane->base.ops = &cpu_lane_ops;
    lane->model = model;
    lane->batch = batch;
    int rc = sfc_backward_plan_init(&lane->plan, model, err);
    if (rc == SFC_OK) {
        rc = alloc_tables(lane, err);
    }
    if (rc == SFC_OK) {
        rc = alloc_activations(lane, err);
    }
    if (rc == SFC_OK) {
        rc = alloc_scratch(lane, err);
    }
    if (rc == SFC_OK) {
        rc = open_engine(lane, err);
    }
    for (size_t i = 0; i < model->layer_count && rc == SFC_OK; i++) {
        rc = open_layer(lane, i, err);
    }
    if (rc == SFC_OK) {
        rc = bind_products(lane, err);
    }
    if (rc != SFC_OK) {
        cpu_lane_free(&lane->base);
        return rc;
    }
    *out = &lane->base;
    return SFC_OK;
}

static uint64_t cpu_lane_memory(const struct sfc_lane *lane)
{
    return ((const struct cpu_lane *)lane)->memory;
}

static void cpu_lane_describe(const struct sfc_lane *lane, char *out, size_t size)
{
    snprintf(out, size, "%.1f MiB on the CPU", (double)cpu_lane_memory(lane) / (1 << 20));
}

static const float *param_at(const struct cpu_lane *lane, const float *params, size_t index)
{
    return params + lane->model->params[index].offset;
}

static float *gradient_at(const struct cpu_lane *lane, float *gradient, size_t index)
{
    return gradient + lane->model->params[index].offset;
}

static size_t pixels_of(struct sfc_shape s)
{
    return (size_t)s.height * s.width;
}

static struct sfc_matrix norm_matrix(const struct cpu_lane *lane, const struct sfc_layer *l)
{
    return (struct sfc_matrix){lane->batch * pixels_of(l->in), l->in.channels};
}

static struct sfc_norm_weights norm_weights(const struct cpu_lane *lane, const float *params,
                                            const struct sfc_layer *l)
{
    return (struct sfc_norm_weights){
        .gamma = param_at(lane, params, l->params.gamma),
        .beta = param_at(lane, params, l->params.beta),
        .slope = l->prelu ? param_at(lane, params, l->params.slope) : NULL,
    };
}

static int forward_norm(struct cpu_lane *lane, struct lane_layer *at, const float *params,
                        bool training, struct sfc_error *err)
{
    const struct sfc_layer *l = at->layer;
    struct sfc_matrix m = norm_matrix(lane, l);
    const float *mean = at->saved.mean;
    if (!training) {
        mean = param_at(lane, params, l->params.mean);
        sfc_norm_inverse_std(m.channels, param_at(lane, params, l->params.var),
                             at->saved.inverse_std);
    } else if (m.rows < 2) {
        return sfc_fail(err, SFC_EINVAL, "%s: batch norm needs a micro-batch of at least 2 rows",
                        l->name);
    } else {
        sfc_norm_measure(m, at->x, at->saved, lane->norm);
    }
    sfc_norm_apply(m, at->x, mean, at->saved.inverse_std, norm_weights(lane, params, l), at->y,
                   lane->norm);
    return SFC_OK;
}

static int forward_layer(struct cpu_lane *lane, struct lane_layer *at, const float *params,
                         bool training, struct sfc_error *err)
{
    const struct sfc_layer *l = at->layer;
    size_t pixels = pixels_of(l->in), channels = l->in.channels;
    switch (l->kind) {
    case SFC_LAYER_CONV:
    case SFC_LAYER_DENSE:
        return sfc_product_forward(&at->product, lane->stream,
                                   param_at(lane, params, l->params.weight), err);
    case SFC_LAYER_NORM:
        return forward_norm(lane, at, params, training, err);
    case SFC_LAYER_ADD:
        sfc_add(lane->batch * pixels * channels, at->x, at->other, at->y);
        return SFC_OK;
    case SFC_LAYER_GLOBAL_DEPTHWISE:
        sfc_transpose(channels, pixels, param_at(lane, params, l->params.weight),
                      lane->global_weights);
        sfc_global_depthwise(lane->batch, pixels, channels, at->x, lane->global_weights, at->y);
        return SFC_OK;
    case SFC_LAYER_GLOBAL_POOL:
        sfc_global_pool(lane->batch, pixels, channels, at->x, at->y);
        return SFC_OK;
    }
    return sfc_fail(err, SFC_EINTERNAL, "%s: layer of unknown kind", l->name);
}

/* Images come as [channels, height, width], tensor 0 is [height, width, channels]. */
static void load_images(struct cpu_lane *lane, const float *images)
{
    struct sfc_model_input in = lane->model->input;
    size_t pixels = (size_t)in.width * in.height, image = pixels * in.channels;
    for (size_t b = 0; b < lane->batch; b++) {
        sfc_transpose(in.channels, pixels, images + b * image, lane->tensors[0] + b * image);
    }
}

static int cpu_lane_forward(struct sfc_lane *base, const float *params, const float *images,
                            bool training, float *features, struct sfc_error *err)
{
    struct cpu_lane *lane = own(base);
    omp_set_num_threads(1);
    lane->params = NULL;
    load_images(lane, images);
    for (size_t i = 0; i < lane->model->layer_count; i++) {
        int rc = forward_layer(lane, &lane->layers[i], params, training, err);
        if (rc != SFC_OK) {
            return rc;
        }
    }
    memcpy(features, lane->tensors[lane->model->layer_count],
           (size_t)lane->batch * lane->model->dim * sizeof *features);
    lane->params = training ? params : NULL;
    return SFC_OK;
}

static void backward_norm(struct cpu_lane *lane, struct lane_layer *at, float *gradient)
{
    const struct sfc_layer *l = at->layer;
    const struct sfc_layer_params *p = &l->params;
    size_t bytes = l->in.channels * sizeof(float);
    sfc_norm_backward(norm_matrix(lane, l), at->x, at->saved, norm_weights(lane, lane->params, l),
                      at->dy, gradient_at(lane, gradient, p->gamma),
                      gradient_at(lane, gradient, p->beta),
                      l->prelu ? gradient_at(lane, gradient, p->slope) : NULL, lane->norm);
    memcpy(gradient_at(lane, gradient, p->mean), at->saved.mean, bytes);
    memcpy(gradient_at(lane, gradient, p->var), at->saved.unbiased_var, bytes);
}

static void backward_add(struct cpu_lane *lane, struct lane_layer *at)
{
    size_t count = lane->batch * sfc_shape_floats(at->layer->out);
    if (at->dx != NULL) {
        memcpy(at->dx, at->dy, count * sizeof *at->dx);
    }
    if (at->other_sum_into != NULL) {
        sfc_add_to(count, at->dy, at->other_sum_into);
    }
}

static void backward_global_depthwise(struct cpu_lane *lane, struct lane_layer *at, float *gradient)
{
    const struct sfc_layer *l = at->layer;
    size_t pixels = pixels_of(l->in), channels = l->in.channels;
    sfc_transpose(channels, pixels, param_at(lane, lane->params, l->params.weight),
                  lane->global_weights);
    sfc_global_depthwise_backward(lane->batch, pixels, channels, at->x, lane->global_weights,
                                  at->dy, at->dx, lane->global_gradient);
    sfc_transpose(pixels, channels, lane->global_gradient,
                  gradient_at(lane, gradient, l->params.weight));
}

static int backward_layer(struct cpu_lane *lane, struct lane_layer *at, float *gradient,
                          struct sfc_error *err)
{
    const struct sfc_layer *l = at->layer;
    int rc = SFC_OK;
    switch (l->kind) {
    case SFC_LAYER_CONV:
    case SFC_LAYER_DENSE:
        rc = sfc_product_backward(&at->product, lane->stream,
                                  param_at(lane, lane->params, l->params.weight),
                                  gradient_at(lane, gradient, l->params.weight), err);
        break;
    case SFC_LAYER_NORM:
        backward_norm(lane, at, gradient);
        break;
    case SFC_LAYER_ADD:
        backward_add(lane, at);
        break;
    case SFC_LAYER_GLOBAL_DEPTHWISE:
        backward_global_depthwise(lane, at, gradient);
        break;
    case SFC_LAYER_GLOBAL_POOL:
        if (at->dx != NULL) {
            sfc_global_pool_backward(lane->batch, pixels_of(l->in), l->in.channels, at->dy, at->dx);
        }
        break;
    }
    if (rc == SFC_OK && at->sum_into != NULL) {
        sfc_add_to(lane->batch * sfc_shape_floats(l->in), at->dx, at->sum_into);
    }
    return rc;
}

static int cpu_lane_backward(struct sfc_lane *base, const float *dfeatures, float *gradient,
                             struct sfc_error *err)
{
    struct cpu_lane *lane = own(base);
    if (lane->params == NULL) {
        return sfc_fail(err, SFC_ESTATE, "backward without a training forward before it");
    }
    omp_set_num_threads(1);
    memcpy(lane->slots[lane->plan.first], dfeatures,
           (size_t)lane->batch * lane->model->dim * sizeof *dfeatures);
    for (size_t i = lane->model->layer_count; i-- > 0;) {
        int rc = backward_layer(lane, &lane->layers[i], gradient, err);
        if (rc != SFC_OK) {
            return rc;
        }
    }
    return SFC_OK;
}

static const struct sfc_lane_ops cpu_lane_ops = {
    .free = cpu_lane_free,
    .memory = cpu_lane_memory,
    .describe = cpu_lane_describe,
    .forward = cpu_lane_forward,
    .backward = cpu_lane_backward,
};

/* ---- the device */

static void cpu_close(const struct sfc_lane_device *device)
{
    (void)device;
}

static void cpu_numerics(const struct sfc_lane_device *device, char *out, size_t size)
{
    static const struct {
        dnnl_cpu_isa_t isa;
        const char *name;
    } isas[] = {{dnnl_cpu_isa_sse41, "sse41"},
                {dnnl_cpu_isa_avx, "avx"},
                {dnnl_cpu_isa_avx2, "avx2"},
                {dnnl_cpu_isa_avx2_vnni, "avx2_vnni"},
                {dnnl_cpu_isa_avx512_core, "avx512_core"},
                {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni"},
                {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16"},
                {dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx"}};
    const dnnl_version_t *version = dnnl_version();
    const char *isa = "isa-other";
    dnnl_cpu_isa_t mine = dnnl_get_effective_cpu_isa();
    (void)device;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (isas[i].isa == mine) {
            isa = isas[i].name;
        }
    }
    snprintf(out, size, "cpu %s onednn-%d.%d.%d", isa, version->major, version->minor,
             version->patch);
}

static const struct sfc_lane_device_ops cpu_ops = {
    .close = cpu_close, .numerics = cpu_numerics, .lane_new = cpu_lane_new};
static const struct sfc_lane_device cpu_device = {&cpu_ops};

const struct sfc_lane_device *sfc_lane_device_cpu(void)
{
    return &cpu_device;
}

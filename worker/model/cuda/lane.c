/* A lane on a CUDA device: one stream, one piece of device memory, the layers one after the other.
 *
 * f16 has few exponents, so the backward pass multiplies the gradient that it is given by a power
 * of two and divides the parameters' gradients by it (exactly: f32). The power is a function of
 * that gradient alone, since a lane must not remember anything from one micro-batch to the next: it
 * brings the largest number to 2^SCALE_FIRST; while something overflows, it is SCALE_STEP powers
 * smaller and the pass is made again, up to SCALE_TRIES times. What overflows then still is pushed
 * as it is: the shards find it not finite and skip the step. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/cuda/layout.h"

#define SCALE_FIRST 6
#define SCALE_STEP  6
#define SCALE_TRIES 4
#define SCALE_MOST  100 /* 2^100 and its inverse are f32 numbers with room */

struct gpu_lane {
    struct sfc_lane base;
    const struct sfc_gpu *gpu;
    const struct sfc_model *model;
    uint32_t batch;
    bool trained; /* the last forward was of training */
    struct sfc_backward_plan plan;
    struct sfc_lane_layout layout;
    struct sfc_products *products;
    cudaStream_t stream;
    char *memory;
};

/* ---- places */

static void *at(const struct gpu_lane *lane, size_t offset)
{
    return lane->memory + offset;
}

static float *floats_at(const struct gpu_lane *lane, size_t offset)
{
    void *place = at(lane, offset);
    return place;
}

static void *slot_at(const struct gpu_lane *lane, size_t slot)
{
    return slot == SFC_NO_SLOT ? NULL : at(lane, lane->layout.slots[slot]);
}

static float *param_at(const struct gpu_lane *lane, size_t index)
{
    return floats_at(lane, lane->layout.params) + lane->model->params[index].offset;
}

static float *gradient_at(const struct gpu_lane *lane, size_t index)
{
    return floats_at(lane, lane->layout.gradient) + lane->model->params[index].offset;
}

static size_t image_bytes(const struct gpu_lane *lane)
{
    struct sfc_model_input in = lane->model->input;
    return sizeof(float) * lane->batch * in.width * in.height * in.channels;
}

static size_t feature_count(const struct gpu_lane *lane)
{
    return (size_t)lane->batch * lane->model->dim;
}

static bool is_product(const struct sfc_layer *l)
{
    return (l->kind == SFC_LAYER_CONV || l->kind == SFC_LAYER_DENSE) && !sfc_layer_is_window(l);
}

static struct sfc_norm_at norm_at(const struct gpu_lane *lane, size_t index)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    float *saved = floats_at(lane, lane->layout.saved[index]);
    float *scratch = floats_at(lane, lane->layout.norm);
    uint32_t channels = l->in.channels;
    void *partial = at(lane, lane->layout.partial);
    return (struct sfc_norm_at){.rows = lane->batch * l->in.height * l->in.width,
                                .channels = channels,
                                .gamma = param_at(lane, l->params.gamma),
                                .beta = param_at(lane, l->params.beta),
                                .slope = l->prelu ? param_at(lane, l->params.slope) : NULL,
                                .mean = saved,
                                .inverse_std = saved + channels,
                                .unbiased_var = saved + 2 * (size_t)channels,
                                .factor = saved + 3 * (size_t)channels,
                                .mean_grad = scratch,
                                .tilt = scratch + channels,
                                .partial = partial};
}

/* The check of a kernel's launch, with the layer's name. */
static int launched(const struct gpu_lane *lane, const struct sfc_layer *l, cudaError_t status,
                    struct sfc_error *err)
{
    if (status == cudaSuccess) {
        return SFC_OK;
    }
    char what[96];
    snprintf(what, sizeof what, "kernel of layer %s", l->name);
    return sfc_gpu_check(lane->gpu, status, what, err);
}

/* ---- life */

static void gpu_lane_free(struct sfc_lane *base)
{
    struct gpu_lane *lane = (struct gpu_lane *)base;
    cudaSetDevice(lane->gpu->device); /* what fails here failed before */
    if (lane->stream != NULL) {
        cudaStreamSynchronize(lane->stream);
    }
    sfc_products_free(lane->products);
    if (lane->memory != NULL) {
        cudaFree(lane->memory);
    }
    if (lane->stream != NULL) {
        cudaStreamDestroy(lane->stream);
    }
    cudaGetLastError(); /* nobody can be told any more */
    sfc_lane_layout_close(&lane->layout);
    sfc_backward_plan_close(&lane->plan);
    free(lane);
}

static int add_products(struct gpu_lane *lane, struct sfc_error *err)
{
    int rc = sfc_products_new(lane->gpu, lane->batch, lane->stream, lane->model->layer_count,
                              &lane->products, err);
    for (size_t i = 0; i < lane->model->layer_count && rc == SFC_OK; i++) {
        const struct sfc_layer *l = &lane->model->layers[i];
        if (is_product(l)) {
            rc = sfc_products_add(lane->products, i, l, lane->plan.steps[i].dx != SFC_NO_SLOT, err);
        }
    }
    return rc;
}

/* Everything at once, so that what does not fit is found now, with the numbers. */
static int alloc_memory(struct gpu_lane *lane, struct sfc_error *err)
{
    void *memory = NULL;
    size_t free_bytes = 0, total = 0, bytes = lane->layout.total;
    int rc = sfc_gpu_check(lane->gpu, cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo", err);
    if (rc == SFC_OK && bytes > free_bytes) {
        rc = sfc_fail(err, SFC_ENOMEM,
                      "%s: a lane of %u rows takes %.1f MiB of device memory, %.1f of %.1f MiB are "
                      "free; %s",
                      lane->gpu->label, lane->batch, (double)bytes / (1 << 20),
                      (double)free_bytes / (1 << 20), (double)total / (1 << 20),
                      sfc_gpu_advice(cudaErrorMemoryAllocation));
    }
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu, cudaMalloc(&memory, bytes), "cudaMalloc of a lane", err);
    }
    if (rc == SFC_OK) {
        lane->memory = memory;
    }
    return rc;
}

/* The constant weights of pooling. */
static int fill_constants(struct gpu_lane *lane, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (size_t i = 0; i < lane->model->layer_count && rc == SFC_OK; i++) {
        const struct sfc_layer *l = &lane->model->layers[i];
        if (l->kind == SFC_LAYER_GLOBAL_POOL) {
            float share = 1.0f / (float)(l->in.height * l->in.width);
            rc = launched(lane, l,
                          sfc_launch_fill(lane->stream, (uint32_t)sfc_shape_floats(l->in), share,
                                          floats_at(lane, lane->layout.weights[i])),
                          err);
        }
    }
    return rc;
}

static int wait_for(const struct gpu_lane *lane, const char *what, struct sfc_error *err)
{
    return sfc_gpu_check(lane->gpu, cudaStreamSynchronize(lane->stream), what, err);
}

/* Runs every product once on what lies in the memory: libraries load their kernels when these are
 * first run, and what cannot be run is found before the first step. */
static int rehearse(struct gpu_lane *lane, struct sfc_error *err)
{
    const struct sfc_lane_layout *o = &lane->layout;
    void *workspace = at(lane, o->workspace);
    int rc = SFC_OK;
    for (size_t i = 0; i < lane->model->layer_count && rc == SFC_OK; i++) {
        const struct sfc_layer *l = &lane->model->layers[i];
        const void *x = at(lane, o->tensors[l->input]), *w = at(lane, o->weights[i]);
        void *dy = slot_at(lane, lane->plan.steps[i].dy),
             *dx = slot_at(lane, lane->plan.steps[i].dx);
        if (!is_product(l)) {
            continue;
        }
        rc = sfc_products_forward(lane->products, i, x, w, at(lane, o->tensors[i + 1]), workspace,
                                  err);
        if (rc == SFC_OK && dx != NULL) {
            rc = sfc_products_data(lane->products, i, dy, w, dx, workspace, err);
        }
        if (rc == SFC_OK) {
            rc = sfc_products_weights(lane->products, i, x, dy, at(lane, o->dw), workspace, err);
        }
    }
    return rc;
}

static int open_lane(struct gpu_lane *lane, struct sfc_error *err)
{
    int rc = sfc_gpu_enter(lane->gpu, err);
    if (rc == SFC_OK) {
        rc = sfc_backward_plan_init(&lane->plan, lane->model, err);
    }
    if (rc == SFC_OK) {
        rc = sfc_lane_layout_init(&lane->layout, lane->model, &lane->plan, lane->batch,
                                  lane->gpu->number, err);
    }
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu,
                           cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking),
                           "cudaStreamCreate", err);
    }
    if (rc == SFC_OK) {
        rc = add_products(lane, err);
    }
    if (rc == SFC_OK) {
        sfc_lane_layout_finish(&lane->layout, sfc_products_workspace(lane->products));
        rc = alloc_memory(lane, err);
    }
    if (rc == SFC_OK) {
        rc = fill_constants(lane, err);
    }
    if (rc == SFC_OK) {
        rc = rehearse(lane, err);
    }
    return rc == SFC_OK ? wait_for(lane, "first run of a lane's products", err) : rc;
}

/* ---- forward */

/* Parameters as the products and windows want them. */
static int pack_weights(struct gpu_lane *lane, size_t index, struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    void *to = at(lane, lane->layout.weights[index]);
    cudaError_t status = cudaSuccess;
    if (is_product(l)) {
        struct sfc_plain_conv c = sfc_layer_plain(l, lane->batch);
        status = sfc_launch_pack(
            lane->stream, lane->gpu->number, c.out_channels, c.window.channels / c.groups,
            c.window.kernel_height * c.window.kernel_width, param_at(lane, l->params.weight), to);
    } else if (sfc_layer_is_window(l) && l->kind != SFC_LAYER_GLOBAL_POOL) {
        struct sfc_window w = sfc_layer_window(l, lane->batch);
        status =
            sfc_launch_pack(lane->stream, SFC_NUMBER_F32, 1, w.channels,
                            w.kernel_height * w.kernel_width, param_at(lane, l->params.weight), to);
    }
    return launched(lane, l, status, err);
}

static int forward_norm(struct gpu_lane *lane, size_t index, bool training, const void *x, void *y,
                        struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    struct sfc_norm_at norm = norm_at(lane, index);
    cudaError_t status;
    if (!training) {
        status = sfc_launch_norm_running(lane->stream, &norm, param_at(lane, l->params.mean),
                                         param_at(lane, l->params.var));
    } else if (norm.rows < 2) {
        return sfc_fail(err, SFC_EINVAL, "%s: batch norm needs a micro-batch of at least 2 rows",
                        l->name);
    } else {
        status = sfc_launch_norm_measure(lane->stream, lane->gpu->number, &norm, x);
    }
    if (status == cudaSuccess) {
        status = sfc_launch_norm_apply(lane->stream, lane->gpu->number, &norm, x, y);
    }
    return launched(lane, l, status, err);
}

static int forward_layer(struct gpu_lane *lane, size_t index, bool training, struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    const struct sfc_lane_layout *o = &lane->layout;
    const void *x = at(lane, o->tensors[l->input]);
    void *y = at(lane, o->tensors[index + 1]);
    if (l->kind == SFC_LAYER_NORM) {
        return forward_norm(lane, index, training, x, y, err);
    }
    if (is_product(l)) {
        return sfc_products_forward(lane->products, index, x, at(lane, o->weights[index]), y,
                                    at(lane, o->workspace), err);
    }
    if (l->kind == SFC_LAYER_ADD) {
        uint32_t count = (uint32_t)(lane->batch * sfc_shape_floats(l->out));
        return launched(lane, l,
                        sfc_launch_add(lane->stream, lane->gpu->number, count, x,
                                       at(lane, o->tensors[l->other]), y),
                        err);
    }
    struct sfc_window w = sfc_layer_window(l, lane->batch);
    return launched(lane, l,
                    sfc_launch_window(lane->stream, lane->gpu->number, &w, x,
                                      floats_at(lane, o->weights[index]), y),
                    err);
}

static int load(struct gpu_lane *lane, const float *params, const float *images,
                struct sfc_error *err)
{
    struct sfc_model_input in = lane->model->input;
    float *raw = floats_at(lane, lane->layout.images);
    int rc = sfc_gpu_check(lane->gpu,
                           cudaMemcpyAsync(at(lane, lane->layout.params), params,
                                           lane->model->size * sizeof(float),
                                           cudaMemcpyHostToDevice, lane->stream),
                           "copy of parameters", err);
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(
            lane->gpu,
            cudaMemcpyAsync(raw, images, image_bytes(lane), cudaMemcpyHostToDevice, lane->stream),
            "copy of images", err);
    }
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu,
                           sfc_launch_images(lane->stream, lane->gpu->number, lane->batch,
                                             in.channels, in.width * in.height, raw,
                                             at(lane, lane->layout.tensors[0])),
                           "kernel of images", err);
    }
    return rc;
}

static int store_features(struct gpu_lane *lane, float *features, struct sfc_error *err)
{
    float *wide = floats_at(lane, lane->layout.features);
    size_t count = feature_count(lane);
    int rc = sfc_gpu_check(
        lane->gpu,
        sfc_launch_widen(lane->stream, lane->gpu->number, (uint32_t)count,
                         at(lane, lane->layout.tensors[lane->model->layer_count]), wide),
        "kernel of features", err);
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu,
                           cudaMemcpyAsync(features, wide, count * sizeof *features,
                                           cudaMemcpyDeviceToHost, lane->stream),
                           "copy of features", err);
    }
    return rc == SFC_OK ? wait_for(lane, "forward pass", err) : rc;
}

static int gpu_lane_forward(struct sfc_lane *base, const float *params, const float *images,
                            bool training, float *features, struct sfc_error *err)
{
    struct gpu_lane *lane = (struct gpu_lane *)base;
    lane->trained = false;
    int rc = sfc_gpu_enter(lane->gpu, err);
    if (rc == SFC_OK) {
        rc = load(lane, params, images, err);
    }
    for (size_t i = 0; i < lane->model->layer_count && rc == SFC_OK; i++) {
        rc = pack_weights(lane, i, err);
        if (rc == SFC_OK) {
            rc = forward_layer(lane, i, training, err);
        }
    }
    if (rc == SFC_OK) {
        rc = store_features(lane, features, err);
    }
    lane->trained = rc == SFC_OK && training;
    return rc;
}

/* ---- backward */

static int backward_product(struct gpu_lane *lane, size_t index, const void *dy, void *dx,
                            float scale, struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    const struct sfc_lane_layout *o = &lane->layout;
    struct sfc_plain_conv c = sfc_layer_plain(l, lane->batch);
    void *workspace = at(lane, o->workspace), *dw = at(lane, o->dw);
    int rc = SFC_OK;
    if (dx != NULL) {
        rc = sfc_products_data(lane->products, index, dy, at(lane, o->weights[index]), dx,
                               workspace, err);
    }
    if (rc == SFC_OK) {
        rc = sfc_products_weights(lane->products, index, at(lane, o->tensors[l->input]), dy, dw,
                                  workspace, err);
    }
    if (rc != SFC_OK) {
        return rc;
    }
    return launched(lane, l,
                    sfc_launch_unpack(lane->stream,
                                      sfc_products_gradient_number(lane->products, index),
                                      c.out_channels, c.window.channels / c.groups,
                                      c.window.kernel_height * c.window.kernel_width, dw, scale,
                                      gradient_at(lane, l->params.weight)),
                    err);
}

static cudaError_t backward_window(struct gpu_lane *lane, size_t index, const void *dy, void *dx,
                                   float scale)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    const struct sfc_lane_layout *o = &lane->layout;
    struct sfc_window w = sfc_layer_window(l, lane->batch);
    enum sfc_number number = lane->gpu->number;
    void *partial = at(lane, o->partial);
    cudaError_t status = cudaSuccess;
    if (dx != NULL) {
        status = sfc_launch_window_data(lane->stream, number, &w, dy,
                                        floats_at(lane, o->weights[index]), dx);
    }
    if (status == cudaSuccess && l->kind != SFC_LAYER_GLOBAL_POOL) {
        status = sfc_launch_window_weights(lane->stream, number, &w, at(lane, o->tensors[l->input]),
                                           dy, partial, scale, gradient_at(lane, l->params.weight));
    }
    return status;
}

/* The gradient in dy becomes that of the input, in place. Statistics go where they stand. */
static cudaError_t backward_norm(struct gpu_lane *lane, size_t index, void *dy, float scale)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    struct sfc_norm_at norm = norm_at(lane, index);
    size_t bytes = norm.channels * sizeof(float);
    cudaError_t status = sfc_launch_norm_backward(
        lane->stream, lane->gpu->number, &norm, at(lane, lane->layout.tensors[l->input]), dy, scale,
        gradient_at(lane, l->params.gamma), gradient_at(lane, l->params.beta),
        l->prelu ? gradient_at(lane, l->params.slope) : NULL);
    if (status == cudaSuccess) {
        status = cudaMemcpyAsync(gradient_at(lane, l->params.mean), norm.mean, bytes,
                                 cudaMemcpyDeviceToDevice, lane->stream);
    }
    if (status == cudaSuccess) {
        status = cudaMemcpyAsync(gradient_at(lane, l->params.var), norm.unbiased_var, bytes,
                                 cudaMemcpyDeviceToDevice, lane->stream);
    }
    return status;
}

/* to += from. */
static cudaError_t add_to(struct gpu_lane *lane, size_t count, const void *from, void *to)
{
    return sfc_launch_add(lane->stream, lane->gpu->number, (uint32_t)count, from, to, to);
}

static cudaError_t backward_add(struct gpu_lane *lane, const struct sfc_layer *l, const void *dy,
                                void *dx, void *other)
{
    size_t count = lane->batch * sfc_shape_floats(l->out);
    cudaError_t status = cudaSuccess;
    if (dx != NULL) {
        status = cudaMemcpyAsync(dx, dy, count * sfc_number_size(lane->gpu->number),
                                 cudaMemcpyDeviceToDevice, lane->stream);
    }
    if (status == cudaSuccess && other != NULL) {
        status = add_to(lane, count, dy, other);
    }
    return status;
}

static int backward_layer(struct gpu_lane *lane, size_t index, float scale, struct sfc_error *err)
{
    const struct sfc_layer *l = &lane->model->layers[index];
    const struct sfc_backward_step *step = &lane->plan.steps[index];
    void *dy = slot_at(lane, step->dy), *dx = slot_at(lane, step->dx);
    void *sum_into = slot_at(lane, step->sum_into);
    cudaError_t status = cudaSuccess;
    if (is_product(l)) {
        int rc = backward_product(lane, index, dy, dx, scale, err);
        if (rc != SFC_OK) {
            return rc;
        }
    } else if (l->kind == SFC_LAYER_NORM) {
        status = backward_norm(lane, index, dy, scale);
    } else if (l->kind == SFC_LAYER_ADD) {
        status = backward_add(lane, l, dy, dx, slot_at(lane, step->other_sum_into));
    } else {
        status = backward_window(lane, index, dy, dx, scale);
    }
    if (status == cudaSuccess && sum_into != NULL) {
        status = add_to(lane, lane->batch * sfc_shape_floats(l->in), dx, sum_into);
    }
    return launched(lane, l, status, err);
}

/* One pass with the gradient of the features times 2^power. */
static int backward_scaled(struct gpu_lane *lane, const float *dfeatures, int power,
                           float *gradient, struct sfc_error *err)
{
    float *wide = floats_at(lane, lane->layout.features);
    size_t count = feature_count(lane);
    int rc = sfc_gpu_check(lane->gpu,
                           cudaMemcpyAsync(wide, dfeatures, count * sizeof *dfeatures,
                                           cudaMemcpyHostToDevice, lane->stream),
                           "copy of the features' gradient", err);
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu,
                           sfc_launch_narrow(lane->stream, lane->gpu->number, (uint32_t)count, wide,
                                             ldexpf(1.0f, power), slot_at(lane, lane->plan.first)),
                           "kernel of the features' gradient", err);
    }
    for (size_t i = lane->model->layer_count; i-- > 0 && rc == SFC_OK;) {
        rc = backward_layer(lane, i, ldexpf(1.0f, -power), err);
    }
    if (rc == SFC_OK) {
        rc = sfc_gpu_check(lane->gpu,
                           cudaMemcpyAsync(gradient, at(lane, lane->layout.gradient),
                                           lane->model->size * sizeof *gradient,
                                           cudaMemcpyDeviceToHost, lane->stream),
                           "copy of the gradient", err);
    }
    return rc == SFC_OK ? wait_for(lane, "backward pass", err) : rc;
}

/* The power of two for f16: 0 where there is nothing to scale. */
static int first_power(size_t count, const float *dfeatures)
{
    float most = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(dfeatures[i])) {
            return 0;
        }
        most = fmaxf(most, fabsf(dfeatures[i]));
    }
    int power = most > 0 ? SCALE_FIRST - ilogbf(most) : 0;
    return power > SCALE_MOST ? SCALE_MOST : power < -SCALE_MOST ? -SCALE_MOST : power;
}

static bool all_finite(size_t count, const float *x)
{
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

static int gpu_lane_backward(struct sfc_lane *base, const float *dfeatures, float *gradient,
                             struct sfc_error *err)
{
    struct gpu_lane *lane = (struct gpu_lane *)base;
    if (!lane->trained) {
        return sfc_fail(err, SFC_ESTATE, "backward without a training forward before it");
    }
    int rc = sfc_gpu_enter(lane->gpu, err);
    if (rc != SFC_OK) {
        return rc;
    }
    if (lane->gpu->number != SFC_NUMBER_F16) {
        return backward_scaled(lane, dfeatures, 0, gradient, err);
    }
    int power = first_power(feature_count(lane), dfeatures);
    for (int i = 0; i < SCALE_TRIES; i++, power -= SCALE_STEP) {
        rc = backward_scaled(lane, dfeatures, power, gradient, err);
        if (rc != SFC_OK || all_finite(lane->model->size, gradient)) {
            return rc;
        }
    }
    return rc;
}

/* ---- for people */

static uint64_t gpu_lane_memory(const struct sfc_lane *base)
{
    const struct gpu_lane *lane = (const struct gpu_lane *)base;
    return sizeof *lane + lane->model->layer_count * 64;
}

static void gpu_lane_describe(const struct sfc_lane *base, char *out, size_t size)
{
    const struct gpu_lane *lane = (const struct gpu_lane *)base;
    int n = snprintf(out, size, "%.1f MiB on %s, %s, workspace %.1f MiB;",
                     (double)lane->layout.total / (1 << 20), lane->gpu->label,
                     sfc_precision_name(lane->gpu->precision),
                     (double)sfc_products_workspace(lane->products) / (1 << 20));
    size_t used = n < 0 ? size : (size_t)n;
    for (size_t i = 0; i < lane->model->layer_count && used < size; i++) {
        const struct sfc_layer *l = &lane->model->layers[i];
        if (is_product(l)) {
            n = snprintf(out + used, size - used, " %s %s", l->name,
                         sfc_products_name(lane->products, i));
            used += n < 0 ? size : (size_t)n;
        }
    }
}

static const struct sfc_lane_ops gpu_lane_ops = {
    .free = gpu_lane_free,
    .memory = gpu_lane_memory,
    .describe = gpu_lane_describe,
    .forward = gpu_lane_forward,
    .backward = gpu_lane_backward,
};

int sfc_gpu_lane_new(const struct sfc_lane_device *device, const struct sfc_model *model,
                     uint32_t batch, struct sfc_lane **out, struct sfc_error *err)
{
    struct gpu_lane *lane = calloc(1, sizeof *lane);
    if (lane == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a lane");
    }
    lane->base.ops = &gpu_lane_ops;
    lane->gpu = (const struct sfc_gpu *)device;
    lane->model = model;
    lane->batch = batch;
    int rc = open_lane(lane, err);
    if (rc != SFC_OK) {
        gpu_lane_free(&lane->base);
        return rc;
    }
    *out = &lane->base;
    return SFC_OK;
}

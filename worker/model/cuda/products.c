/* Which library computes a layer: cuBLASLt what is one matrix product per pixel, cuDNN the other
 * convolutions, and plain loops the directions that cuDNN has no engine for that is wanted. */
#include "worker/model/cuda/products.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/cuda/matmul.h"

#define DIRECTIONS 3

struct product {
    const char *layer;
    struct sfc_plain_conv shape;
    bool matmul, data;
    struct sfc_matmul matmuls[DIRECTIONS];
    struct sfc_conv convs[DIRECTIONS];
    char name[64];
};

struct sfc_products {
    const struct sfc_gpu *gpu;
    uint32_t batch;
    cudaStream_t stream;
    cudnnHandle_t cudnn;
    cublasLtHandle_t blas;
    struct product *layers;
    size_t layer_count, workspace;
};

void sfc_products_libraries(char *out, size_t size)
{
    size_t v = cudnnGetVersion(), blas = cublasLtGetVersion();
    snprintf(out, size, "cudnn-%zu.%zu.%zu cublaslt-%zu", v / 10000, v / 100 % 100, v % 100, blas);
}

int sfc_products_new(const struct sfc_gpu *gpu, uint32_t batch, cudaStream_t stream,
                     size_t layer_count, struct sfc_products **out, struct sfc_error *err)
{
    struct sfc_products *p = calloc(1, sizeof *p);
    if (p != NULL) {
        p->layers = calloc(layer_count, sizeof *p->layers);
    }
    if (p == NULL || p->layers == NULL) {
        free(p);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the products of a lane");
    }
    p->gpu = gpu;
    p->batch = batch;
    p->stream = stream;
    p->layer_count = layer_count;
    int rc = sfc_cudnn_check(gpu, cudnnCreate(&p->cudnn), "cudnnCreate", err);
    if (rc == SFC_OK) {
        rc = sfc_cudnn_check(gpu, cudnnSetStream(p->cudnn, stream), "cudnnSetStream", err);
    }
    if (rc == SFC_OK) {
        rc = sfc_cublas_said(gpu, cublasLtCreate(&p->blas), "cublasLtCreate", err);
    }
    if (rc != SFC_OK) {
        sfc_products_free(p);
        return rc;
    }
    *out = p;
    return SFC_OK;
}

void sfc_products_free(struct sfc_products *p)
{
    if (p == NULL) {
        return;
    }
    for (size_t i = 0; i < p->layer_count; i++) {
        for (int d = 0; d < DIRECTIONS; d++) {
            sfc_conv_close(&p->layers[i].convs[d]);
        }
    }
    if (p->blas != NULL) {
        cublasLtDestroy(p->blas);
    }
    if (p->cudnn != NULL) {
        cudnnDestroy(p->cudnn);
    }
    free(p->layers);
    free(p);
}

static void want_workspace(struct sfc_products *p, size_t bytes)
{
    p->workspace = bytes > p->workspace ? bytes : p->workspace;
}

static size_t weight_count(const struct sfc_plain_conv *c)
{
    return (size_t)c->out_channels * c->window.kernel_height * c->window.kernel_width *
           (c->window.channels / c->groups);
}

/* One product of matrices over all images and pixels: the window is one pixel, or the whole image.
 */
static bool is_matmul(const struct sfc_plain_conv *c)
{
    const struct sfc_window *w = &c->window;
    bool pixel = w->kernel_height == 1 && w->kernel_width == 1 && w->stride == 1;
    bool image = w->kernel_height == w->in_height && w->kernel_width == w->in_width;
    return c->groups == 1 && w->pad == 0 && (pixel || image);
}

static int add_matmul(struct sfc_products *p, struct product *at, struct sfc_error *err)
{
    const struct sfc_window *w = &at->shape.window;
    struct sfc_matmul_shape shape = {(size_t)w->batch * w->out_height * w->out_width,
                                     at->shape.out_channels,
                                     (size_t)w->kernel_height * w->kernel_width * w->channels};
    int rc = SFC_OK;
    for (int d = 0; d < DIRECTIONS && rc == SFC_OK; d++) {
        if (d == SFC_CONV_DATA && !at->data) {
            continue;
        }
        rc = sfc_matmul_init(&at->matmuls[d], p->gpu, p->blas, shape, (enum sfc_conv_direction)d,
                             err);
        want_workspace(p, at->matmuls[d].workspace);
    }
    const struct sfc_matmul *m = at->matmuls;
    snprintf(at->name, sizeof at->name, "cublaslt %d/%d/%d split %d/%d/%d",
             m[SFC_CONV_FORWARD].number, m[SFC_CONV_DATA].number, m[SFC_CONV_WEIGHTS].number,
             m[SFC_CONV_FORWARD].split, m[SFC_CONV_DATA].split, m[SFC_CONV_WEIGHTS].split);
    return rc;
}

static int add_conv(struct sfc_products *p, struct product *at, const struct sfc_layer *layer,
                    struct sfc_error *err)
{
    int rc = SFC_OK;
    size_t used = (size_t)snprintf(at->name, sizeof at->name, "cudnn");
    for (int d = 0; d < DIRECTIONS && rc == SFC_OK; d++) {
        if (d == SFC_CONV_DATA && !at->data) {
            continue;
        }
        struct sfc_conv *conv = &at->convs[d];
        struct sfc_conv_target target = {.handle = p->cudnn};
        rc = sfc_conv_init(conv, p->gpu, &target, layer, p->batch, (enum sfc_conv_direction)d, err);
        want_workspace(p, conv->workspace);
        if (conv->plan == NULL) {
            used += (size_t)snprintf(at->name + used, sizeof at->name - used, " plain");
        } else {
            used += (size_t)snprintf(at->name + used, sizeof at->name - used, " %lld",
                                     (long long)conv->engine);
        }
    }
    if (rc == SFC_OK && at->convs[SFC_CONV_WEIGHTS].plan == NULL) {
        want_workspace(p, SFC_PLAIN_CHUNKS * sizeof(float) * weight_count(&at->shape));
    }
    return rc;
}

int sfc_products_add(struct sfc_products *p, size_t index, const struct sfc_layer *layer, bool data,
                     struct sfc_error *err)
{
    struct product *at = &p->layers[index];
    at->layer = layer->name;
    at->shape = sfc_layer_plain(layer, p->batch);
    at->matmul = is_matmul(&at->shape);
    at->data = data;
    int rc = at->matmul ? add_matmul(p, at, err) : add_conv(p, at, layer, err);
    return rc == SFC_OK ? SFC_OK : sfc_prefix(err, "layer %s", layer->name);
}

size_t sfc_products_workspace(const struct sfc_products *p)
{
    return p->workspace;
}

enum sfc_number sfc_products_gradient_number(const struct sfc_products *p, size_t index)
{
    const struct product *at = &p->layers[index];
    bool wide = at->matmul || at->convs[SFC_CONV_WEIGHTS].plan == NULL;
    return wide ? SFC_NUMBER_F32 : p->gpu->number;
}

const char *sfc_products_name(const struct sfc_products *p, size_t index)
{
    return p->layers[index].name;
}

/* The layer's name before what went wrong. */
static int done(const struct product *at, int rc, struct sfc_error *err)
{
    return rc == SFC_OK ? SFC_OK : sfc_prefix(err, "layer %s", at->layer);
}

static int plain(const struct sfc_products *p, cudaError_t status, struct sfc_error *err)
{
    return sfc_gpu_check(p->gpu, status, "kernel of a plain convolution", err);
}

int sfc_products_forward(struct sfc_products *p, size_t index, const void *x, const void *w,
                         void *y, void *workspace, struct sfc_error *err)
{
    struct product *at = &p->layers[index];
    const struct sfc_conv *conv = &at->convs[SFC_CONV_FORWARD];
    if (at->matmul) {
        return done(at,
                    sfc_matmul_run(&at->matmuls[SFC_CONV_FORWARD], p->gpu, p->blas, p->stream, x, w,
                                   y, workspace, err),
                    err);
    }
    if (conv->plan != NULL) {
        return done(at, sfc_conv_run(conv, p->gpu, p->cudnn, x, w, y, workspace, err), err);
    }
    return done(
        at, plain(p, sfc_launch_plain_conv(p->stream, p->gpu->number, &at->shape, x, w, y), err),
        err);
}

int sfc_products_data(struct sfc_products *p, size_t index, const void *dy, const void *w, void *dx,
                      void *workspace, struct sfc_error *err)
{
    struct product *at = &p->layers[index];
    const struct sfc_conv *conv = &at->convs[SFC_CONV_DATA];
    if (at->matmul) {
        return done(at,
                    sfc_matmul_run(&at->matmuls[SFC_CONV_DATA], p->gpu, p->blas, p->stream, dy, w,
                                   dx, workspace, err),
                    err);
    }
    if (conv->plan != NULL) {
        return done(at, sfc_conv_run(conv, p->gpu, p->cudnn, dx, w, dy, workspace, err), err);
    }
    return done(
        at,
        plain(p, sfc_launch_plain_conv_data(p->stream, p->gpu->number, &at->shape, dy, w, dx), err),
        err);
}

int sfc_products_weights(struct sfc_products *p, size_t index, const void *x, const void *dy,
                         void *dw, void *workspace, struct sfc_error *err)
{
    struct product *at = &p->layers[index];
    const struct sfc_conv *conv = &at->convs[SFC_CONV_WEIGHTS];
    if (at->matmul) {
        return done(at,
                    sfc_matmul_run(&at->matmuls[SFC_CONV_WEIGHTS], p->gpu, p->blas, p->stream, dy,
                                   x, dw, workspace, err),
                    err);
    }
    if (conv->plan != NULL) {
        return done(at, sfc_conv_run(conv, p->gpu, p->cudnn, x, dw, dy, workspace, err), err);
    }
    return done(at,
                plain(p,
                      sfc_launch_plain_conv_weights(p->stream, p->gpu->number, &at->shape, x, dy,
                                                    workspace, dw),
                      err),
                err);
}

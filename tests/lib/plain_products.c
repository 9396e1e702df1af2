/* worker/model/cuda/products.h without cuDNN and cuBLASLt: every product is a plain convolution. */
#include <stdio.h>
#include <stdlib.h>

#include "worker/model/cuda/products.h"

struct sfc_products {
    const struct sfc_gpu *gpu;
    uint32_t batch;
    cudaStream_t stream;
    struct sfc_plain_conv *layers;
    size_t workspace;
};

int sfc_products_new(const struct sfc_gpu *gpu, uint32_t batch, cudaStream_t stream,
                     size_t layer_count, struct sfc_products **out, struct sfc_error *err)
{
    struct sfc_products *p = calloc(1, sizeof *p);
    struct sfc_plain_conv *layers = calloc(layer_count, sizeof *layers);
    if (p == NULL || layers == NULL) {
        free(p);
        free(layers);
        return sfc_fail(err, SFC_ENOMEM, "products");
    }
    *p = (struct sfc_products){gpu, batch, stream, layers, 1};
    *out = p;
    return SFC_OK;
}

void sfc_products_free(struct sfc_products *p)
{
    if (p != NULL) {
        free(p->layers);
        free(p);
    }
}

int sfc_products_add(struct sfc_products *p, size_t index, const struct sfc_layer *layer, bool data,
                     struct sfc_error *err)
{
    (void)data, (void)err;
    struct sfc_plain_conv c = sfc_layer_plain(layer, p->batch);
    size_t workspace = SFC_PLAIN_CHUNKS * sizeof(float) * c.out_channels * c.window.kernel_height *
                       c.window.kernel_width * (c.window.channels / c.groups);
    p->workspace = workspace > p->workspace ? workspace : p->workspace;
    p->layers[index] = c;
    return SFC_OK;
}

size_t sfc_products_workspace(const struct sfc_products *p)
{
    return p->workspace;
}

enum sfc_number sfc_products_gradient_number(const struct sfc_products *p, size_t index)
{
    (void)p, (void)index;
    return SFC_NUMBER_F32;
}

const char *sfc_products_name(const struct sfc_products *p, size_t index)
{
    (void)p, (void)index;
    return "plain";
}

int sfc_products_forward(struct sfc_products *p, size_t index, const void *x, const void *w,
                         void *y, void *workspace, struct sfc_error *err)
{
    (void)workspace;
    return sfc_gpu_check(
        p->gpu, sfc_launch_plain_conv(p->stream, p->gpu->number, &p->layers[index], x, w, y),
        "plain convolution", err);
}

int sfc_products_data(struct sfc_products *p, size_t index, const void *dy, const void *w, void *dx,
                      void *workspace, struct sfc_error *err)
{
    (void)workspace;
    return sfc_gpu_check(
        p->gpu, sfc_launch_plain_conv_data(p->stream, p->gpu->number, &p->layers[index], dy, w, dx),
        "plain convolution", err);
}

int sfc_products_weights(struct sfc_products *p, size_t index, const void *x, const void *dy,
                         void *dw, void *workspace, struct sfc_error *err)
{
    return sfc_gpu_check(p->gpu,
                         sfc_launch_plain_conv_weights(p->stream, p->gpu->number, &p->layers[index],
                                                       x, dy, workspace, dw),
                         "plain convolution", err);
}

void sfc_products_libraries(char *out, size_t size)
{
    snprintf(out, size, "plain");
}

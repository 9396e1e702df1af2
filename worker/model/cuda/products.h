/* Convolutions and products of matrices of one lane. On a device they are cuDNN's and cuBLASLt's
 * (products.c); the tests of the lane bring plain loops instead. Activations are [batch, height,
 * width, channels] in the lane's number format, weights packed [outer, taps, inner] likewise. One
 * way of computing is chosen when a layer is added, deterministic and a function of the layer, the
 * batch, the device and the libraries. */
#ifndef SFC_WORKER_MODEL_CUDA_PRODUCTS_H
#define SFC_WORKER_MODEL_CUDA_PRODUCTS_H

#include "worker/model/cuda/gpu.h"

struct sfc_products;

int sfc_products_new(const struct sfc_gpu *gpu, uint32_t batch, cudaStream_t stream,
                     size_t layer_count, struct sfc_products **out, struct sfc_error *err);
void sfc_products_free(struct sfc_products *products); /* NULL is fine */
/* data: the gradient of the input is wanted too. SFC_EUNSUPPORTED: nothing computes it. */
int sfc_products_add(struct sfc_products *products, size_t index, const struct sfc_layer *layer,
                     bool data, struct sfc_error *err);
/* Bytes that any of the calls below needs, once all layers are added. */
size_t sfc_products_workspace(const struct sfc_products *products);
/* The format of dw. */
enum sfc_number sfc_products_gradient_number(const struct sfc_products *products, size_t index);
/* How the layer is computed, for people. */
const char *sfc_products_name(const struct sfc_products *products, size_t index);

int sfc_products_forward(struct sfc_products *products, size_t index, const void *x, const void *w,
                         void *y, void *workspace, struct sfc_error *err);
int sfc_products_data(struct sfc_products *products, size_t index, const void *dy, const void *w,
                      void *dx, void *workspace, struct sfc_error *err);
int sfc_products_weights(struct sfc_products *products, size_t index, const void *x, const void *dy,
                         void *dw, void *workspace, struct sfc_error *err);

/* "cudnn-9.19.0 cublaslt-130100": names and versions, for the numerics class. */
void sfc_products_libraries(char *out, size_t size);

/* ---- layers as the kernels see them (layout.c) */

/* The layer has one weight per tap and channel: sfc_launch_window computes it. */
bool sfc_layer_is_window(const struct sfc_layer *layer);
/* Any layer but NORM and ADD; a DENSE or global layer has a kernel as large as its input. */
struct sfc_window sfc_layer_window(const struct sfc_layer *layer, uint32_t batch);
struct sfc_plain_conv sfc_layer_plain(const struct sfc_layer *layer, uint32_t batch);

#endif

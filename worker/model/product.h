/* A convolution or fully connected layer as oneDNN primitives of one lane: forward, gradient of the
 * data, gradient of the weights, and the reorders between the plain layout of the parameter vector
 * and what each primitive wants. Everything runs on the calling thread alone. */
#ifndef SFC_WORKER_MODEL_PRODUCT_H
#define SFC_WORKER_MODEL_PRODUCT_H

#include <dnnl.h>

#include "worker/model/layers.h"

#define SFC_ALIGNMENT 64

/* Buffers that the products of a lane share, one after another; sizes in bytes. */
struct sfc_product_buffers {
    void *weights, *scratchpad;
    size_t weights_size, scratchpad_size;
};

/* A primitive with its arguments. */
struct sfc_call {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[4];
    int count;
};

struct sfc_product {
    const char *name;
    struct sfc_call forward, backward_data, backward_weights;
    /* plain -> forward, plain -> backward_data, backward_weights -> plain */
    struct sfc_call to_forward, to_backward, to_plain;
    dnnl_memory_t src, dst, diff_src, diff_dst;
    dnnl_memory_t plain;                                              /* handle: set per call */
    dnnl_memory_t forward_weights, backward_weights_in, diff_weights; /* in buffers->weights */
    dnnl_memory_t scratchpad;
    size_t weights_size, scratchpad_size;
};

/* x, y, dx, dy: where the layer's tensors and gradients will lie, 64-byte aligned. dx NULL: no data
 * gradient (the layer reads the image). */
struct sfc_product_place {
    float *x, *y, *dx, *dy;
};

int sfc_product_init(struct sfc_product *p, dnnl_engine_t engine, const struct sfc_layer *layer,
                     uint32_t batch, struct sfc_product_place place, struct sfc_error *err);
void sfc_product_close(struct sfc_product *p); /* also after a failed or no init (zeroed) */
/* Once all products of the lane exist and the buffers are as large as the largest wants. */
int sfc_product_bind(struct sfc_product *p, const struct sfc_product_buffers *buffers,
                     struct sfc_error *err);

int sfc_product_forward(struct sfc_product *p, dnnl_stream_t stream, const float *weights,
                        struct sfc_error *err);
int sfc_product_backward(struct sfc_product *p, dnnl_stream_t stream, const float *weights,
                         float *gradient, struct sfc_error *err);

/* A oneDNN status as a ShardFC error. */
int sfc_product_fail(dnnl_status_t status, const char *layer, const char *what,
                     struct sfc_error *err);

#endif

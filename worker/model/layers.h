/* Inside of the backbone library: how a backbone is written down and what it becomes.
 *
 * A backbone is a table of rows (backbones.c). sfc_model_build expands the rows to simple layers
 * with shapes and parameters; a lane turns the layers into primitives and loops. Images and
 * activations are [batch, height, width, channels] inside. Tensor 0 is the image, tensor l + 1 the
 * output of layer l. */
#ifndef SFC_WORKER_MODEL_LAYERS_H
#define SFC_WORKER_MODEL_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/model/model.h"

#define SFC_BATCH_NORM_EPSILON 1e-5

enum sfc_row_kind {
    SFC_ROW_CONV,      /* convolution, batch norm, PReLU unless linear */
    SFC_ROW_DEPTHWISE, /* the same with one group per channel; channels stay */
    /* `repeat` inverted bottlenecks: 1x1 to expand * in channels, depthwise 3x3 (stride in the
     * first one), linear 1x1 to `channels`; where the shape stays the input is added */
    SFC_ROW_BOTTLENECK,
    SFC_ROW_GLOBAL_DEPTHWISE, /* one weight per pixel and channel, batch norm, PReLU unless linear
                               */
    SFC_ROW_GLOBAL_POOL,      /* mean over all pixels */
    SFC_ROW_DENSE,            /* fully connected, alone */
    SFC_ROW_NORM              /* batch norm, alone; PReLU unless linear */
};

struct sfc_row {
    enum sfc_row_kind kind;
    const char *name;
    uint32_t channels; /* out; 0: the embedding width. Depthwise, pool and norm ignore it */
    uint32_t kernel, stride, pad;
    uint32_t groups; /* SFC_ROW_CONV; 0 is 1 */
    uint32_t expand, repeat;
    bool linear;
};

struct sfc_backbone {
    const char *name;
    struct sfc_model_input input;
    const struct sfc_row *rows;
    size_t row_count;
};

extern const struct sfc_backbone *const sfc_backbones[];
extern const size_t sfc_backbone_count;

enum sfc_layer_kind {
    SFC_LAYER_CONV,
    SFC_LAYER_DENSE,
    SFC_LAYER_NORM, /* with or without PReLU */
    SFC_LAYER_ADD,
    SFC_LAYER_GLOBAL_DEPTHWISE,
    SFC_LAYER_GLOBAL_POOL
};

struct sfc_shape {
    uint32_t height, width, channels;
};

/* Indices into the parameter table of the model. */
struct sfc_layer_params {
    size_t weight;                        /* CONV, DENSE, GLOBAL_DEPTHWISE */
    size_t gamma, beta, mean, var, slope; /* NORM; slope with PReLU only */
};

struct sfc_layer {
    enum sfc_layer_kind kind;
    char name[48];
    size_t input; /* tensor */
    size_t other; /* tensor, ADD only */
    struct sfc_shape in, out;
    uint32_t kernel, stride, pad, groups; /* CONV */
    bool prelu;                           /* NORM */
    struct sfc_layer_params params;
};

struct sfc_model {
    struct sfc_model_input input;
    uint32_t dim;
    struct sfc_layer *layers;
    size_t layer_count, layer_room;
    struct sfc_param *params;
    size_t param_count, param_room;
    uint64_t size;
};

/* Expands the table for this input and embedding width. SFC_EINVAL: a row does not fit its input,
 * or the last tensor is not 1 x 1 x dim. */
int sfc_model_build(const struct sfc_backbone *backbone, uint32_t dim, struct sfc_model **out,
                    struct sfc_error *err);

static inline size_t sfc_shape_floats(struct sfc_shape s)
{
    return (size_t)s.height * s.width * s.channels;
}

#endif

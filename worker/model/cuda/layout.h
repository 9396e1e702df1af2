/* Where everything of a lane lies in the one piece of device memory that it has. Pure. */
#ifndef SFC_WORKER_MODEL_CUDA_LAYOUT_H
#define SFC_WORKER_MODEL_CUDA_LAYOUT_H

#include "worker/model/cuda/products.h"
#include "worker/model/plan.h"

#define SFC_LAYOUT_ALIGNMENT 256u

/* Byte offsets. */
struct sfc_lane_layout {
    size_t params, gradient; /* f32 [size] */
    size_t images;           /* f32, as the host has them */
    size_t features;         /* f32 [batch, dim]; of backward: their gradient */
    size_t *tensors;         /* per tensor, in the lane's number format */
    size_t *slots;           /* per slot of the backward plan, likewise */
    size_t *weights;         /* per layer with weights: packed, f32 for windows */
    size_t *saved;           /* per NORM: four vectors of f32 [channels] */
    size_t dw;               /* packed gradient of one layer's weights */
    size_t norm;             /* two vectors of f32 [largest channels of a NORM] */
    size_t partial;          /* double, sums of chunks */
    size_t workspace;        /* of products; the last */
    size_t total;            /* without the workspace until sfc_lane_layout_finish */
};

/* SFC_EINVAL: a tensor of this batch has more numbers than the kernels count. */
int sfc_lane_layout_init(struct sfc_lane_layout *layout, const struct sfc_model *model,
                         const struct sfc_backward_plan *plan, uint32_t batch,
                         enum sfc_number number, struct sfc_error *err);
void sfc_lane_layout_finish(struct sfc_lane_layout *layout, size_t workspace);
void sfc_lane_layout_close(struct sfc_lane_layout *layout); /* zeroed is fine */

#endif

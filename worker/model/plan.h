/* Where the gradients of activations live during the backward pass. A gradient is needed from the
 * last reader of its tensor back to the layer that made the tensor, so few buffers ("slots") serve
 * all. Pure: decides indices and sizes, allocates nothing but its own tables. */
#ifndef SFC_WORKER_MODEL_PLAN_H
#define SFC_WORKER_MODEL_PLAN_H

#include "worker/model/layers.h"

#define SFC_NO_SLOT SIZE_MAX

struct sfc_backward_step {
    size_t dy; /* slot of the gradient of the layer's output */
    size_t dx; /* slot that the layer writes the gradient of its input to; NORM: dy itself; ADD: a
                  copy of dy; SFC_NO_SLOT: the input is the image, no gradient */
    size_t sum_into;       /* slot that dx is then added to, or SFC_NO_SLOT */
    size_t other_sum_into; /* ADD: slot that dy is added to for the other input, or SFC_NO_SLOT: dy
                              itself goes on as that gradient */
};

struct sfc_backward_plan {
    struct sfc_backward_step *steps; /* one per layer, in layer order */
    size_t *slot_floats;             /* per row of the batch */
    size_t slot_count;
    size_t first; /* slot that receives the gradient of the features */
};

int sfc_backward_plan_init(struct sfc_backward_plan *plan, const struct sfc_model *model,
                           struct sfc_error *err);
void sfc_backward_plan_close(struct sfc_backward_plan *plan); /* zeroed is fine */

#endif

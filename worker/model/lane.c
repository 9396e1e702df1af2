/* Lanes, whatever computes them. */
#include "worker/model/lane_impl.h"

int sfc_lane_new(const struct sfc_lane_device *device, const struct sfc_model *model,
                 uint32_t batch, struct sfc_lane **out, struct sfc_error *err)
{
    if (batch == 0 || batch > SFC_LANE_BATCH_LIMIT) {
        return sfc_fail(err, SFC_EINVAL, "micro-batch of %u rows is not within 1 to %u", batch,
                        SFC_LANE_BATCH_LIMIT);
    }
    return device->ops->lane_new(device, model, batch, out, err);
}

void sfc_lane_free(struct sfc_lane *lane)
{
    if (lane != NULL) {
        lane->ops->free(lane);
    }
}

uint64_t sfc_lane_memory(const struct sfc_lane *lane)
{
    return lane->ops->memory(lane);
}

void sfc_lane_describe(const struct sfc_lane *lane, char *out, size_t size)
{
    lane->ops->describe(lane, out, size);
}

int sfc_lane_forward(struct sfc_lane *lane, const float *params, const float *images,
                     float *features, struct sfc_error *err)
{
    return lane->ops->forward(lane, params, images, true, features, err);
}

int sfc_lane_embed(struct sfc_lane *lane, const float *params, const float *images, float *features,
                   struct sfc_error *err)
{
    return lane->ops->forward(lane, params, images, false, features, err);
}

int sfc_lane_backward(struct sfc_lane *lane, const float *dfeatures, float *gradient,
                      struct sfc_error *err)
{
    return lane->ops->backward(lane, dfeatures, gradient, err);
}

/* Lanes and devices, whatever computes them. */
#include <string.h>

#include "worker/model/lane_impl.h"

static const char *const precisions[] = {"f32", "bf16", "fp16"};

int sfc_precision_parse(const char *text, enum sfc_precision *out, struct sfc_error *err)
{
    for (unsigned i = 0; i < sizeof precisions / sizeof precisions[0]; i++) {
        if (strcmp(text, precisions[i]) == 0) {
            *out = (enum sfc_precision)i;
            return SFC_OK;
        }
    }
    return sfc_fail(err, SFC_EINVAL, "precision '%s' is none of f32, bf16, fp16", text);
}

const char *sfc_precision_name(enum sfc_precision precision)
{
    return precisions[precision];
}

void sfc_lane_device_close(const struct sfc_lane_device *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}

void sfc_lane_device_numerics(const struct sfc_lane_device *device, char *out, size_t size)
{
    device->ops->numerics(device, out, size);
}

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

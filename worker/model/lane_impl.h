/* What is behind a lane, and how a plugin brings it (private). */
#ifndef SFC_WORKER_MODEL_LANE_IMPL_H
#define SFC_WORKER_MODEL_LANE_IMPL_H

#include <stdbool.h>

#include "worker/model/device.h"
#include "worker/model/layers.h"

#define SFC_LANE_BATCH_LIMIT 65536u

/* As the functions of model.h. A lane begins with a struct sfc_lane. */
struct sfc_lane_ops {
    void (*free)(struct sfc_lane *lane);
    uint64_t (*memory)(const struct sfc_lane *lane);
    void (*describe)(const struct sfc_lane *lane, char *out, size_t size);
    int (*forward)(struct sfc_lane *lane, const float *params, const float *images, bool training,
                   float *features, struct sfc_error *err);
    int (*backward)(struct sfc_lane *lane, const float *dfeatures, float *gradient,
                    struct sfc_error *err);
};

struct sfc_lane {
    const struct sfc_lane_ops *ops;
};

struct sfc_lane_device_ops {
    void (*close)(const struct sfc_lane_device *device);
    void (*numerics)(const struct sfc_lane_device *device, char *out, size_t size);
    /* batch is within 1 to SFC_LANE_BATCH_LIMIT. */
    int (*lane_new)(const struct sfc_lane_device *device, const struct sfc_model *model,
                    uint32_t batch, struct sfc_lane **out, struct sfc_error *err);
};

struct sfc_lane_device {
    const struct sfc_lane_device_ops *ops;
};

/* ---- plugins: libshardfc-cudnn.so exports sfc_lane_plugin */

#define SFC_LANE_PLUGIN_ABI 1u
#define SFC_LANE_PLUGIN_LAYOUT                                                                     \
    ((uint32_t)(sizeof(struct sfc_lane_ops) + 3 * sizeof(struct sfc_lane_device_ops) +             \
                5 * sizeof(struct sfc_model) + 7 * sizeof(struct sfc_layer) +                      \
                11 * sizeof(struct sfc_param) + 13 * sizeof(struct sfc_error)))

struct sfc_lane_plugin { /* begins as struct sfc_plugin_mark */
    uint32_t abi, layout;
    const char *version;
    int (*open)(unsigned device, enum sfc_precision precision, const struct sfc_lane_device **out,
                struct sfc_error *err);
};

/* Loads the plugin and opens a device of it; errors as sfc_lane_device_open. */
int sfc_lane_device_load(unsigned number, enum sfc_precision precision,
                         const struct sfc_lane_device **out, struct sfc_error *err);

#endif

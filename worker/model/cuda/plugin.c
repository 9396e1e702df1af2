/* All that libshardfc-cudnn.so exports. */
#include "worker/model/cuda/gpu.h"

extern const struct sfc_lane_plugin sfc_lane_plugin;
const struct sfc_lane_plugin sfc_lane_plugin = {
    .abi = SFC_LANE_PLUGIN_ABI,
    .layout = SFC_LANE_PLUGIN_LAYOUT,
    .version = SFC_VERSION,
    .open = sfc_gpu_open,
};

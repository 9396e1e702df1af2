/* All that libshardfc-cuda.so exports. */
#include "kernels/plugin.h"

extern const struct sfc_backend_plugin sfc_backend_plugin;
const struct sfc_backend_plugin sfc_backend_plugin = {
    .abi = SFC_PLUGIN_ABI,
    .layout = SFC_PLUGIN_LAYOUT,
    .version = SFC_VERSION,
    .open = sfc_backend_cuda_open,
};

/* CUDA devices come from a plugin, libshardfc-cudnn.so. */
#include <stdio.h>

#include "proto/base/plugin.h"
#include "worker/model/lane_impl.h"

int sfc_lane_device_load(unsigned number, enum sfc_precision precision,
                         const struct sfc_lane_device **out, struct sfc_error *err)
{
    char who[64];
    const void *symbol = NULL;
    snprintf(who, sizeof who, "device 'cuda:%u'", number);
    struct sfc_plugin_wanted wanted = {
        who, "cudnn", "cuda", "sfc_lane_plugin", SFC_LANE_PLUGIN_ABI, SFC_LANE_PLUGIN_LAYOUT};
    int rc = sfc_plugin_load(&wanted, &symbol, err);
    if (rc != SFC_OK) {
        return rc;
    }
    const struct sfc_lane_plugin *plugin = symbol;
    return plugin->open(number, precision, out, err);
}

#include "kernels/plugin.h"

#include <stdio.h>

#include "proto/base/plugin.h"

int sfc_plugin_open(const char *kind, unsigned device, unsigned threads, struct sfc_backend **out,
                    struct sfc_error *err)
{
    char who[64];
    const void *symbol = NULL;
    snprintf(who, sizeof who, "backend '%s'", kind);
    struct sfc_plugin_wanted wanted = {
        who, kind, kind, "sfc_backend_plugin", SFC_PLUGIN_ABI, SFC_PLUGIN_LAYOUT};
    int rc = sfc_plugin_load(&wanted, &symbol, err);
    const struct sfc_backend_plugin *plugin = symbol;
    return rc == SFC_OK ? plugin->open(device, threads, out, err) : rc;
}

#include "worker/model/device.h"

#include <stdio.h>
#include <string.h>

#include "proto/base/plugin.h"
#include "worker/model/lane_impl.h"

#define MAX_DEVICE 1023u

/* "cuda" or "cuda:N". */
static bool cuda_number(const char *name, unsigned *out)
{
    unsigned number = 0;
    if (strncmp(name, "cuda", 4) != 0) {
        return false;
    }
    const char *digits = name + 4;
    if (*digits == '\0') {
        *out = 0;
        return true;
    }
    if (*digits != ':' || digits[1] == '\0') {
        return false;
    }
    for (digits++; *digits >= '0' && *digits <= '9' && number <= MAX_DEVICE; digits++) {
        number = 10 * number + (unsigned)(*digits - '0');
    }
    *out = number;
    return *digits == '\0' && number <= MAX_DEVICE;
}

static int open_cuda(const char *name, unsigned number, enum sfc_precision precision,
                     const struct sfc_lane_device **out, struct sfc_error *err)
{
    char who[64];
    const void *symbol = NULL;
    snprintf(who, sizeof who, "device '%s'", name);
    struct sfc_plugin_wanted wanted = {
        who, "cudnn", "cuda", "sfc_lane_plugin", SFC_LANE_PLUGIN_ABI, SFC_LANE_PLUGIN_LAYOUT};
    int rc = sfc_plugin_load(&wanted, &symbol, err);
    if (rc != SFC_OK) {
        return rc;
    }
    const struct sfc_lane_plugin *plugin = symbol;
    return plugin->open(number, precision, out, err);
}

int sfc_lane_device_open(const char *name, enum sfc_precision precision,
                         const struct sfc_lane_device **out, struct sfc_error *err)
{
    unsigned number;
    if (cuda_number(name, &number)) {
        return open_cuda(name, number, precision, out, err);
    }
    if (strcmp(name, "cpu") != 0) {
        return sfc_fail(err, SFC_EINVAL,
                        "device '%s' is not cpu, cuda or cuda:N with N within 0 to %u", name,
                        MAX_DEVICE);
    }
    if (precision != SFC_PRECISION_F32) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "device 'cpu' computes backbones in f32, not in %s; give --precision f32, "
                        "or --device cuda",
                        sfc_precision_name(precision));
    }
    *out = sfc_lane_device_cpu();
    return SFC_OK;
}

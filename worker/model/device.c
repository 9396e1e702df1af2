#include "worker/model/device.h"

#include <string.h>

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

int sfc_lane_device_open(const char *name, enum sfc_precision precision,
                         const struct sfc_lane_device **out, struct sfc_error *err)
{
    unsigned number;
    if (cuda_number(name, &number)) {
        return sfc_lane_device_load(number, precision, out, err);
    }
    if (strcmp(name, "cpu") != 0) {
        return sfc_fail(
            err, SFC_EINVAL,
            "device '%s' is unknown; give --device cpu, cuda or cuda:N with N within 0 to %u", name,
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

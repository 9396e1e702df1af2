#include "server/core/pace.h"

#include <math.h>

bool sfc_pace_known(const struct sfc_pace *pace)
{
    return pace->count >= SFC_PACE_KNOWN;
}

double sfc_pace_limit(const struct sfc_pace *pace)
{
    if (!sfc_pace_known(pace))
        return INFINITY;
    double spread = pace->mean_ms + 4 * pace->deviation_ms;
    return fmax(fmax(spread, 2 * pace->mean_ms), SFC_PACE_FLOOR_MS);
}

void sfc_pace_note(struct sfc_pace *pace, double ms)
{
    ms = fmin(ms, 4 * sfc_pace_limit(pace));
    if (pace->count == 0) {
        pace->mean_ms = ms;
        pace->deviation_ms = ms / 2;
    } else {
        pace->deviation_ms += (fabs(ms - pace->mean_ms) - pace->deviation_ms) / 4;
        pace->mean_ms += (ms - pace->mean_ms) / 4;
    }
    pace->count += pace->count < SFC_PACE_KNOWN;
}

void sfc_pace_guess(struct sfc_pace *pace, double ms)
{
    pace->mean_ms += (fmin(ms, 4 * sfc_pace_limit(pace)) - pace->mean_ms) / 4;
}

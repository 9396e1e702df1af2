/* How long a kind of work takes: mean and deviation of the times seen so far, both running, so that
 * what was long ago counts for little. From them follows when something takes suspiciously long.
 * Pure: times are numbers that the caller has. */
#ifndef SFC_CORE_PACE_H
#define SFC_CORE_PACE_H

#include "server/core/types.h"

#define SFC_PACE_KNOWN    4u    /* times that must have been seen before anything is late */
#define SFC_PACE_FLOOR_MS 100.0 /* nothing is late earlier: clocks and ticks are coarse */

struct sfc_pace {
    double mean_ms, deviation_ms; /* mean distance from the mean */
    uint32_t count;               /* of times, up to SFC_PACE_KNOWN */
};

/* One time more. It counts as at most four times the limit, once there is one: a peer that stood
 * still for minutes says little about the next time. */
void sfc_pace_note(struct sfc_pace *pace, double ms);
/* A guess instead of a time: it moves the mean alone. */
void sfc_pace_guess(struct sfc_pace *pace, double ms);
bool sfc_pace_known(const struct sfc_pace *pace);
/* What takes longer is late: mean and four deviations, at least twice the mean and the floor.
 * INFINITY while the pace is not known. */
double sfc_pace_limit(const struct sfc_pace *pace);

#endif

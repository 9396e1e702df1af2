/* How the loss, the learning rate and the rate of images went over a run, in bounded memory. A
 * point stands for a group of consecutive steps; groups have one length for the whole series, and
 * it doubles when there would be too many points. Steps come in any order; each once. */
#ifndef SFC_CORE_SERIES_H
#define SFC_CORE_SERIES_H

#include <stdbool.h>
#include <stdint.h>

#define SFC_SERIES_POINTS 1024u

struct sfc_series_step {
    uint64_t step; /* 1-based */
    double loss;   /* not finite: the step has none */
    double lr;
    double images_per_s; /* 0: not known */
};

struct sfc_series_point {
    uint64_t first, last; /* of the steps that came */
    double lr;            /* of the last one */
    double loss_sum, loss_min, loss_max;
    double rate_sum;
    uint64_t losses, rates; /* steps that have one */
};

/* All zero: empty. */
struct sfc_series {
    struct sfc_series_point points[SFC_SERIES_POINTS]; /* steps ascending */
    uint32_t count;
    uint64_t length;  /* of a group; 0 while empty */
    uint64_t changed; /* how often something else changed than the newest point or one after it */
};

void sfc_series_add(struct sfc_series *series, const struct sfc_series_step *step);
/* Points with a step after this one are gone, whole: a run went back to it. */
void sfc_series_cut(struct sfc_series *series, uint64_t step);

/* Averages; NaN: no step has one. */
double sfc_series_loss(const struct sfc_series_point *point);
double sfc_series_rate(const struct sfc_series_point *point);

#endif

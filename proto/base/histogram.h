/* Durations counted by size, as Prometheus wants them. Pure. */
#ifndef SFC_BASE_HISTOGRAM_H
#define SFC_BASE_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

/* Upper bounds in steps of 1, 2, 5 from 10 us to 100 s; the last bucket has none. */
enum { SFC_HISTOGRAM_BOUNDS = 22 };
extern const double sfc_histogram_bounds[SFC_HISTOGRAM_BOUNDS]; /* seconds */

struct sfc_histogram {
    uint64_t counts[SFC_HISTOGRAM_BOUNDS + 1];
    uint64_t all;
    double sum;
};

size_t sfc_histogram_bucket(double seconds);
void sfc_histogram_add(struct sfc_histogram *h, double seconds);

#endif

#include "proto/base/histogram.h"

const double sfc_histogram_bounds[SFC_HISTOGRAM_BOUNDS] = {
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02,
    0.05, 0.1,  0.2,  0.5,  1,    2,    5,     10,    20,    50,   100};

size_t sfc_histogram_bucket(double seconds)
{
    size_t i = 0;
    while (i < SFC_HISTOGRAM_BOUNDS && seconds > sfc_histogram_bounds[i]) {
        i++;
    }
    return i;
}

void sfc_histogram_add(struct sfc_histogram *h, double seconds)
{
    h->counts[sfc_histogram_bucket(seconds)]++;
    h->all++;
    h->sum += seconds;
}

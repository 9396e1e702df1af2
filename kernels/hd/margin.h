/* The combined margin of a target (kernels/backend.h). */
#ifndef SFC_KERNELS_HD_MARGIN_H
#define SFC_KERNELS_HD_MARGIN_H

#include "kernels/hd/hd.h"

struct sfc_hd_margin {
    double m1, m2, m3;
    int identity; /* the slope counts as 1 */
};

/* f at the cosine, and f' in *slope. */
static SFC_HD inline double sfc_hd_margin_at(struct sfc_hd_margin margin, double cosine,
                                             double *slope)
{
    const double pi = 3.14159265358979323846;
    double theta = acos(cosine), phi = margin.m1 * theta + margin.m2;
    double k = floor(phi / pi), sign = fmod(k, 2.0) == 0 ? 1.0 : -1.0;
    *slope = margin.identity ? 1.0 : sign * margin.m1 * sin(phi) / fmax(sin(theta), 1e-4);
    return sign * cos(phi) - 2 * k - margin.m3;
}

#endif

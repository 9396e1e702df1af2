/* Cosines kept in 16 bits beside bf16 products (bf16 itself would make a logit of 45 wrong by
 * 0.13): fixed point, 1 = SFC_COSINE_ONE, and two marks. A cosine above the filter is FILTERED, its
 * logit is 0. A target's entry is TARGET: it counts for nothing here, its margin logit is kept
 * elsewhere. */
#ifndef SFC_KERNELS_HD_COSINE_H
#define SFC_KERNELS_HD_COSINE_H

#include "kernels/hd/hd.h"

#define SFC_COSINE_ONE      32766.0f
#define SFC_COSINE_TARGET   (-32767)
#define SFC_COSINE_FILTERED (-32768)

/* filter: above 1 where there is none. NaN becomes 0. */
static SFC_HD inline int16_t sfc_hd_cosine_pack(float cosine, float filter)
{
    float v = cosine > 1.0f ? 1.0f : cosine;
    v = v < -1.0f ? -1.0f : v;
    if (v > filter)
        return SFC_COSINE_FILTERED;
    return isnan(v) ? (int16_t)0 : (int16_t)rintf(sfc_hd_mul(v, SFC_COSINE_ONE));
}

/* The logit; unit: scale / SFC_COSINE_ONE. Of a target's entry it has no meaning. */
static SFC_HD inline float sfc_hd_cosine_logit(int16_t kept, float unit)
{
    return kept == SFC_COSINE_FILTERED ? 0.0f : sfc_hd_mul((float)kept, unit);
}

#endif

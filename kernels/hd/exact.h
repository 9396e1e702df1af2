/* Exact sums (kernels/exact_sum.h) by functions of single numbers. */
#ifndef SFC_KERNELS_HD_EXACT_H
#define SFC_KERNELS_HD_EXACT_H

#include "kernels/hd/hd.h"

/* Eight limbs of 32 bits, least significant first, each in a word of 64 so that additions need no
 * carry: atomic ones in any order give the same words. They hold 2^31 additions. */
#define SFC_HD_LIMBS     8
#define SFC_HD_UNIT_BITS 128 /* the lowest bit of the sum is 2^-SFC_HD_UNIT_BITS */

/* What a number adds to the limbs first .. first + 2; first is at most SFC_HD_LIMBS - 3. */
struct sfc_hd_term {
    unsigned first;
    uint64_t limb[3];
};

/* Of v as sfc_sum256_add_double takes it: negative numbers and NaN are nothing, numbers of 2^128
 * and more overflow the sum. */
static SFC_HD inline struct sfc_hd_term sfc_hd_term_of(double v)
{
    struct sfc_hd_term term = {0, {0, 0, 0}};
    if (!(v > 0))
        return term;
    if (v >= 0x1p128) {
        term.first = SFC_HD_LIMBS - 3;
        term.limb[2] = (uint64_t)1 << 32;
        return term;
    }
    uint64_t bits = sfc_hd_dbits(v);
    int shift = (int)(bits >> 52) - 1075 + SFC_HD_UNIT_BITS; /* v = mantissa * 2^shift units */
    uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;
    if (shift <= -53)
        return term;
    if (shift < 0) {
        mantissa >>= -shift;
        shift = 0;
    }
    unsigned first = (unsigned)shift / 32, bit = (unsigned)shift % 32;
    uint64_t low = (mantissa & 0xffffffffu) << bit, high = (mantissa >> 32) << bit;
    high += low >> 32; /* below 2^53: the mantissa has 53 bits, bit is at most 31 */
    uint64_t limb[4] = {low & 0xffffffffu, high & 0xffffffffu, high >> 32, 0};
    unsigned excess = first > SFC_HD_LIMBS - 3 ? 1 : 0; /* v < 2^128: the last limb is 0 there */
    term.first = first - excess;
    term.limb[0] = excess ? 0 : limb[0];
    term.limb[1] = excess ? limb[0] : limb[1];
    term.limb[2] = excess ? limb[1] : limb[2];
    return term;
}

/* The 256-bit sum of the limbs; all ones where it has no room in 256 bits. */
static SFC_HD inline void sfc_hd_carry(const uint64_t limbs[SFC_HD_LIMBS], uint64_t word[4])
{
    uint64_t carry = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t low = limbs[2 * i] + carry;
        uint64_t high = limbs[2 * i + 1] + (low >> 32);
        word[i] = (high << 32) | (low & 0xffffffffu);
        carry = high >> 32;
    }
    for (int i = 0; i < 4 && carry; i++)
        word[i] = UINT64_MAX;
}

/* v * 2^44 rounded to nearest even; +-2^62 from 2^18 on, 0 for NaN. */
static SFC_HD inline int64_t sfc_hd_dx_to_fixed(float v)
{
    if (isnan(v))
        return 0;
    if (fabsf(v) >= 0x1p18f)
        return v > 0 ? (int64_t)1 << 62 : -((int64_t)1 << 62);
    return (int64_t)llrintf(v * 0x1p44f); /* the product is exact */
}

#endif

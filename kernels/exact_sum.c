#include "kernels/exact_sum.h"

#include <math.h>
#include <string.h>

#include "kernels/hd/exact.h"

#define MAX_SCALE_WITHOUT_SHIFT 80.0

double sfc_exp_shift(double scale)
{
    return scale > MAX_SCALE_WITHOUT_SHIFT ? scale - MAX_SCALE_WITHOUT_SHIFT : 0.0;
}

static void saturate(struct sfc_sum256 *sum)
{
    memset(sum, 0xff, sizeof *sum);
}

void sfc_sum256_add(struct sfc_sum256 *sum, const struct sfc_sum256 *other)
{
    uint64_t carry = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t s, c1, c2;
        c1 = __builtin_add_overflow(sum->word[i], other->word[i], &s);
        c2 = __builtin_add_overflow(s, carry, &s);
        sum->word[i] = s;
        carry = c1 | c2;
    }
    if (carry) {
        saturate(sum);
    }
}

void sfc_sum256_add_double(struct sfc_sum256 *sum, double v)
{
    if (!(v > 0)) {
        return;
    }
    if (v >= 0x1p128) {
        saturate(sum);
        return;
    }
    int exponent;
    double fraction = frexp(v, &exponent); /* v = fraction * 2^exponent, fraction in [0.5, 1) */
    uint64_t mantissa = (uint64_t)(fraction * 0x1p53);
    int shift = exponent - 53 + SFC_HD_UNIT_BITS; /* v = mantissa * 2^shift units */
    struct sfc_sum256 term = {{0}};
    if (shift <= -53) {
        return;
    }
    if (shift < 0) {
        term.word[0] = mantissa >> -shift;
    } else {
        unsigned index = (unsigned)shift / 64, bit = (unsigned)shift % 64;
        term.word[index] = mantissa << bit;
        if (bit > 64 - 53) { /* the top word never spills: v < 2^128 */
            term.word[index + 1] = mantissa >> (64 - bit);
        }
    }
    sfc_sum256_add(sum, &term);
}

double sfc_sum256_log(const struct sfc_sum256 *sum, double shift)
{
    int top = 3;
    while (top >= 0 && sum->word[top] == 0) {
        top--;
    }
    if (top < 0) {
        return -INFINITY;
    }
    /* The 64 leading bits; a sticky lowest bit makes the conversion to double the only rounding. */
    int lead = __builtin_clzll(sum->word[top]);
    uint64_t bits = sum->word[top] << lead;
    uint64_t rest = 0;
    if (top > 0) {
        bits |= lead ? sum->word[top - 1] >> (64 - lead) : 0;
        rest = sum->word[top - 1] << lead;
    }
    for (int i = 0; i < top - 1; i++) {
        rest |= sum->word[i];
    }
    bits |= rest != 0;
    return log(ldexp((double)bits, 64 * top - lead - SFC_HD_UNIT_BITS)) + shift;
}

int64_t sfc_dx_to_fixed(float v)
{
    return sfc_hd_dx_to_fixed(v);
}

float sfc_dx_to_float(int64_t v)
{
    return (float)v * 0x1p-44f;
}

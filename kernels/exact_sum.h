/* Exact sums over blocks, shards and arrival orders (DESIGN: order and placement never matter).
 *
 * - Sum of exponentials of a row: a 256-bit unsigned integer, least significant 64-bit word first,
 * in units of 2^-128. A value is added after one rounding (toward zero) to that unit, so addition
 * is associative and commutative. Values are exp(z - shift) with shift = sfc_exp_shift(scale): 0 up
 * to scale 80, scale - 80 above, so that f32 never overflows. A sum of 2^128 or more saturates at
 * all ones, which keeps addition associative.
 * - dx: 64-bit signed fixed point in units of 2^-44, each block's part rounded to nearest even
 * once. */
#ifndef SFC_KERNELS_EXACT_SUM_H
#define SFC_KERNELS_EXACT_SUM_H

#include <stdint.h>

#define SFC_DX_FRACTION_BITS 44

struct sfc_sum256 {
    uint64_t word[4];
};

double sfc_exp_shift(double scale);
/* Adds v. Negative values and NaN add nothing (a caller sees those in its logits); 2^128 and above,
 * infinity included, saturate. */
void sfc_sum256_add_double(struct sfc_sum256 *sum, double v);
void sfc_sum256_add(struct sfc_sum256 *sum, const struct sfc_sum256 *other);
/* Natural logarithm of the sum plus shift, the integer rounded once to double; -inf for 0. */
double sfc_sum256_log(const struct sfc_sum256 *sum, double shift);

/* v * 2^44 rounded to nearest even. Values of a healthy step are far below 2^18; beyond, the result
 * is +-2^62, and 0 for NaN (such a step is reported by sfc_head_finite and skipped). */
int64_t sfc_dx_to_fixed(float v);
/* The nearest float of v * 2^-44. */
float sfc_dx_to_float(int64_t v);

#endif

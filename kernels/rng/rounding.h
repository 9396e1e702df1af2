/* Rounding of f32 to bf16, the high half of an f32, as scalar functions: what the stochastic
 * rounding of bf16 state is, for every backend.
 *
 * The weight and the momentum of column k of a class get the low and the high half of
 * sfc_rounding_word(sfc_rounding_key(seed, step, class), k). 16 random bits are added below the
 * cut, so a number goes to its upper neighbour with the probability that keeps its mean, to the
 * bits that 16 have. One Philox call serves a whole row: a call per element would cost as much as
 * the products do. */
#ifndef SFC_KERNELS_RNG_ROUNDING_H
#define SFC_KERNELS_RNG_ROUNDING_H

#include <stdint.h>

#include "kernels/hd/rounding.h"

struct sfc_rounding_key sfc_rounding_key(uint64_t seed, uint64_t step, uint64_t class);
/* The key of AdamW's second moment, which gets the low half of its word. */
struct sfc_rounding_key sfc_rounding_second_key(uint64_t seed, uint64_t step, uint64_t class);
/* 32 bits for a column: a bijective mixer of its number under the key (the shifts and the last two
 * factors of MurmurHash3's finaliser). */
uint32_t sfc_rounding_word(struct sfc_rounding_key key, uint32_t column);

/* The nearest bf16, ties to even, as f32. */
float sfc_bf16_nearest(float v);
/* One of the two neighbours of v, by 16 random bits. */
float sfc_bf16_stochastic(float v, uint16_t random);

#endif

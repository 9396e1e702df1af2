/* Which of many random words are small: words are drawn and compared at once, and only the small
 * ones are written, so that a draw of one row in a hundred costs little more than the arithmetic
 * of Philox. */
#ifndef SFC_KERNELS_RNG_BELOW_H
#define SFC_KERNELS_RNG_BELOW_H

#include <stdint.h>

#include "kernels/rng/philox.h"

/* Entries beyond `count` that the arrays of the functions below must have room for. */
#define SFC_BELOW_SLACK 64

/* Of the first `count` words of sfc_random_words(seed, stream, a, b, ..) those that are at most
 * limit: their numbers in index, ascending, and themselves in words. Returns how many they are;
 * what lies behind them in the arrays, [count + SFC_BELOW_SLACK], is overwritten. */
uint32_t sfc_random_below(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                          uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words);

/* The same by one instruction set, for sfc_random_below and tests. */
uint32_t sfc_random_below_plain(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                                uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words);
#ifdef __x86_64__
uint32_t sfc_random_below_avx512(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                                 uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words);
#endif

#endif

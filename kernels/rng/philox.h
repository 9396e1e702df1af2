/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counter
 * based: every random number of a run is a pure function of (run seed, stream, counters).
 *
 * Everything here is integer arithmetic or IEEE basic operations (+ - * / sqrt) without
 * contraction, so the bits are the same on every machine and for every instruction set. */
#ifndef SFC_KERNELS_RNG_PHILOX_H
#define SFC_KERNELS_RNG_PHILOX_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/hd/philox.h"

/* The bare function: 10 rounds on counter with key. */
struct sfc_philox sfc_philox4x32_10(const uint32_t counter[4], const uint32_t key[2]);

/* The key of (seed, stream). */
void sfc_stream_key(uint64_t seed, enum sfc_stream stream, uint32_t key[2]);
/* Four words for (seed, stream, a, b): counter = (a low, a high, b low, b high), key from seed and
 * stream through one fixed mixing step (kernels/hd/philox.h). */
struct sfc_philox sfc_random(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b);
/* The words of sfc_random(seed, stream, a, b + i) for i < calls, one after the other: [4 * calls].
 * The fast way to many words. */
void sfc_random_words(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b, size_t calls,
                      uint32_t *out);

/* Uniform in [0, 1) with 24 bits, and four standard normals (Box-Muller). */
float sfc_uniform(uint32_t word);
void sfc_normal4(struct sfc_philox words, float out[4]);
/* out[i] = normal i % 4 of sfc_normal4(sfc_random(seed, stream, a, i / 4)) for first <= i < first +
 * count, written from out[0]. The fast way to many normals. */
void sfc_random_normals(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t first,
                        size_t count, float *out);

#endif

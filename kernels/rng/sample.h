/* The sample of one block (DESIGN section 3, invariant I1): a pure function of (seed, step, block,
 * rows in the block, sample rate, positives in the block).
 *
 * Quota q = max(ceil(sample_ppm * rows / 1e6), positives). All positives are in. Each other row i
 * gets the 32-bit word i % 4 of sfc_random(seed, SAMPLE, step, block << 32 | i / 4); the q -
 * positives rows with the least (word, i) are in. */
#ifndef SFC_KERNELS_RNG_SAMPLE_H
#define SFC_KERNELS_RNG_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

uint32_t sfc_sample_quota(uint32_t rows, uint32_t sample_ppm, uint32_t positives);

/* Bytes of scratch that sfc_sample_block needs for blocks of at most `rows` rows. */
size_t sfc_sample_scratch(uint32_t rows);

/* positives: ascending, distinct row numbers inside the block. out: room for the quota; ascending
 * row numbers. Returns the number written. scratch: sfc_sample_scratch(rows) bytes, 64-byte
 * aligned. */
uint32_t sfc_sample_block(uint64_t seed, uint64_t step, uint32_t block, uint32_t rows,
                          uint32_t sample_ppm, const uint32_t *positives, uint32_t positive_count,
                          uint32_t *out, void *scratch);

#endif

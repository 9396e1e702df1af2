/* The endless sample order (invariant I4): position p is sample perm_e(p mod n) of epoch e = p / n;
 * perm_e is a keyed bijection of [0, n) (balanced Feistel network over Philox with cycle walking),
 * so it needs no memory and any position can be asked for. */
#ifndef SFC_KERNELS_RNG_PERMUTATION_H
#define SFC_KERNELS_RNG_PERMUTATION_H

#include <stdint.h>

/* samples >= 1. */
uint64_t sfc_sample_at(uint64_t seed, uint64_t samples, uint64_t position);
/* perm_epoch(place); place < samples. */
uint64_t sfc_sample_of_epoch(uint64_t seed, uint64_t samples, uint64_t epoch, uint64_t place);
uint64_t sfc_epoch_at(uint64_t samples, uint64_t position);

#endif

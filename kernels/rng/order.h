/* The endless sample order of a run whose data set grows (invariant I4). A part of it is a set of
 * one size: from the beginning of an epoch on its epochs are permutations of its samples, until the
 * next part begins, which is always at the end of an epoch. So every sample that there is when an
 * epoch begins comes once in it. Epochs are counted through all parts: the same numbers as
 * kernels/rng/permutation.h where there is one. */
#ifndef SFC_KERNELS_RNG_ORDER_H
#define SFC_KERNELS_RNG_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sfc_order_part {
    uint64_t first_position;
    uint64_t first_epoch;
    uint64_t samples; /* >= 1 */
};

/* The part that follows `last` when the set has so many samples from the first epoch on that begins
 * at `position` or later; position: at least last->first_position. False: positions don't reach so
 * far. */
bool sfc_order_next(const struct sfc_order_part *last, uint64_t position, uint64_t samples,
                    struct sfc_order_part *out);
/* The part that a position is in. parts: ascending, the first one begins at 0; count >= 1. */
const struct sfc_order_part *sfc_order_part_at(const struct sfc_order_part *parts, size_t count,
                                               uint64_t position);
uint64_t sfc_order_epoch(const struct sfc_order_part *parts, size_t count, uint64_t position);
uint64_t sfc_order_sample(const struct sfc_order_part *parts, size_t count, uint64_t seed,
                          uint64_t position);

#endif

/* Packed sums of some dense blocks (sfc_dense_sums) out of those of others: a step was logged with
 * the blocks that a shard had then, and is gone through again with those of now, or with some of
 * them. */
#ifndef SFC_SHARD_DENSE_SUMS_H
#define SFC_SHARD_DENSE_SUMS_H

#include "kernels/backend.h"

struct sfc_dense_set {
    const uint64_t *blocks; /* ascending */
    size_t count;
};

/* All of two sets; blocks: to be freed, NULL without memory. */
struct sfc_dense_set sfc_dense_sets_join(struct sfc_dense_set a, struct sfc_dense_set b);

/* in: of `from`; out: of `to`, 8-byte aligned. stamps[i]: block to.blocks[i] is as after this step
 * already, so a step up to it leaves it out, and sums that are not there (zeros then) are not
 * missed. Returns the first block that is missed; to.count: none. */
size_t sfc_dense_sums_cut(const struct sfc_dense_config *config, struct sfc_dense_set from,
                          const void *in, struct sfc_dense_set to, const uint64_t *stamps,
                          uint64_t step, void *out);

/* The sums of `from` into their places among those of `to`, which has all of them; others are left
 * as they are. */
void sfc_dense_sums_put(const struct sfc_dense_config *config, struct sfc_dense_set from,
                        const void *in, struct sfc_dense_set to, void *out);
/* Zeros between halves and floats, where sfc_dense_sums_put writes nothing. */
void sfc_dense_sums_pad(const struct sfc_dense_config *config, struct sfc_dense_set to, void *out);
/* Floats of blocks one after the other: those of `to` out of those of `from`, which has all of
 * them. */
void sfc_dense_floats_cut(const struct sfc_dense_config *config, struct sfc_dense_set from,
                          const float *in, struct sfc_dense_set to, float *out);

#endif

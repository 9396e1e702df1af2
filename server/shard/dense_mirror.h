/* Gradients of dense blocks of other shards, for which this shard keeps a mirror: added in the
 * order of micro-batches like those of its own, for the log alone. What workers push, and what is
 * logged, is of own and mirrored blocks together, in ascending order.
 *
 * The sums have the bits that the owner's have, and nothing is applied: the state of these blocks
 * is on the disk.
 *
 * Memory: sfc_run_mirror_memory. Threads: the compute thread. */
#ifndef SFC_SHARD_DENSE_MIRROR_H
#define SFC_SHARD_DENSE_MIRROR_H

#include "kernels/backend.h"
#include "server/run/run_setup.h"
#include "server/shard/dense_sums.h"

struct sfc_dense_mirror;

/* The sets are copied; they have no block in common, and mirrored has at least one. setup is
 * borrowed. SFC_ENOMEM. */
int sfc_dense_mirror_new(struct sfc_backend *backend, const struct sfc_run_setup *setup,
                         struct sfc_dense_set own, struct sfc_dense_set mirrored,
                         struct sfc_dense_mirror **out, struct sfc_error *err);
void sfc_dense_mirror_free(struct sfc_dense_mirror *mirror); /* NULL is fine */

/* own: the own blocks' object; NULL: there are none. slice: of own and mirrored blocks. */
int sfc_dense_mirror_push(struct sfc_dense_mirror *mirror, struct sfc_dense *own, uint32_t slot,
                          const float *slice, struct sfc_error *err);
/* After the own blocks' sfc_dense_prepare with the same arguments: packed gets the sums of all;
 * NULL: they are not wanted. */
int sfc_dense_mirror_prepare(struct sfc_dense_mirror *mirror, struct sfc_dense *own, uint64_t step,
                             double lr, const uint32_t *slots, void *packed, struct sfc_error *err);

#endif

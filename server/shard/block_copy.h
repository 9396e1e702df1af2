/* A block between the kernels and the parts of a snapshot, which hold state of bf16 in 2 bytes. */
#ifndef SFC_SHARD_BLOCK_COPY_H
#define SFC_SHARD_BLOCK_COPY_H

#include "kernels/backend.h"
#include "server/durable/snapshot_store.h"
#include "server/run/run_setup.h"

/* Shape of the snapshot of a block of the run after `step`. */
void sfc_block_shape(const struct sfc_run_setup *setup, const struct sfc_snapshot_block *block,
                     uint64_t step, struct sfc_snapshot_shape *out);

/* Rows of a class block that got rows by a growth of the run, for the key of its snapshots; else 0.
 */
uint64_t sfc_block_grown(const struct sfc_run_setup *setup, const struct sfc_snapshot_block *block);

/* dense may be NULL where there are no dense blocks. parts: as in sfc_snapshot_write_begin. Runs on
 * the compute thread. */
int sfc_block_save(struct sfc_head *head, struct sfc_dense *dense,
                   const struct sfc_snapshot_block *block, const struct sfc_snapshot_shape *shape,
                   void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err);
/* Says to the kernels that the block is at content->step, and writes it. Not for the history, of
 * which recovery takes what it needs. */
int sfc_block_restore(struct sfc_head *head, struct sfc_dense *dense,
                      const struct sfc_snapshot_block *block,
                      const struct sfc_snapshot_shape *shape,
                      const struct sfc_snapshot_content *content, struct sfc_error *err);

/* Where the parts of a block lie one behind the other, each padded to a multiple of 64 bytes: how
 * blocks travel between shards. Returns the bytes of all; base: 64-byte aligned, NULL: only the
 * number is wanted. */
uint64_t sfc_block_lay_out(const struct sfc_snapshot_shape *shape, void *base,
                           void *parts[SFC_SNAPSHOT_PARTS]);
/* Some rows of a class block, ascending: as the parts of a block that has no others (shape->rows of
 * them). */
int sfc_block_save_rows(struct sfc_head *head, uint64_t block,
                        const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                        void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err);
int sfc_block_write_rows(struct sfc_head *head, uint64_t block,
                         const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                         void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err);
/* Rows first .. first + count - 1 of a whole block (of a dense block: floats) from its parts. */
int sfc_block_write_range(struct sfc_head *head, struct sfc_dense *dense,
                          const struct sfc_snapshot_block *block,
                          const struct sfc_snapshot_shape *shape,
                          void *const parts[SFC_SNAPSHOT_PARTS], uint64_t first, uint64_t count,
                          struct sfc_error *err);

#endif

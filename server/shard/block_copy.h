/* A block between the kernels and the parts of a snapshot, which hold state of bf16 in 2 bytes. */
#ifndef SFC_SHARD_BLOCK_COPY_H
#define SFC_SHARD_BLOCK_COPY_H

#include "kernels/backend.h"
#include "server/durable/snapshot_store.h"

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

#endif

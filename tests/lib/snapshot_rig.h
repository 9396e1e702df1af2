/* Snapshots whose content follows from (block, step), for tests of the snapshot store. */
#ifndef SFC_TESTS_SNAPSHOT_RIG_H
#define SFC_TESTS_SNAPSHOT_RIG_H

#include "server/durable/snapshot_store.h"

enum { RIG_BLOCKS = 4, RIG_PART_ROOM = 512 };

/* Class blocks in f32 and in bf16, with and without momentum, second moment and last steps; a dense
 * block; the history, whose rows follow from the step. Odd sizes, so that parts need padding. */
extern const struct sfc_snapshot_block rig_blocks[RIG_BLOCKS];
struct sfc_snapshot_shape rig_shape(size_t block, uint64_t step);

struct rig_snapshot {
    struct sfc_snapshot_key key;
    struct sfc_snapshot_shape shape;
    uint8_t bytes[SFC_SNAPSHOT_PARTS][RIG_PART_ROOM];
    const void *parts[SFC_SNAPSHOT_PARTS];
};
void rig_snapshot_fill(struct rig_snapshot *snapshot, size_t block, uint64_t step);
/* Writes it in pieces; of a step where a run began, or of a commit of this round. */
int rig_snapshot_write(struct sfc_snapshot_store *store, size_t block, uint64_t step,
                       struct sfc_error *err);
int rig_snapshot_write_round(struct sfc_snapshot_store *store, size_t block, uint64_t step,
                             struct sfc_attempt round, struct sfc_error *err);
bool rig_snapshot_same(const struct sfc_snapshot_content *content, size_t block);

#endif

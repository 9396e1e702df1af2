/* What the files of a pin share: pinned.c (its life, calls), pinned_block.c (a block),
 * pinned_memory.c.
 */
#ifndef SFC_SHARD_PINNED_PARTS_H
#define SFC_SHARD_PINNED_PARTS_H

#include "server/shard/shard_internal.h"

static inline struct sfc_pinned *sfc_pinned_of(struct sfc_shard_run *run)
{
    return &run->pinned;
}

static inline struct sfc_storage *sfc_pinned_storage(struct sfc_shard_run *run)
{
    return &run->durability.storage;
}

/* One of those that it began with. */
static inline const struct sfc_snapshot_block *sfc_pinned_block(const struct sfc_shard_run *run,
                                                                size_t index)
{
    return &run->durability.storage.pinned[index];
}

static inline bool sfc_pinned_keeps_rates(const struct sfc_shard_run *run)
{
    return run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE;
}

/* ---- one task or job at a time (pinned.c) */

typedef int sfc_pinned_work(struct sfc_task *task, struct sfc_error *err);

/* First in every `done`: whether what comes next may come. */
bool sfc_pinned_goes_on(struct sfc_shard_run *run);
void sfc_pinned_submit(struct sfc_shard_run *run, struct sfc_tasks *thread, sfc_pinned_work *work,
                       void (*done)(struct sfc_task *task));
void sfc_pinned_submit_job(struct sfc_shard_run *run,
                           int (*work)(void *, struct sfc_head *, struct sfc_dense *,
                                       struct sfc_error *),
                           void (*done)(struct sfc_compute_job *job));
/* The read that waits: answered, refused, or its block is begun. */
void sfc_pinned_next_move(struct sfc_shard_run *run);

/* ---- a block (pinned_block.c) */

/* Begins it; next_move when it is there, or can't be made. */
void sfc_pinned_make(struct sfc_shard_run *run, size_t index);

/* ---- memory (pinned_memory.c) */

/* In f32, as ReadBlock gives it. */
void sfc_pinned_shape(struct sfc_shard_run *run, size_t index, struct sfc_snapshot_shape *out);
struct sfc_head_config sfc_pinned_head_config(const struct sfc_shard_run *run);
struct sfc_dense_config sfc_pinned_dense_config(const struct sfc_shard_run *run);
/* How many blocks a group has; SFC_ENOMEM: --memory has no room for one. The backend is open. */
int sfc_pinned_plan_memory(struct sfc_shard_run *run, struct sfc_error *err);
int sfc_pinned_allocate(struct sfc_shard_run *run, struct sfc_error *err);
void sfc_pinned_free_group(struct sfc_pinned *p);

#endif

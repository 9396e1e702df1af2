/* Which blocks of a run are on this shard, and what follows from them: lists, memory, buffers of
 * the backbone. Whose are the others: the places of the map.
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_RUN_BLOCKS_H
#define SFC_SHARD_RUN_BLOCKS_H

#include "kernels/backend.h"
#include "proto/shardfc.pb-c.h"
#include "server/core/step_fsm.h"
#include "server/durable/snapshot_store.h"
#include "server/run/run_setup.h"
#include "server/shard/dense_sums.h"

struct sfc_shard_run;
struct sfc_shared;

struct sfc_shard_blocks {
    uint64_t *class_blocks, *dense_blocks; /* ascending; owned */
    size_t class_count, dense_count;
};
/* Those of the place `self` of a map. SFC_EINVAL: the map doesn't fit the configuration, or is not
 * one. */
int sfc_shard_blocks_of(const struct sfc_run_setup *setup, const Shardfc__V1__BlockMap *map,
                        uint32_t self, struct sfc_shard_blocks *out, struct sfc_error *err);
void sfc_shard_blocks_free(struct sfc_shard_blocks *blocks); /* zeroed is fine */

/* What the place `self` mirrors, and what follows for dense blocks. */
struct sfc_shard_mirrored {
    uint32_t *places; /* [place_count] whose */
    size_t place_count;
    struct sfc_shard_blocks blocks; /* of them */
    uint32_t *owners;               /* [class_count + dense_count] of each block */
    struct sfc_dense_set pushed;    /* own and mirrored dense blocks: what workers push, and what is
                                       logged; owned */
    uint64_t pushed_floats;
    bool gives; /* somebody mirrors this shard */
};
/* own: of the same map and place, which passed sfc_shard_blocks_of. */
int sfc_shard_mirrored_of(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                          uint32_t self, const struct sfc_shard_blocks *own,
                          struct sfc_shard_mirrored *out, struct sfc_error *err);
void sfc_shard_mirrored_free(struct sfc_shard_mirrored *mirrored); /* zeroed is fine */
bool sfc_shard_owns(const struct sfc_shard_run *run, const struct sfc_snapshot_block *block);

/* Addresses of the shards of a map that has passed sfc_shard_blocks_of; "": nobody is there.
 * SFC_ENOMEM. */
int sfc_shard_take_places(struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                          struct sfc_error *err);
void sfc_shard_places_free(struct sfc_shard_run *run);

/* What the run takes with its present blocks, into run->memory, resident and on_device; said in the
 * program's log. */
int sfc_shard_count_memory(struct sfc_shard_run *run, struct sfc_error *err);
/* The same, and SFC_ENOMEM with the numbers if --memory has no room for it. */
int sfc_shard_check_memory(struct sfc_shard_run *run, struct sfc_error *err);
/* Is there room for these blocks beside the present ones, and `more` bytes meanwhile? SFC_ENOMEM
 * says what is missing. setup: the run's as it will be. *takes: all of that. */
int sfc_shard_check_more(const struct sfc_shard_run *run, const struct sfc_run_setup *setup,
                         const uint64_t *class_blocks, size_t class_count,
                         const uint64_t *dense_blocks, size_t dense_count, uint64_t more,
                         uint64_t *takes, struct sfc_error *err);

/* Could the run be opened here with this map, of which `own` are the blocks? SFC_ENOMEM, SFC_EINVAL
 * (--log-limit) say what is missing. */
int sfc_shard_check_map(const struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                        const struct sfc_shard_blocks *own, struct sfc_error *err);

/* Whose size follows from the dense blocks. */
struct sfc_run_buffers {
    struct sfc_shared *pulls[SFC_RUN_PULL_COPIES];
    struct sfc_dense_sum *sums;
    struct sfc_own_dense_sum *own_sums; /* [pushed]: those of own blocks first, zeros */
    uint64_t *dense_digests;            /* [pushed] */
    void *dense_sums; /* packed, of the last prepare, for the log; NULL: no dense blocks */
};
/* SFC_EUNAVAILABLE: no memory now. */
int sfc_run_buffers_new(const struct sfc_shard_run *run, const struct sfc_shard_blocks *blocks,
                        struct sfc_dense_set pushed, struct sfc_run_buffers *out,
                        struct sfc_error *err);
void sfc_run_buffers_free(struct sfc_run_buffers *buffers); /* zeroed is fine */
void sfc_run_buffers_swap(struct sfc_shard_run *run, struct sfc_run_buffers *buffers);

#endif

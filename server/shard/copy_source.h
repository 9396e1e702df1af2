/* Gives blocks of a run to another shard while the run goes on: BeginCopy, ReadCopy, ReadChanges,
 * EndCopy.
 *
 *   BeginCopy     compute thread, between two jobs: copy of one block, and its changed rows are
 * noted from then on ReadCopy      pieces of that copy, lent to the replies ReadChanges   compute
 * thread: the rows that steps after `since` changed EndCopy       or SFC_COPY_LEASE_MS without a
 * call: nothing is noted any more, memory goes
 *
 * Who reads doesn't change a bit of what the run computes. A copy holds one block at a time; one
 * block is noted for one copy at a time. Memory is bounded and checked against --memory at the
 * first BeginCopy.
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_COPY_SOURCE_H
#define SFC_SHARD_COPY_SOURCE_H

#include "proto/rpc.h"
#include "server/durable/snapshot_store.h"
#include "server/shard/compute.h"

#define SFC_COPY_LEASE_MS 30000u

struct sfc_shard_run;
struct sfc_shared;

struct sfc_copied { /* a class block whose changes are noted */
    uint64_t block;
    uint64_t step; /* since this one */
};

struct sfc_copy {
    struct sfc_shard_run *run;
    uint64_t id; /* 0: free */
    uint64_t seen_ms;
    bool ending;               /* let go of; a job is still there */
    struct sfc_rpc_call *call; /* the BeginCopy whose job is at work */
    struct sfc_compute_job job;
    /* the block */
    bool whole;
    struct sfc_snapshot_block block;
    uint64_t step;
    struct sfc_attempt round;
    struct sfc_snapshot_shape shape;
    struct sfc_shared *data; /* laid out by sfc_block_lay_out */
    uint64_t bytes;
    void *parts[SFC_SNAPSHOT_PARTS];
    struct sfc_copied *noted;
    size_t noted_count, noted_room;
};

struct sfc_copies {
    struct sfc_copy items[2];
    unsigned changes; /* ReadChanges at work */
};

/* Each takes the call; ctx: the shard. */
void sfc_shard_begin_copy(struct sfc_rpc_call *call, void *ctx);
void sfc_shard_read_copy(struct sfc_rpc_call *call, void *ctx);
void sfc_shard_read_changes(struct sfc_rpc_call *call, void *ctx);
void sfc_shard_end_copy(struct sfc_rpc_call *call, void *ctx);

/* Some time has passed. False: there is no copy. */
bool sfc_copies_tick(struct sfc_shard_run *run);
/* Ends the one of a move that its scheduler gave up. */
void sfc_copies_cancel(struct sfc_shard_run *run, uint64_t move);
/* Ends all of them: the blocks are others now. */
void sfc_copies_end(struct sfc_shard_run *run);
/* With the run, when no job is at work. */
void sfc_copies_free(struct sfc_shard_run *run);

#endif

/* Gives blocks of a run to another shard while the run goes on: BeginCopy, ReadCopy, ReadChanges,
 * EndCopy.
 *
 *   BeginCopy     compute thread, between two jobs: copy of one block, and its changed rows are
 * noted from then on ReadCopy      pieces of that copy, lent to the replies ReadChanges   compute
 * thread: the rows that steps after `since` changed EndCopy       or SFC_COPY_LEASE_MS without a
 * call: nothing is noted any more, memory goes
 *
 * Who reads doesn't change a bit of what the run computes. A copy holds the last two blocks,
 * so that one is copied while the one before is read; one block is noted for one copy at a time.
 * Memory is bounded and checked against --memory at the first BeginCopy.
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_COPY_SOURCE_H
#define SFC_SHARD_COPY_SOURCE_H

#include "proto/rpc.h"
#include "server/durable/snapshot_store.h"
#include "server/shard/compute.h"

#define SFC_COPY_LEASE_MS 30000u
#define SFC_COPY_BLOCKS   2u /* the one that is read, and the next one */

struct sfc_shard_run;
struct sfc_shared;

struct sfc_copied { /* a class block whose changes are noted */
    uint64_t block;
    uint64_t step; /* since this one */
};

struct sfc_copy_block { /* as it was after `step` */
    bool whole;
    struct sfc_snapshot_block block;
    uint64_t step;
    struct sfc_attempt round;
    struct sfc_snapshot_shape shape;
    struct sfc_shared *data; /* laid out by sfc_block_lay_out */
    uint64_t bytes;
    void *parts[SFC_SNAPSHOT_PARTS];
};

struct sfc_copy {
    struct sfc_shard_run *run;
    uint64_t id; /* 0: free */
    uint64_t seen_ms;
    bool ending;               /* let go of; a job is still there */
    bool untracked;            /* for a mirror: no changes are noted */
    struct sfc_rpc_call *call; /* the BeginCopy whose job is at work */
    struct sfc_compute_job job;
    struct sfc_copy_block blocks[SFC_COPY_BLOCKS];
    unsigned newest; /* of them */
    struct sfc_copied *noted;
    size_t noted_count, noted_room;
};

/* The last one is for mirrors, so that they take no move's place. */
enum { SFC_COPIES = 3, SFC_COPIES_TRACKED = 2 };

struct sfc_copies {
    struct sfc_copy items[SFC_COPIES];
    unsigned changes;                          /* ReadChanges at work */
    struct sfc_shared *spare[SFC_COPY_BLOCKS]; /* memory of the copy before */
    uint64_t spare_ms;                         /* since when */
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
/* Ends those of mirrors: one of them may be gone, and the others begin anew. */
void sfc_copies_end_untracked(struct sfc_shard_run *run);
/* Ends all of them: the blocks are others now. */
void sfc_copies_end(struct sfc_shard_run *run);
/* With the run, when no job is at work. */
void sfc_copies_free(struct sfc_shard_run *run);

#endif

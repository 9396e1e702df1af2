/* Blocks that this shard gets from another one while the run goes on: FetchBlocks, TakeBlocks,
 * CancelMove. One move at a time.
 *
 *   FetchBlocks   compute thread: room for the blocks (staged, beside those of the run)
 *                 one class block after the other: copied from its owner, written into the staged
 *                 part a piece at a time, and as a snapshot of its stamp to the disk; then the
 *                 rows that changed since, again and again (following)
 *   TakeBlocks    at a boundary: the last changes; dense blocks, of which every number changes in
 *                 every step, whole and onto the disk
 *   SetMap        the staged blocks become the run's (set_map.h)
 *
 * What is durable of a class block that has moved is its first copy here and this shard's own log,
 * which has the inputs of every step since; so the log is kept from the oldest of these copies on
 * (sfc_move_floor).
 *
 * A failed call is made again for a while; then the move fails with the reason, which FetchBlocks
 * gives. Memory is bounded, and checked before anything is allocated: the blocks, three of them on
 * their way, a few pieces of changes.
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_MOVE_IN_H
#define SFC_SHARD_MOVE_IN_H

#include "proto/rpc.h"
#include "proto/shardfc.pb-c.h"
#include "server/shard/compute.h"

struct sfc_shard_run;
struct sfc_move;

/* Bytes that may be asked for; they come back at a rate. */
struct sfc_move_bucket {
    double tokens;
    uint64_t ms; /* when it was looked at; 0: never */
};

/* Blocks on their way: one is filled, one is asked for, one lands. */
#define SFC_MOVE_BUFFERS 3u

struct sfc_move_spare { /* buffers of the move before */
    void *data[SFC_MOVE_BUFFERS];
    uint64_t ms; /* since when */
};

/* Each takes the call. */
void sfc_move_fetch(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                    const Shardfc__V1__FetchBlocksRequest *request);
void sfc_move_take(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                   const Shardfc__V1__TakeBlocksRequest *request);
void sfc_move_cancel(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     const Shardfc__V1__CancelMoveRequest *request);

/* A scheduler of this incarnation goes on without the move: one of an older incarnation ends. */
void sfc_move_pass(struct sfc_shard_run *run, uint64_t incarnation);

/* The staged blocks of this move, all at this step; false: they are not here. Ascending. */
struct sfc_move_blocks {
    const uint64_t *class_blocks, *dense_blocks;
    size_t class_count, dense_count;
};
bool sfc_move_taken(const struct sfc_shard_run *run, uint64_t move, uint64_t step,
                    struct sfc_move_blocks *out);
/* The first snapshot of a staged block, for the sweep. */
bool sfc_move_stamp(const struct sfc_shard_run *run, bool dense, uint64_t block, uint64_t *stamp);
/* Hands the staged part over to a CHANGE job; gone says that it is done, and whether the blocks are
 * the run's now. */
void sfc_move_give(struct sfc_shard_run *run, struct sfc_compute_job *job);
void sfc_move_gone(struct sfc_shard_run *run, bool taken);

/* Are there snapshots of blocks that are nobody's yet? The end of the move deletes what is not this
 * shard's. */
bool sfc_move_stages(const struct sfc_shard_run *run);
/* The log is needed behind this step for what is staged; UINT64_MAX: nothing is. */
uint64_t sfc_move_floor(const struct sfc_shard_run *run);
/* The log is full: a move that keeps it so ends. */
void sfc_move_give_way(struct sfc_shard_run *run);

/* Some time has passed. False: there is no move. */
bool sfc_move_tick(struct sfc_shard_run *run);
/* Of a heartbeat; false: there is nothing to say. Texts live until the next event. */
/* What is staged takes. */
uint64_t sfc_move_memory(const struct sfc_shard_run *run);
bool sfc_move_report(const struct sfc_shard_run *run, Shardfc__V1__MoveProgress *out);

/* The run is being closed; its close job is not submitted yet. */
void sfc_move_abandon(struct sfc_shard_run *run);
/* With the run, when no job is at work. */
void sfc_move_free(struct sfc_shard_run *run);

#endif

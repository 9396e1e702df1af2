/* The blocks of a run as they were after one step, while the run goes on (calls PinStep, ReadBlock
 * with a pin, UnpinStep): what a checkpoint is made from.
 *
 * A block is copied from memory when the run stands at the step at that moment; otherwise it is
 * made from what is on the disk, together with the blocks behind it (a group): their newest
 * snapshots with a stamp up to the step, then the logged steps after them, gone through again by a
 * thread of low priority. Live blocks are never touched and no step waits. Memory is bounded: one
 * group of at most 256 MiB (or one block), one block as it is read, one snapshot, one step, the
 * rates; checked against
 * --memory when the pin is set.
 *
 * As long as the pin is there the log keeps what it needs (sfc_pinned_floor), and so do the
 * snapshots (sfc_snapshot_store_pin), also of blocks that leave the shard. It ends by UnpinStep,
 * when its client is silent for SFC_PIN_LEASE_MS, with the run, and when the log is full because of
 * it: steps come first.
 *
 *   PinStep    log thread: from which step on there is log    checkpoint thread: backend, buffers
 *              snapshot thread: the first step that can be made; keep what this one needs
 *   ReadBlock  compute thread: copy; or
 *              checkpoint thread: new group    snapshot thread: for each block, read its snapshot
 *              checkpoint thread: each step, read beside the log's thread; copy
 *
 * Threads: functions here are called from the loop thread; one task or job is on its way at a time.
 */
#ifndef SFC_SHARD_PINNED_H
#define SFC_SHARD_PINNED_H

#include "proto/limits.h"
#include "proto/rpc.h"
#include "proto/shardfc.pb-c.h"
#include "server/shard/compute.h"
#include "server/shard/replay.h"
#include "server/shard/run_blocks.h"
#include "server/shard/storage.h"
#include "server/shard/tasks.h"

#define SFC_PIN_LEASE_MS 15000

struct sfc_shard_run;

struct sfc_pinned_read { /* a ReadBlock that was checked */
    size_t index;        /* of the block, in the storage's list */
    enum sfc_snapshot_part part;
    uint64_t offset, count;
};

struct sfc_pinned {
    uint64_t id; /* 0: there is none */
    uint64_t step;
    struct sfc_shard_blocks own; /* blocks of the shard when the pin began, as storage.pinned */
    bool ending;                 /* let go of; a task or the memory is still there */
    bool outlived;   /* blocks have left meanwhile, and their snapshots are still there */
    uint64_t renews; /* begins anew with this number when the map has changed; 0: no */
    bool checked;    /* `first` is known and the snapshots are kept */
    bool reached;    /* the step is applied: floor stands still */
    bool past;       /* it was when the pin began: the log may have its commit */
    /* of the step's commit, as applied and as logged; 0: not known */
    struct sfc_attempt round, logged_round;
    uint64_t floor;
    uint64_t first, log_from;
    uint64_t seen_ms;
    struct sfc_rpc_call *pin_call; /* waits for `checked` */
    struct sfc_rpc_call *read_call;
    struct sfc_pinned_read wanted; /* of read_call */
    uint64_t read_ms;
    uint64_t lost; /* a pin that ended by itself, */
    char reason[SFC_LIMIT_ERROR_TEXT];
    /* the block at work, or made */
    bool working;
    bool made;
    size_t index;
    int code; /* not SFC_OK: it could not be made */
    struct sfc_error error;
    struct sfc_snapshot_shape shape; /* in f32 */
    void *parts[SFC_SNAPSHOT_PARTS]; /* in values, or rates */
    struct sfc_compute_job job;
    struct sfc_task task;
    char loud[512];
    /* the group on its way to the step, or there */
    size_t class_room, dense_room; /* most blocks of a group */
    size_t group, count, restored; /* index of its first block */
    bool grouped;                  /* it is there */
    uint64_t at;
    struct sfc_log_commit commit; /* of the last step gone through */
    struct sfc_log_commit newest; /* of the run, which the log may not have yet */
    /* owned by the tasks while one is on its way */
    struct sfc_backend *backend;
    struct sfc_head *head;
    struct sfc_dense *dense;
    size_t body_bytes;            /* of the largest record of the log */
    uint64_t resident, on_device; /* the run's when the pin began */
    struct sfc_replay replay;
    struct sfc_folder *folder; /* to read the log beside its thread */
    void *sums;                /* of a group of dense blocks, packed */
    uint64_t *stamps;          /* [blocks of a group] that its blocks came from */
    float *values;             /* of the largest block */
    float *rates;              /* [step]: momentum mode dense */
    bool has_rates;
};

/* Each takes the call. */
void sfc_pinned_pin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                    const Shardfc__V1__PinStepRequest *request);
void sfc_pinned_unpin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                      const Shardfc__V1__PinStepRequest *request);
/* offset and count are checked already: they lie inside the part at `step`. */
void sfc_pinned_read(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     const Shardfc__V1__ReadBlockRequest *request);

/* The pin that a call names is there, and of this step. SFC_ESTATE says why not. */
int sfc_pinned_check(const struct sfc_shard_run *run, uint64_t pin, uint64_t step,
                     struct sfc_error *err);

/* A commit is applied. */
void sfc_pinned_applied(struct sfc_shard_run *run);
/* Steps up to this may be deleted from the log as far as the pin is concerned. */
uint64_t sfc_pinned_floor(const struct sfc_shard_run *run);
/* The log is full: a pin that keeps it so ends. */
void sfc_pinned_give_way(struct sfc_shard_run *run);
/* Blocks are about to come or go. A pin of a step that is applied goes on with those that it began
 * with, but ends with the reason where they get rows (grows); one of a step to come begins anew
 * with the new ones. True: now they may. */
bool sfc_pinned_moves(struct sfc_shard_run *run, bool grows);
/* The map has changed. */
void sfc_pinned_mapped(struct sfc_shard_run *run);
/* Somebody reads the step, or is about to: a shard that leaves the run stays for so long. */
bool sfc_pinned_serves(const struct sfc_shard_run *run);
void sfc_pinned_tick(struct sfc_shard_run *run);
/* The run is being closed: calls that wait are refused, nothing new begins. */
void sfc_pinned_abandon(struct sfc_shard_run *run);
/* On the checkpoint or the snapshot thread, after abandon and after what was on its way to either.
 */
void sfc_pinned_release(struct sfc_shard_run *run);

#endif

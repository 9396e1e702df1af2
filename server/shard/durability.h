/* A run's durability as the loop thread drives it: the inputs of a step are flushed before Ready,
 * the blocks are copied one after another between two commits and written behind the run's back,
 * the log is trimmed, and after a crash everything is brought back.
 *
 *   FLUSH action ----> log thread: commit before it, Prepare, fdatasync ----> FLUSHED event
 *   commit is applied ----> compute thread: copy of the block that is due
 *                     ----> snapshot thread: write it, a piece at a time ----> next block
 *   floor in a heartbeat's answer, or the log is full ----> log thread: delete segments
 *
 * A run that begins from a checkpoint gets a snapshot of every block before its first flush. */
#ifndef SFC_SHARD_DURABILITY_H
#define SFC_SHARD_DURABILITY_H

#include "proto/limits.h"
#include "proto/shardfc.pb-c.h"
#include "server/core/step_fsm.h"
#include "server/durable/sweep.h"
#include "server/shard/compute.h"
#include "server/shard/recovery.h"
#include "server/shard/storage.h"
#include "server/shard/tasks.h"

struct sfc_shard_run;

/* Whose blocks are written that came from another shard: in this order. */
enum sfc_adopter { SFC_ADOPT_MOVE, SFC_ADOPT_HISTORY, SFC_ADOPT_MIRROR, SFC_ADOPTERS };

struct sfc_durability {
    bool on; /* false: --durable off; nothing below is used */
    struct sfc_storage storage;
    struct sfc_recovery recovery;
    bool recovers; /* the blocks come from the disk */
    /* flush: one at a time */
    struct sfc_task flush_task;
    struct sfc_log_prepare prepare;
    const float **features;       /* [micro-batches] */
    const double **lse;           /* [micro-batches] */
    struct sfc_log_commit commit; /* goes with the next flush */
    bool has_commit;
    struct sfc_log_commit
        newest; /* the same, for ReadStep; step 0: none since the run was opened */
    uint64_t flushed_bytes;
    bool flush_waits; /* for the base, or for settling, or for ever: finishing */
    bool base_missing;
    /* going back: after a recovery the disk may have later steps than the run, which it gave up.
     * They stay until the first plan says that it is so, and are gone before the first flush. */
    uint64_t asked_window, window; /* steps before the present one that the disk must lead to */
    uint64_t horizon;              /* of the copy at work */
    bool unsettled, settling;
    uint64_t back_until;            /* no trim (loop thread) */
    uint64_t kept_back, kept_until; /* snapshots up to this one keep what leads to kept_back
                                       (snapshot thread; 0: nothing) */
    /* durable_every: steps after this one may be taken back by a crash */
    uint64_t durable_every, durable_step, committing;
    bool provisional; /* of the flush at work */
    bool finishing;   /* the shard ends: see sfc_durability_finish */
    atomic_bool lost; /* the disk failed: only what is on it says where the run can go on */
    struct sfc_task here_task;
    bool made_durable; /* here_task is at work */
    struct sfc_task settle_task;
    /* snapshots: one at a time */
    struct sfc_sweep sweep;
    bool sweeps, copying;
    bool paced;   /* the next piece waits for the tick */
    size_t index; /* of the block at work */
    struct sfc_snapshot_key key;
    struct sfc_snapshot_shape shape;
    void *staging;
    void *parts[SFC_SNAPSHOT_PARTS]; /* in staging */
    struct sfc_snapshot_write *write;
    uint64_t piece;
    bool written;
    uint64_t written_floor, written_oldest, oldest_from;
    unsigned list, written_list, look_list; /* how often the blocks have changed; when a write
                                               began, or a look */
    struct sfc_compute_job copy_job;
    struct sfc_task write_task;
    /* blocks that came from another shard: written before those that are due */
    struct sfc_adoption {
        bool wanted;
        struct sfc_snapshot_key key;
        struct sfc_snapshot_shape shape;
        void *parts[SFC_SNAPSHOT_PARTS];
        void (*done)(struct sfc_shard_run *run, int code, const char *text);
    } adoptions[SFC_ADOPTERS];
    struct sfc_adoption *adopting; /* that is being written; NULL: none */
    struct sfc_task list_task, dense_task;
    struct sfc_dense_set list_then; /* of list_task */
    void (*list_kept)(struct sfc_shard_run *run, int code, const char *text);
    struct sfc_log_geometry dense_geometry; /* of dense_task */
    struct sfc_task drop_task;
    bool dropping;   /* the snapshots of blocks that have left */
    bool drop_again; /* others have left meanwhile */
    /* trim: one at a time */
    struct sfc_task trim_task;
    bool trimming;
    uint64_t trim_floor, trimmed, trimmed_bytes;
    /* the lowest step is looked for again after a trim */
    struct sfc_task look_task;
    bool looking;
    uint64_t look_from, look_oldest;
    /* life */
    struct sfc_task fence_task, open_task, close_task;
    struct sfc_compute_job recover_job;
    bool remove; /* close_task removes the folder */
    /* what status says */
    uint64_t floor, log_bytes;
    uint64_t oldest; /* the lowest step that the disk leads to */
    char log_error[SFC_LIMIT_ERROR_TEXT], snapshot_error[SFC_LIMIT_ERROR_TEXT];
    uint64_t step_ns; /* compute time of the present step */
};

/* SFC_EINVAL: too many, or not ascending. */
int sfc_durability_take_returns(const Shardfc__V1__OpenRunRequest *request, struct sfc_lineage *out,
                                struct sfc_error *err);
/* SFC_EUNSUPPORTED: to be recovered, but --durable is off. */
int sfc_durability_init(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *request,
                        struct sfc_error *err);
void sfc_durability_free(struct sfc_shard_run *run);

/* After the blocks are allocated: opens the storage, recovers; then `opened` on the loop thread,
 * unless the run was closed meanwhile. */
void sfc_durability_open(struct sfc_shard_run *run,
                         void (*opened)(struct sfc_shard_run *run, int code, const char *text));
/* After the last compute job of a closed run: `closed` when the files are closed (and removed). */
void sfc_durability_close(struct sfc_shard_run *run, void (*closed)(struct sfc_shard_run *run));
/* Makes a recovery at work end soon. */
void sfc_durability_abandon(struct sfc_shard_run *run);

/* A shard that ends well leaves every block on the disk as it is after one step, so that the next
 * start needs no logged step, which another version might compute with other bits. From the first
 * call on no step passes that begins where the run may stop. Ask again until it is DONE or FAILED.
 */
enum sfc_finish {
    SFC_FINISH_WAITS,  /* for the end of a step that may be committed, or whose predecessors aren't
                          durable */
    SFC_FINISH_WRITES, /* blocks, as fast as the disk goes */
    SFC_FINISH_READY,  /* all is written, but Ready was said for the step after it: a Commit of it
                          may come, unless another shard has ended as well */
    SFC_FINISH_DONE,
    SFC_FINISH_FAILED, /* err says why; what was on disk before stays */
};
enum sfc_finish sfc_durability_finish(struct sfc_shard_run *run, struct sfc_error *err);

/* May an open run be brought back to an earlier step? SFC_EUNSUPPORTED: --durable off;
 * SFC_ENOTFOUND says how far back is possible. */
int sfc_durability_may_go_back(const struct sfc_shard_run *run, uint64_t step,
                               struct sfc_error *err);

/* OpenRun found the run where it is to be: what led there is made durable, then `done` on the loop
 * thread unless the run was closed meanwhile. While it is at work another call changes nothing. */
void sfc_durability_make_durable(struct sfc_shard_run *run,
                                 void (*done)(struct sfc_shard_run *run, int code,
                                              const char *text));
/* The disk failed while steps were not durable: the run has to be opened anew. */
bool sfc_durability_lost(const struct sfc_shard_run *run);

/* On the snapshot thread: from now on, until the run is past `until`, no snapshot goes that leads
 * to this step. */
void sfc_durability_keep_back(struct sfc_shard_run *run, uint64_t step, uint64_t until);

/* Carries out a FLUSH action; FLUSHED follows. */
void sfc_durability_flush(struct sfc_shard_run *run, const struct sfc_step_action *a);
/* A COMMIT job begins. */
void sfc_durability_commit(struct sfc_shard_run *run, const struct sfc_step_action *a);
/* A commit is applied. */
void sfc_durability_applied(struct sfc_shard_run *run);
/* The first plan: nobody writes blocks any more, and the step before it is where the run is. */
void sfc_durability_planned(struct sfc_shard_run *run);
/* The blocks of a loaded run are complete: their first snapshots are written now. *kept: every
 * block has one (or nothing is to be kept); ask again until then. SFC_EUNAVAILABLE: the disk
 * refused one; asking again tries again. */
int sfc_durability_keep(struct sfc_shard_run *run, bool *kept, struct sfc_error *err);
void sfc_durability_trim(struct sfc_shard_run *run, uint64_t floor);
/* The pace of writing has room again. */
void sfc_durability_tick(struct sfc_shard_run *run);

/* Writes a snapshot of a block that came from elsewhere, as fast as the disk goes; then `done` on
 * the loop thread, not from in here, unless the run was closed meanwhile. parts: borrowed until
 * then. One at a time of each adopter. One of this step that is there already is as good. */
void sfc_durability_adopt(struct sfc_shard_run *run, enum sfc_adopter who,
                          const struct sfc_snapshot_key *key,
                          const struct sfc_snapshot_shape *shape,
                          void *const parts[SFC_SNAPSHOT_PARTS],
                          void (*done)(struct sfc_shard_run *run, int code, const char *text));
/* Takes it back: false: it is being written, and `done` will come. */
bool sfc_durability_withdraw(struct sfc_shard_run *run, enum sfc_adopter who);
/* Before dense blocks change: the log must be readable afterwards. `then` is borrowed until `done`,
 * on the loop thread, not from in here, unless the run was closed meanwhile. Only while it is on.
 */
void sfc_durability_keep_list(struct sfc_shard_run *run, struct sfc_dense_set then,
                              void (*done)(struct sfc_shard_run *run, int code, const char *text));
/* The run has other blocks from now on (`blocks`: run->class_blocks, run->dense_blocks are others;
 * in every case run->mirrored), at the step that is applied. No snapshot goes by their index
 * meanwhile: the machine is MAPPING. Those of blocks that left are deleted. */
int sfc_durability_change(struct sfc_shard_run *run, bool blocks, struct sfc_error *err);
/* The run has so many classes from now on; sfc_durability_change follows. */
void sfc_durability_grow(struct sfc_shard_run *run, uint64_t classes);
/* Snapshots of blocks that are neither here nor mirrored nor pinned go; while a move stages blocks,
 * at its end. */
void sfc_durability_drop_others(struct sfc_shard_run *run);
/* SetMap is done: a boundary that is durable. */
void sfc_durability_mapped(struct sfc_shard_run *run);
/* Other shards may have what this one's log lacks. Nobody reads from them now. SFC_ENOMEM: nobody
 * any more. */
int sfc_durability_peers(struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                         struct sfc_error *err);
/* Of the commit of this step, if it is the present one; else none. */
struct sfc_attempt sfc_durability_round(const struct sfc_shard_run *run, uint64_t step);

/* The step that the blocks will be at when a job that is submitted now runs. */
uint64_t sfc_durability_stamp(const struct sfc_shard_run *run);

/* Fields of a heartbeat. */
void sfc_durability_report(const struct sfc_shard_run *run, Shardfc__V1__ShardDurability *out);

#endif

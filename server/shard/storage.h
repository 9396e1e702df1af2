/* What a shard keeps on its disk of a run: the step log and the snapshots of its blocks
 * (server/durable), with the list of those blocks.
 *
 * Threads: init and free on the loop thread. Everything else blocks on the disk: one thread at a
 * time for each of log and store; create, open and close while nobody else uses either. Beside the
 * one that uses the log, the thread of the store may ask find_step: so whoever uses `log` holds
 * log_lock meanwhile. */
#ifndef SFC_SHARD_STORAGE_H
#define SFC_SHARD_STORAGE_H

#include <pthread.h>

#include "server/durable/dense_list.h"
#include "server/durable/run_folder.h"
#include "server/durable/snapshot_store.h"
#include "server/durable/step_log.h"
#include "server/run/run_setup.h"
#include "server/shard/dense_sums.h"

struct sfc_storage {
    const char *state; /* --state, borrowed */
    uint64_t run_id;
    uint64_t start_step;
    bool from_seed; /* blocks without a snapshot are as the seed makes them */
    uint64_t log_limit;
    int compression; /* of snapshots: level of zstd, 0: none */
    const struct sfc_run_setup *setup;
    pthread_mutex_t list_lock; /* of the list, beside the loop thread, which alone changes it */
    struct sfc_snapshot_block *blocks; /* class blocks, dense blocks, the history */
    size_t count;
    struct sfc_snapshot_block *mirrored; /* class and dense blocks of other shards whose snapshots
                                            are kept beside; same lock */
    size_t mirrored_count;
    struct sfc_snapshot_block *pinned; /* a pin's: `blocks` as they were when it began; same lock */
    size_t pinned_count;
    struct sfc_step_log_config config; /* geometry: of the present blocks; loop thread */
    struct sfc_log_geometry
        shape; /* the same without dense blocks: of every record, from any thread */
    struct sfc_dense_lists lists; /* sets of dense blocks, the present one too; changed when nobody
                                     goes through steps again */
    uint64_t *former;             /* their digests */
    struct sfc_folder *log_folder, *snapshot_folder;
    pthread_mutex_t log_lock;
    struct sfc_step_log *log; /* NULL: not open, or not scanned yet */
    struct sfc_snapshot_store *store;
};

struct sfc_storage_config {
    const char *state;
    uint64_t run_id, nonce;
    uint64_t start_step;
    bool from_seed;
    uint64_t log_limit; /* --log-limit; 0: a share of the free space when the run began */
    int compression;
    const char *numerics;
    const struct sfc_run_setup *setup;
    const uint64_t *class_blocks, *dense_blocks;
    size_t class_count, dense_count;
    const uint64_t *mirrored_class, *mirrored_dense;
    size_t mirrored_class_count, mirrored_dense_count;
    struct sfc_dense_set logged; /* own and mirrored dense blocks */
    const void *packed_config;
    size_t packed_size;
};

/* SFC_EINVAL: --log-limit holds too few steps of this run. */
int sfc_storage_init(struct sfc_storage *storage, const struct sfc_storage_config *config,
                     struct sfc_error *err);
void sfc_storage_free(struct sfc_storage *storage); /* zeroed is fine; closes first */

/* A fresh run: what is there of it, and of other runs, is removed. */
int sfc_storage_create(struct sfc_storage *storage, struct sfc_error *err);
/* A run that is to be recovered: the store is open then, the log not yet (sfc_step_log_recover).
 * SFC_ENOTFOUND says what to do. */
int sfc_storage_open(struct sfc_storage *storage, struct sfc_error *err);
void sfc_storage_close(struct sfc_storage *storage);
/* After close: the run is over and its folder goes. */
int sfc_storage_remove(struct sfc_storage *storage, struct sfc_error *err);

/* A recovered log; from now on find_step sees it. */
void sfc_storage_set_log(struct sfc_storage *storage, struct sfc_step_log *log);
/* The commit of a step and where its inputs are (unless it says skip), to be read through
 * snapshot_folder (sfc_step_log_read_at). *commit is one that the log may not have yet: it counts
 * if it is of this step. round: what must have been committed; NULL: whichever was.
 * SFC_EUNAVAILABLE: the log is not scanned yet. SFC_ENOTFOUND: it has no such step. */
int sfc_storage_find_step(struct sfc_storage *storage, uint64_t step,
                          const struct sfc_attempt *round, struct sfc_log_commit *commit,
                          struct sfc_log_place_of *place, struct sfc_error *err);
/* The sums of these dense blocks in the record that was read: *sums is the record's, or `room` with
 * those that it has (sfc_dense_sums_cut). SFC_ENOTFOUND: one that is needed came to this shard
 * later; SFC_ECORRUPT: which blocks the record has is not known. */
int sfc_storage_sums(struct sfc_storage *storage, const struct sfc_log_prepare_view *view,
                     uint64_t step, struct sfc_dense_set blocks, const uint64_t *stamps, void *room,
                     const void **sums, struct sfc_error *err);

/* May the seed and all steps take the place of a snapshot? Not where the run began from a
 * checkpoint, and not of a class block that came with a growth or got rows by it. */
bool sfc_storage_from_seed(const struct sfc_storage *storage,
                           const struct sfc_snapshot_block *block);
/* list_lock is held, or it is the loop thread. Is the block as the seed makes it, with all steps of
 * a whole log? Of a dense block only if it was here from the beginning, so that the log has its
 * gradients. */
bool sfc_storage_seeds(const struct sfc_storage *storage, const struct sfc_snapshot_block *block);

/* Dense blocks come or go: the new set is written down (log thread), then steps are logged with the
 * new one (loop thread, then log thread). SFC_EINVAL: --log-limit holds too few such steps. */
int sfc_storage_check_dense(const struct sfc_storage *storage, struct sfc_dense_set blocks,
                            struct sfc_error *err);
int sfc_storage_keep_list(struct sfc_storage *storage, struct sfc_dense_set blocks,
                          struct sfc_error *err);
int sfc_storage_set_dense(struct sfc_storage *storage, struct sfc_dense_set blocks,
                          struct sfc_error *err);
void sfc_storage_log_dense(struct sfc_storage *storage, const struct sfc_log_geometry *geometry);

/* Other blocks from now on; was[i]: the index that block i had, SIZE_MAX: it is new. was has room
 * for class_count + dense_count + 1. Loop thread; nobody else uses the list but floor, oldest and
 * has. */
int sfc_storage_change(struct sfc_storage *storage, const uint64_t *class_blocks,
                       size_t class_count, const uint64_t *dense_blocks, size_t dense_count,
                       size_t *was, struct sfc_error *err);
/* Likewise those that are mirrored. */
int sfc_storage_set_mirrored(struct sfc_storage *storage, const uint64_t *class_blocks,
                             size_t class_count, const uint64_t *dense_blocks, size_t dense_count,
                             struct sfc_error *err);
/* All of some blocks, in the order of a list; *out is to be freed. */
int sfc_storage_list(const struct sfc_storage *storage, const uint64_t *class_blocks,
                     size_t class_count, const uint64_t *dense_blocks, size_t dense_count,
                     struct sfc_snapshot_block **out, size_t *count, struct sfc_error *err);
/* Snapshots of the blocks of now stay until unpin, also of those that leave. Loop thread. */
int sfc_storage_pin(struct sfc_storage *storage, struct sfc_error *err);
void sfc_storage_unpin(struct sfc_storage *storage);
/* Is it neither own nor mirrored? */
bool sfc_storage_lacks(struct sfc_storage *storage, const struct sfc_snapshot_block *block);
bool sfc_storage_has(struct sfc_storage *storage, enum sfc_snapshot_kind kind, uint64_t block);
/* Snapshot thread: deletes the snapshots of all blocks that are neither own nor mirrored nor
 * pinned, and those of a block that has grown, or was to grow, with other rows than it has. */
int sfc_storage_keep_only(struct sfc_storage *storage, struct sfc_error *err);

/* Shape of a block's snapshot of this step. */
void sfc_storage_shape(const struct sfc_storage *storage, size_t index, uint64_t step,
                       struct sfc_snapshot_shape *out);
/* UINT64_MAX: there are no blocks, and no log is needed. */
uint64_t sfc_storage_floor(struct sfc_storage *storage);
/* The lowest step that snapshots and a log of the steps after log_from lead to. */
uint64_t sfc_storage_oldest(struct sfc_storage *storage, uint64_t log_from);

#endif

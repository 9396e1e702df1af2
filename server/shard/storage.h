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

#include "server/durable/run_folder.h"
#include "server/durable/snapshot_store.h"
#include "server/durable/step_log.h"
#include "server/run/run_setup.h"

struct sfc_storage {
    const char *state; /* --state, borrowed */
    uint64_t run_id;
    uint64_t start_step;
    bool from_seed; /* blocks without a snapshot are as the seed makes them */
    uint64_t log_limit;
    int compression; /* of snapshots: level of zstd, 0: none */
    const struct sfc_run_setup *setup;
    struct sfc_snapshot_block *blocks; /* class blocks, dense blocks, the history */
    size_t count;
    struct sfc_step_log_config config;
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
/* Bytes of the inputs of a step. */
size_t sfc_storage_body_bytes(const struct sfc_storage *storage);

/* Shape of a block's snapshot of this step. */
void sfc_storage_shape(const struct sfc_storage *storage, size_t index, uint64_t step,
                       struct sfc_snapshot_shape *out);
uint64_t sfc_storage_floor(const struct sfc_storage *storage);
/* The lowest step that snapshots and a log of the steps after log_from lead to. */
uint64_t sfc_storage_oldest(const struct sfc_storage *storage, uint64_t log_from);

#endif

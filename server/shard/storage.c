#include "server/shard/storage.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/durable/log_limit.h"

#define DISK_RESERVE (UINT64_C(256) << 20) /* what the log leaves free for everybody else */

static bool is_dense_mode(const struct sfc_run_setup *setup)
{
    return setup->head.momentum_mode == SFC_MOMENTUM_DENSE;
}

static int take_blocks(struct sfc_storage *s, const struct sfc_storage_config *c,
                       struct sfc_error *err)
{
    s->blocks = calloc(c->class_count + c->dense_count + 1, sizeof *s->blocks);
    if (!s->blocks)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", c->class_count + c->dense_count);
    for (size_t i = 0; i < c->class_count; i++)
        s->blocks[s->count++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_CLASS, c->class_blocks[i]};
    for (size_t i = 0; i < c->dense_count; i++)
        s->blocks[s->count++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_DENSE, c->dense_blocks[i]};
    if (is_dense_mode(c->setup))
        s->blocks[s->count++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_HISTORY, 0};
    return SFC_OK;
}

int sfc_storage_init(struct sfc_storage *storage, const struct sfc_storage_config *c,
                     struct sfc_error *err)
{
    struct sfc_storage s = {.state = c->state,
                            .run_id = c->run_id,
                            .start_step = c->start_step,
                            .from_seed = c->from_seed,
                            .log_limit = c->log_limit,
                            .compression = c->compression,
                            .setup = c->setup};
    s.config.geometry = (struct sfc_log_geometry){
        .batch = c->setup->head.batch,
        .micro_batch = c->setup->head.micro_batch,
        .dim = c->setup->head.dim,
        .dense_floats = sfc_run_dense_floats(c->setup, c->dense_blocks, c->dense_count),
        .dense_halves =
            sfc_dense_packing_of(&c->setup->dense, c->dense_blocks, c->dense_count).halves,
        .dense_blocks = sfc_log_blocks_digest(c->dense_blocks, c->dense_count),
    };
    s.config.reserve_bytes = DISK_RESERVE;
    int code = sfc_step_log_check_limit(&s.config.geometry, s.log_limit, err);
    if (code == SFC_OK)
        code = sfc_run_identity_init(&s.config.identity, c->run_id, c->nonce, c->packed_config,
                                     c->packed_size, c->numerics, err);
    if (code == SFC_OK)
        code = take_blocks(&s, c, err);
    if (code != SFC_OK) {
        free(s.blocks);
        return code;
    }
    *storage = s;
    pthread_mutex_init(&storage->log_lock, NULL);
    return SFC_OK;
}

void sfc_storage_free(struct sfc_storage *storage)
{
    if (!storage->blocks)
        return;
    sfc_storage_close(storage);
    pthread_mutex_destroy(&storage->log_lock);
    free(storage->blocks);
    memset(storage, 0, sizeof *storage);
}

void sfc_storage_close(struct sfc_storage *storage)
{
    struct sfc_step_log *log = storage->log;
    sfc_storage_set_log(storage, NULL);
    sfc_step_log_close(log);
    sfc_snapshot_store_close(storage->store);
    sfc_folder_close(storage->log_folder);
    sfc_folder_close(storage->snapshot_folder);
    storage->store = NULL;
    storage->log_folder = storage->snapshot_folder = NULL;
}

void sfc_storage_set_log(struct sfc_storage *s, struct sfc_step_log *log)
{
    pthread_mutex_lock(&s->log_lock);
    s->log = log;
    pthread_mutex_unlock(&s->log_lock);
}

/* Two objects of one folder: log and store are used by two threads. */
static int open_folders(struct sfc_storage *s, bool create, struct sfc_error *err)
{
    int code = sfc_run_folder_open(s->state, s->run_id, create, &s->log_folder, err);
    if (code == SFC_OK)
        code = sfc_run_folder_open(s->state, s->run_id, false, &s->snapshot_folder, err);
    if (code == SFC_OK)
        code = sfc_snapshot_store_open(s->snapshot_folder, &s->config.identity, &s->store, err);
    if (code == SFC_OK)
        code = sfc_snapshot_store_compress(s->store, s->compression, err);
    return code;
}

/* --log-limit, or a share of what is free now. */
static int first_limit(struct sfc_storage *s, struct sfc_error *err)
{
    uint64_t space = 0;
    s->config.limit_bytes = s->log_limit;
    if (s->log_limit)
        return SFC_OK;
    int code = s->log_folder->ops->free_space(s->log_folder, &space, err);
    s->config.limit_bytes = sfc_step_log_default_limit(&s->config.geometry, space);
    return code;
}

/* --log-limit, or what the run was opened with: by now the disk may be full of its own log. */
static int limit_again(struct sfc_storage *s, struct sfc_error *err)
{
    struct sfc_error why = {0};
    uint64_t limit = 0;
    if (s->log_limit)
        return first_limit(s, err);
    int code = sfc_log_limit_load(s->log_folder, &s->config.identity, &limit, &why);
    if (code == SFC_OK)
        code = sfc_step_log_check_limit(&s->config.geometry, limit, &why);
    if (code == SFC_OK) {
        s->config.limit_bytes = limit;
        return SFC_OK;
    }
    if (code == SFC_ESTALE) /* and so is everything beside it */
        return sfc_fail(err, code, "%s", why.text);
    code = first_limit(s, err);
    if (code != SFC_OK)
        return code;
    struct sfc_error unkept;
    bool kept = sfc_log_limit_store(s->log_folder, &s->config.identity, s->config.limit_bytes,
                                    &unkept) == SFC_OK;
    sfc_warning_log("run %" PRIu64 ": the log limit that the run began with is lost: %s; it is "
                    "a share of the present free space now, %" PRIu64 " bytes (--log-limit)%s%s",
                    s->run_id, why.text, s->config.limit_bytes,
                    kept ? "" : ", and can't be kept: ", kept ? "" : unkept.text);
    return SFC_OK;
}

int sfc_storage_create(struct sfc_storage *s, struct sfc_error *err)
{
    bool existed = false;
    unsigned others = 0;
    struct sfc_step_log *log = NULL;
    int code = sfc_run_folder_remove_others(s->state, s->run_id, &others, err);
    if (code == SFC_OK)
        code = sfc_run_folder_remove(s->state, s->run_id, &existed, err);
    if (code == SFC_OK && (existed || others))
        sfc_info_log("--state %s: removed the log and snapshots of %u older runs", s->state,
                     others + existed);
    if (code == SFC_OK)
        code = open_folders(s, true, err);
    if (code == SFC_OK)
        code = first_limit(s, err);
    if (code == SFC_OK)
        code = sfc_log_limit_store(s->log_folder, &s->config.identity, s->config.limit_bytes, err);
    if (code == SFC_OK)
        code = sfc_step_log_create(s->log_folder, &s->config, &log, err);
    if (code == SFC_OK)
        sfc_storage_set_log(s, log);
    else
        sfc_storage_close(s);
    return code;
}

int sfc_storage_open(struct sfc_storage *s, struct sfc_error *err)
{
    int code = open_folders(s, false, err);
    if (code == SFC_ENOTFOUND)
        code = sfc_fail(err, SFC_ENOTFOUND,
                        "--state %s has nothing of run %" PRIu64
                        ": start the shard with the folder that it had; if that is lost, stop the "
                        "run (shardfc stop) and restore its last checkpoint (shardfc restore)",
                        s->state, s->run_id);
    if (code == SFC_OK)
        code = limit_again(s, err);
    if (code != SFC_OK)
        sfc_storage_close(s);
    return code;
}

int sfc_storage_remove(struct sfc_storage *s, struct sfc_error *err)
{
    return sfc_run_folder_remove(s->state, s->run_id, NULL, err);
}

static int find_step(struct sfc_storage *s, uint64_t step, const struct sfc_attempt *round,
                     struct sfc_log_commit *commit, struct sfc_log_place_of *place,
                     struct sfc_error *err)
{
    int code = SFC_OK;
    if (!s->log)
        return sfc_fail(err, SFC_EUNAVAILABLE, "this shard has not read its own log yet");
    if (commit->step != step)
        code = sfc_step_log_commit_of(s->log, step, commit, err);
    if (code == SFC_OK && round && sfc_attempt_compare(*round, commit->round) != 0)
        code = sfc_fail(err, SFC_ENOTFOUND,
                        "round %" PRIu64 ".%" PRIu64 " of step %" PRIu64
                        " was committed here, not round %" PRIu64 ".%" PRIu64,
                        commit->round.incarnation, commit->round.counter, step, round->incarnation,
                        round->counter);
    if (code == SFC_OK && commit->apply)
        code = sfc_step_log_find(s->log, step, commit->round, place, err);
    return code;
}

int sfc_storage_find_step(struct sfc_storage *s, uint64_t step, const struct sfc_attempt *round,
                          struct sfc_log_commit *commit, struct sfc_log_place_of *place,
                          struct sfc_error *err)
{
    pthread_mutex_lock(&s->log_lock);
    int code = find_step(s, step, round, commit, place, err);
    pthread_mutex_unlock(&s->log_lock);
    return code;
}

size_t sfc_storage_body_bytes(const struct sfc_storage *s)
{
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(&s->config.geometry, &layout);
    return (size_t)layout.size;
}

void sfc_storage_shape(const struct sfc_storage *s, size_t index, uint64_t step,
                       struct sfc_snapshot_shape *out)
{
    const struct sfc_snapshot_block *b = &s->blocks[index];
    struct sfc_snapshot_shape shape = {.dtype = SFC_SNAPSHOT_F32, .dim = 1};
    bool adamw = s->setup->head.optimizer == SFC_OPTIMIZER_ADAMW;
    shape.has[SFC_SNAPSHOT_VALUES] = true;
    shape.has[SFC_SNAPSHOT_MOMENTUM] = b->kind != SFC_SNAPSHOT_HISTORY;
    shape.has[SFC_SNAPSHOT_SECOND_MOMENT] = adamw && b->kind != SFC_SNAPSHOT_HISTORY;
    switch (b->kind) {
    case SFC_SNAPSHOT_CLASS:
        shape.rows = sfc_head_block_rows(&s->setup->head, b->block);
        shape.dim = s->setup->head.dim;
        shape.has[SFC_SNAPSHOT_LAST_STEP] = is_dense_mode(s->setup);
        if (s->setup->head.dtype == SFC_DTYPE_BF16)
            shape.dtype = SFC_SNAPSHOT_BF16;
        break;
    case SFC_SNAPSHOT_DENSE:
        shape.rows = sfc_run_dense_length(s->setup, b->block);
        break;
    case SFC_SNAPSHOT_HISTORY:
        shape.rows = step;
        break;
    }
    *out = shape;
}

uint64_t sfc_storage_floor(const struct sfc_storage *s)
{
    return sfc_snapshot_store_floor(s->store, s->blocks, s->count, s->start_step);
}

uint64_t sfc_storage_oldest(const struct sfc_storage *s, uint64_t log_from)
{
    return sfc_snapshot_store_oldest(s->store, s->blocks, s->count, s->start_step, s->from_seed,
                                     log_from);
}

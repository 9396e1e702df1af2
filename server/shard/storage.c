#include "server/shard/storage.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/durable/log_limit.h"
#include "server/shard/block_copy.h"

#define DISK_RESERVE (UINT64_C(256) << 20) /* what the log leaves free for everybody else */

static bool is_dense_mode(const struct sfc_run_setup *setup)
{
    return setup->head.momentum_mode == SFC_MOMENTUM_DENSE;
}

/* By kind, then ascending. *out: SFC_ENOMEM, or to be freed. */
static int list_blocks(bool history, const uint64_t *class_blocks, size_t class_count,
                       const uint64_t *dense_blocks, size_t dense_count,
                       struct sfc_snapshot_block **out, size_t *count, struct sfc_error *err)
{
    size_t n = 0;
    struct sfc_snapshot_block *list = calloc(class_count + dense_count + 1, sizeof *list);
    if (!list)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", class_count + dense_count);
    for (size_t i = 0; i < class_count; i++)
        list[n++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_CLASS, class_blocks[i]};
    for (size_t i = 0; i < dense_count; i++)
        list[n++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_DENSE, dense_blocks[i]};
    if (history)
        list[n++] = (struct sfc_snapshot_block){SFC_SNAPSHOT_HISTORY, 0};
    *out = list;
    *count = n;
    return SFC_OK;
}

static struct sfc_log_geometry geometry_of(const struct sfc_run_setup *setup,
                                           struct sfc_dense_set dense)
{
    return (struct sfc_log_geometry){
        .batch = setup->head.batch,
        .micro_batch = setup->head.micro_batch,
        .dim = setup->head.dim,
        .dense_floats = sfc_run_dense_floats(setup, dense.blocks, dense.count),
        .dense_halves = sfc_dense_packing_of(&setup->dense, dense.blocks, dense.count).halves,
        .dense_blocks = sfc_log_blocks_digest(dense.blocks, dense.count),
    };
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
    s.config.geometry = geometry_of(c->setup, c->logged);
    s.shape = geometry_of(c->setup, (struct sfc_dense_set){0});
    s.config.reserve_bytes = DISK_RESERVE;
    int code = sfc_step_log_check_limit(&s.config.geometry, s.log_limit, err);
    if (code == SFC_OK)
        code = sfc_run_identity_init(&s.config.identity, c->run_id, c->nonce, c->packed_config,
                                     c->packed_size, c->numerics, err);
    if (code == SFC_OK)
        code = list_blocks(is_dense_mode(c->setup), c->class_blocks, c->class_count,
                           c->dense_blocks, c->dense_count, &s.blocks, &s.count, err);
    if (code == SFC_OK)
        code = list_blocks(false, c->mirrored_class, c->mirrored_class_count, c->mirrored_dense,
                           c->mirrored_dense_count, &s.mirrored, &s.mirrored_count, err);
    if (code == SFC_OK)
        code = sfc_dense_lists_add(&s.lists, c->logged.blocks, c->logged.count, err);
    if (code != SFC_OK) {
        free(s.blocks);
        free(s.mirrored);
        return code;
    }
    *storage = s;
    pthread_mutex_init(&storage->log_lock, NULL);
    pthread_mutex_init(&storage->list_lock, NULL);
    return SFC_OK;
}

void sfc_storage_free(struct sfc_storage *storage)
{
    if (!storage->blocks)
        return;
    sfc_storage_close(storage);
    pthread_mutex_destroy(&storage->log_lock);
    pthread_mutex_destroy(&storage->list_lock);
    free(storage->blocks);
    free(storage->mirrored);
    free(storage->pinned);
    free(storage->former);
    sfc_dense_lists_free(&storage->lists);
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

/* Which dense blocks the log's steps are of: known before there are any, because the shard may be
 * opened with others at any time from then on. */
static int keep_own_list(struct sfc_storage *s, struct sfc_error *err)
{
    const struct sfc_dense_list *own =
        sfc_dense_lists_find(&s->lists, s->config.geometry.dense_blocks);
    return s->setup->dense_blocks > 0 ? sfc_dense_list_store(s->log_folder, &s->config.identity,
                                                             own->blocks, own->count, err)
                                      : SFC_OK;
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
        code = keep_own_list(s, err);
    if (code == SFC_OK)
        code = sfc_step_log_create(s->log_folder, &s->config, &log, err);
    if (code == SFC_OK)
        sfc_storage_set_log(s, log);
    else
        sfc_storage_close(s);
    return code;
}

/* What the log's segments may be of. */
static int load_lists(struct sfc_storage *s, struct sfc_error *err)
{
    struct sfc_dense_lists lists = {0};
    char loud[256];
    int code = sfc_dense_lists_load(s->log_folder, &s->config.identity, &lists, loud, err);
    bool kept = sfc_dense_lists_find(&lists, s->config.geometry.dense_blocks);
    if (code == SFC_OK && !kept)
        code = keep_own_list(s, err);
    if (code == SFC_OK && loud[0])
        sfc_warning_log("run %" PRIu64 ": %s; should a recovery need steps of before the blocks "
                        "changed, it refuses: put back a copy of the file, or restore a checkpoint",
                        s->run_id, loud);
    for (size_t i = 0; code == SFC_OK && i < lists.count; i++)
        code = sfc_dense_lists_add(&s->lists, lists.items[i].blocks, lists.items[i].count, err);
    sfc_dense_lists_free(&lists);
    uint64_t *former = code == SFC_OK ? calloc(s->lists.count + 1, sizeof *former) : NULL;
    if (code == SFC_OK && !former)
        code = sfc_fail(err, SFC_ENOMEM, "no memory for lists of blocks");
    if (code != SFC_OK)
        return code;
    for (size_t i = 0; i < s->lists.count; i++)
        former[i] = s->lists.items[i].digest;
    free(s->former);
    s->former = former;
    s->config.former = former;
    s->config.former_count = s->lists.count;
    return SFC_OK;
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
        code = load_lists(s, err);
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

/* ---- dense blocks of a step */

int sfc_storage_sums(struct sfc_storage *s, const struct sfc_log_prepare_view *view, uint64_t step,
                     struct sfc_dense_set blocks, const uint64_t *stamps, void *room,
                     const void **sums, struct sfc_error *err)
{
    *sums = view->dense;
    if (view->dense_blocks == sfc_log_blocks_digest(blocks.blocks, blocks.count))
        return SFC_OK;
    pthread_mutex_lock(&s->list_lock); /* the array may grow; the lists stay */
    const struct sfc_dense_list *list = sfc_dense_lists_find(&s->lists, view->dense_blocks);
    struct sfc_dense_set from = {list ? list->blocks : NULL, list ? list->count : 0};
    pthread_mutex_unlock(&s->list_lock);
    size_t missed =
        sfc_dense_sums_cut(&s->setup->dense, from, view->dense, blocks, stamps, step, room);
    *sums = room;
    if (missed == blocks.count)
        return SFC_OK;
    return sfc_fail(err, list ? SFC_ENOTFOUND : SFC_ECORRUPT,
                    "the backbone gradient of dense block %" PRIu64 " (snapshot of step %" PRIu64
                    ") is not in this shard's log: %s",
                    blocks.blocks[missed], stamps[missed],
                    list ? "the block came here later"
                         : "which blocks the record has is not known any more");
}

int sfc_storage_check_dense(const struct sfc_storage *s, struct sfc_dense_set blocks,
                            struct sfc_error *err)
{
    struct sfc_log_geometry geometry = geometry_of(s->setup, blocks);
    int code = sfc_log_geometry_check(&geometry, err);
    return code == SFC_OK ? sfc_step_log_check_limit(&geometry, s->config.limit_bytes, err) : code;
}

int sfc_storage_keep_list(struct sfc_storage *s, struct sfc_dense_set blocks, struct sfc_error *err)
{
    return sfc_dense_list_store(s->log_folder, &s->config.identity, blocks.blocks, blocks.count,
                                err);
}

int sfc_storage_set_dense(struct sfc_storage *s, struct sfc_dense_set blocks, struct sfc_error *err)
{
    pthread_mutex_lock(&s->list_lock);
    int code = sfc_dense_lists_add(&s->lists, blocks.blocks, blocks.count, err);
    pthread_mutex_unlock(&s->list_lock);
    if (code == SFC_OK)
        s->config.geometry = geometry_of(s->setup, blocks);
    return code;
}

void sfc_storage_log_dense(struct sfc_storage *s, const struct sfc_log_geometry *geometry)
{
    pthread_mutex_lock(&s->log_lock);
    sfc_step_log_set_geometry(s->log, geometry);
    pthread_mutex_unlock(&s->log_lock);
}

void sfc_storage_shape(const struct sfc_storage *s, size_t index, uint64_t step,
                       struct sfc_snapshot_shape *out)
{
    sfc_block_shape(s->setup, &s->blocks[index], step, out);
}

uint64_t sfc_storage_floor(struct sfc_storage *s)
{
    pthread_mutex_lock(&s->list_lock);
    uint64_t floor = s->count
                         ? sfc_snapshot_store_floor(s->store, s->blocks, s->count, s->start_step)
                         : UINT64_MAX;
    pthread_mutex_unlock(&s->list_lock);
    return floor;
}

uint64_t sfc_storage_oldest(struct sfc_storage *s, uint64_t log_from)
{
    uint64_t oldest = s->start_step;
    pthread_mutex_lock(&s->list_lock);
    for (size_t i = 0; i < s->count; i++) {
        bool seed = sfc_storage_seeds(s, &s->blocks[i]);
        uint64_t own =
            sfc_snapshot_store_oldest(s->store, &s->blocks[i], 1, s->start_step, seed, log_from);
        oldest = own > oldest ? own : oldest;
    }
    pthread_mutex_unlock(&s->list_lock);
    return oldest;
}

bool sfc_storage_from_seed(const struct sfc_storage *s, const struct sfc_snapshot_block *block)
{
    return s->from_seed &&
           (block->kind != SFC_SNAPSHOT_CLASS || !sfc_run_block_grew(s->setup, block->block));
}

bool sfc_storage_seeds(const struct sfc_storage *s, const struct sfc_snapshot_block *block)
{
    bool always = sfc_storage_from_seed(s, block);
    for (size_t i = 0; block->kind == SFC_SNAPSHOT_DENSE && i < s->lists.count; i++) {
        const struct sfc_dense_list *list = &s->lists.items[i];
        bool has = false;
        for (size_t k = 0; k < list->count && !has; k++)
            has = list->blocks[k] == block->block;
        always = always && has;
    }
    return always;
}

/* ---- blocks come and go */

static size_t find_block(const struct sfc_storage *s, const struct sfc_snapshot_block *block)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->blocks[i].kind == block->kind && s->blocks[i].block == block->block)
            return i;
    return SIZE_MAX;
}

bool sfc_storage_has(struct sfc_storage *s, enum sfc_snapshot_kind kind, uint64_t block)
{
    const struct sfc_snapshot_block wanted = {kind, block};
    pthread_mutex_lock(&s->list_lock);
    bool has = find_block(s, &wanted) != SIZE_MAX;
    pthread_mutex_unlock(&s->list_lock);
    return has;
}

int sfc_storage_change(struct sfc_storage *s, const uint64_t *class_blocks, size_t class_count,
                       const uint64_t *dense_blocks, size_t dense_count, size_t *was,
                       struct sfc_error *err)
{
    struct sfc_snapshot_block *list = NULL, *old = s->blocks;
    size_t count = 0, at = 0;
    int code = list_blocks(is_dense_mode(s->setup), class_blocks, class_count, dense_blocks,
                           dense_count, &list, &count, err);
    if (code != SFC_OK)
        return code;
    for (size_t i = 0; i < count; i++) { /* both are in order */
        while (at < s->count && (old[at].kind < list[i].kind ||
                                 (old[at].kind == list[i].kind && old[at].block < list[i].block)))
            at++;
        bool same = at < s->count && old[at].kind == list[i].kind && old[at].block == list[i].block;
        was[i] = same ? at : SIZE_MAX;
    }
    pthread_mutex_lock(&s->list_lock);
    s->blocks = list;
    s->count = count;
    pthread_mutex_unlock(&s->list_lock);
    free(old);
    return SFC_OK;
}

int sfc_storage_list(const struct sfc_storage *s, const uint64_t *class_blocks, size_t class_count,
                     const uint64_t *dense_blocks, size_t dense_count,
                     struct sfc_snapshot_block **out, size_t *count, struct sfc_error *err)
{
    return list_blocks(is_dense_mode(s->setup), class_blocks, class_count, dense_blocks,
                       dense_count, out, count, err);
}

bool sfc_storage_lacks(struct sfc_storage *s, const struct sfc_snapshot_block *block)
{
    pthread_mutex_lock(&s->list_lock);
    bool has = find_block(s, block) != SIZE_MAX;
    for (size_t i = 0; i < s->mirrored_count && !has; i++)
        has = s->mirrored[i].kind == block->kind && s->mirrored[i].block == block->block;
    pthread_mutex_unlock(&s->list_lock);
    return !has;
}

int sfc_storage_set_mirrored(struct sfc_storage *s, const uint64_t *class_blocks,
                             size_t class_count, const uint64_t *dense_blocks, size_t dense_count,
                             struct sfc_error *err)
{
    struct sfc_snapshot_block *list = NULL, *old = s->mirrored;
    size_t count = 0;
    int code = list_blocks(false, class_blocks, class_count, dense_blocks, dense_count, &list,
                           &count, err);
    if (code != SFC_OK)
        return code;
    pthread_mutex_lock(&s->list_lock);
    s->mirrored = list;
    s->mirrored_count = count;
    pthread_mutex_unlock(&s->list_lock);
    free(old);
    return SFC_OK;
}

static int by_kind(const void *a, const void *b)
{
    const struct sfc_snapshot_block *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return x->block < y->block ? -1 : x->block > y->block;
}

int sfc_storage_pin(struct sfc_storage *s, struct sfc_error *err)
{
    struct sfc_snapshot_block *list = malloc((s->count + 1) * sizeof *list);
    if (!list)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", s->count);
    memcpy(list, s->blocks, s->count * sizeof *list);
    pthread_mutex_lock(&s->list_lock);
    free(s->pinned);
    s->pinned = list;
    s->pinned_count = s->count;
    pthread_mutex_unlock(&s->list_lock);
    return SFC_OK;
}

void sfc_storage_unpin(struct sfc_storage *s)
{
    pthread_mutex_lock(&s->list_lock);
    free(s->pinned);
    s->pinned = NULL;
    s->pinned_count = 0;
    pthread_mutex_unlock(&s->list_lock);
}

int sfc_storage_keep_only(struct sfc_storage *s, struct sfc_error *err)
{
    pthread_mutex_lock(&s->list_lock);
    size_t own = s->count + s->mirrored_count, count = own + s->pinned_count;
    struct sfc_snapshot_block *list = malloc((count + 1) * sizeof *list);
    const struct sfc_run_setup setup = *s->setup;
    if (list) {
        memcpy(list, s->blocks, s->count * sizeof *list);
        memcpy(list + s->count, s->mirrored, s->mirrored_count * sizeof *list);
        if (s->pinned_count)
            memcpy(list + own, s->pinned, s->pinned_count * sizeof *list);
    }
    pthread_mutex_unlock(&s->list_lock);
    if (!list)
        return sfc_fail(err, SFC_ENOMEM, "list of %zu blocks", count);
    qsort(list, count, sizeof *list, by_kind);
    int code = sfc_snapshot_store_keep_only(s->store, list, count, err);
    for (size_t i = 0; code == SFC_OK && i < count; i++) {
        bool grows = list[i].block + 1 == setup.class_blocks; /* it may have been tried */
        if (list[i].kind == SFC_SNAPSHOT_CLASS &&
            (grows || sfc_run_block_grew(&setup, list[i].block)))
            code = sfc_snapshot_store_keep_rows(
                s->store, &list[i], sfc_head_block_rows(&setup.head, list[i].block), err);
    }
    free(list);
    return code;
}

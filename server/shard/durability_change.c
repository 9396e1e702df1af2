/* Blocks come and go while the run goes on. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

void sfc_durability_adopt(struct sfc_shard_run *run, enum sfc_adopter who,
                          const struct sfc_snapshot_key *key,
                          const struct sfc_snapshot_shape *shape,
                          void *const parts[SFC_SNAPSHOT_PARTS],
                          void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_adoption *a = &sfc_durability_of(run)->adoptions[who];
    *a = (struct sfc_adoption){.wanted = true, .key = *key, .shape = *shape, .done = done};
    memcpy(a->parts, parts, sizeof a->parts);
    sfc_durability_kick(run);
}

bool sfc_durability_withdraw(struct sfc_shard_run *run, enum sfc_adopter who)
{
    struct sfc_adoption *a = &sfc_durability_of(run)->adoptions[who];
    bool waiting = a->wanted;
    a->wanted = false;
    return waiting;
}

static int change_sweep(struct sfc_shard_run *run, const size_t *was, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t *bytes = sfc_durability_file_bytes(run, err);
    if (!bytes)
        return SFC_ENOMEM;
    int code = sfc_sweep_change(&d->sweep, bytes, was, d->storage.count, err);
    free(bytes);
    return code;
}

/* The snapshots of the new ones, and where the one at work has gone. */
static void note_change(struct sfc_shard_run *run, const size_t *was)
{
    struct sfc_durability *d = sfc_durability_of(run);
    size_t index = SIZE_MAX;
    for (size_t i = 0; i < d->storage.count; i++) {
        const struct sfc_snapshot_block *b = &d->storage.blocks[i];
        uint64_t stamp = 0;
        if (d->index != SIZE_MAX && was[i] == d->index)
            index = i;
        if (sfc_move_stamp(run, b->kind == SFC_SNAPSHOT_DENSE, b->block, &stamp)) {
            sfc_sweep_stamped(&d->sweep, i, stamp);
            d->floor = stamp < d->floor ? stamp : d->floor;
            if (!sfc_storage_seeds(&d->storage, b)) /* nothing leads to before it came */
                d->oldest = stamp > d->oldest ? stamp : d->oldest;
        }
    }
    d->index = index;
    d->list++;
}

static int drop_others_work(struct sfc_task *task, struct sfc_error *err)
{
    return sfc_storage_keep_only(&sfc_durability_of(task->owner)->storage, err);
}

static void drop_others_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    bool again = d->drop_again;
    d->dropping = d->drop_again = false;
    if (again && !run->closed)
        sfc_durability_drop_others(run);
    if (!run->closed && task->code != SFC_OK) /* the next recovery deletes them */
        sfc_warning_log("run %" PRIu64 ": snapshots of blocks that have left: %s", run->id,
                        task->error.text);
}

void sfc_durability_drop_others(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (sfc_move_stages(run)) /* its end does it */
        return;
    d->drop_again = d->dropping; /* the list may have been read already */
    if (d->dropping)
        return;
    d->dropping = true;
    d->drop_task =
        (struct sfc_task){.work = drop_others_work, .done = drop_others_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->drop_task);
}

void sfc_durability_grow(struct sfc_shard_run *run, uint64_t classes)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (d->on)
        pthread_mutex_lock(&d->storage.list_lock); /* the snapshot thread looks at the setup */
    sfc_run_setup_set_classes(&run->setup, classes);
    if (d->on)
        pthread_mutex_unlock(&d->storage.list_lock);
}

void sfc_durability_mapped(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t applied = sfc_step_applied(&run->fsm);
    if (!d->on)
        return;
    if (run->joins) { /* its log begins behind this step */
        d->trimmed = applied;
        sfc_durability_note_oldest(run, applied, applied);
    }
    run->joins = false;
    d->durable_step = applied;
    sfc_durability_kick(run);
}

static int list_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    return sfc_storage_keep_list(&sfc_durability_of(run)->storage,
                                 sfc_durability_of(run)->list_then, err);
}

static void list_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!run->closed)
        sfc_durability_of(run)->list_kept(run, task->code ? SFC_EUNAVAILABLE : SFC_OK,
                                          task->error.text);
}

void sfc_durability_keep_list(struct sfc_shard_run *run, struct sfc_dense_set then,
                              void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->list_then = then;
    d->list_kept = done;
    d->list_task = (struct sfc_task){.work = list_work, .done = list_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->list_task);
}

static int dense_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    (void)err;
    sfc_storage_log_dense(&d->storage, &d->dense_geometry);
    return SFC_OK;
}

static void dense_done(struct sfc_task *task)
{
    (void)task; /* the next flush is behind it */
}

/* The log goes on with the sums of the dense blocks of now. */
static int change_log(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t before = d->storage.config.geometry.dense_blocks;
    int code = sfc_storage_set_dense(&d->storage, run->mirrored.pushed, err);
    if (code != SFC_OK || d->storage.config.geometry.dense_blocks == before)
        return code;
    d->window = sfc_durability_window(d);
    d->dense_geometry = d->storage.config.geometry;
    d->dense_task = (struct sfc_task){.work = dense_work, .done = dense_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->dense_task);
    return SFC_OK;
}

static int change_blocks(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    size_t *was = calloc(run->class_count + run->dense_count + 1, sizeof *was);
    int code = was ? sfc_storage_change(&d->storage, run->class_blocks, run->class_count,
                                        run->dense_blocks, run->dense_count, was, err)
                   : sfc_fail(err, SFC_ENOMEM, "no memory for the blocks");
    if (code == SFC_OK)
        code = change_sweep(run, was, err);
    if (code == SFC_OK)
        note_change(run, was);
    free(was);
    return code;
}

int sfc_durability_change(struct sfc_shard_run *run, bool blocks, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    const struct sfc_shard_blocks *mirrored = &run->mirrored.blocks;
    if (!d->on)
        return SFC_OK;
    int code = blocks ? change_blocks(run, err) : SFC_OK;
    if (code == SFC_OK)
        code = sfc_storage_set_mirrored(&d->storage, mirrored->class_blocks, mirrored->class_count,
                                        mirrored->dense_blocks, mirrored->dense_count, err);
    if (code == SFC_OK)
        code = change_log(run, err);
    if (code == SFC_OK)
        sfc_durability_drop_others(run);
    return code;
}

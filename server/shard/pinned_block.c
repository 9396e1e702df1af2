/* The block of a pin that is asked for: copied from memory, or made in a group from snapshots and
 * logged steps (pinned.h). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/pinned_parts.h"

static void made(struct sfc_shard_run *run, int code, const struct sfc_error *error)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    p->made = code == SFC_OK;
    p->code = code;
    if (code != SFC_OK)
        p->error = *error;
    sfc_pinned_next_move(run);
}

static void job_made(struct sfc_compute_job *job)
{
    if (sfc_pinned_goes_on(job->owner))
        made(job->owner, job->code, &job->error);
}

static void task_made(struct sfc_task *task)
{
    if (sfc_pinned_goes_on(task->owner))
        made(task->owner, task->code, &task->error);
}

/* Where the parts of the block go. */
static void lay_out(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    bool history = sfc_pinned_block(run, p->index)->kind == SFC_SNAPSHOT_HISTORY;
    float *at = history ? p->rates : p->values;
    sfc_pinned_shape(run, p->index, &p->shape);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        p->parts[i] = p->shape.has[i] ? at : NULL;
        at += sfc_snapshot_part_bytes(&p->shape, (enum sfc_snapshot_part)i) / sizeof *at;
    }
}

static int copy_live_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                          struct sfc_error *err)
{
    struct sfc_shard_run *run = ctx;
    struct sfc_pinned *p = sfc_pinned_of(run);
    return sfc_block_save(head, dense, sfc_pinned_block(run, p->index), &p->shape, p->parts, err);
}

static int copy_made_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    return copy_live_work(run, p->head, p->dense, err);
}

/* Rates of steps that are over don't change, however far the run has come. */
static int rates_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(ctx);
    (void)dense;
    return p->step > 0 ? sfc_head_read_rates(head, 0, p->step, p->rates, err) : SFC_OK;
}

static int new_group_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    bool is_dense = sfc_pinned_block(run, p->group)->kind == SFC_SNAPSHOT_DENSE;
    struct sfc_head_config head = sfc_pinned_head_config(run);
    struct sfc_dense_config dense = sfc_pinned_dense_config(run);
    sfc_pinned_free_group(p);
    return is_dense ? sfc_dense_new(p->backend, &dense,
                                    p->own.dense_blocks + (p->group - p->own.class_count), p->count,
                                    &p->dense, err)
                    : sfc_head_new(p->backend, &head, p->own.class_blocks + p->group, p->count,
                                   &p->head, err);
}

/* One block as its snapshot has it, or as the seed made it. */
static int restore_block(struct sfc_shard_run *run, size_t index, uint64_t *stamp,
                         struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_storage *s = sfc_pinned_storage(run);
    const struct sfc_snapshot_block *block = sfc_pinned_block(run, index);
    struct sfc_snapshot_shape shape;
    struct sfc_snapshot_content content;
    sfc_block_shape(s->setup, block, p->step, &shape);
    int code = sfc_snapshot_store_read(s->store, block->kind, block->block, p->step, &shape,
                                       &content, p->loud, err);
    if ((code == SFC_ENOTFOUND || code == SFC_ECORRUPT) && sfc_storage_from_seed(s, block)) {
        if (code == SFC_ECORRUPT && err)
            snprintf(p->loud, sizeof p->loud, "%.400s; using the seed and the whole log instead",
                     err->text);
        *stamp = s->start_step;
        return SFC_OK;
    }
    if (code != SFC_OK)
        return code;
    *stamp = content.step;
    return sfc_block_restore(p->head, p->dense, block, &shape, &content, err);
}

static int restore_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    uint64_t stamp = 0;
    int code = restore_block(run, p->group + p->restored, &stamp, err);
    if (code != SFC_OK)
        return code;
    p->stamps[p->restored] = stamp;
    p->at = stamp < p->at ? stamp : p->at;
    p->restored++;
    if (p->restored == p->count && p->head && sfc_pinned_keeps_rates(run) && p->at > 0)
        code = sfc_head_write_rates(p->head, 0, p->at, p->rates, err);
    return code;
}

/* Rounds only rise: a commit of an older one than the step before has was given up (rewind). */
static int find_step(struct sfc_shard_run *run, struct sfc_log_place_of *place,
                     struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_attempt before = p->commit.round;
    p->commit = p->newest;
    int code =
        sfc_storage_find_step(sfc_pinned_storage(run), p->at + 1, NULL, &p->commit, place, err);
    if (code == SFC_OK && sfc_attempt_compare(p->commit.round, before) < 0)
        code = sfc_fail(err, SFC_ENOTFOUND,
                        "step %" PRIu64 ": the log has only a commit that was given up", p->at + 1);
    return code;
}

/* The sums of the group, out of those of all dense blocks that were here then. */
static int group_sums(struct sfc_shard_run *run, const struct sfc_log_prepare_view *inputs,
                      const void **sums, struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_dense_set group = {p->own.dense_blocks + (p->group - p->own.class_count), p->count};
    return sfc_storage_sums(sfc_pinned_storage(run), inputs, p->at + 1, group, p->stamps, p->sums,
                            sums, err);
}

static int apply_step_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_log_prepare_view inputs = {0};
    struct sfc_log_place_of place;
    int code = find_step(run, &place, err);
    if (code == SFC_OK && p->commit.apply)
        code = sfc_step_log_read_at(p->folder, &sfc_pinned_storage(run)->shape, &place,
                                    &p->replay.body, &inputs, err);
    if (code == SFC_OK && p->commit.apply && p->dense && !inputs.dense)
        code = sfc_fail(err, SFC_ECORRUPT,
                        "step %" PRIu64 ": the sums of its backbone gradient are lost", p->at + 1);
    const void *sums = NULL;
    if (code == SFC_OK && p->commit.apply && p->dense)
        code = group_sums(run, &inputs, &sums, err);
    if (code == SFC_OK)
        code = sfc_replay_step(&p->replay, p->head, p->dense, &p->commit, &inputs, sums, err);
    p->at += code == SFC_OK;
    return code;
}

static void next_step(struct sfc_shard_run *run);

static void step_applied(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!sfc_pinned_goes_on(run))
        return;
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else
        next_step(run);
}

static void next_step(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (p->at >= p->step) {
        p->grouped = true;
        sfc_pinned_submit(run, run->shard->checkpoint_thread, copy_made_work, task_made);
        return;
    }
    p->newest = run->durability.newest;
    sfc_pinned_submit(run, run->shard->checkpoint_thread, apply_step_work, step_applied);
}

static void block_restored(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!sfc_pinned_goes_on(run))
        return;
    if (p->loud[0])
        sfc_warning_log("run %" PRIu64 ": %s", run->id, p->loud);
    p->loud[0] = 0;
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else if (p->restored < p->count)
        sfc_pinned_submit(run, run->shard->snapshot_thread, restore_work, block_restored);
    else
        next_step(run);
}

static void group_new(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!sfc_pinned_goes_on(run))
        return;
    p->restored = 0;
    p->at = UINT64_MAX;
    p->commit = (struct sfc_log_commit){0};
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else
        sfc_pinned_submit(run, run->shard->snapshot_thread, restore_work, block_restored);
}

/* The block and those behind it of its kind. */
static void new_group(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    bool is_dense = sfc_pinned_block(run, p->index)->kind == SFC_SNAPSHOT_DENSE;
    size_t end = p->own.class_count + (is_dense ? p->own.dense_count : 0);
    size_t room = is_dense ? p->dense_room : p->class_room;
    p->grouped = false;
    p->group = p->index;
    p->count = end - p->index < room ? end - p->index : room;
    sfc_pinned_submit(run, run->shard->checkpoint_thread, new_group_work, group_new);
}

static void rates_read(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!sfc_pinned_goes_on(run))
        return;
    p->has_rates = job->code == SFC_OK;
    if (job->code != SFC_OK || sfc_pinned_block(run, p->index)->kind == SFC_SNAPSHOT_HISTORY)
        made(run, job->code, &job->error);
    else
        new_group(run);
}

void sfc_pinned_make(struct sfc_shard_run *run, size_t index)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    enum sfc_snapshot_kind kind = sfc_pinned_block(run, index)->kind;
    p->index = index;
    p->made = false;
    p->loud[0] = 0;
    lay_out(run);
    if (p->grouped && index >= p->group && index - p->group < p->count)
        sfc_pinned_submit(run, run->shard->checkpoint_thread, copy_made_work, task_made);
    else if (kind != SFC_SNAPSHOT_HISTORY && sfc_durability_stamp(run) == p->step &&
             !run->map_change && sfc_shard_owns(run, sfc_pinned_block(run, index)))
        sfc_pinned_submit_job(run, copy_live_work, job_made);
    else if (sfc_pinned_keeps_rates(run) && !p->has_rates)
        sfc_pinned_submit_job(run, rates_work, rates_read);
    else if (kind == SFC_SNAPSHOT_HISTORY)
        made(run, SFC_OK, NULL);
    else
        new_group(run);
}

/* The snapshots: blocks are copied between two jobs of the compute thread, and written by the
 * snapshot thread, a piece at a time. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

#define PIECE       (UINT64_C(4) << 20) /* most bytes of a snapshot in one go */
#define LEAST_PIECE (UINT64_C(256) << 10)
#define WAIT_MS     20 /* until the pace of writing is asked again */

void sfc_durability_say_error(struct sfc_shard_run *run, char *place, const char *text)
{
    if (strcmp(place, text) && text[0])
        sfc_error_log("run %" PRIu64 ": %s", run->id, text);
    snprintf(place, SFC_LIMIT_ERROR_TEXT, "%s", text);
}

/* A step that begins here does not end before the shard does. */
bool sfc_durability_finish_holds(const struct sfc_shard_run *run)
{
    const struct sfc_durability *d = &run->durability;
    return d->finishing && d->durable_step == sfc_step_applied(&run->fsm);
}

void sfc_durability_release_flush(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->flush_waits || sfc_durability_finish_holds(run))
        return;
    d->flush_waits = false;
    sfc_durability_flush_now(run);
}

/* The base is complete: the flush that waited for it goes on. */
void sfc_durability_base_done(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->base_missing || !sfc_sweep_complete(&d->sweep))
        return;
    d->base_missing = false;
    sfc_sweep_urgent(&d->sweep, false);
    sfc_info_log("run %" PRIu64 ": every block has a snapshot of step %" PRIu64, run->id,
                 d->storage.start_step);
    sfc_durability_release_flush(run);
}

static void adopted(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_durability *d = sfc_durability_of(run);
    struct sfc_adoption *a = d->adopting;
    d->adopting = NULL;
    for (size_t i = 0; code == SFC_OK && i < d->storage.count;
         i++) /* the history; others come with SetMap */
        if (d->storage.blocks[i].kind == a->key.kind && d->storage.blocks[i].block == a->key.block)
            sfc_sweep_stamped(&d->sweep, i, a->key.step);
    a->done(run, code, text);
    sfc_durability_kick(run);
}

static void snapshot_failed(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->copying = false;
    if (d->adopting) {
        adopted(run, code, text);
        return;
    }
    sfc_durability_say_error(run, d->snapshot_error, text);
    if (d->flush_waits) { /* the scheduler asks again, and then the base goes on */
        d->flush_waits = false;
        sfc_durability_flush_end(run, SFC_EUNAVAILABLE, text);
    }
}

static void snapshot_done(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->copying = false;
    if (d->adopting) {
        adopted(run, SFC_OK, "");
        return;
    }
    d->snapshot_error[0] = 0;
    if (d->index < d->storage.count)
        sfc_sweep_stamped(&d->sweep, d->index, d->key.step);
    else /* it has left meanwhile */
        sfc_durability_drop_others(run);
    sfc_durability_base_done(run);
    sfc_durability_make_room(run);
    sfc_durability_kick(run);
}

static int begin_write(struct sfc_durability *d, struct sfc_error *err)
{
    int code = sfc_snapshot_write_begin(d->storage.store, &d->key, &d->shape,
                                        (const void *const *)d->parts, &d->write, err);
    if (code == SFC_OK && d->adopting) /* as many bytes as come, and they are here anyway */
        sfc_snapshot_write_direct(d->write);
    return code;
}

static int write_some(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    int code = SFC_OK;
    d->written = false;
    bool kept = d->key.step <= d->kept_until && d->kept_back < d->horizon;
    sfc_snapshot_store_keep_from(d->storage.store, kept ? d->kept_back : d->horizon);
    if (!d->write)
        code = begin_write(d, err);
    /* a move and a mirror may have copied it at the same step */
    d->written = code == SFC_EEXIST && d->adopting;
    if (d->written)
        code = SFC_OK;
    else if (code == SFC_OK)
        code = sfc_snapshot_write_some(d->write, d->piece, &d->written, err);
    if (code == SFC_OK && !d->written)
        return SFC_OK;
    sfc_snapshot_write_end(d->write);
    d->write = NULL;
    if (code == SFC_OK) {
        d->written_floor = sfc_storage_floor(&d->storage);
        d->written_oldest = sfc_storage_oldest(&d->storage, d->oldest_from);
    }
    return code;
}

static int write_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_lap lap = sfc_shard_lap(run, SFC_THREAD_SNAPSHOTS, run->durability.key.step);
    uint64_t piece = run->durability.piece;
    int code = write_some(task, err);
    sfc_lap_end(&lap, SFC_SPAN_SWEEP, piece);
    return code;
}

static void write_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    if (run->closed)
        return;
    if (task->code != SFC_OK) {
        snapshot_failed(run, task->code, task->error.text);
        return;
    }
    if (!d->adopting)
        sfc_sweep_wrote(&d->sweep, d->piece);
    if (d->written) {
        bool lower = d->written_floor < d->floor; /* of blocks before a change it can't rise */
        d->floor = lower || d->written_list == d->list ? d->written_floor : d->floor;
        bool higher = d->written_oldest > d->oldest; /* likewise it can't fall */
        bool counts = higher || d->written_list == d->list;
        sfc_durability_note_oldest(run, d->oldest_from, counts ? d->written_oldest : d->oldest);
    }
    if (d->written)
        snapshot_done(run);
    else
        sfc_durability_write_piece(run);
}

/* Gives the next piece to the thread, or leaves it to the timer. */
void sfc_durability_write_piece(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t room = d->adopting ? PIECE : sfc_sweep_allowance(&d->sweep, uv_now(run->shard->uv));
    if (room < LEAST_PIECE) {
        d->paced = true;
        sfc_shard_tick_in(run->shard, WAIT_MS);
        return;
    }
    d->piece = room < PIECE ? room : PIECE;
    d->oldest_from = d->trimmed;
    d->written_list = d->list;
    d->write_task = (struct sfc_task){.work = write_work, .done = write_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->write_task);
}

static int copy_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                     struct sfc_error *err)
{
    struct sfc_durability *d = ctx;
    return sfc_block_save(head, dense, &d->storage.blocks[d->index], &d->shape, d->parts, err);
}

static void copy_done(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    if (run->closed)
        return;
    if (job->code != SFC_OK)
        snapshot_failed(run, job->code, job->error.text);
    else
        sfc_durability_write_piece(run);
}

uint64_t sfc_durability_stamp(const struct sfc_shard_run *run)
{
    return sfc_step_applied(&run->fsm) + (run->fsm.phase == SFC_STEP_COMMITTING);
}

/* Of the commit of the present step; none where the run has not committed yet. */
struct sfc_attempt sfc_durability_round(const struct sfc_shard_run *run, uint64_t step)
{
    const struct sfc_durability *d = &run->durability;
    const struct sfc_log_commit *last = &d->recovery.last;
    if (d->newest.step == step)
        return d->newest.round;
    return d->recovery.has_last && last->step == step ? last->round : (struct sfc_attempt){0, 0};
}

static void copy_block(struct sfc_shard_run *run, size_t index)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->copying = true;
    d->index = index;
    d->key = (struct sfc_snapshot_key){
        .kind = d->storage.blocks[index].kind,
        .block = d->storage.blocks[index].block,
        .step = sfc_durability_stamp(run),
        .grown = sfc_block_grown(d->storage.setup, &d->storage.blocks[index])};
    d->key.round = sfc_durability_round(run, d->key.step);
    d->horizon = sfc_durability_horizon(d, d->key.step);
    sfc_storage_shape(&d->storage, index, d->key.step, &d->shape);
    sfc_block_lay_out(&d->shape, d->staging, d->parts);
    d->copy_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = copy_done, .owner = run};
    d->copy_job.u.call.fn = copy_work;
    d->copy_job.u.call.ctx = d;
    d->copy_job.span =
        (struct sfc_span){.phase = SFC_SPAN_COPY, .step = d->key.step, .micro_batch = UINT32_MAX};
    sfc_compute_submit(run->shard->compute, &d->copy_job);
}

static void write_adoption(struct sfc_shard_run *run, struct sfc_adoption *a)
{
    struct sfc_durability *d = sfc_durability_of(run);
    a->wanted = false;
    d->adopting = a;
    d->copying = true;
    d->index = SIZE_MAX;
    d->key = a->key;
    d->shape = a->shape;
    memcpy(d->parts, a->parts, sizeof d->parts);
    d->horizon = sfc_durability_horizon(d, d->key.step);
    sfc_durability_write_piece(run);
}

/* Writes the block that was adopted, or copies the one that is due, if no other is at work. */
void sfc_durability_kick(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    size_t index = 0;
    if (d->copying || run->fsm.phase == SFC_STEP_FAILED)
        return;
    for (size_t i = 0; i < SFC_ADOPTERS; i++)
        if (d->adoptions[i].wanted) {
            write_adoption(run, &d->adoptions[i]);
            return;
        }
    if (!d->sweeps || d->unsettled || run->fsm.phase == SFC_STEP_MAPPING ||
        !sfc_sweep_next(&d->sweep, &index))
        return;
    copy_block(run, index);
}

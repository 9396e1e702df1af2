/* Going back: what the disk has of steps that the run gave up is let go of, and nothing is trimmed
 * that a rewind needs. */
#include <inttypes.h>

#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

static int look_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    (void)err;
    d->look_oldest = sfc_storage_oldest(&d->storage, d->look_from);
    return SFC_OK;
}

static void look_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t oldest = d->look_oldest;
    d->looking = false;
    if (d->look_list != d->list && oldest < d->oldest)
        oldest = d->oldest; /* it looked at other blocks, and one that came leads less far back */
    if (!run->closed)
        sfc_durability_note_oldest(run, d->look_from, oldest);
}

/* oldest: the lowest step that a log leads to of the steps after `from`. If it was trimmed
 * meanwhile that is too low: no step before what it was trimmed to, and the thread looks again. */
void sfc_durability_note_oldest(struct sfc_shard_run *run, uint64_t from, uint64_t oldest)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->oldest = from >= d->trimmed || oldest > d->trimmed ? oldest : d->trimmed;
    if (from >= d->trimmed || d->looking)
        return;
    d->looking = true;
    d->look_from = d->trimmed;
    d->look_list = d->list;
    d->look_task = (struct sfc_task){.work = look_work, .done = look_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->look_task);
}

static int settle_work(struct sfc_task *task, struct sfc_error *err)
{
    return sfc_snapshot_store_drop_hidden(sfc_durability_of(task->owner)->storage.store, err);
}

static void settle_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    d->settling = false;
    if (run->closed)
        return;
    sfc_durability_say_error(run, d->snapshot_error, task->code == SFC_OK ? "" : task->error.text);
    d->unsettled = task->code != SFC_OK;
    if (d->flush_waits && d->unsettled) { /* the scheduler asks again */
        d->flush_waits = false;
        sfc_durability_flush_end(run, SFC_EUNAVAILABLE, task->error.text);
    } else {
        sfc_durability_release_flush(run);
    }
    sfc_durability_kick(run);
}

void sfc_durability_settle(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (d->settling)
        return;
    d->settling = true;
    d->settle_task = (struct sfc_task){.work = settle_work, .done = settle_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->settle_task);
}

int sfc_durability_may_go_back(const struct sfc_shard_run *run, uint64_t step,
                               struct sfc_error *err)
{
    const struct sfc_durability *d = &run->durability;
    if (!d->on)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "this shard runs with --durable off and keeps nothing to go back to");
    if (step < d->oldest)
        return sfc_fail(err, SFC_ENOTFOUND,
                        "its disk leads to step %" PRIu64 " and later ones, not to step %" PRIu64
                        " (--rewind-window of `shardfc create`, --log-limit of the shard)",
                        d->oldest, step);
    return SFC_OK;
}

void sfc_durability_keep_back(struct sfc_shard_run *run, uint64_t step, uint64_t until)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->kept_back = step;
    d->kept_until = until;
}

/* What a run has on the disk is made, or recovered from, before its first step; and let go of. */
#include <inttypes.h>
#include <stdlib.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

/* The sweep begins where the recovery ended, or a log that is full then would stay so. */
static void note_recovered(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    struct sfc_step_log_state state;
    sfc_step_log_state(d->storage.log, &state);
    d->log_bytes = state.bytes;
    sfc_sweep_applied(&d->sweep, sfc_step_applied(&run->fsm), 0,
                      sfc_step_log_step_bytes(&d->storage.config.geometry), state.bytes);
}

uint64_t *sfc_durability_file_bytes(const struct sfc_shard_run *run, struct sfc_error *err)
{
    const struct sfc_storage *storage = &run->durability.storage;
    uint64_t *bytes = calloc(storage->count + 1, sizeof *bytes);
    for (size_t i = 0; bytes && i < storage->count; i++) {
        struct sfc_snapshot_shape shape;
        sfc_storage_shape(storage, i, sfc_step_applied(&run->fsm), &shape);
        bytes[i] = sfc_snapshot_file_bytes(&shape);
    }
    if (!bytes)
        sfc_fail(err, SFC_ENOMEM, "no memory for %zu blocks", storage->count);
    return bytes;
}

static int sweep_init(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    const struct sfc_shard_options *o = run->shard->options;
    struct sfc_sweep_config c = {.recovery_target_ms = o->recovery_target,
                                 .log_limit = d->storage.config.limit_bytes,
                                 .rate = o->snapshot_rate,
                                 .start_step = d->storage.start_step};
    uint64_t *bytes = sfc_durability_file_bytes(run, err);
    if (!bytes)
        return SFC_ENOMEM;
    int code = sfc_sweep_init(&d->sweep, &c, bytes, d->storage.count, err);
    d->sweeps = code == SFC_OK;
    free(bytes);
    if (code == SFC_OK && sfc_step_applied(&run->fsm) > d->storage.start_step)
        note_recovered(run);
    for (size_t i = 0; code == SFC_OK && i < d->storage.count; i++) {
        uint64_t stamps[2];
        const struct sfc_snapshot_block *b = &d->storage.blocks[i];
        uint64_t grown = sfc_block_grown(d->storage.setup, b);
        if (sfc_snapshot_store_stamps(d->storage.store, b, grown, stamps) > 0)
            sfc_sweep_stamped(&d->sweep, i, stamps[0]);
    }
    return code;
}

static void note_opened(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    struct sfc_step_log_state state;
    sfc_step_log_state(d->storage.log, &state);
    d->trimmed = state.first_step ? state.first_step - 1 : sfc_step_applied(&run->fsm);
    d->floor = sfc_storage_floor(&d->storage);
    d->oldest = sfc_storage_oldest(&d->storage, d->trimmed);
    if (d->window < d->asked_window)
        sfc_warning_log("run %" PRIu64 ": the step log may have %" PRIu64
                        " bytes: the run can be rewound by %" PRIu64 " steps, not by the %" PRIu64
                        " that it asks for (--log-limit, --rewind-window)",
                        run->id, d->storage.config.limit_bytes, d->window, d->asked_window);
}

static void opened(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_error err = {0};
    if (code == SFC_OK)
        code = sweep_init(run, &err);
    if (code == SFC_OK) {
        note_opened(run);
        code = sfc_mirror_open(run, &err);
    }
    run->on_durable(run, code, err.code ? err.text : text);
}

static void recovered(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    if (!run->closed)
        opened(run, job->code, job->error.text);
}

static int recover_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                        struct sfc_error *err)
{
    struct sfc_shard_run *run = ctx;
    sfc_durability_of(run)->recovery.spans = run->shard->spans;
    return sfc_recovery_run(&sfc_durability_of(run)->recovery, head, dense, err);
}

uint64_t sfc_durability_window(const struct sfc_durability *d)
{
    const struct sfc_step_log_config *c = &d->storage.config;
    uint64_t most = c->limit_bytes / (3 * sfc_step_log_step_bytes(&c->geometry));
    return c->limit_bytes != 0 && most < d->asked_window ? most : d->asked_window;
}

uint64_t sfc_durability_horizon(const struct sfc_durability *d, uint64_t step)
{
    uint64_t start = d->storage.start_step;
    uint64_t back = step > start + d->window ? step - d->window : start;
    return back < d->durable_step ? back : d->durable_step;
}

static int open_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    int code =
        d->recovers ? sfc_storage_open(&d->storage, err) : sfc_storage_create(&d->storage, err);
    if (code != SFC_OK)
        return code;
    d->window = sfc_durability_window(d);
    if (d->recovers) {
        code = sfc_snapshot_store_hide_void(d->storage.store, &d->recovery.lineage, err);
        if (code == SFC_OK) /* what was on its way here when the shard died, or away */
            code = sfc_storage_keep_only(&d->storage, err);
        sfc_snapshot_store_hide_after(d->storage.store, d->recovery.last.step);
        sfc_snapshot_store_keep_from(d->storage.store,
                                     sfc_durability_horizon(d, d->recovery.last.step));
    }
    return code;
}

static void open_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    if (run->closed)
        return;
    if (task->code != SFC_OK || !d->recovers) {
        opened(run, task->code, task->error.text);
        return;
    }
    sfc_info_log("run %" PRIu64 ": recovering to step %" PRIu64 " from %s", run->id,
                 d->recovery.last.step, d->storage.state);
    d->recover_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = recovered, .owner = run};
    d->recover_job.u.call.fn = recover_work;
    d->recover_job.u.call.ctx = run;
    sfc_compute_submit(run->shard->compute, &d->recover_job);
}

static int no_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)task;
    (void)err;
    return SFC_OK;
}

static void snapshot_fence_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    if (run->closed)
        return;
    d->open_task = (struct sfc_task){.work = open_work, .done = open_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->open_task);
}

static void checkpoint_fence_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    if (run->closed)
        return;
    d->fence_task = (struct sfc_task){.work = no_work, .done = snapshot_fence_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->fence_task);
}

/* A run before this one ends on the same way, the threads for computing, checkpoints, snapshots and
 * the log: so its files are closed when this one opens its own. */
void sfc_durability_open(struct sfc_shard_run *run,
                         void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_durability *d = sfc_durability_of(run);
    run->on_durable = done;
    if (!d->on) {
        done(run, SFC_OK, "");
        return;
    }
    d->fence_task = (struct sfc_task){.work = no_work, .done = checkpoint_fence_done, .owner = run};
    sfc_tasks_submit(run->shard->checkpoint_thread, &d->fence_task);
}

static int close_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    sfc_storage_close(&d->storage);
    return d->remove ? sfc_storage_remove(&d->storage, err) : SFC_OK;
}

static void close_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (task->code != SFC_OK)
        sfc_warning_log("run %" PRIu64 ": %s", run->id, task->error.text);
    run->on_closed(run);
}

/* Ends a write that the close cut off. */
static int end_write_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    (void)err;
    sfc_snapshot_write_end(d->write);
    d->write = NULL;
    sfc_pinned_release(task->owner); /* of which a block may have been read here until now */
    return SFC_OK;
}

static void end_write_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    d->close_task = (struct sfc_task){.work = close_work, .done = close_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->close_task);
}

/* Nothing of this run is on the checkpoint thread any more. */
static void checkpoint_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    d->close_task = (struct sfc_task){.work = end_write_work, .done = end_write_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->close_task);
}

void sfc_durability_close(struct sfc_shard_run *run, void (*done)(struct sfc_shard_run *run))
{
    struct sfc_durability *d = sfc_durability_of(run);
    run->on_closed = done;
    if (!d->on) {
        done(run);
        return;
    }
    d->close_task = (struct sfc_task){.work = no_work, .done = checkpoint_done, .owner = run};
    sfc_tasks_submit(run->shard->checkpoint_thread, &d->close_task);
}

void sfc_durability_abandon(struct sfc_shard_run *run)
{
    sfc_pinned_abandon(run);
    atomic_store(&sfc_durability_of(run)->recovery.abandon, true);
}

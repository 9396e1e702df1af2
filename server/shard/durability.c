#include "server/shard/durability.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/shard_internal.h"

#define PIECE       (UINT64_C(4) << 20) /* most bytes of a snapshot in one go */
#define LEAST_PIECE (UINT64_C(256) << 10)
#define WAIT_MS     20 /* until the pace of writing is asked again */

static struct sfc_durability *of(struct sfc_shard_run *run)
{
    return &run->durability;
}

/* ---- memory */

static int storage_init(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                        struct sfc_error *err)
{
    const struct sfc_shard_options *o = run->shard->options;
    struct sfc_storage_config c = {
        .state = o->state,
        .run_id = run->id,
        .nonce = r->nonce,
        .start_step = r->start_step,
        .from_seed = !r->load && r->start_step == 0,
        .log_limit = o->log_limit,
        .compression = run->shard->compression,
        .numerics = sfc_backend_numerics(sfc_compute_backend(run->shard->compute)),
        .setup = &run->setup,
        .class_blocks = run->class_blocks,
        .class_count = run->class_count,
        .dense_blocks = run->dense_blocks,
        .dense_count = run->dense_count,
    };
    uint8_t *packed = sfc_message_pack(r->config, &c.packed_size);
    if (!packed)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the configuration");
    c.packed_config = packed;
    int code = sfc_storage_init(&of(run)->storage, &c, err);
    free(packed);
    return code;
}

static int buffers_new(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    uint64_t largest = (sfc_run_largest_block(&run->setup) + 63) / 64 * 64;
    d->staging = aligned_alloc(64, largest);
    d->features = calloc(run->setup.micro_batches, sizeof *d->features);
    d->lse = calloc(run->setup.micro_batches, sizeof *d->lse);
    if (!d->staging || !d->features || !d->lse)
        return sfc_fail(err, SFC_ENOMEM, "%" PRIu64 " bytes to copy a block to", largest);
    return SFC_OK;
}

/* The sweep begins where the recovery ended, or a log that is full then would stay so. */
static void note_recovered(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    struct sfc_step_log_state state;
    sfc_step_log_state(d->storage.log, &state);
    d->log_bytes = state.bytes;
    sfc_sweep_applied(&d->sweep, sfc_step_applied(&run->fsm), 0,
                      sfc_step_log_step_bytes(&d->storage.config.geometry), state.bytes);
}

static int sweep_init(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    const struct sfc_shard_options *o = run->shard->options;
    struct sfc_sweep_config c = {.recovery_target_ms = o->recovery_target,
                                 .log_limit = d->storage.config.limit_bytes,
                                 .rate = o->snapshot_rate,
                                 .start_step = d->storage.start_step};
    uint64_t *bytes = calloc(d->storage.count, sizeof *bytes);
    if (!bytes)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu blocks", d->storage.count);
    for (size_t i = 0; i < d->storage.count; i++) {
        struct sfc_snapshot_shape shape;
        sfc_storage_shape(&d->storage, i, sfc_step_applied(&run->fsm), &shape);
        bytes[i] = sfc_snapshot_file_bytes(&shape);
    }
    int code = sfc_sweep_init(&d->sweep, &c, bytes, d->storage.count, err);
    d->sweeps = code == SFC_OK;
    free(bytes);
    if (code == SFC_OK && sfc_step_applied(&run->fsm) > d->storage.start_step)
        note_recovered(run);
    for (size_t i = 0; code == SFC_OK && i < d->storage.count; i++) {
        uint64_t stamps[2];
        const struct sfc_snapshot_block *b = &d->storage.blocks[i];
        if (sfc_snapshot_store_stamps(d->storage.store, b->kind, b->block, stamps) > 0)
            sfc_sweep_stamped(&d->sweep, i, stamps[0]);
    }
    return code;
}

int sfc_durability_take_returns(const Shardfc__V1__OpenRunRequest *r, struct sfc_lineage *out,
                                struct sfc_error *err)
{
    struct sfc_lineage x = {.count = r->n_returns};
    for (size_t i = 0; i < r->n_returns && i < SFC_LINEAGE_MAX; i++) {
        const Shardfc__V1__Attempt *last = r->returns[i]->last;
        x.returns[i].step = r->returns[i]->step;
        if (last)
            x.returns[i].last = (struct sfc_attempt){last->incarnation, last->counter};
    }
    int code = sfc_lineage_check(x.returns, x.count, err);
    if (code == SFC_OK)
        *out = x;
    return code;
}

/* Who may have what this shard's log has lost. */
int sfc_durability_peers(struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                         struct sfc_error *err)
{
    const struct sfc_head_config *c = &run->setup.head;
    struct sfc_recovery *r = &of(run)->recovery;
    struct sfc_step_shape shape = {c->batch, c->micro_batch, c->dim, c->classes};
    if (!of(run)->on)
        return SFC_OK;
    sfc_peers_free(r->peers);
    r->peers = NULL;
    return sfc_peers_new(run->shard->rpc, map, run->self, run->id, &shape, &r->lineage, &r->peers,
                         err);
}

int sfc_durability_init(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                        struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    d->on = run->shard->options->durable == SFC_DURABLE_ON;
    if (!d->on && r->recover)
        return sfc_fail(
            err, SFC_EUNSUPPORTED,
            "this shard runs with --durable off and keeps nothing to recover from; stop "
            "the run and restore its last checkpoint");
    if (!d->on)
        return SFC_OK;
    int code = storage_init(run, r, err);
    if (code == SFC_OK)
        code = buffers_new(run, err);
    if (code == SFC_OK)
        code = sfc_durability_take_returns(r, &d->recovery.lineage, err);
    if (code == SFC_OK)
        code = sfc_durability_peers(run, r->map, err);
    if (code != SFC_OK)
        return code;
    d->recovers = r->recover;
    d->unsettled = r->recover;
    d->asked_window = r->keeping ? r->keeping->rewind_window : 0;
    d->durable_every = r->keeping && r->keeping->durable_every ? r->keeping->durable_every : 1;
    d->durable_step = run->start_step;
    d->base_missing = !d->storage.from_seed && !r->recover && !r->join;
    d->recovery.storage = &d->storage;
    d->recovery.durable = d->durable_every > 1;
    d->recovery.last.step = r->start_step;
    if ((r->recover || r->join) && r->last_commit) {
        const Shardfc__V1__CommitRecord *c = r->last_commit;
        d->recovery.has_last = true;
        d->recovery.last = (struct sfc_log_commit){
            .step = c->step, .clip_scale = c->clip_scale, .lr = c->lr, .apply = c->apply};
        if (c->round)
            d->recovery.last.round = (struct sfc_attempt){c->round->incarnation, c->round->counter};
    }
    return SFC_OK;
}

void sfc_durability_free(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    sfc_snapshot_write_end(d->write);
    sfc_peers_free(d->recovery.peers);
    sfc_storage_free(&d->storage);
    sfc_sweep_close(&d->sweep);
    free(d->staging);
    free(d->features);
    free(d->lse);
}

/* ---- open and close */

static void note_opened(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
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
    if (code == SFC_OK)
        note_opened(run);
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
    return sfc_recovery_run(&of(run)->recovery, head, dense, err);
}

/* Beside what a crash needs: so many steps that the log stays within its limit. */
static uint64_t possible_window(const struct sfc_durability *d)
{
    const struct sfc_step_log_config *c = &d->storage.config;
    uint64_t most = c->limit_bytes / (3 * sfc_step_log_step_bytes(&c->geometry));
    return c->limit_bytes != 0 && most < d->asked_window ? most : d->asked_window;
}

static uint64_t horizon(const struct sfc_durability *d, uint64_t step)
{
    uint64_t start = d->storage.start_step;
    uint64_t back = step > start + d->window ? step - d->window : start;
    return back < d->durable_step ? back : d->durable_step;
}

static int open_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    int code =
        d->recovers ? sfc_storage_open(&d->storage, err) : sfc_storage_create(&d->storage, err);
    if (code != SFC_OK)
        return code;
    d->window = possible_window(d);
    if (d->recovers) {
        code = sfc_snapshot_store_hide_void(d->storage.store, &d->recovery.lineage, err);
        if (code == SFC_OK) /* what was on its way here when the shard died, or away */
            code = sfc_storage_keep_only(&d->storage, err);
        sfc_snapshot_store_hide_after(d->storage.store, d->recovery.last.step);
        sfc_snapshot_store_keep_from(d->storage.store, horizon(d, d->recovery.last.step));
    }
    return code;
}

static void open_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
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
    struct sfc_durability *d = of(run);
    if (run->closed)
        return;
    d->open_task = (struct sfc_task){.work = open_work, .done = open_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->open_task);
}

static void checkpoint_fence_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
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
    struct sfc_durability *d = of(run);
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
    struct sfc_durability *d = of(task->owner);
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
    struct sfc_durability *d = of(task->owner);
    (void)err;
    sfc_snapshot_write_end(d->write);
    d->write = NULL;
    return SFC_OK;
}

static void end_write_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->close_task = (struct sfc_task){.work = close_work, .done = close_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->close_task);
}

static int release_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    sfc_pinned_release(task->owner);
    return SFC_OK;
}

static void release_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->close_task = (struct sfc_task){.work = end_write_work, .done = end_write_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->close_task);
}

void sfc_durability_close(struct sfc_shard_run *run, void (*done)(struct sfc_shard_run *run))
{
    struct sfc_durability *d = of(run);
    run->on_closed = done;
    if (!d->on) {
        done(run);
        return;
    }
    d->close_task = (struct sfc_task){.work = release_work, .done = release_done, .owner = run};
    sfc_tasks_submit(run->shard->checkpoint_thread, &d->close_task);
}

void sfc_durability_abandon(struct sfc_shard_run *run)
{
    sfc_pinned_abandon(run);
    atomic_store(&of(run)->recovery.abandon, true);
}

/* ---- snapshots */

static void kick(struct sfc_shard_run *run);
static void drop_others(struct sfc_shard_run *run);
static void write_piece(struct sfc_shard_run *run);
static void flush_now(struct sfc_shard_run *run);
static void flush_end(struct sfc_shard_run *run, int code, const char *text);
static void make_room(struct sfc_shard_run *run);
static void settle(struct sfc_shard_run *run);
static void note_oldest(struct sfc_shard_run *run, uint64_t from, uint64_t oldest);

static void say_error(struct sfc_shard_run *run, char *place, const char *text)
{
    if (strcmp(place, text) && text[0])
        sfc_error_log("run %" PRIu64 ": %s", run->id, text);
    snprintf(place, SFC_LIMIT_ERROR_TEXT, "%s", text);
}

/* The base is complete: the flush that waited for it goes on. */
static void base_done(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (!d->base_missing || !sfc_sweep_complete(&d->sweep))
        return;
    d->base_missing = false;
    sfc_sweep_urgent(&d->sweep, false);
    sfc_info_log("run %" PRIu64 ": every block has a snapshot of step %" PRIu64, run->id,
                 d->storage.start_step);
    if (d->flush_waits) {
        d->flush_waits = false;
        flush_now(run);
    }
}

static void adopted(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_durability *d = of(run);
    struct sfc_adoption *a = &d->adoption;
    a->writing = false;
    for (size_t i = 0; code == SFC_OK && i < d->storage.count;
         i++) /* the history; others come with SetMap */
        if (d->storage.blocks[i].kind == a->key.kind && d->storage.blocks[i].block == a->key.block)
            sfc_sweep_stamped(&d->sweep, i, a->key.step);
    a->done(run, code, text);
    kick(run);
}

static void snapshot_failed(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_durability *d = of(run);
    d->copying = false;
    if (d->adoption.writing) {
        adopted(run, code, text);
        return;
    }
    say_error(run, d->snapshot_error, text);
    if (d->flush_waits) { /* the scheduler asks again, and then the base goes on */
        d->flush_waits = false;
        flush_end(run, SFC_EUNAVAILABLE, text);
    }
}

static void snapshot_done(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    d->copying = false;
    if (d->adoption.writing) {
        adopted(run, SFC_OK, "");
        return;
    }
    d->snapshot_error[0] = 0;
    if (d->index < d->storage.count)
        sfc_sweep_stamped(&d->sweep, d->index, d->key.step);
    else /* it has left meanwhile */
        drop_others(run);
    base_done(run);
    make_room(run);
    kick(run);
}

static int write_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    int code = SFC_OK;
    d->written = false;
    bool kept = d->key.step <= d->kept_until && d->kept_back < d->horizon;
    sfc_snapshot_store_keep_from(d->storage.store, kept ? d->kept_back : d->horizon);
    if (!d->write)
        code = sfc_snapshot_write_begin(d->storage.store, &d->key, &d->shape,
                                        (const void *const *)d->parts, &d->write, err);
    if (code == SFC_OK)
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

static void write_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    if (run->closed)
        return;
    if (task->code != SFC_OK) {
        snapshot_failed(run, task->code, task->error.text);
        return;
    }
    if (!d->adoption.writing)
        sfc_sweep_wrote(&d->sweep, d->piece);
    if (d->written) {
        bool lower = d->written_floor < d->floor; /* of blocks before a change it can't rise */
        d->floor = lower || d->written_list == d->list ? d->written_floor : d->floor;
        bool higher = d->written_oldest > d->oldest; /* likewise it can't fall */
        bool counts = higher || d->written_list == d->list;
        note_oldest(run, d->oldest_from, counts ? d->written_oldest : d->oldest);
    }
    if (d->written)
        snapshot_done(run);
    else
        write_piece(run);
}

/* Gives the next piece to the thread, or leaves it to the timer. */
static void write_piece(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    uint64_t room =
        d->adoption.writing ? PIECE : sfc_sweep_allowance(&d->sweep, uv_now(run->shard->uv));
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
        write_piece(run);
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
    struct sfc_durability *d = of(run);
    d->copying = true;
    d->index = index;
    d->key = (struct sfc_snapshot_key){.kind = d->storage.blocks[index].kind,
                                       .block = d->storage.blocks[index].block,
                                       .step = sfc_durability_stamp(run)};
    d->key.round = sfc_durability_round(run, d->key.step);
    d->horizon = horizon(d, d->key.step);
    sfc_storage_shape(&d->storage, index, d->key.step, &d->shape);
    sfc_block_lay_out(&d->shape, d->staging, d->parts);
    d->copy_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = copy_done, .owner = run};
    d->copy_job.u.call.fn = copy_work;
    d->copy_job.u.call.ctx = d;
    sfc_compute_submit(run->shard->compute, &d->copy_job);
}

static void write_adoption(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    struct sfc_adoption *a = &d->adoption;
    a->wanted = false;
    a->writing = true;
    d->copying = true;
    d->index = SIZE_MAX;
    d->key = a->key;
    d->shape = a->shape;
    memcpy(d->parts, a->parts, sizeof d->parts);
    d->horizon = horizon(d, d->key.step);
    write_piece(run);
}

/* Writes the block that was adopted, or copies the one that is due, if no other is at work. */
static void kick(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    size_t index = 0;
    if (d->copying || run->fsm.phase == SFC_STEP_FAILED)
        return;
    if (d->adoption.wanted) {
        write_adoption(run);
        return;
    }
    if (!d->sweeps || d->unsettled || run->fsm.phase == SFC_STEP_MAPPING ||
        !sfc_sweep_next(&d->sweep, &index))
        return;
    copy_block(run, index);
}

/* ---- blocks come and go */

void sfc_durability_adopt(struct sfc_shard_run *run, const struct sfc_snapshot_key *key,
                          const struct sfc_snapshot_shape *shape,
                          void *const parts[SFC_SNAPSHOT_PARTS],
                          void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_adoption *a = &of(run)->adoption;
    *a = (struct sfc_adoption){.wanted = true, .key = *key, .shape = *shape, .done = done};
    memcpy(a->parts, parts, sizeof a->parts);
    kick(run);
}

bool sfc_durability_withdraw(struct sfc_shard_run *run)
{
    struct sfc_adoption *a = &of(run)->adoption;
    bool waiting = a->wanted;
    a->wanted = false;
    return waiting;
}

static int change_sweep(struct sfc_shard_run *run, const size_t *was, struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    uint64_t *bytes = calloc(d->storage.count + 1, sizeof *bytes);
    if (!bytes)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu blocks", d->storage.count);
    for (size_t i = 0; i < d->storage.count; i++) {
        struct sfc_snapshot_shape shape;
        sfc_storage_shape(&d->storage, i, sfc_step_applied(&run->fsm), &shape);
        bytes[i] = sfc_snapshot_file_bytes(&shape);
    }
    int code = sfc_sweep_change(&d->sweep, bytes, was, d->storage.count, err);
    free(bytes);
    return code;
}

/* The snapshots of the new ones, and where the one at work has gone. */
static void note_change(struct sfc_shard_run *run, const size_t *was)
{
    struct sfc_durability *d = of(run);
    size_t index = SIZE_MAX;
    for (size_t i = 0; i < d->storage.count; i++) {
        const struct sfc_snapshot_block *b = &d->storage.blocks[i];
        uint64_t stamp = 0;
        index = was[i] == d->index ? i : index;
        if (was[i] == SIZE_MAX &&
            sfc_move_stamp(run, b->kind == SFC_SNAPSHOT_DENSE, b->block, &stamp)) {
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
    return sfc_storage_keep_only(&of(task->owner)->storage, err);
}

static void drop_others_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    of(run)->dropping = false;
    if (!run->closed && task->code != SFC_OK) /* the next recovery deletes them */
        sfc_warning_log("run %" PRIu64 ": snapshots of blocks that have left: %s", run->id,
                        task->error.text);
}

static void drop_others(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (d->dropping)
        return;
    d->dropping = true;
    d->drop_task =
        (struct sfc_task){.work = drop_others_work, .done = drop_others_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->drop_task);
}

void sfc_durability_mapped(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    uint64_t applied = sfc_step_applied(&run->fsm);
    if (!d->on)
        return;
    if (run->joins) { /* its log begins behind this step */
        d->trimmed = applied;
        note_oldest(run, applied, applied);
    }
    run->joins = false;
    d->durable_step = applied;
    kick(run);
}

static int list_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    return sfc_storage_keep_list(&of(run)->storage, of(run)->list_then, err);
}

static void list_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!run->closed)
        of(run)->list_kept(run, task->code ? SFC_EUNAVAILABLE : SFC_OK, task->error.text);
}

void sfc_durability_keep_list(struct sfc_shard_run *run, struct sfc_dense_set then,
                              void (*done)(struct sfc_shard_run *run, int code, const char *text))
{
    struct sfc_durability *d = of(run);
    d->list_then = then;
    d->list_kept = done;
    d->list_task = (struct sfc_task){.work = list_work, .done = list_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->list_task);
}

static int dense_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
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
    struct sfc_durability *d = of(run);
    uint64_t before = d->storage.config.geometry.dense_blocks;
    struct sfc_dense_set now = {run->dense_blocks, run->dense_count};
    int code = sfc_storage_set_dense(&d->storage, now, err);
    if (code != SFC_OK || d->storage.config.geometry.dense_blocks == before)
        return code;
    d->dense_geometry = d->storage.config.geometry;
    d->dense_task = (struct sfc_task){.work = dense_work, .done = dense_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->dense_task);
    return SFC_OK;
}

int sfc_durability_change(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    if (!d->on)
        return SFC_OK;
    size_t *was = calloc(run->class_count + run->dense_count + 1, sizeof *was);
    int code = was ? sfc_storage_change(&d->storage, run->class_blocks, run->class_count,
                                        run->dense_blocks, run->dense_count, was, err)
                   : sfc_fail(err, SFC_ENOMEM, "no memory for the blocks");
    if (code == SFC_OK)
        code = change_sweep(run, was, err);
    if (code == SFC_OK)
        code = change_log(run, err);
    if (code == SFC_OK) {
        note_change(run, was);
        drop_others(run);
    }
    free(was);
    return code;
}

void sfc_durability_tick(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (!d->paced) /* the timer of a run before this one */
        return;
    d->paced = false;
    write_piece(run);
}

void sfc_durability_planned(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (!d->on)
        return;
    if (d->unsettled)
        settle(run);
    if (!d->base_missing)
        return;
    sfc_sweep_urgent(&d->sweep, true);
    base_done(run);
    kick(run);
}

int sfc_durability_keep(struct sfc_shard_run *run, bool *kept, struct sfc_error *err)
{
    struct sfc_durability *d = of(run);
    char failed[SFC_LIMIT_ERROR_TEXT];
    snprintf(failed, sizeof failed, "%s", d->base_missing ? d->snapshot_error : "");
    sfc_durability_planned(run);
    *kept = !d->base_missing;
    return failed[0] && !*kept ? sfc_fail(err, SFC_EUNAVAILABLE, "%s", failed) : SFC_OK;
}

void sfc_durability_applied(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (!d->on)
        return;
    sfc_pinned_applied(run);
    if (d->committing == sfc_step_applied(&run->fsm))
        d->durable_step = d->committing;
    sfc_sweep_applied(&d->sweep, sfc_step_applied(&run->fsm), 1e-6 * (double)d->step_ns,
                      sfc_step_log_step_bytes(&d->storage.config.geometry), d->log_bytes);
    d->step_ns = 0;
    kick(run);
}

/* ---- going back */

static int look_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    (void)err;
    d->look_oldest = sfc_storage_oldest(&d->storage, d->look_from);
    return SFC_OK;
}

static void look_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->looking = false;
    if (!run->closed)
        note_oldest(run, d->look_from, d->look_oldest);
}

/* oldest: the lowest step that a log leads to of the steps after `from`. If it was trimmed
 * meanwhile that is too low: no step before what it was trimmed to, and the thread looks again. */
static void note_oldest(struct sfc_shard_run *run, uint64_t from, uint64_t oldest)
{
    struct sfc_durability *d = of(run);
    d->oldest = from >= d->trimmed || oldest > d->trimmed ? oldest : d->trimmed;
    if (from >= d->trimmed || d->looking)
        return;
    d->looking = true;
    d->look_from = d->trimmed;
    d->look_task = (struct sfc_task){.work = look_work, .done = look_done, .owner = run};
    sfc_tasks_submit(run->shard->snapshot_thread, &d->look_task);
}

static int settle_work(struct sfc_task *task, struct sfc_error *err)
{
    return sfc_snapshot_store_drop_hidden(of(task->owner)->storage.store, err);
}

static void settle_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->settling = false;
    if (run->closed)
        return;
    say_error(run, d->snapshot_error, task->code == SFC_OK ? "" : task->error.text);
    d->unsettled = task->code != SFC_OK;
    if (d->flush_waits && d->unsettled) { /* the scheduler asks again */
        d->flush_waits = false;
        flush_end(run, SFC_EUNAVAILABLE, task->error.text);
    } else if (d->flush_waits) {
        d->flush_waits = false;
        flush_now(run);
    }
    kick(run);
}

static void settle(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
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
    struct sfc_durability *d = of(run);
    d->kept_back = step;
    d->kept_until = until;
}

/* ---- the log */

/* Steps that were committed on the promise of a later flush did not reach the disk. */
static int check_lost(struct sfc_durability *d, struct sfc_error *err)
{
    return atomic_load(&d->lost)
               ? sfc_fail(
                     err, SFC_EIO,
                     "--state %s: the disk failed before committed steps were durable; the run "
                     "goes back to its last durable step",
                     d->storage.state)
               : SFC_OK;
}

static int flush_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    struct sfc_step_log *log = d->storage.log;
    struct sfc_step_log_state state;
    pthread_mutex_lock(&d->storage.log_lock);
    sfc_step_log_without_limit(log, d->prepare.step > d->durable_step + 1);
    int code = check_lost(d, err);
    if (code == SFC_OK && d->has_commit)
        code = sfc_step_log_append_commit(log, &d->commit, err);
    d->has_commit = d->has_commit && code != SFC_OK;
    if (code == SFC_OK)
        code = sfc_step_log_append_prepare(log, &d->prepare, err);
    if (code == SFC_OK && !d->provisional)
        code = sfc_step_log_flush(log, err);
    if (sfc_step_log_lost(log))
        atomic_store(&d->lost, true);
    sfc_step_log_state(log, &state);
    pthread_mutex_unlock(&d->storage.log_lock);
    d->flushed_bytes = state.bytes;
    return code;
}

static void flush_end(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_step_event event = {
        .type = SFC_SE_FLUSHED, .code = code, .text = text, .lost = sfc_durability_lost(run)};
    sfc_shard_feed(run, &event);
}

bool sfc_durability_lost(const struct sfc_shard_run *run)
{
    return atomic_load(&run->durability.lost);
}

/* The Prepares are in the log, and the commit of the last one is in the scheduler's store or with
 * whoever asks. */
static int make_durable_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    pthread_mutex_lock(&d->storage.log_lock);
    int code = check_lost(d, err);
    if (code == SFC_OK)
        code = sfc_step_log_flush(d->storage.log, err);
    if (code != SFC_OK)
        atomic_store(&d->lost, true); /* with a step, perhaps, that it said to have */
    pthread_mutex_unlock(&d->storage.log_lock);
    return code;
}

static void make_durable_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->made_durable = false;
    if (run->closed)
        return;
    say_error(run, d->log_error, task->code == SFC_OK ? "" : task->error.text);
    run->on_durable(run, task->code == SFC_OK ? SFC_OK : SFC_EIO, task->error.text);
}

void sfc_durability_make_durable(struct sfc_shard_run *run,
                                 void (*done)(struct sfc_shard_run *run, int code,
                                              const char *text))
{
    struct sfc_durability *d = of(run);
    run->on_durable = done;
    if (!d->on || d->durable_every == 1) { /* each Prepare did */
        done(run, SFC_OK, "");
        return;
    }
    if (d->made_durable)
        return;
    d->made_durable = true;
    d->here_task =
        (struct sfc_task){.work = make_durable_work, .done = make_durable_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->here_task);
}

static void flush_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    if (run->closed)
        return;
    d->log_bytes = d->flushed_bytes;
    say_error(run, d->log_error, task->code == SFC_OK ? "" : task->error.text);
    sfc_sweep_urgent(&d->sweep, task->code == SFC_ELIMIT);
    flush_end(run, task->code, task->error.text);
    if (task->code != SFC_OK) {
        make_room(run);
        kick(run);
    }
}

static void flush_now(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    d->flush_task = (struct sfc_task){.work = flush_work, .done = flush_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->flush_task);
}

void sfc_durability_flush(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_durability *d = of(run);
    if (!d->on) {
        flush_end(run, SFC_OK, "");
        return;
    }
    for (uint32_t j = 0; j < run->setup.micro_batches; j++) {
        const struct sfc_answer *answer = sfc_shard_answer(run, a->generation, a->slots[j]);
        d->features[j] = answer->features;
        d->lse[j] = answer->lse;
    }
    d->prepare = (struct sfc_log_prepare){.step = a->step,
                                          .round = a->round,
                                          .lr = a->lr,
                                          .labels = sfc_step_labels(&run->fsm, a->step),
                                          .features = d->features,
                                          .attempts = run->fsm.prepared,
                                          .lse = d->lse,
                                          .dense = run->dense.dense_sums};
    d->provisional = a->provisional;
    d->flush_waits = d->base_missing || d->unsettled;
    if (!d->flush_waits)
        flush_now(run);
    else if (d->unsettled)
        settle(run);
    else
        kick(run);
}

void sfc_durability_commit(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_durability *d = of(run);
    d->has_commit = d->on;
    d->committing = a->provisional ? 0 : a->step;
    d->commit = (struct sfc_log_commit){.step = a->step,
                                        .round = a->round,
                                        .clip_scale = a->clip_scale,
                                        .lr = a->lr,
                                        .apply = a->apply};
    d->newest = d->commit;
}

static int trim_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = of(task->owner);
    struct sfc_step_log_state state;
    pthread_mutex_lock(&d->storage.log_lock);
    int code = sfc_step_log_trim(d->storage.log, d->trim_floor, err);
    sfc_step_log_state(d->storage.log, &state);
    pthread_mutex_unlock(&d->storage.log_lock);
    d->trimmed_bytes = state.bytes;
    return code;
}

static void trim_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = of(run);
    d->trimming = false;
    d->log_bytes = d->trimmed_bytes;
    if (task->code != SFC_OK && !run->closed)
        sfc_warning_log("run %" PRIu64 ": %s", run->id, task->error.text);
}

/* What others than the recovery of this shard's blocks need of the log. */
static uint64_t kept_floor(const struct sfc_shard_run *run)
{
    uint64_t pinned = sfc_pinned_floor(run), staged = sfc_move_floor(run);
    return pinned < staged ? pinned : staged;
}

/* Log of steps up to this one may go as far as this shard is concerned. Without blocks it needs
 * none for itself. */
static uint64_t own_floor(const struct sfc_shard_run *run)
{
    const struct sfc_durability *d = &run->durability;
    uint64_t kept = kept_floor(run), floor = d->floor < kept ? d->floor : kept;
    return floor < d->durable_step ? floor : d->durable_step;
}

static void trim(struct sfc_shard_run *run, uint64_t floor)
{
    struct sfc_durability *d = of(run);
    uint64_t kept = kept_floor(run);
    floor = floor < kept ? floor : kept;
    if (d->trimming || d->unsettled || floor <= d->trimmed)
        return;
    uint64_t from = d->trimmed;
    d->trimming = true;
    d->trim_floor = d->trimmed = floor;
    note_oldest(run, from, d->oldest);
    d->trim_task = (struct sfc_task){.work = trim_work, .done = trim_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->trim_task);
}

void sfc_durability_trim(struct sfc_shard_run *run, uint64_t floor)
{
    const struct sfc_durability *d = of(run);
    if (d->on && sfc_step_applied(&run->fsm) > d->back_until)
        trim(run, floor);
}

/* Frees a log that is full without waiting for the others: their floors may stand still for as long
 * as this shard lets no step pass. The price: another one that lost these steps can't have them
 * from here. Where the second-newest snapshots free nothing and each block has one of the newest
 * step, those have to be enough: no better ones come before the next step. */
static void make_room(struct sfc_shard_run *run)
{
    struct sfc_durability *d = of(run);
    if (!d->sweep.urgent || d->trimming)
        return;
    sfc_pinned_give_way(run);
    sfc_move_give_way(run);
    uint64_t floor = own_floor(run);
    if (floor <= d->trimmed && sfc_sweep_complete(&d->sweep) && sfc_sweep_lag(&d->sweep) == 0 &&
        d->durable_step == sfc_step_applied(&run->fsm)) {
        floor = sfc_step_applied(&run->fsm);
        if (floor > d->trimmed)
            sfc_warning_log("run %" PRIu64 ": the log is too small for two snapshots of each "
                            "block: until the next ones only those of step %" PRIu64
                            " count (--log-limit)",
                            run->id, floor);
    }
    trim(run, floor);
}

/* ---- status */

void sfc_durability_report(const struct sfc_shard_run *run, Shardfc__V1__ShardDurability *out)
{
    const struct sfc_durability *d = &run->durability;
    out->has_floor = true;
    out->log_floor = d->on ? own_floor(run) : sfc_step_applied(&run->fsm);
    out->oldest_step = sfc_step_applied(&run->fsm);
    if (!d->on)
        return;
    out->log_bytes = d->log_bytes;
    out->snapshot_lag = sfc_sweep_lag(&d->sweep);
    out->oldest_step = d->oldest;
    out->error = (char *)(uintptr_t)(d->log_error[0] ? d->log_error : d->snapshot_error);
}

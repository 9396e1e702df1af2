#include "server/shard/pinned.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "proto/base/log.h"
#include "proto/tensor.h"
#include "server/shard/pinned_parts.h"

#define READ_WAIT_MS 1000 /* then: still being made, ask again */
#define NICE         10

/* ---- one task or job at a time */

static void end_step(struct sfc_shard_run *run);

/* Whether what comes next may come. */
bool sfc_pinned_goes_on(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (run->closed)
        return false;
    p->working = false;
    if (p->ending)
        end_step(run);
    return !p->ending;
}

void sfc_pinned_submit(struct sfc_shard_run *run, struct sfc_tasks *thread, sfc_pinned_work *work,
                       void (*done)(struct sfc_task *task))
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    p->working = true;
    p->task = (struct sfc_task){.work = work, .done = done, .owner = run};
    sfc_tasks_submit(thread, &p->task);
}

void sfc_pinned_submit_job(struct sfc_shard_run *run,
                           int (*work)(void *, struct sfc_head *, struct sfc_dense *,
                                       struct sfc_error *),
                           void (*done)(struct sfc_compute_job *job))
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    p->working = true;
    p->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = done, .owner = run};
    p->job.u.call.fn = work;
    p->job.u.call.ctx = run;
    sfc_compute_submit(run->shard->compute, &p->job);
}

/* ---- the end of a pin */

static int release_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    sfc_pinned_release(task->owner);
    return SFC_OK;
}

static int unpin_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    sfc_snapshot_store_unpin(sfc_pinned_storage(task->owner)->store);
    return SFC_OK;
}

static void unpin_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_pinned gone = {.lost = p->lost};
    if (run->closed)
        return;
    memcpy(gone.reason, p->reason, sizeof gone.reason);
    gone.renews = p->renews;
    gone.step = p->renews ? p->step : 0;
    bool outlived = p->outlived;
    *p = gone;
    sfc_storage_unpin(sfc_pinned_storage(run));
    if (outlived)
        sfc_durability_drop_others(run);
}

static void release_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!run->closed)
        sfc_pinned_submit(run, run->shard->snapshot_thread, unpin_work, unpin_done);
}

static void end_step(struct sfc_shard_run *run)
{
    sfc_pinned_submit(run, run->shard->checkpoint_thread, release_work, release_done);
}

static void refuse_waiting(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_rpc_call *calls[2] = {p->pin_call, p->read_call};
    p->pin_call = p->read_call = NULL;
    for (int i = 0; i < 2; i++)
        if (calls[i])
            sfc_shard_refuse(run->shard, calls[i], code, text);
}

/* reason: NULL when its client wants it so. */
static void end(struct sfc_shard_run *run, int code, const char *reason)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!p->id || p->ending)
        return;
    p->ending = true;
    if (reason) {
        p->lost = p->id;
        snprintf(p->reason, sizeof p->reason, "%s", reason);
        sfc_warning_log("run %" PRIu64 ": the checkpoint of step %" PRIu64 " ends: %s", run->id,
                        p->step, reason);
    }
    refuse_waiting(run, code, reason ? reason : "the pin was taken back");
    if (!p->working)
        end_step(run);
}

void sfc_pinned_abandon(struct sfc_shard_run *run)
{
    refuse_waiting(run, SFC_EUNAVAILABLE, "the run was closed on this shard");
}

/* ---- pin */

static void reply_pin(struct sfc_shard_run *run, struct sfc_rpc_call *call)
{
    const struct sfc_pinned *p = sfc_pinned_of(run);
    Shardfc__V1__PinStepReply m = SHARDFC__V1__PIN_STEP_REPLY__INIT;
    m.pinned = p->step >= p->first;
    m.first = p->first;
    m.applied = sfc_step_applied(&run->fsm);
    m.lease_ms = SFC_PIN_LEASE_MS;
    sfc_call_reply(call, &m);
}

static int prepare_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    setpriority(PRIO_PROCESS, 0,
                NICE); /* this thread's, and its pool's: that is how Linux has it */
    int code = sfc_backend_open(run->shard->options->backend, 1, &sfc_pinned_of(run)->backend, err);
    if (code == SFC_OK)
        code = sfc_pinned_plan_memory(run, err);
    return code == SFC_OK ? sfc_pinned_allocate(run, err) : code;
}

/* Room for a record, and the first step that the log can give: its commit must be there too. A
 * change of the dense blocks that was begun before the pin has been made when this runs: the
 * thread is the same. */
static void look_at_log(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_storage *s = sfc_pinned_storage(run);
    struct sfc_step_log_state state;
    struct sfc_log_commit commit;
    pthread_mutex_lock(&s->log_lock);
    sfc_step_log_state(s->log, &state);
    p->body_bytes = sfc_step_log_body_size(s->log);
    if (state.first_step)
        p->log_from = state.first_step;
    while (p->log_from < state.last_step &&
           sfc_step_log_commit_of(s->log, p->log_from, &commit, NULL) != SFC_OK)
        p->log_from++;
    /* of a step to come the log may have one that was given up by a rewind */
    if (p->past && sfc_step_log_commit_of(s->log, p->step, &commit, NULL) == SFC_OK)
        p->logged_round = commit.round;
    pthread_mutex_unlock(&s->log_lock);
}

static int look_at_log_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    look_at_log(task->owner);
    return SFC_OK;
}

/* First step that a block can be made at: the least stamp whose next step is in the log. */
static uint64_t first_of(struct sfc_shard_run *run, const struct sfc_snapshot_block *block)
{
    const struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_storage *s = sfc_pinned_storage(run);
    uint64_t stamp = 0, any = 0;
    /* without the seed and a snapshot the base is on its way */
    pthread_mutex_lock(&s->list_lock);
    bool seeds = sfc_storage_seeds(s, block);
    pthread_mutex_unlock(&s->list_lock);
    bool has_start =
        seeds || !sfc_snapshot_store_least(s->store, block->kind, block->block, 0, &any);
    if (has_start && p->log_from <= s->start_step + 1)
        return s->start_step;
    return sfc_snapshot_store_least(s->store, block->kind, block->block, p->log_from - 1, &stamp)
               ? stamp
               : UINT64_MAX;
}

static int look_at_snapshots_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    (void)err;
    p->first = 0;
    for (size_t i = 0; i < sfc_pinned_storage(run)->pinned_count; i++) {
        if (sfc_pinned_block(run, i)->kind == SFC_SNAPSHOT_HISTORY)
            continue; /* comes from memory */
        uint64_t first = first_of(run, sfc_pinned_block(run, i));
        p->first = first > p->first ? first : p->first;
    }
    sfc_snapshot_store_pin(sfc_pinned_storage(run)->store, p->step);
    return SFC_OK;
}

static void checked(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!sfc_pinned_goes_on(run))
        return;
    p->checked = true;
    if (!p->round.incarnation)
        p->round = p->logged_round;
    struct sfc_rpc_call *call = p->pin_call;
    p->pin_call = NULL;
    if (call)
        reply_pin(run, call);
    if (p->step < p->first)
        end(run, SFC_ESTATE, NULL);
}

static void prepared(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!sfc_pinned_goes_on(run))
        return;
    if (task->code == SFC_OK) {
        sfc_pinned_submit(run, run->shard->snapshot_thread, look_at_snapshots_work, checked);
        return;
    }
    struct sfc_rpc_call *call = p->pin_call;
    p->pin_call = NULL;
    if (call)
        sfc_shard_refuse(run->shard, call, task->code, task->error.text);
    end(run, task->code, NULL);
}

static void log_seen(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (sfc_pinned_goes_on(run))
        sfc_pinned_submit(run, run->shard->checkpoint_thread, prepare_work, prepared);
}

static void note_floor(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!p->id || p->reached || sfc_step_applied(&run->fsm) < p->step)
        return;
    p->reached = true;
    p->floor = run->durability.floor;
}

/* The log has the commit of the newest step only with the Prepare that follows. */
static void note_round(struct sfc_shard_run *run)
{
    if (run->durability.newest.step == sfc_pinned_of(run)->step)
        sfc_pinned_of(run)->round = run->durability.newest.round;
}

static int take_blocks(const struct sfc_shard_run *run, struct sfc_shard_blocks *out,
                       struct sfc_error *err)
{
    out->class_blocks = calloc(run->class_count + 1, sizeof(uint64_t));
    out->dense_blocks = calloc(run->dense_count + 1, sizeof(uint64_t));
    if (!out->class_blocks || !out->dense_blocks)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the blocks of a pin");
    memcpy(out->class_blocks, run->class_blocks, run->class_count * sizeof(uint64_t));
    if (run->dense_count)
        memcpy(out->dense_blocks, run->dense_blocks, run->dense_count * sizeof(uint64_t));
    out->class_count = run->class_count;
    out->dense_count = run->dense_count;
    return SFC_OK;
}

/* call: NULL where it begins anew. */
static int begin(struct sfc_shard_run *run, struct sfc_rpc_call *call, uint64_t pin, uint64_t step,
                 struct sfc_error *err)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_shard_blocks own = {0};
    int code = take_blocks(run, &own, err);
    if (code == SFC_OK)
        code = sfc_storage_pin(sfc_pinned_storage(run), err);
    if (code != SFC_OK) {
        sfc_shard_blocks_free(&own);
        return code;
    }
    *p = (struct sfc_pinned){.id = pin,
                             .step = step,
                             .own = own,
                             .pin_call = call,
                             .log_from = sfc_durability_stamp(run) + 1, /* where it is empty */
                             .resident = run->resident,
                             .on_device = run->on_device,
                             .seen_ms = uv_now(run->shard->uv)};
    note_floor(run);
    note_round(run);
    p->past = p->reached;
    sfc_shard_watch_pin(run->shard);
    sfc_info_log("run %" PRIu64 ": a checkpoint of step %" PRIu64 " begins", run->id, step);
    sfc_pinned_submit(run, run->shard->log_thread, look_at_log_work, log_seen);
    return SFC_OK;
}

static int check_pin(const struct sfc_shard_run *run, const Shardfc__V1__PinStepRequest *r,
                     struct sfc_error *err)
{
    const struct sfc_pinned *p = &run->pinned;
    if (!run->durability.on)
        return sfc_fail(err, SFC_EUNSUPPORTED, "it keeps no step log (--durable off)");
    if (r->pin == 0 || r->step > run->setup.head.steps)
        return sfc_fail(err, SFC_EINVAL,
                        "pin: %" PRIu64 ", step: %" PRIu64 ", the run has %" PRIu64, r->pin,
                        r->step, run->setup.head.steps);
    if (p->lost == r->pin)
        return sfc_fail(err, SFC_ESTATE, "%s", p->reason);
    if (p->ending || (run->map_change && !p->id))
        return sfc_fail(err, SFC_ELIMIT,
                        p->ending ? "the checkpoint before this one is being put away; try again"
                                  : "the map is being changed; try again");
    if (p->id && p->id != r->pin)
        return sfc_fail(err, SFC_ESTATE,
                        "another checkpoint, of step %" PRIu64
                        ", is being made; wait for it, or end "
                        "its command: %d s later there is room",
                        p->step, SFC_PIN_LEASE_MS / 1000);
    if (p->id && p->step != r->step)
        return sfc_fail(err, SFC_EINVAL, "step: this pin is of step %" PRIu64, p->step);
    return SFC_OK;
}

void sfc_pinned_pin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                    const Shardfc__V1__PinStepRequest *r)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_error err = {0};
    int code = check_pin(run, r, &err);
    if (code == SFC_OK && !p->id) {
        code = begin(run, call, r->pin, r->step, &err);
        if (code == SFC_OK)
            return;
    }
    if (code != SFC_OK) {
        sfc_shard_refuse(run->shard, call, code, err.text);
        return;
    }
    p->seen_ms = uv_now(run->shard->uv);
    if (p->checked) {
        reply_pin(run, call);
        return;
    }
    if (p->pin_call)
        sfc_shard_refuse(run->shard, p->pin_call, SFC_EUNAVAILABLE, "asked again");
    p->pin_call = call;
}

void sfc_pinned_unpin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                      const Shardfc__V1__PinStepRequest *r)
{
    Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
    if (sfc_pinned_of(run)->renews == r->pin)
        sfc_pinned_of(run)->renews = 0;
    if (sfc_pinned_of(run)->id == r->pin)
        end(run, SFC_ECANCELED, NULL);
    sfc_call_reply(call, &m);
}

/* ---- reads */

static void reply_read(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    const struct sfc_pinned_read *w = &p->wanted;
    struct sfc_rpc_call *call = p->read_call;
    struct sfc_shared *values = sfc_shared_new(w->count * sizeof(float));
    p->read_call = NULL;
    if (!values) {
        sfc_shard_refuse(run->shard, call, SFC_ENOMEM, "no memory for the answer");
        return;
    }
    memcpy(values->data, (const float *)p->parts[w->part] + w->offset, w->count * sizeof(float));
    struct sfc_tensor_type type;
    Shardfc__V1__ReadBlockReply m = SHARDFC__V1__READ_BLOCK_REPLY__INIT;
    Shardfc__V1__Attempt round = SHARDFC__V1__ATTEMPT__INIT;
    round.incarnation = p->round.incarnation;
    round.counter = p->round.counter;
    m.round = round.incarnation ? &round : NULL;
    m.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, &w->count, 1);
    sfc_call_reply_tensor(call, &m, sfc_shared_borrow(values), sfc_shared_release, values);
    sfc_shared_drop(values);
}

static void reply_making(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_rpc_call *call = p->read_call;
    Shardfc__V1__ReadBlockReply m = SHARDFC__V1__READ_BLOCK_REPLY__INIT;
    m.making = true;
    p->read_call = NULL;
    sfc_call_reply(call, &m);
}

/* The read that waits: answered, refused, or its block is begun. */
void sfc_pinned_next_move(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (!p->read_call || p->working || p->ending)
        return;
    if (p->made && p->index == p->wanted.index) {
        reply_read(run);
    } else if (p->code != SFC_OK) {
        struct sfc_rpc_call *call = p->read_call;
        p->read_call = NULL;
        sfc_shard_refuse(run->shard, call, p->code, p->error.text);
        p->code = SFC_OK;
    } else if (sfc_durability_stamp(run) >= p->step) {
        sfc_pinned_make(run, p->wanted.index);
    }
}

int sfc_pinned_check(const struct sfc_shard_run *run, uint64_t pin, uint64_t step,
                     struct sfc_error *err)
{
    const struct sfc_pinned *p = &run->pinned;
    if (p->lost == pin)
        return sfc_fail(err, SFC_ESTATE, "%s", p->reason);
    if (p->id != pin || p->ending || !p->checked)
        return sfc_fail(err, SFC_ENOTFOUND, "pin: %" PRIu64 " is not known here (any more)", pin);
    if (p->step != step)
        return sfc_fail(err, SFC_EINVAL, "step: this pin is of step %" PRIu64, p->step);
    return SFC_OK;
}

static bool find_block(struct sfc_shard_run *run, int kind, uint64_t block, size_t *out)
{
    const struct sfc_storage *s = sfc_pinned_storage(run);
    for (size_t i = 0; i < s->pinned_count; i++) /* kinds have the same numbers */
        if ((int)s->pinned[i].kind == kind && s->pinned[i].block == block) {
            *out = i;
            return true;
        }
    return false;
}

void sfc_pinned_read(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     const Shardfc__V1__ReadBlockRequest *r)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_pinned_read wanted = {
        .part = (enum sfc_snapshot_part)r->part, .offset = r->offset, .count = r->count};
    if (!find_block(run, (int)r->kind, r->block, &wanted.index)) {
        sfc_shard_refuse(run->shard, call, SFC_ESTALE,
                         "block: not one of this shard's when the step was pinned");
        return;
    }
    if (p->read_call)
        sfc_shard_refuse(run->shard, p->read_call, SFC_EUNAVAILABLE, "asked again");
    p->read_call = call;
    p->wanted = wanted;
    p->seen_ms = p->read_ms = uv_now(run->shard->uv);
    sfc_pinned_next_move(run);
}

/* ---- what happens meanwhile */

void sfc_pinned_applied(struct sfc_shard_run *run)
{
    note_floor(run);
    note_round(run);
    sfc_pinned_next_move(run);
}

uint64_t sfc_pinned_floor(const struct sfc_shard_run *run)
{
    const struct sfc_pinned *p = &run->pinned;
    return p->id && !p->ending && p->reached ? p->floor : UINT64_MAX;
}

void sfc_pinned_give_way(struct sfc_shard_run *run)
{
    if (sfc_pinned_floor(run) < run->durability.floor)
        end(run, SFC_ESTATE,
            "the step log of this shard is full, and the steps since then need the room that the "
            "checkpoint kept: give it more (--log-limit) or try again");
}

bool sfc_pinned_moves(struct sfc_shard_run *run, bool grows)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    if (p->id && p->reached && grows)
        end(run, SFC_ESTATE,
            "identities have been added to the run, and the checkpoint is of a step before: take "
            "it again");
    if (p->id && p->reached && !p->ending) {
        p->outlived = true;
        return true;
    }
    if (p->id && !p->ending) {
        p->renews = p->id;
        end(run, SFC_EUNAVAILABLE, NULL);
    }
    return !p->id;
}

void sfc_pinned_mapped(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    struct sfc_error err = {0};
    uint64_t pin = p->renews;
    p->renews = 0;
    if (pin && !p->id && begin(run, NULL, pin, p->step, &err) != SFC_OK)
        sfc_warning_log("run %" PRIu64 ": the checkpoint of step %" PRIu64 " ends: %s", run->id,
                        p->step, err.text);
}

bool sfc_pinned_serves(const struct sfc_shard_run *run)
{
    return run->pinned.id && run->pinned.reached && !run->pinned.ending;
}

/* Who comes back may pin it again: the log may still have what it needs. */
static void let_go(struct sfc_shard_run *run)
{
    sfc_warning_log("run %" PRIu64 ": the checkpoint of step %" PRIu64
                    " ends: nobody has asked for it for a while",
                    run->id, sfc_pinned_of(run)->step);
    end(run, SFC_ENOTFOUND, NULL);
}

void sfc_pinned_tick(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = sfc_pinned_of(run);
    uint64_t now = uv_now(run->shard->uv);
    if (p->pin_call || p->read_call) /* somebody waits, however long it takes here */
        p->seen_ms = now;
    if (p->read_call && now >= p->read_ms + READ_WAIT_MS)
        reply_making(run);
    if (p->id && !p->ending && now > p->seen_ms + SFC_PIN_LEASE_MS)
        let_go(run);
}

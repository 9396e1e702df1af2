#include "server/shard/pinned.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "proto/base/log.h"
#include "proto/tensor.h"
#include "server/shard/block_copy.h"
#include "server/shard/shard_internal.h"

#define READ_WAIT_MS 1000 /* then: still being made, ask again */
#define NICE         10
#define GROUP_BYTES  (UINT64_C(256) << 20)

static struct sfc_pinned *of(struct sfc_shard_run *run)
{
    return &run->pinned;
}

static struct sfc_storage *storage(struct sfc_shard_run *run)
{
    return &run->durability.storage;
}

static bool keeps_rates(const struct sfc_shard_run *run)
{
    return run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE;
}

/* ---- one task or job at a time */

typedef int (*work_fn)(struct sfc_task *task, struct sfc_error *err);

static void end_step(struct sfc_shard_run *run);

/* Whether what comes next may come. */
static bool goes_on(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    if (run->closed)
        return false;
    p->working = false;
    if (p->ending)
        end_step(run);
    return !p->ending;
}

static void submit(struct sfc_shard_run *run, struct sfc_tasks *thread, work_fn work,
                   void (*done)(struct sfc_task *task))
{
    struct sfc_pinned *p = of(run);
    p->working = true;
    p->task = (struct sfc_task){.work = work, .done = done, .owner = run};
    sfc_tasks_submit(thread, &p->task);
}

static void submit_job(struct sfc_shard_run *run,
                       int (*work)(void *, struct sfc_head *, struct sfc_dense *,
                                   struct sfc_error *),
                       void (*done)(struct sfc_compute_job *job))
{
    struct sfc_pinned *p = of(run);
    p->working = true;
    p->job = (struct sfc_compute_job){.kind = SFC_COMPUTE_CALL, .done = done, .owner = run};
    p->job.u.call.fn = work;
    p->job.u.call.ctx = run;
    sfc_compute_submit(run->shard->compute, &p->job);
}

/* ---- the end of a pin */

static void free_buffers(struct sfc_pinned *p)
{
    sfc_replay_close(&p->replay);
    sfc_folder_close(p->folder);
    p->folder = NULL;
    free(p->sums);
    free(p->values);
    free(p->rates);
    p->sums = NULL;
    p->values = p->rates = NULL;
}

static void free_group(struct sfc_pinned *p)
{
    sfc_head_free(p->head);
    sfc_dense_free(p->dense);
    p->head = NULL;
    p->dense = NULL;
}

void sfc_pinned_release(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    free_group(p);
    sfc_backend_close(p->backend);
    p->backend = NULL;
    free_buffers(p);
}

static int release_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    sfc_pinned_release(task->owner);
    return SFC_OK;
}

static int unpin_work(struct sfc_task *task, struct sfc_error *err)
{
    (void)err;
    sfc_snapshot_store_unpin(storage(task->owner)->store);
    return SFC_OK;
}

static void unpin_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    struct sfc_pinned gone = {.lost = p->lost};
    if (run->closed)
        return;
    memcpy(gone.reason, p->reason, sizeof gone.reason);
    *p = gone;
}

static void release_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!run->closed)
        submit(run, run->shard->snapshot_thread, unpin_work, unpin_done);
}

static void end_step(struct sfc_shard_run *run)
{
    submit(run, run->shard->checkpoint_thread, release_work, release_done);
}

static void refuse_waiting(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_pinned *p = of(run);
    struct sfc_rpc_call *calls[2] = {p->pin_call, p->read_call};
    p->pin_call = p->read_call = NULL;
    for (int i = 0; i < 2; i++)
        if (calls[i])
            sfc_shard_refuse(run->shard, calls[i], code, text);
}

/* reason: NULL when its client wants it so. */
static void end(struct sfc_shard_run *run, int code, const char *reason)
{
    struct sfc_pinned *p = of(run);
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
    const struct sfc_pinned *p = of(run);
    Shardfc__V1__PinStepReply m = SHARDFC__V1__PIN_STEP_REPLY__INIT;
    m.pinned = p->step >= p->first;
    m.first = p->first;
    m.applied = sfc_step_applied(&run->fsm);
    m.lease_ms = SFC_PIN_LEASE_MS;
    sfc_call_reply(call, &m);
}

static uint64_t block_floats(const struct sfc_snapshot_shape *shape)
{
    uint64_t floats = 0;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++)
        floats += sfc_snapshot_part_bytes(shape, (enum sfc_snapshot_part)i) / sizeof(float);
    return floats;
}

static void shape_of(struct sfc_shard_run *run, size_t index, struct sfc_snapshot_shape *out)
{
    sfc_storage_shape(storage(run), index, of(run)->step, out);
    out->dtype = SFC_SNAPSHOT_F32; /* what ReadBlock gives */
}

static uint64_t largest_floats(struct sfc_shard_run *run)
{
    uint64_t largest = 1;
    for (size_t i = 0; i < storage(run)->count; i++) {
        struct sfc_snapshot_shape shape;
        if (storage(run)->blocks[i].kind == SFC_SNAPSHOT_HISTORY)
            continue;
        shape_of(run, i, &shape);
        uint64_t floats = block_floats(&shape);
        largest = floats > largest ? floats : largest;
    }
    return largest;
}

static struct sfc_head_config head_config(const struct sfc_shard_run *run)
{
    struct sfc_head_config c = run->setup.head;
    c.slots = run->setup.micro_batches;
    return c;
}

/* The steps' sums come from the log, so nothing is kept per micro-batch. */
static struct sfc_dense_config dense_config(const struct sfc_shard_run *run)
{
    struct sfc_dense_config c = run->setup.dense;
    c.slots = c.micro_batches = 1;
    return c;
}

/* Most blocks of one kind that take up to `room` bytes; 0: not even one. */
static size_t blocks_within(uint64_t one, uint64_t two, uint64_t room, size_t count)
{
    uint64_t more = two > one ? two - one : 1;
    if (one > room)
        return 0;
    uint64_t n = 1 + (room - one) / more;
    return n < count ? (size_t)n : count;
}

static uint64_t sum_of(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

static int class_room(struct sfc_shard_run *run, uint64_t room, uint64_t *needed,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    struct sfc_head_config c = head_config(run);
    struct sfc_memory one, two;
    size_t n = run->class_count < 2 ? run->class_count : 2;
    int code = sfc_head_memory(p->backend, &c, run->class_blocks, 1, &one, err);
    if (code == SFC_OK)
        code = sfc_head_memory(p->backend, &c, run->class_blocks, n, &two, err);
    if (code != SFC_OK)
        return code;
    p->class_room = blocks_within(sum_of(&one), sum_of(&two), room, run->class_count);
    *needed = sum_of(&one);
    return SFC_OK;
}

/* A dense block's share of the packed sums counts too. */
static int dense_room(struct sfc_shard_run *run, uint64_t room, uint64_t *needed,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    struct sfc_dense_config c = dense_config(run);
    struct sfc_memory one, two;
    uint64_t sums = UINT64_C(4) * c.block_size + 8;
    size_t n = run->dense_count < 2 ? run->dense_count : 2;
    int code = sfc_dense_memory(p->backend, &c, run->dense_blocks, 1, &one, err);
    if (code == SFC_OK)
        code = sfc_dense_memory(p->backend, &c, run->dense_blocks, n, &two, err);
    if (code != SFC_OK)
        return code;
    p->dense_room =
        blocks_within(sum_of(&one) + sums, sum_of(&two) + 2 * sums, room, run->dense_count);
    *needed = sum_of(&one) + sums;
    return SFC_OK;
}

/* The block as it is read, the snapshot that one comes from, a step, the rates. */
static uint64_t fixed_bytes(struct sfc_shard_run *run)
{
    return 2 * largest_floats(run) * sizeof(float) + sfc_storage_body_bytes(storage(run)) +
           run->setup.head.batch * UINT64_C(40) +
           (keeps_rates(run) ? (of(run)->step + 1) * sizeof(float) : 0);
}

static int short_of_memory(uint64_t of_run, uint64_t need, uint64_t limit, const char *which,
                           struct sfc_error *err)
{
    return sfc_fail(err, SFC_ENOMEM,
                    "a checkpoint beside the training needs %.1f MiB; the run has %.1f of the "
                    "%.1f MiB %s%sthat this shard may use (--memory)",
                    (double)(need - of_run) / (1 << 20), (double)of_run / (1 << 20),
                    (double)limit / (1 << 20), which, *which ? " " : "");
}

static int plan_memory(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    bool device = run->shard->device_limit > 0;
    uint64_t limit = run->shard->memory_limit, taken = run->resident + fixed_bytes(run);
    if (device && taken > limit)
        return short_of_memory(run->resident, taken, limit, "of the machine's memory", err);
    if (device) { /* the blocks of a group go to the device */
        limit = run->shard->device_limit;
        taken = run->on_device;
    }
    uint64_t room = limit > taken ? limit - taken : 0, least = 0, least_dense = 0;
    room = room < GROUP_BYTES ? room : GROUP_BYTES;
    int code = class_room(run, room, &least, err);
    if (code == SFC_OK && run->dense_count)
        code = dense_room(run, room, &least_dense, err);
    least = least > least_dense ? least : least_dense;
    if (code == SFC_OK && taken + least > limit)
        code = short_of_memory(device ? run->on_device : run->resident, taken + least, limit,
                               device ? "of the device's memory" : "", err);
    /* one block may be larger than a group should be */
    p->class_room += p->class_room == 0;
    p->dense_room += p->dense_room == 0;
    return code;
}

static int allocate(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    struct sfc_storage *s = storage(run);
    size_t sums = p->dense_room * (size_t)run->setup.dense.block_size * sizeof(float) + 64;
    p->values = malloc(largest_floats(run) * sizeof *p->values);
    p->sums = aligned_alloc(64, (sums + 63) / 64 * 64);
    if (keeps_rates(run))
        p->rates = malloc((p->step + 1) * sizeof *p->rates);
    if (!p->values || !p->sums || (keeps_rates(run) && !p->rates))
        return sfc_fail(err, SFC_ENOMEM, "no memory for a block");
    int code = sfc_run_folder_open(s->state, s->run_id, false, &p->folder, err);
    return code == SFC_OK
               ? sfc_replay_init(&p->replay, &run->setup.head, sfc_storage_body_bytes(s), err)
               : code;
}

static int prepare_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    setpriority(PRIO_PROCESS, 0,
                NICE); /* this thread's, and its pool's: that is how Linux has it */
    int code = sfc_backend_open(run->shard->options->backend, 1, &of(run)->backend, err);
    if (code == SFC_OK)
        code = plan_memory(run, err);
    return code == SFC_OK ? allocate(run, err) : code;
}

/* First step that the log can give: its commit must be there too. */
static void look_at_log(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    struct sfc_storage *s = storage(run);
    struct sfc_step_log_state state;
    struct sfc_log_commit commit;
    pthread_mutex_lock(&s->log_lock);
    sfc_step_log_state(s->log, &state);
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
    const struct sfc_pinned *p = of(run);
    struct sfc_storage *s = storage(run);
    uint64_t stamp = 0, any = 0;
    /* without the seed and a snapshot the base is on its way */
    bool has_start =
        s->from_seed || !sfc_snapshot_store_least(s->store, block->kind, block->block, 0, &any);
    if (has_start && p->log_from <= s->start_step + 1)
        return s->start_step;
    return sfc_snapshot_store_least(s->store, block->kind, block->block, p->log_from - 1, &stamp)
               ? stamp
               : UINT64_MAX;
}

static int look_at_snapshots_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    (void)err;
    p->first = 0;
    for (size_t i = 0; i < storage(run)->count; i++) {
        if (storage(run)->blocks[i].kind == SFC_SNAPSHOT_HISTORY)
            continue; /* comes from memory */
        uint64_t first = first_of(run, &storage(run)->blocks[i]);
        p->first = first > p->first ? first : p->first;
    }
    sfc_snapshot_store_pin(storage(run)->store, p->step);
    return SFC_OK;
}

static void checked(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    if (!goes_on(run))
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

static void log_seen(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (goes_on(run))
        submit(run, run->shard->snapshot_thread, look_at_snapshots_work, checked);
}

static void prepared(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    if (!goes_on(run))
        return;
    if (task->code == SFC_OK) {
        submit(run, run->shard->log_thread, look_at_log_work, log_seen);
        return;
    }
    struct sfc_rpc_call *call = p->pin_call;
    p->pin_call = NULL;
    if (call)
        sfc_shard_refuse(run->shard, call, task->code, task->error.text);
    end(run, task->code, NULL);
}

static void note_floor(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    if (!p->id || p->reached || sfc_step_applied(&run->fsm) < p->step)
        return;
    p->reached = true;
    p->floor = run->durability.floor;
}

/* The log has the commit of the newest step only with the Prepare that follows. */
static void note_round(struct sfc_shard_run *run)
{
    if (run->durability.newest.step == of(run)->step)
        of(run)->round = run->durability.newest.round;
}

static void begin(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                  const Shardfc__V1__PinStepRequest *r)
{
    struct sfc_pinned *p = of(run);
    *p = (struct sfc_pinned){.id = r->pin,
                             .step = r->step,
                             .pin_call = call,
                             .log_from = sfc_durability_stamp(run) + 1, /* where it is empty */
                             .seen_ms = uv_now(run->shard->uv)};
    note_floor(run);
    note_round(run);
    p->past = p->reached;
    sfc_shard_watch_pin(run->shard);
    sfc_info_log("run %" PRIu64 ": a checkpoint of step %" PRIu64 " begins", run->id, r->step);
    submit(run, run->shard->checkpoint_thread, prepare_work, prepared);
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
    if (p->ending)
        return sfc_fail(err, SFC_EUNAVAILABLE, "the checkpoint before this one is being put away");
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
    struct sfc_pinned *p = of(run);
    struct sfc_error err = {0};
    if (check_pin(run, r, &err) != SFC_OK) {
        sfc_shard_refuse(run->shard, call, err.code, err.text);
        return;
    }
    if (!p->id) {
        begin(run, call, r);
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

void sfc_pinned_unpin(struct sfc_shard_run *run, struct sfc_rpc_call *call, uint64_t pin)
{
    Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
    if (of(run)->id == pin)
        end(run, SFC_ECANCELED, NULL);
    sfc_call_reply(call, &m);
}

/* ---- a block */

static void next_move(struct sfc_shard_run *run);

static void made(struct sfc_shard_run *run, int code, const struct sfc_error *error)
{
    struct sfc_pinned *p = of(run);
    p->made = code == SFC_OK;
    p->code = code;
    if (code != SFC_OK)
        p->error = *error;
    next_move(run);
}

static void job_made(struct sfc_compute_job *job)
{
    if (goes_on(job->owner))
        made(job->owner, job->code, &job->error);
}

static void task_made(struct sfc_task *task)
{
    if (goes_on(task->owner))
        made(task->owner, task->code, &task->error);
}

/* Where the parts of the block go. */
static void lay_out(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    bool history = storage(run)->blocks[p->index].kind == SFC_SNAPSHOT_HISTORY;
    float *at = history ? p->rates : p->values;
    shape_of(run, p->index, &p->shape);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        p->parts[i] = p->shape.has[i] ? at : NULL;
        at += sfc_snapshot_part_bytes(&p->shape, (enum sfc_snapshot_part)i) / sizeof *at;
    }
}

static int copy_live_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                          struct sfc_error *err)
{
    struct sfc_shard_run *run = ctx;
    struct sfc_pinned *p = of(run);
    return sfc_block_save(head, dense, &storage(run)->blocks[p->index], &p->shape, p->parts, err);
}

static int copy_made_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    return copy_live_work(run, p->head, p->dense, err);
}

/* Rates of steps that are over don't change, however far the run has come. */
static int rates_work(void *ctx, struct sfc_head *head, struct sfc_dense *dense,
                      struct sfc_error *err)
{
    struct sfc_pinned *p = of(ctx);
    (void)dense;
    return p->step > 0 ? sfc_head_read_rates(head, 0, p->step, p->rates, err) : SFC_OK;
}

static int new_group_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    bool is_dense = storage(run)->blocks[p->group].kind == SFC_SNAPSHOT_DENSE;
    struct sfc_head_config head = head_config(run);
    struct sfc_dense_config dense = dense_config(run);
    free_group(p);
    return is_dense ? sfc_dense_new(p->backend, &dense,
                                    run->dense_blocks + (p->group - run->class_count), p->count,
                                    &p->dense, err)
                    : sfc_head_new(p->backend, &head, run->class_blocks + p->group, p->count,
                                   &p->head, err);
}

/* One block as its snapshot has it, or as the seed made it. */
static int restore_block(struct sfc_shard_run *run, size_t index, uint64_t *stamp,
                         struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    struct sfc_storage *s = storage(run);
    const struct sfc_snapshot_block *block = &s->blocks[index];
    struct sfc_snapshot_shape shape;
    struct sfc_snapshot_content content;
    sfc_storage_shape(s, index, p->step, &shape);
    int code = sfc_snapshot_store_read(s->store, block->kind, block->block, p->step, &shape,
                                       &content, p->loud, err);
    if ((code == SFC_ENOTFOUND || code == SFC_ECORRUPT) && s->from_seed) {
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
    struct sfc_pinned *p = of(run);
    uint64_t stamp = 0;
    int code = restore_block(run, p->group + p->restored, &stamp, err);
    if (code != SFC_OK)
        return code;
    p->at = stamp < p->at ? stamp : p->at;
    p->restored++;
    if (p->restored == p->count && p->head && keeps_rates(run) && p->at > 0)
        code = sfc_head_write_rates(p->head, 0, p->at, p->rates, err);
    return code;
}

/* The sums of the group, cut out of those of all own dense blocks. */
static void cut_sums(struct sfc_shard_run *run, const char *in)
{
    struct sfc_pinned *p = of(run);
    const struct sfc_dense_config *c = &run->setup.dense;
    size_t first = p->group - run->class_count;
    struct sfc_dense_packing own = sfc_dense_packing_of(c, run->dense_blocks + first, p->count);
    struct sfc_dense_packing before = sfc_dense_packing_of(c, run->dense_blocks, first);
    struct sfc_dense_packing all = sfc_dense_packing_of(c, run->dense_blocks, run->dense_count);
    uint64_t in_floats = sfc_dense_packed_bytes(&all) - all.floats * sizeof(float);
    uint64_t out_floats = sfc_dense_packed_bytes(&own) - own.floats * sizeof(float);
    char *out = p->sums;
    memset(out, 0, out_floats);
    memcpy(out, in + before.halves * sizeof(uint16_t), own.halves * sizeof(uint16_t));
    memcpy(out + out_floats, in + in_floats + before.floats * sizeof(float),
           own.floats * sizeof(float));
}

/* Rounds only rise: a commit of an older one than the step before has was given up (rewind). */
static int find_step(struct sfc_shard_run *run, struct sfc_log_place_of *place,
                     struct sfc_error *err)
{
    struct sfc_pinned *p = of(run);
    struct sfc_attempt before = p->commit.round;
    p->commit = p->newest;
    int code = sfc_storage_find_step(storage(run), p->at + 1, NULL, &p->commit, place, err);
    if (code == SFC_OK && sfc_attempt_compare(p->commit.round, before) < 0)
        code = sfc_fail(err, SFC_ENOTFOUND,
                        "step %" PRIu64 ": the log has only a commit that was given up", p->at + 1);
    return code;
}

static int apply_step_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    struct sfc_log_prepare_view inputs = {0};
    struct sfc_log_place_of place;
    int code = find_step(run, &place, err);
    if (code == SFC_OK && p->commit.apply)
        code = sfc_step_log_read_at(p->folder, &storage(run)->config.geometry, &place,
                                    p->replay.body, &inputs, err);
    if (code == SFC_OK && p->commit.apply && p->dense && !inputs.dense)
        code = sfc_fail(err, SFC_ECORRUPT,
                        "step %" PRIu64 ": the sums of its backbone gradient are lost", p->at + 1);
    if (code == SFC_OK && p->commit.apply && p->dense)
        cut_sums(run, inputs.dense);
    if (code == SFC_OK)
        code = sfc_replay_step(&p->replay, p->head, p->dense, &p->commit, &inputs, p->sums, err);
    p->at += code == SFC_OK;
    return code;
}

static void next_step(struct sfc_shard_run *run);

static void step_applied(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    if (!goes_on(run))
        return;
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else
        next_step(run);
}

static void next_step(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    if (p->at >= p->step) {
        p->grouped = true;
        submit(run, run->shard->checkpoint_thread, copy_made_work, task_made);
        return;
    }
    p->newest = run->durability.newest;
    submit(run, run->shard->checkpoint_thread, apply_step_work, step_applied);
}

static void block_restored(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    if (!goes_on(run))
        return;
    if (p->loud[0])
        sfc_warning_log("run %" PRIu64 ": %s", run->id, p->loud);
    p->loud[0] = 0;
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else if (p->restored < p->count)
        submit(run, run->shard->snapshot_thread, restore_work, block_restored);
    else
        next_step(run);
}

static void group_new(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_pinned *p = of(run);
    if (!goes_on(run))
        return;
    p->restored = 0;
    p->at = UINT64_MAX;
    p->commit = (struct sfc_log_commit){0};
    if (task->code != SFC_OK)
        made(run, task->code, &task->error);
    else
        submit(run, run->shard->snapshot_thread, restore_work, block_restored);
}

/* The block and those behind it of its kind. */
static void new_group(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    bool is_dense = storage(run)->blocks[p->index].kind == SFC_SNAPSHOT_DENSE;
    size_t end = run->class_count + (is_dense ? run->dense_count : 0);
    size_t room = is_dense ? p->dense_room : p->class_room;
    p->grouped = false;
    p->group = p->index;
    p->count = end - p->index < room ? end - p->index : room;
    submit(run, run->shard->checkpoint_thread, new_group_work, group_new);
}

static void rates_read(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    struct sfc_pinned *p = of(run);
    if (!goes_on(run))
        return;
    p->has_rates = job->code == SFC_OK;
    if (job->code != SFC_OK || storage(run)->blocks[p->index].kind == SFC_SNAPSHOT_HISTORY)
        made(run, job->code, &job->error);
    else
        new_group(run);
}

static void make(struct sfc_shard_run *run, size_t index)
{
    struct sfc_pinned *p = of(run);
    enum sfc_snapshot_kind kind = storage(run)->blocks[index].kind;
    p->index = index;
    p->made = false;
    p->loud[0] = 0;
    lay_out(run);
    if (p->grouped && index >= p->group && index - p->group < p->count)
        submit(run, run->shard->checkpoint_thread, copy_made_work, task_made);
    else if (kind != SFC_SNAPSHOT_HISTORY && sfc_durability_stamp(run) == p->step)
        submit_job(run, copy_live_work, job_made);
    else if (keeps_rates(run) && !p->has_rates)
        submit_job(run, rates_work, rates_read);
    else if (kind == SFC_SNAPSHOT_HISTORY)
        made(run, SFC_OK, NULL);
    else
        new_group(run);
}

/* ---- reads */

static void reply_read(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
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
    struct sfc_pinned *p = of(run);
    struct sfc_rpc_call *call = p->read_call;
    Shardfc__V1__ReadBlockReply m = SHARDFC__V1__READ_BLOCK_REPLY__INIT;
    m.making = true;
    p->read_call = NULL;
    sfc_call_reply(call, &m);
}

/* The read that waits: answered, refused, or its block is begun. */
static void next_move(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
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
        make(run, p->wanted.index);
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
    const struct sfc_storage *s = storage(run);
    for (size_t i = 0; i < s->count; i++) /* kinds have the same numbers */
        if ((int)s->blocks[i].kind == kind && s->blocks[i].block == block) {
            *out = i;
            return true;
        }
    return false;
}

void sfc_pinned_read(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     const Shardfc__V1__ReadBlockRequest *r)
{
    struct sfc_pinned *p = of(run);
    struct sfc_pinned_read wanted = {
        .part = (enum sfc_snapshot_part)r->part, .offset = r->offset, .count = r->count};
    if (!find_block(run, (int)r->kind, r->block, &wanted.index)) {
        sfc_shard_refuse(run->shard, call, SFC_ENOTFOUND, "block: not one of this shard's");
        return;
    }
    if (p->read_call)
        sfc_shard_refuse(run->shard, p->read_call, SFC_EUNAVAILABLE, "asked again");
    p->read_call = call;
    p->wanted = wanted;
    p->seen_ms = p->read_ms = uv_now(run->shard->uv);
    next_move(run);
}

/* ---- what happens meanwhile */

void sfc_pinned_applied(struct sfc_shard_run *run)
{
    note_floor(run);
    note_round(run);
    next_move(run);
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

void sfc_pinned_tick(struct sfc_shard_run *run)
{
    struct sfc_pinned *p = of(run);
    uint64_t now = uv_now(run->shard->uv);
    if (p->read_call && now >= p->read_ms + READ_WAIT_MS) {
        p->seen_ms = now;
        reply_making(run);
    }
    if (p->id && !p->ending && now > p->seen_ms + SFC_PIN_LEASE_MS)
        end(run, SFC_ESTATE, "nobody has asked for it for a while");
}

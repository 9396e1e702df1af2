/* From a goal to orders: joins first, then batches of blocks, then shards leave. */
#include "server/scheduler/scale.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/scheduler/scale_parts.h"

#define AGAIN_MS 1000u /* a plan that can't be carried out is made anew after so long */

/* How much one order moves. Where the run stands still nobody waits for a flip, and each costs as
 * much as a good part of a copy. While it trains, a flip waits for the rows that about two steps
 * changed: they may take so much of a step, at so many bytes per second. */
#define STILL_BYTES    (512ull << 20)
#define TRAINING_BYTES (80ull << 20)
#define FLIP_SHARE     0.25
#define FLIP_RATE      300e6
static int load_new(const struct sfc_sched_run *run, struct sfc_block_load *out,
                    struct sfc_error *err)
{
    const struct sfc_block_load_config c = {.classes = run->setup.head.classes,
                                            .block_size = run->setup.head.block_size,
                                            .sample_ppm = run->setup.head.sample_ppm,
                                            .batch = run->setup.head.batch};
    return sfc_block_load_init(out, &c, err);
}

int sfc_scale_new(struct sfc_sched_run *run, struct sfc_scale **out, struct sfc_error *err)
{
    struct sfc_scale *scale = calloc(1, sizeof *scale);
    if (!scale)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the run's goal");
    int code = load_new(run, &scale->load, err);
    if (code == SFC_OK)
        *out = scale;
    else
        free(scale);
    return code;
}

void sfc_scale_free(struct sfc_scale *scale)
{
    if (!scale)
        return;
    sfc_move_plan_free(&scale->plan);
    sfc_block_load_free(&scale->load);
    free(scale);
}

void sfc_scale_note_step(struct sfc_sched_run *run, uint64_t step)
{
    const uint64_t *labels = sfc_run_labels(&run->fsm, step);
    if (labels)
        sfc_block_load_note(&run->scale->load, labels, run->config->global_batch);
}

/* ---- the goal */

struct sfc_goal sfc_scale_goal_of(const Shardfc__V1__ScaleRequest *r)
{
    static const enum sfc_goal_kind kinds[] = {
        [SHARDFC__V1__SCALE_REQUEST__ACTION__SHARDS] = SFC_GOAL_SHARDS,
        [SHARDFC__V1__SCALE_REQUEST__ACTION__DRAIN] = SFC_GOAL_DRAIN,
        [SHARDFC__V1__SCALE_REQUEST__ACTION__REBALANCE] = SFC_GOAL_REBALANCE,
        [SHARDFC__V1__SCALE_REQUEST__ACTION__JOIN] = SFC_GOAL_JOIN,
    };
    struct sfc_goal goal = {.shards = r->shards, .shard = r->shard};
    int action = (int)r->action;
    if (action >= 0 && (size_t)action < sizeof kinds / sizeof *kinds)
        goal.kind = kinds[action];
    return goal;
}

struct goal_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id;
    struct sfc_goal goal;
    struct sfc_wishes wishes;
    uint64_t spread, number, reached;
    bool of_wishes; /* they have changed, the goal has not */
    uint8_t *bytes;
    size_t size;
    void (*done)(void *ctx, const struct sfc_error *err);
    void *ctx;
};

/* NULL: no memory. */
static uint8_t *pack_goal(struct goal_task *t)
{
    const struct sfc_goal *goal = &t->goal;
    Shardfc__V1__ScaleRequest m = SHARDFC__V1__SCALE_REQUEST__INIT;
    switch (goal->kind) {
    case SFC_GOAL_SHARDS:
        m.action = SHARDFC__V1__SCALE_REQUEST__ACTION__SHARDS;
        break;
    case SFC_GOAL_DRAIN:
        m.action = SHARDFC__V1__SCALE_REQUEST__ACTION__DRAIN;
        break;
    case SFC_GOAL_REBALANCE:
        m.action = SHARDFC__V1__SCALE_REQUEST__ACTION__REBALANCE;
        break;
    case SFC_GOAL_JOIN:
        m.action = SHARDFC__V1__SCALE_REQUEST__ACTION__JOIN;
        break;
    case SFC_GOAL_NONE:
        m.action = SHARDFC__V1__SCALE_REQUEST__ACTION__CANCEL;
        break;
    }
    m.shards = goal->shards;
    m.shard = goal->shard;
    m.lost = t->wishes.shards;
    m.n_lost = t->wishes.count;
    m.spread = t->spread;
    m.number = t->number;
    m.reached = t->reached;
    return sfc_message_pack(&m, &t->size);
}

int sfc_scale_restore(struct sfc_sched_run *run, struct sfc_error *err)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    int code = sfc_store_goal(run->scheduler->store, run->id, &bytes, &size, err);
    if (code != SFC_OK || size == 0)
        return code;
    Shardfc__V1__ScaleRequest *r =
        sfc_unpack((struct sfc_bytes){bytes, size}, &shardfc__v1__scale_request__descriptor, &code);
    free(bytes);
    if (!r)
        return sfc_fail(err, code, "the stored goal of run %" PRIu64 " can't be read", run->id);
    run->scale->goal = sfc_scale_goal_of(r);
    run->scale->number = r->number;
    run->scale->reached = r->reached;
    run->losing.spread = r->spread;
    struct sfc_wishes *wishes = &run->losing.wishes;
    for (size_t i = 0; i < r->n_lost && wishes->count < SFC_CORE_MAX_SHARDS; i++)
        wishes->shards[wishes->count++] = r->lost[i];
    sfc_message_free(r);
    return SFC_OK;
}

static void drop_plan(struct sfc_scale *scale)
{
    sfc_move_plan_free(&scale->plan);
    scale->planned = false;
    scale->done_batches = 0;
    scale->waits[0] = '\0';
}

/* Shards that the plan lets go, for Status. */
static void mark_leaving(struct sfc_sched_run *run)
{
    struct sfc_scheduler *s = run->scheduler;
    const struct sfc_scale *scale = run->scale;
    for (size_t i = 0; i < SFC_CORE_MAX_SHARDS; i++)
        s->shards[i].leaving = false;
    for (uint32_t k = 0; scale->planned && k < SFC_CORE_MAX_SHARDS; k++) {
        struct sfc_shard_info *info =
            scale->plan.leaves[k] ? sfc_sched_shard(s, scale->ids[k]) : NULL;
        if (info)
            info->leaving = true;
    }
}

static void set_goal(struct sfc_sched_run *run, const struct sfc_goal *goal)
{
    struct sfc_scale *scale = run->scale;
    uint64_t order = scale->order;
    drop_plan(scale);
    scale->goal = *goal;
    scale->order = 0; /* how it ends changes nothing any more */
    scale->order_shrinks = false;
    scale->moved = 0;
    scale->full_count = 0;
    scale->again_ms = 0;
    mark_leaving(run);
    if (order)
        sfc_sched_order_cancel(run, order);
}

static void goal_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct goal_task *t = (struct goal_task *)task;
    bool none =
        t->goal.kind == SFC_GOAL_NONE && t->wishes.count == 0 && t->spread == 0 && t->number == 0;
    task->code = sfc_store_put_goal(store, t->run_id, t->bytes, none ? 0 : t->size, &task->error);
}

static void goal_done(struct sfc_store_task *task)
{
    struct goal_task *t = (struct goal_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    bool ours = run && run->id == t->run_id;
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    else if (!ours)
        task->code = sfc_fail(&task->error, SFC_ESTALE, "the run has ended");
    if (ours)
        run->scale->storing = false;
    if (ours && task->code == SFC_OK) {
        run->losing.spread = t->spread;
        run->scale->number = t->number;
    }
    if (ours && task->code == SFC_OK && t->of_wishes) {
        run->losing.wishes = t->wishes;
        run->losing.again_ms = 0;
    } else if (ours && task->code == SFC_OK && !t->scheduler->stopping) {
        set_goal(run, &t->goal);
    }
    task->error.code = task->code;
    if (t->done)
        t->done(t->ctx, &task->error);
    sfc_scale_stored(t->scheduler);
    free(t->bytes);
    free(t);
}

/* wishes NULL: those of now. */
static void store(struct sfc_sched_run *run, const struct sfc_goal *goal,
                  const struct sfc_wishes *wishes, uint64_t spread,
                  void (*done)(void *ctx, const struct sfc_error *err), void *ctx)
{
    struct goal_task *t = calloc(1, sizeof *t);
    if (t) {
        t->of_wishes = wishes != NULL;
        t->wishes = wishes ? *wishes : run->losing.wishes;
        t->spread = spread;
        t->goal = *goal;
        t->number = run->scale->number + (!wishes && goal->kind != SFC_GOAL_NONE);
        t->reached = run->scale->reached;
        t->bytes = pack_goal(t);
    }
    if (!t || !t->bytes) {
        struct sfc_error err;
        sfc_fail(&err, SFC_ENOMEM, "no memory for the run's goal");
        sfc_error_log("%s", err.text);
        if (done)
            done(ctx, &err);
        free(t);
        return;
    }
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->done = done;
    t->ctx = ctx;
    t->task.work = goal_work;
    t->task.done = goal_done;
    run->scale->storing = true;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

void sfc_scale_store(struct sfc_sched_run *run, const struct sfc_goal *goal,
                     void (*done)(void *ctx, const struct sfc_error *err), void *ctx)
{
    store(run, goal, NULL, run->losing.spread, done, ctx);
}

void sfc_scale_store_spread(struct sfc_sched_run *run,
                            void (*done)(void *ctx, const struct sfc_error *err), void *ctx)
{
    const struct sfc_goal rebalance = {.kind = SFC_GOAL_REBALANCE};
    store(run, &rebalance, NULL, run->map->lost_version, done, ctx);
}

void sfc_scale_store_lost(struct sfc_sched_run *run, const struct sfc_wishes *wishes,
                          void (*done)(void *ctx, const struct sfc_error *err), void *ctx)
{
    store(run, &run->scale->goal, wishes, run->losing.spread, done, ctx);
}

/* A store that can't note it has the goal still: after a restart it is found to be reached. */
static void reached(struct sfc_sched_run *run)
{
    const struct sfc_goal none = {0};
    char what[64];
    sfc_goal_text(&run->scale->goal, what, sizeof what);
    sfc_sched_event(run->scheduler, "run %" PRIu64 " (%s): done: %s; map %" PRIu64, run->id,
                    run->config->name, what, run->map->version);
    run->scale->reached = run->scale->number;
    set_goal(run, &none);
    sfc_scale_store(run, &none, NULL, NULL);
}

/* ---- the plan */

static void plan(struct sfc_sched_run *run)
{
    struct sfc_scale *scale = run->scale;
    struct sfc_scale_input *x = NULL;
    struct sfc_error err;
    drop_plan(scale);
    int code = sfc_scale_input_new(run, &scale->goal, &x, &err);
    if (code == SFC_OK)
        code = sfc_scale_plan(run, x, &scale->plan, &err);
    if (code == SFC_OK && scale->plan.missing > 0) {
        code = sfc_fail(&err, SFC_ESTATE, "waits for %u more shard%s to register%s%s",
                        scale->plan.missing, scale->plan.missing == 1 ? "" : "s",
                        x->others[0] ? "; " : "", x->others);
        sfc_move_plan_free(&scale->plan);
    }
    scale->planned = code == SFC_OK;
    scale->again_ms = sfc_sched_now(run->scheduler) + AGAIN_MS;
    if (code != SFC_OK)
        snprintf(scale->waits, sizeof scale->waits, "%.*s", (int)sizeof scale->waits - 1, err.text);
    for (uint32_t k = 0; scale->planned && k < x->in.shard_count; k++)
        scale->ids[k] = x->shards[k].id;
    mark_leaving(run);
    sfc_scale_input_free(x);
}

static bool is_still(const struct sfc_sched_run *run)
{
    return run->fsm.state != SFC_RUN_RUNNING;
}

/* Most bytes of an order. */
static double order_bytes(const struct sfc_sched_run *run)
{
    double step_s = run->rate > 0 ? run->config->global_batch / run->rate : 0;
    double share = fmin(1.0, 2e-6 * run->setup.head.sample_ppm);
    double most = share > 0 ? FLIP_SHARE * step_s * FLIP_RATE / share : 0;
    return is_still(run) ? (double)STILL_BYTES : fmin(most, (double)TRAINING_BYTES);
}

/* So many batches of the plan are one order: a batch, and those behind it that go the same way. The
 * destination needs room for all of them at once, which it needs anyway when they are there. */
static uint32_t join_batches(const struct sfc_sched_run *run)
{
    const struct sfc_move_plan *p = &run->scale->plan;
    const struct sfc_plan_batch *first = &p->batches[run->scale->done_batches];
    double most = first->dense ? 0 : order_bytes(run), bytes = 0;
    uint32_t n = 0, left = p->batch_count - run->scale->done_batches;
    while (n < left && (n == 0 || bytes + (double)first[n].state <= most) &&
           first[n].from == first->from && first[n].to == first->to &&
           first[n].dense == first->dense)
        bytes += (double)first[n++].state;
    return n;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void fill_order(struct sfc_sched_run *run, uint64_t *class_blocks, uint64_t *dense_blocks,
                       struct sfc_sched_order *out)
{
    struct sfc_scale *scale = run->scale;
    const struct sfc_move_plan *p = &scale->plan;
    const struct sfc_plan_batch *batch = &p->batches[scale->done_batches];
    scale->order_batches = join_batches(run);
    scale->order_free = is_still(run);
    out->kind = SFC_ORDER_MOVE;
    out->from = scale->ids[batch->from];
    out->shard = scale->ids[batch->to];
    out->bytes_per_s = scale->order_free ? 0 : run->scheduler->options->move_rate;
    for (uint32_t k = 0; k < scale->order_batches; k++) {
        out->bytes += batch[k].state;
        for (uint32_t i = 0; i < batch[k].count; i++) {
            uint32_t b = p->moves[batch[k].first + i].block;
            if (batch->dense)
                dense_blocks[out->dense_count++] = b - (uint32_t)run->map->n_class_owner;
            else
                class_blocks[out->class_count++] = b;
        }
    }
    qsort(class_blocks, out->class_count, sizeof *class_blocks, ascending);
    qsort(dense_blocks, out->dense_count, sizeof *dense_blocks, ascending);
}

/* The next thing to do; false: nothing is left. */
static bool next_order(struct sfc_sched_run *run, uint64_t *class_blocks, uint64_t *dense_blocks,
                       struct sfc_sched_order *out)
{
    struct sfc_scale *scale = run->scale;
    const struct sfc_move_plan *p = &scale->plan;
    *out = (struct sfc_sched_order){.class_blocks = class_blocks, .dense_blocks = dense_blocks};
    scale->order_batches = 0;
    scale->order_free = false;
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (p->joins[k]) {
            out->kind = SFC_ORDER_JOIN;
            out->shard = scale->ids[k];
            return true;
        }
    if (scale->done_batches < p->batch_count) {
        fill_order(run, class_blocks, dense_blocks, out);
        return true;
    }
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (p->leaves[k]) {
            out->kind = SFC_ORDER_LEAVE;
            out->shard = scale->ids[k];
            return true;
        }
    return false;
}

/* What the plan says is done next becomes an order. */
static void go_on(struct sfc_sched_run *run)
{
    struct sfc_scale *scale = run->scale;
    struct sfc_error err;
    struct sfc_sched_order order;
    char why[64];
    size_t blocks = run->map->n_class_owner + run->map->n_dense_owner;
    uint64_t *lists = calloc(2 * blocks + 1, sizeof *lists);
    if (!lists) {
        snprintf(scale->waits, sizeof scale->waits, "no memory for a list of blocks");
        return;
    }
    if (!next_order(run, lists, lists + blocks, &order)) {
        if (!scale->storing) /* with the next tick: what is stored last counts, and that may be a
                                goal */
            reached(run);
    } else {
        sfc_goal_text(&scale->goal, why, sizeof why);
        order.why = why;
        int code = sfc_sched_order(run, &order, &scale->order, &err);
        if (code == SFC_OK)
            scale->waits[0] = '\0';
        else
            snprintf(scale->waits, sizeof scale->waits, "%.*s", (int)sizeof scale->waits - 1,
                     err.text);
    }
    free(lists);
}

/* ---- how orders end */

static void note_full(struct sfc_sched_run *run, uint64_t shard)
{
    struct sfc_scale *scale = run->scale;
    const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, shard);
    if (info && scale->full_count < SFC_CORE_MAX_SHARDS)
        scale->full[scale->full_count++] = (struct sfc_scale_full){
            .shard = shard, .limit = info->memory_bytes - info->staged_bytes};
}

/* What a step took with other blocks says nothing. */
static void forget_times(struct sfc_scheduler *s)
{
    for (size_t i = 0; i < SFC_CORE_MAX_SHARDS; i++)
        s->shards[i].step_ms = 0;
}

/* Marks what the order was as done. */
static uint64_t tick_off(struct sfc_scale *scale, bool ok)
{
    struct sfc_move_plan *p = &scale->plan;
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (p->joins[k]) {
            p->joins[k] = !ok;
            return scale->ids[k];
        }
    if (scale->done_batches < p->batch_count) {
        const struct sfc_plan_batch *batch = &p->batches[scale->done_batches];
        for (uint32_t k = 0; ok && k < scale->order_batches; k++)
            scale->moved += batch[k].state;
        scale->done_batches += ok ? scale->order_batches : 0;
        return scale->ids[batch->to];
    }
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        if (p->leaves[k]) {
            p->leaves[k] = !ok;
            return scale->ids[k];
        }
    return 0;
}

static void order_done(struct sfc_sched_run *run, void *ctx, uint64_t number, int code,
                       const char *text)
{
    struct sfc_scale *scale = run->scale;
    (void)ctx;
    if (number != scale->order)
        return; /* of a goal that was given up */
    scale->order = 0;
    if (scale->stale)
        return; /* planned anew with the next tick */
    uint64_t shard = tick_off(scale, code == SFC_OK);
    bool shrunk = scale->order_shrinks && code == SFC_ECANCELED;
    scale->order_shrinks = false;
    if (code == SFC_OK)
        forget_times(run->scheduler);
    if (code == SFC_OK || shrunk) {
        go_on(run);
        return;
    }
    sfc_sched_event(run->scheduler,
                    "run %" PRIu64 " (%s): planned anew, because a move to shard %" PRIu64
                    " could not be made: %.300s",
                    run->id, run->config->name, shard, text);
    if (code == SFC_ENOMEM)
        note_full(run, shard);
    drop_plan(scale);
    mark_leaving(run);
    snprintf(scale->waits, sizeof scale->waits, "shard %" PRIu64 ": %.400s", shard, text);
    scale->again_ms = sfc_sched_now(run->scheduler) + AGAIN_MS;
}

/* What was planned was planned for fewer blocks; an order that waits goes on, or is void. */
int sfc_scale_grown(struct sfc_sched_run *run, struct sfc_error *err)
{
    struct sfc_block_load load;
    int code = load_new(run, &load, err);
    if (code != SFC_OK)
        return code;
    sfc_block_load_free(&run->scale->load);
    run->scale->load = load;
    forget_times(run->scheduler);
    run->scale->stale = true;
    return SFC_OK;
}

/* ---- time */

/* A shard that announced itself becomes part of a run that takes such shards in. */
static void take_in(struct sfc_sched_run *run)
{
    struct sfc_scheduler *s = run->scheduler;
    for (uint32_t i = 0; i < s->members.config.max_shards; i++) {
        const struct sfc_shard_member *m = &s->members.shards[i];
        struct sfc_shard_info *info = m->id && m->ready ? sfc_sched_shard(s, m->id) : NULL;
        if (!info || !info->joins || sfc_sched_run_shard(run, m->id) != UINT32_MAX)
            continue;
        struct sfc_scale_input *x = NULL;
        struct sfc_move_plan plan = {0};
        struct sfc_error err;
        const struct sfc_goal goal = {.kind = SFC_GOAL_JOIN, .shard = m->id};
        int code = sfc_scale_input_new(run, &goal, &x, &err);
        if (code == SFC_OK)
            code = sfc_scale_plan(run, x, &plan, &err);
        sfc_scale_input_free(x);
        sfc_move_plan_free(&plan);
        info->joins = code == SFC_ESTATE; /* another shard does not answer: later */
        if (code == SFC_OK) {
            sfc_sched_event(
                s, "run %" PRIu64 " (%s): shard %" PRIu64 " announced itself and takes part",
                run->id, run->config->name, m->id);
            sfc_scale_store(run, &goal, NULL, NULL);
            return;
        }
        if (code != SFC_ESTATE)
            sfc_sched_event(s,
                            "run %" PRIu64 " (%s): shard %" PRIu64
                            " announced itself and can't take part: %.300s",
                            run->id, run->config->name, m->id, err.text);
    }
}

/* A run that goes on does not wait for the flip of what was begun while it stood still. */
static void shrink(struct sfc_sched_run *run)
{
    struct sfc_scale *scale = run->scale;
    if (!scale->order || !scale->order_free || scale->order_batches < 2 || scale->order_shrinks ||
        is_still(run))
        return;
    scale->order_shrinks = true;
    sfc_sched_order_cancel(run, scale->order);
}

void sfc_scale_tick(struct sfc_sched_run *run)
{
    struct sfc_scale *scale = run->scale;
    const struct sfc_run_fsm *fsm = &run->fsm;
    bool able = fsm->started && !fsm->restoring && !fsm->failed && !fsm->stopped && !fsm->finished;
    run->order_listener = (struct sfc_order_listener){.done = order_done};
    if (!able || scale->storing)
        return;
    if (scale->stale && !scale->order) {
        drop_plan(scale);
        mark_leaving(run);
        scale->stale = false;
    }
    if (scale->goal.kind == SFC_GOAL_NONE && run->elastic)
        take_in(run);
    shrink(run);
    if (scale->goal.kind == SFC_GOAL_NONE || scale->order)
        return;
    if (!scale->planned && sfc_sched_now(run->scheduler) >= scale->again_ms)
        plan(run);
    if (scale->planned)
        go_on(run);
}

/* ---- what is seen of it */

void sfc_scale_fill_status(const struct sfc_sched_run *run, Shardfc__V1__StatusReply *out)
{
    struct sfc_scale *scale = run->scale;
    char what[64];
    out->goal_reached = scale->reached;
    if (scale->goal.kind == SFC_GOAL_NONE)
        return;
    out->goal_number = scale->number;
    sfc_goal_text(&scale->goal, what, sizeof what);
    snprintf(scale->text, sizeof scale->text, "%s%s%s", what, scale->waits[0] ? ": " : "",
             scale->waits);
    out->goal = scale->text;
    out->goal_moved = scale->moved;
    out->goal_bytes = scale->moved;
    for (uint32_t i = scale->done_batches; scale->planned && i < scale->plan.batch_count; i++)
        out->goal_bytes += scale->plan.batches[i].state;
}

/* Status and History: what people and scripts see. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/limits.h"
#include "server/scheduler/loss.h"
#include "server/scheduler/run_parts.h"
#include "server/scheduler/scale.h"

enum { MAX_TOTALS = 128, MAX_WAITS = 512, MAX_LOSSES = 8 };

struct totals {
    size_t count;
    char names[MAX_TOTALS][64];
    Shardfc__V1__Counter items[MAX_TOTALS];
    Shardfc__V1__Counter *list[MAX_TOTALS];
};

struct status {
    Shardfc__V1__StatusReply m;
    struct totals totals;
    Shardfc__V1__ShardStatus shards[SFC_CORE_MAX_SHARDS];
    Shardfc__V1__ShardStatus *shard_list[SFC_CORE_MAX_SHARDS];
    Shardfc__V1__ShardDurability durability[SFC_CORE_MAX_SHARDS];
    Shardfc__V1__ShardRecovery recovery[SFC_CORE_MAX_SHARDS];
    Shardfc__V1__RunKeeping keeping;
    Shardfc__V1__MoveStatus moves[SFC_MAX_ORDERS], *move_list[SFC_MAX_ORDERS];
    char grows[320];
    char move_reason[512];
    Shardfc__V1__WorkerStatus workers[SFC_MAX_WORKERS];
    Shardfc__V1__WorkerStatus *worker_list[SFC_MAX_WORKERS];
    Shardfc__V1__LrChange lr_changes[SFC_CORE_LR_CHANGES];
    Shardfc__V1__LrChange *lr_list[SFC_CORE_LR_CHANGES];
    Shardfc__V1__ShardMirror *mirrors; /* [places * SFC_CORE_MAX_MIRRORS]; owned */
    Shardfc__V1__ShardMirror **mirror_list;
    char losses[MAX_LOSSES][400]; /* of missing shards */
    uint32_t loss_count;
    char waits_for[MAX_WAITS + 16];
};

static void add_total(struct totals *t, const char *name, uint64_t value)
{
    for (size_t i = 0; i < t->count; i++)
        if (strcmp(t->names[i], name) == 0) {
            t->items[i].value += value;
            return;
        }
    if (t->count == MAX_TOTALS)
        return;
    size_t i = t->count++;
    snprintf(t->names[i], sizeof t->names[i], "%s", name);
    shardfc__v1__counter__init(&t->items[i]);
    t->items[i].name = t->names[i];
    t->items[i].value = value;
    t->list[i] = &t->items[i];
}

static void add_set(struct totals *t, const struct sfc_counter_set *set, const char *prefix)
{
    char name[64];
    for (uint32_t i = 0; i < set->count; i++) {
        snprintf(name, sizeof name, "%s_%s", prefix, set->items[i].name);
        add_total(t, name, set->items[i].value);
    }
}

static void fill_counters(struct sfc_scheduler *s, struct status *st)
{
    char name[64];
    for (size_t code = 1; code < sizeof s->refused / sizeof *s->refused; code++)
        if (s->refused[code]) {
            snprintf(name, sizeof name, "scheduler_refused_%s", sfc_status_name((int)code) + 4);
            add_total(&st->totals, name, s->refused[code]);
        }
    if (s->events_lost)
        add_total(&st->totals, "scheduler_events_not_stored", s->events_lost);
    if (s->broken_rows)
        add_total(&st->totals, "broken_rows", s->broken_rows);
    if (s->recoveries)
        add_total(&st->totals, "shard_recoveries", s->recoveries);
    if (s->fetched_steps)
        add_total(&st->totals, "log_steps_from_other_shards", s->fetched_steps);
    if (s->gave_up)
        add_total(&st->totals, "gave_up", s->gave_up);
    if (s->run && sfc_run_second_grants(&s->run->fsm))
        add_total(&st->totals, "second_grants", sfc_run_second_grants(&s->run->fsm));
    if (s->run && sfc_run_second_data(&s->run->fsm))
        add_total(&st->totals, "second_data_tickets", sfc_run_second_data(&s->run->fsm));
    for (size_t i = 0; i < SFC_CORE_MAX_SHARDS; i++)
        if (s->shards[i].id)
            add_set(&st->totals, &s->shards[i].counters, "shard");
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++)
        if (s->workers[i].id)
            add_set(&st->totals, &s->workers[i].counters, "worker");
    st->m.n_counters = st->totals.count;
    st->m.counters = st->totals.list;
}

static void count_blocks(const struct sfc_sched_run *run, uint32_t index,
                         Shardfc__V1__ShardStatus *out)
{
    for (size_t b = 0; b < run->map->n_class_owner; b++)
        if (run->map->class_owner[b] == index) {
            out->blocks++;
            out->classes += sfc_head_block_rows(&run->setup.head, b);
        }
    for (size_t b = 0; b < run->map->n_dense_owner; b++)
        out->dense_blocks += run->map->dense_owner[b] == index;
}

static void fill_durability(const struct sfc_shard_info *info, Shardfc__V1__ShardStatus *out,
                            Shardfc__V1__ShardDurability *durability,
                            Shardfc__V1__ShardRecovery *recovery)
{
    shardfc__v1__shard_durability__init(durability);
    durability->log_floor = info->log_floor;
    durability->log_bytes = info->log_bytes;
    durability->snapshot_lag = info->snapshot_lag;
    durability->oldest_step = info->oldest_step;
    durability->error = (char *)(uintptr_t)info->disk_error;
    out->durability = durability;
    if (!info->recovering)
        return;
    shardfc__v1__shard_recovery__init(recovery);
    recovery->step = info->recovered;
    recovery->to_step = info->recovers_to;
    recovery->eta_s = info->recovery_eta_s;
    out->recovery = recovery;
}

static void fill_mirrors(struct sfc_sched_run *run, uint32_t place, struct status *st,
                         Shardfc__V1__ShardStatus *out)
{
    const Shardfc__V1__ShardAddress *shard = run->map->shards[place];
    size_t first = (size_t)place * SFC_CORE_MAX_MIRRORS;
    for (size_t i = 0; i < shard->n_mirrors && i < SFC_CORE_MAX_MIRRORS; i++) {
        Shardfc__V1__ShardMirror *m = &st->mirrors[first + i];
        const struct sfc_mirror_view *view = sfc_mirrors_view(run, shard->mirrors[i], place);
        shardfc__v1__shard_mirror__init(m);
        m->shard = run->map->shards[shard->mirrors[i]]->shard;
        if (view) {
            m->complete = view->complete;
            m->blocks = view->blocks;
            m->copied = view->copied;
            m->oldest_step = view->oldest_step;
            m->bytes = view->bytes;
            m->reason = (char *)(uintptr_t)view->reason;
        }
        st->mirror_list[first + i] = m;
    }
    out->n_mirrors =
        shard->n_mirrors < SFC_CORE_MAX_MIRRORS ? shard->n_mirrors : SFC_CORE_MAX_MIRRORS;
    out->mirrors = &st->mirror_list[first];
}

/* Of a member of the run. */
static void fill_missing(struct sfc_sched_run *run, uint32_t place, struct status *st,
                         Shardfc__V1__ShardStatus *out)
{
    uint64_t now = sfc_sched_now(run->scheduler);
    out->missing_s = (double)sfc_run_missing(&run->fsm, place, now) / 1e3;
    if (st->mirrors && place < run->map->n_shards)
        fill_mirrors(run, place, st, out);
    if (out->missing_s <= 0 || st->loss_count == MAX_LOSSES)
        return;
    char *text = st->losses[st->loss_count++];
    sfc_loss_say(run, place, text, sizeof st->losses[0]);
    out->loss = text;
}

static const char *shard_state(const struct sfc_scheduler *s, const struct sfc_shard_member *member)
{
    uint32_t index = s->run ? sfc_sched_run_shard(s->run, member->id) : UINT32_MAX;
    if (!member->ready)
        return "gone";
    return index != UINT32_MAX && sfc_run_recovers(&s->run->fsm, index) ? "recovering" : "ready";
}

static void fill_shards(struct sfc_scheduler *s, struct status *st)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->members.config.max_shards && n < SFC_CORE_MAX_SHARDS; i++) {
        const struct sfc_shard_member *member = &s->members.shards[i];
        const struct sfc_shard_info *info = sfc_sched_shard(s, member->id);
        if (!member->id)
            continue;
        Shardfc__V1__ShardStatus *out = &st->shards[n];
        shardfc__v1__shard_status__init(out);
        out->id = member->id;
        out->address = (char *)(uintptr_t)member->address;
        out->state = (char *)(uintptr_t)shard_state(s, member);
        if (info) {
            out->memory_bytes = info->memory_bytes;
            out->memory_limit = info->memory_limit;
            out->step = info->step;
            out->step_ms = info->step_ms;
            out->backend = (char *)(uintptr_t)info->backend;
            out->numerics = (char *)(uintptr_t)info->numerics;
            fill_durability(info, out, &st->durability[n], &st->recovery[n]);
        }
        bool placed = s->run && s->run->fsm.state != SFC_RUN_IDLE; /* idle: blocks are freed */
        uint32_t index = placed ? sfc_sched_run_shard(s->run, member->id) : UINT32_MAX;
        if (index != UINT32_MAX) {
            count_blocks(s->run, index, out);
            out->member = s->run->fsm.shards[index].place == SFC_PLACE_MEMBER;
        }
        if (out->member)
            fill_missing(s->run, index, st, out);
        out->leaving = out->member && info && info->leaving;
        st->shard_list[n++] = out;
    }
    st->m.n_shards = n;
    st->m.shards = st->shard_list;
}

static const char *move_state(const struct sfc_run_fsm *fsm)
{
    switch (fsm->moves.phase) {
    case SFC_ORDER_PREPARING:
        return "copying";
    case SFC_ORDER_BOUNDARY:
        return "following";
    case SFC_ORDER_IDLE:
        return "waiting";
    default:
        return "taking";
    }
}

/* What its destination says of the move that is at work. */
static void fill_progress(struct sfc_sched_run *run, const struct sfc_order_view *view,
                          struct status *st, Shardfc__V1__MoveStatus *m)
{
    const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, view->order.shard);
    m->state = (char *)(uintptr_t)move_state(&run->fsm);
    sfc_run_order_waits_for(&run->fsm, st->move_reason, sizeof st->move_reason);
    m->reason = st->move_reason;
    if (!info || info->move.number != view->number)
        return;
    m->bytes = info->move.bytes ? info->move.bytes : m->bytes;
    m->copied = info->move.copied;
    m->bytes_per_s = info->move.bytes_per_s;
    if (m->bytes_per_s > 0 && m->bytes > m->copied)
        m->eta_s = (double)(m->bytes - m->copied) / m->bytes_per_s;
    if (!st->move_reason[0])
        m->reason = (char *)(uintptr_t)info->move.reason;
}

static void fill_moves(struct sfc_sched_run *run, struct status *st)
{
    struct sfc_order_view view;
    for (size_t i = 0; i < SFC_MAX_ORDERS && sfc_sched_order_at(run, i, &view); i++) {
        if (view.order.kind != SFC_ORDER_MOVE)
            continue;
        Shardfc__V1__MoveStatus *m = &st->moves[st->m.n_moves];
        shardfc__v1__move_status__init(m);
        m->move = view.number;
        m->from = view.order.from;
        m->to = view.order.shard;
        m->blocks = (uint64_t)view.order.class_count + view.order.dense_count;
        m->bytes = view.order.bytes;
        m->state = (char *)(uintptr_t) "waiting";
        if (view.at_work)
            fill_progress(run, &view, st, m);
        st->move_list[st->m.n_moves++] = m;
    }
    st->m.moves = st->move_list;
}

static void fill_growths(struct sfc_sched_run *run, struct status *st)
{
    struct sfc_order_view view;
    st->m.classes = run->setup.head.classes;
    st->m.n_growths = run->map->n_growths;
    st->m.growths = run->map->growths;
    for (size_t i = 0; i < SFC_MAX_ORDERS && sfc_sched_order_at(run, i, &view); i++) {
        char waits[256] = "";
        if (view.order.kind != SFC_ORDER_GROW)
            continue;
        if (view.at_work)
            sfc_run_order_waits_for(&run->fsm, waits, sizeof waits);
        snprintf(st->grows, sizeof st->grows, "to %" PRIu64 " classes%s%s", view.order.classes,
                 waits[0]       ? ": waits for "
                 : view.at_work ? ""
                                : ": other changes come first",
                 waits);
        st->m.grows = st->grows;
        return;
    }
}

static double epochs_done(const struct sfc_sched_run *run, uint64_t position)
{
    const struct sfc_order_part *part =
        sfc_order_part_at(run->sample_order, run->order_parts, position);
    return (double)part->first_epoch +
           (double)(position - part->first_position) / (double)part->samples;
}

static void fill_workers(struct sfc_scheduler *s, struct status *st)
{
    size_t n = 0;
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++) {
        const struct sfc_worker_info *info = &s->workers[i];
        const struct sfc_worker_member *member = sfc_membership_worker(&s->members, info->id);
        if (!info->id || !member)
            continue;
        Shardfc__V1__WorkerStatus *out = &st->workers[n];
        shardfc__v1__worker_status__init(out);
        out->id = info->id;
        out->state = (char *)(uintptr_t) "alive";
        out->name = (char *)(uintptr_t)member->name;
        out->lanes = member->lanes;
        out->micro_batches = info->micro_batches;
        out->version = (char *)(uintptr_t)info->version;
        out->numerics = (char *)(uintptr_t)info->numerics;
        out->clock_ahead_s = info->clock_ahead_s;
        out->memory_bytes = info->memory_bytes;
        out->tickets = s->run ? sfc_run_held(&s->run->fsm, info->id) : 0;
        st->worker_list[n++] = out;
    }
    st->m.n_workers = n;
    st->m.workers = st->worker_list;
}

/* Images per second of the last steps, less if the present step takes longer than they did. */
static double present_rate(const struct sfc_sched_run *run)
{
    uint64_t now = uv_hrtime() / 1000;
    uint64_t since = run->last_commit_us ? run->last_commit_us : run->running_us;
    if (!since || now <= since)
        return run->rate;
    return fmin(run->rate, 1e6 * run->config->global_batch / (double)(now - since));
}

/* What will become of a shard that the run waits for. */
static void add_loss(struct sfc_sched_run *run, char *what, size_t size)
{
    char text[400] = "";
    uint32_t k = 0;
    while (k < run->map->n_shards && !run->fsm.shards[k].gone) /* the one that is named */
        k++;
    if (k < run->map->n_shards)
        sfc_loss_say(run, k, text, sizeof text);
    size_t n = strlen(what);
    if (text[0] && n < size)
        snprintf(what + n, size - n, "; %s", text);
}

static void fill_run(struct sfc_sched_run *run, struct status *st)
{
    Shardfc__V1__StatusReply *m = &st->m;
    char what[MAX_WAITS] = "";
    const Shardfc__V1__RunConfig *c = run->config;
    bool running = run->fsm.state == SFC_RUN_RUNNING;
    m->state = (char *)(uintptr_t)sfc_run_state_name(run->fsm.state);
    m->reason = run->fsm.reason;
    bool rewinds = run->fsm.rewind.phase != SFC_REWIND_NONE, recovers = false, gone = false;
    for (uint32_t k = 0; k < run->map->n_shards; k++) {
        recovers = recovers || sfc_run_recovers(&run->fsm, k);
        gone = gone || run->fsm.shards[k].gone;
    }
    if (running || run->fsm.state == SFC_RUN_LOADING || rewinds ||
        (recovers && !run->fsm.reason[0]))
        sfc_run_waits_for(&run->fsm, what, sizeof what);
    if (what[0]) {
        add_loss(run, what, sizeof what);
        snprintf(st->waits_for, sizeof st->waits_for, "waits for %s", what);
        m->reason = st->waits_for;
    }
    m->run_id = run->id;
    m->run = c->name;
    m->step = sfc_run_committed(&run->fsm);
    m->steps = c->steps;
    m->loss = run->loss;
    if (running && !rewinds && !recovers && !gone) /* else nobody knows when it goes on */
        m->images_per_s = present_rate(run);
    else if (run->fsm.state == SFC_RUN_FINISHED || run->fsm.state == SFC_RUN_FAILED)
        m->images_per_s = sfc_sched_run_average(run);
    m->lr = run->lr;
    sfc_sched_show_lr(&run->fsm.lr_changes, st->lr_changes, st->lr_list);
    m->n_lr_changes = run->fsm.lr_changes.count;
    m->lr_changes = st->lr_list;
    if (running && m->images_per_s > 0 && m->steps > m->step)
        m->eta_s = (double)(m->steps - m->step) * c->global_batch / m->images_per_s;
    if (run->order_parts)
        m->epoch = epochs_done(run, m->step * c->global_batch);
    m->map_version = run->map->version;
    m->config = run->config;
    m->skipped_steps = run->skipped_steps;
    shardfc__v1__run_keeping__init(&st->keeping);
    st->keeping.rewind_window = run->rewind_window;
    st->keeping.durable_every = run->durable_every;
    st->keeping.elastic = run->elastic;
    st->keeping.mirrors = run->mirrors;
    st->keeping.grace_s = run->grace_s;
    m->unmirrored = sfc_mirrors_left(run);
    m->unmirrored_eta_s = sfc_mirrors_eta(run);
    m->durable_step = sfc_run_durable_step(&run->fsm);
    m->keeping = &st->keeping;
    m->oldest_step = sfc_sched_run_oldest(run);
}

static void free_status(struct status *st)
{
    free(st->mirrors);
    free(st->mirror_list);
    free(st);
}

static bool take_mirrors(const struct sfc_scheduler *s, struct status *st)
{
    if (!s->run || !s->run->mirrors)
        return true;
    size_t all = s->run->map->n_shards * SFC_CORE_MAX_MIRRORS;
    st->mirrors = calloc(all, sizeof *st->mirrors);
    st->mirror_list = calloc(all, sizeof(Shardfc__V1__ShardMirror *));
    return st->mirrors && st->mirror_list;
}

Shardfc__V1__StatusReply *sfc_sched_status(struct sfc_scheduler *s)
{
    struct status *st = calloc(1, sizeof *st);
    if (!st || !take_mirrors(s, st)) {
        if (st)
            free_status(st);
        return NULL;
    }
    shardfc__v1__status_reply__init(&st->m);
    st->m.version = (char *)(uintptr_t)SFC_VERSION;
    st->m.state = (char *)(uintptr_t) "idle";
    st->m.incarnation = s->incarnation;
    if (s->run) {
        fill_run(s->run, st);
        fill_growths(s->run, st);
        fill_moves(s->run, st);
        sfc_scale_fill_status(s->run, &st->m);
    }
    fill_shards(s, st);
    fill_workers(s, st);
    fill_counters(s, st);
    return &st->m;
}

void sfc_sched_status_free(Shardfc__V1__StatusReply *status)
{
    if (status)
        free_status((struct status *)status); /* m is its first member */
}

void sfc_sched_on_status(struct sfc_rpc_call *call, void *ctx)
{
    Shardfc__V1__StatusReply *status = sfc_sched_status(ctx);
    if (!status) {
        sfc_rpc_fail(call, SFC_ENOMEM, "no memory for the answer");
        return;
    }
    sfc_call_reply(call, status);
    sfc_sched_status_free(status);
}

/* ---- history */

struct history_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    uint64_t run_id, after_step;
    size_t limit, count;
    struct sfc_store_commit *commits;
};

/* The largest answer is many MiB: only the call that is at work has room for it. */
static void history_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct history_task *t = (struct history_task *)task;
    t->commits = calloc(t->limit, sizeof *t->commits);
    if (!t->commits) {
        task->code = sfc_fail(&task->error, SFC_ENOMEM, "no memory for the answer");
        return;
    }
    task->code = sfc_store_history(store, t->run_id, t->after_step, t->limit, t->commits, &t->count,
                                   &task->error);
    void *fits = realloc(t->commits, (t->count + 1) * sizeof *t->commits);
    if (fits)
        t->commits = fits;
}

static int history_reply(struct history_task *t)
{
    Shardfc__V1__HistoryPoint *points = calloc(t->count + 1, sizeof *points);
    Shardfc__V1__HistoryPoint **list = calloc(t->count + 1, sizeof(Shardfc__V1__HistoryPoint *));
    int code = points && list ? SFC_OK : SFC_ENOMEM;
    for (size_t i = 0; code == SFC_OK && i < t->count; i++) {
        const struct sfc_store_commit *c = &t->commits[i];
        shardfc__v1__history_point__init(&points[i]);
        points[i].step = c->step;
        points[i].loss = c->loss;
        points[i].lr = c->lr;
        points[i].images_per_s = c->images_per_s;
        points[i].clip_scale = c->clip_scale;
        points[i].applied = c->applied;
        points[i].time_us = c->time_us;
        list[i] = &points[i];
    }
    if (code == SFC_OK) {
        Shardfc__V1__HistoryReply m = SHARDFC__V1__HISTORY_REPLY__INIT;
        m.run_id = t->run_id;
        m.n_points = t->count;
        m.points = list;
        sfc_call_reply(t->call, &m);
    }
    free(points);
    free(list);
    return code;
}

static void history_done(struct sfc_store_task *task)
{
    struct history_task *t = (struct history_task *)task;
    if (task->code == SFC_OK && history_reply(t) != SFC_OK)
        task->code = sfc_fail(&task->error, SFC_ENOMEM, "no memory for the answer");
    if (task->code != SFC_OK)
        sfc_sched_refuse(t->scheduler, t->call, &task->error);
    free(t->commits);
    free(t);
}

void sfc_sched_on_history(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__HistoryRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__history_request__descriptor);
    if (!r)
        return;
    if (r->run_id && r->run_id != s->last_run_id &&
        !(sfc_rpc_call_roles(call) &
          SFC_ROLE_ADMIN)) { /* a worker may be bound to the present one */
        sfc_fail(&err, SFC_EDENIED,
                 "run_id: only an admin's certificate reads other runs than %llu",
                 (unsigned long long)s->last_run_id);
        sfc_sched_refuse(s, call, &err);
        sfc_message_free(r);
        return;
    }
    struct history_task *t = calloc(1, sizeof *t);
    size_t limit = r->limit && r->limit < SFC_LIMIT_HISTORY ? r->limit : SFC_LIMIT_HISTORY;
    if (t) {
        t->scheduler = s;
        t->call = call;
        t->run_id = r->run_id ? r->run_id : s->last_run_id;
        t->after_step = r->after_step;
        t->limit = limit;
        t->task.work = history_work;
        t->task.done = history_done;
        sfc_store_queue_submit(&s->queue, &t->task);
    } else {
        sfc_fail(&err, SFC_ENOMEM, "no memory for the answer");
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

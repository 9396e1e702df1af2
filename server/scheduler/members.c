/* Shards and workers: registration, heartbeats, leases. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/limits.h"
#include "server/run/about.h"
#include "server/scheduler/loss.h"
#include "server/scheduler/grow.h"
#include "server/scheduler/order_parts.h"
#include "server/scheduler/scheduler_internal.h"

#define STANDSTILL_MS (5u * SFC_TICK_MS)

struct sfc_shard_info *sfc_sched_shard(struct sfc_scheduler *s, uint64_t id)
{
    for (size_t i = 0; id && i < SFC_CORE_MAX_SHARDS; i++)
        if (s->shards[i].id == id)
            return &s->shards[i];
    return NULL;
}

struct sfc_worker_info *sfc_sched_worker(struct sfc_scheduler *s, uint64_t id)
{
    for (size_t i = 0; id && i < SFC_MAX_WORKERS; i++)
        if (s->workers[i].id == id)
            return &s->workers[i];
    return NULL;
}

static struct sfc_shard_info *shard_entry(struct sfc_scheduler *s, uint64_t id)
{
    struct sfc_shard_info *info = sfc_sched_shard(s, id);
    for (size_t i = 0; !info && i < SFC_CORE_MAX_SHARDS; i++)
        if (s->shards[i].id == 0) {
            info = &s->shards[i];
            info->id = id;
        }
    return info;
}

static void take_counters(struct sfc_counter_set *set, Shardfc__V1__Counter *const *items, size_t n)
{
    set->count = 0;
    for (size_t i = 0; i < n && set->count < SFC_MAX_COUNTERS; i++) {
        snprintf(set->items[set->count].name, sizeof set->items[0].name, "%s", items[i]->name);
        set->items[set->count++].value = items[i]->value;
    }
}

static bool text_ok(const char *text, size_t max)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 32 || text[i] == 127)
            return false;
    return n > 0 && n <= max;
}

/* ---- consequences of membership changes */

/* A run of our number, which another scheduler's state gave it: what a shard says of it says
 * nothing about ours. */
static bool is_foreign(const struct sfc_scheduler *s, uint64_t run_id, uint64_t nonce)
{
    return s->run && run_id == s->run->id && nonce != 0 && nonce != s->run->nonce;
}

static void shard_event(struct sfc_scheduler *s, uint64_t id, enum sfc_run_event_type type,
                        const Shardfc__V1__RegisterShardRequest *r, const char *text)
{
    uint32_t index = s->run ? sfc_sched_run_shard(s->run, id) : UINT32_MAX;
    if (index == UINT32_MAX && s->run && r && r->run_id == s->run->id &&
        !is_foreign(s, r->run_id, r->nonce))
        sfc_sched_orders_stray(s->run, id);
    if (index == UINT32_MAX)
        return;
    struct sfc_run_event event = {.type = type, .shard = index, .text = text};
    if (r) {
        event.shard_run_id = is_foreign(s, r->run_id, r->nonce) ? 0 : r->run_id;
        event.map_version = r->map_version;
        event.step = r->step;
        event.prepared_step = r->prepared_step;
    }
    sfc_sched_run_event(s->run, &event);
}

static void worker_died(struct sfc_scheduler *s, uint64_t id)
{
    struct sfc_worker_info *w = sfc_sched_worker(s, id);
    if (w)
        memset(w, 0, sizeof *w);
    sfc_info_log("worker %" PRIu64 " is gone", id);
    if (s->run) {
        struct sfc_run_event event = {.type = SFC_EV_WORKER_DIED, .worker = id};
        sfc_sched_run_event(s->run, &event);
    }
}

static void shard_gone(struct sfc_scheduler *s, uint64_t id, const char *address)
{
    char text[320];
    snprintf(text, sizeof text, "shard %s does not answer", address);
    shard_event(s, id, SFC_EV_SHARD_GONE, NULL, text);
    sfc_sched_create_shard_gone(s, id, address);
}

void sfc_sched_members_of_new_run(struct sfc_scheduler *s)
{
    struct sfc_sched_run *run = s->run;
    for (size_t i = 0; i < run->map->n_shards && !run->fsm.stopped; i++) {
        const struct sfc_shard_member *m =
            sfc_membership_shard(&s->members, run->map->shards[i]->shard);
        if (!m || !m->ready)
            shard_gone(s, run->map->shards[i]->shard, run->map->shards[i]->address);
    }
}

/* request: of a REGISTER, else NULL. */
static void act(struct sfc_scheduler *s, const Shardfc__V1__RegisterShardRequest *request)
{
    for (size_t i = 0; i < s->member_actions.count; i++) {
        struct sfc_member_action a = s->member_actions.items[i];
        const struct sfc_shard_member *m = sfc_membership_shard(&s->members, a.id);
        const char *address = m ? m->address : "?";
        switch (a.type) {
        case SFC_MEMBER_WORKER_JOINED:
            break;
        case SFC_MEMBER_WORKER_DIED:
            worker_died(s, a.id);
            break;
        case SFC_MEMBER_SHARD_JOINED:
            sfc_sched_event(s, "shard %" PRIu64 " joined at %s", a.id, address);
            shard_event(s, a.id, SFC_EV_SHARD_BACK, request, "");
            break;
        case SFC_MEMBER_SHARD_REJOINED:
            sfc_info_log("shard %" PRIu64 " at %s is back", a.id, address);
            shard_event(s, a.id, SFC_EV_SHARD_BACK, request, "");
            break;
        case SFC_MEMBER_SHARD_RESTARTED:
            sfc_sched_event(s, "shard %" PRIu64 " at %s restarted", a.id, address);
            shard_event(s, a.id, SFC_EV_SHARD_LOST, request, "");
            break;
        case SFC_MEMBER_SHARD_GONE:
            sfc_sched_event(s, "shard %" PRIu64 " at %s does not answer", a.id, address);
            shard_gone(s, a.id, address);
            break;
        case SFC_MEMBER_SHARD_FORGOTTEN:
            sfc_sched_event(s, "shard %" PRIu64 " is forgotten: another takes its place", a.id);
            break;
        }
    }
}

static int member_step(struct sfc_scheduler *s, struct sfc_member_event *event,
                       struct sfc_error *err)
{
    event->now_ms = sfc_sched_now(s);
    return sfc_membership_step(&s->members, event, &s->member_actions, err);
}

/* ---- shards */

struct register_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    uint64_t shard;
    uint64_t forgotten; /* 0: none */
    char address[256];
};

static void register_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct register_task *t = (struct register_task *)task;
    if (t->forgotten)
        task->code = sfc_store_drop_shard(store, t->forgotten, &task->error);
    if (task->code == SFC_OK)
        task->code = sfc_store_put_shard(store, t->shard, t->address, &task->error);
}

static void register_done(struct sfc_store_task *task)
{
    struct register_task *t = (struct register_task *)task;
    if (task->code != SFC_OK) {
        sfc_sched_refuse(t->scheduler, t->call, &task->error);
    } else {
        Shardfc__V1__RegisterShardReply m = SHARDFC__V1__REGISTER_SHARD_REPLY__INIT;
        m.shard = t->shard;
        m.incarnation = t->scheduler->incarnation;
        sfc_call_reply(t->call, &m);
    }
    free(t);
}

static int check_register(const Shardfc__V1__RegisterShardRequest *r, struct sfc_error *err)
{
    if (r->protocol != SFC_PROTOCOL_VERSION)
        return sfc_fail(err, SFC_EUNSUPPORTED, "protocol: version %u, this scheduler speaks %u",
                        r->protocol, SFC_PROTOCOL_VERSION);
    if (r->boot_id == 0)
        return sfc_fail(err, SFC_EINVAL, "boot_id must not be 0");
    if (!text_ok(r->address, 255) || !strchr(r->address, ':'))
        return sfc_fail(err, SFC_EINVAL, "address: not HOST:PORT");
    if (!text_ok(r->backend, 31) || !text_ok(r->numerics, 127))
        return sfc_fail(err, SFC_EINVAL, "backend, numerics: empty or too long");
    return SFC_OK;
}

/* The id that the last membership event made void, 0: none. */
static uint64_t forget_shard(struct sfc_scheduler *s)
{
    const struct sfc_member_action *a = s->member_actions.items;
    if (s->member_actions.count == 0 || a->type != SFC_MEMBER_SHARD_FORGOTTEN)
        return 0;
    struct sfc_shard_info *info = sfc_sched_shard(s, a->id);
    if (info && info->client)
        sfc_rpc_client_free(info->client);
    if (info) {
        sfc_mirrors_forget(info);
        memset(info, 0, sizeof *info);
    }
    return a->id;
}

static int register_shard(struct sfc_scheduler *s, const Shardfc__V1__RegisterShardRequest *r,
                          uint64_t *id, uint64_t *forgotten, struct sfc_error *err)
{
    int code = check_register(r, err);
    if (code != SFC_OK)
        return code;
    struct sfc_member_event event = {
        .type = SFC_MEMBER_SHARD_REGISTER, .boot_id = r->boot_id, .name = r->address};
    if ((code = member_step(s, &event, err)) != SFC_OK)
        return code;
    *forgotten = forget_shard(s);
    const struct sfc_shard_member *m = NULL;
    for (uint32_t i = 0; i < s->members.config.max_shards && !m; i++)
        if (s->members.shards[i].id && strcmp(s->members.shards[i].address, r->address) == 0)
            m = &s->members.shards[i];
    struct sfc_shard_info *info = m ? shard_entry(s, m->id) : NULL;
    if (!info)
        return sfc_fail(err, SFC_ELIMIT, "too many shards");
    if (!info->client &&
        (code = sfc_rpc_client_new(s->rpc, r->address, &info->client, err)) != SFC_OK)
        return code;
    sfc_rpc_client_reconnect(info->client);
    snprintf(info->backend, sizeof info->backend, "%s", r->backend);
    snprintf(info->numerics, sizeof info->numerics, "%s", r->numerics);
    info->memory_limit = r->memory_limit;
    info->disk_limit = r->disk_limit;
    info->joins = r->joins;
    sfc_mirrors_forget(info); /* it says it anew */
    info->step = r->step;
    *id = m->id;
    if (is_foreign(s, r->run_id, r->nonce))
        sfc_sched_event(s,
                        "shard %" PRIu64 " at %s has another run %" PRIu64
                        " open, of another cluster or of a scheduler state that is gone: it takes "
                        "part when it is started again, with an empty --state folder",
                        m->id, r->address, r->run_id);
    act(s, r);
    return SFC_OK;
}

void sfc_sched_on_register_shard(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    uint64_t id = 0, forgotten = 0;
    Shardfc__V1__RegisterShardRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__register_shard_request__descriptor);
    if (!r)
        return;
    struct register_task *t = calloc(1, sizeof *t);
    int code = t ? register_shard(s, r, &id, &forgotten, &err)
                 : sfc_fail(&err, SFC_ENOMEM, "register shard");
    if (code == SFC_OK) {
        t->scheduler = s;
        t->call = call;
        t->shard = id;
        t->forgotten = forgotten;
        t->task.work = register_work;
        t->task.done = register_done;
        snprintf(t->address, sizeof t->address, "%s", r->address);
        sfc_store_queue_submit(&s->queue, &t->task);
    } else {
        sfc_sched_refuse(s, call, &err);
        free(t);
    }
    sfc_message_free(r);
}

/* A quarter of the lease at most: a member is only seen when its next heartbeat comes. */
static uint64_t heartbeat_hold(const struct sfc_scheduler *s)
{
    uint64_t quarter = s->options->lease_ms / 4;
    return quarter < SFC_HEARTBEAT_HOLD_MS ? quarter : SFC_HEARTBEAT_HOLD_MS;
}

static void reply_shard_heartbeat(struct sfc_scheduler *s, struct sfc_rpc_call *call, bool known)
{
    Shardfc__V1__ShardHeartbeatReply m = SHARDFC__V1__SHARD_HEARTBEAT_REPLY__INIT;
    m.registered = known;
    m.incarnation = s->incarnation;
    if (s->run) {
        m.run_id = s->run->id;
        m.has_log_floor = sfc_log_floor_least(&s->run->floor, &m.log_floor);
    }
    sfc_call_reply(call, &m);
}

/* What the shard says about the present run. */
static void take_durability(struct sfc_scheduler *s, struct sfc_shard_info *info,
                            const Shardfc__V1__ShardHeartbeatRequest *r)
{
    const Shardfc__V1__ShardDurability *d = r->durability;
    const Shardfc__V1__ShardRecovery *recovery = r->recovery;
    uint32_t index = s->run ? sfc_sched_run_shard(s->run, r->shard) : UINT32_MAX;
    info->recovering = recovery != NULL;
    info->recovered = recovery ? recovery->step : 0;
    info->recovers_to = recovery ? recovery->to_step : 0;
    info->recovery_eta_s = recovery && isfinite(recovery->eta_s) ? recovery->eta_s : 0;
    info->log_floor = d ? d->log_floor : 0;
    info->log_bytes = d ? d->log_bytes : 0;
    info->snapshot_lag = d ? d->snapshot_lag : 0;
    info->oldest_step = d ? d->oldest_step : 0;
    info->oldest_of = r->run_id;
    snprintf(info->disk_error, sizeof info->disk_error, "%s", d ? d->error : "");
    if (index == UINT32_MAX || r->run_id != s->run->id)
        return;
    if (d && d->has_floor)
        sfc_log_floor_note(&s->run->floor, index, d->log_floor);
    if (!recovery)
        return;
    struct sfc_run_event event = {.type = SFC_EV_SHARD_PROGRESS,
                                  .shard = index,
                                  .step = info->recovered,
                                  .to_step = info->recovers_to,
                                  .eta_s = info->recovery_eta_s};
    sfc_sched_run_event(s->run, &event);
}

/* A member that has lost the run, or a shard that has it and is no member, though neither was
 * restarted. */
static void take_run(struct sfc_scheduler *s, struct sfc_shard_info *info, uint64_t run_id)
{
    struct sfc_sched_run *run = s->run;
    uint32_t place = run ? sfc_sched_run_shard(run, info->id) : UINT32_MAX;
    bool strayed = info->strays;
    info->strays = run && place == UINT32_MAX && run_id == run->id;
    if (info->strays && strayed) /* the first one may have been on its way when it closed the run */
        sfc_sched_orders_stray(run, info->id);
    if (place == UINT32_MAX)
        return;
    uint64_t life = run->fsm.shards[place].life;
    char has[64] = "no run";
    if (run_id)
        snprintf(has, sizeof has, "run %" PRIu64, run_id);
    struct sfc_run_event event = {
        .type = SFC_EV_SHARD_SAYS, .shard = place, .shard_run_id = run_id};
    sfc_sched_run_event(run, &event);
    if (s->run == run && run->fsm.shards[place].life != life && run_id != run->id)
        sfc_sched_event(s,
                        "shard %" PRIu64 " has %s open instead of run %" PRIu64
                        " (%s), though it was not restarted: it is asked to recover its blocks",
                        info->id, has, run->id, run->config->name);
}

static void take_move(struct sfc_shard_info *info, const Shardfc__V1__MoveProgress *m)
{
    memset(&info->move, 0, sizeof info->move);
    if (!m)
        return;
    info->move.number = m->move;
    info->move.bytes = m->bytes;
    info->move.copied = m->copied;
    info->move.bytes_per_s = isfinite(m->bytes_per_s) && m->bytes_per_s > 0 ? m->bytes_per_s : 0;
    snprintf(info->move.reason, sizeof info->move.reason, "%s", m->reason);
}

void sfc_sched_on_shard_heartbeat(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ShardHeartbeatRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__shard_heartbeat_request__descriptor);
    if (!r)
        return;
    struct sfc_member_event event = {
        .type = SFC_MEMBER_SHARD_SEEN, .id = r->shard, .boot_id = r->boot_id};
    struct sfc_shard_info *info = sfc_sched_shard(s, r->shard);
    if (!info || member_step(s, &event, &err) != SFC_OK) {
        reply_shard_heartbeat(s, call, false);
    } else {
        if (is_foreign(s, r->run_id, r->nonce))
            r->run_id = 0;
        info->step = r->step;
        info->memory_bytes = r->memory_bytes;
        info->staged_bytes = r->staged_bytes < r->memory_bytes ? r->staged_bytes : r->memory_bytes;
        info->step_ms = isfinite(r->step_ms) && r->step_ms > 0 ? r->step_ms : 0;
        take_durability(s, info, r);
        take_run(s, info, r->run_id);
        take_move(info, r->move);
        sfc_mirrors_take(info, r);
        take_counters(&info->counters, r->counters, r->n_counters);
        struct sfc_parked *p = sfc_sched_park(s, call, SFC_PARKED_SHARD_HEARTBEAT);
        if (p) {
            p->member = r->shard;
            p->boot_id = r->boot_id;
            p->due_ms = sfc_sched_now(s) + heartbeat_hold(s);
        }
        act(s, NULL);
    }
    sfc_message_free(r);
}

/* ---- workers */

static bool joinable(const struct sfc_scheduler *s)
{
    if (!s->run)
        return false;
    enum sfc_run_state state = s->run->fsm.state;
    return state == SFC_RUN_RUNNING || state == SFC_RUN_PAUSED || state == SFC_RUN_HELD ||
           state == SFC_RUN_BLOCKED;
}

static int check_join(const Shardfc__V1__JoinRequest *r, struct sfc_error *err)
{
    if (r->protocol != SFC_PROTOCOL_VERSION)
        return sfc_fail(err, SFC_EUNSUPPORTED, "protocol: version %u, this scheduler speaks %u",
                        r->protocol, SFC_PROTOCOL_VERSION);
    if (!text_ok(r->name, 127) || !text_ok(r->numerics, 127))
        return sfc_fail(err, SFC_EINVAL,
                        "name, numerics: empty, too long or with control characters");
    if (strlen(r->version) >= sizeof((struct sfc_worker_info *)NULL)->version)
        return sfc_fail(err, SFC_EINVAL, "version: too long");
    if (r->lanes == 0 || r->lanes > SFC_LIMIT_LANES)
        return sfc_fail(err, SFC_EINVAL, "lanes: %u is not within 1..%u", r->lanes,
                        SFC_LIMIT_LANES);
    if (!r->data)
        return sfc_fail(err, SFC_EINVAL, "data is missing");
    return SFC_OK;
}

static const char *name_data(const Shardfc__V1__DataSet *data)
{
    if (data->kind == SHARDFC__V1__DATA_SET__KIND__SYNTHETIC)
        return "synthetic";
    return data->digest[0] ? data->digest : "images without a digest";
}

/* Does this worker fit the run? */
static int check_fit(struct sfc_sched_run *run, const Shardfc__V1__JoinRequest *r,
                     struct sfc_error *err)
{
    const Shardfc__V1__DataSet *want = run->config->data;
    const struct sfc_set_of_run set = sfc_sched_set(run);
    bool same = want && want->kind == r->data->kind && strcmp(set.digest, r->data->digest) == 0;
    bool larger = want && want->kind == r->data->kind && r->begin &&
                  r->begin->samples == set.samples && strcmp(r->begin->digest, set.digest) == 0;
    if (want && want->kind == SHARDFC__V1__DATA_SET__KIND__SESSION)
        return sfc_fail(err, SFC_EINVAL,
                        "run %s is a session of a foreign framework and takes no workers",
                        run->config->name);
    if (want && !same && !larger)
        return sfc_fail(
            err, SFC_EINVAL,
            "data: this worker's data set (%s) is not that of run %s (%s), nor one that "
            "begins with it; start the worker with --data of the set that the run was "
            "%s",
            name_data(r->data), run->config->name,
            want->kind == SHARDFC__V1__DATA_SET__KIND__SYNTHETIC ? "synthetic" : set.digest,
            run->map->n_growths ? "grown to" : "created with");
    if (!run->config->mixed && run->numerics[0] && strcmp(run->numerics, r->numerics) != 0)
        return sfc_fail(err, SFC_EINVAL,
                        "numerics: this worker is '%s', the run's workers are '%s'; results would "
                        "depend on who computes what (create the run with --mixed to allow it)",
                        r->numerics, run->numerics);
    return SFC_OK;
}

/* A larger set than the run's, of which it did not say what it begins with. */
static bool may_begin(const struct sfc_sched_run *run, const Shardfc__V1__JoinRequest *r)
{
    const struct sfc_set_of_run set = sfc_sched_set(run);
    return r->data->kind == SHARDFC__V1__DATA_SET__KIND__RECORDS && set.samples > 0 &&
           r->data->samples > set.samples && strcmp(r->data->digest, set.digest) != 0 &&
           (!r->begin || r->begin->samples != set.samples);
}

struct numerics_task {
    struct sfc_store_task task;
    uint64_t run_id;
    char numerics[128];
};

static void numerics_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct numerics_task *t = (struct numerics_task *)task;
    task->code = sfc_store_set_run_numerics(store, t->run_id, t->numerics, &task->error);
}

static void numerics_done(struct sfc_store_task *task)
{
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    free(task);
}

/* The first worker's class is the run's, also after a restart of the scheduler. It is durable
 * before the first commit record: the store works in order. */
static int take_numerics(struct sfc_sched_run *run, const char *numerics, struct sfc_error *err)
{
    if (run->numerics[0])
        return SFC_OK;
    struct numerics_task *t = calloc(1, sizeof *t);
    if (!t)
        return sfc_fail(err, SFC_ENOMEM, "join");
    snprintf(run->numerics, sizeof run->numerics, "%s", numerics);
    memcpy(t->numerics, run->numerics, sizeof t->numerics);
    t->run_id = run->id;
    t->task.work = numerics_work;
    t->task.done = numerics_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
    return SFC_OK;
}

static int join(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                const Shardfc__V1__JoinRequest *r, struct sfc_error *err)
{
    struct sfc_worker_info *info = NULL;
    if (may_begin(s->run, r)) {
        Shardfc__V1__JoinReply ask = SHARDFC__V1__JOIN_REPLY__INIT;
        ask.wanted_samples = sfc_sched_set(s->run).samples;
        sfc_call_reply(call, &ask);
        return SFC_OK;
    }
    int code = check_fit(s->run, r, err);
    for (size_t i = 0; i < SFC_MAX_WORKERS && !info; i++)
        if (s->workers[i].id == 0)
            info = &s->workers[i];
    if (code == SFC_OK && !info)
        code = sfc_fail(err, SFC_ELIMIT, "there are %d workers already", SFC_MAX_WORKERS);
    struct sfc_member_event event = {
        .type = SFC_MEMBER_WORKER_JOIN, .name = r->name, .lanes = r->lanes};
    if (code == SFC_OK)
        code = take_numerics(s->run, r->numerics, err);
    if (code == SFC_OK)
        code = member_step(s, &event, err);
    if (code != SFC_OK)
        return code;
    if (s->member_actions.count == 0 || s->member_actions.items[0].type != SFC_MEMBER_WORKER_JOINED)
        return sfc_fail(err, SFC_EINTERNAL, "a join without a new member");
    info->id = s->member_actions.items[0].id;
    snprintf(info->data_digest, sizeof info->data_digest, "%s", r->data->digest);
    if (r->begin) {
        info->begin_samples = r->begin->samples;
        snprintf(info->begin_digest, sizeof info->begin_digest, "%s", r->begin->digest);
    }
    info->clock_ahead_s = 0;
    info->memory_bytes = 0;
    snprintf(info->version, sizeof info->version, "%s", r->version);
    snprintf(info->numerics, sizeof info->numerics, "%s", r->numerics);
    sfc_info_log("worker %" PRIu64 " joined: %s, %u lanes", info->id, r->name, r->lanes);
    Shardfc__V1__JoinReply m = SHARDFC__V1__JOIN_REPLY__INIT;
    m.joined = true;
    m.worker = info->id;
    m.run_id = s->run->id;
    m.incarnation = s->incarnation;
    m.config = s->run->config;
    m.map = s->run->map;
    sfc_call_reply(call, &m);
    return SFC_OK;
}

void sfc_sched_on_join(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__JoinRequest *r = sfc_sched_unpack(s, call, &shardfc__v1__join_request__descriptor);
    if (!r)
        return;
    if (check_join(r, &err) != SFC_OK) {
        sfc_sched_refuse(s, call, &err);
    } else if (joinable(s)) {
        if (join(s, call, r, &err) != SFC_OK)
            sfc_sched_refuse(s, call, &err);
    } else {
        struct sfc_parked *p = sfc_sched_park(s, call, SFC_PARKED_JOIN);
        if (p) {
            p->join = r;
            p->due_ms = sfc_sched_now(s) + SFC_JOIN_HOLD_MS;
            return;
        }
    }
    sfc_message_free(r);
}

/* worker: 0: it is not known. */
static void reply_heartbeat(struct sfc_scheduler *s, struct sfc_rpc_call *call, uint64_t worker)
{
    Shardfc__V1__HeartbeatReply m = SHARDFC__V1__HEARTBEAT_REPLY__INIT;
    m.known = worker != 0;
    m.state = (char *)(uintptr_t) "idle";
    if (s->run) {
        m.run_id = s->run->id;
        m.state = (char *)(uintptr_t)sfc_run_state_name(s->run->fsm.state);
        m.step = sfc_run_committed(&s->run->fsm);
        m.map_version = s->run->map->version;
    }
    sfc_trace_tell(s, worker, &m);
    sfc_call_reply(call, &m);
}

void sfc_sched_on_heartbeat(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__HeartbeatRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__heartbeat_request__descriptor);
    if (!r)
        return;
    struct sfc_member_event event = {.type = SFC_MEMBER_WORKER_SEEN, .id = r->worker};
    struct sfc_worker_info *info = sfc_sched_worker(s, r->worker);
    if (!info || member_step(s, &event, &err) != SFC_OK) {
        reply_heartbeat(s, call, 0);
    } else {
        take_counters(&info->counters, r->counters, r->n_counters);
        info->memory_bytes = r->memory_bytes;
        sfc_trace_heard(s, r->worker);
        if (r->time_us)
            info->clock_ahead_s = ((double)r->time_us - (double)sfc_about_clock_us()) / 1e6;
        struct sfc_parked *p = sfc_sched_park(s, call, SFC_PARKED_WORKER_HEARTBEAT);
        if (p) {
            p->member = r->worker;
            p->due_ms = sfc_sched_now(s) + heartbeat_hold(s);
        }
    }
    sfc_message_free(r);
}

void sfc_sched_part_worker(struct sfc_scheduler *s, uint64_t id)
{
    struct sfc_error err = {0};
    struct sfc_member_event event = {.type = SFC_MEMBER_WORKER_LEAVE, .id = id};
    if (member_step(s, &event, &err) == SFC_OK)
        act(s, NULL);
}

void sfc_sched_on_leave(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__LeaveRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__leave_request__descriptor);
    if (!r)
        return;
    struct sfc_member_event event = {.type = SFC_MEMBER_WORKER_LEAVE, .id = r->worker};
    if (member_step(s, &event, &err) == SFC_OK)
        act(s, NULL);
    Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT; /* leaving twice is fine */
    sfc_call_reply(call, &reply);
    sfc_message_free(r);
}

/* ---- time */

void sfc_sched_member_cancelled(struct sfc_parked *p)
{
    struct sfc_scheduler *s = p->scheduler;
    struct sfc_error err = {0};
    struct sfc_member_event event = {.id = p->member, .boot_id = p->boot_id};
    enum sfc_parked_kind kind = p->kind;
    sfc_rpc_fail(p->call, SFC_ECANCELED, "the caller gave up");
    sfc_sched_unpark(p);
    if (kind == SFC_PARKED_WORKER_HEARTBEAT)
        event.type = SFC_MEMBER_WORKER_LOST;
    else if (kind == SFC_PARKED_SHARD_HEARTBEAT)
        event.type = SFC_MEMBER_SHARD_LOST;
    else
        return;
    if (member_step(s, &event, &err) == SFC_OK)
        act(s, NULL);
}

static void join_parked(struct sfc_scheduler *s, struct sfc_parked *p)
{
    struct sfc_error err = {0};
    if (joinable(s)) {
        if (join(s, p->call, p->join, &err) != SFC_OK)
            sfc_sched_refuse(s, p->call, &err);
        sfc_sched_unpark(p);
    } else if (sfc_sched_now(s) >= p->due_ms) {
        Shardfc__V1__JoinReply m = SHARDFC__V1__JOIN_REPLY__INIT;
        sfc_call_reply(p->call, &m);
        sfc_sched_unpark(p);
    }
}

/* A paused machine, a disk that a log line waits for: more than a tick that is late. */
static void note_standstill(struct sfc_scheduler *s, uint64_t now)
{
    uint64_t since = s->ticked_ms ? now - s->ticked_ms : 0;
    if (since > STANDSTILL_MS) {
        sfc_warning_log("this process stood still for %" PRIu64 " ms", since);
        sfc_membership_stood_still(&s->members, since);
        if (s->run)
            sfc_run_stood_still(&s->run->fsm, since, now);
    }
    s->ticked_ms = now;
}

void sfc_sched_members_tick(struct sfc_scheduler *s)
{
    uint64_t now = sfc_sched_now(s);
    note_standstill(s, now);
    struct sfc_error err = {0};
    struct sfc_member_event event = {.type = SFC_MEMBER_TICK};
    for (struct sfc_parked *p = s->parked, *next; p; p = next) {
        next = p->next;
        if (p->kind == SFC_PARKED_JOIN) {
            join_parked(s, p);
        } else if (p->kind == SFC_PARKED_WORKER_HEARTBEAT &&
                   (now >= p->due_ms || sfc_trace_wants(s, p->member))) {
            reply_heartbeat(s, p->call, sfc_sched_worker(s, p->member) ? p->member : 0);
            sfc_sched_unpark(p);
        } else if (p->kind == SFC_PARKED_SHARD_HEARTBEAT && now >= p->due_ms) {
            reply_shard_heartbeat(s, p->call, true);
            sfc_sched_unpark(p);
        }
    }
    if (member_step(s, &event, &err) == SFC_OK)
        act(s, NULL);
}

void sfc_sched_keep_shards(struct sfc_scheduler *s, const Shardfc__V1__BlockMap *map)
{
    uint64_t ids[SFC_CORE_MAX_SHARDS];
    size_t count = 0;
    for (; count < map->n_shards && count < SFC_CORE_MAX_SHARDS; count++)
        ids[count] = map->shards[count]->shard; /* of an empty place 0, which nobody has */
    sfc_membership_keep_shards(&s->members, ids, count);
}

int sfc_sched_restore_shards(struct sfc_scheduler *s, struct sfc_error *err)
{
    struct sfc_store_shard *shards = calloc(SFC_CORE_MAX_SHARDS, sizeof *shards);
    size_t count = 0;
    if (!shards)
        return sfc_fail(err, SFC_ENOMEM, "list of shards");
    int code = sfc_store_shards(s->store, shards, SFC_CORE_MAX_SHARDS, &count, err);
    for (size_t i = 0; i < count && code == SFC_OK; i++)
        code =
            sfc_membership_restore_shard(&s->members, shards[i].shard, shards[i].address, 0, err);
    free(shards);
    return code;
}

#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

static const struct node me = {SCHEDULER, 0};

struct sfc_schedule scheduler_rates(const struct sim *s)
{
    return (struct sfc_schedule){
        .lr = 0.1, .warmup_steps = 3, .power = 1.5, .end = 0.02, .steps = s->steps};
}

static struct sfc_run_config run_config(const struct sim *s, uint64_t *ids)
{
    for (uint32_t k = 0; k < s->k; k++)
        ids[k] = s->store.map.member[k] ? k + 1 : 0;
    return (struct sfc_run_config){
        .run_id = RUN_ID,
        .incarnation = s->store.incarnation,
        .shards = s->k,
        .max_shards = MAX_K,
        .shard_ids = ids,
        .map_version = s->store.map.version,
        .classes = grow_classes(s, &s->store.map),
        .global_batch = s->j * ROWS,
        .micro_batch = ROWS,
        .dense_blocks = s->d,
        .session = s->session,
        .clip = 5.0,
        .schedule = scheduler_rates(s),
        .lr_changes = s->store.lr_changes.items,
        .lr_change_count = s->store.lr_changes.count,
        .durable_every = s->durable_every,
        .lead_steps = 2,
        .max_waiting = 64,
        .data_timeout_ms = 2000,
        .grant_timeout_ms = 4000,
        .take_wait_ms = 1500,
        .stall_ms = 300,
    };
}

static void open_machine(struct sim *s, const struct sfc_run_restore *restore)
{
    struct scheduler *sc = &s->scheduler;
    uint64_t ids[MAX_K];
    const struct sfc_run_config config = run_config(s, ids);
    struct sfc_error err;
    if (sfc_run_init(&sc->run, &config, restore, &err) != SFC_OK ||
        sfc_run_actions_init(&sc->actions, &sc->run, &err) != SFC_OK ||
        sfc_log_floor_init(&sc->floor, s->k, &err) != SFC_OK)
        sim_fail(s, "scheduler: %s", err.text);
    for (uint32_t k = 0; k < s->k; k++)
        sfc_log_floor_set_member(&sc->floor, k, s->store.map.member[k]);
    sc->map = s->store.map;
    memset(&sc->order, 0, sizeof(sc->order));
    sc->lose_again = 0;
    sc->has_run = true;
}

static void create_run(struct sim *s)
{
    if (s->scheduler.has_run)
        return;
    for (uint32_t k = 0; k < s->k; k++)
        if (s->store.shard_ids[k] == 0)
            return;
    s->store.created = true;
    s->store.state = SFC_RUN_LOADING;
    open_machine(s, NULL);
    struct sfc_run_event tick = {.type = SFC_EV_TICK};
    scheduler_run_event(s, &tick);
}

void scheduler_start(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_error err;
    char address[32];
    const struct sfc_membership_config config = {.incarnation = ++s->store.incarnation,
                                                 .max_workers = 64,
                                                 .max_shards = 8,
                                                 .worker_lease_ms = 1500,
                                                 .shard_lease_ms = 2500};
    sc->up = true;
    sc->life++;
    if (!s->store.created) /* shards are made durable with the run */
        memset(s->store.shard_ids, 0, sizeof(s->store.shard_ids));
    if (sfc_membership_init(&sc->members, &config, &err) != SFC_OK ||
        sfc_member_actions_init(&sc->member_actions, &sc->members, &err) != SFC_OK)
        sim_fail(s, "membership: %s", err.text);
    for (uint32_t k = 0; k < s->k && s->store.created; k++) {
        snprintf(address, sizeof(address), "shard-%u", k);
        /* The daemon doesn't store boot ids; a machine that knew them must work as well. */
        uint64_t boot_id = sim_below(s, 2) ? s->shards[k].boot_id : 0;
        if (sfc_membership_restore_shard(&sc->members, s->store.shard_ids[k], address, boot_id,
                                         &err) != SFC_OK)
            sim_fail(s, "membership: %s", err.text);
    }
    if (s->store.created) {
        const struct sfc_run_drop drop = {s->poison_step, s->poison_j};
        const struct sfc_run_restore restore = {.has_record = s->store.last > 0,
                                                .record = s->store.records[s->store.last].r,
                                                .state = s->store.state,
                                                .paused = s->store.paused,
                                                .reason = s->store.reason,
                                                .map_step = s->store.map_step,
                                                .map_order = s->store.map_order,
                                                .drops = &drop,
                                                .drop_count = s->store.dropped &&
                                                              s->poison_step > s->store.last};
        store_restore(s);
        open_machine(s, &restore);
    }
    sim_after(s, 100, E_TICK)->b = sc->life;
    sim_log(s, "scheduler up, incarnation %llu", (ull)s->store.incarnation);
}

void scheduler_stop(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    store_crash(s);
    sc->up = false;
    sc->life++;
    sfc_membership_free(&sc->members);
    sfc_member_actions_free(&sc->member_actions);
    if (sc->has_run) {
        sfc_run_free(&sc->run);
        sfc_run_actions_free(&sc->actions);
        sfc_log_floor_free(&sc->floor);
    }
    sc->has_run = false;
    sc->seen_phase = SFC_REWIND_NONE;
    sc->set_lr = (struct sfc_lr_change){0};
    memset(sc->oldest, 0, sizeof(sc->oldest));
    s->rewinding = false;
    s->hold_id = 0;
    s->hold_token = 0;
    sim_log(s, "scheduler down");
}

/* ---- actions of the run */

static void name_returns(struct sim *s, struct body *b)
{
    struct sfc_lineage x;
    store_lineage(s, &x);
    b->return_count = (uint32_t)x.count;
    memcpy(b->returns, x.returns, x.count * sizeof(*x.returns));
}

static void send(struct sim *s, const struct sfc_run_action *a)
{
    static const enum method methods[SFC_DUTY_COUNT] = {
        [SFC_DUTY_OPEN] = M_OPEN,     [SFC_DUTY_COMMIT] = M_COMMIT,  [SFC_DUTY_ABORT] = M_ABORT,
        [SFC_DUTY_PLAN] = M_PLAN,     [SFC_DUTY_PLAN_NEXT] = M_PLAN, [SFC_DUTY_PREPARE] = M_PREPARE,
        [SFC_DUTY_CLOSE] = M_CLOSE,   [SFC_DUTY_CHECK] = M_CHECK,    [SFC_DUTY_JOIN] = M_OPEN_JOIN,
        [SFC_DUTY_FETCH] = M_FETCH,   [SFC_DUTY_TAKE] = M_TAKE,      [SFC_DUTY_SETMAP] = M_SET_MAP,
        [SFC_DUTY_CANCEL] = M_CANCEL, [SFC_DUTY_ADOPT] = M_CHECK,
    };
    struct sfc_run_fsm *run = &s->scheduler.run;
    struct body b = {.step = a->step, .round = a->round, .lr = a->lr};
    b.incarnation = s->store.incarnation;
    b.provisional = a->provisional;
    b.map = s->scheduler.map;
    b.map_version = b.map.version;
    moves_fill(s, a, &b);
    if (methods[a->duty] == M_PLAN)
        memcpy(b.labels, sfc_run_labels(run, a->step), s->j * ROWS * sizeof(*b.labels));
    for (uint32_t j = 0; j < s->j && a->duty == SFC_DUTY_PREPARE; j++) {
        const struct sfc_done *d = sfc_run_done(run, j);
        b.attempts[j] = d->attempt;
        b.heads[j] = d->head_digest;
        memcpy(b.digests[j], d->dense_digests, s->d * sizeof(*d->dense_digests));
    }
    b.clip_scale = a->record.clip_scale;
    b.apply = a->record.apply;
    if (a->duty == SFC_DUTY_OPEN || a->duty == SFC_DUTY_CHECK || a->duty == SFC_DUTY_JOIN ||
        a->duty == SFC_DUTY_ADOPT) {
        b.recover = a->recover;
        b.value = a->record.step;
        b.attempt = a->record.round;
        b.lr = a->record.lr;
    }
    if (a->duty == SFC_DUTY_OPEN || a->duty == SFC_DUTY_JOIN)
        name_returns(s, &b);
    s->counts.aborts += a->duty == SFC_DUTY_ABORT;
    sim_log(s, "scheduler: %s of step %llu to shard %u", sfc_duty_names[a->duty], (ull)a->step,
            a->shard);
    sim_call(s, me, (struct node){SHARD, a->shard}, methods[a->duty], a->duty, 800, &b);
    s->rpcs[s->rpc_count - 1].shard_life = a->life;
}

static void new_state(struct sim *s, const struct sfc_run_action *a)
{
    sim_log(s, "run is %s: %s", sfc_run_state_name(a->state), a->text);
    struct event *e = store_after(s, E_STATE_STORED);
    e->a = a->state;
    e->c = a->paused;
    strncpy(e->body.text, a->text, sizeof(e->body.text) - 1);
    if (a->state == SFC_RUN_FAILED)
        sim_fail(s, "the run failed: %s", a->text);
    if (a->state != SFC_RUN_BLOCKED)
        return;
    const struct sfc_run_fsm *run = &s->scheduler.run;
    if (run->blocked_j != UINT32_MAX && !run->blocked_before_restart &&
        s->counted[run->blocked_step][run->blocked_j] < SFC_ATTEMPT_LIMIT)
        sim_fail(s, "blocked, but step %llu micro-batch %u failed %u times by itself: %s",
                 (ull)run->blocked_step, run->blocked_j,
                 s->counted[run->blocked_step][run->blocked_j], a->text);
    if (s->drop_acknowledged && !run->blocked_before_restart &&
        run->blocked_step == s->poison_step && run->blocked_j == s->poison_j)
        sim_fail(s, "blocked by a micro-batch that was dropped: %s", a->text);
    sim_after(s, 50, E_OPERATOR)->a = 1;
}

static void reply_ticket(struct sim *s, const struct sfc_run_action *a)
{
    struct body b = {.code = SFC_OK,
                     .granted = a->granted,
                     .data = a->data,
                     .step = a->step,
                     .j = a->j,
                     .attempt = a->attempt,
                     .dropped = a->dropped,
                     .map = s->scheduler.map};
    for (uint32_t r = 0; r < ROWS && a->granted && a->data; r++)
        b.samples[r] = grow_sample(s, &b.map, ((a->step - 1) * s->j + a->j) * ROWS + r);
    if (a->granted && !a->data)
        oracle_check_grant(s, a->step);
    sim_answer(s, a->token, &b);
}

static void reply_done(struct sim *s, const struct sfc_run_action *a)
{
    const struct body *r = sim_request(s, a->token);
    const struct body b = {.code = SFC_OK, .accepted = a->accepted};
    if (a->accepted && r->step == sfc_run_committed(&s->scheduler.run) + 1)
        oracle_accept(s, r->step, r->j, r->attempt);
    sim_answer(s, a->token, &b);
}

/* What a checkpoint relies on: while held, every shard is at the held step and stays there. */
static void reply_hold(struct sim *s, const struct sfc_run_action *a)
{
    s->hold_token = 0;
    s->hold_id = a->hold_id;
    for (uint32_t k = 0; k < s->k && a->held; k++)
        if (s->scheduler.map.member[k] && s->shards[k].has_run &&
            sfc_step_applied(&s->shards[k].fsm) != a->step)
            sim_fail(s, "held at step %llu, but shard %u is at %llu", (ull)a->step, k,
                     (ull)sfc_step_applied(&s->shards[k].fsm));
    struct event *e = sim_after(s, 100, E_OPERATOR);
    e->a = a->held ? 4 : 3;
}

/* The scheduler likes to die right then. */
static void drop_acknowledged(struct sim *s)
{
    if (!s->drop_acknowledged && sim_below(s, 2) == 0)
        sim_after(s, sim_below(s, 200), E_KILL_SCHEDULER);
    s->drop_acknowledged = true;
}

static void act(struct sim *s, const struct sfc_run_action *a)
{
    struct body b = {.code = a->code, .accepted = a->accepted};
    switch (a->type) {
    case SFC_ACT_SEND:
        send(s, a);
        break;
    case SFC_ACT_WRITE_RECORD:
        store_write_record(s, a);
        break;
    case SFC_ACT_WRITE_DROP:
        store_after(s, E_DROP_STORED)->a = a->number;
        break;
    case SFC_ACT_WRITE_LR:
        store_write_lr(s, a);
        break;
    case SFC_ACT_REPLY_LR:
        operator_set_lr(s, a->step, a->lr);
        break;
    case SFC_ACT_REPLY:
        if (a->token == DROP_TOKEN && a->code == SFC_OK)
            drop_acknowledged(s);
        if (a->token == DROP_TOKEN && a->code == SFC_ESTATE) /* the run is far before that step */
            sim_after(s, 50, E_OPERATOR)->a = 6;
        if (a->token == REWIND_TOKEN)
            operator_rewound(s, a->code, a->text);
        if (a->token >= UINT32_MAX)
            break; /* the operator's */
        strncpy(b.text, a->text, sizeof(b.text) - 1);
        sim_answer(s, a->token, &b);
        break;
    case SFC_ACT_REPLY_TICKET:
        reply_ticket(s, a);
        break;
    case SFC_ACT_REPLY_DONE:
        reply_done(s, a);
        break;
    case SFC_ACT_REPLY_HOLD:
        reply_hold(s, a);
        break;
    case SFC_ACT_STATE:
        new_state(s, a);
        break;
    case SFC_ACT_FORGET_RECORDS:
        store_forget(s, a);
        break;
    case SFC_ACT_READ_RECORD:
        store_read_record(s, a->step);
        break;
    case SFC_ACT_WRITE_REWIND:
        store_write_rewind(s, a);
        break;
    case SFC_ACT_REPLY_SESSION:
        b.session = a->session;
        b.step = a->step;
        b.attempt = a->attempt;
        b.map = s->scheduler.map;
        sim_answer(s, a->token, &b);
        break;
    case SFC_ACT_WRITE_MAP:
        moves_write_map(s, a);
        break;
    case SFC_ACT_MAP:
        moves_take_map(s);
        break;
    case SFC_ACT_ORDER_DONE:
        moves_done(s, a);
        break;
    case SFC_ACT_COMMITTED:
        break;
    }
}

/* Somebody likes to die in each phase of a rewind. */
static void disturb_rewind(struct sim *s)
{
    enum sfc_rewind_phase phase = s->scheduler.run.rewind.phase;
    if (phase == s->scheduler.seen_phase)
        return;
    s->scheduler.seen_phase = phase;
    if (s->now >= s->chaos_end || sim_below(s, 4) != 0)
        return;
    uint64_t soon = sim_below(s, 400);
    if (sim_below(s, 3) == 0)
        sim_after(s, soon, E_KILL_SCHEDULER);
    else
        sim_after(s, soon, E_KILL_SHARD)->a = sim_below(s, s->k);
}

void scheduler_run_event(struct sim *s, struct sfc_run_event *event)
{
    struct scheduler *sc = &s->scheduler;
    if (!sc->up || !sc->has_run)
        return;
    uint64_t grants = sfc_run_second_grants(&sc->run), data = sfc_run_second_data(&sc->run);
    event->now_ms = s->now;
    sfc_run_step(&sc->run, event, &sc->actions);
    s->counts.second_grants += sfc_run_second_grants(&sc->run) - grants;
    s->counts.second_data += sfc_run_second_data(&sc->run) - data;
    oracle_check_tickets(s);
    for (size_t i = 0; i < sc->actions.count; i++)
        act(s, &sc->actions.items[i]);
    disturb_rewind(s);
    moves_disturb(s);
    store_feed(s);
}

void scheduler_tick(struct sim *s)
{
    const struct sfc_member_event m = {.type = SFC_MEMBER_TICK, .now_ms = s->now};
    struct sfc_run_event e = {.type = SFC_EV_TICK};
    int code;
    scheduler_member_event(s, &m, &code, NULL);
    scheduler_run_event(s, &e);
    mirror_tick(s);
    sim_after(s, 100, E_TICK)->b = s->scheduler.life;
}

/* ---- membership */

static uint32_t shard_index(const struct sim *s, uint64_t id)
{
    uint32_t k = 0;
    while (k < s->k && s->store.shard_ids[k] != id)
        k++;
    return k;
}

void scheduler_member_event(struct sim *s, const struct sfc_member_event *event, int *code,
                            uint64_t *id)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_error err;
    *code = sfc_membership_step(&sc->members, event, &sc->member_actions, &err);
    for (size_t i = 0; *code == SFC_OK && i < sc->member_actions.count; i++) {
        struct sfc_member_action a = sc->member_actions.items[i];
        struct sfc_run_event e = {.type = SFC_EV_TICK};
        if (id)
            *id = a.id;
        if (a.type == SFC_MEMBER_WORKER_DIED) {
            e.type = SFC_EV_WORKER_DIED;
            e.worker = a.id;
        } else if (a.type == SFC_MEMBER_SHARD_GONE) {
            e.type = SFC_EV_SHARD_GONE;
            e.shard = shard_index(s, a.id);
        } else if (a.type == SFC_MEMBER_SHARD_RESTARTED) {
            e.type = SFC_EV_SHARD_LOST;
            e.shard = shard_index(s, a.id);
        } else if (a.type == SFC_MEMBER_SHARD_REJOINED && event->type == SFC_MEMBER_SHARD_SEEN) {
            e.type = SFC_EV_SHARD_BACK; /* it was only cut off */
            e.shard = shard_index(s, a.id);
        }
        scheduler_run_event(s, &e);
    }
}

static void register_shard(struct sim *s, uint64_t token, const struct body *b)
{
    char address[32];
    struct body answer = {.code = SFC_OK};
    snprintf(address, sizeof(address), "shard-%u", b->j);
    const struct sfc_member_event m = {.type = SFC_MEMBER_SHARD_REGISTER,
                                       .now_ms = s->now,
                                       .name = address,
                                       .boot_id = b->boot_id};
    scheduler_member_event(s, &m, &answer.code, &answer.worker);
    s->store.shard_ids[b->j] = answer.worker;
    answer.incarnation = s->store.incarnation;
    bool restarted = answer.code == SFC_OK &&
                     s->scheduler.member_actions.items[0].type == SFC_MEMBER_SHARD_RESTARTED;
    struct sfc_run_event e = {.type = SFC_EV_SHARD_BACK,
                              .shard = b->j,
                              .shard_run_id = b->run_id,
                              .map_version = b->map_version,
                              .step = b->step,
                              .prepared_step = b->prepared_step};
    bool stray = s->scheduler.has_run && b->run_id == RUN_ID &&
                 s->scheduler.run.shards[b->j].place == SFC_PLACE_EMPTY;
    if (stray) {
        e.type = SFC_EV_SHARD_STRAY;
        e.shard_id = b->j + 1;
    }
    if (!restarted || stray)
        scheduler_run_event(s, &e);
    create_run(s);
    sim_answer(s, token, &answer);
}

static void member_request(struct sim *s, uint64_t token, enum method method, const struct body *b)
{
    struct body answer = {.code = SFC_OK};
    struct sfc_member_event m = {.now_ms = s->now, .id = b->worker, .boot_id = b->boot_id};
    m.type = method == M_JOIN   ? SFC_MEMBER_WORKER_JOIN
             : method == M_BEAT ? SFC_MEMBER_WORKER_SEEN
                                : SFC_MEMBER_SHARD_SEEN;
    m.name = "worker";
    m.lanes = 1;
    if (method == M_JOIN && !s->scheduler.has_run)
        answer.code = SFC_EUNAVAILABLE;
    else
        scheduler_member_event(s, &m, &answer.code, &answer.worker);
    if (method == M_SHARD_BEAT && answer.code == SFC_OK && s->scheduler.has_run && b->has_floor) {
        sfc_log_floor_note(&s->scheduler.floor, b->j, b->floor);
        s->scheduler.oldest[b->j] = b->oldest;
        answer.has_floor = sfc_log_floor_least(&s->scheduler.floor, &answer.floor);
    }
    answer.incarnation = s->store.incarnation;
    sim_answer(s, token, &answer);
}

/* ---- calls */

void scheduler_request(struct sim *s, uint64_t token)
{
    static const enum sfc_run_event_type types[] = {[M_TICKET] = SFC_EV_TICKET,
                                                    [M_ANNOUNCE] = SFC_EV_ANNOUNCE,
                                                    [M_DONE] = SFC_EV_DONE,
                                                    [M_GIVE_UP] = SFC_EV_GIVE_UP,
                                                    [M_OPEN_SESSION] = SFC_EV_OPEN_SESSION};
    enum method method = s->tokens[token].method;
    struct body b = *sim_request(s, token);
    struct sfc_done done = {.attempt = b.attempt,
                            .head_digest = b.heads[0],
                            .dense_digests = b.digests[0],
                            .loss_sum = b.loss_sum};
    if (method == M_REGISTER) {
        register_shard(s, token, &b);
        return;
    }
    if (method == M_JOIN || method == M_BEAT || method == M_SHARD_BEAT) {
        member_request(s, token, method, &b);
        return;
    }
    if (s->session && !s->scheduler.has_run) {
        const struct body answer = {.code = SFC_EUNAVAILABLE, .text = "no run yet"};
        sim_answer(s, token, &answer);
        return;
    }
    if (!s->session &&
        (!s->scheduler.has_run || !sfc_membership_worker(&s->scheduler.members, b.worker))) {
        const struct body answer = {.code = SFC_ENOTFOUND, .text = "join again"};
        sim_answer(s, token, &answer);
        return;
    }
    struct sfc_run_event e = {.type = types[method],
                              .token = token,
                              .worker = b.worker,
                              .session = b.session,
                              .step = b.step,
                              .j = b.j,
                              .attempt = b.attempt,
                              .labels = b.labels,
                              .count = b.count,
                              .done = &done,
                              .data = b.data,
                              .code = b.code,
                              .text = b.text};
    scheduler_run_event(s, &e);
}

/* Answers of shards. */
void scheduler_reply(struct sim *s, const struct rpc *rpc, const struct body *body)
{
    struct sfc_dense_report reports[MAX_D];
    uint32_t n = 0, k = rpc->to.index;
    for (uint32_t d = 0; d < s->d; d++)
        if (s->scheduler.map.dense_owner[d] == k)
            reports[n++] = (struct sfc_dense_report){
                .block = d, .sum_of_squares = body->sums[d], .finite = body->finite[d]};
    struct sfc_run_event e = {.type = SFC_EV_SHARD_REPLY,
                              .shard = k,
                              .duty = (enum sfc_duty)(rpc->tag & 255),
                              .life = rpc->shard_life,
                              .number = body->move,
                              .applied = body->value,
                              .step = body->step,
                              .round = body->round,
                              .code = body->code,
                              .text = body->text,
                              .prepare = {.ready = body->ready,
                                          .head_finite = body->head_finite,
                                          .reports = reports,
                                          .report_count = n,
                                          .missing = body->missing,
                                          .missing_count = body->count}};
    scheduler_run_event(s, &e);
}

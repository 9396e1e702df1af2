#include "tests/sim/sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

#define TIME_LIMIT 600000u /* virtual ms: a run that isn't finished by then hangs */

/* ---- chance and words */

static uint64_t next_random(struct sim *s)
{
    s->random += 0x9e3779b97f4a7c15u;
    return mix(s->random, s->seed);
}

uint32_t sim_below(struct sim *s, uint32_t n)
{
    return (uint32_t)(next_random(s) % n);
}

bool sim_chance(struct sim *s, unsigned ppm)
{
    return sim_below(s, 1000000) < ppm;
}

void sim_fail(struct sim *s, const char *format, ...)
{
    char text[400];
    va_list args;
    if (s->failed)
        return; /* the first one is the cause */
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    s->failed = true;
    snprintf(s->failure, sizeof(s->failure), "at %llu ms: %s", (ull)s->now, text);
}

void sim_log(struct sim *s, const char *format, ...)
{
    va_list args;
    if (!s->verbose)
        return;
    printf("%8llu ms  ", (ull)s->now);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

static void *grow(void *items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return items;
    *capacity = *capacity * 2 + 256;
    items = realloc(items, *capacity * size);
    if (!items) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return items;
}

/* ---- clock: a heap of events by (time, order of creation) */

static bool before(const struct event *a, const struct event *b)
{
    return a->time != b->time ? a->time < b->time : a->seq < b->seq;
}

struct event *sim_after(struct sim *s, uint64_t delay, enum event_kind kind)
{
    struct event *e = calloc(1, sizeof(*e));
    s->heap = grow(s->heap, s->heap_count, &s->heap_capacity, sizeof(*s->heap));
    if (!e)
        exit(1);
    e->time = s->now + delay;
    e->seq = s->seq++;
    e->kind = kind;
    size_t i = s->heap_count++;
    for (; i > 0 && before(e, s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
    return e;
}

static struct event *take_first(struct sim *s)
{
    struct event *first = s->heap[0], *last = s->heap[--s->heap_count];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= s->heap_count)
            break;
        if (c + 1 < s->heap_count && before(s->heap[c + 1], s->heap[c]))
            c++;
        if (!before(s->heap[c], last))
            break;
        s->heap[i] = s->heap[c];
        i = c;
    }
    s->heap[i] = last;
    return first;
}

/* ---- network */

static uint64_t life_of(const struct sim *s, struct node n)
{
    if (n.kind == SCHEDULER)
        return s->scheduler.life;
    return n.kind == WORKER ? s->worker[n.index].life : s->shards[n.index].life;
}

static bool reachable(const struct sim *s, struct node n)
{
    if (n.kind == SCHEDULER)
        return s->scheduler.up;
    return n.kind == WORKER || (s->shards[n.index].up && s->now >= s->shards[n.index].cut_until);
}

static uint64_t delay(struct sim *s)
{
    if (s->now < s->chaos_end && sim_chance(s, s->slow_ppm))
        return 200 + sim_below(s, 2500);
    return 1 + sim_below(s, 12);
}

static bool lost(struct sim *s)
{
    return s->now < s->chaos_end && sim_chance(s, s->drop_ppm);
}

static void deliver(struct sim *s, uint64_t rpc, const struct body *body, bool reply)
{
    const struct rpc *r = &s->rpcs[rpc];
    struct node to = reply ? r->from : r->to;
    unsigned copies = s->now < s->chaos_end && sim_chance(s, s->repeat_ppm) ? 2 : 1;
    if (!reachable(s, r->from) || !reachable(s, r->to))
        return;
    for (unsigned i = 0; i < copies; i++) {
        if (lost(s))
            continue;
        struct event *e = sim_after(s, delay(s), reply ? E_REPLY : E_REQUEST);
        e->a = rpc;
        e->b = life_of(s, to); /* a connection doesn't survive its peer */
        e->body = *body;
    }
}

void sim_call(struct sim *s, struct node from, struct node to, enum method method, uint64_t tag,
              uint64_t timeout, const struct body *body)
{
    s->rpcs = grow(s->rpcs, s->rpc_count, &s->rpc_capacity, sizeof(*s->rpcs));
    uint64_t id = s->rpc_count++;
    s->rpcs[id] = (struct rpc){.pending = true,
                               .from = from,
                               .to = to,
                               .method = method,
                               .from_life = life_of(s, from),
                               .tag = tag};
    deliver(s, id, body, false);
    struct event *e = sim_after(s, timeout, E_TIMEOUT);
    e->a = id;
    e->body.step = body->step; /* the scheduler needs the key of what failed */
    e->body.round = body->round;
    e->body.move = body->move;
}

static void request_arrives(struct sim *s, const struct event *e)
{
    const struct rpc *r = &s->rpcs[e->a];
    if (!reachable(s, r->to) || e->b != life_of(s, r->to))
        return;
    s->tokens = grow(s->tokens, s->token_count, &s->token_capacity, sizeof(*s->tokens));
    uint64_t token = s->token_count++;
    struct body *request = malloc(sizeof(*request));
    if (!request)
        exit(1);
    *request = e->body;
    s->tokens[token] =
        (struct token){.rpc = e->a, .method = r->method, .life = e->b, .request = request};
    if (r->to.kind == SCHEDULER)
        scheduler_request(s, token);
    else
        shard_request(s, r->to.index, token);
}

struct body *sim_request(struct sim *s, uint64_t token)
{
    return s->tokens[token].request;
}

void sim_answer(struct sim *s, uint64_t token, const struct body *body)
{
    struct token *t = &s->tokens[token];
    if (token == 0 || token >= s->token_count || t->answered) {
        sim_fail(s, "token %llu was answered twice, or never given", (ull)token);
        return;
    }
    t->answered = true;
    struct body b = *body;
    if (s->rpcs[t->rpc].from.kind == SCHEDULER) {
        b.step = t->request->step;
        b.round = t->request->round;
        b.move = t->request->move;
    }
    free(t->request);
    t->request = NULL;
    deliver(s, t->rpc, &b, true);
}

static void reply_arrives(struct sim *s, const struct event *e)
{
    struct rpc r = s->rpcs[e->a];
    if (!r.pending)
        return;
    s->rpcs[e->a].pending = false;
    if (r.from_life != life_of(s, r.from))
        return;
    if (r.from.kind == SCHEDULER)
        scheduler_reply(s, &r, &e->body);
    else if (r.from.kind == SHARD)
        shard_reply(s, r.from.index, &r, &e->body);
    else
        worker_reply(s, r.from.index, &r, &e->body);
}

static void timeout(struct sim *s, struct event *e)
{
    e->body.code = SFC_ETIMEOUT;
    reply_arrives(s, e);
}

/* ---- faults */

static void plan_faults(struct sim *s)
{
    uint32_t end = (uint32_t)s->chaos_end;
    for (uint32_t i = sim_below(s, 8); i > 0; i--)
        sim_after(s, sim_below(s, end), E_KILL_WORKER)->a = sim_below(s, s->workers);
    for (uint32_t i = sim_below(s, 4); i > 0; i--)
        sim_after(s, sim_below(s, end), E_KILL_SCHEDULER);
    for (uint32_t i = sim_below(s, 4); i > 0; i--)
        sim_after(s, sim_below(s, end), E_CUT)->a = sim_below(s, s->k);
    for (uint32_t i = s->bad_disk < s->k ? sim_below(s, 6) : 0; i > 0; i--)
        sim_after(s, sim_below(s, end), E_KILL_SHARD)->a = s->bad_disk;
    for (uint32_t i = sim_below(s, 6); i > 0; i--) {
        uint32_t at = sim_below(s, end);
        sim_after(s, at, E_KILL_SHARD)->a = sim_below(s, s->k);
        if (sim_below(s, 3) == 0) /* two at once, or the same again while it recovers */
            sim_after(s, at + sim_below(s, 600), E_KILL_SHARD)->a = sim_below(s, s->k);
        if (sim_below(s, 5) == 0)
            sim_after(s, at + sim_below(s, 100), E_KILL_SCHEDULER);
    }
    operator_plan(s);
    if (s->elastic)
        sim_after(s, sim_below(s, 500), E_ORDER);
    for (uint32_t i = s->mirrors ? sim_below(s, 4) : 0; i > 0; i--)
        sim_after(s, 500 + sim_below(s, end), E_VANISH)->a = sim_below(s, s->k);
}

static void kill_scheduler(struct sim *s)
{
    if (!s->scheduler.up)
        return;
    s->counts.restarts++;
    scheduler_stop(s);
    sim_after(s, 50 + sim_below(s, 2000), E_START_SCHEDULER);
}

static void cut_shard(struct sim *s, uint32_t k)
{
    s->counts.cuts++;
    s->shards[k].cut_until = s->now + 100 + sim_below(s, 5000);
    sim_log(s, "shard %u is cut off until %llu ms", k, (ull)s->shards[k].cut_until);
}

/* ---- the run of one seed */

/* In a run in three some workers are slow; 60 times is later than the timeout of grants. */
static void shape_workers(struct sim *s)
{
    static const unsigned slowness[] = {1, 1, 1, 3, 20, 60};
    bool slow = mix(s->seed, 1) % 3 == 0;
    for (uint32_t w = 0; w < MAX_WORKERS; w++)
        s->slowness[w] = slow ? slowness[mix(s->seed, 2 + w) % 6] : 1;
}

/* Of an elastic run some shards wait outside at first. */
static void shape_map(struct sim *s)
{
    struct map *m = &s->first_map;
    s->elastic = s->k > 1 && sim_below(s, 2) == 0;
    uint32_t members = s->elastic ? 1 + sim_below(s, s->k) : s->k;
    m->version = 1;
    for (uint32_t k = 0; k < members; k++)
        m->member[k] = true;
    s->mirrors = s->elastic && sim_below(s, 2) == 0;
    s->grows = s->elastic && !s->mirrors && sim_below(s, 4) != 0;
    s->classes = s->grows ? 1 + sim_below(s, CLASSES - 1) : CLASSES;
    for (uint32_t b = 0; b < BLOCKS; b++)
        m->class_owner[b] = b * BLOCK_SIZE < s->classes ? sim_below(s, members) : NOBODY;
    for (uint32_t d = 0; d < s->d; d++)
        m->dense_owner[d] = sim_below(s, members);
    mirror_choose(s, m);
    s->store.map = *m;
}

static void shape(struct sim *s)
{
    static const unsigned rates[] = {0, 0, 5000, 20000, 80000};
    static const uint32_t every[] = {1, 1, 2, 5, 5, 20}, windows[] = {0, 2, 5, MAX_STEPS};
    s->k = 1 + sim_below(s, MAX_K);
    s->j = 1 + sim_below(s, MAX_J);
    s->d = sim_below(s, MAX_D + 1);
    s->workers = 1 + sim_below(s, MAX_WORKERS);
    s->durable_every = every[sim_below(s, 6)];
    s->steps = 4 + sim_below(s, s->durable_every < 5 ? 7 : s->durable_every < 20 ? 13 : 21);
    shape_map(s);
    if (s->elastic) /* time for changes */
        s->steps = s->steps + 10 < MAX_STEPS ? s->steps + 10 : MAX_STEPS;
    s->drop_ppm = rates[sim_below(s, 5)];
    s->repeat_ppm = rates[sim_below(s, 5)];
    s->slow_ppm = rates[sim_below(s, 5)];
    s->give_up_ppm = rates[sim_below(s, 5)] / 4;
    s->mixed = sim_below(s, 4) == 0;
    s->not_finite = sim_below(s, 2) == 0;
    if (sim_below(s, 6) == 0) {
        s->poison_step = 1 + sim_below(s, s->steps);
        s->poison_j = sim_below(s, s->j);
    }
    s->snapshot_ms = 40u << sim_below(s, 6);
    s->flush_error_ppm = 3 * rates[sim_below(s, 5)];
    s->store_error_ppm = 5 * rates[sim_below(s, 5)];
    s->window = windows[sim_below(s, 4)];
    s->session = sim_below(s, 4) == 0;
    if (s->session) {
        s->workers = 1;
        s->d = 0;
        s->poison_step = 0;
    }
    s->bad_disk = sim_below(s, 2) == 0 && s->k > 1 ? sim_below(s, s->k) : s->k;
    if (s->elastic)
        s->bad_disk = s->k; /* what it lacks may be with a shard that has left */
    for (uint32_t d = 0; d < s->d; d++)
        if (s->first_map.dense_owner[d] == s->bad_disk)
            s->bad_disk = s->k; /* what a dense block needs nobody else has */
    s->chaos_end = 2000 + sim_below(s, s->window || s->durable_every > 1 ? 20000 : 8000);
}

static void dispatch(struct sim *s, struct event *e)
{
    switch (e->kind) {
    case E_REQUEST:
        request_arrives(s, e);
        break;
    case E_REPLY:
        reply_arrives(s, e);
        break;
    case E_TIMEOUT:
        timeout(s, e);
        break;
    case E_JOB:
        if (e->job.opened == s->shards[e->a].opened)
            shard_job(s, (uint32_t)e->a, &e->job);
        break;
    case E_FLUSHED:
        if (e->b == s->shards[e->a].opened)
            shard_flushed(s, (uint32_t)e->a, e->c != 0);
        break;
    case E_SNAPSHOT:
        if (s->shards[e->a].has_run)
            disk_take_snapshot(s, (uint32_t)e->a);
        sim_after(s, s->snapshot_ms / 2 + sim_below(s, s->snapshot_ms), E_SNAPSHOT)->a = e->a;
        break;
    case E_SNAPSHOT_WRITTEN:
        if (e->b == s->shards[e->a].opened)
            disk_snapshot_written(s, (uint32_t)e->a, e);
        break;
    case E_SETTLED:
        if (e->b == s->shards[e->a].opened)
            shard_settled(s, (uint32_t)e->a);
        break;
    case E_CHECKED:
        shard_checked(s, (uint32_t)e->a, e);
        break;
    case E_MADE_DURABLE:
        shard_made_durable(s, (uint32_t)e->a, e);
        break;
    case E_MAP_STORED:
        moves_map_stored(s, e);
        break;
    case E_FETCHED:
        moves_fetched(s, (uint32_t)e->a, e);
        break;
    case E_TAKEN:
        moves_taken(s, (uint32_t)e->a, e);
        break;
    case E_JOINED:
        moves_joined(s, (uint32_t)e->a, e);
        break;
    case E_ORDER:
        moves_order(s);
        break;
    case E_RECOVERED:
        if (e->b == s->shards[e->a].opened)
            shard_recovered(s, (uint32_t)e->a);
        break;
    case E_KILL_SHARD:
        shard_kill(s, (uint32_t)e->a);
        break;
    case E_START_SHARD:
        shard_start(s, (uint32_t)e->a);
        break;
    case E_STATE_STORED:
        store_state_written(s, e);
        break;
    case E_DROP_STORED:
        store_drop_written(s, e);
        break;
    case E_LR_STORED:
        store_lr_written(s, e);
        break;
    case E_STORED:
        store_written(s, e);
        break;
    case E_RECORD_READ:
        store_record_read(s, e);
        break;
    case E_NOTIFY:
        store_notify(s, e);
        break;
    case E_TICK:
        if (e->b == s->scheduler.life)
            scheduler_tick(s);
        break;
    case E_WORKER_TIMER:
        worker_timer(s, (uint32_t)e->a, e->b, e->c);
        break;
    case E_SHARD_BEAT:
        shard_beat(s, (uint32_t)e->a);
        break;
    case E_KILL_WORKER:
        worker_kill(s, (uint32_t)e->a);
        break;
    case E_KILL_SCHEDULER:
        kill_scheduler(s);
        break;
    case E_START_SCHEDULER:
        scheduler_start(s);
        break;
    case E_CUT:
        cut_shard(s, (uint32_t)e->a);
        break;
    case E_MIRROR:
        mirror_sweep(s, (uint32_t)e->a);
        break;
    case E_VANISH:
        mirror_vanish(s, (uint32_t)e->a);
        break;
    case E_OPERATOR:
        operator_acts(s, e->a);
        break;
    }
}

static bool finished(const struct sim *s)
{
    for (uint32_t k = 0; k < s->k; k++)
        if (s->store.map.member[k] && !s->shards[k].has_run)
            return false;
    return s->scheduler.up && s->scheduler.has_run && s->scheduler.run.state == SFC_RUN_FINISHED &&
           s->now > s->chaos_end && !s->rewinding && s->scheduler.run.moves.phase == SFC_ORDER_IDLE;
}

static void release(struct sim *s)
{
    if (s->scheduler.up)
        scheduler_stop(s);
    for (uint32_t k = 0; k < s->k; k++) {
        sfc_step_free(&s->shards[k].fsm);
        sfc_step_actions_free(&s->shards[k].actions);
    }
    for (size_t i = 0; i < s->heap_count; i++)
        free(s->heap[i]);
    for (size_t i = 0; i < s->token_count; i++)
        free(s->tokens[i].request);
    free(s->heap);
    free(s->rpcs);
    free(s->tokens);
    free(s->oracle.promises);
    free(s->old_copy);
    free(s->right_disk);
    sfc_lr_changes_free(&s->store.lr_changes);
}

static void add_counts(struct counts *to, const struct counts *from)
{
    uint64_t *a = (uint64_t *)to;
    const uint64_t *b = (const uint64_t *)from;
    for (size_t i = 0; i < sizeof(*to) / sizeof(*a); i++)
        a[i] += b[i];
}

int sim_run(uint64_t seed, bool verbose, char *failure, size_t size, struct counts *stats)
{
    struct sim *s = calloc(1, sizeof(*s));
    if (!s)
        exit(1);
    s->seed = seed;
    s->verbose = verbose;
    s->tokens = grow(NULL, 0, &s->token_capacity, sizeof(*s->tokens));
    s->tokens[0] = (struct token){.answered = true};
    s->token_count = 1; /* token 0 names no call */
    shape(s);
    shape_workers(s);
    oracle_init(s);
    const struct sfc_schedule schedule = scheduler_rates(s);
    struct sfc_error err;
    if (sfc_lr_changes_init(&s->store.lr_changes, NULL, 0, &schedule, &err) != SFC_OK)
        exit(1);
    plan_faults(s);
    scheduler_start(s);
    for (uint32_t k = 0; k < s->k; k++) {
        s->shards[k].up = true;
        s->shards[k].top = UINT64_MAX;
        s->shards[k].boot_id = mix(seed, k) | 1;
        sim_after(s, sim_below(s, 100), E_SHARD_BEAT)->a = k;
        sim_after(s, sim_below(s, 200), E_SNAPSHOT)->a = k;
        if (s->mirrors)
            sim_after(s, sim_below(s, 200), E_MIRROR)->a = k;
    }
    for (uint32_t w = 0; w < s->workers; w++)
        worker_start(s, w);
    while (!s->failed && !finished(s)) {
        struct event *e = take_first(s);
        s->now = e->time;
        dispatch(s, e);
        free(e);
        s->counts.events++;
        oracle_check(s);
        if (s->now > TIME_LIMIT)
            sim_fail(s, "the run hangs: %s, step %llu of %u is committed",
                     sfc_run_state_name(s->scheduler.run.state), (ull)s->store.last, s->steps);
    }
    if (!s->failed)
        oracle_check_end(s);
    int rc = s->failed ? 1 : 0;
    if (s->failed)
        snprintf(failure, size, "%s", s->failure);
    if (stats)
        add_counts(stats, &s->counts);
    release(s);
    free(s);
    return rc;
}

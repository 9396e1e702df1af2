/* A model worker: one reader and one lane, each a small machine driven by replies and timers. */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

enum { T_BEAT = WORKER_START + 1, T_READ, T_COMPUTE, T_ASK_DATA, T_ASK_GRANT };
/* Lane: PULL, LOGITS, GRADIENT, DENSE each to every shard, then DONE. */
enum { P_IDLE, P_PULL, P_COMPUTE, P_LOGITS, P_GRADIENT, P_DENSE, P_DONE };
enum { TAG_DATA = 1u << 20, TAG_READER };
enum { MAX_TRIES = 6 };

static struct node me(uint32_t w)
{
    return (struct node){WORKER, w};
}

static const struct node scheduler = {SCHEDULER, 0};

static void timer(struct sim *s, uint32_t w, uint64_t delay, uint64_t what)
{
    struct event *e = sim_after(s, delay, E_WORKER_TIMER);
    e->a = w;
    e->b = s->worker[w].life;
    e->c = what;
}

static void ask(struct sim *s, uint32_t w, bool data)
{
    const struct body b = {.worker = s->worker[w].id, .data = data};
    sim_call(s, me(w), scheduler, M_TICKET, data ? TAG_DATA : 0, 3000, &b);
}

static void join(struct sim *s, uint32_t w)
{
    const struct body b = {.j = w};
    sim_call(s, me(w), scheduler, M_JOIN, 0, 1000, &b);
}

void worker_start(struct sim *s, uint32_t w)
{
    struct worker *wk = &s->worker[w];
    uint64_t life = wk->life + 1;
    memset(wk, 0, sizeof(*wk));
    wk->life = life;
    wk->alive = true;
    if (s->session)
        session_open(s, w);
    else
        join(s, w);
}

void worker_kill(struct sim *s, uint32_t w)
{
    struct worker *wk = &s->worker[w];
    uint64_t id = wk->id;
    if (!wk->alive)
        return;
    wk->alive = false;
    wk->id = 0;
    wk->life++;
    s->counts.kills++;
    timer(s, w, 50 + sim_below(s, 3000), WORKER_START);
    /* Half of the time the transport notices; else the lease has to end. */
    if (id != 0 && s->scheduler.up && sim_below(s, 2) == 0) {
        const struct sfc_member_event e = {
            .type = SFC_MEMBER_WORKER_LOST, .now_ms = s->now, .id = id};
        int code;
        scheduler_member_event(s, &e, &code, NULL);
    }
}

/* ---- the lane */

static void to_shard(struct sim *s, uint32_t w, uint32_t k)
{
    static const enum method methods[] = {
        [P_PULL] = M_PULL, [P_LOGITS] = M_LOGITS, [P_GRADIENT] = M_GRADIENT, [P_DENSE] = M_DENSE};
    const struct worker *wk = &s->worker[w];
    struct body b = {
        .step = wk->step, .j = wk->j, .attempt = wk->attempt, .map_version = wk->map.version};
    if (wk->phase == P_PULL)
        b.step = wk->step - 1;
    if (wk->phase == P_LOGITS)
        b.value = wk->features;
    if (wk->phase == P_GRADIENT)
        b.value = wk->lse;
    if (wk->phase == P_DENSE)
        for (uint32_t d = 0; d < s->d; d++)
            b.dense[d] = wk->dense[d];
    b.digest = mix(b.value, wk->phase);
    for (uint32_t d = 0; d < s->d; d++)
        b.digest = mix(b.digest, b.dense[d]);
    sim_call(s, me(w), (struct node){SHARD, k}, methods[wk->phase], wk->round << 8 | k, 1500, &b);
}

static void next_phase(struct sim *s, uint32_t w);

/* Asks every shard that the phase concerns; a shard without dense blocks may be a commit behind
 * when its features come. */
static void to_all(struct sim *s, uint32_t w, unsigned phase)
{
    struct worker *wk = &s->worker[w];
    wk->phase = phase;
    wk->round++;
    wk->waiting = 0;
    wk->tries = 0;
    wk->sum = 0;
    for (uint32_t k = 0; k < s->k; k++) {
        if (!wk->map.member[k] || (phase == P_PULL && !map_has_dense(s, &wk->map, k)) ||
            (phase == P_DENSE && !map_gets_dense(s, &wk->map, k)))
            continue;
        wk->waiting++;
        to_shard(s, w, k);
    }
    if (wk->waiting == 0)
        next_phase(s, w);
}

static void give_up(struct sim *s, uint32_t w, int code, const char *text)
{
    struct worker *wk = &s->worker[w];
    struct body b = {
        .worker = wk->id, .step = wk->step, .j = wk->j, .attempt = wk->attempt, .code = code};
    strncpy(b.text, text, sizeof(b.text) - 1);
    wk->phase = P_IDLE;
    wk->waiting = 0;
    wk->attempt = (struct sfc_attempt){0};
    if (code == SFC_EINVAL || code == SFC_EDEVICE)
        s->counted[wk->step][wk->j]++;
    sim_call(s, me(w), scheduler, M_GIVE_UP, 0, 1000, &b);
    timer(s, w, 20, T_ASK_GRANT);
}

static void send_done(struct sim *s, uint32_t w)
{
    struct worker *wk = &s->worker[w];
    struct body b = {.worker = wk->id, .step = wk->step, .j = wk->j, .attempt = wk->attempt};
    memcpy(b.heads[0].bytes, &wk->features, 8);
    memcpy(b.heads[0].bytes + 8, &wk->lse, 8);
    for (uint32_t d = 0; d < s->d; d++)
        b.digests[0][d] = mix(wk->dense[d], 5);
    b.loss_sum = (double)(wk->lse % 1000) / 100.0;
    wk->phase = P_DONE;
    sim_call(s, me(w), scheduler, M_DONE, 0, 1000, &b);
}

static void promise(struct sim *s, uint32_t w)
{
    const struct worker *wk = &s->worker[w];
    struct promise p = {.step = wk->step,
                        .j = wk->j,
                        .attempt = wk->attempt,
                        .salt = wk->salt,
                        .features = wk->features,
                        .lse = wk->lse};
    memcpy(p.dense, wk->dense, sizeof(p.dense));
    oracle_promise(s, &p);
}

static void next_phase(struct sim *s, uint32_t w)
{
    struct worker *wk = &s->worker[w];
    switch (wk->phase) {
    case P_PULL:
        wk->phase = P_COMPUTE;
        timer(s, w, (5 + sim_below(s, 30)) * s->slowness[w], T_COMPUTE);
        break;
    case P_LOGITS:
        wk->lse = model_lse(wk->sum);
        to_all(s, w, P_GRADIENT);
        break;
    case P_GRADIENT:
        for (uint32_t d = 0; d < s->d; d++)
            wk->dense[d] = model_slice(wk->sum, wk->features, d);
        promise(s, w);
        to_all(s, w, P_DENSE);
        break;
    default:
        send_done(s, w);
        break;
    }
}

static void computed(struct sim *s, uint32_t w)
{
    struct worker *wk = &s->worker[w];
    if (wk->phase != P_COMPUTE)
        return;
    if (wk->step == s->poison_step && wk->j == s->poison_j && !wk->dropped) {
        give_up(s, w, SFC_EINVAL, "poison");
        return;
    }
    if (sim_chance(s, s->give_up_ppm)) {
        give_up(s, w, SFC_EDEVICE, "chance");
        return;
    }
    wk->features = model_features(s, wk->step, wk->j, wk->salt, wk->dense);
    to_all(s, w, P_LOGITS);
}

static void shard_answer(struct sim *s, uint32_t w, const struct rpc *rpc, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    uint32_t k = (uint32_t)(rpc->tag & 255);
    if (wk->round != rpc->tag >> 8 || wk->waiting == 0)
        return; /* of a phase that is over */
    if (sfc_run_transient(b->code) && ++wk->tries < MAX_TRIES) {
        to_shard(s, w, k);
        return;
    }
    if (b->code != SFC_OK) {
        sim_log(s, "worker %u: %s", w, b->text);
        give_up(s, w, b->code, b->text);
        return;
    }
    wk->sum += b->value;
    if (wk->phase == P_PULL)
        for (uint32_t d = 0; d < s->d; d++)
            if (wk->map.dense_owner[d] == k)
                wk->dense[d] = b->dense[d];
    if (--wk->waiting == 0)
        next_phase(s, w);
}

/* ---- tickets, labels, membership */

static void announce(struct sim *s, uint32_t w)
{
    const struct worker *wk = &s->worker[w];
    struct body b = {.worker = wk->id, .step = wk->data_step, .j = wk->data_j, .count = ROWS};
    for (uint32_t r = 0; r < ROWS; r++)
        b.labels[r] = model_label(s, wk->samples[r]);
    sim_call(s, me(w), scheduler, M_ANNOUNCE, 0, 1000, &b);
}

static void ticket(struct sim *s, uint32_t w, bool data, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (b->code != SFC_OK || !b->granted) {
        timer(s, w, 10, data ? T_ASK_DATA : T_ASK_GRANT);
        return;
    }
    if (data) {
        wk->data_step = b->step;
        wk->data_j = b->j;
        memcpy(wk->samples, b->samples, sizeof(wk->samples));
        timer(s, w, (1 + sim_below(s, 20)) * s->slowness[w], T_READ);
        return;
    }
    wk->step = b->step;
    wk->j = b->j;
    wk->attempt = b->attempt;
    wk->dropped = b->dropped;
    wk->map = b->map; /* GetMap, where it is a new one */
    wk->salt = s->mixed ? model_salt(mix(w, wk->life), wk->attempt) : 0;
    to_all(s, w, P_PULL);
}

static void rejoin(struct sim *s, uint32_t w)
{
    s->worker[w].alive = false;
    s->worker[w].life++;
    timer(s, w, 10 + sim_below(s, 100), WORKER_START);
}

static void joined(struct sim *s, uint32_t w, const struct body *b)
{
    if (b->code != SFC_OK) {
        timer(s, w, 100, WORKER_START);
        return;
    }
    s->worker[w].id = b->worker;
    timer(s, w, 300, T_BEAT);
    ask(s, w, true);
    ask(s, w, false);
}

void worker_reply(struct sim *s, uint32_t w, const struct rpc *rpc, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (s->session) {
        session_reply(s, w, rpc, b);
        return;
    }
    if (!wk->alive)
        return;
    if (b->code == SFC_ENOTFOUND && rpc->to.kind == SCHEDULER && rpc->method != M_JOIN) {
        rejoin(s, w);
        return;
    }
    switch (rpc->method) {
    case M_JOIN:
        joined(s, w, b);
        break;
    case M_BEAT:
    case M_GIVE_UP:
        break;
    case M_TICKET:
        ticket(s, w, rpc->tag == TAG_DATA, b);
        break;
    case M_ANNOUNCE:
        if (b->code == SFC_ECONFLICT)
            sim_fail(s, "labels in conflict: %s", b->text);
        else if (sfc_run_transient(b->code))
            announce(s, w);
        else
            ask(s, w, true);
        break;
    case M_DONE:
        if (wk->phase == P_DONE && sfc_run_transient(b->code)) {
            send_done(s, w);
        } else if (wk->phase == P_DONE) {
            wk->phase = P_IDLE;
            ask(s, w, false);
        }
        break;
    default:
        shard_answer(s, w, rpc, b);
        break;
    }
}

void worker_timer(struct sim *s, uint32_t w, uint64_t life, uint64_t what)
{
    struct worker *wk = &s->worker[w];
    const struct body b = {.worker = wk->id};
    if (wk->life != life)
        return;
    if (s->session) {
        session_timer(s, w, what);
        return;
    }
    switch (what) {
    case WORKER_START:
        if (!wk->alive)
            worker_start(s, w);
        else if (wk->id == 0)
            join(s, w);
        break;
    case T_BEAT:
        sim_call(s, me(w), scheduler, M_BEAT, 0, 500, &b);
        timer(s, w, 300, T_BEAT);
        break;
    case T_READ:
        announce(s, w);
        break;
    case T_COMPUTE:
        computed(s, w);
        break;
    case T_ASK_DATA:
        ask(s, w, true);
        break;
    case T_ASK_GRANT:
        if (wk->phase == P_IDLE)
            ask(s, w, false);
        break;
    default:
        break;
    }
}

/* A model of a foreign framework: one session over the class layer, without dense blocks. It opens
 * a session, announces a step, exchanges features for gradients micro-batch by micro-batch, says
 * Done, and goes on with the next step; whatever voids its session makes it open another. Its
 * batches and features are its own business: every session has others. */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

enum { T_OPEN = WORKER_START + 1, T_COMPUTED, T_END };
enum { P_CLOSED, P_OPENING, P_ANNOUNCE, P_COMPUTE, P_LOGITS, P_GRADIENT, P_DONE, P_END };
enum { MAX_TRIES = 6 };

static const struct node scheduler = {SCHEDULER, 0};

static struct node me(uint32_t w)
{
    return (struct node){WORKER, w};
}

/* A timer or an answer of an earlier phase says nothing. */
static void timer(struct sim *s, uint32_t w, uint64_t delay, uint64_t what)
{
    struct event *e = sim_after(s, delay, E_WORKER_TIMER);
    e->a = w;
    e->b = s->worker[w].life;
    e->c = what | s->worker[w].round << 8;
}

static void enter(struct sim *s, uint32_t w, unsigned phase)
{
    struct worker *wk = &s->worker[w];
    wk->phase = phase;
    wk->round++;
    wk->waiting = 0;
    wk->tries = 0;
    wk->sum = 0;
}

static void call(struct sim *s, uint32_t w, struct node to, enum method method, uint32_t which,
                 uint64_t timeout, struct body *b)
{
    const struct worker *wk = &s->worker[w];
    b->session = wk->session;
    b->attempt = wk->attempt;
    b->step = wk->step;
    b->map_version = wk->map.version;
    sim_call(s, me(w), to, method, wk->round << 8 | which, timeout, b);
}

static void reopen(struct sim *s, uint32_t w, const char *why)
{
    sim_log(s, "session: %s", why);
    enter(s, w, P_CLOSED);
    timer(s, w, 20 + sim_below(s, 300), T_OPEN);
}

void session_open(struct sim *s, uint32_t w)
{
    struct body b = {0};
    s->worker[w].session = 0;
    enter(s, w, P_OPENING);
    call(s, w, scheduler, M_OPEN_SESSION, 0, 3000, &b);
}

/* ---- one step */

static void announce(struct sim *s, uint32_t w, uint32_t j)
{
    const struct worker *wk = &s->worker[w];
    struct body b = {.j = j, .count = ROWS};
    for (uint32_t r = 0; r < ROWS; r++)
        b.labels[r] = model_session_label(s, wk->salt, wk->step, j, r);
    call(s, w, scheduler, M_ANNOUNCE, j, 1000, &b);
}

static void begin_step(struct sim *s, uint32_t w)
{
    if (s->worker[w].step > s->steps) { /* it asks for the status until that is so */
        enter(s, w, P_END);
        timer(s, w, 300, T_END);
        return;
    }
    enter(s, w, P_ANNOUNCE);
    s->worker[w].waiting = s->j;
    for (uint32_t j = 0; j < s->j; j++)
        announce(s, w, j);
}

static void compute(struct sim *s, uint32_t w, uint32_t j)
{
    enter(s, w, P_COMPUTE);
    s->worker[w].j = j;
    timer(s, w, 5 + sim_below(s, 200), T_COMPUTED);
}

static void to_shard(struct sim *s, uint32_t w, uint32_t k)
{
    const struct worker *wk = &s->worker[w];
    bool logits = wk->phase == P_LOGITS;
    struct body b = {.j = wk->j, .value = logits ? wk->features : wk->lse};
    b.digest = mix(b.value, wk->phase);
    call(s, w, (struct node){SHARD, k}, logits ? M_LOGITS : M_GRADIENT, k, 1500, &b);
}

static void to_all(struct sim *s, uint32_t w, unsigned phase)
{
    enter(s, w, phase);
    for (uint32_t k = 0; k < s->k; k++)
        s->worker[w].waiting += s->worker[w].map.member[k];
    for (uint32_t k = 0; k < s->k; k++)
        if (s->worker[w].map.member[k])
            to_shard(s, w, k);
}

static void send_done(struct sim *s, uint32_t w)
{
    const struct worker *wk = &s->worker[w];
    struct body b = {.j = wk->j, .loss_sum = (double)(wk->lse % 1000) / 100.0};
    memcpy(b.heads[0].bytes, &wk->features, 8);
    memcpy(b.heads[0].bytes + 8, &wk->lse, 8);
    call(s, w, scheduler, M_DONE, 0, 1000, &b);
}

static void promise(struct sim *s, uint32_t w)
{
    const struct worker *wk = &s->worker[w];
    const struct promise p = {.step = wk->step,
                              .j = wk->j,
                              .attempt = wk->attempt,
                              .salt = wk->salt,
                              .features = wk->features,
                              .lse = wk->lse};
    oracle_promise(s, &p);
}

/* ---- answers */

static void opened(struct sim *s, uint32_t w, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (b->code != SFC_OK) {
        reopen(s, w, b->text);
        return;
    }
    s->counts.sessions++;
    wk->session = b->session;
    wk->attempt = b->attempt;
    wk->step = b->step;
    wk->map = b->map;
    wk->salt = model_salt(mix(w, wk->life), b->attempt);
    begin_step(s, w);
}

static void announced(struct sim *s, uint32_t w, uint32_t j, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (b->code == SFC_ECONFLICT)
        sim_fail(s, "labels in conflict: %s", b->text);
    else if (sfc_run_transient(b->code))
        announce(s, w, j);
    else if (b->code != SFC_OK)
        reopen(s, w, b->text);
    else if (--wk->waiting == 0)
        compute(s, w, 0);
}

static void shard_answered(struct sim *s, uint32_t w, uint32_t k, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (sfc_run_transient(b->code) && ++wk->tries < MAX_TRIES) {
        to_shard(s, w, k);
        return;
    }
    const struct scheduler *sc = &s->scheduler;
    if (b->code == SFC_ESTALE && sc->up && sc->has_run) {
        if (sc->map.version > wk->map.version) { /* GetMap: the session goes on with the new map */
            wk->map = sc->map;
            to_all(s, w, P_LOGITS);
            return;
        }
        if (strncmp(b->text, "map version", 11) == 0)
            sim_fail(s, "session: refused with the map of now: %s", b->text);
    }
    if (b->code != SFC_OK) {
        reopen(s, w, b->text);
        return;
    }
    wk->sum += b->value;
    if (--wk->waiting > 0)
        return;
    if (wk->phase == P_LOGITS) {
        wk->lse = model_lse(wk->sum);
        to_all(s, w, P_GRADIENT);
        return;
    }
    promise(s, w);
    enter(s, w, P_DONE);
    send_done(s, w);
}

static void done(struct sim *s, uint32_t w, const struct body *b)
{
    struct worker *wk = &s->worker[w];
    if (sfc_run_transient(b->code)) {
        send_done(s, w);
    } else if (b->code != SFC_OK || !b->accepted) {
        reopen(s, w, b->code != SFC_OK ? b->text : "Done is not accepted");
    } else if (wk->j + 1 < s->j) {
        compute(s, w, wk->j + 1);
    } else {
        wk->step++;
        begin_step(s, w);
    }
}

void session_reply(struct sim *s, uint32_t w, const struct rpc *rpc, const struct body *b)
{
    uint32_t which = (uint32_t)(rpc->tag & 255);
    if (!s->worker[w].alive || s->worker[w].round != rpc->tag >> 8)
        return;
    switch (rpc->method) {
    case M_OPEN_SESSION:
        opened(s, w, b);
        break;
    case M_ANNOUNCE:
        announced(s, w, which, b);
        break;
    case M_DONE:
        done(s, w, b);
        break;
    default:
        shard_answered(s, w, which, b);
        break;
    }
}

/* The last step was said to be done: it counts when it is committed, until the run goes back. */
static void look_at_end(struct sim *s, uint32_t w)
{
    const struct scheduler *sc = &s->scheduler;
    if (sc->up && sc->has_run && sc->run.session != s->worker[w].session && !sc->run.finished)
        reopen(s, w, "the last step was voided");
    else
        timer(s, w, 300, T_END);
}

void session_timer(struct sim *s, uint32_t w, uint64_t what)
{
    struct worker *wk = &s->worker[w];
    if ((what & 255) == WORKER_START) {
        if (!wk->alive)
            worker_start(s, w);
        return;
    }
    if (wk->round != what >> 8)
        return;
    switch (what & 255) {
    case T_OPEN:
        session_open(s, w);
        break;
    case T_COMPUTED:
        wk->features = model_features(s, wk->step, wk->j, wk->salt, wk->dense);
        to_all(s, w, P_LOGITS);
        break;
    default:
        look_at_end(s, w);
        break;
    }
}

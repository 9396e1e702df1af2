/* Shards join and leave and blocks move: somebody gives orders, the scheduler's daemon makes maps
 * of them (server/scheduler/orders.c), shards copy blocks from each other and take maps. */
#include <string.h>

#include "tests/sim/sim.h"

typedef unsigned long long ull;

/* ---- maps */

bool map_owns(const struct map *map, uint32_t k, uint32_t block)
{
    if (!map->member[k])
        return false;
    return block < BLOCKS ? map->class_owner[block] == k : map->dense_owner[block - BLOCKS] == k;
}

bool map_has_dense(const struct sim *s, const struct map *map, uint32_t k)
{
    for (uint32_t d = 0; d < s->d; d++)
        if (map_owns(map, k, BLOCKS + d))
            return true;
    return false;
}

bool map_gets_dense(const struct sim *s, const struct map *map, uint32_t k)
{
    for (uint32_t d = 0; d < s->d; d++)
        if (mirror_pushed(s, map, k, d))
            return true;
    return false;
}

static uint32_t owned(const struct sim *s, const struct map *map, uint32_t k)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < BLOCKS + s->d; b++)
        n += map_owns(map, k, b);
    return n;
}

static uint32_t members(const struct sim *s, const struct map *map)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < s->k; k++)
        n += map->member[k];
    return n;
}

/* ---- orders */

/* Or the order would be void at once; now and then that is tried. */
static bool well(struct sim *s, uint32_t k)
{
    const struct sfc_run_fsm *run = &s->scheduler.run;
    return (!run->shards[k].gone && !sfc_run_recovers(run, k)) || sim_below(s, 40) == 0;
}

static bool choose_move(struct sim *s, struct sfc_run_event *e)
{
    struct scheduler *sc = &s->scheduler;
    bool all = sim_below(s, 3) == 0, any = false;
    e->order = SFC_ORDER_MOVE;
    e->from = sim_below(s, s->k);
    e->shard = sim_below(s, s->k);
    if (e->from == e->shard || !sc->map.member[e->from] || !sc->map.member[e->shard] ||
        !well(s, e->from) || !well(s, e->shard))
        return false;
    for (uint32_t b = 0; b < BLOCKS + s->d; b++) {
        sc->order.blocks[b] = map_owns(&sc->map, e->from, b) && (all || sim_below(s, 2) == 0);
        any = any || sc->order.blocks[b];
    }
    return any;
}

static bool registered(const struct sim *s, uint32_t k)
{
    const struct sfc_shard_member *m =
        sfc_membership_shard(&s->scheduler.members, s->store.shard_ids[k]);
    return m && m->ready;
}

static bool choose(struct sim *s, struct sfc_run_event *e)
{
    const struct scheduler *sc = &s->scheduler;
    uint32_t k = sim_below(s, s->k), what = sim_below(s, s->grows ? 8 : 5);
    e->shard = k;
    e->shard_id = k + 1;
    if (what == 0) {
        e->order = SFC_ORDER_JOIN;
        return !sc->map.member[k] && sc->run.shards[k].place == SFC_PLACE_EMPTY && registered(s, k);
    }
    if (what == 1) {
        e->order = SFC_ORDER_LEAVE;
        return sc->map.member[k] && owned(s, &sc->map, k) == 0 && members(s, &sc->map) > 1;
    }
    return what >= 5 ? grow_choose(s, e) : choose_move(s, e);
}

void moves_order(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    struct sfc_run_event e = {.type = SFC_EV_ORDER};
    if (s->now < s->chaos_end)
        sim_after(s, 10 + sim_below(s, 100), E_ORDER);
    /* A map of now could take from a lost shard those who can restore it: nobody knows yet. */
    if (!sc->up || !sc->has_run || mirror_vanished(s))
        return;
    if (!sfc_run_may_order(&sc->run)) {
        e.type = SFC_EV_ORDER_CANCEL;
        if (sim_below(s, 150) == 0)
            scheduler_run_event(s, &e);
        return;
    }
    bool chosen = false;
    for (int i = 0; i < 6 && !chosen; i++)
        chosen = choose(s, &e);
    if (!chosen)
        return;
    e.number = s->store.incarnation << 32 | ++sc->order.count;
    sc->order.number = e.number;
    sc->order.kind = e.order;
    sc->order.shard = e.shard;
    sc->order.from = e.from;
    sim_log(s, "order %llx: %s shard %u, from %u", (ull)e.number,
            e.order == SFC_ORDER_JOIN   ? "join"
            : e.order == SFC_ORDER_MOVE ? "move to"
            : e.order == SFC_ORDER_GROW ? "grow; one of them is"
                                        : "leave",
            e.shard, e.from);
    scheduler_run_event(s, &e);
}

/* Somebody who has to do with the order likes to die in each phase of it. */
void moves_disturb(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    enum sfc_order_phase phase = sc->run.moves.phase;
    if (!s->elastic || phase == sc->order.seen_phase)
        return;
    sc->order.seen_phase = phase;
    if (s->now >= s->chaos_end || sim_below(s, 12) != 0)
        return;
    uint64_t soon = sim_below(s, phase >= SFC_ORDER_TAKING ? 40 : 300);
    uint32_t who = sim_below(s, 4);
    if (who == 0)
        sim_after(s, soon, E_KILL_SCHEDULER);
    else
        sim_after(s, soon, E_KILL_SHARD)->a = who == 1   ? sc->order.shard
                                              : who == 2 ? sc->order.from
                                                         : sim_below(s, s->k);
}

/* ---- the scheduler's daemon */

/* The present map, changed by the order at work after a step. */
static struct map changed(struct sim *s, uint64_t version, uint64_t step)
{
    const struct scheduler *sc = &s->scheduler;
    struct map m = sc->map;
    m.version = version;
    if (sc->order.kind == SFC_ORDER_GROW)
        grow_change(s, step, &m);
    if (sc->order.kind == SFC_ORDER_JOIN)
        m.member[sc->order.shard] = true;
    bool lost = sc->order.kind == SFC_ORDER_LOSS;
    uint32_t to = lost ? sc->order.from : sc->order.shard;
    if (sc->order.kind == SFC_ORDER_LEAVE || lost)
        m.member[sc->order.shard] = false;
    for (uint32_t b = 0; b < BLOCKS + s->d && (sc->order.kind == SFC_ORDER_MOVE || lost); b++)
        if (sc->order.blocks[b] && b < BLOCKS)
            m.class_owner[b] = to;
        else if (sc->order.blocks[b])
            m.dense_owner[b - BLOCKS] = to;
    mirror_choose(s, &m);
    return m;
}

void moves_write_map(struct sim *s, const struct sfc_run_action *a)
{
    struct store *st = &s->store;
    const struct map next = changed(s, a->version, a->step);
    oracle_check_flip(s, a->step, &next);
    st->next_map = next;
    st->next_step = a->step;
    st->next_order = a->number;
    st->writing_map = true;
    store_after(s, E_MAP_STORED);
}

static void put_map(struct sim *s)
{
    struct store *st = &s->store;
    st->map = st->next_map;
    st->map_step = st->next_step;
    st->map_order = st->next_order;
    st->writing_map = false;
    sim_log(s, "map %llu after step %llu is durable", (ull)st->map.version, (ull)st->map_step);
}

void moves_crash(struct sim *s)
{
    if (s->store.writing_map && sim_below(s, 2) == 0) {
        s->counts.unsure_records++;
        put_map(s);
    }
    s->store.writing_map = false;
}

void moves_map_stored(struct sim *s, const struct event *e)
{
    struct sfc_run_event n = {.type = SFC_EV_MAP_DURABLE, .number = s->store.next_order};
    if (e->b != s->scheduler.life)
        return; /* the process died before it knew */
    if (s->now < s->chaos_end && sim_chance(s, s->store_error_ppm)) {
        s->counts.store_errors++;
        n.type = SFC_EV_MAP_FAILED;
        n.code = SFC_EIO;
        n.text = "the disk is full";
        if (sim_below(s, 3) == 0)
            sim_after(s, sim_below(s, 600), E_KILL_SCHEDULER);
    } else {
        put_map(s);
    }
    scheduler_run_event(s, &n);
}

void moves_take_map(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    sc->map = s->store.next_map;
    s->counts.joins += sc->order.kind == SFC_ORDER_JOIN;
    s->counts.moves += sc->order.kind == SFC_ORDER_MOVE;
    s->counts.leaves += sc->order.kind == SFC_ORDER_LEAVE;
    s->counts.losses += sc->order.kind == SFC_ORDER_LOSS;
    s->counts.growths += sc->order.kind == SFC_ORDER_GROW;
    if (sc->order.kind != SFC_ORDER_MOVE && sc->order.kind != SFC_ORDER_GROW)
        sfc_log_floor_set_member(&sc->floor, sc->order.shard, sc->order.kind == SFC_ORDER_JOIN);
}

void moves_done(struct sim *s, const struct sfc_run_action *a)
{
    s->counts.void_orders += a->code != SFC_OK;
    sim_log(s, "order %llx: %s", (ull)a->number, a->code == SFC_OK ? "done" : a->text);
}

void moves_fill(struct sim *s, const struct sfc_run_action *a, struct body *b)
{
    const struct scheduler *sc = &s->scheduler;
    b->move = a->number;
    if (a->duty == SFC_DUTY_JOIN)
        b->map.member[a->shard] = true;
    if (a->duty == SFC_DUTY_ADOPT)
        b->map = changed(s, sc->map.version + 1, 0);
    if (a->duty == SFC_DUTY_FETCH && sc->order.kind == SFC_ORDER_GROW) {
        b->map = changed(s, sc->map.version + 1, sfc_run_committed(&sc->run));
        b->grows = true;
    } else if (a->duty == SFC_DUTY_FETCH) {
        b->from = sc->order.from;
        memcpy(b->blocks, sc->order.blocks, sizeof(b->blocks));
    }
}

/* ---- a shard copies blocks */

static void answer(struct sim *s, uint64_t token, int code)
{
    const struct body b = {.code = code};
    sim_answer(s, token, &b);
}

/* Can the source be asked about all of the blocks? */
static const struct shard *source_of(const struct sim *s, const struct staged *g)
{
    const struct shard *from = &s->shards[g->from];
    if (!from->up || !from->has_run || s->now < from->cut_until)
        return NULL;
    for (uint32_t b = 0; b < BLOCKS + s->d; b++)
        if (g->blocks[b] && !map_owns(&from->map, g->from, b))
            return NULL;
    return from;
}

static uint64_t state_of(const struct shard *sh, uint32_t block)
{
    return block < BLOCKS ? sh->class_state[block] : sh->dense_state[block - BLOCKS];
}

static void begin_copy(struct sim *s, uint32_t k, uint64_t delay)
{
    struct event *e = sim_after(s, delay, E_FETCHED);
    e->a = k;
    e->b = s->shards[k].opened;
    e->c = s->shards[k].staged.move;
}

static void fetch(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    struct staged *g = &sh->staged;
    if (b->move < g->move) {
        shard_refuse(s, token, SFC_ESTALE, "a newer move is here");
    } else if (b->move == g->move && g->ready) {
        answer(s, token, SFC_OK);
    } else if (b->move == g->move && !g->begun) {
        shard_refuse(s, token, SFC_ENOTFOUND, "that move was given up");
    } else if (b->move == g->move) {
        shard_unavailable(s, token, "it copies");
    } else {
        disk_settle_grown(s, k, &sh->map);
        disk_keep_owned(s, k, &sh->map, NULL);
        *g = (struct staged){.move = b->move, .from = b->from, .begun = true, .grows = b->grows};
        memcpy(g->blocks, b->blocks, sizeof(g->blocks));
        if (b->grows)
            grow_fetch(s, k, b);
        for (uint32_t i = 0; i < BLOCKS + s->d; i++)
            if (!g->grows && g->blocks[i] && map_owns(&sh->map, k, i))
                sim_fail(s, "shard %u is to fetch block %u, which it owns", k, i);
        begin_copy(s, k, 20 + sim_below(s, 200));
        shard_unavailable(s, token, "it copies");
    }
}

void moves_fetched(struct sim *s, uint32_t k, const struct event *e)
{
    struct shard *sh = &s->shards[k];
    struct staged *g = &sh->staged;
    if (!sh->has_run || e->b != sh->opened || g->move != e->c)
        return;
    if (g->grows) {
        g->stamp = sfc_step_applied(&sh->fsm);
        g->ready = true;
        return;
    }
    const struct shard *from = source_of(s, g);
    if (!from) {
        begin_copy(s, k, 50);
        return;
    }
    g->stamp = sfc_step_applied(&from->fsm);
    g->ready = true;
    for (uint32_t b = 0; b < BLOCKS; b++)
        if (g->blocks[b])
            disk_put_copy(s, k, b, g->stamp, state_of(from, b));
    sim_log(s, "shard %u has copied the blocks of move %llx as of step %llu", k, (ull)g->move,
            (ull)g->stamp);
}

static void take(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    const struct staged *g = &s->shards[k].staged;
    if (g->move != b->move || !g->ready) {
        shard_refuse(s, token, SFC_ENOTFOUND, "no such move");
        return;
    }
    struct event *e = sim_after(s, 1 + sim_below(s, 60), E_TAKEN);
    e->a = k;
    e->b = s->shards[k].opened;
    e->c = token;
}

static void took(struct sim *s, uint32_t k, const struct event *e, uint64_t step)
{
    s->shards[k].staged.taken = true;
    s->shards[k].staged.step = step;
    answer(s, e->c, SFC_OK);
}

/* Dense blocks are copied whole: the log here lacks their gradients. */
void moves_taken(struct sim *s, uint32_t k, const struct event *e)
{
    struct shard *sh = &s->shards[k];
    struct staged *g = &sh->staged;
    if (!sh->up || s->tokens[e->c].life != sh->life)
        return;
    const struct body *b = sim_request(s, e->c);
    if (e->b != sh->opened || g->move != b->move || !g->ready) {
        shard_refuse(s, e->c, SFC_ENOTFOUND, "no such move any more");
        return;
    }
    if (g->grows && sfc_step_applied(&sh->fsm) != b->step) {
        shard_unavailable(s, e->c, "the run is elsewhere");
        return;
    }
    if (g->grows) {
        grow_take(s, k, b->step);
        took(s, k, e, b->step);
        return;
    }
    const struct shard *from = source_of(s, g);
    if (!from || sfc_step_applied(&from->fsm) != b->step || sfc_step_applied(&sh->fsm) != b->step) {
        shard_unavailable(s, e->c, "the source is not there, or elsewhere");
        return;
    }
    for (uint32_t i = 0; i < BLOCKS + s->d; i++) {
        if (!g->blocks[i])
            continue;
        g->state[i] = state_of(from, i);
        if (i >= BLOCKS)
            disk_put_copy(s, k, i, b->step, g->state[i]);
    }
    took(s, k, e, b->step);
}

static void cancel(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    if (sh->staged.move == b->move) {
        sh->staged = (struct staged){.move = b->move}; /* no older one comes after it */
        disk_settle_grown(s, k, &sh->map);
        disk_keep_owned(s, k, &sh->map, NULL);
    }
    answer(s, token, SFC_OK);
}

/* ---- a shard takes a map */

/* The map makes it an own block, or one with more rows. */
static bool gains(const struct sim *s, uint32_t k, const struct map *next, uint32_t block)
{
    const struct map *map = &s->shards[k].map;
    bool fills = block < BLOCKS && grow_rows(s, map, block) != grow_rows(s, next, block);
    return map_owns(next, k, block) && (fills || !map_owns(map, k, block));
}

static bool has_gains(const struct sim *s, uint32_t k, const struct body *b)
{
    const struct shard *sh = &s->shards[k];
    const struct staged *g = &sh->staged;
    bool taken = g->move == b->move && g->taken && g->step == b->step;
    for (uint32_t i = 0; i < BLOCKS + s->d; i++)
        if (gains(s, k, &b->map, i) && !(taken && g->blocks[i]))
            return false;
    return true;
}

static void set_map(struct sim *s, uint32_t k, uint64_t token, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    struct sfc_step_event e = {.type = SFC_SE_MAP,
                               .token = token,
                               .run_id = RUN_ID,
                               .incarnation = b->incarnation,
                               .round = b->round,
                               .step = b->step,
                               .map_version = b->map.version};
    /* Or it can't attach them: its disk leads there all the same. */
    bool unable = s->now < s->chaos_end && sim_below(s, 30) == 0;
    if (b->map.version > sh->map.version && (unable || !has_gains(s, k, b))) {
        s->counts.refused_maps++;
        shard_refuse(s, token, SFC_ESTATE, "its new blocks are not here");
        return;
    }
    for (uint32_t d = 0; d < s->d; d++)
        e.dense_blocks += mirror_pushed(s, &b->map, k, d);
    if (b->map.version > sh->map.version)
        sh->next_map = b->map;
    shard_step(s, k, &e);
}

void moves_apply_map(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    const struct map *next = &sh->next_map;
    for (uint32_t b = 0; b < BLOCKS + s->d; b++) {
        uint64_t *state = b < BLOCKS ? &sh->class_state[b] : &sh->dense_state[b - BLOCKS];
        if (gains(s, k, next, b))
            *state = sh->staged.state[b];
        else if (!map_owns(next, k, b))
            *state = 0;
    }
    if (sh->joins)
        sh->trimmed = s->store.map_step;
    sh->joins = false;
    sh->map = *next;
    sh->staged = (struct staged){.move = sh->staged.move};
    disk_settle_grown(s, k, &sh->map);
    disk_keep_owned(s, k, &sh->map, NULL);
    sim_log(s, "shard %u has map %llu", k, (ull)sh->map.version);
}

/* ---- a shard joins, and leaves */

void moves_joined(struct sim *s, uint32_t k, const struct event *e)
{
    struct shard *sh = &s->shards[k];
    if (!sh->up || s->tokens[e->c].life != sh->life)
        return;
    const struct body b = *sim_request(s, e->c);
    bool here = sh->has_run && sh->order == b.move;
    if (b.move < sh->order) {
        shard_refuse(s, e->c, SFC_ESTALE, "of an older order");
        return;
    }
    if (!here) {
        shard_join_run(s, k, &b);
        sh->order = b.move;
        sim_log(s, "shard %u has opened the run to join it at step %llu", k, (ull)b.value);
    }
    answer(s, e->c, SFC_OK);
}

void moves_request(struct sim *s, uint32_t k, uint64_t token, enum method method)
{
    struct shard *sh = &s->shards[k];
    const struct body b = *sim_request(s, token);
    if (method == M_CLOSE && b.move < sh->order) {
        shard_refuse(s, token, SFC_ESTALE, "of an older order");
    } else if (method == M_CLOSE) {
        sh->order = b.move;
        shard_close_run(s, k, token);
    } else if (method == M_OPEN_JOIN) {
        struct event *e = sim_after(s, 10 + sim_below(s, 300), E_JOINED);
        e->a = k;
        e->c = token;
    } else if (!sh->has_run) {
        shard_unavailable(s, token, "no run is open here");
    } else if (method == M_FETCH) {
        fetch(s, k, token, &b);
    } else if (method == M_TAKE) {
        take(s, k, token, &b);
    } else if (method == M_SET_MAP) {
        set_map(s, k, token, &b);
    } else {
        cancel(s, k, token, &b);
    }
}

/* Mirrors: a shard keeps copies of another one's blocks beside its own, and logs the dense
 * gradients of both. A disk vanishes with its shard; the daemon wants to give up who is missing for
 * long, whether its mirror is complete or not, and whatever it mirrors: whoever is to take the
 * blocks, and the scheduler's machine, must know. */
#include <string.h>

#include "server/core/mirror.h"
#include "tests/sim/sim.h"

typedef unsigned long long ull;

#define GRACE_MS 2000u
#define AGAIN_MS 700u

/* ---- who mirrors whom */

void mirror_choose(const struct sim *s, struct map *map)
{
    struct sfc_mirror_place places[MAX_K];
    struct sfc_mirrors sets[MAX_K] = {{0}};
    for (uint32_t k = 0; k < s->k; k++) {
        bool missing = s->scheduler.has_run && sfc_run_is_dead(&s->scheduler.run, k);
        places[k] = (struct sfc_mirror_place){
            .present = map->member[k], .host = "host", .missing = missing};
        if (map->mirror[k] != 0)
            sets[k] = (struct sfc_mirrors){.count = 1, .at = {map->mirror[k] - 1}};
    }
    sfc_mirrors_choose(places, s->k, s->mirrors, sets);
    for (uint32_t k = 0; k < s->k; k++)
        map->mirror[k] = sets[k].count ? sets[k].at[0] + 1 : 0;
}

bool mirror_keeps(const struct sim *s, const struct map *map, uint32_t k, uint32_t block)
{
    for (uint32_t other = 0; other < s->k; other++)
        if (map->member[other] && map->mirror[other] == k + 1 && map_owns(map, other, block))
            return true;
    return false;
}

bool mirror_pushed(const struct sim *s, const struct map *map, uint32_t k, uint32_t d)
{
    return map_owns(map, k, BLOCKS + d) || mirror_keeps(s, map, k, BLOCKS + d);
}

/* ---- copies */

/* Copies the next block of those that it mirrors, from its owner as it is now. */
void mirror_sweep(struct sim *s, uint32_t k)
{
    struct shard *sh = &s->shards[k];
    sim_after(s, s->snapshot_ms / 2 + sim_below(s, s->snapshot_ms), E_MIRROR)->a = k;
    if (!sh->has_run || sh->recovering || sh->unsettled || sh->joins || s->now < sh->cut_until)
        return;
    for (uint32_t i = 0; i < MAX_BLOCKS; i++) {
        uint32_t b = sh->next_mirror++ % MAX_BLOCKS;
        if (b >= BLOCKS + s->d || !mirror_keeps(s, &sh->map, k, b))
            continue;
        for (uint32_t other = 0; other < s->k; other++) {
            const struct shard *from = &s->shards[other];
            if (other != k && map_owns(&sh->map, other, b) && from->up && from->has_run &&
                s->now >= from->cut_until && from->map.version == sh->map.version)
                disk_copy_block(s, k, b, sfc_step_applied(&from->fsm),
                                b < BLOCKS ? from->class_state[b] : from->dense_state[b - BLOCKS]);
        }
        return;
    }
}

/* ---- a disk vanishes */

bool mirror_vanished(const struct sim *s)
{
    for (uint32_t k = 0; k < s->k; k++)
        if (s->shards[k].vanished && s->store.map.member[k])
            return true;
    return false;
}

static struct map without(const struct sim *s, const struct map *map, uint32_t k)
{
    struct map m = *map;
    m.version++;
    m.member[k] = false;
    for (uint32_t b = 0; b < BLOCKS; b++)
        if (m.class_owner[b] == k)
            m.class_owner[b] = map->mirror[k] - 1;
    for (uint32_t d = 0; d < s->d; d++)
        if (m.dense_owner[d] == k)
            m.dense_owner[d] = map->mirror[k] - 1;
    return m;
}

/* Would the mirror's disk lead to the last durable step with the blocks of both? */
static bool complete(struct sim *s, uint32_t k)
{
    uint32_t m = s->store.map.mirror[k] - 1;
    struct shard *sh = &s->shards[m];
    const struct map present = sh->map;
    uint64_t replayed;
    if (!sh->up || !sh->has_run || sh->recovering || sh->unsettled || sh->lost ||
        present.version != s->store.map.version)
        return false;
    sh->map = without(s, &present, k);
    bool leads =
        disk_recover(s, m, &s->store.records[s->store.last].r, false, &replayed) == DISK_LEADS;
    sh->map = present;
    return leads;
}

/* Otherwise the run could not go on. */
static bool may_vanish(struct sim *s, uint32_t k)
{
    const struct scheduler *sc = &s->scheduler;
    const struct store *st = &s->store;
    return sc->up && sc->has_run && sc->run.started && !sc->run.restoring && !st->writing_map &&
           !st->writing && !s->rewinding && sc->run.moves.phase == SFC_ORDER_IDLE &&
           sc->run.rewind.phase == SFC_REWIND_NONE && st->map.member[k] && st->map.mirror[k] != 0 &&
           s->shards[k].up && s->shards[k].has_run && !mirror_vanished(s) && complete(s, k);
}

void mirror_vanish(struct sim *s, uint32_t k)
{
    if (s->now >= s->chaos_end)
        return;
    if (!may_vanish(s, k)) {
        sim_after(s, 150 + sim_below(s, 150), E_VANISH)->a = sim_below(s, s->k);
        return;
    }
    s->counts.vanished++;
    sim_log(s, "shard %u vanishes with its disk", k);
    shard_kill(s, k);
    memset(&s->shards[k].disk, 0, sizeof(s->shards[k].disk));
    s->shards[k].vanished = true;
    s->shards[k].away_until = s->now + sim_below(s, 20000);
    if (sim_below(s, 3) == 0) /* and the one that has the only copies of its blocks is silent */
        sim_after(s, sim_below(s, 1000), E_CUT)->a = s->store.map.mirror[k] - 1;
}

/* ---- the scheduler's daemon */

/* Of whose blocks it may have the only copies: each shard has one mirror. */
static uint32_t wards_of(const struct sim *s, uint32_t k, struct sfc_run_ward *wards)
{
    const struct map *map = &s->scheduler.map;
    uint32_t n = 0;
    for (uint32_t other = 0; other < s->k; other++)
        for (uint32_t b = 0; b < BLOCKS + s->d && map->mirror[other] == k + 1; b++)
            if (map_owns(map, other, b)) {
                wards[n++] = (struct sfc_run_ward){.place = other};
                break;
            }
    return n;
}

static void give_up(struct sim *s, uint32_t k)
{
    struct sfc_run_ward wards[MAX_K];
    struct scheduler *sc = &s->scheduler;
    uint32_t mirror = sc->map.mirror[k] - 1;
    struct sfc_run_event e = {.type = SFC_EV_ORDER_CANCEL};
    if (sc->run.moves.kind != SFC_ORDER_LOSS && sc->run.moves.phase != SFC_ORDER_IDLE)
        scheduler_run_event(s, &e);
    if (!sfc_run_may_give_up(&sc->run))
        return;
    e = (struct sfc_run_event){.type = SFC_EV_ORDER,
                               .order = SFC_ORDER_LOSS,
                               .shard = k,
                               .adopters = &mirror,
                               .adopter_count = 1,
                               .wards = wards,
                               .ward_count = wards_of(s, k, wards)};
    e.number = s->store.incarnation << 32 | ++sc->order.count;
    sc->order.number = e.number;
    sc->order.kind = e.order;
    sc->order.shard = k;
    sc->order.from = mirror;
    sc->lose_again = s->now + AGAIN_MS;
    for (uint32_t b = 0; b < BLOCKS + s->d; b++)
        sc->order.blocks[b] = map_owns(&sc->map, k, b);
    sim_log(s, "order %llx: shard %u is given up, shard %u takes its blocks", (ull)e.number, k,
            mirror);
    scheduler_run_event(s, &e);
}

void mirror_tick(struct sim *s)
{
    struct scheduler *sc = &s->scheduler;
    if (!s->mirrors || !sc->has_run || !sc->run.started || sc->run.failed ||
        s->now < sc->lose_again)
        return;
    for (uint32_t k = 0; k < s->k; k++) {
        uint32_t mirror = sc->map.mirror[k];
        if (sfc_run_missing(&sc->run, k, s->now) < GRACE_MS || mirror == 0 ||
            sfc_run_is_dead(&sc->run, mirror - 1))
            continue;
        give_up(s, k);
        return;
    }
}

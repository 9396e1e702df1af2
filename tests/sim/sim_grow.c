/* Identities are added: new blocks come from nowhere, and the last one there is gets more rows. The
 * scheduler's daemon (server/scheduler/grow.c) places them and gives out samples of the larger set;
 * shards stage blocks as the seed makes them, take the old rows at the boundary, and have them on
 * their disks before the map is durable (server/shard/grow_blocks.c). */
#include <string.h>

#include "tests/sim/sim.h"

static void list_of(const struct sim *s, const struct map *map, struct sfc_growths *out)
{
    /* from_step 0: a growth before the first step is possible */
    out->start = (struct sfc_growth){.classes = s->classes, .samples = SAMPLES};
    out->count = map->growth_count;
    memcpy(out->items, map->growths, map->growth_count * sizeof(*map->growths));
}

uint64_t grow_classes(const struct sim *s, const struct map *map)
{
    return map->growth_count > 0 ? map->growths[map->growth_count - 1].classes : s->classes;
}

static uint32_t rows_of(uint64_t classes, uint32_t block)
{
    uint64_t before = (uint64_t)block * BLOCK_SIZE, left = classes > before ? classes - before : 0;
    return left < BLOCK_SIZE ? (uint32_t)left : BLOCK_SIZE;
}

uint32_t grow_rows(const struct sim *s, const struct map *map, uint32_t block)
{
    return block < BLOCKS ? rows_of(grow_classes(s, map), block) : 0;
}

uint64_t grow_since(const struct sim *s, const struct map *map, uint32_t block)
{
    uint64_t classes = s->classes, since = 0;
    for (uint32_t i = 0; i < map->growth_count && block < BLOCKS; i++) {
        if (rows_of(classes, block) != rows_of(map->growths[i].classes, block))
            since = map->growths[i].from_step - 1;
        classes = map->growths[i].classes;
    }
    return since;
}

bool grow_grew(const struct sim *s, const struct map *map, uint32_t block)
{
    return block < BLOCKS && grow_rows(s, map, block) != rows_of(s->classes, block);
}

/* ---- the scheduler's daemon */

static uint64_t samples_of(const struct map *map)
{
    return map->growth_count > 0 ? map->growths[map->growth_count - 1].samples : SAMPLES;
}

bool grow_choose(struct sim *s, struct sfc_run_event *e)
{
    struct scheduler *sc = &s->scheduler;
    const struct map *m = &sc->map;
    uint64_t classes = grow_classes(s, m);
    /* growths are told apart by their steps */
    bool just = m->growth_count > 0 &&
                m->growths[m->growth_count - 1].from_step > sfc_run_committed(&sc->run);
    if (classes == CLASSES || m->growth_count == MAX_GROWTHS || just)
        return false;
    e->order = SFC_ORDER_GROW;
    e->classes = classes + 1 + sim_below(s, (uint32_t)(CLASSES - classes));
    e->from = sim_below(s, s->k);
    sc->order.classes = e->classes;
    sc->order.samples = samples_of(m) + (sim_below(s, 3) ? MORE_SAMPLES : 0);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        uint32_t k = sim_below(s, s->k);
        while (!m->member[k])
            k = (k + 1) % s->k;
        sc->order.owners[b] = rows_of(classes, b)      ? m->class_owner[b]
                              : rows_of(e->classes, b) ? k
                                                       : NOBODY;
    }
    return true;
}

void grow_change(struct sim *s, uint64_t step, struct map *map)
{
    const struct scheduler *sc = &s->scheduler;
    struct sfc_growths all;
    struct sfc_error err;
    const struct sfc_growth next = {.from_step = step + 1,
                                    .classes = sc->order.classes,
                                    .samples = sc->order.samples,
                                    .data_step = step + 2 + sc->run.tickets.config.lead_steps};
    list_of(s, map, &all);
    if (sfc_growths_check(&all, &next, &err) != SFC_OK)
        sim_fail(s, "%s", err.text);
    map->growths[map->growth_count++] = next;
    memcpy(map->class_owner, sc->order.owners, sizeof(map->class_owner));
}

uint64_t grow_sample(const struct sim *s, const struct map *map, uint64_t position)
{
    struct sfc_growths all;
    struct sfc_order_part parts[SFC_CORE_GROWTHS + 1];
    list_of(s, map, &all);
    size_t count = sfc_growths_order(&all, s->j * ROWS, parts);
    return sfc_order_sample(parts, count, 5, position);
}

/* ---- a shard */

void grow_fetch(struct sim *s, uint32_t k, const struct body *b)
{
    struct shard *sh = &s->shards[k];
    struct staged *g = &sh->staged;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        g->rows[i] = grow_rows(s, &b->map, i);
        g->blocks[i] = map_owns(&b->map, k, i) && g->rows[i] != grow_rows(s, &sh->map, i);
    }
}

void grow_take(struct sim *s, uint32_t k, uint64_t step)
{
    struct shard *sh = &s->shards[k];
    struct staged *g = &sh->staged;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (!g->blocks[i])
            continue;
        g->state[i] = model_grown(sh->class_state[i], i, grow_rows(s, &sh->map, i), g->rows[i]);
        sh->disk.grown[i] = (struct snapshot){.step = step,
                                              .state = g->state[i],
                                              .rows = g->rows[i],
                                              .round = s->oracle.records[step].r.round};
    }
}

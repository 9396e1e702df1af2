/* Plans of a run with mirrors: shards need memory for blocks that they mirror as well, of the map
 * that a plan leads to. A shard that would have too little gets fewer blocks of its own. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/mirror.h"
#include "server/scheduler/map_mirrors.h"
#include "server/scheduler/scale_parts.h"

#define TRIES 4

/* The map that a plan leads to, as far as mirrors are concerned. */
struct outcome {
    uint32_t *owners;                    /* [blocks] places */
    uint32_t place[SFC_CORE_MAX_SHARDS]; /* of the input's shards; UINT32_MAX: none */
    struct sfc_mirror_place places[SFC_CORE_MAX_SHARDS];
    struct sfc_mirrors sets[SFC_CORE_MAX_SHARDS];
    uint32_t count; /* of places */
};

static void take_places(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                        const struct sfc_move_plan *plan, struct outcome *o)
{
    o->count = (uint32_t)run->map->n_shards;
    for (uint32_t k = 0; k < x->in.shard_count; k++)
        o->place[k] = UINT32_MAX;
    for (uint32_t p = 0; p < o->count; p++) {
        const Shardfc__V1__ShardAddress *shard = run->map->shards[p];
        for (size_t i = 0; i < shard->n_mirrors && i < SFC_CORE_MAX_MIRRORS; i++)
            o->sets[p].at[o->sets[p].count++] = shard->mirrors[i];
        for (uint32_t k = 0; k < x->in.shard_count && shard->address[0]; k++)
            if (x->shards[k].id == shard->shard && !plan->leaves[k])
                o->place[k] = p;
    }
    for (uint32_t k = 0; k < x->in.shard_count; k++)
        if (o->place[k] != UINT32_MAX)
            o->places[o->place[k]] =
                (struct sfc_mirror_place){.present = true, .host = x->shards[k].host};
    for (uint32_t k = 0; k < x->in.shard_count; k++) {
        uint32_t p = 0;
        while (plan->joins[k] && p < SFC_CORE_MAX_SHARDS && o->places[p].present)
            p++;
        if (!plan->joins[k] || p == SFC_CORE_MAX_SHARDS)
            continue;
        o->place[k] = p;
        o->places[p] = (struct sfc_mirror_place){.present = true, .host = x->shards[k].host};
        o->count = p + 1 > o->count ? p + 1 : o->count;
    }
}

static int outcome_of(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                      const struct sfc_move_plan *plan, struct outcome *o, struct sfc_error *err)
{
    size_t blocks = x->in.class_blocks + x->in.dense_blocks;
    *o = (struct outcome){.owners = calloc(blocks + 1, sizeof *o->owners)};
    if (!o->owners)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a plan of %zu blocks", blocks);
    take_places(run, x, plan, o);
    sfc_mirrors_choose(o->places, o->count, run->mirrors, o->sets);
    for (size_t b = 0; b < blocks; b++)
        o->owners[b] = o->place[x->blocks[b].owner];
    for (uint32_t i = 0; i < plan->move_count; i++)
        o->owners[plan->moves[i].block] = o->place[plan->moves[i].to];
    return SFC_OK;
}

/* What the shard at a place has for other shards. lists: [2][dense blocks]. */
static struct sfc_run_mirror duty_of(const struct sfc_scale_input *x, const struct outcome *o,
                                     uint32_t place, uint64_t *lists)
{
    uint64_t *own = lists, *other = lists + x->in.dense_blocks;
    struct sfc_run_mirror m = {
        .dense_blocks = own, .mirrored = other, .gives = o->sets[place].count > 0};
    for (uint32_t b = 0; b < x->in.class_blocks + x->in.dense_blocks; b++) {
        uint32_t owner = o->owners[b];
        bool mirrored =
            owner < o->count && owner != place && sfc_mirrors_have(&o->sets[owner], place);
        m.takes = m.takes || mirrored;
        if (b >= x->in.class_blocks && owner == place)
            own[m.dense_count++] = b - x->in.class_blocks;
        else if (b >= x->in.class_blocks && mirrored)
            other[m.mirrored_count++] = b - x->in.class_blocks;
    }
    return m;
}

static int needs_of(struct sfc_sched_run *run, const struct sfc_scale_input *x,
                    const struct outcome *o, uint64_t *needs, struct sfc_error *err)
{
    uint64_t *lists = calloc(2 * (size_t)x->in.dense_blocks + 1, sizeof *lists);
    int code = lists ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no memory for lists of blocks");
    for (uint32_t k = 0; k < x->in.shard_count && code == SFC_OK; k++) {
        needs[k] = 0;
        if (o->place[k] == UINT32_MAX)
            continue;
        const struct sfc_run_mirror m = duty_of(x, o, o->place[k], lists);
        code = sfc_sched_mirror_memory(run->scheduler, &run->setup, run->map, &m, &needs[k], err);
    }
    free(lists);
    return code;
}

/* Bytes of a shard after a plan: of its own blocks, and what it needs beside them. */
struct load {
    uint64_t own[SFC_CORE_MAX_SHARDS], mirrored[SFC_CORE_MAX_SHARDS];
};

static int loads_of(struct sfc_sched_run *run, const struct sfc_scale_input *x,
                    const struct sfc_move_plan *plan, struct load *out, struct sfc_error *err)
{
    struct outcome o;
    int code = outcome_of(run, x, plan, &o, err);
    memset(out, 0, sizeof *out);
    if (code == SFC_OK)
        code = needs_of(run, x, &o, out->mirrored, err);
    for (uint32_t k = 0; k < x->in.shard_count && code == SFC_OK; k++) {
        out->own[k] = run->scale->memory.fixed_bytes;
        for (uint32_t b = 0; b < x->in.class_blocks + x->in.dense_blocks; b++)
            out->own[k] += o.owners[b] == o.place[k] ? x->blocks[b].bytes : 0;
    }
    free(o.owners);
    return code;
}

/* The first shard that would have too little, and less room than now. UINT32_MAX: none. */
static uint32_t overfull(const struct sfc_scale_input *x, const struct load *now,
                         const struct load *then)
{
    for (uint32_t k = 0; k < x->in.shard_count; k++) {
        uint64_t bytes = then->own[k] + then->mirrored[k];
        if (then->mirrored[k] > 0 && bytes > x->shards[k].limit &&
            bytes > now->own[k] + now->mirrored[k])
            return k;
    }
    return UINT32_MAX;
}

static int too_little(const struct sfc_scale_input *x, const struct load *then, uint32_t k,
                      struct sfc_error *err)
{
    return sfc_fail(err, SFC_ENOMEM,
                    "shard %" PRIu64 " would need %.1f MiB for its blocks and %.1f MiB for those "
                    "that it mirrors, and may use %.1f MiB: start it again with a greater "
                    "shardfc-shard --memory, or take more shards",
                    x->shards[k].id, (double)then->own[k] / (1 << 20),
                    (double)then->mirrored[k] / (1 << 20), (double)x->shards[k].limit / (1 << 20));
}

int sfc_scale_plan(struct sfc_sched_run *run, struct sfc_scale_input *x, struct sfc_move_plan *out,
                   struct sfc_error *err)
{
    const struct sfc_move_plan nothing = {0};
    struct load now, then;
    int code = sfc_move_plan_make(&x->in, out, err);
    if (code != SFC_OK || !run->mirrors || sfc_move_plan_empty(out))
        return code;
    code = loads_of(run, x, &nothing, &now, err);
    uint32_t k = UINT32_MAX;
    for (int tries = 0; tries < TRIES && code == SFC_OK; tries++) {
        code = loads_of(run, x, out, &then, err);
        k = code == SFC_OK ? overfull(x, &now, &then) : UINT32_MAX;
        if (code == SFC_OK && k == UINT32_MAX)
            return SFC_OK;
        for (uint32_t i = 0; i < x->in.shard_count && code == SFC_OK; i++)
            x->shards[i].fixed = run->scale->memory.fixed_bytes + then.mirrored[i];
        sfc_move_plan_free(out);
        if (code == SFC_OK)
            code = sfc_move_plan_make(&x->in, out, err);
    }
    if (code == SFC_OK) { /* the last one was not looked at, and the one before did not fit */
        sfc_move_plan_free(out);
        code = too_little(x, &then, k, err);
    }
    return code;
}

/* What the planner is told: shards with their limits and speed, blocks with their size and load. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/step_cost.h"
#include "server/scheduler/map_mirrors.h"
#include "server/scheduler/scale_parts.h"

#define MEASURABLE_MS  2.0 /* a step that takes less is no measure of a shard's speed */
#define MEASURED_STEPS 20u /* fewer say nothing of a block's load yet */
/* A batch is one pause: of class blocks the rows that changed in the last steps cross the wire in
 * it, of dense blocks everything. */
#define BATCH_BYTES       (32ull << 20)
#define DENSE_BATCH_BYTES (4ull << 20)
#define FREE_RATE         400e6 /* bytes per second that a copy takes without a limit, about */
#define BATCH_STEPS       3     /* that pass before a batch has caught up and the map flips */
#define BATCH_S           0.05

static bool is_member(const struct sfc_sched_run *run, uint64_t shard)
{
    uint32_t place = sfc_sched_run_shard(run, shard);
    return place != UINT32_MAX && run->fsm.shards[place].place == SFC_PLACE_MEMBER;
}

static const char *class_of_run(const struct sfc_sched_run *run)
{
    for (size_t k = 0; k < run->map->n_shards; k++) {
        const struct sfc_shard_info *info =
            sfc_sched_shard(run->scheduler, run->map->shards[k]->shard);
        if (info && info->numerics[0] && is_member(run, info->id))
            return info->numerics;
    }
    return "";
}

static void note_other(struct sfc_scale_input *x, const struct sfc_shard_member *m,
                       const struct sfc_shard_info *info, const char *wanted)
{
    size_t used = strlen(x->others);
    x->other_count++;
    snprintf(x->others + used, sizeof x->others - used,
             "%sshard %" PRIu64 " at %.80s is '%.60s', the run's shards are '%.60s'",
             used ? "; " : "", m->id, m->address, info->numerics, wanted);
}

static double load_of_shard(const struct sfc_scale_input *x, uint32_t k)
{
    double load = 0;
    for (uint32_t b = 0; b < x->in.class_blocks + x->in.dense_blocks; b++)
        if (x->blocks[b].owner == k)
            load += x->blocks[b].load;
    return load;
}

static uint64_t limit_of(const struct sfc_scale *scale, const struct sfc_shard_info *info)
{
    uint64_t sum = info->memory_limit + info->disk_limit;
    uint64_t limit = sum >= info->disk_limit ? sum : UINT64_MAX;
    for (uint32_t i = 0; i < scale->full_count; i++)
        if (scale->full[i].shard == info->id && scale->full[i].limit < limit)
            limit = scale->full[i].limit;
    return limit;
}

static void add_shard(struct sfc_sched_run *run, struct sfc_scale_input *x,
                      const struct sfc_shard_member *m, const char *numerics)
{
    const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, m->id);
    bool member = is_member(run, m->id);
    bool fits = run->config->mixed || !info || strcmp(info->numerics, numerics) == 0;
    if (!member && (!info || !m->ready))
        return;
    if (!member && !fits) {
        note_other(x, m, info, numerics);
        return;
    }
    uint32_t k = x->in.shard_count++;
    sfc_host_of(m->address, x->hosts[k], sizeof x->hosts[k]);
    x->shards[k] = (struct sfc_plan_shard){.id = m->id,
                                           .host = x->hosts[k],
                                           .member = member,
                                           .ready = m->ready && info,
                                           .limit = info ? limit_of(run->scale, info) : 0,
                                           .fixed = run->scale->memory.fixed_bytes};
}

/* How slow each shard is, and what all do alike, from what members say a step takes: of those with
 * a good part of the blocks, which compute for longer than messages take. */
static void set_costs(struct sfc_sched_run *run, struct sfc_scale_input *x)
{
    struct sfc_step_cost c[SFC_CORE_MAX_SHARDS];
    double all = 0;
    uint32_t members = 0;
    for (uint32_t k = 0; k < x->in.shard_count; k++) {
        c[k] = (struct sfc_step_cost){.load = load_of_shard(x, k)};
        all += c[k].load;
        members += x->shards[k].member;
    }
    for (uint32_t k = 0; k < x->in.shard_count; k++) {
        const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, x->shards[k].id);
        if (x->shards[k].member && info && 4 * c[k].load * members >= all &&
            info->step_ms >= MEASURABLE_MS)
            c[k].time = info->step_ms;
    }
    x->in.base_load = sfc_step_cost_fit(c, x->in.shard_count);
    for (uint32_t k = 0; k < x->in.shard_count; k++)
        x->shards[k].cost = c[k].slow;
}

static uint64_t row_state(const struct sfc_head_config *h)
{
    uint64_t parts = h->optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    uint64_t width = h->dtype == SFC_DTYPE_BF16 ? 2 : 4;
    return parts * width * h->dim + (h->momentum_mode == SFC_MOMENTUM_DENSE ? 4 : 0);
}

/* How many sampled rows cost as much as a float of a dense block: a row is three products with
 * every row of the batch, a float is read and added for each micro-batch and updated, and memory is
 * about eight times slower than arithmetic. */
static double rows_per_float(const struct sfc_run_setup *setup)
{
    return 8.0 * (setup->micro_batches + 8) / (6.0 * setup->head.batch * setup->head.dim);
}

static uint32_t input_index(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                            uint32_t place)
{
    uint64_t id = place < run->map->n_shards ? run->map->shards[place]->shard : 0;
    for (uint32_t k = 0; k < x->in.shard_count; k++)
        if (x->shards[k].id == id)
            return k;
    return UINT32_MAX; /* the planner refuses it */
}

static void fill_blocks(const struct sfc_sched_run *run, const char *numerics,
                        struct sfc_scale_input *x)
{
    const struct sfc_run_setup *setup = &run->setup;
    const struct sfc_scale *scale = run->scale;
    uint64_t parts = setup->head.optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    for (uint32_t b = 0; b < x->in.class_blocks; b++) {
        uint64_t rows = sfc_head_block_rows(&setup->head, b);
        x->blocks[b] = (struct sfc_plan_block){
            .bytes = rows * scale->memory.class_bytes,
            .state = rows * row_state(&setup->head),
            .load = sfc_head_work(&setup->head, numerics, b, scale->load.rows[b]),
            .owner = input_index(run, x, run->map->class_owner[b])};
    }
    for (uint32_t b = 0; b < x->in.dense_blocks; b++) {
        uint64_t floats = sfc_run_dense_length(setup, b);
        x->blocks[x->in.class_blocks + b] =
            (struct sfc_plan_block){.bytes = floats * scale->memory.dense_bytes,
                                    .state = floats * parts * 4,
                                    .load = (double)floats * rows_per_float(setup),
                                    .owner = input_index(run, x, run->map->dense_owner[b])};
    }
}

static double step_seconds(const struct sfc_sched_run *run)
{
    return run->rate > 0 ? run->config->global_batch / run->rate : 0;
}

static int fill(struct sfc_sched_run *run, struct sfc_scale_input *x, struct sfc_error *err)
{
    struct sfc_scheduler *s = run->scheduler;
    struct sfc_scale *scale = run->scale;
    const char *numerics = class_of_run(run);
    int code = scale->memory.class_bytes
                   ? SFC_OK
                   : sfc_sched_placement(s, &run->setup, run->map, &scale->memory, err);
    if (code != SFC_OK)
        return code;
    for (uint32_t i = 0; i < s->members.config.max_shards; i++)
        if (s->members.shards[i].id)
            add_shard(run, x, &s->members.shards[i], numerics);
    fill_blocks(run, numerics, x);
    set_costs(run, x);
    uint64_t rate = s->options->move_rate;
    x->in.measured = scale->load.steps >= MEASURED_STEPS;
    x->in.batch_bytes = BATCH_BYTES;
    x->in.dense_bytes = DENSE_BATCH_BYTES;
    x->in.bytes_per_s = rate > 0 && rate < FREE_RATE ? (double)rate : FREE_RATE;
    x->in.batch_s = BATCH_S + BATCH_STEPS * step_seconds(run);
    return SFC_OK;
}

int sfc_scale_input_new(struct sfc_sched_run *run, const struct sfc_goal *goal,
                        struct sfc_scale_input **out, struct sfc_error *err)
{
    struct sfc_scale_input *x = calloc(1, sizeof *x);
    size_t blocks = run->map->n_class_owner + run->map->n_dense_owner;
    if (x)
        x->blocks = calloc(blocks + 1, sizeof *x->blocks);
    if (!x || !x->blocks) {
        sfc_scale_input_free(x);
        return sfc_fail(err, SFC_ENOMEM, "no memory for a plan of %zu blocks", blocks);
    }
    x->in = (struct sfc_plan_input){.goal = *goal,
                                    .shards = x->shards,
                                    .blocks = x->blocks,
                                    .class_blocks = (uint32_t)run->map->n_class_owner,
                                    .dense_blocks = (uint32_t)run->map->n_dense_owner};
    int code = fill(run, x, err);
    if (code == SFC_OK)
        *out = x;
    else
        sfc_scale_input_free(x);
    return code;
}

void sfc_scale_input_free(struct sfc_scale_input *x)
{
    if (x)
        free(x->blocks);
    free(x);
}

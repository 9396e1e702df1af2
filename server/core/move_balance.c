/* What lies where: blocks of leaving shards find a place, then the slowest shard gives some away.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/move_plan_internal.h"

#define WORTH      0.25 /* of a block's time must be gained by moving it */
#define WORTH_SWAP 0.01 /* of the mean time must be gained by an exchange */
#define SAME_COST  0.10 /* so are measured costs */
#define COST_FACTOR                                                                                \
    16.0 /* a cost further from the typical one is taken as a fault of the measurement */
#define SWAP_BLOCKS 4096 /* of one shard that are looked at for an exchange */

uint64_t sfc_plan_room(const struct sfc_plan_shard *shard, uint64_t bytes)
{
    uint64_t used = shard->fixed + bytes;
    return used >= bytes && used < shard->limit ? shard->limit - used : 0;
}

static uint64_t room(const struct sfc_plan_work *w, uint32_t k)
{
    return sfc_plan_room(&w->input->shards[k], w->bytes[k]);
}

static double load_of(const struct sfc_plan_work *w, uint32_t block)
{
    return w->input->blocks[block].load;
}

/* ---- lists */

/* The first place at which a block with this load and index could stand. */
static uint32_t place_of(const struct sfc_plan_work *w, const struct sfc_plan_list *list,
                         double load, uint32_t block)
{
    uint32_t low = 0, high = list->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, there = list->items[middle];
        double other = load_of(w, there);
        if (other > load || (!(other < load) && there < block))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int list_add(struct sfc_plan_work *w, uint32_t k, uint32_t block, struct sfc_error *err)
{
    struct sfc_plan_list *list = &w->list[k];
    if (list->count == list->capacity) {
        uint32_t capacity = 2 * list->capacity + 16;
        uint32_t *items = calloc(capacity, sizeof *items);
        if (!items)
            return sfc_fail(err, SFC_ENOMEM, "plan of moves: lists of blocks");
        if (list->count)
            memcpy(items, list->items, list->count * sizeof *items);
        free(list->items);
        list->items = items;
        list->capacity = capacity;
    }
    uint32_t at = place_of(w, list, load_of(w, block), block);
    memmove(list->items + at + 1, list->items + at, (list->count - at) * sizeof *list->items);
    list->items[at] = block;
    list->count++;
    w->owner[block] = k;
    w->time[k] += load_of(w, block) * w->cost[k];
    w->bytes[k] += w->input->blocks[block].bytes;
    return SFC_OK;
}

static void list_take(struct sfc_plan_work *w, uint32_t block)
{
    uint32_t k = w->owner[block];
    struct sfc_plan_list *list = &w->list[k];
    uint32_t at = place_of(w, list, load_of(w, block), block);
    list->count--;
    memmove(list->items + at, list->items + at + 1, (list->count - at) * sizeof *list->items);
    w->bytes[k] -= w->input->blocks[block].bytes;
    w->time[k] = w->input->base_load * w->cost[k]; /* anew, so that no rounding errors remain */
    for (uint32_t i = 0; i < list->count; i++)
        w->time[k] += load_of(w, list->items[i]) * w->cost[k];
}

static int move_block(struct sfc_plan_work *w, uint32_t block, uint32_t to, struct sfc_error *err)
{
    list_take(w, block);
    return list_add(w, to, block, err);
}

/* ---- begin and end */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median of the costs that are known; 0: none is. */
static double typical_cost(const struct sfc_plan_input *in)
{
    double known[SFC_CORE_MAX_SHARDS];
    uint32_t n = 0;
    for (uint32_t k = 0; k < in->shard_count; k++)
        if (in->shards[k].cost > 0)
            known[n++] = in->shards[k].cost;
    qsort(known, n, sizeof *known, compare);
    return n ? known[(n - 1) / 2] : 0;
}

static void set_costs(struct sfc_plan_work *w)
{
    double typical = typical_cost(w->input);
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        double cost = typical > 0 ? w->input->shards[k].cost / typical : 0;
        bool usual = cost > 1 - SAME_COST && cost < 1 + SAME_COST;
        bool fault = !(cost > 1 / COST_FACTOR && cost < COST_FACTOR);
        w->cost[k] = usual || fault ? 1 : cost;
    }
}

int sfc_plan_work_init(struct sfc_plan_work *w, const struct sfc_plan_input *input, const bool *in,
                       struct sfc_error *err)
{
    *w =
        (struct sfc_plan_work){.input = input, .blocks = input->class_blocks + input->dense_blocks};
    memcpy(w->in, in, input->shard_count * sizeof *in);
    set_costs(w);
    w->owner = calloc(w->blocks ? w->blocks : 1, sizeof *w->owner);
    int code = w->owner ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "plan of moves: owners");
    for (uint32_t k = 0; k < input->shard_count; k++)
        w->time[k] = input->base_load * w->cost[k];
    for (uint32_t b = 0; b < w->blocks && code == SFC_OK; b++)
        code = list_add(w, input->blocks[b].owner, b, err);
    if (code != SFC_OK)
        sfc_plan_work_free(w);
    return code;
}

void sfc_plan_work_free(struct sfc_plan_work *w)
{
    for (uint32_t k = 0; k < SFC_CORE_MAX_SHARDS; k++)
        free(w->list[k].items);
    free(w->owner);
    memset(w, 0, sizeof *w);
}

double sfc_plan_slowest(const struct sfc_plan_work *w, const bool *members)
{
    double most = 0, sum = 0;
    uint32_t n = 0;
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        if (!members[k])
            continue;
        most = fmax(most, w->time[k]);
        sum += w->time[k];
        n++;
    }
    return sum > 0 ? most * n / sum : 1;
}

/* ---- blocks of shards that leave */

static int by_bytes(const struct sfc_plan_work *w, uint32_t a, uint32_t b)
{
    uint64_t x = w->input->blocks[a].bytes, y = w->input->blocks[b].bytes;
    return x > y ? -1 : x < y;
}

/* The shard that stays, has room, and is the least slow with the block; or has the most room. */
static uint32_t place_for(const struct sfc_plan_work *w, uint32_t block, bool by_room)
{
    uint32_t best = UINT32_MAX;
    double best_time = 0;
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        if (!w->in[k] || room(w, k) < w->input->blocks[block].bytes)
            continue;
        double time = w->time[k] + load_of(w, block) * w->cost[k];
        bool better = by_room ? best == UINT32_MAX || room(w, k) > room(w, best)
                              : best == UINT32_MAX || time < best_time;
        if (better) {
            best = k;
            best_time = time;
        }
    }
    return best;
}

static int refuse(const struct sfc_plan_work *w, uint32_t left, struct sfc_error *err)
{
    uint64_t need = 0, free_bytes = 0;
    uint32_t stay = 0;
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        if (w->in[k]) {
            free_bytes += room(w, k);
            stay++;
            continue;
        }
        need += w->bytes[k];
    }
    return sfc_fail(err, SFC_ENOMEM,
                    "%u blocks (%.1f MiB) of shards that leave find no place: the %u shards that "
                    "stay have %.1f MiB free for them%s. Add a shard, or give one more "
                    "(shardfc-shard --memory)",
                    left, (double)need / (1 << 20), stay, (double)free_bytes / (1 << 20),
                    free_bytes >= need ? ", but no single one has enough" : "");
}

/* SFC_ENOTFOUND: one found no place. */
static int evict(struct sfc_plan_work *w, const uint32_t *blocks, uint32_t count, bool by_room,
                 struct sfc_error *err)
{
    int code = SFC_OK;
    for (uint32_t i = 0; i < count && code == SFC_OK; i++) {
        uint32_t to = place_for(w, blocks[i], by_room);
        code = to == UINT32_MAX ? SFC_ENOTFOUND : move_block(w, blocks[i], to, err);
    }
    return code;
}

/* Insertion by bytes keeps the order by load among equal ones. */
static void sort_by_bytes(const struct sfc_plan_work *w, uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j > 0 && by_bytes(w, blocks[j - 1], blocks[j]) > 0; j--) {
            uint32_t x = blocks[j];
            blocks[j] = blocks[j - 1];
            blocks[j - 1] = x;
        }
}

/* Those of all leaving shards, by falling load. */
static uint32_t collect(const struct sfc_plan_work *w, uint32_t *out)
{
    uint32_t n = 0, at[SFC_CORE_MAX_SHARDS] = {0};
    for (;;) {
        uint32_t best = UINT32_MAX;
        for (uint32_t k = 0; k < w->input->shard_count; k++) {
            if (w->in[k] || at[k] == w->list[k].count)
                continue;
            double load = load_of(w, w->list[k].items[at[k]]);
            if (best == UINT32_MAX || load > load_of(w, w->list[best].items[at[best]]))
                best = k;
        }
        if (best == UINT32_MAX)
            return n;
        out[n++] = w->list[best].items[at[best]++];
    }
}

int sfc_plan_evict(struct sfc_plan_work *w, struct sfc_error *err)
{
    uint32_t *blocks = calloc(w->blocks ? w->blocks : 1, sizeof *blocks);
    if (!blocks)
        return sfc_fail(err, SFC_ENOMEM, "plan of moves: list of blocks");
    uint32_t count = collect(w, blocks);
    int code = evict(w, blocks, count, false, err);
    for (uint32_t i = 0; i < count && code == SFC_ENOTFOUND; i++) /* as it was */
        if (w->owner[blocks[i]] != w->input->blocks[blocks[i]].owner &&
            move_block(w, blocks[i], w->input->blocks[blocks[i]].owner, err) != SFC_OK)
            code = SFC_ENOMEM;
    if (code == SFC_ENOTFOUND) {
        int refused = refuse(w, count, err);
        sort_by_bytes(w, blocks, count);
        code = evict(w, blocks, count, true, NULL);
        code = code == SFC_OK ? code : refused;
    }
    free(blocks);
    return code;
}

/* ---- the slowest gives */

struct choice {
    uint32_t block, to;
    uint32_t back; /* of an exchange; UINT32_MAX: none */
    double slower; /* time of the slower of the two afterwards */
};

static double slower_of(const struct sfc_plan_work *w, uint32_t from, uint32_t to, double load)
{
    return fmax(w->time[from] - load * w->cost[from], w->time[to] + load * w->cost[to]);
}

/* The largest block of `from` that neither makes `to` slower nor `from` faster than the mean. */
static bool find_fit(const struct sfc_plan_work *w, uint32_t from, uint32_t to, double mean,
                     struct choice *out)
{
    const struct sfc_plan_list *list = &w->list[from];
    double slack = 1e-9 * mean;
    double give = (w->time[from] - mean + slack) / w->cost[from];
    double take = (mean - w->time[to] + slack) / w->cost[to];
    double most = give < take ? give : take;
    for (uint32_t i = place_of(w, list, most, 0); most > 0 && i < list->count; i++)
        if (w->input->blocks[list->items[i]].bytes <= room(w, to)) {
            *out = (struct choice){.block = list->items[i], .to = to, .back = UINT32_MAX};
            return true;
        }
    return false;
}

/* The block that makes the slower of the two as fast as can be. */
static void find_best(const struct sfc_plan_work *w, uint32_t from, uint32_t to,
                      struct choice *best)
{
    const struct sfc_plan_list *list = &w->list[from];
    double half = (w->time[from] - w->time[to]) / (w->cost[from] + w->cost[to]);
    uint32_t at = place_of(w, list, half, 0);
    for (int way = 0; way < 2; way++) { /* the next smaller, the next larger */
        uint32_t i = way ? at - 1 : at;
        while (i < list->count && w->input->blocks[list->items[i]].bytes > room(w, to))
            i = way ? i - 1 : i + 1;
        if (i >= list->count)
            continue;
        double load = load_of(w, list->items[i]);
        double slower = slower_of(w, from, to, load);
        if (w->time[from] - slower > WORTH * load * w->cost[from] && slower < best->slower)
            *best = (struct choice){list->items[i], to, UINT32_MAX, slower};
    }
}

static bool can_exchange(const struct sfc_plan_work *w, uint32_t a, uint32_t b)
{
    uint64_t x = w->input->blocks[a].bytes, y = w->input->blocks[b].bytes;
    uint32_t from = w->owner[a], to = w->owner[b];
    return (y <= x || y - x <= room(w, from)) && (x <= y || x - y <= room(w, to));
}

static void find_exchange(const struct sfc_plan_work *w, uint32_t from, uint32_t to,
                          struct choice *best)
{
    const struct sfc_plan_list *mine = &w->list[from], *theirs = &w->list[to];
    double half = (w->time[from] - w->time[to]) / (w->cost[from] + w->cost[to]);
    for (uint32_t i = 0; i < mine->count && i < SWAP_BLOCKS; i++) {
        double load = load_of(w, mine->items[i]);
        uint32_t at = place_of(w, theirs, load - half, 0);
        for (uint32_t j = at ? at - 1 : 0; j <= at && j < theirs->count; j++) {
            double more = load - load_of(w, theirs->items[j]);
            double slower = slower_of(w, from, to, more);
            if (more > 0 && slower < best->slower &&
                can_exchange(w, mine->items[i], theirs->items[j]))
                *best = (struct choice){mine->items[i], to, theirs->items[j], slower};
        }
    }
}

static uint32_t slowest_of(const struct sfc_plan_work *w)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t k = 0; k < w->input->shard_count; k++)
        if (w->in[k] && (best == UINT32_MAX || w->time[k] > w->time[best]))
            best = k;
    return best;
}

/* Shards that stay, the fastest first. */
static uint32_t sort_receivers(const struct sfc_plan_work *w, uint32_t from, uint32_t *out)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        if (!w->in[k] || k == from)
            continue;
        uint32_t at = n++;
        for (; at > 0 && w->time[out[at - 1]] > w->time[k]; at--)
            out[at] = out[at - 1];
        out[at] = k;
    }
    return n;
}

/* What the slowest shard gives away next. false: nothing is worth it. */
static bool choose(const struct sfc_plan_work *w, uint32_t from, double mean, struct choice *out)
{
    uint32_t to[SFC_CORE_MAX_SHARDS], n = sort_receivers(w, from, to);
    *out = (struct choice){.block = UINT32_MAX, .slower = w->time[from]};
    for (uint32_t i = 0; i < n; i++)
        if (find_fit(w, from, to[i], mean, out))
            return true;
    for (uint32_t i = 0; i < n; i++)
        find_best(w, from, to[i], out);
    if (out->block != UINT32_MAX)
        return true;
    out->slower = w->time[from] - WORTH_SWAP * mean;
    for (uint32_t i = 0; i < n && w->input->goal.kind == SFC_GOAL_REBALANCE; i++)
        find_exchange(w, from, to[i], out);
    return out->block != UINT32_MAX;
}

/* What each shard would take if blocks could be cut. */
static double mean_time(const struct sfc_plan_work *w)
{
    double load = 0, speed = 0;
    for (uint32_t b = 0; b < w->blocks; b++)
        load += load_of(w, b);
    for (uint32_t k = 0; k < w->input->shard_count; k++) {
        load += w->in[k] ? w->input->base_load : 0;
        speed += w->in[k] ? 1 / w->cost[k] : 0;
    }
    return load / speed;
}

int sfc_plan_balance(struct sfc_plan_work *w, struct sfc_error *err)
{
    double mean = mean_time(w);
    double enough = w->input->goal.kind == SFC_GOAL_REBALANCE ? SFC_PLAN_SLOWEST * mean : 0;
    int code = SFC_OK;
    for (uint64_t i = 0; i < 4ull * w->blocks && code == SFC_OK; i++) {
        struct choice c;
        uint32_t from = slowest_of(w);
        if (w->time[from] <= enough || !choose(w, from, mean, &c))
            break;
        code = move_block(w, c.block, c.to, err);
        if (code == SFC_OK && c.back != UINT32_MAX)
            code = move_block(w, c.back, from, err);
    }
    return code;
}

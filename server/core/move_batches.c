/* In which order: batches of one source, one destination and one kind of block, such that between
 * any two of them every shard has room for what it has. */
#include <stdlib.h>
#include <string.h>

#include "server/core/move_plan_internal.h"

/* Blocks that have not moved yet, and what shards have meanwhile. */
struct order {
    const struct sfc_plan_work *w;
    uint32_t *next;                      /* [blocks] 0: stays or has moved; else its place + 1 */
    uint64_t bytes[SFC_CORE_MAX_SHARDS]; /* of blocks now */
    uint32_t left;
};

static bool is_dense(const struct order *o, uint32_t block)
{
    return block >= o->w->input->class_blocks;
}

static uint64_t bytes_of(const struct order *o, uint32_t block)
{
    return o->w->input->blocks[block].bytes;
}

/* Blocks of shards that leave first, then those of the slowest ones. */
static bool goes_before(const struct order *o, uint32_t a, uint32_t b)
{
    const struct sfc_plan_work *w = o->w;
    uint32_t x = w->input->blocks[a].owner, y = w->input->blocks[b].owner;
    if (w->in[x] != w->in[y])
        return !w->in[x];
    return a < b;
}

static bool fits(const struct order *o, uint32_t block)
{
    uint32_t to = o->w->owner[block];
    return bytes_of(o, block) <= sfc_plan_room(&o->w->input->shards[to], o->bytes[to]);
}

/* The block that begins the next batch; UINT32_MAX: none has room where it goes to. A pair of
 * shards is finished before another one begins, as long as there is room. */
static uint32_t first_of(const struct order *o, uint32_t from, uint32_t to)
{
    uint32_t best = UINT32_MAX;
    bool same = false;
    for (uint32_t b = 0; b < o->w->blocks; b++) {
        if (!o->next[b] || !fits(o, b))
            continue;
        bool pair = o->w->input->blocks[b].owner == from && o->w->owner[b] == to;
        if (best == UINT32_MAX || (pair && !same) || (pair == same && goes_before(o, b, best))) {
            best = b;
            same = pair;
        }
    }
    return best;
}

static void take(struct order *o, uint32_t block)
{
    o->next[block] = 0;
    o->left--;
    o->bytes[o->w->owner[block]] += bytes_of(o, block);
}

static void add_move(const struct order *o, uint32_t block, struct sfc_plan_batch *batch,
                     struct sfc_move_plan *plan)
{
    plan->moves[plan->move_count++] =
        (struct sfc_plan_move){block, o->w->input->blocks[block].owner, o->w->owner[block]};
    batch->bytes += bytes_of(o, block);
    batch->state += o->w->input->blocks[block].state;
    batch->count++;
}

/* The first block and others of its pair and kind that fit, in rising order. */
static void fill_batch(struct order *o, uint32_t first, struct sfc_move_plan *plan)
{
    const struct sfc_plan_input *in = o->w->input;
    struct sfc_plan_batch batch = {.from = in->blocks[first].owner,
                                   .to = o->w->owner[first],
                                   .dense = is_dense(o, first),
                                   .first = plan->move_count};
    uint64_t bound = batch.dense ? in->dense_bytes : in->batch_bytes;
    for (uint32_t b = first; b < o->w->blocks; b++) {
        if (!o->next[b] || in->blocks[b].owner != batch.from || o->w->owner[b] != batch.to ||
            is_dense(o, b) != batch.dense || !fits(o, b))
            continue;
        if (batch.count > 0 && bound > 0 && batch.state + in->blocks[b].state > bound)
            break;
        take(o, b);
        add_move(o, b, &batch, plan);
    }
    o->bytes[batch.from] -= batch.bytes; /* freed when the map has flipped */
    plan->bytes += batch.state;
    plan->batches[plan->batch_count++] = batch;
}

static void fill(struct order *o, struct sfc_move_plan *plan)
{
    uint32_t from = UINT32_MAX, to = UINT32_MAX;
    while (o->left > 0) {
        uint32_t first = first_of(o, from, to);
        if (first == UINT32_MAX)
            break;
        from = o->w->input->blocks[first].owner;
        to = o->w->owner[first];
        fill_batch(o, first, plan);
    }
    plan->stuck = o->left;
}

/* Blocks that have no room on their way to a shard that stays may as well stay where they are; a
 * shard that leaves can't. */
static int check_stuck(const struct order *o, struct sfc_error *err)
{
    for (uint32_t b = 0; b < o->w->blocks; b++)
        if (o->next[b] && !o->w->in[o->w->input->blocks[b].owner])
            return sfc_fail(
                err, SFC_ENOMEM,
                "block %u of shard %llu finds no room: the shards that stay could hold "
                "all blocks, but have no room while they move one after another. Add "
                "a shard, or give one more (shardfc-shard --memory)",
                b, (unsigned long long)o->w->input->shards[o->w->input->blocks[b].owner].id);
    return SFC_OK;
}

int sfc_plan_batches(const struct sfc_plan_work *w, struct sfc_move_plan *plan,
                     struct sfc_error *err)
{
    struct order o = {.w = w, .next = calloc(w->blocks ? w->blocks : 1, sizeof *o.next)};
    for (uint32_t b = 0; b < w->blocks && o.next; b++) {
        o.bytes[w->input->blocks[b].owner] += w->input->blocks[b].bytes;
        o.next[b] = w->owner[b] != w->input->blocks[b].owner ? w->owner[b] + 1 : 0;
        o.left += o.next[b] != 0;
    }
    plan->moves = calloc(o.left ? o.left : 1, sizeof *plan->moves);
    plan->batches = calloc(o.left ? o.left : 1, sizeof *plan->batches);
    int code = o.next && plan->moves && plan->batches
                   ? SFC_OK
                   : sfc_fail(err, SFC_ENOMEM, "plan of %u moves", o.left);
    if (code == SFC_OK) {
        fill(&o, plan);
        code = check_stuck(&o, err);
    }
    free(o.next);
    if (code == SFC_OK && w->input->bytes_per_s > 0)
        plan->estimated_s =
            (double)plan->bytes / w->input->bytes_per_s + plan->batch_count * w->input->batch_s;
    return code;
}

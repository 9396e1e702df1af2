/* The planner, by its properties over many seeds; failures name the seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/core/move_plan.h"

enum { MAX_SHARDS = 24, MAX_BLOCKS = 600, SEEDS = 400 };

#define MIB (1u << 20)

struct world {
    uint64_t seed, draws;
    struct sfc_plan_shard shards[MAX_SHARDS];
    struct sfc_plan_block blocks[MAX_BLOCKS];
    struct sfc_plan_input in;
};

static uint64_t draw(struct world *w, uint64_t below)
{
    w->draws = w->draws * 6364136223846793005u + 1442695040888963407u + w->seed;
    return (w->draws >> 33) % below;
}

static void fail_at(const struct world *w, const char *what)
{
    fail_msg("seed %llu: %s", (unsigned long long)w->seed, what);
}

static const char *const hosts[] = {"a", "b", "c", "d"};

/* `members` shards with blocks and `others` without, all alike and with much room. */
static void make(struct world *w, uint64_t seed, uint32_t members, uint32_t others,
                 uint32_t class_blocks, uint32_t dense_blocks)
{
    *w = (struct world){.seed = seed, .draws = seed * 77 + 1};
    for (uint32_t k = 0; k < members + others; k++)
        w->shards[k] = (struct sfc_plan_shard){.id = k + 1,
                                               .host = hosts[k % 4],
                                               .member = k < members,
                                               .ready = true,
                                               .limit = 4096ull * MIB,
                                               .fixed = 10 * MIB};
    for (uint32_t b = 0; b < class_blocks + dense_blocks; b++)
        w->blocks[b] = (struct sfc_plan_block){.bytes = b < class_blocks ? 4 * MIB : MIB,
                                               .state = b < class_blocks ? 3 * MIB : MIB - 7,
                                               .load = 100,
                                               .owner = b % members};
    w->in = (struct sfc_plan_input){.shards = w->shards,
                                    .shard_count = members + others,
                                    .blocks = w->blocks,
                                    .class_blocks = class_blocks,
                                    .dense_blocks = dense_blocks,
                                    .batch_bytes = 32 * MIB,
                                    .dense_bytes = 4 * MIB,
                                    .bytes_per_s = 100e6,
                                    .batch_s = 0.1};
}

struct outcome {
    uint32_t owner[MAX_BLOCKS];
    uint32_t count[MAX_SHARDS];
    uint64_t bytes[MAX_SHARDS];
    double load[MAX_SHARDS];
};

/* Carries a plan out, batch by batch, and checks what holds for every plan. */
static void carry_out(struct world *w, const struct sfc_move_plan *plan, struct outcome *o)
{
    uint32_t blocks = w->in.class_blocks + w->in.dense_blocks, moved = 0;
    uint64_t bytes = 0;
    memset(o, 0, sizeof *o);
    for (uint32_t b = 0; b < blocks; b++) {
        o->owner[b] = w->blocks[b].owner;
        o->bytes[o->owner[b]] += w->blocks[b].bytes;
    }
    for (uint32_t i = 0; i < plan->batch_count; i++) {
        const struct sfc_plan_batch *batch = &plan->batches[i];
        uint64_t sum = 0, copied = 0;
        if (batch->count == 0 || batch->first != moved || batch->from == batch->to)
            fail_at(w, "an empty batch, or one out of order");
        for (uint32_t j = 0; j < batch->count; j++) {
            const struct sfc_plan_move *m = &plan->moves[batch->first + j];
            if (m->from != batch->from || m->to != batch->to || o->owner[m->block] != m->from)
                fail_at(w, "a block moves from where it is not");
            if ((m->block >= w->in.class_blocks) != batch->dense)
                fail_at(w, "two kinds in a batch");
            if (j > 0 && m->block <= plan->moves[batch->first + j - 1].block)
                fail_at(w, "blocks of a batch do not ascend");
            o->owner[m->block] = m->to;
            sum += w->blocks[m->block].bytes;
            copied += w->blocks[m->block].state;
        }
        if (sum != batch->bytes || copied != batch->state ||
            (batch->count > 1 && copied > (batch->dense ? w->in.dense_bytes : w->in.batch_bytes)))
            fail_at(w, "bytes of a batch");
        o->bytes[batch->to] += sum; /* both have it until the flip */
        if (w->shards[batch->to].fixed + o->bytes[batch->to] > w->shards[batch->to].limit)
            fail_at(w, "more bytes than there is room for, on the way");
        o->bytes[batch->from] -= sum;
        moved += batch->count;
        bytes += copied;
    }
    if (moved != plan->move_count || bytes != plan->bytes)
        fail_at(w, "moves that are in no batch");
    for (uint32_t b = 0; b < blocks; b++) {
        uint32_t k = o->owner[b];
        o->count[k]++;
        o->load[k] += w->blocks[b].load;
        bool there = (w->shards[k].member && !plan->leaves[k]) || plan->joins[k];
        if (!there)
            fail_at(w, "a block of a shard that is not there afterwards");
    }
    if (!plan->text || !strchr(plan->text, '\n') || strlen(plan->text) < 50)
        fail_at(w, "no explanation");
}

static void plan(struct world *w, struct sfc_goal goal, struct sfc_move_plan *out,
                 struct outcome *o)
{
    struct sfc_error err;
    w->in.goal = goal;
    if (sfc_move_plan_make(&w->in, out, &err) != SFC_OK)
        fail_at(w, err.text);
    carry_out(w, out, o);
}

/* What has been done is what is there now. */
static void settle(struct world *w, const struct sfc_move_plan *plan, const struct outcome *o)
{
    for (uint32_t b = 0; b < w->in.class_blocks + w->in.dense_blocks; b++)
        w->blocks[b].owner = o->owner[b];
    for (uint32_t k = 0; k < w->in.shard_count; k++)
        w->shards[k].member = (w->shards[k].member || plan->joins[k]) && !plan->leaves[k];
}

/* Blocks that must move at least, for n shards with equal shares of equal blocks. */
static uint32_t least_moves(const struct world *w, const bool *stays, uint32_t n)
{
    uint32_t count[MAX_SHARDS] = {0}, kept = 0, more = w->in.class_blocks % n;
    uint32_t share = w->in.class_blocks / n;
    for (uint32_t b = 0; b < w->in.class_blocks; b++)
        count[w->blocks[b].owner]++;
    for (uint32_t k = 0; k < w->in.shard_count; k++) {
        if (!stays[k])
            continue;
        uint32_t most = share + (more > 0 && count[k] > share);
        more -= most > share;
        kept += count[k] < most ? count[k] : most;
    }
    return w->in.class_blocks - kept;
}

static void test_plain_scale(void **state)
{
    (void)state;
    static struct world w;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        make(&w, seed, 1, MAX_SHARDS - 1, 24 + (uint32_t)(seed * 37 % 300), 0);
        for (int round = 0; round < 6; round++) {
            uint32_t want = 1 + (uint32_t)draw(&w, MAX_SHARDS);
            struct sfc_move_plan p;
            struct outcome o;
            bool stays[MAX_SHARDS];
            plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, want, 0}, &p, &o);
            uint32_t low = UINT32_MAX, high = 0, n = 0;
            for (uint32_t k = 0; k < MAX_SHARDS; k++) {
                stays[k] = (w.shards[k].member && !p.leaves[k]) || p.joins[k];
                n += stays[k];
                if (!stays[k])
                    continue;
                low = o.count[k] < low ? o.count[k] : low;
                high = o.count[k] > high ? o.count[k] : high;
            }
            if (n != want)
                fail_at(&w, "another number of shards");
            if (high - low > 1)
                fail_at(&w, "not balanced within one block");
            if (p.move_count != least_moves(&w, stays, want))
                fail_at(&w, "more blocks move than must");
            settle(&w, &p, &o);
            sfc_move_plan_free(&p);
            plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, want, 0}, &p, &o);
            if (!sfc_move_plan_empty(&p))
                fail_at(&w, "the same goal again is not reached");
            sfc_move_plan_free(&p);
        }
    }
}

static void test_deterministic(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan a, b;
    struct outcome o;
    make(&w, 1, 3, 5, 301, 17);
    plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 7, 0}, &a, &o);
    plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 7, 0}, &b, &o);
    assert_int_equal(a.move_count, b.move_count);
    assert_memory_equal(a.moves, b.moves, a.move_count * sizeof *a.moves);
    assert_memory_equal(a.batches, b.batches, a.batch_count * sizeof *a.batches);
    assert_string_equal(a.text, b.text);
    assert_true(a.estimated_s > (double)a.bytes / 100e6);
    sfc_move_plan_free(&a);
    sfc_move_plan_free(&b);
}

/* Random loads, limits, costs and hosts: no plan breaks what holds for every plan, and a drained
 * shard is empty. */
static void test_anything(void **state)
{
    (void)state;
    static struct world w;
    unsigned refused = 0, made = 0;
    for (uint64_t seed = 1; seed <= 4 * SEEDS; seed++) {
        uint32_t members = 1 + (uint32_t)(seed % 7), others = (uint32_t)(seed / 7 % 5);
        make(&w, seed, members, others, 1 + (uint32_t)(seed * 13 % 200), (uint32_t)(seed % 40));
        w.in.measured = seed % 2;
        w.in.base_load = seed % 3 ? 0 : 500;
        for (uint32_t k = 0; k < members + others; k++) {
            w.shards[k].limit = (10 + 4 + draw(&w, 400)) * MIB;
            w.shards[k].cost = draw(&w, 3) ? 0.5 + (double)draw(&w, 100) / 40 : 0;
            w.shards[k].host = hosts[draw(&w, 4)];
        }
        for (uint32_t b = 0; b < w.in.class_blocks + w.in.dense_blocks; b++) {
            w.blocks[b].owner = (uint32_t)draw(&w, members);
            w.blocks[b].load = 1 + (double)draw(&w, 1000);
        }
        for (uint32_t b = 0; b < w.in.class_blocks + w.in.dense_blocks; b++) {
            uint64_t used = 0;
            for (uint32_t c = 0; c < w.in.class_blocks + w.in.dense_blocks; c++)
                used += w.blocks[c].owner == w.blocks[b].owner ? w.blocks[c].bytes : 0;
            if (w.shards[w.blocks[b].owner].limit < w.shards[w.blocks[b].owner].fixed + used)
                w.shards[w.blocks[b].owner].limit = w.shards[w.blocks[b].owner].fixed + used;
        }
        const struct sfc_goal goals[] = {
            {SFC_GOAL_SHARDS, 1 + (uint32_t)draw(&w, members + others), 0},
            {SFC_GOAL_DRAIN, 0, 1 + draw(&w, members)},
            {SFC_GOAL_JOIN, 0, 1 + draw(&w, members + others)},
            {SFC_GOAL_REBALANCE, 0, 0}};
        w.in.goal = goals[draw(&w, 4)];
        struct sfc_move_plan p;
        struct sfc_error err = {0};
        int code = sfc_move_plan_make(&w.in, &p, &err);
        if (code != SFC_OK) {
            if ((code != SFC_ENOMEM && code != SFC_EINVAL) || strlen(err.text) < 20)
                fail_at(&w, err.text);
            refused++;
            continue;
        }
        struct outcome o;
        carry_out(&w, &p, &o);
        made++;
        if (w.in.goal.kind == SFC_GOAL_DRAIN && o.count[w.in.goal.shard - 1] != 0)
            fail_at(&w, "a drained shard has blocks");
        if (w.in.goal.kind == SFC_GOAL_DRAIN)
            for (uint32_t i = 0; i < p.move_count; i++)
                if (p.moves[i].from != w.in.goal.shard - 1)
                    fail_at(&w, "a drain moves other shards' blocks");
        if (w.in.goal.kind == SFC_GOAL_REBALANCE && p.slowest_after > p.slowest_before + 1e-9 &&
            p.slowest_after > SFC_PLAN_SLOWEST)
            fail_at(&w, "slower than before");
        sfc_move_plan_free(&p);
    }
    assert_true(made > 2 * SEEDS);
    assert_true(refused > 20);
}

/* Zipf over sorted identities: the first blocks have most of the positives. */
static void zipf(struct world *w, double exponent, double floor)
{
    double sum = 0;
    for (uint32_t b = 0; b < w->in.class_blocks; b++)
        sum += pow(b + 1, -exponent);
    for (uint32_t b = 0; b < w->in.class_blocks; b++)
        w->blocks[b].load = floor + 10000 * pow(b + 1, -exponent) / sum;
}

static void test_rebalance_of_skewed_data(void **state)
{
    (void)state;
    static struct world w;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t members = 2 + (uint32_t)(seed % 7);
        make(&w, seed, members, 0, members * (16 + (uint32_t)(seed % 20)), 0);
        zipf(&w, 0.3 + (double)(seed % 10) / 10, 50);
        double all = 0, most = 0;
        for (uint32_t b = 0; b < w.in.class_blocks; b++) {
            w.blocks[b].owner = b * members / w.in.class_blocks; /* runs of sorted ids */
            all += w.blocks[b].load;
            most = fmax(most, w.blocks[b].load);
        }
        w.in.measured = true;
        struct sfc_move_plan p;
        struct outcome o;
        plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
        double slowest = 0;
        for (uint32_t k = 0; k < members; k++)
            slowest = fmax(slowest, o.load[k]);
        double mean = all / members;
        if (most <= mean && slowest > 1.15 * mean)
            fail_at(&w, "the slowest shard is more than 1.15 x the mean");
        if (most > mean && slowest > most)
            fail_at(&w, "more than the block that nobody can cut");
        if (fabs(p.slowest_after - slowest / mean) > 1e-6)
            fail_at(&w, "says another time than it is");
        if (p.move_count > w.in.class_blocks / 2)
            fail_at(&w, "more than half of the blocks move");
        settle(&w, &p, &o);
        sfc_move_plan_free(&p);
        plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
        if (p.move_count > 0 && most <= mean)
            fail_at(&w, "balanced, and yet blocks move");
        sfc_move_plan_free(&p);
    }
}

/* Noise of a percent in measured loads moves nothing. */
static void test_noise_moves_nothing(void **state)
{
    (void)state;
    static struct world w;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        make(&w, seed, 4, 0, 256, 0);
        w.in.measured = true;
        for (uint32_t b = 0; b < 256; b++)
            w.blocks[b].load = 100 + (double)draw(&w, 4);
        for (uint32_t k = 0; k < 4; k++)
            w.shards[k].cost = 1 + (double)draw(&w, 9) / 100;
        const struct sfc_goal goals[] = {{SFC_GOAL_SHARDS, 4, 0}, {SFC_GOAL_REBALANCE, 0, 0}};
        for (int i = 0; i < 2; i++) {
            struct sfc_move_plan p;
            struct outcome o;
            plan(&w, goals[i], &p, &o);
            if (!sfc_move_plan_empty(&p))
                fail_at(&w, "noise moves blocks");
            sfc_move_plan_free(&p);
        }
    }
}

/* A shard that is twice as slow gets half as much. */
static void test_slow_shard(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 3, 0, 150, 0);
    w.shards[0].cost = 2;
    w.shards[1].cost = 1;
    w.shards[2].cost = 1;
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_true(o.count[0] >= 28 && o.count[0] <= 32);
    assert_true(p.slowest_before > 1.3 && p.slowest_after < 1.1);
    sfc_move_plan_free(&p);
    /* costs that can't be true count as not known */
    w.shards[0].cost = 1000;
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_true(sfc_move_plan_empty(&p));
    sfc_move_plan_free(&p);
}

/* What all shards do alike makes differences smaller, and is no reason to move more. */
static void test_base_load(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 0, 40, 0);
    for (uint32_t b = 0; b < 40; b++)
        w.blocks[b].owner = b >= 30; /* 3000 to 1000 */
    w.in.base_load = 2000;           /* 5000 to 3000 */
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_true(fabs(p.slowest_before - 1.25) < 1e-9);
    assert_true(o.load[0] <= 2200 && p.slowest_after <= SFC_PLAN_SLOWEST);
    sfc_move_plan_free(&p);
    w.in.base_load = 50000; /* within 1.05 already */
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_true(sfc_move_plan_empty(&p));
    sfc_move_plan_free(&p);
}

static void test_exchange(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 0, 4, 0);
    const double loads[] = {60, 40, 60, 40}; /* 0 and 2 are shard 1's: 120 to 80 */
    for (uint32_t b = 0; b < 4; b++)
        w.blocks[b].load = loads[b];
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_int_equal(p.move_count, 2);
    assert_true(o.load[0] == 100 && o.load[1] == 100);
    sfc_move_plan_free(&p);
    /* Without room for a second copy they stay, and the plan says so. */
    w.shards[0].limit = w.shards[1].limit = 10 * MIB + 2 * 4 * MIB;
    plan(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &p, &o);
    assert_int_equal(p.move_count, 0);
    assert_int_equal(p.stuck, 2);
    assert_non_null(strstr(p.text, "2 blocks stay where they are"));
    sfc_move_plan_free(&p);
}

static void test_spreads_over_hosts(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 4, 60, 0);
    const char *const at[] = {"a", "a", "a", "b", "b", "c"};
    for (uint32_t k = 0; k < 6; k++)
        w.shards[k].host = at[k];
    plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 4, 0}, &p, &o);
    assert_true(p.joins[3] && p.joins[5] && !p.joins[2] && !p.joins[4]);
    settle(&w, &p, &o);
    sfc_move_plan_free(&p);
    plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 3, 0}, &p, &o);
    assert_true((p.leaves[0] || p.leaves[1]) && !p.leaves[3] && !p.leaves[5]);
    sfc_move_plan_free(&p);
}

static int refused(struct world *w, struct sfc_goal goal, struct sfc_error *err)
{
    struct sfc_move_plan p;
    w->in.goal = goal;
    int code = sfc_move_plan_make(&w->in, &p, err);
    assert_int_not_equal(code, SFC_OK);
    return code;
}

static void test_refusals_say_what_to_do(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_error err;
    make(&w, 1, 2, 0, 40, 0);
    w.shards[0].limit = w.shards[1].limit = (10 + 25 * 4) * MIB;
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_DRAIN, 0, 2}, &err), SFC_ENOMEM);
    assert_non_null(strstr(err.text, "20 blocks (80.0 MiB)"));
    assert_non_null(strstr(err.text, "20.0 MiB free"));
    assert_non_null(strstr(err.text, "--memory"));
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 1, 0}, &err), SFC_ENOMEM);
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 0, 0}, &err), SFC_EINVAL);
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 41, 0}, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "40 class blocks"));
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_DRAIN, 0, 9}, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "no shard 9"));
    w.shards[1].ready = false;
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_REBALANCE, 0, 0}, &err), SFC_ESTATE);
    assert_non_null(strstr(err.text, "shard 2 does not answer"));
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_DRAIN, 0, 2}, &err), SFC_ESTATE);
    make(&w, 1, 1, 0, 40, 0);
    assert_int_equal(refused(&w, (struct sfc_goal){SFC_GOAL_DRAIN, 0, 1}, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "last one"));
}

/* It has nothing that anybody could need. */
static void test_a_dead_empty_shard_leaves(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 1, 40, 0);
    w.shards[2].member = true;
    w.shards[2].ready = false;
    plan(&w, (struct sfc_goal){SFC_GOAL_DRAIN, 0, 3}, &p, &o);
    assert_true(p.leaves[2] && p.move_count == 0);
    sfc_move_plan_free(&p);
}

/* Taking a goal back moves nothing, so nobody has to answer. */
static void test_a_goal_is_taken_back_while_a_shard_is_silent(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 0, 40, 0);
    w.shards[1].ready = false;
    plan(&w, (struct sfc_goal){SFC_GOAL_NONE, 0, 0}, &p, &o);
    assert_true(sfc_move_plan_empty(&p));
    sfc_move_plan_free(&p);
}

static void test_waits_for_shards(void **state)
{
    (void)state;
    static struct world w;
    struct sfc_move_plan p;
    struct outcome o;
    make(&w, 1, 2, 1, 40, 0);
    plan(&w, (struct sfc_goal){SFC_GOAL_SHARDS, 4, 0}, &p, &o);
    assert_int_equal(p.missing, 1);
    assert_int_equal(p.move_count, 0);
    assert_false(p.joins[2]);
    assert_false(sfc_move_plan_empty(&p));
    assert_non_null(strstr(p.text, "waits for 1 more shard to register"));
    sfc_move_plan_free(&p);
}

static void test_goal_text(void **state)
{
    (void)state;
    char text[64];
    sfc_goal_text(&(struct sfc_goal){SFC_GOAL_SHARDS, 1, 0}, text, sizeof text);
    assert_string_equal(text, "1 shard");
    sfc_goal_text(&(struct sfc_goal){SFC_GOAL_DRAIN, 0, 7}, text, sizeof text);
    assert_string_equal(text, "drain shard 7");
    sfc_goal_text(&(struct sfc_goal){SFC_GOAL_NONE, 0, 0}, text, sizeof text);
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_scale),
        cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_anything),
        cmocka_unit_test(test_rebalance_of_skewed_data),
        cmocka_unit_test(test_noise_moves_nothing),
        cmocka_unit_test(test_slow_shard),
        cmocka_unit_test(test_base_load),
        cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_spreads_over_hosts),
        cmocka_unit_test(test_refusals_say_what_to_do),
        cmocka_unit_test(test_a_dead_empty_shard_leaves),
        cmocka_unit_test(test_a_goal_is_taken_back_while_a_shard_is_silent),
        cmocka_unit_test(test_waits_for_shards),
        cmocka_unit_test(test_goal_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Blocks that come and go: heads made of parts, moves in the middle of a run, changed rows. What
 * they compute has the bits of one head that holds all blocks from the beginning. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/exact_sum.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

enum {
    BATCH = 12,
    MICRO = 3,
    DIM = 24,
    CLASSES = 333, /* a short last block */
    BLOCK = 64,
    BLOCKS = 6,
    STEPS = 14
};

enum mode { SAMPLED, DENSE, ADAMW, MODES };
enum { FORMATS = 4 };

static struct sfc_head_config config_of(int format, enum mode mode)
{
    struct sfc_head_config c = rig_config(CLASSES, DIM, BLOCK, BATCH, MICRO);
    c.dtype = format % 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.gemm = format / 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.momentum_mode = mode == DENSE ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
    c.optimizer = mode == ADAMW ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
    c.sample_ppm = 200000;
    c.steps = 100;
    return c;
}

/* Formats and modes to run through; on an emulated device each of them once. */
#ifdef SFC_TEST_SMALL
enum { CASES = 4 };
#else
enum { CASES = 12 };
#endif

static struct sfc_head_config case_of(int i)
{
    return config_of(i % FORMATS, (enum mode)(i % MODES)); /* 12: each with each */
}

static void must(int rc, const struct sfc_error *err)
{
    if (rc != SFC_OK)
        fail_msg("%s (%d)", err->text, rc);
}

/* ---- two runs side by side */

struct pair {
    struct rig still, moving;
    struct rig_step a, b;
    uint64_t labels[BATCH];
    float x[BATCH * DIM], w[2][CLASSES * DIM];
};

static void pair_open(struct pair *p, const char *backend, unsigned threads, size_t heads,
                      const struct sfc_head_config *c)
{
    rig_open(&p->still, (struct rig_setup){backend, 1, 1, 1, false}, c);
    rig_open(&p->moving, (struct rig_setup){backend, threads, heads, 2, true}, c);
    rig_step_init(&p->a, c);
    rig_step_init(&p->b, c);
}

static void pair_close(struct pair *p)
{
    rig_step_free(&p->a);
    rig_step_free(&p->b);
    rig_close(&p->still);
    rig_close(&p->moving);
}

static bool skipped(uint64_t t)
{
    return t % 5 == 4;
}

/* One step of both, which must answer alike. */
static void pair_step(struct pair *p, uint64_t t)
{
    const struct sfc_head_config *c = &p->still.config;
    rig_read(&p->still, SFC_PART_VALUES, p->w[0]);
    rig_labels(t, t % 2 ? RIG_WITH_NONE : RIG_UNIFORM, c, p->labels);
    rig_features(t, c, p->labels, p->w[0], p->x);
    if (t == 3) /* a row without direction, which every head counts alike */
        memset(p->x + DIM, 0, DIM * sizeof *p->x);
    rig_forward(&p->still, t, p->labels, p->x, &p->a);
    rig_forward(&p->moving, t, p->labels, p->x, &p->b);
    assert_memory_equal(p->a.exp_sum, p->b.exp_sum, BATCH * 4 * sizeof *p->a.exp_sum);
    assert_memory_equal(p->a.target, p->b.target, BATCH * sizeof *p->a.target);
    assert_memory_equal(p->a.dx, p->b.dx, sizeof(int64_t) * BATCH * DIM);
    assert_int_equal(p->a.sampled, p->b.sampled);
    assert_int_equal(p->a.zero_features, p->b.zero_features);
    assert_int_equal(p->a.zero_features, t == 3);
    for (struct rig *r = &p->still; r; r = r == &p->still ? &p->moving : NULL)
        if (skipped(t))
            rig_skip(r, t);
        else
            rig_commit(r, 0.02);
}

static void compare_state(struct pair *p)
{
    const struct sfc_head_config *c = &p->still.config;
    for (int part = SFC_PART_VALUES; part <= SFC_PART_SECOND_MOMENT; part++) {
        bool last = part == SFC_PART_LAST_STEP;
        if ((last && c->momentum_mode != SFC_MOMENTUM_DENSE) ||
            (part == SFC_PART_SECOND_MOMENT && c->optimizer != SFC_OPTIMIZER_ADAMW))
            continue;
        rig_read(&p->still, (enum sfc_block_part)part, p->w[0]);
        rig_read(&p->moving, (enum sfc_block_part)part, p->w[1]);
        assert_memory_equal(p->w[0], p->w[1], sizeof(float) * CLASSES * (last ? 1 : DIM));
    }
}

/* ---- parts that are there from the beginning */

/* Instead of the rig's head: one that got its blocks in interleaved portions. */
static void build_of_parts(struct rig *rig)
{
    static const uint64_t portions[][2] = {{1, 4}, {0, 5}, {2, 3}};
    struct sfc_error err = {0};
    sfc_head_free(rig->head[0]);
    must(sfc_head_new(rig->backend, &rig->config, NULL, 0, &rig->head[0], &err), &err);
    for (size_t i = 0; i < sizeof portions / sizeof *portions; i++)
        must(sfc_head_add(rig->head[0], portions[i], 2, false, &err), &err);
}

static void test_parts_have_the_bits_of_one_head(void **state)
{
    (void)state;
#ifdef TESTED_IS_CPU
    static const char *const backends[] = {"reference", TESTED};
#else
    static const char *const backends[] = {TESTED};
#endif
    for (size_t b = 0; b < sizeof backends / sizeof *backends; b++)
        for (int i = 0; i < CASES; i++) {
            struct sfc_head_config c = case_of(i);
            struct pair p;
            pair_open(&p, backends[b], 2, 1, &c);
            build_of_parts(&p.moving);
            for (uint64_t t = 1; t <= 5; t++)
                pair_step(&p, t);
            compare_state(&p);
            pair_close(&p);
        }
}

/* ---- moves in the middle of a run */

/* A move as two servers do it: a copy at some step, then only what changed, twice. */
struct move {
    struct sfc_head *staged;
    uint64_t blocks[2], since;
    size_t from, to;
};

static void move_begin(struct pair *p, struct move *m, uint64_t now)
{
    struct rig *rig = &p->moving;
    struct sfc_error err = {0};
    m->from = rig->owner[m->blocks[0]];
    m->since = now;
    must(sfc_head_new_blank(rig->backend, &rig->config, m->blocks, 2, &m->staged, &err), &err);
    for (size_t i = 0; i < 2; i++) {
        rig_copy_block(rig, rig->head[m->from], m->staged, m->blocks[i]);
        must(sfc_head_track(rig->head[m->from], m->blocks[i], true, &err), &err);
    }
}

static void move_follow(struct pair *p, struct move *m, uint64_t now)
{
    struct rig *rig = &p->moving;
    struct sfc_error err = {0};
    uint32_t rows[BLOCK], count = 0;
    for (size_t i = 0; i < 2; i++) {
        must(sfc_head_changed(rig->head[m->from], m->blocks[i], m->since, rows, &count, &err),
             &err);
        rig_copy_rows(rig, rig->head[m->from], m->staged, m->blocks[i], rows, count);
    }
    m->since = now;
}

static void move_end(struct pair *p, struct move *m, uint64_t now)
{
    struct rig *rig = &p->moving;
    struct sfc_error err = {0};
    move_follow(p, m, now);
    must(sfc_head_attach(rig->head[m->to], m->staged, &err), &err);
    must(sfc_head_remove(rig->head[m->from], m->blocks, 2, &err), &err);
    rig->owner[m->blocks[0]] = rig->owner[m->blocks[1]] = m->to;
}

/* Three heads: one without blocks at first, one without any later; blocks that come back. */
static void run_moves(struct pair *p)
{
    struct move first = {.blocks = {0, 3}, .to = 1}, second = {.blocks = {2, 5}, .to = 2};
    rig_move(&p->moving, (const uint64_t[]){2, 5}, 2, 0); /* 2 holds nothing */
    for (uint64_t t = 1; t <= STEPS; t++) {
        pair_step(p, t);
        if (t == 2)
            move_begin(p, &first, t);
        if (t == 3) {
            move_follow(p, &first, t);
            move_begin(p, &second, t);
        }
        if (t == 6)
            move_end(p, &first, t); /* 0: {2, 5}, 1: {0, 1, 3, 4} */
        if (t == 7)
            move_end(p, &second, t); /* 0: nothing, 2: {2, 5} */
        if (t == 9)
            rig_move(&p->moving, (const uint64_t[]){1, 3}, 2, 0);
        if (t == 11) /* back to a part that held it before */
            rig_move(&p->moving, (const uint64_t[]){3}, 1, 1);
        if (t == 12)
            rig_move(&p->moving, (const uint64_t[]){0, 3, 4}, 3, 0);
    }
}

static void test_moves_change_no_bit(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct sfc_head_config c = case_of(i);
        struct pair p;
        pair_open(&p, TESTED, 1 + (unsigned)i % 3, 3, &c);
        run_moves(&p);
        compare_state(&p);
        pair_close(&p);
    }
}

/* ---- changed rows */

static void test_changed_rows_are_those_that_differ(void **state)
{
    (void)state;
    for (int mode = 0; mode < MODES; mode++) {
        struct sfc_head_config c = config_of(1, (enum mode)mode);
        struct sfc_error err = {0};
        struct pair p;
        struct rig *rig = &p.moving;
        uint32_t rows[BLOCK], count = 0;
        pair_open(&p, TESTED, 1, 1, &c);
        pair_step(&p, 1);
        assert_int_equal(sfc_head_changed(rig->head[0], 2, 0, rows, &count, &err), SFC_ESTATE);
        must(sfc_head_track(rig->head[0], 2, true, &err), &err);
        rig_read(rig, SFC_PART_MOMENTUM, p.w[0]);
        float before[CLASSES * DIM];
        memcpy(before, p.w[0], sizeof before);
        for (uint64_t t = 2; t <= 4; t++) /* the last is skipped */
            pair_step(&p, t);
        rig_read(rig, SFC_PART_MOMENTUM, p.w[1]);
        must(sfc_head_changed(rig->head[0], 2, 1, rows, &count, &err), &err);
        for (uint32_t row = 0, at = 0; row < BLOCK; row++) {
            size_t first = (size_t)(2 * BLOCK + row) * DIM;
            bool differs = memcmp(before + first, p.w[1] + first, DIM * sizeof *before) != 0;
            bool named = at < count && rows[at] == row;
            assert_int_equal(differs, named);
            at += named;
        }
        uint32_t later = 0;
        must(sfc_head_changed(rig->head[0], 2, 2, rows, &later, &err), &err);
        assert_true(later > 0 && later < count);
        must(sfc_head_changed(rig->head[0], 2, 4, rows, &later, &err), &err);
        assert_int_equal(later, 0);
        pair_close(&p);
    }
}

/* More rows than go in one piece, in an order of their own. */
static void test_lists_of_rows_are_read_and_written(void **state)
{
    (void)state;
    enum { ROWS = 1200, WIDE = 300, LISTED = 1111 };
    for (int format = 0; format < FORMATS; format++) {
        struct sfc_head_config c = config_of(format, DENSE);
        struct sfc_error err = {0};
        struct sfc_backend *backend = NULL;
        struct sfc_head *head = NULL;
        c.classes = c.block_size = ROWS;
        c.dim = WIDE;
        size_t all = (size_t)ROWS * WIDE;
        float *want = calloc(all, sizeof *want), *got = calloc(all, sizeof *got);
        float *some = calloc(all, sizeof *some);
        uint32_t rows[LISTED];
        assert_true(want && got && some);
        must(sfc_backend_open(TESTED, 1, &backend, &err), &err);
        must(sfc_head_new(backend, &c, &(const uint64_t){0}, 1, &head, &err), &err);
        for (size_t i = 0; i < LISTED; i++)
            rows[i] = (uint32_t)(i * 7 % ROWS);
        for (int i = SFC_PART_VALUES; i <= SFC_PART_LAST_STEP; i++) {
            enum sfc_block_part part = (enum sfc_block_part)i;
            size_t width = part == SFC_PART_LAST_STEP ? 1 : WIDE;
            must(sfc_head_read(head, 0, part, 0, ROWS * width, want, &err), &err);
            for (size_t k = 0; k < LISTED; k++)
                for (size_t j = 0; j < width; j++)
                    want[rows[k] * width + j] = some[k * width + j] = (float)((k + j) % 97);
            must(sfc_head_write_rows(head, 0, part, rows, LISTED, some, &err), &err);
            must(sfc_head_read(head, 0, part, 0, ROWS * width, got, &err), &err);
            assert_memory_equal(got, want, ROWS * width * sizeof *got);
            memset(got, 0xff, all * sizeof *got);
            must(sfc_head_read_rows(head, 0, part, rows, LISTED, got, &err), &err);
            assert_memory_equal(got, some, LISTED * width * sizeof *got);
            must(sfc_head_read_rows(head, 0, part, rows, 0, got, &err), &err);
        }
        sfc_head_free(head);
        sfc_backend_close(backend);
        free(want), free(got), free(some);
    }
}

static void test_tracking_ends_when_the_block_is_written(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, SAMPLED);
    struct sfc_error err = {0};
    struct pair p;
    uint32_t rows[BLOCK], count = 77, row = 3;
    float values[DIM] = {0};
    pair_open(&p, TESTED, 1, 1, &c);
    struct sfc_head *head = p.moving.head[0];
    for (int way = 0; way < 5; way++) {
        must(sfc_head_track(head, 1, true, &err), &err);
        must(sfc_head_changed(head, 1, 0, rows, &count, &err), &err);
        assert_int_equal(count, 0);
        if (way == 0)
            must(sfc_head_track(head, 1, false, &err), &err);
        if (way == 1)
            must(sfc_head_write(head, 1, SFC_PART_VALUES, 0, DIM, values, &err), &err);
        if (way == 2)
            must(sfc_head_write_rows(head, 1, SFC_PART_VALUES, &row, 1, values, &err), &err);
        if (way == 3)
            must(sfc_head_set_block_step(head, 1, 0, &err), &err);
        if (way == 4) {
            must(sfc_head_remove(head, &(const uint64_t){1}, 1, &err), &err);
            must(sfc_head_add(head, &(const uint64_t){1}, 1, true, &err), &err);
        }
        assert_int_equal(sfc_head_changed(head, 1, 0, rows, &count, &err), SFC_ESTATE);
    }
    assert_int_equal(sfc_head_track(head, BLOCKS, true, &err), SFC_ENOTFOUND);
    pair_close(&p);
}

/* ---- heads without blocks, memory, refusals */

static void test_a_head_without_blocks_answers_zero(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, DENSE);
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL;
    uint64_t labels[BATCH] = {0}, sums[4 * MICRO], sampled = 7;
    float x[MICRO * DIM] = {[DIM] = 1, [2 * DIM] = 2}, target[MICRO];
    uint8_t has[MICRO];
    double lse[MICRO] = {1, 1, 1};
    int64_t dx[MICRO * DIM];
    uint32_t slots[BATCH / MICRO];
    must(sfc_backend_open(TESTED, 1, &backend, &err), &err);
    must(sfc_head_new(backend, &c, NULL, 0, &head, &err), &err);
    must(sfc_head_plan(head, 1, labels, &sampled, &err), &err);
    assert_int_equal(sampled, 0);
    sfc_head_prefetch(head, 2, labels);
    for (uint32_t j = 0; j < BATCH / MICRO; j++) {
        memset(sums, 0xff, sizeof sums), memset(target, 0xff, sizeof target);
        memset(has, 0xff, sizeof has), memset(dx, 0xff, sizeof dx);
        struct sfc_head_logits_item item = {j, j, x, sums, target, has, 9};
        struct sfc_head_gradient_item gradient = {j, lse, dx};
        must(sfc_head_logits(head, &item, 1, &err), &err);
        must(sfc_head_gradient(head, &gradient, 1, &err), &err);
        assert_int_equal(item.zero_features, 1);
        for (size_t i = 0; i < 4 * MICRO; i++)
            assert_int_equal(sums[i], 0);
        for (size_t i = 0; i < MICRO; i++)
            assert_true(target[i] == 0 && has[i] == 0);
        for (size_t i = 0; i < MICRO * DIM; i++)
            assert_int_equal(dx[i], 0);
        slots[j] = j;
    }
    assert_true(sfc_head_finite(head, slots, 0.1));
    must(sfc_head_commit(head, slots, 0.1, &err), &err);
    must(sfc_head_skip(head, 2, &err), &err);
    float rates[2];
    must(sfc_head_read_rates(head, 0, 2, rates, &err), &err);
    assert_true(rates[0] == 0.1f && rates[1] < 0);
    assert_int_equal(sfc_head_read(head, 0, SFC_PART_VALUES, 0, 1, x, &err), SFC_ENOTFOUND);
    sfc_head_free(head);
    sfc_backend_close(backend);
}

/* The last block gets rows, and blocks come behind it: new rows are those of a head that had them
 * from the beginning, old ones stay. */
static void test_a_head_grows(void **state)
{
    (void)state;
    enum { MORE = 450, LAST = BLOCKS - 1, OLD = CLASSES - LAST * BLOCK };
    struct sfc_head_config c = config_of(0, SAMPLED), grown = c;
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL, *whole = NULL, *come = NULL;
    const uint64_t first[] = {0, 1, 2, 3, 4, LAST}, last[] = {LAST, LAST + 1, LAST + 2};
    static float kept[OLD * DIM], a[BLOCK * DIM], b[BLOCK * DIM];
    grown.classes = MORE;
    must(sfc_backend_open(TESTED, 2, &backend, &err), &err);
    must(sfc_head_new(backend, &c, first, BLOCKS, &head, &err), &err);
    must(sfc_head_new(backend, &grown, last, 3, &whole, &err), &err);
    must(sfc_head_new(backend, &grown, last, 3, &come, &err), &err);
    for (size_t i = 0; i < OLD * DIM; i++)
        a[i] = (float)i;
    must(sfc_head_write(head, LAST, SFC_PART_VALUES, 0, OLD * DIM, a, &err), &err);
    must(sfc_head_read(head, LAST, SFC_PART_VALUES, 0, OLD * DIM, kept, &err), &err);
    assert_int_equal(sfc_head_grow(head, CLASSES - 1, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_grow(head, MORE, &err), SFC_ESTATE);   /* block LAST is held */
    assert_int_equal(sfc_head_attach(head, come, &err), SFC_EINVAL); /* another configuration */
    must(sfc_head_write(come, LAST, SFC_PART_VALUES, 0, OLD * DIM, kept, &err), &err);
    must(sfc_head_remove(head, last, 1, &err), &err);
    must(sfc_head_grow(head, MORE, &err), &err);
    must(sfc_head_attach(head, come, &err), &err);
    for (uint64_t k = LAST; k <= LAST + 2; k++) {
        uint64_t rows = sfc_head_block_rows(&grown, k), from = k == LAST ? OLD : 0;
        must(sfc_head_read(head, k, SFC_PART_VALUES, 0, rows * DIM, a, &err), &err);
        must(sfc_head_read(whole, k, SFC_PART_VALUES, 0, rows * DIM, b, &err), &err);
        assert_memory_equal(a + from * DIM, b + from * DIM, (rows - from) * DIM * sizeof *a);
        if (k == LAST)
            assert_memory_equal(a, kept, sizeof kept);
    }
    uint64_t labels[BATCH] = {0}, sampled;
    labels[0] = MORE - 1;
    must(sfc_head_plan(head, 1, labels, &sampled, &err), &err);
    labels[0] = MORE;
    assert_int_equal(sfc_head_plan(head, 1, labels, &sampled, &err), SFC_EINVAL);
    sfc_head_free(head);
    sfc_head_free(whole);
    sfc_backend_close(backend);
}

static uint64_t all_bytes(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

static void test_memory_is_known_and_given_back(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, DENSE);
    c.dim = 512; /* a block is many pages */
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL;
    const uint64_t some[] = {0, 2}, more[] = {1, 3, 4};
    struct sfc_memory plan, extra, none, used;
    must(sfc_backend_open(TESTED, 2, &backend, &err), &err);
    must(sfc_head_memory(backend, &c, some, 2, &plan, &err), &err);
    must(sfc_head_memory(backend, &c, more, 3, &extra, &err), &err);
    must(sfc_head_memory(backend, &c, NULL, 0, &none, &err), &err);
    must(sfc_head_new(backend, &c, some, 2, &head, &err), &err);
    sfc_head_used(head, &used);
    assert_memory_equal(&used, &plan, sizeof used);
    must(sfc_head_add(head, more, 3, true, &err), &err);
    sfc_head_used(head, &used);
    assert_true(all_bytes(&used) > all_bytes(&plan));
    assert_true(all_bytes(&used) <= all_bytes(&plan) + all_bytes(&extra));
    assert_true(used.state_bytes == plan.state_bytes + extra.state_bytes);
    must(sfc_head_remove(head, more + 1, 1, &err), &err);
#ifdef TESTED_IS_CPU
    uint64_t before = used.state_bytes, block = (uint64_t)BLOCK * c.dim * 2 * sizeof(float);
    sfc_head_used(head, &used);
    assert_true(used.state_bytes <= before - block + 2 * 4096);
#endif
    must(sfc_head_remove(head, more, 1, &err), &err);
    must(sfc_head_remove(head, more + 2, 1, &err), &err);
    sfc_head_used(head, &used);
    assert_memory_equal(&used, &plan, sizeof used);
    must(sfc_head_remove(head, some, 2, &err), &err);
    sfc_head_used(head, &used);
    assert_memory_equal(&used, &none, sizeof used);
    sfc_head_free(head);
    sfc_backend_close(backend);
}

#ifndef TESTED_IS_CPU
/* Whatever came one by one and went again, what a step needs is there once. (What the CPU has once
 * is in whole pages.) */
static void test_blocks_that_come_share_scratch(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, DENSE);
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL;
    struct sfc_memory plan, used;
    const uint64_t all[] = {0, 1, 2, 3, 4};
    must(sfc_backend_open(TESTED, 2, &backend, &err), &err);
    must(sfc_head_new(backend, &c, all + 2, 1, &head, &err), &err);
    for (size_t i = 0; i < 5; i++)
        if (i != 2)
            must(sfc_head_add(head, all + i, 1, true, &err), &err);
    must(sfc_head_memory(backend, &c, all, 5, &plan, &err), &err);
    sfc_head_used(head, &used);
    assert_int_equal(used.step_bytes, plan.step_bytes);
    assert_int_equal(used.scratch_bytes, plan.scratch_bytes);
    must(sfc_head_remove(head, all + 1, 3, &err), &err);
    const uint64_t ends[] = {0, 4};
    must(sfc_head_memory(backend, &c, ends, 2, &plan, &err), &err);
    sfc_head_used(head, &used);
    assert_int_equal(used.step_bytes, plan.step_bytes);
    assert_int_equal(used.scratch_bytes, plan.scratch_bytes);
    sfc_head_free(head);
    sfc_backend_close(backend);
}
#endif

/* A block with numbers at the limit lets no step pass; when it has gone, whatever it still has in
 * memory doesn't count. */
static void test_a_removed_block_stops_no_step(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, DENSE);
    struct sfc_error err = {0};
    struct pair p;
    float huge[BLOCK * DIM];
    for (size_t i = 0; i < BLOCK * DIM; i++)
        huge[i] = 1e17f;
    pair_open(&p, TESTED, 1, 1, &c);
    struct rig *rig = &p.moving;
    must(sfc_head_write(rig->head[0], 1, SFC_PART_MOMENTUM, 0, BLOCK * DIM, huge, &err), &err);
    rig_read(rig, SFC_PART_VALUES, p.w[0]);
    for (uint32_t r = 0; r < BATCH; r++)
        p.labels[r] = r % BLOCK; /* of block 0 */
    rig_features(1, &c, p.labels, p.w[0], p.x);
    rig_forward(rig, 1, p.labels, p.x, &p.b);
    assert_false(rig_finite(rig, 10));
    must(sfc_head_remove(rig->head[0], &(const uint64_t){1}, 1, &err), &err);
    for (uint64_t t = 1; t <= 3; t++) {
        rig_forward(rig, t, p.labels, p.x, &p.b);
        rig_commit(rig, 10); /* asserts that it may */
    }
    pair_close(&p);
}

static void test_bad_calls_change_nothing(void **state)
{
    (void)state;
    struct sfc_head_config c = config_of(0, DENSE), other = c;
    struct sfc_error err = {0};
    struct pair p;
    struct sfc_head *staged = NULL, *strange = NULL;
    float row[DIM], rate = 0.1f;
    const uint64_t held[] = {3, 4}, order[] = {4, 3};
    const uint32_t outside = BLOCK;
    pair_open(&p, TESTED, 1, 2, &c);
    struct sfc_head *head = p.moving.head[0]; /* 0, 2, 4 */
    other.weight_decay = 0;
    must(sfc_head_new_blank(p.moving.backend, &other, held, 1, &strange, &err), &err);
    assert_int_equal(sfc_head_attach(head, strange, &err), SFC_EINVAL);
    must(sfc_head_new_blank(p.moving.backend, &c, held, 2, &staged, &err), &err);
    assert_int_equal(sfc_head_attach(head, staged, &err), SFC_EINVAL); /* 4 is there */
    must(sfc_head_remove(staged, held + 1, 1, &err), &err);
    must(sfc_head_write_rates(staged, 0, 1, &rate, &err), &err);
    assert_int_equal(sfc_head_attach(head, staged, &err), SFC_ESTATE);
    assert_int_equal(sfc_head_attach(head, head, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_add(head, held, 2, true, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_add(head, order, 2, true, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_remove(head, held, 2, &err), SFC_ENOTFOUND); /* not 3 */
    assert_int_equal(sfc_head_set_block_step(head, 4, UINT64_MAX, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_read_rows(head, 4, SFC_PART_VALUES, &outside, 1, row, &err),
                     SFC_EINVAL);
    row[0] = (float)NAN;
    assert_int_equal(
        sfc_head_write_rows(head, 4, SFC_PART_LAST_STEP, &(const uint32_t){1}, 1, row, &err),
        SFC_EINVAL);
    sfc_head_free(staged);
    sfc_head_free(strange);
    for (uint64_t t = 1; t <= 3; t++)
        pair_step(&p, t);
    compare_state(&p);
    pair_close(&p);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_have_the_bits_of_one_head),
        cmocka_unit_test(test_moves_change_no_bit),
        cmocka_unit_test(test_changed_rows_are_those_that_differ),
        cmocka_unit_test(test_lists_of_rows_are_read_and_written),
        cmocka_unit_test(test_tracking_ends_when_the_block_is_written),
        cmocka_unit_test(test_a_head_without_blocks_answers_zero),
        cmocka_unit_test(test_a_head_grows),
        cmocka_unit_test(test_memory_is_known_and_given_back),
#ifndef TESTED_IS_CPU
        cmocka_unit_test(test_blocks_that_come_share_scratch),
#endif
        cmocka_unit_test(test_a_removed_block_stops_no_step),
        cmocka_unit_test(test_bad_calls_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Dense objects whose blocks come and go answer like one that holds them all: vectors in ascending
 * order of the blocks, the same sums and the same state, bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/rng/philox.h"
#include "tests/lib/tested_backend.h"

enum { SIZE = 1000, BLOCK = 64, BLOCKS = 16, MICRO = 3, SLOTS = 5, OBJECTS = 3, STEPS = 10 };

static const struct sfc_dense_segment segments[] = {
    {0, 301, SFC_DENSE_WEIGHT, 0, 0.05}, /* an odd number of halves in a block */
    {301, 19, SFC_DENSE_WEIGHT_NO_DECAY, 0.25, 0},
    {320, 128, SFC_DENSE_STATISTIC, 1, 0}, /* whole blocks */
    {448, 500, SFC_DENSE_WEIGHT, 0, 0.1},
    {948, 52, SFC_DENSE_STATISTIC, 0, 0}, /* the short last block */
};

static struct sfc_dense_config config_of(enum sfc_optimizer optimizer, enum sfc_dtype sums)
{
    return (struct sfc_dense_config){
        .seed = 5,
        .size = SIZE,
        .block_size = BLOCK,
        .slots = SLOTS,
        .micro_batches = MICRO,
        .segments = segments,
        .segment_count = sizeof segments / sizeof *segments,
        .optimizer = optimizer,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.99,
        .epsilon = 1e-8,
        .weight_decay = 0.01,
        .statistic_momentum = 0.1,
        .sum_dtype = sums,
    };
}

static void must(int rc, const struct sfc_error *err)
{
    if (rc != SFC_OK)
        fail_msg("%s (%d)", err->text, rc);
}

/* One object with everything, and the same blocks dealt out over others. */
struct pair {
    struct sfc_backend *backend;
    struct sfc_dense_config config;
    struct sfc_dense *all, *dealt[OBJECTS];
    size_t owner[BLOCKS];
    bool loads; /* steps are gone through again from their sums */
};

static void open_pair(struct pair *p, enum sfc_optimizer optimizer, enum sfc_dtype sums)
{
    struct sfc_error err = {0};
    uint64_t blocks[BLOCKS], mine[BLOCKS];
    *p = (struct pair){.config = config_of(optimizer, sums)};
    must(sfc_backend_open(TESTED, 2, &p->backend, &err), &err);
    for (uint64_t b = 0; b < BLOCKS; b++) {
        blocks[b] = b;
        p->owner[b] = b % 2; /* the third holds nothing */
    }
    must(sfc_dense_new(p->backend, &p->config, blocks, BLOCKS, &p->all, &err), &err);
    for (size_t i = 0; i < OBJECTS; i++) {
        size_t n = 0;
        for (uint64_t b = 0; b < BLOCKS; b++)
            if (p->owner[b] == i)
                mine[n++] = b;
        must(sfc_dense_new(p->backend, &p->config, mine, n, &p->dealt[i], &err), &err);
    }
}

static void close_pair(struct pair *p)
{
    sfc_dense_free(p->all);
    for (size_t i = 0; i < OBJECTS; i++)
        sfc_dense_free(p->dealt[i]);
    sfc_backend_close(p->backend);
}

static uint64_t length_of(uint64_t block)
{
    return block == BLOCKS - 1 ? SIZE - (BLOCKS - 1) * BLOCK : BLOCK;
}

static void copy_block(struct pair *p, struct sfc_dense *from, struct sfc_dense *to, uint64_t block)
{
    static const enum sfc_block_part parts[] = {SFC_PART_VALUES, SFC_PART_MOMENTUM,
                                                SFC_PART_SECOND_MOMENT};
    struct sfc_error err = {0};
    float values[BLOCK];
    for (size_t i = 0; i < (p->config.optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2); i++) {
        must(sfc_dense_read(from, block, parts[i], 0, length_of(block), values, &err), &err);
        must(sfc_dense_write(to, block, parts[i], 0, length_of(block), values, &err), &err);
    }
}

static void move(struct pair *p, const uint64_t *blocks, size_t count, size_t to)
{
    struct sfc_error err = {0};
    struct sfc_dense *staged = NULL, *from = p->dealt[p->owner[blocks[0]]];
    must(sfc_dense_new_blank(p->backend, &p->config, blocks, count, &staged, &err), &err);
    for (size_t i = 0; i < count; i++) {
        copy_block(p, from, staged, blocks[i]);
        p->owner[blocks[i]] = to;
    }
    must(sfc_dense_attach(p->dealt[to], staged, &err), &err);
    must(sfc_dense_remove(from, blocks, count, &err), &err);
}

/* An object's part of a vector of all. */
static void take(const struct pair *p, size_t object, const float *whole, float *out)
{
    uint64_t at = 0;
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (p->owner[b] == object) {
            memcpy(out + at, whole + b * BLOCK, length_of(b) * sizeof *out);
            at += length_of(b);
        }
    assert_int_equal(at, sfc_dense_length(p->dealt[object]));
}

static struct sfc_dense_packing packing_of(const struct pair *p, size_t object, uint64_t *blocks,
                                           size_t *count)
{
    *count = 0;
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (p->owner[b] == object)
            blocks[(*count)++] = b;
    return sfc_dense_packing_of(&p->config, blocks, *count);
}

static const char *floats_of(const struct sfc_dense_packing *packing, const void *sums)
{
    return (const char *)sums + (packing->halves * sizeof(uint16_t) + 7) / 8 * 8;
}

/* The packed sums of an object are those of all blocks, without the others' blocks. */
static void compare_sums(struct pair *p, size_t object, const void *all, const void *some)
{
    uint64_t mine[BLOCKS], every[BLOCKS];
    size_t n = 0;
    struct sfc_dense_packing packing = packing_of(p, object, mine, &n), at = {0}, in = {0};
    for (uint64_t b = 0; b < BLOCKS; b++)
        every[b] = b;
    struct sfc_dense_packing total = sfc_dense_packing_of(&p->config, every, BLOCKS);
    for (uint64_t b = 0; b < BLOCKS; b++) {
        struct sfc_dense_packing one = sfc_dense_packing_of(&p->config, &b, 1);
        if (p->owner[b] == object) {
            assert_memory_equal((const uint16_t *)all + at.halves,
                                (const uint16_t *)some + in.halves, one.halves * 2);
            assert_memory_equal(floats_of(&total, all) + 4 * at.floats,
                                floats_of(&packing, some) + 4 * in.floats, one.floats * 4);
            in.halves += one.halves;
            in.floats += one.floats;
        }
        at.halves += one.halves;
        at.floats += one.floats;
    }
    for (const char *c = (const char *)some + 2 * packing.halves; c < floats_of(&packing, some);
         c++)
        assert_int_equal(*c, 0);
}

static void prepare(struct pair *p, uint64_t t, const uint32_t *slots)
{
    struct sfc_error err = {0};
    struct sfc_dense_sum all[BLOCKS], some[BLOCKS];
    static uint64_t sums[SIZE / 2 + 8], mine[SIZE / 2 + 8];
    must(sfc_dense_prepare(p->all, t, 0.1, slots, all, &err), &err);
    must(sfc_dense_sums(p->all, sums, &err), &err);
    for (size_t i = 0; i < OBJECTS; i++) {
        size_t n = 0;
        memset(mine, 0xff, sizeof mine);
        must(sfc_dense_prepare(p->dealt[i], t, 0.1, slots, some, &err), &err);
        for (uint64_t b = 0; b < BLOCKS; b++)
            if (p->owner[b] == i) {
                assert_int_equal(some[n].block, b);
                assert_true(some[n].finite && all[b].finite);
                assert_memory_equal(&some[n].sum_of_squares, &all[b].sum_of_squares,
                                    sizeof(double));
                n++;
            }
        must(sfc_dense_sums(p->dealt[i], mine, &err), &err);
        compare_sums(p, i, sums, mine);
        if (p->loads)
            must(sfc_dense_load(p->dealt[i], t, mine, &err), &err);
    }
}

static void compare_values(struct pair *p)
{
    struct sfc_error err = {0};
    float all[SIZE], some[SIZE], want[SIZE];
    must(sfc_dense_pull(p->all, all, &err), &err);
    for (size_t i = 0; i < OBJECTS; i++) {
        take(p, i, all, want);
        must(sfc_dense_pull(p->dealt[i], some, &err), &err);
        assert_memory_equal(some, want, sfc_dense_length(p->dealt[i]) * sizeof *some);
    }
}

static void step(struct pair *p, uint64_t t)
{
    static const uint32_t slots[MICRO] = {4, 0, 2};
    struct sfc_error err = {0};
    float slice[SIZE], mine[SIZE];
    for (uint32_t j = 0; j < MICRO; j++) {
        sfc_random_normals(t, SFC_STREAM_SYNTHETIC, j, 0, SIZE, slice);
        must(sfc_dense_push(p->all, slots[j], slice, &err), &err);
        for (size_t i = 0; i < OBJECTS; i++) {
            take(p, i, slice, mine);
            must(sfc_dense_push(p->dealt[i], slots[j], mine, &err), &err);
        }
    }
    prepare(p, t, slots);
    must(sfc_dense_commit(p->all, 0.5, 0.1, &err), &err);
    for (size_t i = 0; i < OBJECTS; i++)
        must(sfc_dense_commit(p->dealt[i], 0.5, 0.1, &err), &err);
    compare_values(p);
}

static void run(enum sfc_optimizer optimizer, enum sfc_dtype sums, bool loads)
{
    struct pair p;
    open_pair(&p, optimizer, sums);
    p.loads = loads;
    for (uint64_t t = 1; t <= STEPS; t++) {
        step(&p, t);
        if (t == 3)
            move(&p, (const uint64_t[]){0, 4, 14}, 3, 1); /* 1: two parts, interleaved */
        if (t == 4)
            move(&p, (const uint64_t[]){1, 4, 15}, 3, 2); /* of both parts; 2: one */
        if (t == 6)
            move(&p, (const uint64_t[]){4}, 1, 1); /* where it was before */
        if (t == 7)
            move(&p, (const uint64_t[]){2, 6, 8, 10, 12}, 5, 2); /* 0: nothing */
        if (t == 8)
            move(&p, (const uint64_t[]){3, 5, 7}, 3, 0);
    }
    close_pair(&p);
}

static void test_moves_change_no_bit(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++)
        run(i & 1 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD, i & 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32,
            i & 4);
}

static void test_what_was_pushed_is_forgotten(void **state)
{
    (void)state;
    static const uint32_t slots[MICRO] = {0, 1, 2};
    struct sfc_error err = {0};
    struct sfc_dense_sum sums[BLOCKS];
    struct pair p;
    float slice[SIZE] = {0};
    open_pair(&p, SFC_OPTIMIZER_SGD, SFC_DTYPE_F32);
    for (uint32_t j = 0; j < MICRO; j++)
        must(sfc_dense_push(p.dealt[0], j, slice, &err), &err);
    must(sfc_dense_prepare(p.dealt[0], 1, 0.1, slots, sums, &err), &err);
    move(&p, (const uint64_t[]){2}, 1, 1);
    assert_int_equal(sfc_dense_commit(p.dealt[0], 1, 0.1, &err), SFC_ESTATE);
    assert_int_equal(sfc_dense_prepare(p.dealt[0], 1, 0.1, slots, sums, &err), SFC_ESTATE);
    step(&p, 1);
    close_pair(&p);
}

static void test_bad_calls_change_nothing(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct pair p;
    struct sfc_dense *staged = NULL, *strange = NULL;
    const uint64_t held[] = {3, 4};
    open_pair(&p, SFC_OPTIMIZER_SGD, SFC_DTYPE_F32);
    struct sfc_dense_config other = p.config;
    other.momentum = 0.5;
    must(sfc_dense_new_blank(p.backend, &other, held, 1, &strange, &err), &err);
    assert_int_equal(sfc_dense_attach(p.dealt[0], strange, &err), SFC_EINVAL);
    must(sfc_dense_new_blank(p.backend, &p.config, held, 2, &staged, &err), &err);
    assert_int_equal(sfc_dense_attach(p.dealt[0], staged, &err), SFC_EINVAL); /* 4 is there */
    assert_int_equal(sfc_dense_attach(p.dealt[0], p.dealt[0], &err), SFC_EINVAL);
    assert_int_equal(sfc_dense_add(p.dealt[0], held, 2, true, &err), SFC_EINVAL);
    assert_int_equal(sfc_dense_remove(p.dealt[0], held, 2, &err), SFC_ENOTFOUND); /* not 3 */
    assert_int_equal(sfc_dense_set_block_step(p.dealt[0], 4, UINT64_MAX, &err), SFC_EINVAL);
    sfc_dense_free(staged);
    sfc_dense_free(strange);
    step(&p, 1);
    close_pair(&p);
}

static uint64_t all_bytes(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

static void test_memory_is_known_and_given_back(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_memory plan, extra, none, used;
    struct pair p;
    const uint64_t some[] = {0, 2}, more[] = {1, 3, 4};
    struct sfc_dense *dense = NULL;
    open_pair(&p, SFC_OPTIMIZER_SGD, SFC_DTYPE_F32);
    must(sfc_dense_memory(p.backend, &p.config, some, 2, &plan, &err), &err);
    must(sfc_dense_memory(p.backend, &p.config, more, 3, &extra, &err), &err);
    must(sfc_dense_memory(p.backend, &p.config, NULL, 0, &none, &err), &err);
    must(sfc_dense_new(p.backend, &p.config, some, 2, &dense, &err), &err);
    sfc_dense_used(dense, &used);
    assert_memory_equal(&used, &plan, sizeof used);
    must(sfc_dense_add(dense, more, 3, false, &err), &err);
    sfc_dense_used(dense, &used);
    uint64_t vector = 3 * BLOCK * sizeof(float);
    assert_true(all_bytes(&used) <= all_bytes(&plan) + all_bytes(&extra) + vector);
    assert_true(used.state_bytes == plan.state_bytes + extra.state_bytes);
    must(sfc_dense_remove(dense, more, 3, &err), &err);
    sfc_dense_used(dense, &used);
    assert_memory_equal(&used, &plan, sizeof used);
    must(sfc_dense_remove(dense, some, 2, &err), &err);
    sfc_dense_used(dense, &used);
    assert_memory_equal(&used, &none, sizeof used);
    assert_int_equal(sfc_dense_length(dense), 0);
    sfc_dense_free(dense);
    close_pair(&p);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moves_change_no_bit),
        cmocka_unit_test(test_what_was_pushed_is_forgotten),
        cmocka_unit_test(test_bad_calls_change_nothing),
        cmocka_unit_test(test_memory_is_known_and_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

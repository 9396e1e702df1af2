/* Backbone blocks of every backend against the reference, and the same bits for every placement and
 * thread count. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/rng/philox.h"

static const char *const backends[] = {"reference", "cpu"};
#define BACKENDS (sizeof backends / sizeof *backends)

enum { SIZE = 1000, BLOCK = 64, BLOCKS = 16, MICRO = 5, SLOTS = 7, MAX_PARTS = BLOCKS };

static const struct sfc_dense_segment segments[] = {
    {0, 300, SFC_DENSE_WEIGHT, 0, 0.05}, /* ends inside a block */
    {300, 1, SFC_DENSE_WEIGHT_NO_DECAY, 1, 0},
    {301, 19, SFC_DENSE_WEIGHT_NO_DECAY, 0.25, 0},
    {320, 128, SFC_DENSE_STATISTIC, 1, 0}, /* whole blocks */
    {448, 500, SFC_DENSE_WEIGHT, 0, 0.1},
    {948, 52, SFC_DENSE_STATISTIC, 0, 0}, /* the short last block */
};

static struct sfc_dense_config config(void)
{
    return (struct sfc_dense_config){
        .seed = 5,
        .size = SIZE,
        .block_size = BLOCK,
        .slots = SLOTS,
        .micro_batches = MICRO,
        .segments = segments,
        .segment_count = sizeof segments / sizeof *segments,
        .momentum = 0.9,
        .weight_decay = 0.01,
        .statistic_momentum = 0.1,
    };
}

/* Blocks dealt out to several objects, driven with vectors of the whole backbone. */
struct parts {
    size_t count;
    struct sfc_backend *backend;
    struct sfc_dense *dense[MAX_PARTS];
};

struct sums {
    struct sfc_dense_sum block[BLOCKS];
};

static uint64_t block_length(uint64_t block)
{
    return block == BLOCKS - 1 ? SIZE - (BLOCKS - 1) * BLOCK : BLOCK;
}

static void open_parts(struct parts *p, const char *backend, unsigned threads, size_t count)
{
    struct sfc_error err = {0};
    struct sfc_dense_config c = config();
    *p = (struct parts){.count = count};
    assert_int_equal(sfc_backend_open(backend, threads, &p->backend, &err), SFC_OK);
    for (size_t i = 0; i < count; i++) {
        uint64_t blocks[BLOCKS];
        size_t n = 0;
        for (uint64_t b = i; b < BLOCKS; b += count) {
            blocks[n++] = b;
        }
        assert_int_equal(sfc_dense_new(p->backend, &c, blocks, n, &p->dense[i], &err), SFC_OK);
    }
}

static void close_parts(struct parts *p)
{
    for (size_t i = 0; i < p->count; i++) {
        sfc_dense_free(p->dense[i]);
    }
    sfc_backend_close(p->backend);
}

/* Copies between the whole vector and the part's vector in block order. */
static void split(const struct parts *p, size_t part, float *whole, float *local, bool out)
{
    uint64_t at = 0;
    for (uint64_t b = part; b < BLOCKS; b += p->count) {
        float *from = out ? local + at : whole + b * BLOCK;
        float *to = out ? whole + b * BLOCK : local + at;
        memcpy(to, from, block_length(b) * sizeof *to);
        at += block_length(b);
    }
    assert_int_equal(at, sfc_dense_length(p->dense[part]));
}

static void push(struct parts *p, uint32_t slot, float *whole)
{
    for (size_t i = 0; i < p->count; i++) {
        float local[SIZE];
        split(p, i, whole, local, false);
        assert_int_equal(sfc_dense_push(p->dense[i], slot, local, NULL), SFC_OK);
    }
}

static void pull(struct parts *p, float *whole)
{
    for (size_t i = 0; i < p->count; i++) {
        float local[SIZE];
        assert_int_equal(sfc_dense_pull(p->dense[i], local, NULL), SFC_OK);
        split(p, i, whole, local, true);
    }
}

static void prepare(struct parts *p, const uint32_t *slots, struct sums *out)
{
    for (size_t i = 0; i < p->count; i++) {
        struct sfc_dense_sum sums[BLOCKS];
        assert_int_equal(sfc_dense_prepare(p->dense[i], slots, sums, NULL), SFC_OK);
        size_t n = 0;
        for (uint64_t b = i; b < BLOCKS; b += p->count, n++) {
            assert_int_equal(sums[n].block, b);
            out->block[b] = sums[n];
        }
    }
}

static void commit(struct parts *p, double clip, double lr)
{
    for (size_t i = 0; i < p->count; i++) {
        assert_int_equal(sfc_dense_commit(p->dense[i], clip, lr, NULL), SFC_OK);
    }
}

static void read_part(struct parts *p, enum sfc_block_part part, float *whole)
{
    for (uint64_t b = 0; b < BLOCKS; b++) {
        assert_int_equal(sfc_dense_read(p->dense[b % p->count], b, part, 0, block_length(b),
                                        whole + b * BLOCK, NULL),
                         SFC_OK);
    }
}

static void slice_of(uint64_t t, uint64_t j, float *out)
{
    sfc_random_normals(t, SFC_STREAM_SYNTHETIC, j, 0, SIZE, out);
}

/* Slots in use by step t, in no particular order. */
static void slots_of(uint64_t t, uint32_t *slots)
{
    for (uint32_t j = 0; j < MICRO; j++) {
        slots[j] = (uint32_t)((3 * j + t) % SLOTS);
    }
}

static void step(struct parts *p, uint64_t t, struct sums *sums)
{
    uint32_t slots[MICRO];
    float slice[SIZE];
    slots_of(t, slots);
    for (uint32_t j = MICRO; j-- > 0;) {
        slice_of(t, j, slice);
        push(p, slots[j], slice);
    }
    prepare(p, slots, sums);
    commit(p, 0.5 + 0.1 * (double)t, 0.1);
}

static void test_initial_values(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct parts p;
        float v[SIZE], m[SIZE];
        open_parts(&p, backends[b], 1, 3);
        pull(&p, v);
        read_part(&p, SFC_PART_MOMENTUM, m);
        double square = 0;
        for (size_t i = 0; i < SIZE; i++) {
            assert_true(m[i] == 0);
            struct sfc_philox words = sfc_random(5, SFC_STREAM_DENSE_INIT, 0, i / 4);
            float normal[4];
            sfc_normal4(words, normal);
            if (i < 300) {
                assert_true(v[i] == 0.05f * normal[i % 4]);
                square += (double)v[i] * (double)v[i];
            } else if (i == 300 || (i >= 320 && i < 448)) {
                assert_true(v[i] == 1);
            } else if (i < 320) {
                assert_true(v[i] == 0.25f);
            } else if (i >= 948) {
                assert_true(v[i] == 0);
            }
        }
        assert_true(fabs(sqrt(square / 300) - 0.05) < 0.01);
        close_parts(&p);
    }
}

/* Against the equations, written out here in double over the whole vector. */
static void test_steps_follow_the_equations(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct parts p;
        static double w[SIZE], m[SIZE], sum[SIZE];
        float got[SIZE], slice[SIZE];
        open_parts(&p, backends[b], 2, 2);
        pull(&p, got);
        for (size_t i = 0; i < SIZE; i++) {
            w[i] = got[i];
            m[i] = 0;
        }
        for (uint64_t t = 1; t <= 5; t++) {
            struct sums sums;
            double squares[BLOCKS] = {0};
            step(&p, t, &sums);
            memset(sum, 0, sizeof sum);
            for (uint64_t j = 0; j < MICRO; j++) {
                slice_of(t, j, slice);
                for (size_t i = 0; i < SIZE; i++) {
                    sum[i] += slice[i];
                }
            }
            for (size_t i = 0; i < SIZE; i++) {
                bool statistic = (i >= 320 && i < 448) || i >= 948;
                bool decays = i < 300 || (i >= 448 && i < 948);
                if (statistic) {
                    w[i] = 0.9 * w[i] + 0.1 * sum[i] / MICRO;
                } else {
                    squares[i / BLOCK] += sum[i] * sum[i];
                    m[i] =
                        0.9 * m[i] + (0.5 + 0.1 * (double)t) * sum[i] + (decays ? 0.01 * w[i] : 0);
                    w[i] -= 0.1 * m[i];
                }
            }
            for (size_t k = 0; k < BLOCKS; k++) {
                assert_true(sums.block[k].finite);
                assert_true(fabs(sums.block[k].sum_of_squares - squares[k]) <= 1e-6 * squares[k]);
            }
            pull(&p, got);
            for (size_t i = 0; i < SIZE; i++) {
                assert_true(fabs((double)got[i] - w[i]) < 1e-5);
            }
            read_part(&p, SFC_PART_MOMENTUM, got);
            for (size_t i = 0; i < SIZE; i++) {
                assert_true(fabs((double)got[i] - m[i]) < 1e-4);
            }
        }
        close_parts(&p);
    }
}

static void test_bits_never_depend_on_placement_or_threads(void **state)
{
    (void)state;
    static const struct {
        unsigned threads;
        size_t parts;
    } ways[] = {{1, 1}, {2, 1}, {3, 1}, {1, 2}, {3, 5}, {1, BLOCKS}};
    for (size_t b = 0; b < BACKENDS; b++) {
        static float want[2][SIZE], got[2][SIZE];
        static struct sums want_sums, sums;
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            struct parts p;
            open_parts(&p, backends[b], ways[w].threads, ways[w].parts);
            for (uint64_t t = 1; t <= 4; t++) {
                step(&p, t, &sums);
            }
            pull(&p, got[0]);
            read_part(&p, SFC_PART_MOMENTUM, got[1]);
            close_parts(&p);
            if (w == 0) {
                memcpy(want, got, sizeof got);
                want_sums = sums;
            }
            assert_memory_equal(want, got, sizeof got);
            for (size_t k = 0; k < BLOCKS; k++) {
                assert_true(sums.block[k].sum_of_squares == want_sums.block[k].sum_of_squares);
            }
        }
    }
}

static void test_prepare_reports_what_is_not_finite(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        static const size_t places[] = {5, 300, 330, 999};
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            struct parts p;
            float slice[SIZE], before[SIZE], after[SIZE];
            uint32_t slots[MICRO];
            struct sums sums;
            open_parts(&p, backends[b], 2, 2);
            pull(&p, before);
            slots_of(1, slots);
            for (uint32_t j = 0; j < MICRO; j++) {
                slice_of(1, j, slice);
                slice[places[k]] = j == 3 ? (k % 2 ? (float)NAN : (float)INFINITY) : 1;
                push(&p, slots[j], slice);
            }
            prepare(&p, slots, &sums);
            for (size_t i = 0; i < BLOCKS; i++) {
                assert_int_equal(sums.block[i].finite, i != places[k] / BLOCK);
            }
            pull(&p, after);
            assert_memory_equal(before, after, sizeof before); /* prepare changes nothing */
            step(&p, 2, &sums); /* the step is skipped; the next one is healthy */
            for (size_t i = 0; i < BLOCKS; i++) {
                assert_true(sums.block[i].finite);
            }
            close_parts(&p);
        }
    }
}

static void test_state_can_be_moved(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct parts one, other;
        struct sums sums;
        static float v[SIZE], m[SIZE], w[SIZE];
        open_parts(&one, "cpu", 1, 2);
        open_parts(&other, backends[b], 1, 5);
        step(&one, 1, &sums);
        read_part(&one, SFC_PART_VALUES, v);
        read_part(&one, SFC_PART_MOMENTUM, m);
        for (uint64_t k = 0; k < BLOCKS; k++) {
            struct sfc_dense *d = other.dense[k % other.count];
            uint64_t n = block_length(k), half = n / 2;
            float *at = v + k * BLOCK, *mat = m + k * BLOCK;
            assert_int_equal(
                sfc_dense_write(d, k, SFC_PART_VALUES, half, n - half, at + half, NULL), SFC_OK);
            assert_int_equal(sfc_dense_write(d, k, SFC_PART_VALUES, 0, half, at, NULL), SFC_OK);
            assert_int_equal(sfc_dense_write(d, k, SFC_PART_MOMENTUM, 0, n, mat, NULL), SFC_OK);
        }
        pull(&other, w);
        assert_memory_equal(v, w, sizeof v);
        read_part(&other, SFC_PART_MOMENTUM, w);
        assert_memory_equal(m, w, sizeof m);
        close_parts(&one);
        close_parts(&other);
    }
}

/* Blocks copied at different steps, then the steps again from the recorded sums. */
static void test_copies_of_different_steps_meet(void **state)
{
    (void)state;
    enum { STEPS = 6 };
    static float sum[STEPS + 1][SIZE], v[STEPS + 1][SIZE], m[STEPS + 1][SIZE], got[SIZE];
    struct parts p;
    struct sums sums;
    uint32_t slots[MICRO];
    open_parts(&p, "cpu", 2, 1);
    for (uint64_t t = 0; t <= STEPS; t++) {
        if (t) {
            slots_of(t, slots);
            for (uint32_t j = 0; j < MICRO; j++) {
                slice_of(t, j, got);
                push(&p, slots[j], got);
            }
            prepare(&p, slots, &sums);
            assert_int_equal(sfc_dense_sums(p.dense[0], sum[t], NULL), SFC_OK);
            commit(&p, 0.5 + 0.1 * (double)t, 0.1);
        }
        read_part(&p, SFC_PART_VALUES, v[t]);
        read_part(&p, SFC_PART_MOMENTUM, m[t]);
    }
    close_parts(&p);
    open_parts(&p, "cpu", 1, 1);
    struct sfc_dense *d = p.dense[0];
    for (uint64_t b = 0; b < BLOCKS; b++) {
        uint64_t stamp = b * 5 % (STEPS + 1);
        assert_int_equal(sfc_dense_set_block_step(d, b, stamp, NULL), SFC_OK);
        assert_int_equal(
            sfc_dense_write(d, b, SFC_PART_VALUES, 0, block_length(b), v[stamp] + b * BLOCK, NULL),
            SFC_OK);
        assert_int_equal(sfc_dense_write(d, b, SFC_PART_MOMENTUM, 0, block_length(b),
                                         m[stamp] + b * BLOCK, NULL),
                         SFC_OK);
    }
    for (uint64_t t = 1; t <= STEPS; t++) {
        assert_int_equal(sfc_dense_load(d, t, sum[t], NULL), SFC_OK);
        commit(&p, 0.5 + 0.1 * (double)t, 0.1);
    }
    read_part(&p, SFC_PART_VALUES, got);
    assert_memory_equal(got, v[STEPS], sizeof got);
    read_part(&p, SFC_PART_MOMENTUM, got);
    assert_memory_equal(got, m[STEPS], sizeof got);
    sum[1][3] = (float)NAN;
    assert_int_equal(sfc_dense_load(d, STEPS + 1, sum[1], NULL), SFC_EINVAL);
    assert_int_equal(sfc_dense_sums(d, got, NULL), SFC_ESTATE);
    assert_int_equal(sfc_dense_set_block_step(d, BLOCKS, 1, NULL), SFC_ENOTFOUND);
    for (uint64_t b = 0; b < BLOCKS; b++) { /* sums of a prepare concern every block */
        assert_int_equal(sfc_dense_set_block_step(d, b, 100, NULL), SFC_OK);
    }
    step(&p, STEPS + 1, &sums);
    pull(&p, got);
    assert_memory_not_equal(got, v[STEPS], sizeof got);
    close_parts(&p);
}

static void test_bad_calls_are_refused(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct parts p;
        struct sfc_error err = {0};
        struct sfc_dense_sum sums[BLOCKS];
        static float slice[SIZE];
        uint32_t slots[MICRO] = {0, 1, 2, 3, 4};
        open_parts(&p, backends[b], 1, 1);
        struct sfc_dense *d = p.dense[0];
        assert_int_equal(sfc_dense_push(d, SLOTS, slice, &err), SFC_EINVAL);
        assert_int_equal(sfc_dense_prepare(d, slots, sums, &err), SFC_ESTATE);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_ESTATE);
        for (uint32_t j = 0; j < MICRO; j++) {
            push(&p, j, slice);
        }
        slots[4] = 3;
        assert_int_equal(sfc_dense_prepare(d, slots, sums, &err), SFC_EINVAL);
        slots[4] = 4;
        assert_int_equal(sfc_dense_prepare(d, slots, sums, &err), SFC_OK);
        assert_int_equal(sfc_dense_commit(d, (double)NAN, 0.1, &err), SFC_EINVAL);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_OK);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_ESTATE);
        assert_int_equal(sfc_dense_read(d, BLOCKS, SFC_PART_VALUES, 0, 1, slice, &err),
                         SFC_ENOTFOUND);
        assert_int_equal(sfc_dense_read(d, BLOCKS - 1, SFC_PART_VALUES, 40, 1, slice, &err),
                         SFC_EINVAL);
        slice[0] = (float)NAN;
        assert_int_equal(sfc_dense_write(d, 0, SFC_PART_VALUES, 0, 1, slice, &err), SFC_EINVAL);
        close_parts(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_steps_follow_the_equations),
        cmocka_unit_test(test_bits_never_depend_on_placement_or_threads),
        cmocka_unit_test(test_prepare_reports_what_is_not_finite),
        cmocka_unit_test(test_state_can_be_moved),
        cmocka_unit_test(test_copies_of_different_steps_meet),
        cmocka_unit_test(test_bad_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

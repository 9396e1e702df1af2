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
#include "tests/lib/tested_backend.h"

static const char *const backends[] = {"reference", TESTED};
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

static enum sfc_dtype sum_dtype; /* of the group of tests at work */

static struct sfc_dense_config config(enum sfc_optimizer optimizer)
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
        .sum_dtype = sum_dtype,
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

static void open_parts(struct parts *p, const char *backend, unsigned threads, size_t count,
                       enum sfc_optimizer optimizer)
{
    struct sfc_error err = {0};
    struct sfc_dense_config c = config(optimizer);
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

static void prepare(struct parts *p, uint64_t t, const uint32_t *slots, struct sums *out)
{
    for (size_t i = 0; i < p->count; i++) {
        struct sfc_dense_sum sums[BLOCKS];
        assert_int_equal(sfc_dense_prepare(p->dense[i], t, 0.1, slots, sums, NULL), SFC_OK);
        size_t n = 0;
        for (uint64_t b = i; b < BLOCKS; b += p->count, n++) {
            assert_int_equal(sums[n].block, b);
            out->block[b] = sums[n];
        }
    }
}

static void commit(struct parts *p, double clip)
{
    for (size_t i = 0; i < p->count; i++) {
        assert_int_equal(sfc_dense_commit(p->dense[i], clip, 0.1, NULL), SFC_OK);
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

/* Beside sums of bf16 in units of 2^-10: then sums of f32 are exact, and many of them lie in the
 * middle between two numbers of bf16. */
static void slice_of(uint64_t t, uint64_t j, float *out)
{
    sfc_random_normals(t, SFC_STREAM_SYNTHETIC, j, 0, SIZE, out);
    for (size_t i = 0; sum_dtype == SFC_DTYPE_BF16 && i < SIZE; i++) {
        out[i] = rintf(1024 * out[i]) / 1024;
    }
}

/* The nearest number of 8 significant bits, ties to even. */
static double rounded(double v)
{
    int exponent;
    double mantissa = frexp(v, &exponent);
    return ldexp(rint(256 * mantissa), exponent - 8);
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
    prepare(p, t, slots, sums);
    commit(p, 0.5 + 0.1 * (double)t);
}

static void test_initial_values(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct parts p;
        float v[SIZE], m[SIZE];
        open_parts(&p, backends[b], 1, 3, SFC_OPTIMIZER_SGD);
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

/* One element by the equations of kernels/backend.h, in double. */
static void by_hand(enum sfc_optimizer optimizer, uint64_t t, double g, double decay, double *w,
                    double *m, double *v)
{
    if (optimizer == SFC_OPTIMIZER_SGD) {
        *m = 0.9 * *m + g + decay * *w;
        *w -= 0.1 * *m;
        return;
    }
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.99 * *v + 0.01 * g * g;
    double first = *m / (1 - pow(0.9, (double)t)), second = *v / (1 - pow(0.99, (double)t));
    *w -= 0.1 * (first / (sqrt(second) + 1e-8) + decay * *w);
}

/* Against the equations, written out here in double over the whole vector. Steps 4 to 6 are missing
 * as skipped ones are. */
static void follow_the_equations(const char *backend, enum sfc_optimizer optimizer)
{
    struct parts p;
    static double w[SIZE], m[SIZE], v[SIZE], sum[SIZE];
    float got[SIZE], slice[SIZE];
    open_parts(&p, backend, 2, 2, optimizer);
    pull(&p, got);
    for (size_t i = 0; i < SIZE; i++) {
        w[i] = got[i];
        m[i] = v[i] = 0;
    }
    for (uint64_t t = 1; t <= 9; t += t == 3 ? 4 : 1) {
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
                sum[i] = sum_dtype == SFC_DTYPE_BF16 ? rounded(sum[i]) : sum[i];
                squares[i / BLOCK] += sum[i] * sum[i];
                by_hand(optimizer, t, (0.5 + 0.1 * (double)t) * sum[i], decays ? 0.01 : 0, &w[i],
                        &m[i], &v[i]);
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
        if (optimizer == SFC_OPTIMIZER_ADAMW) {
            read_part(&p, SFC_PART_SECOND_MOMENT, got);
        }
        for (size_t i = 0; optimizer == SFC_OPTIMIZER_ADAMW && i < SIZE; i++) {
            assert_true(fabs((double)got[i] - v[i]) <= 1e-5 * v[i]);
        }
    }
    close_parts(&p);
}

static void test_steps_follow_the_equations(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        follow_the_equations(backends[b], SFC_OPTIMIZER_SGD);
        follow_the_equations(backends[b], SFC_OPTIMIZER_ADAMW);
    }
}

/* A rate and gradients that would overflow are found at prepare; the block is named, the state
 * stays, and a sane step goes on. */
static void overflow_is_found(const char *backend, enum sfc_optimizer optimizer, bool written)
{
    struct parts p;
    struct sums sums;
    uint32_t slots[MICRO];
    float slice[SIZE], before[SIZE], after[SIZE];
    double lr[] = {1e38, 0.1};
    open_parts(&p, backend, 2, 2, optimizer);
    step(&p, 1, &sums);
    pull(&p, before);
    for (uint64_t k = 0; written && k < BLOCKS; k++) { /* so that the state has to be looked at */
        assert_int_equal(sfc_dense_write(p.dense[k % 2], k, SFC_PART_VALUES, 0, block_length(k),
                                         before + k * BLOCK, NULL),
                         SFC_OK);
    }
    for (int huge = 0; huge < 2; huge++) { /* a huge rate, then a huge gradient in block 0 */
        slots_of(2, slots);
        for (uint32_t j = 0; j < MICRO; j++) {
            slice_of(2, j, slice);
            slice[7] = huge ? 1e37f : slice[7];
            push(&p, slots[j], slice);
        }
        for (size_t i = 0; i < p.count; i++) {
            struct sfc_dense_sum part[BLOCKS];
            assert_int_equal(sfc_dense_prepare(p.dense[i], 2, lr[huge], slots, part, NULL), SFC_OK);
            for (uint64_t b = i, n = 0; b < BLOCKS; b += p.count, n++) {
                bool statistics = b * BLOCK >= 320 && (b + 1) * BLOCK <= 448;
                statistics = statistics || b * BLOCK >= 948;
                bool fits = huge ? b > 0 : statistics;
                assert_int_equal(part[n].finite, fits);
            }
        }
    }
    pull(&p, after);
    assert_memory_equal(before, after, sizeof before);
    step(&p, 3, &sums);
    for (size_t k = 0; k < BLOCKS; k++) {
        assert_true(sums.block[k].finite);
    }
    close_parts(&p);
}

static void test_overflow_is_found_at_prepare(void **state)
{
    (void)state;
    for (size_t b = 0; b < 4 * BACKENDS; b++) {
        overflow_is_found(backends[b / 4], b % 2 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD,
                          b / 2 % 2);
    }
}

static void test_memory_is_that_of_the_state(void **state)
{
    (void)state;
    uint64_t blocks[BLOCKS];
    struct sfc_memory memory[2];
    for (uint64_t k = 0; k < BLOCKS; k++) {
        blocks[k] = k;
    }
    for (size_t b = 0; b < BACKENDS; b++) {
        struct sfc_backend *backend;
        size_t bytes = !strcmp(backends[b], "reference") ? sizeof(double) : sizeof(float);
        assert_int_equal(sfc_backend_open(backends[b], 1, &backend, NULL), SFC_OK);
        for (int o = 0; o < 2; o++) {
            struct sfc_dense_config c = config(o ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD);
            assert_int_equal(sfc_dense_memory(backend, &c, blocks, BLOCKS, &memory[o], NULL),
                             SFC_OK);
        }
        assert_int_equal(memory[0].state_bytes, 2 * SIZE * bytes);
        assert_int_equal(memory[1].state_bytes, 3 * SIZE * bytes);
        sfc_backend_close(backend);
    }
}

static void bits_of(const char *backend, unsigned threads, size_t parts,
                    enum sfc_optimizer optimizer, float out[3][SIZE], struct sums *sums)
{
    struct parts p;
    open_parts(&p, backend, threads, parts, optimizer);
    for (uint64_t t = 1; t <= 4; t++) {
        step(&p, t, sums);
    }
    pull(&p, out[0]);
    read_part(&p, SFC_PART_MOMENTUM, out[1]);
    if (optimizer == SFC_OPTIMIZER_ADAMW) {
        read_part(&p, SFC_PART_SECOND_MOMENT, out[2]);
    }
    close_parts(&p);
}

static void test_bits_never_depend_on_placement_or_threads(void **state)
{
    (void)state;
    static const struct {
        unsigned threads;
        size_t parts;
    } ways[] = {{1, 1}, {2, 1}, {3, 1}, {1, 2}, {3, 5}, {1, BLOCKS}};
    for (size_t b = 0; b < 2 * BACKENDS; b++) {
        enum sfc_optimizer optimizer = b % 2 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
        static float want[3][SIZE], got[3][SIZE];
        static struct sums want_sums, sums;
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            bits_of(backends[b / 2], ways[w].threads, ways[w].parts, optimizer, got, &sums);
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
            open_parts(&p, backends[b], 2, 2, SFC_OPTIMIZER_SGD);
            pull(&p, before);
            slots_of(1, slots);
            for (uint32_t j = 0; j < MICRO; j++) {
                slice_of(1, j, slice);
                slice[places[k]] = j == 3 ? (k % 2 ? (float)NAN : (float)INFINITY) : 1;
                push(&p, slots[j], slice);
            }
            prepare(&p, 1, slots, &sums);
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

/* Copies one part of every block, in two pieces. */
static void move_part(struct parts *from, struct parts *to, enum sfc_block_part part)
{
    static float v[SIZE], again[SIZE];
    read_part(from, part, v);
    for (uint64_t k = 0; k < BLOCKS; k++) {
        struct sfc_dense *d = to->dense[k % to->count];
        uint64_t n = block_length(k), half = n / 2;
        float *at = v + k * BLOCK;
        assert_int_equal(sfc_dense_write(d, k, part, half, n - half, at + half, NULL), SFC_OK);
        assert_int_equal(sfc_dense_write(d, k, part, 0, half, at, NULL), SFC_OK);
    }
    read_part(to, part, again);
    assert_memory_equal(v, again, sizeof v);
}

static void move_state(struct parts *from, struct parts *to, enum sfc_optimizer optimizer)
{
    move_part(from, to, SFC_PART_VALUES);
    move_part(from, to, SFC_PART_MOMENTUM);
    if (optimizer == SFC_OPTIMIZER_ADAMW) {
        move_part(from, to, SFC_PART_SECOND_MOMENT);
    }
}

static void test_state_can_be_moved(void **state)
{
    (void)state;
    for (size_t b = 0; b < 2 * BACKENDS; b++) {
        enum sfc_optimizer optimizer = b % 2 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
        struct parts one, other;
        struct sums sums;
        static float v[SIZE], w[SIZE];
        open_parts(&one, TESTED, 1, 2, optimizer);
        open_parts(&other, backends[b / 2], 1, 5, optimizer);
        step(&one, 1, &sums);
        move_state(&one, &other, optimizer);
        pull(&one, v);
        pull(&other, w);
        assert_memory_equal(v, w, sizeof v);
        if (!strcmp(backends[b / 2], TESTED)) { /* and goes on with the same bits */
            step(&one, 2, &sums);
            step(&other, 2, &sums);
            pull(&one, v);
            pull(&other, w);
            assert_memory_equal(v, w, sizeof v);
        }
        close_parts(&one);
        close_parts(&other);
    }
}

enum { PARTS = 3, STEPS = 6 };
static const enum sfc_block_part all_parts[PARTS] = {SFC_PART_VALUES, SFC_PART_MOMENTUM,
                                                     SFC_PART_SECOND_MOMENT};

static size_t parts_of(enum sfc_optimizer optimizer)
{
    return optimizer == SFC_OPTIMIZER_ADAMW ? PARTS : PARTS - 1;
}

/* The sums and the state after each step. */
static void record_steps(enum sfc_optimizer optimizer, float sum[STEPS + 1][SIZE],
                         float state[STEPS + 1][PARTS][SIZE])
{
    struct parts p;
    struct sums sums;
    uint32_t slots[MICRO];
    float slice[SIZE];
    open_parts(&p, TESTED, 2, 1, optimizer);
    for (uint64_t t = 0; t <= STEPS; t++) {
        if (t) {
            slots_of(t, slots);
            for (uint32_t j = 0; j < MICRO; j++) {
                slice_of(t, j, slice);
                push(&p, slots[j], slice);
            }
            prepare(&p, t, slots, &sums);
            assert_int_equal(sfc_dense_sums(p.dense[0], sum[t], NULL), SFC_OK);
            commit(&p, 0.5 + 0.1 * (double)t);
        }
        for (size_t k = 0; k < parts_of(optimizer); k++) {
            read_part(&p, all_parts[k], state[t][k]);
        }
    }
    close_parts(&p);
}

/* Blocks copied at different steps, then the steps again from the recorded sums. */
static void copies_meet(enum sfc_optimizer optimizer)
{
    static float sum[STEPS + 1][SIZE], state[STEPS + 1][PARTS][SIZE], got[SIZE];
    struct parts p;
    struct sums sums;
    record_steps(optimizer, sum, state);
    open_parts(&p, TESTED, 1, 1, optimizer);
    struct sfc_dense *d = p.dense[0];
    for (uint64_t b = 0; b < BLOCKS; b++) {
        uint64_t stamp = b * 5 % (STEPS + 1);
        assert_int_equal(sfc_dense_set_block_step(d, b, stamp, NULL), SFC_OK);
        for (size_t k = 0; k < parts_of(optimizer); k++) {
            assert_int_equal(sfc_dense_write(d, b, all_parts[k], 0, block_length(b),
                                             state[stamp][k] + b * BLOCK, NULL),
                             SFC_OK);
        }
    }
    for (uint64_t t = 1; t <= STEPS; t++) {
        assert_int_equal(sfc_dense_load(d, t, sum[t], NULL), SFC_OK);
        commit(&p, 0.5 + 0.1 * (double)t);
    }
    for (size_t k = 0; k < parts_of(optimizer); k++) {
        read_part(&p, all_parts[k], got);
        assert_memory_equal(got, state[STEPS][k], sizeof got);
    }
    memset((char *)sum[1] + 4, 0xff, 4); /* NaN in either format */
    assert_int_equal(sfc_dense_load(d, STEPS + 1, sum[1], NULL), SFC_EINVAL);
    assert_int_equal(sfc_dense_sums(d, got, NULL), SFC_ESTATE);
    assert_int_equal(sfc_dense_set_block_step(d, BLOCKS, 1, NULL), SFC_ENOTFOUND);
    for (uint64_t b = 0; b < BLOCKS; b++) { /* sums of a prepare concern every block */
        assert_int_equal(sfc_dense_set_block_step(d, b, 100, NULL), SFC_OK);
    }
    step(&p, STEPS + 1, &sums);
    pull(&p, got);
    assert_memory_not_equal(got, state[STEPS][0], sizeof got);
    close_parts(&p);
}

static void test_copies_of_different_steps_meet(void **state)
{
    (void)state;
    copies_meet(SFC_OPTIMIZER_SGD);
    copies_meet(SFC_OPTIMIZER_ADAMW);
}

enum { STATISTICS = 128 + 52, GRADIENTS = SIZE - STATISTICS };

/* Sums of bf16: gradients in two bytes, statistics in four, for any choice of blocks. */
static void test_sums_are_packed(void **state)
{
    (void)state;
    bool half = sum_dtype == SFC_DTYPE_BF16;
    for (size_t b = 0; b < BACKENDS; b++) {
        for (size_t count = 1; count <= BLOCKS; count *= 2) {
            struct parts p;
            struct sums sums;
            struct sfc_dense_config c = config(SFC_OPTIMIZER_SGD);
            uint64_t halves = 0, floats = 0;
            open_parts(&p, backends[b], 1, count, SFC_OPTIMIZER_SGD);
            step(&p, 1, &sums);
            for (size_t i = 0; i < count; i++) {
                uint64_t blocks[BLOCKS], again[SIZE], packed[SIZE];
                size_t n = 0;
                for (uint64_t k = i; k < BLOCKS; k += count) {
                    blocks[n++] = k;
                }
                struct sfc_dense_packing packing = sfc_dense_packing_of(&c, blocks, n);
                uint64_t bytes = sfc_dense_packed_bytes(&packing);
                halves += packing.halves;
                floats += packing.floats;
                assert_int_equal(packing.halves + packing.floats, sfc_dense_length(p.dense[i]));
                assert_int_equal(bytes, (2 * packing.halves + 7) / 8 * 8 + 4 * packing.floats);
                memset(packed, 0x3c, sizeof packed);
                memset(again, 0xc3, sizeof again);
                assert_int_equal(sfc_dense_load(p.dense[i], 2, packed, NULL), SFC_OK);
                assert_int_equal(sfc_dense_sums(p.dense[i], again, NULL), SFC_OK);
                memset((char *)packed + 2 * packing.halves, 0,
                       (2 * packing.halves + 7) / 8 * 8 - 2 * packing.halves);
                assert_memory_equal(packed, again, bytes);
                assert_int_equal(*((unsigned char *)again + bytes), 0xc3);
            }
            assert_int_equal(halves, half ? GRADIENTS : 0);
            assert_int_equal(floats, half ? STATISTICS : SIZE);
            close_parts(&p);
        }
    }
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
        open_parts(&p, backends[b], 1, 1, SFC_OPTIMIZER_SGD);
        struct sfc_dense *d = p.dense[0];
        assert_int_equal(sfc_dense_push(d, SLOTS, slice, &err), SFC_EINVAL);
        assert_int_equal(sfc_dense_prepare(d, 1, 0.1, slots, sums, &err), SFC_ESTATE);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_ESTATE);
        for (uint32_t j = 0; j < MICRO; j++) {
            push(&p, j, slice);
        }
        assert_int_equal(sfc_dense_prepare(d, 0, 0.1, slots, sums, &err), SFC_EINVAL);
        assert_int_equal(sfc_dense_prepare(d, 1, (double)NAN, slots, sums, &err), SFC_EINVAL);
        slots[4] = 3;
        assert_int_equal(sfc_dense_prepare(d, 1, 0.1, slots, sums, &err), SFC_EINVAL);
        slots[4] = 4;
        assert_int_equal(sfc_dense_prepare(d, 1, 0.1, slots, sums, &err), SFC_OK);
        assert_int_equal(sfc_dense_commit(d, (double)NAN, 0.1, &err), SFC_EINVAL);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_OK);
        assert_int_equal(sfc_dense_commit(d, 1, 0.1, &err), SFC_ESTATE);
        assert_int_equal(sfc_dense_read(d, BLOCKS, SFC_PART_VALUES, 0, 1, slice, &err),
                         SFC_ENOTFOUND);
        assert_int_equal(sfc_dense_read(d, BLOCKS - 1, SFC_PART_VALUES, 40, 1, slice, &err),
                         SFC_EINVAL);
        assert_int_equal(sfc_dense_read(d, 0, SFC_PART_SECOND_MOMENT, 0, 1, slice, &err),
                         SFC_EINVAL);
        assert_int_equal(sfc_dense_read(d, 0, SFC_PART_LAST_STEP, 0, 1, slice, &err), SFC_EINVAL);
        slice[0] = (float)NAN;
        assert_int_equal(sfc_dense_write(d, 0, SFC_PART_VALUES, 0, 1, slice, &err), SFC_EINVAL);
        close_parts(&p);
        open_parts(&p, backends[b], 1, 1, SFC_OPTIMIZER_ADAMW);
        slice[0] = -1e-30f;
        assert_int_equal(sfc_dense_write(p.dense[0], 0, SFC_PART_SECOND_MOMENT, 0, 1, slice, &err),
                         SFC_EINVAL);
        close_parts(&p);
        assert_int_equal(sfc_backend_open(backends[b], 1, &p.backend, &err), SFC_OK);
        for (int wrong = 0; wrong < 5; wrong++) {
            static const uint64_t blocks[1] = {0};
            struct sfc_dense_config c = config(SFC_OPTIMIZER_ADAMW);
            struct sfc_memory memory;
            c.beta1 = wrong == 0 ? 1 : c.beta1;
            c.beta2 = wrong == 1 ? (double)NAN : c.beta2;
            c.epsilon = wrong == 2 ? 0 : c.epsilon;
            c.optimizer = wrong == 3 ? (enum sfc_optimizer)2 : c.optimizer;
            c.sum_dtype = wrong == 4 ? (enum sfc_dtype)2 : c.sum_dtype;
            assert_int_equal(sfc_dense_memory(p.backend, &c, blocks, 1, &memory, &err), SFC_EINVAL);
        }
        sfc_backend_close(p.backend);
    }
}

int main(void)
{
    if (tested_backend_missing()) {
        return TESTED_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_steps_follow_the_equations),
        cmocka_unit_test(test_overflow_is_found_at_prepare),
        cmocka_unit_test(test_memory_is_that_of_the_state),
        cmocka_unit_test(test_bits_never_depend_on_placement_or_threads),
        cmocka_unit_test(test_prepare_reports_what_is_not_finite),
        cmocka_unit_test(test_state_can_be_moved),
        cmocka_unit_test(test_copies_of_different_steps_meet),
        cmocka_unit_test(test_sums_are_packed),
        cmocka_unit_test(test_bad_calls_are_refused),
    };
    int failed = cmocka_run_group_tests_name("sums of f32", tests, NULL, NULL);
    sum_dtype = SFC_DTYPE_BF16;
    return failed + cmocka_run_group_tests_name("sums of bf16", tests, NULL, NULL);
}

/* 16-bit formats of the CPU head: conversions, both roundings, operands, kept cosines, and training
 * that ends where f32 ends. Agreement with the reference is in test_conformance.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/simd.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"
#include "tests/lib/head_rig.h"

#define LEVELS 3

/* The level itself, or the best below it that this CPU has. */
static const struct sfc_simd_half *level(size_t i)
{
    static const char *const names[LEVELS] = {"base", "avx2", "avx512"};
    setenv("SFC_CPU_LEVEL", names[i], 1);
    const struct sfc_simd *simd = sfc_simd_select();
    unsetenv("SFC_CPU_LEVEL");
    return simd->half;
}

static uint32_t bits_of(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static float from_half(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* ---- conversions */

static void split_loses_nothing(void **state)
{
    (void)state;
    float in[37], out[37];
    uint16_t high[37], low[37];
    for (size_t l = 0; l < LEVELS; l++)
        for (uint32_t start = 0; start < 0x7f000000; start += 0x10001 * 37) {
            for (uint32_t i = 0; i < 37; i++) /* all low halves and exponents come by, ties too */
                in[i] = float_of((start + i * 0x8000u) | (i % 2 ? 0x80000000u : 0));
            level(l)->pack(in, 37, SFC_STORE_SPLIT, high, low);
            level(l)->unpack(high, low, 37, SFC_STORE_SPLIT, out);
            assert_memory_equal(in, out, sizeof in);
            for (size_t i = 0; i < 37; i++) {
                double off = fabs((double)from_half(high[i]) - (double)in[i]);
                uint32_t exponent = bits_of(in[i]) & 0x7f800000u;
                double ulp =
                    (double)float_of((exponent ? exponent : 0x800000u) + 0x800000u) * 0x1p-8;
                assert_true(!isfinite(ulp) || off <= ulp / 2);
            }
        }
}

static void nearest_is_nearest_even(void **state)
{
    (void)state;
    static const uint32_t cases[][2] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81},
        {0x3f818000, 0x3f82}, {0xbf818000, 0xbf82}, {0x00000000, 0x0000}, {0x80000000, 0x8000},
        {0x3f7fffff, 0x3f80}, {0x7fc00000, 0x7fc0}};
    for (size_t l = 0; l < LEVELS; l++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            float in = float_of(cases[i][0]);
            uint16_t out;
            level(l)->pack(&in, 1, SFC_STORE_BF16, &out, NULL);
            assert_int_equal(out, cases[i][1]);
        }
}

/* ---- stochastic rounding */

enum { DIM = 100, PITCH = 112, ROWS = 64 };

struct rounding {
    uint16_t records[ROWS][2][DIM]; /* w, m */
    float dw[ROWS * PITCH], scratch[2 * PITCH], inverse[ROWS];
    uint32_t rows[ROWS];
    struct sfc_store store;
};

static struct rounding *rounding_new(float w, float m, uint32_t step)
{
    struct rounding *r = aligned_alloc(64, (sizeof *r + 63) / 64 * 64);
    assert_non_null(r);
    memset(r, 0, sizeof *r);
    for (size_t i = 0; i < ROWS * DIM; i++) {
        r->records[i / DIM][0][i % DIM] = (uint16_t)(bits_of(w) >> 16);
        r->records[i / DIM][1][i % DIM] = (uint16_t)(bits_of(m) >> 16);
    }
    for (uint32_t i = 0; i < ROWS; i++)
        r->rows[i] = i;
    r->store = (struct sfc_store){.format = SFC_STORE_BF16,
                                  .records = (char *)r->records,
                                  .tensors = 2,
                                  .now = step,
                                  .seed = 11,
                                  .first_class = 1000,
                                  .scratch = r->scratch};
    return r;
}

/* w = 1, m = 1/4: momentum 0.9 makes m = 0.225, between two bf16; lr moves w by much less than its
 * resolution of 2^-8. The means must come out, and the roundings of w and m must have nothing to do
 * with each other. */
static void rounding_is_unbiased(void **state)
{
    (void)state;
    const struct sfc_update u = {
        .gradient_scale = 0, .lr = 0.004f, .momentum = 0.9f, .weight_decay = 0};
    const double m1 = 0.9f * 0.25f, w1 = 1 - 0.004f * m1;
    for (size_t l = 0; l < LEVELS; l++) {
        double w_sum = 0, m_sum = 0, both = 0, ups_w = 0, ups_m = 0, n = 0;
        for (uint32_t step = 1; step <= 40; step++) {
            struct rounding *r = rounding_new(1, 0.25f, step);
            level(l)->update(&r->store, r->rows, ROWS, DIM, PITCH, r->dw, r->inverse, &u);
            for (size_t i = 0; i < ROWS * DIM; i++) {
                double w = (double)from_half(r->records[i / DIM][0][i % DIM]);
                double m = (double)from_half(r->records[i / DIM][1][i % DIM]);
                assert_true(fabs(w - w1) < 0x1p-8 && fabs(m - m1) < 0x1p-10);
                w_sum += w;
                m_sum += m;
                ups_w += w > w1;
                ups_m += m > m1;
                both += w > w1 && m > m1;
                n++;
            }
            free(r);
        }
        /* five standard deviations of the mean */
        assert_true(fabs(w_sum / n - w1) < 5 * 0x1p-9 / sqrt(n));
        assert_true(fabs(m_sum / n - m1) < 5 * 0x1p-11 / sqrt(n));
        assert_true(fabs(both / n - ups_w / n * (ups_m / n)) < 5 * 0.25 / sqrt(n));
    }
}

/* The bits of a row follow from seed, step, class and column alone. */
static void rounding_belongs_to_the_row(void **state)
{
    (void)state;
    const struct sfc_update u = {
        .gradient_scale = 0.5f, .lr = 0.004f, .momentum = 0.9f, .weight_decay = 1e-3f};
    struct rounding *all = rounding_new(1, 0.25f, 9), *some = rounding_new(1, 0.25f, 9);
    struct rounding *later = rounding_new(1, 0.25f, 10);
    static const uint32_t order[] = {40, 3, 17};
    for (size_t i = 0; i < ROWS * PITCH; i++)
        all->dw[i] = some->dw[i] = later->dw[i] = i % PITCH < DIM ? 0.3f : 0;
    for (size_t i = 0; i < ROWS; i++)
        all->inverse[i] = some->inverse[i] = later->inverse[i] = 0.1f;
    level(2)->update(&all->store, all->rows, ROWS, DIM, PITCH, all->dw, all->inverse, &u);
    level(2)->update(&later->store, all->rows, ROWS, DIM, PITCH, all->dw, all->inverse, &u);
    level(2)->update(&some->store, order, 3, DIM, PITCH, some->dw, some->inverse, &u);
    for (size_t i = 0; i < 3; i++) {
        uint32_t at = order[i];
        assert_memory_equal(all->records[at], some->records[at], sizeof all->records[at]);
        assert_memory_not_equal(all->records[at][1], later->records[at][1], DIM * 2);
    }
    assert_memory_not_equal(all->records[0][1], all->records[1][1], DIM * 2);
    free(all), free(some), free(later);
}

/* Both roundings are the scalar ones of kernels/rng/rounding.h; nearest leaves w where it was. */
static void rounding_is_what_it_says(void **state)
{
    (void)state;
    /* no product here needs rounding twice */
    const struct sfc_update u = {.lr = 0x1p-7f, .momentum = 0.9f};
    const float m1 = 0.9f * 0.25f, w1 = 1 - 0x1p-7f * m1;
    for (size_t l = 0; l < LEVELS; l++)
        for (int nearest = 0; nearest < 2; nearest++) {
            struct rounding *r = rounding_new(1, 0.25f, 77);
            r->store.nearest = nearest;
            level(l)->update(&r->store, r->rows, ROWS, DIM, PITCH, r->dw, r->inverse, &u);
            for (uint32_t i = 0; i < ROWS * DIM; i++) {
                uint32_t word =
                    sfc_rounding_word(sfc_rounding_key(11, 77, 1000 + i / DIM), i % DIM);
                float w = sfc_bf16_stochastic(w1, (uint16_t)word);
                float m = sfc_bf16_stochastic(m1, (uint16_t)(word >> 16));
                const uint16_t *got = &r->records[i / DIM][0][i % DIM];
                assert_int_equal(bits_of(from_half(got[0])), bits_of(nearest ? 1 : w));
                assert_int_equal(bits_of(from_half(got[DIM])),
                                 bits_of(nearest ? sfc_bf16_nearest(m1) : m));
            }
            free(r);
        }
}

/* ---- operands */

/* As f32 the same numbers as in bf16: rows of every store, with and without missed steps, and p. */
static void wide_operands_are_the_bf16_ones(void **state)
{
    (void)state;
    enum { N = 5, WORDS = ROWS * 4 * DIM }; /* of the larger record, SPLIT */
    static const uint32_t rows[N] = {0, 7, 20, 33, 63};
    const struct sfc_lag lag[3] = {{0.9f, -0.01f, 0.001f, 0.8f}};
    const float inverse[N] = {0.3f, 1.7f, 2, 0.01f, 9};
    uint16_t *records = calloc(WORDS, sizeof *records), *tile = calloc(N * PITCH, sizeof *tile);
    float *wide = calloc(N * PITCH, sizeof *wide);
    uint32_t last[ROWS];
    assert_true(records && tile && wide);
    for (uint32_t i = 0; i < WORDS; i++)
        records[i] = (uint16_t)(0x3d00 + i * 37 % 0x180);
    for (uint32_t i = 0; i < ROWS; i++)
        last[i] = i % 2 ? 0 : 2; /* odd rows have missed two steps */
    struct sfc_store store = {.records = (char *)records, .tensors = 2, .lag = lag, .now = 3};
    for (size_t l = 0; l < LEVELS; l++)
        for (int kind = 0; kind < 4; kind++) {
            float norm[N], wide_norm[N];
            store.format = kind % 2 ? SFC_STORE_SPLIT : SFC_STORE_BF16;
            store.last = kind / 2 ? last : NULL;
            level(l)->gather(&store, SFC_OPERAND_BF16, rows, N, DIM, PITCH, tile, norm);
            level(l)->gather(&store, SFC_OPERAND_WIDE, rows, N, DIM, PITCH, wide, wide_norm);
            assert_memory_equal(norm, wide_norm, sizeof norm);
            for (size_t i = 0; i < N * PITCH; i++)
                assert_int_equal(bits_of(wide[i]), (uint32_t)tile[i] << 16);
            level(l)->scale_rows(records, N, 16, inverse, 0.7f, tile, 32);
            level(l)->scale_rows_wide(records, N, 16, inverse, 0.7f, wide, 32);
            for (size_t i = 0; i < N; i++)
                for (size_t c = 0; c < 16; c++) {
                    float p = from_half(records[i * 16 + c]), v = wide[i * 32 + c];
                    assert_int_equal(bits_of(v), bits_of(p * (inverse[i] * 0.7f)));
                    assert_int_equal(bits_of(from_half(tile[i * 32 + c])),
                                     bits_of(sfc_bf16_nearest(v)));
                }
        }
    free(records), free(tile), free(wide);
}

/* ---- logits and softmax */

static void fixed_cosines(void **state)
{
    (void)state;
    enum { N = 3, WIDTH = 16 };
    const float inverse[N] = {1, 0.5f, 2}, add[N] = {-2, 0.5f, 0};
    float cos[N * WIDTH], high[WIDTH], low[WIDTH] = {0};
    for (size_t l = 0; l < LEVELS; l++) {
        int16_t q[N * WIDTH];
        double sum[WIDTH] = {0}, want[WIDTH] = {0}, z[N * WIDTH];
        for (size_t i = 0; i < N * WIDTH; i++)
            cos[i] = 0.031f * (float)i - 0.7f;
        level(l)->logits(cos, WIDTH, N, WIDTH, inverse, 0.9f, q);
        q[5] = SFC_COSINE_TARGET;
        for (size_t i = 0; i < N * WIDTH; i++) {
            double c = fmax(-1, fmin(1, (double)cos[i] * (double)inverse[i / WIDTH]));
            z[i] = c > 0.9 ? 0 : 30 * c;
            want[i % WIDTH] += i == 5 ? 0 : exp(z[i] + (double)add[i / WIDTH]);
        }
        level(l)->exp_sum(q, N, WIDTH, 30, add, sum);
        for (size_t c = 0; c < WIDTH; c++) {
            assert_true(fabs(sum[c] / want[c] - 1) < 1e-3);
            high[c] = c == 7 ? INFINITY : (float)log(want[c]);
        }
        assert_true(level(l)->softmax(q, N, WIDTH, 30, add, high, low));
        for (size_t i = 0; i < N * WIDTH; i++) {
            double p = (double)from_half((uint16_t)q[i]),
                   c = (double)cos[i] * (double)inverse[i / WIDTH];
            double expected = exp(z[i] + (double)add[i / WIDTH]) / want[i % WIDTH];
            if (i == 5 || i % WIDTH == 7 || c > 0.9)
                expected = 0;
            assert_true(fabs(p - expected) <= 6e-3 * expected);
        }
    }
}

/* ---- whole heads */

struct format {
    enum sfc_dtype dtype, gemm;
};

static const struct format formats[] = {{SFC_DTYPE_F32, SFC_DTYPE_BF16},
                                        {SFC_DTYPE_BF16, SFC_DTYPE_BF16},
                                        {SFC_DTYPE_BF16, SFC_DTYPE_F32}};
#define FORMATS (sizeof formats / sizeof *formats)

/* Features around fixed directions, one per class; returns the mean loss of the last 50 steps. */
static double train(const struct sfc_head_config *c, const float *directions)
{
    enum { STEPS = 400, LAST = 50 };
    struct rig rig;
    struct rig_step step;
    float *x = calloc((size_t)c->batch * c->dim, sizeof *x);
    uint64_t labels[32];
    double loss = 0;
    assert_non_null(x);
    rig_open(&rig, (struct rig_setup){"cpu", 2, 1, 4, false}, c);
    rig_step_init(&step, c);
    for (uint64_t t = 1; t <= STEPS; t++) {
        rig_labels(t, RIG_UNIFORM, c, labels);
        for (uint32_t r = 0; r < c->batch; r++)
            sfc_random_normals(t, SFC_STREAM_SYNTHETIC, 40 + r, 0, c->dim, x + (size_t)r * c->dim);
        for (size_t i = 0; i < (size_t)c->batch * c->dim; i++)
            x[i] += 0.5f * directions[labels[i / c->dim] * c->dim + i % c->dim];
        rig_forward(&rig, t, labels, x, &step);
        rig_commit(&rig, 0.5 * (1 - 0.9 * (double)t / STEPS));
        loss += t > STEPS - LAST ? step.loss / LAST : 0;
    }
    rig_step_free(&step);
    rig_close(&rig);
    free(x);
    return loss;
}

static void training_ends_where_f32_ends(void **state)
{
    (void)state;
    struct sfc_head_config c = rig_config(120, 64, 64, 32, 8);
    size_t size = (size_t)c.classes * c.dim;
    float *directions = calloc(size, sizeof *directions);
    assert_non_null(directions);
    sfc_random_normals(5, SFC_STREAM_SYNTHETIC, 9, 0, size, directions);
    c.sample_ppm = 300000;
    c.margin_m3 = 0.1;
    c.scale = 16;
    c.momentum_mode = SFC_MOMENTUM_DENSE;
    double want = train(&c, directions);
    for (size_t f = 0; f < FORMATS; f++) {
        c.dtype = formats[f].dtype;
        c.gemm = formats[f].gemm;
        double loss = train(&c, directions);
        print_message("dtype %d gemm %d: loss %.4f, in f32 %.4f\n", (int)c.dtype, (int)c.gemm, loss,
                      want);
        assert_true(want < 2.5 && fabs(loss / want - 1) < 0.02);
    }
    free(directions);
}

static void state_has_the_promised_size(void **state)
{
    (void)state;
    struct sfc_head_config c = rig_config(1 << 17, 512, 4096, 16, 4);
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    struct sfc_memory memory;
    uint64_t blocks[32];
    for (uint64_t b = 0; b < 32; b++)
        blocks[b] = b;
    assert_int_equal(sfc_backend_open("cpu", 1, &backend, &err), SFC_OK);
    for (size_t f = 0; f < FORMATS; f++) {
        c.dtype = formats[f].dtype;
        c.gemm = formats[f].gemm;
        double bytes = c.dtype == SFC_DTYPE_BF16 ? 4 : 8;
        assert_int_equal(sfc_head_memory(backend, &c, blocks, 32, &memory, &err), SFC_OK);
        double share = (double)memory.state_bytes / (bytes * (double)c.classes * c.dim);
        assert_true(share >= 1 && share < 1.01);
    }
    sfc_backend_close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_loses_nothing),
        cmocka_unit_test(nearest_is_nearest_even),
        cmocka_unit_test(rounding_is_unbiased),
        cmocka_unit_test(rounding_belongs_to_the_row),
        cmocka_unit_test(rounding_is_what_it_says),
        cmocka_unit_test(wide_operands_are_the_bf16_ones),
        cmocka_unit_test(fixed_cosines),
        cmocka_unit_test(training_ends_where_f32_ends),
        cmocka_unit_test(state_has_the_promised_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The elementwise loops of the CPU backend at every instruction level that this machine has,
 * against plain double loops. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/cpu/simd.h"
#include "kernels/exact_sum.h"

#define LEVELS 3

static const char *const level_names[LEVELS] = {"base", "avx2", "avx512"};

/* The level itself, or the best below it that this CPU has. */
static const struct sfc_simd *level(size_t i)
{
    setenv("SFC_CPU_LEVEL", level_names[i], 1);
    const struct sfc_simd *simd = sfc_simd_select();
    unsetenv("SFC_CPU_LEVEL");
    return simd;
}

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * 0x1p-23f - 1.0f;
}

static void base_is_always_there(void **state)
{
    (void)state;
    assert_string_equal(level(0)->name, "base");
}

static void exp_is_accurate(void **state)
{
    (void)state;
    for (size_t l = 0; l < LEVELS; l++) {
        double worst = 0;
        for (double x = -87.2; x < 88.2; x += 0.00317) {
            float z[16], add[1] = {0};
            double sum[16] = {0};
            for (size_t c = 0; c < 16; c++)
                z[c] = (float)(x + (double)c * 0.0002);
            level(l)->exp_sum(z, 1, 16, add, sum);
            for (size_t c = 0; c < 16; c++) {
                double error = fabs(sum[c] / exp((double)z[c]) - 1);
                worst = error > worst ? error : worst;
            }
        }
        if (worst > 2e-7)
            fail_msg("level %s: relative error %g", level_names[l], worst);
    }
}

static void exp_at_the_edges(void **state)
{
    (void)state;
    for (size_t l = 0; l < LEVELS; l++) {
        float z[16] = {0, -88, -1000, -INFINITY, NAN, 100, INFINITY, 1}, add[1] = {0};
        double sum[16] = {0};
        level(l)->exp_sum(z, 1, 16, add, sum);
        assert_true(sum[0] == 1 && sum[1] == 0 && sum[2] == 0 && sum[3] == 0);
        assert_true(isnan(sum[4]));
        assert_true(isfinite(sum[5]) && sum[5] > 1e38 && sum[6] == sum[5]);
    }
}

static void softmax_keeps_marks_and_padding(void **state)
{
    (void)state;
    for (size_t l = 0; l < LEVELS; l++) {
        float z[16], high[16], low[16], add[1] = {0.25f};
        for (size_t c = 0; c < 16; c++) {
            z[c] = (float)c;
            high[c] = 20;
            low[c] = 1e-7f;
        }
        z[3] = -0.0f;
        high[5] = INFINITY;
        low[5] = 0;
        assert_true(level(l)->softmax(z, 1, 16, add, high, low));
        assert_true(z[3] == 0 && z[5] == 0);
        assert_true(fabs(z[0] / exp(0.25 - 20 - 1e-7) - 1) < 3e-7); /* +0 is no mark */
        assert_true(fabs(z[15] / exp(15.25 - 20 - 1e-7) - 1) < 3e-7);
        z[7] = NAN;
        assert_false(level(l)->softmax(z, 1, 16, add, high, low));
    }
}

static void logits_clamp_and_filter(void **state)
{
    (void)state;
    for (size_t l = 0; l < LEVELS; l++) {
        float cos[32] = {2, -2, 0.5f, 0.25f, -0.0f, NAN}, inverse[2] = {1, 0.5f}, z[32];
        memcpy(cos + 16, cos, 16 * sizeof *cos);
        level(l)->logits(cos, 16, 2, 16, inverse, 64, 0.3f, z);
        assert_true(z[0] == 0 && signbit(z[0]) && z[1] == -64);
        assert_true(z[2] == 0 && signbit(z[2]) && z[3] == 16);
        assert_true(z[4] == 0 && !signbit(z[4]) && isnan(z[5]));
        assert_true(z[16 + 2] == 16 && z[16 + 3] == 8 && z[16 + 1] == -64);
    }
}

static void fixed_point_is_the_one_of_exact_sum(void **state)
{
    (void)state;
    const size_t dim = 37, pitch = 48, rows = 500;
    float *dx = calloc(rows * pitch, sizeof *dx);
    int64_t *sum = calloc(rows * dim, sizeof *sum);
    uint32_t seed = 3;
    for (size_t i = 0; i < rows * pitch; i++)
        dx[i] = ldexpf(noise(&seed), (int)(i % 62) - 45);
    for (size_t l = 0; l < LEVELS; l++) {
        memset(sum, 0, rows * dim * sizeof *sum);
        level(l)->add_fixed(dx, rows, dim, pitch, sum);
        level(l)->add_fixed(dx, rows, dim, pitch, sum);
        for (size_t r = 0; r < rows; r++)
            for (size_t k = 0; k < dim; k++)
                assert_true(sum[r * dim + k] == 2 * sfc_dx_to_fixed(dx[r * pitch + k]));
        float odd[16] = {NAN, INFINITY, -INFINITY};
        int64_t out[3] = {0};
        level(l)->add_fixed(odd, 1, 3, 16, out);
        assert_true(out[0] == (int64_t)1 << 62 && out[1] == (int64_t)1 << 62);
        assert_true(out[2] == -((int64_t)1 << 62));
        for (size_t k = 0; k < 32; k++) { /* one large or odd number among small ones */
            const float large[] = {128, -128, INFINITY, -INFINITY, NAN, 0x1.fffffep6f};
            float row[32] = {0.5f};
            int64_t sums[32] = {0};
            row[k] = large[k % 6];
            level(l)->add_fixed(row, 1, 32, 32, sums);
            for (size_t c = 0; c < 32; c++)
                assert_true(sums[c] ==
                            (isnan(row[c]) ? (int64_t)1 << 62 : sfc_dx_to_fixed(row[c])));
        }
    }
    free(dx);
    free(sum);
}

static void gather_pads_and_normalises(void **state)
{
    (void)state;
    const size_t dims[] = {1, 15, 16, 17, 48, 100};
    const uint32_t rows[] = {0, 2, 3, 7, 8};
    for (size_t l = 0; l < LEVELS; l++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            size_t dim = dims[d], pitch = (dim + 15) / 16 * 16;
            float *block = calloc(9 * dim, sizeof *block); /* exact: asan sees reads beyond */
            float *tile = calloc(5 * pitch, sizeof *tile), inverse[5];
            uint32_t seed = 5;
            for (size_t i = 0; i < 9 * dim; i++)
                block[i] = i / dim == 3 ? 1e-14f : noise(&seed) + 2;
            for (size_t i = 0; i < 5 * pitch; i++)
                tile[i] = 9;
            const struct sfc_store store = {.records = (char *)block, .tensors = 1};
            level(l)->gather(&store, rows, 5, dim, pitch, tile, inverse);
            for (size_t i = 0; i < 5; i++) {
                double square = 0;
                for (size_t k = 0; k < pitch; k++) {
                    float expected = k < dim ? block[rows[i] * dim + k] : 0;
                    assert_true(tile[i * pitch + k] == expected);
                    square += (double)expected * expected;
                }
                double expected = rows[i] == 3 ? 0 : 1 / sqrt(square);
                assert_true(fabs(inverse[i] - expected) <= 1e-6 * expected);
            }
            free(block);
            free(tile);
        }
}

static void update_is_sgd_through_the_normalisation(void **state)
{
    (void)state;
    const size_t dims[] = {1, 15, 33, 64};
    const uint32_t rows[] = {1, 2, 4};
    const struct sfc_update u = {
        .gradient_scale = 0.5f, .lr = 0.1f, .momentum = 0.9f, .weight_decay = 5e-4f};
    for (size_t l = 0; l < LEVELS; l++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            size_t dim = dims[d], pitch = (dim + 15) / 16 * 16;
            float *records = calloc(5 * 2 * dim, sizeof *records);
            float *before = calloc(5 * 2 * dim, sizeof *before);
            float *dw = calloc(3 * pitch, sizeof *dw), inverse[3];
            uint32_t seed = 9;
            for (size_t i = 0; i < 5 * 2 * dim; i++)
                records[i] = before[i] = noise(&seed);
            for (size_t i = 0; i < 3 * pitch; i++)
                dw[i] = noise(&seed);
            for (size_t i = 0; i < 3; i++) {
                double square = 0;
                const float *w = records + rows[i] * 2 * dim;
                for (size_t k = 0; k < dim; k++)
                    square += (double)w[k] * w[k];
                inverse[i] = (float)(1 / sqrt(square));
            }
            const struct sfc_store store = {.records = (char *)records, .tensors = 2};
            level(l)->update(&store, rows, 3, dim, pitch, dw, inverse, &u);
            for (size_t r = 0, i = 0; r < 5; r++) {
                const float *w = records + r * 2 * dim, *m = w + dim;
                const float *w0 = before + r * 2 * dim, *m0 = w0 + dim;
                bool touched = i < 3 && rows[i] == r;
                double along = 0, inv = touched ? inverse[i] : 0;
                for (size_t k = 0; touched && k < dim; k++)
                    along += (double)w0[k] * inv * dw[i * pitch + k];
                for (size_t k = 0; k < dim; k++) {
                    double wk = w0[k], mk = m0[k];
                    if (touched) {
                        double g = 0.5 * inv * (dw[i * pitch + k] - wk * inv * along);
                        mk = 0.9 * mk + g + 5e-4 * wk;
                        wk -= 0.1 * mk;
                    }
                    assert_true(fabs(m[k] - mk) < 2e-6 * (1 + inv));
                    assert_true(fabs(w[k] - wk) < 2e-6 * (1 + inv));
                }
                i += touched;
            }
            free(records);
            free(before);
            free(dw);
        }
}

/* Rows that lag are caught up in the tile, and in the store before their update. */
static void missed_steps_are_caught_up(void **state)
{
    (void)state;
    const size_t dims[] = {1, 16, 37};
    const uint32_t rows[] = {0, 2};
    const struct sfc_update u = {
        .gradient_scale = 0, .lr = 0.1f, .momentum = 0.9f, .weight_decay = 5e-4f}; /* no gradient */
    const float rates[] = {0.1f, 0.2f, SFC_RATE_SKIPPED, 0.05f, 0.3f};
    struct sfc_lag lag[6];
    sfc_lag_table(rates, 0.9, 5e-4, 0, 5, lag);
    for (size_t l = 0; l < LEVELS; l++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            size_t dim = dims[d], pitch = (dim + 15) / 16 * 16;
            float records[3 * 2 * 37], tile[2 * 48], dw[2 * 48] = {0}, inverse[2];
            double expected[3 * 2 * 37]; /* records too: w, m of each row */
            uint32_t last[3] = {1, 0, 5}, seed = 77;
            for (size_t i = 0; i < 3 * 2 * dim; i++)
                expected[i] = records[i] = noise(&seed);
            const struct sfc_store store = {
                .records = (char *)records, .tensors = 2, .last = last, .lag = lag, .now = 6};
            for (uint32_t s = 1; s <= 5; s++)
                for (size_t k = 0; s > last[0] && k < dim; k++) {
                    if (rates[s - 1] >= 0) {
                        double *v = expected + k, *q = v + dim;
                        *q = 0.9 * *q + 5e-4 * *v;
                        *v -= rates[s - 1] * *q;
                    }
                }
            float w1 = records[0], m1 = records[dim];
            level(l)->gather(&store, rows, 2, dim, pitch, tile, inverse);
            assert_true(records[0] == w1 && records[dim] == m1 && last[0] == 1);
            for (size_t k = 0; k < dim; k++) {
                assert_true(fabs(tile[k] - expected[k]) < 1e-6);
                assert_true(tile[pitch + k] == records[2 * 2 * dim + k]);
            }
            level(l)->update(&store, rows, 2, dim, pitch, dw, inverse, &u);
            assert_true(last[0] == 6 && last[1] == 0 && last[2] == 6);
            for (size_t i = 0; i < 3 * dim; i++) {
                size_t w = i / dim * 2 * dim + i % dim, m = w + dim;
                double *v = expected + w, *q = expected + m;
                if (i / dim != 1) {
                    *q = (double)u.momentum * *q + (double)u.weight_decay * *v;
                    *v -= (double)u.lr * *q;
                }
                assert_true(fabs(records[m] - *q) < 1e-6 && fabs(records[w] - *v) < 1e-6);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base_is_always_there),
        cmocka_unit_test(exp_is_accurate),
        cmocka_unit_test(exp_at_the_edges),
        cmocka_unit_test(softmax_keeps_marks_and_padding),
        cmocka_unit_test(logits_clamp_and_filter),
        cmocka_unit_test(fixed_point_is_the_one_of_exact_sum),
        cmocka_unit_test(gather_pads_and_normalises),
        cmocka_unit_test(update_is_sgd_through_the_normalisation),
        cmocka_unit_test(missed_steps_are_caught_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

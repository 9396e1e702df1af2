/* Exact sums: order never matters, one rounding per value, the extremes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/exact_sum.h"
#include "kernels/rng/philox.h"

static void test_any_order_gives_the_same_bits(void **state)
{
    (void)state;
    enum { N = 500 };
    double v[N];
    for (uint32_t i = 0; i < N; i++) {
        struct sfc_philox w = sfc_random(1, SFC_STREAM_SYNTHETIC, 0, i);
        v[i] = exp(w.v[0] * 0x1p-32 * 160 - 80);
    }
    struct sfc_sum256 forward = {{0}}, backward = {{0}}, parts[7], joined = {{0}};
    memset(parts, 0, sizeof parts);
    long double plain = 0;
    for (size_t i = 0; i < N; i++) {
        sfc_sum256_add_double(&forward, v[i]);
        sfc_sum256_add_double(&backward, v[N - 1 - i]);
        sfc_sum256_add_double(&parts[(i * i) % 7], v[i]);
        plain += v[i];
    }
    for (size_t p = 7; p-- > 0;) {
        sfc_sum256_add(&joined, &parts[p]);
    }
    assert_memory_equal(&forward, &backward, sizeof forward);
    assert_memory_equal(&forward, &joined, sizeof forward);
    assert_true(fabs(sfc_sum256_log(&forward, 0) - (double)logl(plain)) < 1e-14 * 80);
}

static void test_single_values(void **state)
{
    (void)state;
    for (int e = -128; e < 128; e++) {
        for (double m = 1.0; m < 2.0; m += 0.37) {
            double v = ldexp(m, e);
            struct sfc_sum256 sum = {{0}};
            sfc_sum256_add_double(&sum, v);
            double want = log(ldexp(floor(ldexp(v, 128)), -128)); /* exact above 2^-76 */
            double got = sfc_sum256_log(&sum, 3.0);
            assert_true(fabs(got - (want + 3.0)) <= 1e-14 * (1 + fabs(want)));
        }
    }
}

static void test_extremes(void **state)
{
    (void)state;
    struct sfc_sum256 sum = {{0}};
    assert_true(isinf(sfc_sum256_log(&sum, 5)) && sfc_sum256_log(&sum, 5) < 0);
    sfc_sum256_add_double(&sum, 0x1p-128);
    assert_int_equal(sum.word[0], 1);
    sfc_sum256_add_double(&sum, 0x1.8p-128); /* rounded toward zero */
    assert_int_equal(sum.word[0], 2);
    sfc_sum256_add_double(&sum, 0x1.fffffp-129);
    sfc_sum256_add_double(&sum, 1e-300);
    sfc_sum256_add_double(&sum, 0x1p-1074);
    sfc_sum256_add_double(&sum, 0);
    sfc_sum256_add_double(&sum, -1);
    sfc_sum256_add_double(&sum, (double)NAN);
    assert_int_equal(sum.word[0], 2);
    assert_int_equal(sum.word[1] | sum.word[2] | sum.word[3], 0);
    for (int i = 0; i < 1000; i++) { /* 1,000 classes with cos 1 at scale 80 */
        sfc_sum256_add_double(&sum, exp(80));
    }
    assert_int_equal(sum.word[0], 2);
    assert_true(fabs(sfc_sum256_log(&sum, 0) - (80 + log(1000))) < 1e-13);
}

static void test_carry_and_saturation(void **state)
{
    (void)state;
    struct sfc_sum256 sum = {{UINT64_MAX, UINT64_MAX, UINT64_MAX, 0}};
    sfc_sum256_add_double(&sum, 0x1p-128);
    assert_int_equal(sum.word[0] | sum.word[1] | sum.word[2], 0);
    assert_int_equal(sum.word[3], 1);
    struct sfc_sum256 full = {{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}}, other = {{1}};
    struct sfc_sum256 a = full;
    sfc_sum256_add(&a, &other);
    assert_memory_equal(&a, &full, sizeof a);
    sfc_sum256_add(&a, &full);
    assert_memory_equal(&a, &full, sizeof a);
    sfc_sum256_add_double(&other, (double)INFINITY);
    assert_memory_equal(&other, &full, sizeof a);
    struct sfc_sum256 near = {{0}};
    sfc_sum256_add_double(&near, 0x1.fffffffffffffp127);
    assert_memory_not_equal(&near, &full, sizeof a);
    sfc_sum256_add_double(&near, 0x1.fffffffffffffp127);
    assert_memory_equal(&near, &full, sizeof a);
    assert_true(fabs(sfc_sum256_log(&full, 0) - 128 * log(2)) < 1e-12);
}

/* Half-way cases of the only rounding: the sticky bit decides. */
static void test_log_rounds_once(void **state)
{
    (void)state;
    const double one = 1.0, step = 0x1p-52;
    struct sfc_sum256 half = {{0}}, above;
    sfc_sum256_add_double(&half, one);
    sfc_sum256_add_double(&half, step / 2);
    above = half;
    sfc_sum256_add_double(&above, 0x1p-128);
    assert_true(sfc_sum256_log(&half, 0) == log(one)); /* tie: to even */
    assert_true(sfc_sum256_log(&above, 0) == log(one + step));
}

static void test_shift(void **state)
{
    (void)state;
    assert_true(sfc_exp_shift(64) == 0);
    assert_true(sfc_exp_shift(80) == 0);
    assert_true(sfc_exp_shift(100) == 20);
}

static void test_fixed_point(void **state)
{
    (void)state;
    assert_int_equal(sfc_dx_to_fixed(0), 0);
    assert_int_equal(sfc_dx_to_fixed(1), INT64_C(1) << 44);
    assert_int_equal(sfc_dx_to_fixed(-1), -(INT64_C(1) << 44));
    assert_int_equal(sfc_dx_to_fixed(0x1p-45f), 0); /* ties to even */
    assert_int_equal(sfc_dx_to_fixed(0x1.8p-44f), 2);
    assert_int_equal(sfc_dx_to_fixed(-0x1.8p-44f), -2);
    assert_int_equal(sfc_dx_to_fixed(0x1.000002p-45f), 1);
    assert_int_equal(sfc_dx_to_fixed((float)INFINITY), INT64_C(1) << 62);
    assert_int_equal(sfc_dx_to_fixed(-1e30f), -(INT64_C(1) << 62));
    assert_int_equal(sfc_dx_to_fixed((float)NAN), 0);
    for (uint32_t i = 0; i < 10000; i++) {
        struct sfc_philox w = sfc_random(2, SFC_STREAM_SYNTHETIC, 1, i);
        float v = ldexpf(sfc_uniform(w.v[0]) - 0.5f, (int)(w.v[1] % 36) - 18);
        float back = sfc_dx_to_float(sfc_dx_to_fixed(v));
        assert_true(fabsf(back - v) <= 0x1p-45f);
        if (fabsf(v) >= 0x1p-20f) { /* 24 bits fit above the unit */
            assert_true(back == v);
        }
    }
    assert_true(sfc_dx_to_float(INT64_MAX) == 0x1p19f);
    assert_true(sfc_dx_to_float(INT64_MIN) == -0x1p19f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order_gives_the_same_bits),
        cmocka_unit_test(test_single_values),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_carry_and_saturation),
        cmocka_unit_test(test_log_rounds_once),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_fixed_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Verification metrics against answers worked out by hand or by brute force. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "worker/eval/metrics.h"

static void separable_pairs_are_all_right(void **state)
{
    (void)state;
    float distance[40];
    bool same[40];
    for (int i = 0; i < 40; i++) {
        same[i] = i % 2 == 0;
        distance[i] = same[i] ? 0.5F : 1.5F;
    }
    struct sfc_pair_result result;
    assert_int_equal(sfc_evaluate_pairs(distance, same, 40, &result, NULL), SFC_OK);
    assert_true(fabs(result.accuracy - 1) < 1e-12);
    assert_true(result.deviation < 1e-6);
    assert_true(result.threshold > 0.5 && result.threshold <= 1.5);
}

/* One fold is inverted: the threshold of the other nine gets it all wrong. */
static void threshold_comes_from_the_other_folds(void **state)
{
    (void)state;
    float distance[100];
    bool same[100];
    for (int i = 0; i < 100; i++) {
        same[i] = i % 2 == 0;
        float near = i < 10 ? 1.5F : 0.5F;
        distance[i] = same[i] ? near : 2.0F - near;
    }
    struct sfc_pair_result result;
    assert_int_equal(sfc_evaluate_pairs(distance, same, 100, &result, NULL), SFC_OK);
    assert_true(fabs(result.accuracy - 0.9) < 1e-12);
    assert_true(fabs(result.deviation - 0.3) < 1e-9);
}

static void bad_pairs_are_refused(void **state)
{
    (void)state;
    float distance[20] = {0};
    bool same[20] = {true};
    struct sfc_pair_result result;
    struct sfc_error err;
    assert_int_equal(sfc_evaluate_pairs(distance, same, 9, &result, &err), SFC_EINVAL);
    distance[7] = NAN;
    assert_int_equal(sfc_evaluate_pairs(distance, same, 20, &result, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "pair 7"));
    bool all[20];
    for (int i = 0; i < 20; i++) {
        all[i] = true;
        distance[i] = 1;
    }
    assert_int_equal(sfc_evaluate_pairs(distance, all, 20, &result, &err), SFC_EINVAL);
}

/* 1000 impostors at 0.000, 0.0005 ..., 10 genuine pairs at known places. */
static void far_levels_by_hand(void **state)
{
    (void)state;
    enum { IMPOSTORS = 1000, GENUINE = 10 };
    float cosine[IMPOSTORS + GENUINE];
    bool same[IMPOSTORS + GENUINE];
    for (int i = 0; i < IMPOSTORS; i++) {
        cosine[i] = 0.0005F * (float)i;
        same[i] = false;
    }
    for (int i = 0; i < GENUINE; i++) { /* 0.41, 0.42 ... 0.50: 100 impostors lie above 0.45 */
        cosine[IMPOSTORS + i] = 0.4101F + 0.01F * (float)i;
        same[IMPOSTORS + i] = true;
    }
    struct sfc_far_result result;
    assert_int_equal(sfc_evaluate_scores(cosine, same, IMPOSTORS + GENUINE, &result, NULL), SFC_OK);
    assert_int_equal(result.impostor, IMPOSTORS);
    assert_int_equal(result.genuine, GENUINE);
    assert_true(result.level[0].supported);
    assert_true(fabs(result.level[0].tar - 0.6) < 1e-9); /* 0.4501 and up: six of ten */
    assert_true(result.level[1].supported);              /* 10 false accepts */
    assert_true(fabs(result.level[1].tar - 0.1) < 1e-9); /* above 0.495: one */
    assert_false(result.level[2].supported);             /* one false accept */
}

static float random_float(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(*seed >> 40) / (float)(1 << 24) - 0.5F;
}

static void all_pairs_equal_listed_pairs(void **state)
{
    (void)state;
    enum { N = 150, DIM = 19 };
    static float rows[N * DIM];
    static float cosine[N * N];
    static bool same[N * N];
    uint64_t labels[N];
    uint64_t seed = 7;
    for (int i = 0; i < N * DIM; i++) {
        rows[i] = random_float(&seed);
    }
    sfc_normalise_rows(rows, N, DIM);
    for (uint64_t i = 0; i < N; i++) {
        labels[i] = i / 5;
    }
    uint64_t pairs = 0;
    for (int i = 0; i < N; i++) {
        for (int j = i + 1; j < N; j++, pairs++) {
            double sum = 0;
            for (int k = 0; k < DIM; k++) {
                sum += (double)rows[i * DIM + k] * (double)rows[j * DIM + k];
            }
            cosine[pairs] = (float)sum;
            same[pairs] = labels[i] == labels[j];
        }
    }
    struct sfc_far_result listed;
    assert_int_equal(sfc_evaluate_scores(cosine, same, pairs, &listed, NULL), SFC_OK);
    for (unsigned threads = 1; threads <= 3; threads++) {
        struct sfc_far_result all;
        assert_int_equal(sfc_evaluate_labelled(rows, labels, N, DIM, threads, &all, NULL), SFC_OK);
        assert_int_equal(all.genuine, listed.genuine);
        assert_int_equal(all.impostor, listed.impostor);
        for (int i = 0; i < SFC_EVAL_FAR_LEVEL; i++) {
            assert_int_equal(all.level[i].supported, listed.level[i].supported);
            assert_true(fabs(all.level[i].tar - listed.level[i].tar) < 0.005);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(separable_pairs_are_all_right),
        cmocka_unit_test(threshold_comes_from_the_other_folds),
        cmocka_unit_test(bad_pairs_are_refused),
        cmocka_unit_test(far_levels_by_hand),
        cmocka_unit_test(all_pairs_equal_listed_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Merging of shards' answers, loss, and the gradient through the normalisation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/philox.h"
#include "worker/head_exchange.h"
#include "worker/synthetic.h"

#define ROWS   5u
#define SHARDS 3u
#define NONE   UINT64_MAX

struct answers {
    struct sfc_sum256 sums[SHARDS][ROWS];
    float target[SHARDS][ROWS];
    uint8_t has[SHARDS][ROWS];
    struct sfc_logits_part parts[SHARDS];
    uint64_t labels[ROWS];
};

/* Row r has its target on shard r % SHARDS; the last row has no label. */
static void fill(struct answers *a)
{
    memset(a, 0, sizeof *a);
    for (uint32_t r = 0; r < ROWS; r++)
        a->labels[r] = r + 1 < ROWS ? r : NONE;
    for (uint32_t k = 0; k < SHARDS; k++) {
        for (uint32_t r = 0; r < ROWS; r++) {
            for (uint32_t i = 0; i < 4; i++)
                sfc_sum256_add_double(&a->sums[k][r], exp((double)(r + k) - 0.25 * i));
            if (r + 1 < ROWS && r % SHARDS == k) {
                a->has[k][r] = 1;
                a->target[k][r] = (float)r + 0.5f;
            }
        }
        a->parts[k] = (struct sfc_logits_part){
            .sums = a->sums[k], .target = a->target[k], .has_target = a->has[k]};
    }
}

static int merge(const struct answers *a, double *lse, float *target, struct sfc_error *err)
{
    return sfc_head_merge_logits(a->parts, SHARDS, ROWS, 0, a->labels, lse, target, err);
}

static void test_merge(void **state)
{
    (void)state;
    struct answers a;
    struct sfc_error err;
    double lse[ROWS];
    float target[ROWS];
    fill(&a);
    assert_int_equal(merge(&a, lse, target, &err), SFC_OK);
    double loss = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        double sum = 0;
        for (uint32_t k = 0; k < SHARDS; k++)
            for (uint32_t i = 0; i < 4; i++)
                sum += exp((double)(r + k) - 0.25 * i);
        assert_true(fabs(lse[r] - log(sum)) < 1e-12);
        assert_true(target[r] == (r + 1 < ROWS ? (float)r + 0.5f : 0.0f));
        if (r + 1 < ROWS)
            loss += lse[r] - (double)target[r];
    }
    assert_true(sfc_head_loss_sum(ROWS, a.labels, lse, target) == loss);
}

static void test_merge_ignores_order(void **state)
{
    (void)state;
    struct answers a;
    struct sfc_error err;
    double lse[ROWS], other[ROWS];
    float target[ROWS];
    fill(&a);
    assert_int_equal(merge(&a, lse, target, &err), SFC_OK);
    struct sfc_logits_part first = a.parts[0];
    a.parts[0] = a.parts[2];
    a.parts[2] = first;
    assert_int_equal(merge(&a, other, target, &err), SFC_OK);
    assert_memory_equal(lse, other, sizeof lse);
}

static void expect_corrupt(const struct answers *a, const char *word)
{
    struct sfc_error err;
    double lse[ROWS];
    float target[ROWS];
    assert_int_equal(merge(a, lse, target, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, word));
}

static void test_merge_refuses(void **state)
{
    (void)state;
    struct answers a;
    fill(&a);
    a.has[0][1] = 1; /* two owners */
    expect_corrupt(&a, "row 1: 2 of 3");
    fill(&a);
    a.has[2][2] = 0; /* no owner */
    expect_corrupt(&a, "row 2: 0 of 3");
    fill(&a);
    a.has[1][ROWS - 1] = 1; /* an owner of a row without label */
    expect_corrupt(&a, "row 4: 1 of 3");
    fill(&a);
    a.has[1][1] = 7;
    expect_corrupt(&a, "has_target is 7");
    fill(&a);
    a.target[0][0] = NAN;
    expect_corrupt(&a, "shard 0, row 0");
    fill(&a);
    for (uint32_t k = 0; k < SHARDS; k++)
        memset(&a.sums[k][3], 0, sizeof a.sums[k][3]);
    expect_corrupt(&a, "row 3");
}

static void test_add_dx(void **state)
{
    (void)state;
    int64_t sum[2] = {5, INT64_MAX}, part[2] = {-7, 0};
    struct sfc_error err;
    assert_int_equal(sfc_head_add_dx(sum, part, 2, &err), SFC_OK);
    assert_true(sum[0] == -2 && sum[1] == INT64_MAX);
    part[1] = 1;
    assert_int_equal(sfc_head_add_dx(sum, part, 2, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "element 1"));
}

/* A function of the unit feature, g . x^, whose gradient in x is what backward must give. */
static void test_backward_against_differences(void **state)
{
    (void)state;
    enum { DIM = 24, N = 3 };
    float x[N * DIM], df[N * DIM];
    int64_t dx[N * DIM];
    for (uint32_t i = 0; i < N * DIM; i += 4) {
        float v[4];
        sfc_normal4(sfc_random(1, SFC_STREAM_SYNTHETIC, i, 0), v);
        memcpy(x + i, v, sizeof v);
        sfc_normal4(sfc_random(1, SFC_STREAM_SYNTHETIC, i, 1), v);
        for (uint32_t c = 0; c < 4; c++)
            dx[i + c] = sfc_dx_to_fixed(v[c]);
    }
    assert_int_equal(sfc_head_backward(N, DIM, x, dx, df), 0);
    for (uint32_t i = 0; i < N * DIM; i++) {
        uint32_t r = i / DIM;
        double value[2];
        for (int s = 0; s < 2; s++) {
            double squares = 0, dot = 0;
            for (uint32_t c = r * DIM; c < (r + 1) * DIM; c++) {
                double v = (double)x[c] + (c == i ? (s ? 1e-5 : -1e-5) : 0);
                squares += v * v;
                dot += v * ldexp((double)dx[c], -SFC_DX_FRACTION_BITS);
            }
            value[s] = dot / sqrt(squares);
        }
        assert_true(fabs((value[1] - value[0]) / 2e-5 - (double)df[i]) < 1e-6);
    }
}

static void test_zero_feature(void **state)
{
    (void)state;
    float x[8] = {0, 0, 0, 0, 3, 0, 0, 4}, df[8];
    int64_t dx[8];
    for (int i = 0; i < 8; i++)
        dx[i] = sfc_dx_to_fixed(1.0f);
    df[0] = 9;
    assert_int_equal(sfc_head_backward(2, 4, x, dx, df), 1);
    for (int i = 0; i < 4; i++)
        assert_true(df[i] == 0);
    /* x^ = (.6, 0, 0, .8), x^ . 1 = 1.4, |x| = 5 */
    assert_true(fabsf(df[4] - (1 - 0.6f * 1.4f) / 5) < 1e-7f);
    assert_true(fabsf(df[5] - 0.2f) < 1e-7f);
}

static void test_first_bad_and_digest(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4};
    double lse[2] = {1, 2};
    uint8_t a[16], b[16];
    assert_int_equal(sfc_head_first_bad(x, 4), 4);
    sfc_head_digest(2, 2, x, lse, a);
    lse[1] = nextafter(2, 3);
    sfc_head_digest(2, 2, x, lse, b);
    assert_memory_not_equal(a, b, sizeof a);
    x[2] = INFINITY;
    assert_int_equal(sfc_head_first_bad(x, 4), 2);
}

static void test_synthetic(void **state)
{
    (void)state;
    enum { DIM = 62, CLASSES = 7 };
    float a[DIM], b[DIM], c[DIM];
    bool seen[CLASSES] = {false};
    struct sfc_synthetic set = {.seed = 3, .classes = CLASSES, .dim = DIM};
    for (uint64_t s = 0; s < 40; s++) {
        uint64_t label = sfc_synthetic_label(&set, s);
        assert_true(label < CLASSES);
        seen[label] = true;
    }
    for (int k = 0; k < CLASSES; k++)
        assert_true(seen[k]);
    sfc_synthetic_feature(&set, 11, a);
    sfc_synthetic_feature(&set, 11, b);
    assert_memory_equal(a, b, sizeof a);
    set.seed = 4;
    sfc_synthetic_feature(&set, 11, c);
    assert_memory_not_equal(a, c, sizeof a);
    assert_int_equal(sfc_head_first_bad(a, DIM), DIM);
}

/* One hot class in each of N equal stretches of the ids, and only those have samples. */
static void test_hot_classes(void **state)
{
    (void)state;
    enum { HOT = 9 };
    struct sfc_synthetic set = {.seed = 5, .classes = 100, .hot_classes = HOT, .dim = 4};
    bool middle = false;
    for (uint64_t i = 0; i < HOT; i++) {
        uint64_t id = sfc_synthetic_hot_class(&set, i);
        assert_in_range(id, i * 100 / HOT, (i + 1) * 100 / HOT - 1);
        middle = middle || id != i * 100 / HOT;
        for (uint64_t round = 0; round < 3; round++)
            assert_int_equal(sfc_synthetic_label(&set, i + round * HOT), id);
    }
    assert_true(middle);
    set = (struct sfc_synthetic){.seed = 1, .classes = HOT, .hot_classes = HOT, .dim = 4};
    for (uint64_t i = 0; i < HOT; i++)
        assert_int_equal(sfc_synthetic_hot_class(&set, i), i); /* stretches of one id */
    set = (struct sfc_synthetic){.classes = (uint64_t)1 << 40, .hot_classes = 1 << 20};
    uint64_t last = sfc_synthetic_hot_class(&set, (1 << 20) - 1);
    assert_in_range(last, ((uint64_t)1 << 40) - (1 << 20), ((uint64_t)1 << 40) - 1);
}

/* A sample lies nearer to its class's hidden direction than to another's. */
static void test_hidden_directions(void **state)
{
    (void)state;
    enum { DIM = 130 };
    struct sfc_synthetic set = {.seed = 2, .classes = 1000, .hot_classes = 10, .dim = DIM};
    for (uint64_t s = 0; s < 20; s++) {
        float x[DIM], own[DIM], other[DIM];
        double near = 0, far = 0;
        sfc_synthetic_feature(&set, s, x);
        sfc_synthetic_direction(&set, sfc_synthetic_label(&set, s), own);
        sfc_synthetic_direction(&set, sfc_synthetic_label(&set, s + 1), other);
        for (int k = 0; k < DIM; k++) {
            near += (double)x[k] * own[k];
            far += (double)x[k] * other[k];
        }
        assert_true(near > DIM * 0.35 && far < DIM * 0.35);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_merge_ignores_order),
        cmocka_unit_test(test_merge_refuses),
        cmocka_unit_test(test_add_dx),
        cmocka_unit_test(test_backward_against_differences),
        cmocka_unit_test(test_zero_feature),
        cmocka_unit_test(test_first_bad_and_digest),
        cmocka_unit_test(test_synthetic),
        cmocka_unit_test(test_hot_classes),
        cmocka_unit_test(test_hidden_directions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

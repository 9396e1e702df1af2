/* Random numbers: published vectors, bulk against single calls, samples of blocks, permutations. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/rng/below.h"
#include "kernels/rng/permutation.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/sample.h"

/* Random123's known answers for philox4x32-10. */
static void test_philox_vectors(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        struct sfc_philox got = sfc_philox4x32_10(vectors[i].counter, vectors[i].key);
        assert_memory_equal(got.v, vectors[i].want, sizeof got.v);
    }
}

static void test_words_equal_single_calls(void **state)
{
    (void)state;
    uint32_t words[4 * 50];
    const uint64_t starts[] = {0, 5, UINT32_MAX - 3u, UINT64_MAX - 20};
    for (size_t s = 0; s < 4; s++) {
        for (size_t calls = 0; calls < 50; calls++) {
            memset(words, 0, sizeof words);
            sfc_random_words(77, SFC_STREAM_SAMPLE, 0x123456789abcdefu, starts[s], calls, words);
            for (size_t i = 0; i < calls; i++) {
                struct sfc_philox one =
                    sfc_random(77, SFC_STREAM_SAMPLE, 0x123456789abcdefu, starts[s] + i);
                assert_memory_equal(words + 4 * i, one.v, sizeof one.v);
            }
            assert_int_equal(words[4 * calls], 0);
        }
    }
}

/* Numbers and words that are at most limit, against all words one by one. */
static void check_below(uint64_t b, uint32_t count, uint32_t limit, const uint32_t *index,
                        const uint32_t *words, uint32_t n)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = sfc_random(5, SFC_STREAM_SAMPLE, 0xfedcba9876543210u, b + i / 4).v[i % 4];
        if (word <= limit) {
            assert_true(found < n);
            assert_int_equal(index[found], i);
            assert_int_equal(words[found], word);
            found++;
        }
    }
    assert_int_equal(found, n);
}

static void test_small_words(void **state)
{
    (void)state;
    enum { MAX = 700 };
    static const uint32_t counts[] = {0, 1, 3, 4, 31, 32, 33, 63, 64, 65, 100, 128, 333, MAX};
    static const uint32_t limits[] = {0, 0x02000000, 0x1fffffff, 0x80000000, UINT32_MAX};
    static const uint64_t starts[] = {0, 7, UINT32_MAX - 9u, UINT64_MAX - 3};
    uint32_t index[MAX + SFC_BELOW_SLACK], words[MAX + SFC_BELOW_SLACK];
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
            for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
                uint64_t a = 0xfedcba9876543210u, b = starts[s];
                uint32_t count = counts[c], limit = limits[l];
                uint32_t n =
                    sfc_random_below_plain(5, SFC_STREAM_SAMPLE, a, b, count, limit, index, words);
                check_below(b, count, limit, index, words, n);
                n = sfc_random_below(5, SFC_STREAM_SAMPLE, a, b, count, limit, index, words);
                check_below(b, count, limit, index, words, n);
            }
        }
    }
}

static void test_streams_and_seeds_differ(void **state)
{
    (void)state;
    struct sfc_philox a = sfc_random(1, SFC_STREAM_SAMPLE, 2, 3);
    struct sfc_philox b = sfc_random(1, SFC_STREAM_AUGMENT, 2, 3);
    struct sfc_philox c = sfc_random(2, SFC_STREAM_SAMPLE, 2, 3);
    struct sfc_philox d = sfc_random(1, SFC_STREAM_SAMPLE, 3, 2);
    assert_memory_not_equal(a.v, b.v, sizeof a.v);
    assert_memory_not_equal(a.v, c.v, sizeof a.v);
    assert_memory_not_equal(a.v, d.v, sizeof a.v);
}

static void test_uniform(void **state)
{
    (void)state;
    assert_true(sfc_uniform(0) == 0.0f);
    assert_true(sfc_uniform(UINT32_MAX) < 1.0f);
    assert_true(sfc_uniform(UINT32_MAX) > 0.9999999f);
}

static void test_normals(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    sfc_random_normals(5, SFC_STREAM_CLASS_INIT, 9, 0, N, x);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, cross = 0;
    size_t tail = 0;
    for (size_t i = 0; i < N; i++) {
        double v = x[i];
        m1 += v, m2 += v * v, m3 += v * v * v, m4 += v * v * v * v;
        cross += i > 0 ? v * (double)x[i - 1] : 0;
        tail += fabs(v) > 1.959963985;
    }
    /* five standard errors of each statistic */
    assert_true(fabs(m1 / N) < 5 * sqrt(1.0 / N));
    assert_true(fabs(m2 / N - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(m3 / N) < 5 * sqrt(15.0 / N));
    assert_true(fabs(m4 / N - 3) < 5 * sqrt(96.0 / N));
    assert_true(fabs(cross / N) < 5 * sqrt(1.0 / N));
    assert_true(fabs((double)tail / N - 0.05) < 5 * sqrt(0.0475 / N));
    for (uint32_t first = 0; first < 9; first++) { /* any start, any length: the same numbers */
        for (uint32_t count = 0; count < 140; count += 13) {
            float y[140];
            sfc_random_normals(5, SFC_STREAM_CLASS_INIT, 9, first, count, y);
            assert_memory_equal(y, x + first, count * sizeof *y);
        }
    }
    for (uint32_t g = 0; g < 100; g++) { /* the scalar path, and libm's Box-Muller */
        struct sfc_philox w = sfc_random(5, SFC_STREAM_CLASS_INIT, 9, g);
        float four[4];
        sfc_normal4(w, four);
        assert_memory_equal(four, x + (size_t)4 * g, sizeof four);
        for (size_t p = 0; p < 4; p += 2) {
            double r = sqrt(-2 * log((w.v[p] + 1.0) * 0x1p-32));
            double turn = 2 * 3.14159265358979323846 * (w.v[p + 1] * 0x1p-32);
            assert_true(fabs(r * cos(turn) - (double)four[p]) < 1e-6);
            assert_true(fabs(r * sin(turn) - (double)four[p + 1]) < 1e-6);
        }
    }
    free(x);
    const struct sfc_philox edges[] = {{{0, 0, UINT32_MAX, UINT32_MAX}},
                                       {{1, 0x80000000u, 0, 0x1fffffffu}}};
    for (size_t e = 0; e < 2; e++) {
        float four[4];
        sfc_normal4(edges[e], four);
        for (size_t i = 0; i < 4; i++) {
            assert_true(isfinite(four[i]) && fabsf(four[i]) < 7);
        }
    }
}

static void test_quota(void **state)
{
    (void)state;
    assert_int_equal(sfc_sample_quota(1, 1, 0), 1);
    assert_int_equal(sfc_sample_quota(1000000, 1, 0), 1);
    assert_int_equal(sfc_sample_quota(1000001, 1, 0), 2);
    assert_int_equal(sfc_sample_quota(8192, 100000, 0), 820);
    assert_int_equal(sfc_sample_quota(8192, 100000, 900), 900);
    assert_int_equal(sfc_sample_quota(8192, 1000000, 0), 8192);
    assert_true(sfc_sample_quota(UINT32_MAX, 1000000, 0) == UINT32_MAX);
}

/* The definition in sample.h, the slow way. */
struct keyed {
    uint64_t key;
};

static int by_key(const void *a, const void *b)
{
    uint64_t x = ((const struct keyed *)a)->key, y = ((const struct keyed *)b)->key;
    return x < y ? -1 : x > y;
}

static uint32_t slow_sample(uint64_t seed, uint64_t step, uint32_t block, uint32_t rows,
                            uint32_t ppm, const uint8_t *positive, uint32_t positives, uint8_t *in)
{
    uint32_t quota = sfc_sample_quota(rows, ppm, positives), n = 0;
    struct keyed *keys = malloc((rows + 1) * sizeof *keys);
    for (uint32_t i = 0; i < rows; i++) {
        in[i] = positive[i];
        if (!positive[i]) {
            struct sfc_philox w =
                sfc_random(seed, SFC_STREAM_SAMPLE, step, (uint64_t)block << 32 | i / 4);
            keys[n++].key = (uint64_t)w.v[i % 4] << 32 | i;
        }
    }
    qsort(keys, n, sizeof *keys, by_key);
    for (uint32_t k = 0; k < quota - positives; k++) {
        in[(uint32_t)keys[k].key] = 1;
    }
    free(keys);
    return quota;
}

static void test_sample_follows_its_definition(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 15, 16, 17, 63, 100, 1000, 1024, 4097};
    static const uint32_t rates[] = {1, 1000, 100000, 500000, 999999, 1000000};
    enum { MAX = 4097 };
    static uint8_t positive[MAX], in[MAX];
    static uint32_t list[MAX], out[MAX + 1];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
            for (uint32_t trial = 0; trial < 6; trial++) { /* 0 .. all rows positive */
                uint32_t rows = sizes[s], positives = 0;
                uint32_t limit = trial * (UINT32_MAX / 5);
                for (uint32_t i = 0; i < rows; i++) {
                    uint32_t w = sfc_random(trial, SFC_STREAM_SYNTHETIC, rows, i).v[0];
                    positive[i] = trial == 5 || (trial > 0 && w < limit / 4);
                    if (positive[i]) {
                        list[positives++] = i;
                    }
                }
                uint32_t want = slow_sample(31, trial, 7, rows, rates[r], positive, positives, in);
                void *scratch = aligned_alloc(64, (sfc_sample_scratch(rows) + 63) / 64 * 64);
                out[want] = 0xdeadbeef;
                uint32_t got =
                    sfc_sample_block(31, trial, 7, rows, rates[r], list, positives, out, scratch);
                free(scratch);
                assert_int_equal(got, want);
                assert_int_equal(out[want], 0xdeadbeef); /* never beyond the quota */
                uint32_t n = 0;
                for (uint32_t i = 0; i < rows; i++) {
                    if (in[i]) {
                        assert_int_equal(out[n++], i);
                    }
                }
                assert_int_equal(n, got);
            }
        }
    }
}

/* Small samples, often enough that now and then the first candidates are too few. */
static void test_many_small_samples(void **state)
{
    (void)state;
    enum { ROWS = 100, STEPS = 5000 };
    uint8_t positive[ROWS] = {0}, in[ROWS];
    uint32_t out[ROWS];
    const uint32_t positives[] = {17, 50};
    positive[17] = positive[50] = 1;
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(ROWS) + 63) / 64 * 64);
    for (uint64_t step = 1; step <= STEPS; step++) {
        uint32_t want = slow_sample(3, step, 7, ROWS, 100000, positive, 2, in), n = 0;
        assert_int_equal(sfc_sample_block(3, step, 7, ROWS, 100000, positives, 2, out, scratch),
                         want);
        for (uint32_t i = 0; i < ROWS; i++) {
            if (in[i]) {
                assert_int_equal(out[n++], i);
            }
        }
    }
    free(scratch);
}

static void test_sample_is_uniform(void **state)
{
    (void)state;
    enum { ROWS = 100, STEPS = 20000, QUOTA = 10 };
    uint32_t counts[ROWS] = {0}, out[ROWS];
    const uint32_t positives[] = {17, 50};
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(ROWS) + 63) / 64 * 64);
    for (uint64_t step = 1; step <= STEPS; step++) {
        assert_int_equal(sfc_sample_block(3, step, 0, ROWS, 100000, positives, 2, out, scratch),
                         QUOTA);
        for (uint32_t i = 0; i < QUOTA; i++) {
            counts[out[i]]++;
        }
    }
    free(scratch);
    double p = 8.0 / 98, expected = STEPS * p, chi2 = 0;
    for (uint32_t i = 0; i < ROWS; i++) {
        if (i == 17 || i == 50) {
            assert_int_equal(counts[i], STEPS);
        } else {
            chi2 += (counts[i] - expected) * (counts[i] - expected) / (expected * (1 - p));
        }
    }
    assert_true(chi2 < 97 + 5 * sqrt(2 * 97.0)); /* 97 degrees of freedom, five sigma */
    assert_true(chi2 > 97 - 5 * sqrt(2 * 97.0));
}

static void test_permutation_is_a_bijection(void **state)
{
    (void)state;
    static uint8_t seen[70000];
    for (uint64_t n = 1; n <= 65537; n = n < 70 ? n + 1 : n * 2 - 61) {
        for (uint64_t epoch = 0; epoch < 2; epoch++) {
            memset(seen, 0, sizeof seen);
            for (uint64_t i = 0; i < n; i++) {
                uint64_t s = sfc_sample_at(11, n, epoch * n + i);
                assert_true(s < n);
                assert_false(seen[s]);
                seen[s] = 1;
            }
        }
    }
}

static void test_permutation_mixes(void **state)
{
    (void)state;
    enum { N = 1000, EPOCHS = 400 };
    uint64_t fixed = 0, repeated = 0, neighbours = 0;
    for (uint64_t e = 0; e < EPOCHS; e++) {
        for (uint64_t i = 0; i < N; i++) {
            uint64_t here = sfc_sample_at(8, N, e * N + i);
            fixed += here == i;
            repeated += here == sfc_sample_at(8, N, (e + 1) * N + i);
            neighbours += i > 0 && here == sfc_sample_at(8, N, e * N + i - 1) + 1;
        }
    }
    /* each is a count with mean EPOCHS (Poisson): five sigma */
    assert_true(fabs((double)fixed - EPOCHS) < 100);
    assert_true(fabs((double)repeated - EPOCHS) < 100);
    assert_true(fabs((double)neighbours - EPOCHS) < 100);
    assert_true(sfc_sample_at(8, N, 5) != sfc_sample_at(9, N, 5) ||
                sfc_sample_at(8, N, 6) != sfc_sample_at(9, N, 6));
}

static void test_permutation_of_huge_sets(void **state)
{
    (void)state;
    const uint64_t n = (UINT64_C(1) << 40) + 12345;
    for (uint64_t i = 0; i < 1000; i++) {
        assert_true(sfc_sample_at(1, n, i * 1000003) < n);
    }
    assert_true(sfc_sample_at(1, UINT64_MAX, UINT64_MAX - 1) < UINT64_MAX);
    assert_int_equal(sfc_epoch_at(10, 39), 3);
    assert_int_equal(sfc_epoch_at(10, 40), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_vectors),
        cmocka_unit_test(test_words_equal_single_calls),
        cmocka_unit_test(test_small_words),
        cmocka_unit_test(test_streams_and_seeds_differ),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_normals),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_sample_follows_its_definition),
        cmocka_unit_test(test_many_small_samples),
        cmocka_unit_test(test_sample_is_uniform),
        cmocka_unit_test(test_permutation_is_a_bijection),
        cmocka_unit_test(test_permutation_mixes),
        cmocka_unit_test(test_permutation_of_huge_sets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

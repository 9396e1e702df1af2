/* Functions that the host and devices share, against the functions of the host that define them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/simd.h"
#include "kernels/exact_sum.h"
#include "kernels/hd/cosine.h"
#include "kernels/hd/exact.h"
#include "kernels/hd/layout.h"
#include "kernels/hd/margin.h"
#include "kernels/hd/sample.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"
#include "kernels/rng/sample.h"

static uint64_t draw(uint64_t what, uint64_t i)
{
    struct sfc_philox w = sfc_random(20, SFC_STREAM_SYNTHETIC, what, i);
    return (uint64_t)w.v[1] << 32 | w.v[0];
}

/* Bits of a float: any, but often one of the edges. */
static float any_float(uint64_t what, uint64_t i)
{
    static const uint32_t edges[] = {0,          0x80000000, 1,          0x7f7fffff, 0x7f800000,
                                     0xff800000, 0x7fc00000, 0x3f808000, 0x3f818000, 0x3f807fff,
                                     0x3f808001, 0xbf808000, 0x00008000, 0x7f7f8000};
    uint64_t r = draw(what, i);
    return sfc_hd_float(r >> 60 ? (uint32_t)r : edges[(r >> 32) % (sizeof edges / sizeof *edges)]);
}

/* FNV-1a. */
static uint64_t hash(uint64_t h, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return h;
}

/* Runs, logs and snapshots depend on these bits: they never change. */
static void test_bits_of_the_generators(void **state)
{
    (void)state;
    uint64_t normals = 0xcbf29ce484222325u, words = normals;
    for (uint64_t i = 0; i < 20000; i++) {
        float n[4];
        sfc_hd_normal4(sfc_hd_random(9, SFC_STREAM_CLASS_INIT, i, i * i), n);
        normals = hash(normals, n, sizeof n);
        uint32_t word =
            sfc_rounding_word(sfc_rounding_key(i, 3 * i, i << 20), (uint32_t)i) ^
            sfc_rounding_word(sfc_rounding_second_key(i, 3 * i, i << 20), (uint32_t)i + 1);
        words = hash(words, &word, sizeof word);
    }
    assert_int_equal(normals, 0xb597371a498a3f8au);
    assert_int_equal(words, 0xfdbd2c30e33795beu);
}

static void test_words_of_the_edges(void **state)
{
    (void)state;
    static const uint32_t edges[] = {0, 1, 0x1fffffff, 0x20000000, 0x7fffffff, UINT32_MAX};
    for (size_t a = 0; a < 6; a++)
        for (size_t b = 0; b < 6; b++) {
            float n[4];
            const struct sfc_philox w = {{edges[a], edges[b], edges[b], edges[a]}};
            sfc_hd_normal4(w, n);
            double radius = sqrt(-2 * log(((double)edges[a] + 1) * 0x1p-32));
            double angle = 2 * 3.14159265358979323846 * edges[b] * 0x1p-32;
            assert_true(fabs((double)n[0] - radius * cos(angle)) < 1e-6);
            assert_true(fabs((double)n[1] - radius * sin(angle)) < 1e-6);
        }
    assert_true(sfc_hd_uniform(UINT32_MAX) == sfc_uniform(UINT32_MAX));
}

static void test_halves(void **state)
{
    (void)state;
    const struct sfc_simd_half *simd = sfc_simd_base.half;
    for (uint32_t i = 0; i < 100000; i++) {
        float v = any_float(1, i), back;
        uint16_t nearest, high, low;
        simd->pack(&v, 1, SFC_STORE_BF16, &nearest, NULL);
        simd->pack(&v, 1, SFC_STORE_SPLIT, &high, &low);
        assert_int_equal(sfc_hd_bf16_nearest(v), nearest);
        assert_int_equal(sfc_hd_split_high(v), high);
        assert_int_equal(sfc_hd_split_low(v), low);
        assert_int_equal(sfc_hd_bits(sfc_hd_split_join(high, low)), sfc_hd_bits(v));
        simd->unpack(&nearest, NULL, 1, SFC_STORE_BF16, &back);
        assert_int_equal(sfc_hd_bits(sfc_hd_bf16_float(nearest)), sfc_hd_bits(back));
        uint32_t random = (uint32_t)draw(2, i);
        uint32_t up = (sfc_hd_bits(v) + (random & 0xffff)) >> 16;
        assert_int_equal(sfc_hd_bf16_stochastic(v, random), up & 0xffff);
    }
}

/* ---- exact sums */

static double any_double(uint64_t what, uint64_t i)
{
    static const double edges[] = {0,        -1,       0x1p-128, 0x1.8p-128, 0x1.fffffp-129,
                                   0x1p-181, 1e-300,   0x1p-32,  0x1p127,    0x1.fffffffffffffp127,
                                   0x1p-75,  0x1p-1074};
    uint64_t r = draw(what, i);
    if (r >> 60 == 0)
        return edges[(r >> 32) % (sizeof edges / sizeof *edges)];
    return ldexp((double)(r >> 11) + 1, (int)(r % 250) - 190);
}

static void carry_equals(const uint64_t limbs[SFC_HD_LIMBS], const struct sfc_sum256 *want)
{
    struct sfc_sum256 got;
    sfc_hd_carry(limbs, got.word);
    assert_memory_equal(&got, want, sizeof got);
}

static void add(uint64_t limbs[SFC_HD_LIMBS], double v)
{
    struct sfc_hd_term term = sfc_hd_term_of(v);
    assert_true(term.first <= SFC_HD_LIMBS - 3);
    for (size_t k = 0; k < 3; k++)
        limbs[term.first + k] += term.limb[k];
}

static void test_limbs_of_one_number(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100000; i++) {
        struct sfc_sum256 want = {{0}};
        uint64_t limbs[SFC_HD_LIMBS] = {0};
        double v = any_double(3, i);
        sfc_sum256_add_double(&want, v);
        add(limbs, v);
        for (size_t k = 0; k < SFC_HD_LIMBS; k++)
            assert_true(limbs[k] <= UINT32_MAX);
        carry_equals(limbs, &want);
    }
    static const double beyond[] = {0x1p128, 1e300, (double)INFINITY, (double)NAN,
                                    -(double)INFINITY};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        struct sfc_sum256 want = {{0}};
        uint64_t limbs[SFC_HD_LIMBS] = {0};
        sfc_sum256_add_double(&want, beyond[i]);
        add(limbs, beyond[i]);
        carry_equals(limbs, &want);
    }
}

static void test_limbs_of_sums(void **state)
{
    (void)state;
    for (uint32_t run = 0, overflows = 0; run < 300; run++) {
        struct sfc_sum256 want = {{0}};
        uint64_t limbs[SFC_HD_LIMBS] = {0};
        for (uint32_t i = 0; i < 100; i++) {
            double v = run % 3 ? any_double(4 + run, i) : 0x1.fp120;
            v = run % 7 ? v : v * 4;
            sfc_sum256_add_double(&want, v);
            add(limbs, v);
            carry_equals(limbs, &want);
        }
        overflows += (want.word[3] & want.word[0]) == UINT64_MAX;
        assert_true(run < 299 || (overflows > 0 && overflows < 300));
    }
}

static void test_fixed_point(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100000; i++) {
        float v = any_float(5, i);
        int64_t want = isnan(v)              ? 0
                       : fabsf(v) >= 0x1p18f ? (v > 0 ? 1 : -1) * (INT64_C(1) << 62)
                                             : (int64_t)rint(ldexp((double)v, 44));
        assert_int_equal(sfc_hd_dx_to_fixed(v), want);
    }
}

/* ---- cosines and margins */

static void test_cosines(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        float cosine[16], inverse_norm = i % 3 ? 1.0f : 0.37f;
        float filter = i % 2 ? 2.0f : sfc_uniform((uint32_t)draw(6, i)) * 2 - 1;
        int16_t kept[16];
        for (uint32_t c = 0; c < 16; c++) {
            uint64_t r = draw(7 + i, c);
            cosine[c] = sfc_uniform((uint32_t)r) * 2.2f - 1.1f;
            if (r >> 60 == 0) /* half-way between two of them */
                cosine[c] = ((float)((r >> 32) % 32766) + 0.5f) / SFC_COSINE_ONE;
            if (r >> 57 == 17)
                cosine[c] = r & 1 ? filter : NAN;
        }
        sfc_simd_base.half->logits(cosine, 16, 1, 16, &inverse_norm, filter, kept);
        for (uint32_t c = 0; c < 16; c++)
            assert_int_equal(sfc_hd_cosine_pack(cosine[c] * inverse_norm, filter), kept[c]);
    }
    const float unit = 64 / SFC_COSINE_ONE;
    assert_true(sfc_hd_cosine_logit(SFC_COSINE_FILTERED, unit) == 0);
    assert_true(sfc_hd_cosine_logit(-32766, unit) == -64);
    assert_true(sfc_hd_cosine_logit(100, unit) == 100 * unit);
}

static void test_margins(void **state)
{
    (void)state;
    static const struct sfc_hd_margin margins[] = {
        {1, 0, 0, 0}, {1, 0.5, 0, 0}, {1, 0, 0.35, 0}, {1.35, 0, 0, 0}, {4, 0.3, 0.2, 0}};
    for (size_t m = 0; m < sizeof margins / sizeof *margins; m++) {
        double before = INFINITY, slope;
        for (double theta = 0.01; theta < 3.13; theta += 0.01) {
            double f = sfc_hd_margin_at(margins[m], cos(theta), &slope);
            double phi = margins[m].m1 * theta + margins[m].m2;
            if (phi < 3.141)
                assert_true(fabs(f - (cos(phi) - margins[m].m3)) < 1e-12);
            assert_true(f < before); /* one monotonous curve over all branches */
            before = f;
            const double h = 1e-6;
            double other, up = sfc_hd_margin_at(margins[m], cos(theta) + h, &other);
            double down = sfc_hd_margin_at(margins[m], cos(theta) - h, &other);
            if (theta > 0.1 && theta < 3)
                assert_true(fabs((up - down) / (2 * h) - slope) < 1e-4 * (1 + fabs(slope)));
            struct sfc_hd_margin identity = margins[m];
            identity.identity = 1;
            assert_true(sfc_hd_margin_at(identity, cos(theta), &other) == f && other == 1);
        }
    }
}

/* ---- samples */

#define MAX_ROWS 9000

struct block {
    uint32_t rows, ppm, id, positives, positive[MAX_ROWS];
    uint64_t seed, step;
};

static uint64_t key_of(const struct block *b, uint32_t row)
{
    struct sfc_philox_key key = sfc_hd_stream_key(b->seed, SFC_STREAM_SAMPLE);
    return sfc_hd_sample_key(sfc_hd_sample_words(key, b->step, b->id, row / 4).v[row % 4], row);
}

static bool is_positive(const struct block *b, uint32_t row)
{
    return sfc_hd_members4(b->positive, b->positives, row & ~3u) >> (row & 3) & 1;
}

/* One narrowing: the histogram of the range's keys. */
static void narrow(const struct block *b, struct sfc_hd_cut *cut)
{
    static uint32_t bins[SFC_HD_BINS];
    memset(bins, 0, sizeof bins);
    for (uint32_t row = 0; row < b->rows; row++)
        if (!is_positive(b, row) && sfc_hd_cut_holds(cut, key_of(b, row)))
            bins[sfc_hd_cut_bin(cut, key_of(b, row))]++;
    uint32_t bin = 0, before = 0;
    while (before + bins[bin] < cut->k)
        before += bins[bin++];
    sfc_hd_cut_narrow(cut, bin, before, bins[bin]);
}

static void check_sample(const struct block *b)
{
    uint32_t want[MAX_ROWS], n = 0;
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(b->rows) + 63) / 64 * 64);
    assert_non_null(scratch);
    uint32_t count = sfc_sample_block(b->seed, b->step, b->id, b->rows, b->ppm, b->positive,
                                      b->positives, want, scratch);
    free(scratch);
    struct sfc_hd_cut cut = {0, 64, count - b->positives, b->rows - b->positives};
    while (cut.k && cut.members > 1) {
        uint32_t bits = cut.bits;
        narrow(b, &cut);
        assert_true(cut.bits < bits && cut.k >= 1 && cut.k <= cut.members);
    }
    for (uint32_t row = 0; row < b->rows; row++) {
        uint64_t key = key_of(b, row);
        bool below = cut.k && (sfc_hd_cut_holds(&cut, key) || key < cut.low);
        if (is_positive(b, row) || below) {
            assert_true(n < count);
            assert_int_equal(row, want[n++]);
        }
    }
    assert_int_equal(n, count);
}

static void test_samples(void **state)
{
    (void)state;
    static const uint32_t rates[] = {1, 1000, 10000, 100000, 500000, 999999, 1000000};
    static struct block b;
    for (uint64_t i = 0; i < 400; i++) {
        uint64_t r = draw(8, i);
        b.rows = 1 + (uint32_t)(r % (i % 8 ? 300 : MAX_ROWS));
        b.ppm = rates[(r >> 32) % 7];
        b.id = (uint32_t)(r >> 35) % 5000;
        b.seed = r >> 40, b.step = i;
        b.positives = 0;
        uint64_t one_in = 1 + (r >> 50) % 40 * ((r >> 50) % 3);
        for (uint32_t row = 0; row < b.rows && i % 5; row++)
            if (draw(9 + i, row) % one_in == 0)
                b.positive[b.positives++] = row;
        check_sample(&b);
    }
}

/* Keys that differ in one bit only, wherever it is. */
static void test_cut_finds_the_last_bit(void **state)
{
    (void)state;
    for (uint32_t bit = 0; bit < 64; bit++)
        for (uint32_t k = 1; k <= 2; k++) {
            uint64_t keys[2] = {0x123456789abcdef0u & ~(UINT64_C(1) << bit), 0};
            keys[1] = keys[0] | UINT64_C(1) << bit;
            struct sfc_hd_cut cut = {0, 64, k, 2};
            while (cut.members > 1) {
                uint32_t first = sfc_hd_cut_bin(&cut, keys[0]);
                uint32_t second = sfc_hd_cut_bin(&cut, keys[1]);
                assert_true(first <= second && second < SFC_HD_BINS);
                bool one = cut.k == 1;
                sfc_hd_cut_narrow(&cut, one ? first : second, !one && first != second,
                                  first == second ? 2 : 1);
            }
            assert_true(sfc_hd_cut_holds(&cut, keys[k - 1]));
            assert_false(sfc_hd_cut_holds(&cut, keys[2 - k]));
        }
}

/* ---- layout */

static void test_chunk_sizes(void **state)
{
    (void)state;
    assert_int_equal(sfc_hd_chunk(0), 16);
    assert_int_equal(sfc_hd_chunk(1), 16);
    assert_int_equal(sfc_hd_chunk(17), 32);
    assert_int_equal(sfc_hd_chunk(820), 832);
    assert_int_equal(sfc_hd_chunk(1024), 1024);
    assert_int_equal(sfc_hd_chunk(1025), 576);
    assert_int_equal(sfc_hd_chunk(384), 384);
    assert_int_equal(sfc_hd_chunk(385), 448);
    assert_int_equal(sfc_hd_chunk(300), 304);
    for (size_t quota = 1; quota <= 1 << 20; quota += 1 + quota / 50) {
        size_t chunk = sfc_hd_chunk(quota), n = sfc_hd_chunks(quota, chunk);
        assert_true(chunk % 16 == 0 && chunk <= 1024);
        assert_true(n == (quota + 1023) / 1024 || n == (quota + 1023) / 1024 - 1);
        assert_true(n * chunk - quota < chunk);
    }
}

/* The most chunks of `count` blocks from block i on with `batch` positives: all ways to share them.
 */
static size_t most_chunks(const uint32_t *rows, size_t count, uint32_t ppm, size_t chunk,
                          uint32_t batch)
{
    if (count == 0)
        return 0;
    size_t most = 0;
    for (uint32_t p = 0; p <= batch && p <= rows[0]; p++) {
        size_t n = sfc_hd_chunks(sfc_sample_quota(rows[0], ppm, p), chunk) +
                   most_chunks(rows + 1, count - 1, ppm, chunk, batch - p);
        most = n > most ? n : most;
    }
    return most;
}

static void test_bounds_of_plans(void **state)
{
    (void)state;
    uint32_t exact = 0;
    for (uint64_t i = 0; i < 300; i++) {
        uint64_t r = draw(10, i);
        uint32_t full = 1 + (uint32_t)r % 120, ppm = 1 + (uint32_t)(r >> 8) % 600000;
        uint32_t batch = (uint32_t)(r >> 40) % 100;
        size_t count = 1 + (r >> 50) % 3;
        uint32_t rows[3];
        size_t chunk = sfc_hd_chunk(sfc_sample_quota(full, ppm, 0));
        struct sfc_hd_bound bound = {0, 0, 0};
        for (size_t b = 0; b < count; b++) {
            rows[b] = b + 1 < count ? full : 1 + (uint32_t)(r >> 33) % full;
            sfc_hd_bound_add(&bound, rows[b], sfc_sample_quota(rows[b], ppm, 0), chunk);
        }
        size_t most = most_chunks(rows, count, ppm, chunk, batch);
        size_t got = sfc_hd_bound_chunks(&bound, batch, chunk);
        assert_true(most <= got);
        assert_true(got <= most + 1);
        exact += got == most;
    }
    assert_true(exact > 250);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_the_generators),
        cmocka_unit_test(test_words_of_the_edges),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_limbs_of_one_number),
        cmocka_unit_test(test_limbs_of_sums),
        cmocka_unit_test(test_fixed_point),
        cmocka_unit_test(test_cosines),
        cmocka_unit_test(test_margins),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_cut_finds_the_last_bit),
        cmocka_unit_test(test_chunk_sizes),
        cmocka_unit_test(test_bounds_of_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

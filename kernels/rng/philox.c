#include "kernels/rng/philox.h"

#include <math.h>
#include <string.h>

/* Wider vectors give the same bits (integers; doubles without contraction), only faster. The
 * sanitizers instrument ifunc resolvers, which run before their runtime is up. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&      \
    !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

#define ROUNDS 10

/* Calls that are computed side by side. */
#define LANES 16

struct lanes {
    uint32_t v[4][LANES];
};

struct sfc_philox sfc_philox4x32_10(const uint32_t counter[4], const uint32_t key[2])
{
    struct sfc_philox c = {{counter[0], counter[1], counter[2], counter[3]}};
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t p0 = (uint64_t)SFC_PHILOX_M0 * c.v[0];
        uint64_t p1 = (uint64_t)SFC_PHILOX_M1 * c.v[2];
        c = (struct sfc_philox){{(uint32_t)(p1 >> 32) ^ c.v[1] ^ k0, (uint32_t)p1,
                                 (uint32_t)(p0 >> 32) ^ c.v[3] ^ k1, (uint32_t)p0}};
        k0 += SFC_PHILOX_W0;
        k1 += SFC_PHILOX_W1;
    }
    return c;
}

/* The finaliser of SplitMix64 (a bijection of 64 bits) on seed + stream * 2^64 / golden ratio. */
void sfc_stream_key(uint64_t seed, enum sfc_stream stream, uint32_t key[2])
{
    uint64_t x = seed + (uint64_t)stream * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    key[0] = (uint32_t)x;
    key[1] = (uint32_t)(x >> 32);
}

struct sfc_philox sfc_random(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b)
{
    uint32_t key[2];
    sfc_stream_key(seed, stream, key);
    const uint32_t counter[4] = {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b,
                                 (uint32_t)(b >> 32)};
    return sfc_philox4x32_10(counter, key);
}

static inline __attribute__((always_inline)) void
philox_lanes(uint64_t a, uint64_t b, const uint32_t key[2], struct lanes *out)
{
    struct lanes c;
    for (uint32_t l = 0; l < LANES; l++) {
        uint64_t bl = b + l;
        c.v[0][l] = (uint32_t)a;
        c.v[1][l] = (uint32_t)(a >> 32);
        c.v[2][l] = (uint32_t)bl;
        c.v[3][l] = (uint32_t)(bl >> 32);
    }
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t l = 0; l < LANES; l++) {
            uint64_t p0 = (uint64_t)SFC_PHILOX_M0 * c.v[0][l];
            uint64_t p1 = (uint64_t)SFC_PHILOX_M1 * c.v[2][l];
            c.v[0][l] = (uint32_t)(p1 >> 32) ^ c.v[1][l] ^ k0;
            c.v[1][l] = (uint32_t)p1;
            c.v[2][l] = (uint32_t)(p0 >> 32) ^ c.v[3][l] ^ k1;
            c.v[3][l] = (uint32_t)p0;
        }
        k0 += SFC_PHILOX_W0;
        k1 += SFC_PHILOX_W1;
    }
    *out = c;
}

/* LANES calls from counter b, in the order of the calls: [4 * LANES]. */
WIDE static void word_lanes(uint64_t a, uint64_t b, const uint32_t key[2], uint32_t *out)
{
    struct lanes c;
    philox_lanes(a, b, key, &c);
    for (size_t l = 0; l < LANES; l++) {
        for (size_t w = 0; w < 4; w++) {
            out[4 * l + w] = c.v[w][l];
        }
    }
}

void sfc_random_words(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b, size_t calls,
                      uint32_t *out)
{
    uint32_t key[2], rest[4 * LANES];
    sfc_stream_key(seed, stream, key);
    size_t i = 0;
    for (; calls - i >= LANES; i += LANES) {
        word_lanes(a, b + i, key, out + 4 * i);
    }
    if (i < calls) {
        word_lanes(a, b + i, key, rest);
        memcpy(out + 4 * i, rest, (calls - i) * 4 * sizeof *out);
    }
}

float sfc_uniform(uint32_t word)
{
    return (float)(word >> 8) * 0x1p-24f;
}

/* ln of the words (word + 1) / 2^32, so in (2^-32, 1]: exponent and mantissa apart, the mantissa m
 * in [1, 2) through ln m = 2 atanh((m - 1) / (m + 1)) with m halved above sqrt 2 (|s| < 0.172,
 * error below 1e-10). */
static inline __attribute__((always_inline)) double log_of_word(uint32_t word)
{
    const double sqrt2 = 0x1.6a09e667f3bcdp0, ln2 = 0x1.62e42fefa39efp-1;
    double v = ((double)word + 1.0) * 0x1p-32;
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    double e = (double)(int32_t)(uint32_t)(bits >> 52) - 1023.0;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    double high = m > sqrt2 ? 1.0 : 0.0;
    m = m * (1.0 - 0.5 * high);
    e = e + high;
    double s = (m - 1.0) / (m + 1.0), q = s * s;
    double series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q / 11))));
    return e * ln2 + 2.0 * s * series;
}

/* cos and sin of 2 pi word / 2^32: the quadrant from the top bits, the rest in [-pi/4, pi/4) by
 * Taylor series (error below 1e-10). */
static inline __attribute__((always_inline)) void circle(uint32_t word, double *c, double *s)
{
    uint32_t turned = word + 0x20000000u; /* an eighth of a turn: quadrants centred on the axes */
    uint32_t quadrant = turned >> 30;
    double x = (double)(int32_t)((turned & 0x3fffffffu) - 0x20000000u) * 0x1.921fb54442d18p-30;
    double q = x * x;
    double sine = x * (1.0 + q * (-1.0 / 6 + q * (1.0 / 120 + q * (-1.0 / 5040 + q / 362880))));
    double cosine =
        1.0 + q * (-0.5 + q * (1.0 / 24 + q * (-1.0 / 720 + q * (1.0 / 40320 - q / 3628800))));
    double a = quadrant & 1 ? sine : cosine;
    double b = quadrant & 1 ? cosine : sine;
    *c = quadrant == 1 || quadrant == 2 ? -a : a;
    *s = quadrant >= 2 ? -b : b;
}

static inline __attribute__((always_inline)) void normal_pair(uint32_t w0, uint32_t w1, float *n0,
                                                              float *n1)
{
    double radius = sqrt(-2.0 * log_of_word(w0));
    double c, s;
    circle(w1, &c, &s);
    *n0 = (float)(radius * c);
    *n1 = (float)(radius * s);
}

void sfc_normal4(struct sfc_philox words, float out[4])
{
    normal_pair(words.v[0], words.v[1], &out[0], &out[1]);
    normal_pair(words.v[2], words.v[3], &out[2], &out[3]);
}

/* LANES calls from counter b: [4 * LANES] normals. */
WIDE static void normal_lanes(uint64_t a, uint64_t b, const uint32_t key[2], float *out)
{
    struct lanes c;
    float n[4][LANES];
    philox_lanes(a, b, key, &c);
    for (size_t l = 0; l < LANES; l++) {
        normal_pair(c.v[0][l], c.v[1][l], &n[0][l], &n[1][l]);
    }
    for (size_t l = 0; l < LANES; l++) {
        normal_pair(c.v[2][l], c.v[3][l], &n[2][l], &n[3][l]);
    }
    for (size_t l = 0; l < LANES; l++) {
        for (size_t w = 0; w < 4; w++) {
            out[4 * l + w] = n[w][l];
        }
    }
}

void sfc_random_normals(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t first,
                        size_t count, float *out)
{
    uint32_t key[2];
    sfc_stream_key(seed, stream, key);
    float chunk[4 * LANES];
    size_t done = 0;
    while (done < count) {
        uint64_t at = first + done;
        size_t skip = (size_t)(at % 4);
        size_t n = 4 * LANES - skip < count - done ? 4 * LANES - skip : count - done;
        normal_lanes(a, at / 4, key, chunk);
        memcpy(out + done, chunk + skip, n * sizeof *out);
        done += n;
    }
}

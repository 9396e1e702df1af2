/* Philox4x32-10 and what is made of its words (kernels/rng/philox.h says what they are for). */
#ifndef SFC_KERNELS_HD_PHILOX_H
#define SFC_KERNELS_HD_PHILOX_H

#include "kernels/hd/hd.h"

/* Separate uses never share a counter: the stream is mixed into the key. */
enum sfc_stream {
    SFC_STREAM_SAMPLE = 1,  /* counter (step, block, word in block) */
    SFC_STREAM_CLASS_INIT,  /* counter (class, column / 4) */
    SFC_STREAM_DENSE_INIT,  /* counter (0, index / 4) */
    SFC_STREAM_PERMUTATION, /* counter (epoch, round, half) */
    SFC_STREAM_AUGMENT,     /* counter (epoch, sample, draw) */
    SFC_STREAM_SYNTHETIC,   /* counter (what, index, column / 4) */
    SFC_STREAM_ROUNDING     /* counter (step, class): kernels/rng/rounding.h */
};

#define SFC_PHILOX_M0 0xD2511F53u
#define SFC_PHILOX_M1 0xCD9E8D57u
#define SFC_PHILOX_W0 0x9E3779B9u
#define SFC_PHILOX_W1 0xBB67AE85u

#define SFC_PHILOX_ROUNDS 10

struct sfc_philox {
    uint32_t v[4];
};

struct sfc_philox_key {
    uint32_t v[2];
};

/* One round with the key k0, k1. */
static SFC_HD inline void sfc_hd_philox_round(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    uint64_t p0 = (uint64_t)SFC_PHILOX_M0 * c[0];
    uint64_t p1 = (uint64_t)SFC_PHILOX_M1 * c[2];
    c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
    c[1] = (uint32_t)p1;
    c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
    c[3] = (uint32_t)p0;
}

/* The finaliser of SplitMix64 (a bijection of 64 bits) on seed + stream * 2^64 / golden ratio. */
static SFC_HD inline struct sfc_philox_key sfc_hd_stream_key(uint64_t seed, enum sfc_stream stream)
{
    uint64_t x = seed + (uint64_t)stream * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    struct sfc_philox_key key = {{(uint32_t)x, (uint32_t)(x >> 32)}};
    return key;
}

/* Four words for the counter (a, b) under the key of a stream. */
static SFC_HD inline struct sfc_philox sfc_hd_philox(struct sfc_philox_key key, uint64_t a,
                                                     uint64_t b)
{
    struct sfc_philox c = {{(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)}};
    uint32_t k0 = key.v[0], k1 = key.v[1];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int round = 0; round < SFC_PHILOX_ROUNDS; round++) {
        sfc_hd_philox_round(c.v, k0, k1);
        k0 += SFC_PHILOX_W0;
        k1 += SFC_PHILOX_W1;
    }
    return c;
}

static SFC_HD inline struct sfc_philox sfc_hd_random(uint64_t seed, enum sfc_stream stream,
                                                     uint64_t a, uint64_t b)
{
    return sfc_hd_philox(sfc_hd_stream_key(seed, stream), a, b);
}

/* In [0, 1), with 24 bits. */
static SFC_HD inline float sfc_hd_uniform(uint32_t word)
{
    return sfc_hd_mul((float)(word >> 8), 0x1p-24f);
}

/* a + b * c, two roundings. */
static SFC_HD inline double sfc_hd_horner(double a, double b, double c)
{
    return sfc_hd_dadd(a, sfc_hd_dmul(b, c));
}

/* ln of the words (word + 1) / 2^32, so in (2^-32, 1]: exponent and mantissa apart, the mantissa m
 * in [1, 2) through ln m = 2 atanh((m - 1) / (m + 1)) with m halved above sqrt 2 (|s| < 0.172,
 * error below 1e-10). */
static SFC_HD inline double sfc_hd_log_of_word(uint32_t word)
{
    const double sqrt2 = 0x1.6a09e667f3bcdp0, ln2 = 0x1.62e42fefa39efp-1;
    double v = sfc_hd_dmul((double)word + 1.0, 0x1p-32);
    uint64_t bits = sfc_hd_dbits(v);
    double e = (double)(int32_t)(uint32_t)(bits >> 52) - 1023.0;
    double m = sfc_hd_double((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
    double high = m > sqrt2 ? 1.0 : 0.0;
    m = sfc_hd_dmul(m, 1.0 - 0.5 * high); /* exact: by 1 or 1/2 */
    e = e + high;
    double s = (m - 1.0) / (m + 1.0), q = sfc_hd_dmul(s, s);
    double series = sfc_hd_dadd(1.0 / 9, q / 11);
    series = sfc_hd_horner(1.0 / 7, q, series);
    series = sfc_hd_horner(1.0 / 5, q, series);
    series = sfc_hd_horner(1.0 / 3, q, series);
    series = sfc_hd_horner(1.0, q, series);
    return sfc_hd_dadd(sfc_hd_dmul(e, ln2), sfc_hd_dmul(sfc_hd_dmul(2.0, s), series));
}

/* cos and sin of 2 pi word / 2^32: the quadrant from the top bits, the rest in [-pi/4, pi/4) by
 * Taylor series (error below 1e-10). */
static SFC_HD inline void sfc_hd_circle(uint32_t word, double *c, double *s)
{
    uint32_t turned = word + 0x20000000u; /* an eighth of a turn: quadrants centred on the axes */
    uint32_t quadrant = turned >> 30;
    double x =
        sfc_hd_dmul((double)(int32_t)((turned & 0x3fffffffu) - 0x20000000u), 0x1.921fb54442d18p-30);
    double q = sfc_hd_dmul(x, x);
    double sine = sfc_hd_dadd(-1.0 / 5040, q / 362880);
    sine = sfc_hd_horner(1.0 / 120, q, sine);
    sine = sfc_hd_horner(-1.0 / 6, q, sine);
    sine = sfc_hd_dmul(x, sfc_hd_horner(1.0, q, sine));
    double cosine = sfc_hd_dadd(1.0 / 40320, -(q / 3628800));
    cosine = sfc_hd_horner(-1.0 / 720, q, cosine);
    cosine = sfc_hd_horner(1.0 / 24, q, cosine);
    cosine = sfc_hd_horner(-0.5, q, cosine);
    cosine = sfc_hd_horner(1.0, q, cosine);
    double a = quadrant & 1 ? sine : cosine;
    double b = quadrant & 1 ? cosine : sine;
    *c = quadrant == 1 || quadrant == 2 ? -a : a;
    *s = quadrant >= 2 ? -b : b;
}

static SFC_HD inline void sfc_hd_normal_pair(uint32_t w0, uint32_t w1, float *n0, float *n1)
{
    double radius = sqrt(sfc_hd_dmul(-2.0, sfc_hd_log_of_word(w0)));
    double c, s;
    sfc_hd_circle(w1, &c, &s);
    *n0 = (float)sfc_hd_dmul(radius, c);
    *n1 = (float)sfc_hd_dmul(radius, s);
}

/* Four standard normals (Box-Muller). */
static SFC_HD inline void sfc_hd_normal4(struct sfc_philox words, float out[4])
{
    sfc_hd_normal_pair(words.v[0], words.v[1], &out[0], &out[1]);
    sfc_hd_normal_pair(words.v[2], words.v[3], &out[2], &out[3]);
}

#endif

/* What the loops of every instruction set share: vectors of 16 floats in GCC's vector types, which
 * become 1, 2 or 4 registers. Included by files that are compiled once per level with SFC_LEVEL set
 * to its name (kernels/CMakeLists.txt). */
#ifndef SFC_KERNELS_CPU_SIMD_VEC_H
#define SFC_KERNELS_CPU_SIMD_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "kernels/cpu/simd.h"

#define LANES       16
#define JOIN2(a, b) a##b
#define JOIN(a, b)  JOIN2(a, b)
#define TEXT2(a)    #a
#define TEXT(a)     TEXT2(a)
#define INLINE      static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4), may_alias));
typedef float half __attribute__((vector_size(32), aligned(4), may_alias));
typedef double dvec __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t lvec __attribute__((vector_size(64), aligned(8), may_alias));

/* Rows ahead of the one in work whose cache lines are asked for. */
#define AHEAD 4

/* Into the second-level cache: beyond the first, which holds a few rows, and without waiting for
 * its few fill buffers. */
INLINE void fetch(const void *p)
{
    __builtin_prefetch(p, 0, 2);
}

INLINE vec load(const float *p)
{
    return *(const vec *)p;
}

INLINE void store(float *p, vec v)
{
    *(vec *)p = v;
}

INLINE vec splat(float x)
{
    return x - (vec){0}; /* keeps -0, which 0 + x does not */
}

/* The last, incomplete vector of a row in the block store. */
INLINE vec load_part(const float *p, size_t n)
{
    float buffer[LANES] = {0};
    memcpy(buffer, p, n * sizeof *p);
    return load(buffer);
}

INLINE void store_part(float *p, vec v, size_t n)
{
    float buffer[LANES];
    store(buffer, v);
    memcpy(p, buffer, n * sizeof *p);
}

INLINE vec select_lanes(ivec mask, vec yes, vec no)
{
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

/* GCC cuts the conversion of 8 floats into four. */
INLINE dvec to_double(half v)
{
#ifdef __AVX512F__
    return (dvec)_mm512_cvtps_pd((__m256)v);
#else
    return __builtin_convertvector(v, dvec);
#endif
}

INLINE half low_half(vec v)
{
    return (half){v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
}

INLINE half high_half(vec v)
{
    return (half){v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]};
}

/* Sum of the lanes in double, by halves. */
INLINE double total(vec v)
{
    dvec s = to_double(low_half(v)) + to_double(high_half(v));
    double a = s[0] + s[4], b = s[1] + s[5], c = s[2] + s[6], d = s[3] + s[7];
    return (a + c) + (b + d);
}

INLINE float inverse(double sum_of_squares)
{
    double norm = sqrt(sum_of_squares);
    if (!isfinite(norm)) /* too large to be squared: not a row to go on with */
        return NAN;
    return norm < 1e-12 ? 0.0f : (float)(1.0 / norm);
}

/* e^x, relative error below 2e-7 for results from 2^-126; 0 below, e^88.3 above; NaN stays NaN.
 * 2^k times the Taylor series up to r^7 in r = x - k ln 2, |r| <= 0.347 (the next term is 6e-9). */
INLINE vec exp_vec(vec x)
{
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    ivec low = x < splat(-87.3365f);
    vec y = select_lanes(x > splat(88.3f), splat(88.3f), x);
    vec k = y * splat(1.44269504f) + magic;
    ivec exponent = (ivec)k - (ivec)magic;
    k = k - magic;
    vec r = y - k * splat(0.693359375f);
    r = r + k * splat(2.12194440e-4f);
    vec p = splat(1.0f / 5040);
    p = p * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    vec two_k = (vec)((exponent + 127) << 23);
    return select_lanes(low, splat(0.0f), p * two_k);
}

INLINE vec clamped(vec cos)
{
    cos = select_lanes(cos > splat(1.0f), splat(1.0f), cos);
    return select_lanes(cos < splat(-1.0f), splat(-1.0f), cos);
}

/* What row r is behind; NULL: it is up to date. */
INLINE const struct sfc_lag *lag_of(const struct sfc_store *store, uint32_t r)
{
    return store->last && store->last[r] + 1 != store->now ? &store->lag[store->last[r]] : NULL;
}

/* w, m of one vector; dw is already times (1 / norm) and without its part along w. */
INLINE void step(vec *w, vec *m, vec g, const struct sfc_update *u)
{
    g = g + splat(u->weight_decay) * *w;
    *m = splat(u->momentum) * *m + g;
    *w = *w - splat(u->lr) * *m;
}

INLINE vec root(vec v)
{
    float lane[LANES];
    store(lane, v);
    for (int i = 0; i < LANES; i++)
        lane[i] = sqrtf(lane[i]);
    return load(lane);
}

/* The same with AdamW. v stays at least 0: it is a sum of such. */
INLINE void step_adamw(vec *w, vec *m, vec *v, vec g, const struct sfc_adamw *a)
{
    *m = splat(a->keep1) * *m + splat(a->take1) * g;
    *v = splat(a->keep2) * *v + splat(a->take2) * (g * g);
    vec unit = splat(a->rate) * *m / (splat(a->root) * root(*v) + splat(a->epsilon));
    *w = *w - (unit + splat(a->decay) * *w);
}

#endif

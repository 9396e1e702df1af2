/* The loops over 16-bit formats of kernels/cpu/simd.h, compiled once per instruction set. */
#include "kernels/cpu/simd_vec.h"

#include "kernels/rng/rounding.h"

typedef uint32_t uvec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(32), aligned(2), may_alias));
typedef int16_t svec __attribute__((vector_size(32), aligned(2), may_alias));

/* ---- formats */

INLINE hvec load_half(const uint16_t *p, size_t n)
{
    if (n >= LANES)
        return *(const hvec *)p;
    uint16_t buffer[LANES] = {0};
    memcpy(buffer, p, n * sizeof *p);
    return *(const hvec *)buffer;
}

INLINE void store_half(uint16_t *p, hvec v, size_t n)
{
    if (n >= LANES) {
        *(hvec *)p = v;
        return;
    }
    uint16_t buffer[LANES];
    *(hvec *)buffer = v;
    memcpy(p, buffer, n * sizeof *p);
}

INLINE vec load_some(const float *p, size_t n)
{
    return n >= LANES ? load(p) : load_part(p, n);
}

INLINE void store_some(float *p, vec v, size_t n)
{
    if (n >= LANES)
        store(p, v);
    else
        store_part(p, v, n);
}

INLINE vec widen(hvec v)
{
    return (vec)(__builtin_convertvector(v, uvec) << 16);
}

/* To the nearest bf16, ties to even. */
INLINE hvec nearest(vec v)
{
    uvec u = (uvec)v;
    return __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, hvec);
}

/* To one of the two neighbours, upwards with the probability that keeps the mean; random: 16 bits.
 */
INLINE hvec stochastic(vec v, uvec random)
{
    return __builtin_convertvector(((uvec)v + random) >> 16, hvec);
}

/* high is the nearest bf16 (ties away from zero), low what is missing in the integer bits: both
 * together are the float. */
INLINE hvec split_high(vec v)
{
    return __builtin_convertvector(((uvec)v + 0x8000) >> 16, hvec);
}

INLINE hvec split_low(vec v)
{
    return __builtin_convertvector((uvec)v & 0xffff, hvec); /* v - (high << 16), modulo 2^16 */
}

INLINE vec join(hvec high, hvec low)
{
    ivec rest = __builtin_convertvector((svec)low, ivec);
    return (vec)((ivec)(__builtin_convertvector(high, uvec) << 16) + rest);
}

/* sfc_rounding_word of the columns k .. k + 15. */
INLINE uvec mix(struct sfc_rounding_key key, size_t k)
{
    const uvec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    uvec h = (lanes + (uint32_t)k) * 0x9e3779b9u + key.add;
    h ^= h >> 16;
    h = (h ^ key.flip) * 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* ---- rows of the store */

/* A record: the weights' bf16, in SPLIT what is missing in them, the momentum. */
struct record {
    uint16_t *high, *low, *half_m;
    float *m;
};

INLINE struct record record_of(const struct sfc_store *block, enum sfc_store_format format,
                               uint32_t row, size_t dim)
{
    uint16_t *high = sfc_store_at(block, row, 0, dim);
    if (format == SFC_STORE_SPLIT)
        return (struct record){high, high + dim, NULL, (float *)(void *)(high + 2 * dim)};
    return (struct record){high, NULL, high + dim, NULL};
}

INLINE vec record_w(struct record r, enum sfc_store_format format, size_t k, size_t n)
{
    hvec high = load_half(r.high + k, n);
    return format == SFC_STORE_SPLIT ? join(high, load_half(r.low + k, n)) : widen(high);
}

INLINE vec record_m(struct record r, enum sfc_store_format format, size_t k, size_t n)
{
    return format == SFC_STORE_SPLIT ? load_some(r.m + k, n) : widen(load_half(r.half_m + k, n));
}

/* all: not only what a product reads. */
INLINE void prefetch_record(struct record r, enum sfc_store_format format, size_t k, bool all)
{
    fetch(r.high + k);
    if (!all)
        return;
    if (format == SFC_STORE_SPLIT) {
        fetch(r.low + k);
        fetch(r.m + k);
    } else {
        fetch(r.half_m + k);
    }
}

/* ---- gather */

/* What the product reads of one row: without lag the stored bf16 themselves. */
INLINE float gather_one(struct record row, struct record next, enum sfc_store_format format,
                        enum sfc_operand operand, const struct sfc_lag *lag, size_t dim, void *out)
{
    vec square[2] = {{0}, {0}};
    for (size_t k = 0; k < dim; k += LANES) {
        size_t n = dim - k;
        hvec bits = load_half(row.high + k, n);
        vec w = widen(bits);
        if (lag) {
            w = splat(lag->ww) * record_w(row, format, k, n) +
                splat(lag->wm) * record_m(row, format, k, n);
            bits = nearest(w);
            if (operand != SFC_OPERAND_F32)
                w = widen(bits);
        }
        square[k / LANES % 2] += w * w;
        if (operand == SFC_OPERAND_BF16)
            store_half((uint16_t *)out + k, bits, LANES);
        else
            store((float *)out + k, w);
        prefetch_record(next, format, k, lag != NULL);
    }
    return inverse(total(square[0] + square[1]));
}

INLINE void gather_all(const struct sfc_store *block, enum sfc_store_format format,
                       enum sfc_operand operand, const uint32_t *rows, size_t n, size_t dim,
                       size_t pitch, void *tile, float *inverse_norm)
{
    size_t bytes = operand == SFC_OPERAND_BF16 ? sizeof(uint16_t) : sizeof(float);
    for (size_t i = 0; i < n; i++) {
        struct record row = record_of(block, format, rows[i], dim);
        struct record next = record_of(block, format, rows[i + AHEAD < n ? i + AHEAD : n - 1], dim);
        const struct sfc_lag *lag = lag_of(block, rows[i]);
        void *out = (char *)tile + i * pitch * bytes;
        if (lag)
            inverse_norm[i] = gather_one(row, next, format, operand, lag, dim, out);
        else
            inverse_norm[i] = gather_one(row, next, format, operand, NULL, dim, out);
    }
}

static void gather(const struct sfc_store *block, enum sfc_operand operand, const uint32_t *rows,
                   size_t n, size_t dim, size_t pitch, void *tile, float *inverse_norm)
{
#define GATHER(format, operand)                                                                    \
    gather_all(block, format, operand, rows, n, dim, pitch, tile, inverse_norm)
    if (block->format == SFC_STORE_SPLIT && operand == SFC_OPERAND_BF16)
        GATHER(SFC_STORE_SPLIT, SFC_OPERAND_BF16);
    else if (block->format == SFC_STORE_SPLIT)
        GATHER(SFC_STORE_SPLIT, SFC_OPERAND_WIDE);
    else if (operand == SFC_OPERAND_BF16)
        GATHER(SFC_STORE_BF16, SFC_OPERAND_BF16);
    else if (operand == SFC_OPERAND_WIDE)
        GATHER(SFC_STORE_BF16, SFC_OPERAND_WIDE);
    else
        GATHER(SFC_STORE_BF16, SFC_OPERAND_F32);
#undef GATHER
}

/* ---- update */

/* The row in f32, caught up, into the scratch; returns w . dw. */
INLINE double fetch_row(struct record row, struct record next, enum sfc_store_format format,
                        const struct sfc_lag *lag, size_t dim, size_t pitch, const float *dw,
                        float *scratch)
{
    vec sum[2] = {{0}, {0}};
    for (size_t k = 0; k < dim; k += LANES) {
        vec w = record_w(row, format, k, dim - k), m = record_m(row, format, k, dim - k);
        prefetch_record(next, format, k, true);
        if (lag) {
            vec v = w;
            w = splat(lag->ww) * v + splat(lag->wm) * m;
            m = splat(lag->mw) * v + splat(lag->mm) * m;
        }
        sum[k / LANES % 2] += w * load(dw + k);
        store(scratch + k, w);
        store(scratch + pitch + k, m);
    }
    return total(sum[0] + sum[1]);
}

/* Stores columns k .. k + n - 1 of a row; key: of the random bits, NULL rounds bf16 to the nearest.
 */
INLINE void put(struct record row, enum sfc_store_format format, size_t k, size_t n, vec w, vec m,
                const struct sfc_rounding_key *key)
{
    if (format == SFC_STORE_SPLIT) {
        store_half(row.high + k, split_high(w), n);
        store_half(row.low + k, split_low(w), n);
        store_some(row.m + k, m, n);
    } else if (!key) {
        store_half(row.high + k, nearest(w), n);
        store_half(row.half_m + k, nearest(m), n);
    } else {
        uvec random = mix(*key, k);
        store_half(row.high + k, stochastic(w, random & 0xffff), n);
        store_half(row.half_m + k, stochastic(m, random >> 16), n);
    }
}

INLINE void update_one(const struct sfc_store *block, enum sfc_store_format format, bool rounds,
                       uint32_t row, uint32_t next, size_t dim, size_t pitch, const float *dw,
                       float inverse_norm, const struct sfc_update *u)
{
    struct record record = record_of(block, format, row, dim);
    struct record ahead = record_of(block, format, next, dim);
    const struct sfc_lag *lag = lag_of(block, row);
    float *scratch = block->scratch;
    double along = lag ? fetch_row(record, ahead, format, lag, dim, pitch, dw, scratch)
                       : fetch_row(record, ahead, format, NULL, dim, pitch, dw, scratch);
    float a = u->gradient_scale * inverse_norm;
    float b = (float)(along * inverse_norm * inverse_norm);
    struct sfc_rounding_key key = {0, 0};
    if (rounds)
        key = sfc_rounding_key(block->seed, block->now, block->first_class + row);
    for (size_t k = 0; k < dim; k += LANES) {
        vec w = load(scratch + k), m = load(scratch + pitch + k);
        step(&w, &m, splat(a) * (load(dw + k) - splat(b) * w), u);
        put(record, format, k, dim - k, w, m, rounds ? &key : NULL);
    }
    if (block->last)
        block->last[row] = block->now;
}

static void update(const struct sfc_store *block, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, const float *dw, const float *inverse_norm,
                   const struct sfc_update *u)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t next = rows[i + AHEAD / 2 < n ? i + AHEAD / 2 : n - 1];
        const float *g = dw + i * pitch;
        if (block->format == SFC_STORE_SPLIT)
            update_one(block, SFC_STORE_SPLIT, false, rows[i], next, dim, pitch, g, inverse_norm[i],
                       u);
        else if (block->nearest)
            update_one(block, SFC_STORE_BF16, false, rows[i], next, dim, pitch, g, inverse_norm[i],
                       u);
        else
            update_one(block, SFC_STORE_BF16, true, rows[i], next, dim, pitch, g, inverse_norm[i],
                       u);
    }
}

/* ---- update with AdamW: a record ends with the second moment, in the format of the first */

INLINE vec record_v(struct record r, enum sfc_store_format format, size_t dim, size_t k, size_t n)
{
    return format == SFC_STORE_SPLIT ? load_some(r.m + dim + k, n)
                                     : widen(load_half(r.half_m + dim + k, n));
}

/* key: of the random bits, NULL rounds bf16 to the nearest. */
INLINE void put_v(struct record r, enum sfc_store_format format, size_t dim, size_t k, size_t n,
                  vec v, const struct sfc_rounding_key *key)
{
    if (format == SFC_STORE_SPLIT)
        store_some(r.m + dim + k, v, n);
    else
        store_half(r.half_m + dim + k, key ? stochastic(v, mix(*key, k) & 0xffff) : nearest(v), n);
}

INLINE void prefetch_v(struct record r, enum sfc_store_format format, size_t dim, size_t k)
{
    if (format == SFC_STORE_SPLIT)
        fetch(r.m + dim + k);
    else
        fetch(r.half_m + dim + k);
}

INLINE void adamw_one(const struct sfc_store *block, enum sfc_store_format format, bool rounds,
                      uint32_t row, uint32_t next, size_t dim, size_t pitch, const float *dw,
                      float inverse_norm, const struct sfc_update *u)
{
    struct record record = record_of(block, format, row, dim);
    struct record ahead = record_of(block, format, next, dim);
    float *scratch = block->scratch;
    double along = fetch_row(record, ahead, format, NULL, dim, pitch, dw, scratch);
    float a = u->gradient_scale * inverse_norm;
    float b = (float)(along * inverse_norm * inverse_norm);
    struct sfc_rounding_key first = {0, 0}, second = {0, 0};
    if (rounds) {
        first = sfc_rounding_key(block->seed, block->now, block->first_class + row);
        second = sfc_rounding_second_key(block->seed, block->now, block->first_class + row);
    }
    for (size_t k = 0; k < dim; k += LANES) {
        vec w = load(scratch + k), m = load(scratch + pitch + k);
        vec v = record_v(record, format, dim, k, dim - k);
        prefetch_v(ahead, format, dim, k);
        step_adamw(&w, &m, &v, splat(a) * (load(dw + k) - splat(b) * w), &u->adamw);
        put(record, format, k, dim - k, w, m, rounds ? &first : NULL);
        put_v(record, format, dim, k, dim - k, v, rounds ? &second : NULL);
    }
}

static void adamw(const struct sfc_store *block, const uint32_t *rows, size_t n, size_t dim,
                  size_t pitch, const float *dw, const float *inverse_norm,
                  const struct sfc_update *u)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t next = rows[i + AHEAD / 2 < n ? i + AHEAD / 2 : n - 1];
        const float *g = dw + i * pitch;
        if (block->format == SFC_STORE_SPLIT)
            adamw_one(block, SFC_STORE_SPLIT, false, rows[i], next, dim, pitch, g, inverse_norm[i],
                      u);
        else if (block->nearest)
            adamw_one(block, SFC_STORE_BF16, false, rows[i], next, dim, pitch, g, inverse_norm[i],
                      u);
        else
            adamw_one(block, SFC_STORE_BF16, true, rows[i], next, dim, pitch, g, inverse_norm[i],
                      u);
    }
}

/* ---- logits and softmax */

static void logits(const float *cos, size_t stride, size_t n, size_t width,
                   const float *inverse_norm, float filter, int16_t *q)
{
    const vec magic = splat(12582912.0f); /* adding it rounds to an integer */
    for (size_t i = 0; i < n; i++) {
        vec factor = splat(inverse_norm[i]);
        for (size_t c = 0; c < width; c += LANES) {
            vec v = clamped(load(cos + i * stride + c) * factor);
            ivec whole = (ivec)(v * splat(SFC_COSINE_ONE) + magic) - (ivec)magic;
            ivec marked = v > splat(filter);
            whole = (whole & ~marked) | (SFC_COSINE_FILTERED & marked);
            *(svec *)(q + i * width + c) = __builtin_convertvector(whole, svec);
        }
    }
}

/* z of 16 entries; 0 where filtered. */
INLINE vec unpack(const int16_t *q, float unit, ivec *filtered, ivec *target)
{
    ivec whole = __builtin_convertvector(*(const svec *)q, ivec);
    *filtered = whole == SFC_COSINE_FILTERED;
    *target = whole == SFC_COSINE_TARGET;
    return select_lanes(*filtered, splat(0.0f), __builtin_convertvector(whole, vec) * splat(unit));
}

static void exp_sum(const int16_t *q, size_t n, size_t width, float scale, const float *add,
                    double *sum)
{
    float unit = scale / SFC_COSINE_ONE;
    for (size_t c = 0; c < width; c += LANES) {
        dvec low = *(const dvec *)(sum + c), high = *(const dvec *)(sum + c + LANES / 2);
        for (size_t i = 0; i < n; i++) {
            ivec filtered, target;
            vec z = unpack(q + i * width + c, unit, &filtered, &target);
            vec e = select_lanes(target, splat(0.0f), exp_vec(z + splat(add[i])));
            low += to_double(low_half(e));
            high += to_double(high_half(e));
        }
        *(dvec *)(sum + c) = low;
        *(dvec *)(sum + c + LANES / 2) = high;
    }
}

static bool softmax(int16_t *q, size_t n, size_t width, float scale, const float *add,
                    const float *high, const float *low)
{
    vec odd = {0}; /* stays 0 while everything is finite */
    float unit = scale / SFC_COSINE_ONE;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < width; c += LANES) {
            ivec filtered, target;
            int16_t *at = q + i * width + c;
            vec z = unpack(at, unit, &filtered, &target);
            vec p = exp_vec(((z + splat(add[i])) - load(high + c)) - load(low + c));
            p = select_lanes(filtered | target, splat(0.0f), p);
            odd += p - p;
            store_half((uint16_t *)at, nearest(p), LANES);
        }
    return total(odd) == 0;
}

static void scale_rows(const uint16_t *p, size_t n, size_t width, const float *inverse_norm,
                       float factor, uint16_t *out, size_t stride)
{
    for (size_t i = 0; i < n; i++) {
        vec f = splat(inverse_norm[i] * factor);
        for (size_t c = 0; c < width; c += LANES)
            store_half(out + i * stride + c,
                       nearest(widen(load_half(p + i * width + c, LANES)) * f), LANES);
    }
}

static void scale_rows_wide(const uint16_t *p, size_t n, size_t width, const float *inverse_norm,
                            float factor, float *out, size_t stride)
{
    for (size_t i = 0; i < n; i++) {
        vec f = splat(inverse_norm[i] * factor);
        for (size_t c = 0; c < width; c += LANES)
            store(out + i * stride + c, widen(load_half(p + i * width + c, LANES)) * f);
    }
}

/* ---- whole arrays */

static void pack(const float *in, size_t n, enum sfc_store_format format, uint16_t *high,
                 uint16_t *low)
{
    for (size_t k = 0; k < n; k += LANES) {
        vec v = load_some(in + k, n - k);
        store_half(high + k, format == SFC_STORE_SPLIT ? split_high(v) : nearest(v), n - k);
        if (format == SFC_STORE_SPLIT)
            store_half(low + k, split_low(v), n - k);
    }
}

static void unpack_all(const uint16_t *high, const uint16_t *low, size_t n,
                       enum sfc_store_format format, float *out)
{
    for (size_t k = 0; k < n; k += LANES) {
        hvec h = load_half(high + k, n - k);
        vec v = format == SFC_STORE_SPLIT ? join(h, load_half(low + k, n - k)) : widen(h);
        store_some(out + k, v, n - k);
    }
}

const struct sfc_simd_half JOIN(sfc_simd_half_, SFC_LEVEL) = {
    .gather = gather,
    .update = update,
    .adamw = adamw,
    .logits = logits,
    .exp_sum = exp_sum,
    .softmax = softmax,
    .scale_rows = scale_rows,
    .scale_rows_wide = scale_rows_wide,
    .pack = pack,
    .unpack = unpack_all,
};

/* The loops of kernels/cpu/simd.h, compiled once per instruction set with SFC_LEVEL set to the name
 * of the level (kernels/CMakeLists.txt). GCC vector types of 16 floats become 1, 2 or 4 registers.
 */
#include "kernels/cpu/simd_vec.h"

INLINE float gather_row(const float *row, const float *next, size_t dim, float *out)
{
    size_t whole = dim / LANES * LANES;
    vec square[2] = {{0}, {0}};
    for (size_t k = 0; k < whole; k += LANES) {
        vec v = load(row + k);
        fetch(next + k);
        square[k / LANES % 2] += v * v;
        store(out + k, v);
    }
    if (whole < dim) {
        vec v = load_part(row + whole, dim - whole);
        square[0] += v * v;
        store(out + whole, v);
    }
    return inverse(total(square[0] + square[1]));
}

/* The same from a row that has missed steps; m lies behind w in its record. */
INLINE float gather_lagging(const float *row, const float *next, const struct sfc_lag *lag,
                            size_t dim, float *out)
{
    const float *moment = row + dim;
    size_t whole = dim / LANES * LANES;
    vec square[2] = {{0}, {0}}, ww = splat(lag->ww), wm = splat(lag->wm);
    for (size_t k = 0; k < whole; k += LANES) {
        vec v = ww * load(row + k) + wm * load(moment + k);
        fetch(next + k);
        fetch(next + dim + k);
        square[k / LANES % 2] += v * v;
        store(out + k, v);
    }
    if (whole < dim) {
        size_t rest = dim - whole;
        vec v = ww * load_part(row + whole, rest) + wm * load_part(moment + whole, rest);
        square[0] += v * v;
        store(out + whole, v);
    }
    return inverse(total(square[0] + square[1]));
}

static void gather(const struct sfc_store *block, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, float *tile, float *inverse_norm)
{
    for (size_t i = 0; i < n; i++) {
        const float *row = sfc_store_at(block, rows[i], 0, dim);
        const float *next = sfc_store_at(block, rows[i + AHEAD < n ? i + AHEAD : n - 1], 0, dim);
        const struct sfc_lag *lag = lag_of(block, rows[i]);
        float *out = tile + i * pitch;
        inverse_norm[i] =
            lag ? gather_lagging(row, next, lag, dim, out) : gather_row(row, next, dim, out);
    }
}

static bool unit_row(const float *in, size_t dim, size_t pitch, float *out)
{
    double sum = 0;
    for (size_t k = 0; k < dim; k++)
        sum += (double)in[k] * in[k];
    double norm = sqrt(sum);
    bool usable = norm >= 1e-12;
    double factor = usable ? 1.0 / norm : 0.0;
    for (size_t k = 0; k < dim; k++)
        out[k] = usable ? (float)(in[k] * factor) : 0.0f;
    memset(out + dim, 0, (pitch - dim) * sizeof *out);
    return usable;
}

static void logits(const float *cos, size_t stride, size_t n, size_t width,
                   const float *inverse_norm, float scale, float filter, float *z)
{
    for (size_t i = 0; i < n; i++) {
        vec factor = splat(inverse_norm[i]);
        for (size_t c = 0; c < width; c += LANES) {
            vec v = clamped(load(cos + i * stride + c) * factor);
            /* + 0 turns -0 into +0: -0 is the mark of a filtered entry */
            vec out = v * splat(scale) + splat(0.0f);
            store(z + i * width + c, select_lanes(v > splat(filter), splat(-0.0f), out));
        }
    }
}

static void exp_sum(const float *z, size_t n, size_t width, const float *add, double *sum)
{
    for (size_t c = 0; c < width; c += LANES) {
        dvec low = *(const dvec *)(sum + c), high = *(const dvec *)(sum + c + LANES / 2);
        for (size_t i = 0; i < n; i++) {
            vec e = exp_vec(load(z + i * width + c) + splat(add[i]));
            low += to_double(low_half(e));
            high += to_double(high_half(e));
        }
        *(dvec *)(sum + c) = low;
        *(dvec *)(sum + c + LANES / 2) = high;
    }
}

static bool softmax(float *z, size_t n, size_t width, const float *add, const float *high,
                    const float *low)
{
    vec odd = {0}; /* stays 0 while everything is finite */
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < width; c += LANES) {
            float *at = z + i * width + c;
            vec v = load(at);
            vec p = exp_vec(((v + splat(add[i])) - load(high + c)) - load(low + c));
            p = select_lanes((ivec)v == (ivec)splat(-0.0f), splat(0.0f), p);
            odd += p - p;
            store(at, p);
        }
    return total(odd) == 0;
}

static void scale_rows(const float *p, size_t n, size_t width, const float *inverse_norm,
                       float factor, float *out, size_t stride)
{
    for (size_t i = 0; i < n; i++) {
        vec f = splat(inverse_norm[i] * factor);
        for (size_t c = 0; c < width; c += LANES)
            store(out + i * stride + c, load(p + i * width + c) * f);
    }
}

INLINE lvec fixed(half v)
{
    const dvec limit = (dvec){0} + 0x1p62, round = (dvec){0} + 0x1.8p52;
    dvec x = to_double(v) * 0x1p44;
    lvec mask = x < limit;
    x = (dvec)(((lvec)x & mask) | ((lvec)limit & ~mask)); /* NaN too */
    mask = x > -limit;
    x = (dvec)(((lvec)x & mask) | ((lvec)-limit & ~mask));
    /* To nearest even below 2^51; larger floats are integers already. */
    dvec rounded = (x + round) - round;
    mask = (x < 0x1p51) & (x > -0x1p51);
    x = (dvec)(((lvec)rounded & mask) | ((lvec)x & ~mask));
    return __builtin_convertvector(x, lvec);
}

/* Whether all n numbers, n a multiple of 16, are of magnitude below 2^7. NaN is not. */
INLINE bool all_small(const float *v, size_t n)
{
    const ivec magnitude = (ivec){0} + INT32_MAX, limit = (ivec)splat(0x1p7f);
    ivec below = (ivec){0} - 1; /* sign bits */
    for (size_t k = 0; k < n; k += LANES)
        below &= ((ivec)load(v + k) & magnitude) - limit;
    for (size_t l = 0; l < LANES; l++)
        if (below[l] >= 0)
            return false;
    return true;
}

/* fixed() of numbers below 2^7: their multiples of 2^-44 fit the mantissa beside 1.5 * 2^52. */
INLINE lvec fixed_small(half v)
{
    const dvec round = (dvec){0} + 0x1.8p52;
    return (lvec)(to_double(v) * 0x1p44 + round) - (lvec)round;
}

static void add_fixed(const float *dx, size_t n, size_t dim, size_t pitch, int64_t *sum)
{
    const size_t width = LANES / 2;
    for (size_t i = 0; i < n; i++) {
        const float *row = dx + i * pitch;
        int64_t *out = sum + i * dim;
        size_t k = 0;
        bool small = all_small(row, dim / LANES * LANES);
        for (; small && k + LANES <= dim; k += LANES) {
            *(lvec *)(out + k) += fixed_small(*(const half *)(row + k));
            *(lvec *)(out + k + width) += fixed_small(*(const half *)(row + k + width));
        }
        for (; k + width <= dim; k += width)
            *(lvec *)(out + k) += fixed(*(const half *)(row + k));
        if (k < dim) { /* pitch is a multiple of 16: the load stays inside the row */
            int64_t rest[LANES / 2];
            *(lvec *)rest = fixed(*(const half *)(row + k));
            for (size_t l = 0; k + l < dim; l++)
                out[k + l] += rest[l];
        }
    }
}

INLINE double dot(const float *row, const float *dw, size_t dim)
{
    size_t whole = dim / LANES * LANES;
    vec sum[2] = {{0}, {0}};
    for (size_t k = 0; k < whole; k += LANES)
        sum[k / LANES % 2] += load(row + k) * load(dw + k);
    if (whole < dim)
        sum[0] += load_part(row + whole, dim - whole) * load(dw + whole);
    return total(sum[0] + sum[1]);
}

INLINE void update_row(float *row, const float *next, size_t dim, const float *dw,
                       float inverse_norm, const struct sfc_update *u)
{
    float *moment = row + dim;
    size_t whole = dim / LANES * LANES;
    float a = u->gradient_scale * inverse_norm;
    float b = (float)(dot(row, dw, dim) * inverse_norm * inverse_norm);
    for (size_t k = 0; k < whole; k += LANES) {
        vec w = load(row + k), m = load(moment + k);
        fetch(next + k);
        fetch(next + dim + k);
        step(&w, &m, splat(a) * (load(dw + k) - splat(b) * w), u);
        store(row + k, w);
        store(moment + k, m);
    }
    if (whole < dim) {
        size_t rest = dim - whole;
        vec w = load_part(row + whole, rest), m = load_part(moment + whole, rest);
        step(&w, &m, splat(a) * (load(dw + whole) - splat(b) * w), u);
        store_part(row + whole, w, rest);
        store_part(moment + whole, m, rest);
    }
}

INLINE void catch_up(float *row, const struct sfc_lag *lag, size_t dim)
{
    float *moment = row + dim;
    size_t whole = dim / LANES * LANES;
    vec ww = splat(lag->ww), wm = splat(lag->wm), mw = splat(lag->mw), mm = splat(lag->mm);
    for (size_t k = 0; k < whole; k += LANES) {
        vec w = load(row + k), m = load(moment + k);
        store(row + k, ww * w + wm * m);
        store(moment + k, mw * w + mm * m);
    }
    if (whole < dim) {
        size_t rest = dim - whole;
        vec w = load_part(row + whole, rest), m = load_part(moment + whole, rest);
        store_part(row + whole, ww * w + wm * m, rest);
        store_part(moment + whole, mw * w + mm * m, rest);
    }
}

static void update(const struct sfc_store *block, const uint32_t *rows, size_t n, size_t dim,
                   size_t pitch, const float *dw, const float *inverse_norm,
                   const struct sfc_update *u)
{
    for (size_t i = 0; i < n; i++) {
        size_t ahead = i + AHEAD / 2 < n ? i + AHEAD / 2 : n - 1;
        float *row = sfc_store_at(block, rows[i], 0, dim);
        const struct sfc_lag *lag = lag_of(block, rows[i]);
        if (lag)
            catch_up(row, lag, dim);
        if (block->last)
            block->last[rows[i]] = block->now;
        update_row(row, sfc_store_at(block, rows[ahead], 0, dim), dim, dw + i * pitch,
                   inverse_norm[i], u);
    }
}

INLINE void adamw_row(float *row, const float *next, size_t dim, const float *dw,
                      float inverse_norm, const struct sfc_update *u)
{
    float *moment = row + dim, *second = row + 2 * dim;
    size_t whole = dim / LANES * LANES;
    float a = u->gradient_scale * inverse_norm;
    float b = (float)(dot(row, dw, dim) * inverse_norm * inverse_norm);
    for (size_t k = 0; k < whole; k += LANES) {
        vec w = load(row + k), m = load(moment + k), v = load(second + k);
        fetch(next + k);
        fetch(next + dim + k);
        fetch(next + 2 * dim + k);
        step_adamw(&w, &m, &v, splat(a) * (load(dw + k) - splat(b) * w), &u->adamw);
        store(row + k, w);
        store(moment + k, m);
        store(second + k, v);
    }
    if (whole < dim) {
        size_t rest = dim - whole;
        vec w = load_part(row + whole, rest), m = load_part(moment + whole, rest);
        vec v = load_part(second + whole, rest);
        step_adamw(&w, &m, &v, splat(a) * (load(dw + whole) - splat(b) * w), &u->adamw);
        store_part(row + whole, w, rest);
        store_part(moment + whole, m, rest);
        store_part(second + whole, v, rest);
    }
}

static void adamw(const struct sfc_store *block, const uint32_t *rows, size_t n, size_t dim,
                  size_t pitch, const float *dw, const float *inverse_norm,
                  const struct sfc_update *u)
{
    for (size_t i = 0; i < n; i++) {
        size_t ahead = i + AHEAD / 2 < n ? i + AHEAD / 2 : n - 1;
        adamw_row(sfc_store_at(block, rows[i], 0, dim), sfc_store_at(block, rows[ahead], 0, dim),
                  dim, dw + i * pitch, inverse_norm[i], u);
    }
}

extern const struct sfc_simd_half JOIN(sfc_simd_half_, SFC_LEVEL);

const struct sfc_simd JOIN(sfc_simd_, SFC_LEVEL) = {
    .half = &JOIN(sfc_simd_half_, SFC_LEVEL),
    .name = TEXT(SFC_LEVEL),
    .gather = gather,
    .unit_row = unit_row,
    .logits = logits,
    .exp_sum = exp_sum,
    .softmax = softmax,
    .scale_rows = scale_rows,
    .add_fixed = add_fixed,
    .update = update,
    .adamw = adamw,
};

#include "kernels/cpu/rates.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/mapping.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/simd.h"
#include "kernels/exact_sum.h"
#include "kernels/rng/below.h"
#include "kernels/rng/philox.h"

#define STREAM_BYTES ((size_t)512 << 20) /* of all workers, beyond the caches */
#define MIN_STREAM   ((size_t)1 << 20)   /* of one: a sample of the longest rows */
#define TILE         208                 /* rows of a product and of a gather, as in a head */
#define EVERY        10                  /* a gather takes one row of ten */
#define REPEAT       5
#define PRODUCTS     80 /* of a repetition; likewise for what works in caches */

/* What one worker works on. */
struct lane {
    dnnl_stream_t stream;
    struct sfc_gemm gemm[2][3]; /* f32 and bf16: logits, gradient, commit */
    char *stream_memory;        /* [stream] */
    float *a, *b, *c;           /* [TILE or batch, pitch or batch] */
    float *ones, *row;          /* [TILE], [2, pitch] */
    double *sums;               /* [batch] */
    int64_t *fixed;             /* [batch, dim] */
    uint32_t *rows;             /* [sampled] */
    uint32_t *words, *index;    /* [4 * TILE + SFC_BELOW_SLACK] */
    void *scratch;
    struct sfc_cpu_mapping arena;
    struct sfc_error error;
};

struct rates {
    struct sfc_cpu *cpu;
    const struct sfc_simd *simd;
    struct lane *lanes;
    size_t dim, pitch, batch; /* batch: padded to 16 */
    size_t stream;            /* bytes of a worker: a multiple of 512 */
    size_t sampled;           /* rows of the stream memory in a sample, f32 records */
    int formats;              /* of products: 1 or 2 */
    int format, product;      /* the product in work */
    enum sfc_store_format store;
    bool nearest;
    enum sfc_operand operand; /* of a head with bf16 products */
    struct sfc_cpu_rate *out;
    size_t count;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* ---- memory and products of a worker */

static size_t record_bytes(const struct rates *r, enum sfc_store_format format)
{
    return 2 * sfc_tensor_bytes(format, r->dim);
}

/* Hands out 64-byte aligned ranges of a mapping; with base NULL it only measures. */
static void *carve(char *base, size_t *used, size_t bytes)
{
    char *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

static size_t lay_out(const struct rates *r, struct lane *lane, size_t scratch)
{
    size_t used = 0, rows = r->batch > TILE ? r->batch : TILE;
    size_t most = rows * (r->pitch > r->batch ? r->pitch : r->batch) * sizeof(float);
    char *base = lane->arena.data;
    lane->stream_memory = carve(base, &used, r->stream);
    lane->a = carve(base, &used, most);
    lane->b = carve(base, &used, most);
    lane->c = carve(base, &used, most);
    lane->ones = carve(base, &used, TILE * sizeof(float));
    lane->row = carve(base, &used, 2 * r->pitch * sizeof(float));
    lane->sums = carve(base, &used, r->batch * sizeof(double));
    lane->fixed = carve(base, &used, r->batch * r->dim * sizeof(int64_t));
    lane->rows = carve(base, &used, r->sampled * sizeof(uint32_t));
    lane->words = carve(base, &used, (4 * TILE + SFC_BELOW_SLACK) * sizeof(uint32_t));
    lane->index = carve(base, &used, (4 * TILE + SFC_BELOW_SLACK) * sizeof(uint32_t));
    lane->scratch = carve(base, &used, scratch);
    return used;
}

static size_t make_products(const struct rates *r, struct lane *lane)
{
    int64_t t = TILE, p = (int64_t)r->pitch, b = (int64_t)r->batch;
    size_t scratch = 64;
    for (int half = 0; half < r->formats; half++) {
        const struct sfc_gemm_shape shapes[3] = {
            {.m = t, .n = b, .k = p, .b_transposed = true, .bf16 = half, .b_packed = true},
            {.m = b, .n = p, .k = t, .a_transposed = true, .bf16 = half, .accumulate = true},
            {.m = t, .n = p, .k = b, .bf16 = half, .b_packed = true},
        };
        for (int i = 0; i < 3 && !lane->error.code; i++) {
            struct sfc_gemm *gemm = &lane->gemm[half][i];
            sfc_gemm_init(gemm, r->cpu->engine, &shapes[i], &lane->error);
            scratch = gemm->scratch_bytes > scratch ? gemm->scratch_bytes : scratch;
        }
    }
    return scratch;
}

static void fill(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    size_t n = r->stream / sizeof(float);
    (void)item;
    for (size_t i = 0; i < n; i++)
        ((float *)(void *)lane->stream_memory)[i] = (float)(i % 17 + 1) * 0.01f;
}

/* Small numbers for what reads bf16. */
static void fill_half(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    uint16_t *out = (void *)lane->stream_memory;
    (void)item;
    for (size_t i = 0; i < r->stream / sizeof *out; i++)
        out[i] = (uint16_t)(0x3c00 + i % 17);
}

static void lane_open(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    size_t scratch = make_products(r, lane);
    (void)item;
    if (lane->error.code)
        return;
    if (sfc_cpu_map(&lane->arena, lay_out(r, lane, scratch), "streams", &lane->error))
        return;
    lay_out(r, lane, scratch);
    for (size_t i = 0; i < TILE; i++)
        lane->ones[i] = 1;
    for (size_t i = 0; i < r->sampled; i++)
        lane->rows[i] = (uint32_t)(i * EVERY + (i * 2654435761u >> 7) % EVERY);
    if (dnnl_stream_create(&lane->stream, r->cpu->engine, dnnl_stream_default_flags))
        sfc_fail(&lane->error, SFC_EDEVICE, "bench: oneDNN can't make a stream");
}

static void lane_close(struct lane *lane)
{
    for (int i = 0; i < 6; i++)
        sfc_gemm_close(&lane->gemm[i / 3][i % 3]);
    if (lane->stream)
        dnnl_stream_destroy(lane->stream);
    sfc_cpu_unmap(&lane->arena);
}

/* ---- the building blocks; each does the work of one repetition on one worker */

static void multiply(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    (void)item;
    for (int i = 0; i < PRODUCTS && !lane->error.code; i++)
        sfc_gemm_run(&lane->gemm[r->format][r->product], lane->stream, lane->a, lane->b, lane->c,
                     lane->scratch, &lane->error);
}

static void copy_stream(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    char *at = r->lanes[index].stream_memory;
    (void)item;
    memcpy(at, at + r->stream / 2, r->stream / 2);
}

static void read_stream(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    const float *w = (void *)lane->stream_memory;
    float sum[64] = {0};
    (void)item;
    for (size_t i = 0; i < r->stream / sizeof *w; i += 64)
        for (size_t k = 0; k < 64; k++)
            sum[k] += w[i + k];
    lane->row[0] = sum[0] + sum[63];
}

static void update_stream(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    size_t n = r->stream / 2 / sizeof(float);
    float *w = (void *)r->lanes[index].stream_memory, *m = w + n;
    (void)item;
    for (size_t i = 0; i < n; i += 64)
        for (size_t k = i; k < i + 64; k++) {
            m[k] = 0.9f * m[k] + 0.001f * w[k];
            w[k] = w[k] - 0.1f * m[k];
        }
}

static struct sfc_store store_of(const struct rates *r, const struct lane *lane)
{
    return (struct sfc_store){
        .format = r->store,
        .records = lane->stream_memory,
        .tensors = 2,
        .now = 1,
        .nearest = r->nearest,
        .seed = 1,
        .scratch = lane->row,
    };
}

static void gather_rows(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    struct sfc_store store = store_of(r, lane);
    (void)item;
    for (size_t at = 0; at < r->sampled; at += TILE) {
        size_t n = r->sampled - at < TILE ? r->sampled - at : TILE;
        if (r->store == SFC_STORE_F32)
            r->simd->gather(&store, lane->rows + at, n, r->dim, r->pitch, lane->a, lane->b);
        else
            r->simd->half->gather(&store, r->operand, lane->rows + at, n, r->dim, r->pitch, lane->a,
                                  lane->b);
    }
}

static void update_rows(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    struct sfc_store store = store_of(r, lane);
    struct sfc_update u = {.gradient_scale = 0.5f, .lr = 0.1f, .momentum = 0.9f};
    (void)item;
    for (size_t at = 0; at < r->sampled; at += TILE) {
        size_t n = r->sampled - at < TILE ? r->sampled - at : TILE;
        if (r->store == SFC_STORE_F32)
            r->simd->update(&store, lane->rows + at, n, r->dim, r->pitch, lane->c, lane->ones, &u);
        else
            r->simd->half->update(&store, lane->rows + at, n, r->dim, r->pitch, lane->c, lane->ones,
                                  &u);
    }
}

static void draw_words(void *arg, size_t item, unsigned index)
{
    struct lane *lane = &((struct rates *)arg)->lanes[index];
    (void)item;
    for (size_t i = 0; i < PRODUCTS; i++)
        sfc_random_words(1, SFC_STREAM_SAMPLE, i, 0, TILE, lane->words);
}

/* As a sample of one row in ten does. */
static void draw_below(void *arg, size_t item, unsigned index)
{
    struct lane *lane = &((struct rates *)arg)->lanes[index];
    (void)item;
    for (size_t i = 0; i < PRODUCTS; i++)
        sfc_random_below(1, SFC_STREAM_SAMPLE, i, 0, 4 * TILE, UINT32_MAX / EVERY, lane->index,
                         lane->words);
}

static void add_fixed(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    (void)item;
    for (size_t i = 0; i < PRODUCTS; i++)
        r->simd->add_fixed(lane->c, r->batch, r->dim, r->pitch, lane->fixed);
}

static void add_wide(void *arg, size_t item, unsigned index)
{
    struct lane *lane = &((struct rates *)arg)->lanes[index];
    struct sfc_sum256 sum = {{0}};
    (void)item;
    for (size_t i = 0; i < (size_t)PRODUCTS * TILE; i++)
        sfc_sum256_add_double(&sum, 1.5);
    lane->fixed[0] += (int64_t)(sum.word[2] & 1);
}

static void exponentials(void *arg, size_t item, unsigned index)
{
    struct rates *r = arg;
    struct lane *lane = &r->lanes[index];
    (void)item;
    for (size_t i = 0; i < PRODUCTS; i++)
        r->simd->exp_sum(lane->a, TILE, r->batch, lane->ones, lane->sums);
}

/* ---- the list */

/* Units of one worker's repetition -> rate of all. */
static void measure(struct rates *r, const char *name, const char *what, const char *unit,
                    double units, sfc_pool_fn fn)
{
    double best = 1e30;
    for (int i = 0; i < REPEAT; i++) {
        double start = now_s();
        sfc_cpu_pool_each(r->cpu->pool, fn, r);
        double took = now_s() - start;
        best = took < best ? took : best;
    }
    r->out[r->count++] = (struct sfc_cpu_rate){
        .name = name, .what = what, .unit = unit, .value = units * r->cpu->threads / best * 1e-9};
}

static void measure_products(struct rates *r)
{
    static const char *const names[2][3] = {
        {"product_logits_f32", "product_gradient_f32", "product_commit_f32"},
        {"product_logits_bf16", "product_gradient_bf16", "product_commit_bf16"},
    };
    static const char *const whats[2][3] = {
        {"product of logits, f32", "product of gradient, f32", "product of commit, f32"},
        {"product of logits, bf16", "product of gradient, bf16", "product of commit, bf16"},
    };
    double flops = 2.0 * TILE * (double)r->pitch * (double)r->batch * PRODUCTS;
    for (r->format = 0; r->format < r->formats; r->format++)
        for (r->product = 0; r->product < 3; r->product++)
            measure(r, names[r->format][r->product], whats[r->format][r->product], "GFLOP/s", flops,
                    multiply);
}

static void measure_rows(struct rates *r)
{
    double numbers = (double)r->sampled * (double)r->dim;
    sfc_cpu_pool_each(r->cpu->pool, fill, r);
    r->store = SFC_STORE_F32;
    measure(r, "gather_f32", "gather, f32 rows", "GB/s", 4 * numbers, gather_rows);
    measure(r, "update_rows_f32", "update, f32 rows", "GB/s", 16 * numbers, update_rows);
    sfc_cpu_pool_each(r->cpu->pool, fill_half, r);
    r->store = SFC_STORE_BF16;
    measure(r, "gather_bf16", "gather, bf16 rows", "GB/s", 2 * numbers, gather_rows);
    r->nearest = true;
    measure(r, "update_rows_bf16_nearest", "update, bf16 rows, rounded to nearest", "GB/s",
            8 * numbers, update_rows);
    r->nearest = false;
    measure(r, "update_rows_bf16", "update, bf16 rows, rounded stochastically", "GB/s", 8 * numbers,
            update_rows);
}

static void measure_all(struct rates *r)
{
    double stream = (double)r->stream, tile = (double)TILE * PRODUCTS;
    measure_products(r);
    sfc_cpu_pool_each(r->cpu->pool, fill, r);
    measure(r, "copy", "copy, read and written", "GB/s", stream, copy_stream);
    measure(r, "read", "read", "GB/s", stream, read_stream);
    measure(r, "update", "update of two arrays, read and written", "GB/s", 2 * stream,
            update_stream);
    measure_rows(r);
    measure(r, "philox", "Philox words", "10^9/s", 4 * tile, draw_words);
    measure(r, "draw", "rows drawn from, one of ten kept", "10^9/s", 4 * tile, draw_below);
    measure(r, "add_fixed", "exact sums of dx, numbers", "10^9/s",
            (double)r->batch * (double)r->dim * PRODUCTS, add_fixed);
    measure(r, "add_wide", "256-bit sums, numbers", "10^9/s", tile, add_wide);
    measure(r, "exp", "exponentials", "10^9/s", tile * (double)r->batch, exponentials);
}

bool sfc_cpu_multiplies_bf16(void)
{
    struct sfc_cpu_features features = sfc_cpu_features();
    return features.avx512_bf16 || features.amx_bf16;
}

bool sfc_cpu_uses_native_bf16(const struct sfc_backend *backend)
{
    return ((const struct sfc_cpu *)backend)->products == SFC_CPU_PRODUCTS_NATIVE;
}

static size_t stream_of(unsigned threads)
{
    size_t share = STREAM_BYTES / threads / 512 * 512;
    return share > MIN_STREAM ? share : MIN_STREAM;
}

int sfc_cpu_rates(struct sfc_backend *backend, uint32_t dim, uint32_t batch,
                  struct sfc_cpu_rate *out, size_t *count, struct sfc_error *err)
{
    struct rates r = {
        .cpu = (struct sfc_cpu *)backend,
        .simd = sfc_simd_select(),
        .dim = dim,
        .pitch = round16(dim),
        .batch = round16(batch),
        .formats = sfc_cpu_multiplies_bf16() ? 2 : 1,
        .operand = sfc_cpu_uses_native_bf16(backend) ? SFC_OPERAND_BF16 : SFC_OPERAND_WIDE,
        .out = out,
    };
    r.stream = stream_of(r.cpu->threads);
    r.sampled = r.stream / record_bytes(&r, SFC_STORE_F32) / EVERY;
    r.lanes = calloc(r.cpu->threads, sizeof *r.lanes);
    if (!r.lanes)
        return sfc_fail(err, SFC_ENOMEM, "bench: out of memory");
    int rc = SFC_OK;
    sfc_cpu_pool_each(r.cpu->pool, lane_open, &r);
    for (int round = 0; round < 2 && !rc; round++) { /* what opening said, then the products */
        if (round == 1)
            measure_all(&r);
        for (unsigned i = 0; !rc && i < r.cpu->threads; i++)
            if (r.lanes[i].error.code)
                rc = sfc_fail(err, r.lanes[i].error.code, "%s", r.lanes[i].error.text);
    }
    for (unsigned i = 0; i < r.cpu->threads; i++)
        lane_close(&r.lanes[i]);
    free(r.lanes);
    if (!rc)
        *count = r.count;
    return rc;
}

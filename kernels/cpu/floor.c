#include "kernels/cpu/floor.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"

/* Of w and of m, shared by the workers: each 256 MiB, so both together are beyond the caches. */
#define STREAM_FLOATS ((size_t)64 << 20)
#define MIN_STREAM    ((size_t)1 << 14) /* of a worker */
#define REPEAT        5
#define ROUNDING      4096 /* more than the arrays lose to alignment */

struct lane {
    dnnl_stream_t stream;
    struct sfc_gemm gemm[3];
    struct sfc_cpu_mapping arena; /* of all arrays: it does not stay in the heap */
    size_t carved;
    float *a, *b, *c;
    void *scratch;
    float *w, *m;
    int64_t *sum;
    struct sfc_error error;
};

struct floor_call {
    struct sfc_cpu *cpu;
    const struct sfc_simd *simd;
    struct lane *lanes;
    size_t tile, pitch, batch, dim, products;
    size_t stream; /* floats of w, and of m, of a worker: a multiple of 64 */
    uint64_t blocks;
    bool bf16; /* operands of the products */
    volatile float sink;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void *carve(struct lane *lane, size_t bytes)
{
    char *at = (char *)lane->arena.data + lane->carved;
    lane->carved += (bytes + 63) / 64 * 64;
    return at;
}

static float *floats(struct lane *lane, size_t n)
{
    float *p = carve(lane, n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = (float)(i % 17) * 0.01f;
    return p;
}

static void lane_open(void *arg, size_t item, unsigned index)
{
    struct floor_call *call = arg;
    struct lane *lane = &call->lanes[index];
    int64_t t = (int64_t)call->tile, p = (int64_t)call->pitch, b = (int64_t)call->batch;
    const struct sfc_gemm_shape shapes[3] = {
        {.m = t, .n = b, .k = p, .b_transposed = true, .bf16 = call->bf16, .b_packed = true},
        {.m = b, .n = p, .k = t, .a_transposed = true, .bf16 = call->bf16, .accumulate = true},
        {.m = t, .n = p, .k = b, .bf16 = call->bf16, .b_packed = true},
    };
    size_t widest = call->pitch > call->batch ? call->pitch : call->batch;
    size_t scratch = 64, most = (call->tile > call->batch ? call->tile : call->batch) * widest;
    (void)item;
    for (size_t i = 0; i < 3; i++) {
        if (sfc_gemm_init(&lane->gemm[i], call->cpu->engine, &shapes[i], &lane->error))
            return;
        scratch = lane->gemm[i].scratch_bytes > scratch ? lane->gemm[i].scratch_bytes : scratch;
    }
    size_t sums = call->batch * call->pitch * sizeof *lane->sum;
    size_t bytes = (3 * most + 2 * call->stream) * sizeof(float) + sums + scratch + ROUNDING;
    if (sfc_cpu_map(&lane->arena, bytes, "streams", &lane->error))
        return;
    lane->a = floats(lane, most);
    lane->b = floats(lane, most);
    lane->c = floats(lane, most);
    lane->w = floats(lane, call->stream);
    lane->m = floats(lane, call->stream);
    lane->sum = carve(lane, sums);
    lane->scratch = carve(lane, scratch);
    if (dnnl_stream_create(&lane->stream, call->cpu->engine, dnnl_stream_default_flags))
        sfc_fail(&lane->error, SFC_EDEVICE, "bench: oneDNN can't make a stream");
    if (call->bf16 && !lane->error.code) { /* in place: the result is behind what is read */
        call->simd->half->pack(lane->a, most, SFC_STORE_BF16, (uint16_t *)lane->a, NULL);
        call->simd->half->pack(lane->b, most, SFC_STORE_BF16, (uint16_t *)lane->b, NULL);
    }
}

static void lane_close(struct lane *lane)
{
    for (size_t i = 0; i < 3; i++)
        sfc_gemm_close(&lane->gemm[i]);
    if (lane->stream)
        dnnl_stream_destroy(lane->stream);
    sfc_cpu_unmap(&lane->arena);
}

static void multiply(void *arg, size_t item, unsigned index)
{
    const struct floor_call *call = arg;
    struct lane *lane = &call->lanes[index];
    (void)item;
    for (size_t i = 0; i < 3 && !lane->error.code; i++)
        sfc_gemm_run(&lane->gemm[i], lane->stream, lane->a, lane->b, lane->c, lane->scratch,
                     &lane->error);
}

static void read_stream(void *arg, size_t item, unsigned index)
{
    struct floor_call *call = arg;
    float sum[64] = {0}, inverse_norm[1];
    (void)item;
    const float *w = call->lanes[index].w;
    for (size_t i = 0; i < call->stream; i += 64)
        for (size_t k = 0; k < 64; k++)
            sum[k] += w[i + k];
    inverse_norm[0] = sum[0] + sum[63];
    call->lanes[index].c[0] = inverse_norm[0];
}

static void update_stream(void *arg, size_t item, unsigned index)
{
    const struct floor_call *call = arg;
    float *w = call->lanes[index].w, *m = call->lanes[index].m;
    (void)item;
    for (size_t i = 0; i < call->stream; i += 64)
        for (size_t k = i; k < i + 64; k++) {
            m[k] = 0.9f * m[k] + 0.001f * w[k];
            w[k] = w[k] - 0.1f * m[k];
        }
}

/* The exact additions of one block of one step. */
static void add_exact(void *arg, size_t item, unsigned index)
{
    const struct floor_call *call = arg;
    struct lane *lane = &call->lanes[index];
    struct sfc_sum256 sum = {{0}};
    (void)item;
    call->simd->add_fixed(lane->c, call->batch, call->dim, call->pitch, lane->sum);
    for (size_t r = 0; r < call->batch; r++)
        sfc_sum256_add_double(&sum, 1.5);
    lane->sum[0] += (int64_t)(sum.word[2] & 1);
}

static size_t stream_of(unsigned threads)
{
    size_t share = STREAM_FLOATS / threads / 64 * 64;
    return share > MIN_STREAM ? share : MIN_STREAM;
}

uint64_t sfc_cpu_floor_memory(const struct sfc_backend *backend)
{
    unsigned threads = ((const struct sfc_cpu *)backend)->threads;
    return 2 * (uint64_t)stream_of(threads) * threads * sizeof(float);
}

/* Best of some repetitions: a floor is what is possible. */
static double best_ms(struct floor_call *call, sfc_pool_fn fn, size_t items)
{
    double best = 1e30;
    for (int i = 0; i < REPEAT; i++) {
        double start = now_ms();
        if (items)
            sfc_cpu_pool_run(call->cpu->pool, fn, call, items);
        else
            sfc_cpu_pool_each(call->cpu->pool, fn, call);
        double ms = now_ms() - start;
        best = ms < best ? ms : best;
    }
    return best;
}

int sfc_cpu_floor(struct sfc_backend *backend, const struct sfc_head_config *config,
                  uint64_t sampled, struct sfc_head_ceilings *out, struct sfc_error *err)
{
    struct sfc_cpu *cpu = (struct sfc_cpu *)backend;
    struct sfc_cpu_sizes sizes;
    sfc_cpu_product_sizes(config, &sizes);
    struct floor_call call = {
        .cpu = cpu,
        .simd = sfc_simd_select(),
        .lanes = calloc(cpu->threads, sizeof *call.lanes),
        .tile = sizes.tile,
        .stream = stream_of(cpu->threads),
        .pitch = sizes.pitch,
        .batch = sizes.bp,
        .dim = config->dim,
        .products = (size_t)(sampled / sizes.tile + 1),
        .blocks = sfc_head_block_count(config),
        .bf16 = config->gemm == SFC_DTYPE_BF16 && cpu->products == SFC_CPU_PRODUCTS_NATIVE,
    };
    int rc = SFC_OK;
    if (!call.lanes)
        return sfc_fail(err, SFC_ENOMEM, "bench: out of memory");
    sfc_cpu_pool_each(cpu->pool, lane_open, &call);
    for (unsigned i = 0; !rc && i < cpu->threads; i++)
        if (call.lanes[i].error.code)
            rc = sfc_fail(err, call.lanes[i].error.code, "%s", call.lanes[i].error.text);
    if (!rc) {
        double flops = 6.0 * (double)sizes.tile * (double)sizes.pitch * (double)sizes.bp;
        double bytes = (double)call.stream * sizeof(float) * cpu->threads;
        out->native = call.bf16;
        out->exact_ms = best_ms(&call, add_exact, (size_t)call.blocks);
        out->gflops =
            flops * (double)call.products / best_ms(&call, multiply, call.products) * 1e-6;
        out->read_gb_s = bytes / best_ms(&call, read_stream, 0) * 1e-6;
        out->update_gb_s = 4 * bytes / best_ms(&call, update_stream, 0) * 1e-6;
    }
    for (unsigned i = 0; i < cpu->threads; i++)
        lane_close(&call.lanes[i]);
    free(call.lanes);
    return rc;
}

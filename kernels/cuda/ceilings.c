/* What the device can do at best, for benchmarks: a large copy, and the three products of a tile
 * one after the other without anything between them. */
#include <stdlib.h>

#include "kernels/cuda/head.h"
#include "kernels/rng/philox.h"

#define COPY_BYTES    ((size_t)1 << 30)
#define PRODUCT_BYTES ((size_t)1 << 30) /* operands and result of a tile: at most these */
#define COPIES        10
#define ROUNDS        5
#define PRODUCTS_MS   20.0 /* about as long is a round of one product */

struct ceilings {
    struct sfc_cuda *cuda;
    char *memory; /* both ranges */
    cudaEvent_t begin, end;
};

uint64_t sfc_cuda_head_ceilings_memory(const struct sfc_backend *backend)
{
    (void)backend;
    return 2 * COPY_BYTES + PRODUCT_BYTES;
}

static int check(const struct ceilings *c, cudaError_t status, struct sfc_error *err)
{
    return sfc_cuda_check(c->cuda, status, "the measurement of the device", err);
}

static int elapsed(const struct ceilings *c, float *ms, struct sfc_error *err)
{
    cudaError_t status = cudaEventRecord(c->end, c->cuda->stream);
    if (!status)
        status = cudaEventSynchronize(c->end);
    if (!status)
        status = cudaEventElapsedTime(ms, c->begin, c->end);
    return check(c, status, err);
}

/* Bytes read and written per second, in GB: the best of some rounds. */
static int measure_copy(const struct ceilings *c, double *gb_s, struct sfc_error *err)
{
    double best = 0;
    int rc = SFC_OK;
    for (int round = 0; !rc && round < ROUNDS; round++) {
        float ms = 0;
        rc = check(c, cudaEventRecord(c->begin, c->cuda->stream), err);
        for (int i = 0; !rc && i < COPIES; i++)
            rc = check(c,
                       cudaMemcpyAsync(c->memory + COPY_BYTES, c->memory, COPY_BYTES,
                                       cudaMemcpyDeviceToDevice, c->cuda->stream),
                       err);
        if (!rc)
            rc = elapsed(c, &ms, err);
        double rate = 2.0 * COPIES * (double)COPY_BYTES / ms * 1e-6;
        best = !rc && rate > best ? rate : best;
    }
    *gb_s = best;
    return rc;
}

/* n products; *ms: all of them. */
static int time_products(const struct ceilings *c, const struct sfc_cuda_gemm *gemm, const char *a,
                         const char *b, char *out, char *workspace, int n, float *ms,
                         struct sfc_error *err)
{
    int rc = check(c, cudaEventRecord(c->begin, c->cuda->stream), err);
    for (int i = 0; !rc && i < n; i++)
        rc = sfc_cuda_gemm_run(gemm, c->cuda, &gemm->shape, a, b, (float *)(void *)out, workspace,
                               c->cuda->stream, err);
    return rc ? rc : elapsed(c, ms, err);
}

static size_t round256(size_t n)
{
    return (n + 255) / 256 * 256;
}

/* Numbers of +-0.5 to 1, as bf16 or f32: zeros would be multiplied faster. */
static int fill(const struct ceilings *c, char *to, size_t bytes, bool bf16, struct sfc_error *err)
{
    size_t words = bytes / sizeof(uint32_t) / 4 * 4;
    uint32_t *host = malloc(words * sizeof *host);
    if (!host)
        return sfc_fail(err, SFC_ENOMEM, "bench: out of memory");
    sfc_random_words(1, SFC_STREAM_SYNTHETIC, 0, 0, words / 4, host);
    for (size_t i = 0; i < words; i++)
        host[i] =
            bf16 ? (host[i] & 0x807f807fu) | 0x3f003f00u : (host[i] & 0x807fffffu) | 0x3f000000u;
    int rc = check(c, cudaMemcpy(to, host, words * sizeof *host, cudaMemcpyHostToDevice), err);
    free(host);
    return rc;
}

/* 10^9 operations per second of one kind of product. */
static int measure_product(const struct ceilings *c, const struct sfc_cuda_gemm_shape *shape,
                           size_t step, double *gflops, struct sfc_error *err)
{
    struct sfc_cuda_gemm gemm = {0};
    int rc = sfc_cuda_gemm_init(&gemm, c->cuda, shape, step, err);
    if (rc)
        return rc;
    size_t width = shape->bf16 ? 2 : 4, depth = shape->depth * shape->batch;
    bool gradient = shape->product == SFC_CUDA_GRADIENT;
    size_t a = round256((gradient ? depth : shape->rows) * shape->lda * width);
    size_t b =
        round256((shape->product == SFC_CUDA_LOGITS ? shape->columns : depth) * shape->ldb * width);
    size_t out = round256(shape->rows * shape->columns * shape->batch * sizeof(float));
    if (a + b + out + gemm.workspace_bytes > PRODUCT_BYTES)
        return sfc_fail(err, SFC_ELIMIT, "bench: a tile of %zu bytes is too large to measure",
                        a + b + out);
    char *base = c->memory + 2 * COPY_BYTES;
    double operations = 2.0 * (double)shape->rows * (double)shape->columns * (double)depth,
           best = 0;
    rc = fill(c, base, a + b, shape->bf16, err);
    int n = 1;
    for (int round = 0; !rc && round < ROUNDS; round++) {
        float ms = 0;
        rc = time_products(c, &gemm, base, base + a, base + a + b, base + a + b + out, n, &ms, err);
        double rate = operations * n / ms * 1e-6;
        best = !rc && round && rate > best ? rate : best;
        if (!rc && !round) /* the first warms up and says how many are a round */
            n = (int)(PRODUCTS_MS / ms) + 1;
    }
    *gflops = best;
    return rc;
}

static int measure(const struct ceilings *c, const struct sfc_head_config *config,
                   struct sfc_head_ceilings *out, struct sfc_error *err)
{
    struct sfc_cuda_gemm_shape shapes[SFC_CUDA_PRODUCTS];
    double inverse = 0;
    size_t step = sfc_cuda_head_shapes(c->cuda, config, shapes);
    int rc = measure_copy(c, &out->read_gb_s, err);
    out->update_gb_s = out->read_gb_s;
    for (int i = 0; !rc && i < SFC_CUDA_PRODUCTS; i++) {
        double gflops = 0;
        rc = measure_product(c, &shapes[i], step, &gflops, err);
        inverse += rc ? 0 : 1 / gflops;
    }
    if (!rc)
        out->gflops = SFC_CUDA_PRODUCTS / inverse; /* they take equally many operations */
    return rc;
}

int sfc_cuda_head_ceilings(struct sfc_backend *backend, const struct sfc_head_config *config,
                           uint64_t sampled, struct sfc_head_ceilings *out, struct sfc_error *err)
{
    struct ceilings c = {.cuda = (struct sfc_cuda *)backend};
    struct sfc_head_ceilings found = {.native = true};
    (void)sampled; /* a tile is the same for every sample */
    int rc = sfc_cuda_enter(c.cuda, err);
    if (!rc)
        rc = check(&c, cudaMalloc((void **)&c.memory, sfc_cuda_head_ceilings_memory(backend)), err);
    if (!rc)
        rc = check(&c, cudaEventCreate(&c.begin), err);
    if (!rc)
        rc = check(&c, cudaEventCreate(&c.end), err);
    if (!rc)
        rc = check(&c, cudaMemsetAsync(c.memory, 0x3c, 2 * COPY_BYTES, c.cuda->stream), err);
    if (!rc)
        rc = measure(&c, config, &found, err);
    if (c.begin)
        cudaEventDestroy(c.begin);
    if (c.end)
        cudaEventDestroy(c.end);
    cudaFree(c.memory);
    if (!rc)
        *out = found;
    return rc;
}

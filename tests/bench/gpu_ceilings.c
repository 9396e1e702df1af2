/* What a CUDA device can do at best: a large copy, and the three products of a head's step in the
 * shapes of real runs with whatever algorithm cuBLASLt proposes first (the backend restricts itself
 * to algorithms whose bits do not depend on the shape). Prints one JSON object.
 *
 *   gpu_ceilings [ROWS [BATCH [DIM]]]      sampled rows (262144), batch (1024), width (512) */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#define COPY_BYTES      ((size_t)2 << 30)
#define WORKSPACE_BYTES ((size_t)64 << 20)
#define ROUNDS          7
#define COPIES          5
#define PRODUCTS        5

static void check(int status, const char *words, const char *what)
{
    if (!status)
        return;
    fprintf(stderr, "gpu_ceilings: %s: %s (%d)\n", what, words, status);
    exit(1);
}
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t status = (call);                                                               \
        check((int)status, cudaGetErrorString(status), #call);                                     \
    } while (0)
#define BLAS(call)                                                                                 \
    do {                                                                                           \
        cublasStatus_t status = (call);                                                            \
        check((int)status, cublasLtGetStatusString(status), #call);                                \
    } while (0)

struct bench {
    cublasLtHandle_t blas;
    cudaEvent_t begin, end;
    void *workspace;
};

static double elapsed_ms(const struct bench *b)
{
    float ms = 0;
    CUDA(cudaEventRecord(b->end, NULL));
    CUDA(cudaEventSynchronize(b->end));
    CUDA(cudaEventElapsedTime(&ms, b->begin, b->end));
    return ms;
}

/* Bytes read and written, GB/s: the best of the rounds. */
static double copy_gb_s(const struct bench *b)
{
    char *memory = NULL;
    double best = 0;
    CUDA(cudaMalloc((void **)&memory, 2 * COPY_BYTES));
    CUDA(cudaMemset(memory, 1, 2 * COPY_BYTES));
    for (int round = 0; round < ROUNDS; round++) {
        CUDA(cudaEventRecord(b->begin, NULL));
        for (int i = 0; i < COPIES; i++)
            CUDA(cudaMemcpyAsync(memory + COPY_BYTES, memory, COPY_BYTES, cudaMemcpyDeviceToDevice,
                                 NULL));
        double rate = 2.0 * COPIES * (double)COPY_BYTES / elapsed_ms(b) * 1e-6;
        best = rate > best ? rate : best;
    }
    CUDA(cudaFree(memory));
    return best;
}

/* Random numbers within +-1 as bf16 or f32: zeros would be multiplied faster. */
static void *operand(size_t n, bool half)
{
    size_t size = half ? 2 : 4, piece = n < 1 << 20 ? n : 1 << 20;
    char *device = NULL, *host = malloc(piece * size);
    uint32_t state = 1;
    if (!host)
        exit(1);
    for (size_t i = 0; i < piece; i++) {
        state = state * 1664525u + 1013904223u;
        float v = (float)(state >> 8) * 0x1p-23f - 1.0f;
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        uint16_t top = (uint16_t)(bits >> 16);
        memcpy(host + i * size, half ? (const void *)&top : (const void *)&v, size);
    }
    CUDA(cudaMalloc((void **)&device, n * size));
    for (size_t at = 0; at < n; at += piece) {
        size_t count = n - at < piece ? n - at : piece;
        CUDA(cudaMemcpy(device + at * size, host, count * size, cudaMemcpyHostToDevice));
    }
    free(host);
    return device;
}

/* TFLOP/s of c[m, n] = a[m, k] b[k, n] in cuBLAS's order of columns; ta, tb: the operand is stored
 * transposed. Results have the format of the operands where `narrow`, else f32. */
static double product(const struct bench *b, bool half, uint64_t m, uint64_t n, uint64_t k, bool ta,
                      bool tb, bool narrow)
{
    cudaDataType_t in = half ? CUDA_R_16BF : CUDA_R_32F, out = narrow ? in : CUDA_R_32F;
    cublasOperation_t none = CUBLAS_OP_N, turned = CUBLAS_OP_T;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    float one = 1, zero = 0;
    int count = 0;
    size_t workspace = WORKSPACE_BYTES;
    void *a = operand(m * k, half), *w = operand(k * n, half), *c = NULL;
    CUDA(cudaMalloc(&c, m * n * (narrow && half ? 2 : 4)));
    BLAS(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, ta ? &turned : &none,
                                        sizeof none));
    BLAS(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, tb ? &turned : &none,
                                        sizeof none));
    BLAS(cublasLtMatrixLayoutCreate(&la, in, ta ? k : m, ta ? m : k, (int64_t)(ta ? k : m)));
    BLAS(cublasLtMatrixLayoutCreate(&lb, in, tb ? n : k, tb ? k : n, (int64_t)(tb ? n : k)));
    BLAS(cublasLtMatrixLayoutCreate(&lc, out, m, n, (int64_t)m));
    BLAS(cublasLtMatmulPreferenceCreate(&preference));
    BLAS(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace, sizeof workspace));
    BLAS(cublasLtMatmulAlgoGetHeuristic(b->blas, desc, la, lb, lc, lc, preference, 1, &found,
                                        &count));
    double best = 0;
    for (int round = 0; count && round < ROUNDS; round++) {
        CUDA(cudaEventRecord(b->begin, NULL));
        for (int i = 0; i < PRODUCTS; i++)
            BLAS(cublasLtMatmul(b->blas, desc, &one, a, la, w, lb, &zero, c, lc, c, lc, &found.algo,
                                b->workspace, workspace, NULL));
        double rate = 2.0 * PRODUCTS * (double)m * (double)n * (double)k / elapsed_ms(b) * 1e-9;
        best = rate > best ? rate : best;
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(lc);
    cublasLtMatmulDescDestroy(desc);
    CUDA(cudaFree(a));
    CUDA(cudaFree(w));
    CUDA(cudaFree(c));
    return best;
}

/* Row-major [rows, batch] is column-major with m = batch. */
static void products_json(const struct bench *b, bool half, uint64_t rows, uint64_t batch,
                          uint64_t dim)
{
    double logits = product(b, half, batch, rows, dim, true, false, true);
    double gradient = product(b, half, dim, batch, rows, false, true, false);
    double commit = product(b, half, dim, rows, batch, false, false, true);
    double mean = logits && gradient && commit ? 3 / (1 / logits + 1 / gradient + 1 / commit) : 0;
    printf(
        ", \"%s\": {\"logits_tflops\": %.1f, \"gradient_tflops\": %.1f, \"commit_tflops\": %.1f, "
        "\"mean_tflops\": %.1f}",
        half ? "bf16" : "f32", logits, gradient, commit, mean);
}

static uint64_t number(char **argv, int argc, int i, uint64_t fallback)
{
    return argc > i ? strtoull(argv[i], NULL, 10) : fallback;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct cudaDeviceProp device;
    uint64_t rows = number(argv, argc, 1, 262144), batch = number(argv, argc, 2, 1024);
    uint64_t dim = number(argv, argc, 3, 512);
    if (rows < 16 || batch < 16 || dim < 16 || argc > 4) {
        fprintf(stderr, "usage: %s [ROWS [BATCH [DIM]]], each at least 16\n", argv[0]);
        return 2;
    }
    CUDA(cudaGetDeviceProperties(&device, 0));
    CUDA(cudaEventCreate(&b.begin));
    CUDA(cudaEventCreate(&b.end));
    CUDA(cudaMalloc(&b.workspace, WORKSPACE_BYTES));
    BLAS(cublasLtCreate(&b.blas));
    printf("{\"device\": \"%s\", \"memory_bytes\": %zu, \"cublaslt\": %zu, \"rows\": %llu, "
           "\"batch\": %llu, \"dim\": %llu, \"copy_gb_s\": %.1f",
           device.name, device.totalGlobalMem, cublasLtGetVersion(), (unsigned long long)rows,
           (unsigned long long)batch, (unsigned long long)dim, copy_gb_s(&b));
    fflush(stdout);
    products_json(&b, true, rows, batch, dim);
    products_json(&b, false, rows, batch, dim);
    printf("}\n");
    return 0;
}

/* How fast blocks of classes come from a CUDA device and go there, as snapshots, moves and recovery
 * read and write them: by calls of several lengths, beside what a plain copy of pinned memory does.
 * Prints one JSON object; GB/s are of the f32 that the caller sees.
 *
 *   gpu_copies [BLOCKS [DIM]]      blocks of 8192 rows (16), width (512); bf16 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>

#include "kernels/backend.h"

#define ROWS   8192
#define ROUNDS 3
#define RANDOM 819 /* rows of a list: a tenth */

struct bench {
    struct sfc_head *head;
    struct sfc_head_config config;
    uint64_t blocks;
    float *memory; /* of a block */
    uint32_t rows[RANDOM];
};

static void check(int rc, const struct sfc_error *err)
{
    if (rc) {
        fprintf(stderr, "gpu_copies: %s\n", err->text);
        exit(rc == SFC_EUNSUPPORTED ? 77 : 1);
    }
}

static void check_cuda(cudaError_t status, const char *what)
{
    if (status != cudaSuccess) {
        fprintf(stderr, "gpu_copies: %s: %s\n", what, cudaGetErrorString(status));
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One direction of the bus, pinned memory, 64 MiB at a time. */
static double bus_gb_s(enum cudaMemcpyKind kind)
{
    const size_t bytes = (size_t)64 << 20;
    void *host = NULL, *device = NULL;
    double best = 0;
    check_cuda(cudaMallocHost(&host, bytes), "cudaMallocHost");
    check_cuda(cudaMalloc(&device, bytes), "cudaMalloc");
    memset(host, 1, bytes);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        double begin = now();
        check_cuda(kind == cudaMemcpyDeviceToHost ? cudaMemcpy(host, device, bytes, kind)
                                                  : cudaMemcpy(device, host, bytes, kind),
                   "cudaMemcpy");
        double rate = (double)bytes / (now() - begin) / 1e9;
        best = rate > best ? rate : best;
    }
    cudaFree(device);
    cudaFreeHost(host);
    return best;
}

typedef int (*pass_fn)(struct bench *b, uint64_t block, uint64_t length, struct sfc_error *err);

static int read_block(struct bench *b, uint64_t block, uint64_t length, struct sfc_error *err)
{
    uint64_t all = (uint64_t)ROWS * b->config.dim;
    int rc = SFC_OK;
    for (uint64_t at = 0; !rc && at < all; at += length)
        rc = sfc_head_read(b->head, block, SFC_PART_VALUES, at,
                           all - at < length ? all - at : length, b->memory + at, err);
    return rc;
}

static int write_block(struct bench *b, uint64_t block, uint64_t length, struct sfc_error *err)
{
    uint64_t all = (uint64_t)ROWS * b->config.dim;
    int rc = SFC_OK;
    for (uint64_t at = 0; !rc && at < all; at += length)
        rc = sfc_head_write(b->head, block, SFC_PART_MOMENTUM, at,
                            all - at < length ? all - at : length, b->memory + at, err);
    return rc;
}

static int read_list(struct bench *b, uint64_t block, uint64_t length, struct sfc_error *err)
{
    uint64_t most = length / b->config.dim;
    int rc = SFC_OK;
    for (uint64_t at = 0; !rc && at < RANDOM; at += most)
        rc = sfc_head_read_rows(b->head, block, SFC_PART_VALUES, b->rows + at,
                                RANDOM - at < most ? RANDOM - at : most,
                                b->memory + at * b->config.dim, err);
    return rc;
}

/* length: numbers of a call; numbers: of a block that a pass touches. */
static double rate(struct bench *b, pass_fn pass, uint64_t length, uint64_t numbers)
{
    double best = 0;
    struct sfc_error err = {0};
    for (int i = 0; i < ROUNDS; i++) {
        double begin = now();
        for (uint64_t block = 0; block < b->blocks; block++)
            check(pass(b, block, length, &err), &err);
        double gb_s = (double)(b->blocks * numbers * sizeof(float)) / (now() - begin) / 1e9;
        best = gb_s > best ? gb_s : best;
    }
    return best;
}

static void open_head(struct bench *b, uint64_t dim)
{
    struct sfc_error err = {0};
    struct sfc_backend *backend = NULL;
    uint64_t *ids = calloc(b->blocks, sizeof *ids);
    if (!ids)
        exit(1);
    for (uint64_t i = 0; i < b->blocks; i++)
        ids[i] = i;
    b->config = (struct sfc_head_config){
        .seed = 1,
        .classes = b->blocks * ROWS,
        .dim = (uint32_t)dim,
        .block_size = ROWS,
        .sample_ppm = 100000,
        .batch = 256,
        .micro_batch = 256,
        .slots = 3,
        .dtype = SFC_DTYPE_BF16,
        .gemm = SFC_DTYPE_BF16,
        .margin_m1 = 1,
        .margin_m3 = 0.4,
        .scale = 64,
        .init_std = 0.01,
        .momentum = 0.9,
        .steps = 100,
    };
    check(sfc_backend_open("cuda", 1, &backend, &err), &err);
    check(sfc_head_new(backend, &b->config, ids, b->blocks, &b->head, &err), &err);
    b->memory = calloc((size_t)ROWS * dim, sizeof *b->memory);
    if (!b->memory)
        exit(1);
    for (uint32_t i = 0; i < RANDOM; i++)
        b->rows[i] = 10 * i + i % 7;
    free(ids);
}

int main(int argc, char **argv)
{
    static const uint64_t lengths[] = {8192, 65536, 262144, 1048576, ROWS * 512};
    struct bench b = {.blocks = argc > 1 ? strtoull(argv[1], NULL, 10) : 16};
    uint64_t dim = argc > 2 ? strtoull(argv[2], NULL, 10) : 512;
    if (!b.blocks || !dim || dim > 8192) {
        fprintf(stderr, "usage: gpu_copies [BLOCKS [DIM]]\n");
        return 2;
    }
    open_head(&b, dim);
    printf("{\"bench\": \"gpu copies\", \"blocks\": %llu, \"dim\": %llu, \"bus_from_gb_s\": %.1f, "
           "\"bus_to_gb_s\": %.1f, "
           "\"calls\": [",
           (unsigned long long)b.blocks, (unsigned long long)dim, bus_gb_s(cudaMemcpyDeviceToHost),
           bus_gb_s(cudaMemcpyHostToDevice));
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        printf("%s{\"kib\": %llu, \"read_gb_s\": %.2f, \"list_gb_s\": %.2f, \"write_gb_s\": %.2f}",
               i ? ", " : "", (unsigned long long)lengths[i] * sizeof(float) / 1024,
               rate(&b, read_block, lengths[i], (uint64_t)ROWS * dim),
               rate(&b, read_list, lengths[i], RANDOM * dim),
               rate(&b, write_block, lengths[i], (uint64_t)ROWS * dim));
    printf("]}\n");
    return 0;
}

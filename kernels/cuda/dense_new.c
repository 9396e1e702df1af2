/* Backbone blocks: how they are cut into tiles, what they take, and their life. */
#include <limits.h>
#include <stdlib.h>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/head.h"

#define PIECE_BYTES ((size_t)1 << 20) /* long enough to keep the bus busy */
#define PACKED_ROOM 16                /* between the halves and the floats of a piece */

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static bool is_adamw(const struct sfc_dense_config *config)
{
    return config->optimizer == SFC_OPTIMIZER_ADAMW;
}

/* ---- tiles */

/* Where the cutting is. */
struct cutter {
    const struct sfc_dense_config *config;
    struct sfc_cuda_dense_tile *tiles; /* NULL: only counts */
    size_t count;
    size_t segment;
    uint64_t at, packed[2]; /* floats so far; in the floats and in the halves of packed sums */
};

/* The floats of one block and one segment. */
static void cut_run(struct cutter *c, uint32_t block, uint64_t from, uint64_t end)
{
    const struct sfc_dense_segment *segment = &c->config->segments[c->segment];
    bool half = sfc_dense_is_half(c->config, segment->role);
    for (uint64_t length; from < end; from += length, c->count++) {
        length = smaller(end - from, SFC_CUDA_DENSE_TILE);
        if (c->tiles)
            c->tiles[c->count] = (struct sfc_cuda_dense_tile){
                .at = c->at,
                .global = from,
                .packed = c->packed[half],
                .length = (uint32_t)length,
                .block = block,
                .mean = (float)segment->init_mean,
                .std = (float)segment->init_std,
                .statistic = segment->role == SFC_DENSE_STATISTIC,
                .decays = segment->role == SFC_DENSE_WEIGHT,
                .half = half,
            };
        c->at += length;
        c->packed[half] += length;
    }
}

static void cut_block(struct cutter *c, uint32_t index, uint64_t block)
{
    const struct sfc_dense_segment *segments = c->config->segments;
    uint64_t from = block * c->config->block_size;
    uint64_t end = from + sfc_dense_block_length(c->config, block);
    while (from < end) {
        while (segments[c->segment].offset + segments[c->segment].length <= from)
            c->segment++;
        uint64_t stop = smaller(end, segments[c->segment].offset + segments[c->segment].length);
        cut_run(c, index, from, stop);
        from = stop;
    }
}

static void count_tiles(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count)
{
    struct cutter cutter = {.config = config};
    for (size_t i = 0; i < count; i++)
        cut_block(&cutter, (uint32_t)i, blocks[i]);
    d->block_count = count;
    d->length = cutter.at;
    d->tile_count = cutter.count;
}

static void cut_tiles(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                      const uint64_t *blocks)
{
    struct cutter cutter = {.config = config, .tiles = d->tiles};
    for (size_t i = 0; i < d->block_count; i++) {
        cut_block(&cutter, (uint32_t)i, blocks[i]);
        d->block_at[i + 1] = cutter.at;
        d->first_tile[i + 1] = cutter.count;
    }
}

/* ---- memory: the device's */

static uint64_t state_floats(const struct sfc_cuda_dense *d, const struct sfc_dense_config *config)
{
    return (is_adamw(config) ? 3 : 2) * d->length;
}

/* Side by side, so that the state takes what it has. */
static void lay_out_state(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                          struct sfc_cuda_carver *carver)
{
    float *values = sfc_cuda_carve(carver, state_floats(d, config), sizeof(float));
    if (!values)
        return;
    d->vectors.values = values;
    d->vectors.momentum = values + d->length;
    d->vectors.second = is_adamw(config) ? values + 2 * d->length : NULL;
}

static void lay_out_step(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                         struct sfc_cuda_carver *carver)
{
    d->vectors.sum = sfc_cuda_carve(carver, d->length, sizeof(float));
    d->slices = sfc_cuda_carve(carver, config->slots * d->length, sizeof(float));
}

static void lay_out_scratch(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                            struct sfc_cuda_carver *carver)
{
    d->device_tiles = sfc_cuda_carve(carver, d->tile_count, sizeof *d->device_tiles);
    d->device_found = sfc_cuda_carve(carver, d->tile_count, sizeof *d->device_found);
    d->device_slots = sfc_cuda_carve(carver, config->micro_batches, sizeof *d->device_slots);
    d->device_left_out = sfc_cuda_carve(carver, d->block_count, sizeof *d->device_left_out);
    for (size_t i = 0; i < SFC_CUDA_PIECES; i++)
        d->pieces[i].device = sfc_cuda_carve(carver, d->piece_bytes, 1);
}

/* Counts what the device memory has to hold; returns all of it. */
static size_t measure(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                      const uint64_t *blocks, size_t count)
{
    struct sfc_cuda_carver carver = {0};
    count_tiles(d, config, blocks, count);
    d->piece_bytes = (size_t)smaller(PIECE_BYTES, d->length * sizeof(float) + PACKED_ROOM);
    d->piece_bytes = (d->piece_bytes + 255) / 256 * 256;
    d->memory.state_bytes = state_floats(d, config) * sizeof(float);
    d->memory.step_bytes = ((uint64_t)config->slots + 1) * d->length * sizeof(float);
    lay_out_state(d, config, &carver);
    lay_out_step(d, config, &carver);
    lay_out_scratch(d, config, &carver);
    d->memory.scratch_bytes = carver.used - d->memory.state_bytes - d->memory.step_bytes;
    return carver.used;
}

int sfc_cuda_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                          const uint64_t *blocks, size_t count, struct sfc_memory *out,
                          struct sfc_error *err)
{
    struct sfc_cuda_dense d = {0};
    (void)backend;
    (void)err;
    measure(&d, config, blocks, count);
    *out = d.memory;
    return SFC_OK;
}

/* ---- life */

static int allocate_host(struct sfc_cuda_dense *d, struct sfc_error *err)
{
    d->block_at = calloc(d->block_count + 1, sizeof *d->block_at);
    d->first_tile = calloc(d->block_count + 1, sizeof *d->first_tile);
    d->tiles = calloc(d->tile_count, sizeof *d->tiles);
    d->found = calloc(d->tile_count, sizeof *d->found);
    d->left_out = calloc(d->block_count, sizeof *d->left_out);
    if (!d->block_at || !d->first_tile || !d->tiles || !d->found || !d->left_out)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for the tables of %zu blocks",
                        d->block_count);
    void *staging = NULL;
    int rc = sfc_cuda_check(d->cuda, cudaMallocHost(&staging, SFC_CUDA_PIECES * d->piece_bytes),
                            "cudaMallocHost of memory for copies of backbone blocks", err);
    d->staging = rc ? NULL : staging;
    for (size_t i = 0; !rc && i < SFC_CUDA_PIECES; i++) {
        d->pieces[i].host = d->staging + i * d->piece_bytes;
        rc = sfc_cuda_check(d->cuda,
                            cudaEventCreateWithFlags(&d->pieces[i].done, cudaEventDisableTiming),
                            "cudaEventCreateWithFlags for copies of backbone blocks", err);
    }
    return rc;
}

static int allocate_device(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                           size_t bytes, struct sfc_error *err)
{
    int rc = sfc_cuda_check(d->cuda, cudaMalloc(&d->memory_base, bytes),
                            "cudaMalloc of the backbone blocks and their slots", err);
    if (rc)
        return rc;
    struct sfc_cuda_carver carver = {.base = d->memory_base};
    lay_out_state(d, config, &carver);
    lay_out_step(d, config, &carver);
    lay_out_scratch(d, config, &carver);
    return SFC_OK;
}

static cudaError_t fill_device(struct sfc_cuda_dense *d, uint64_t seed, bool blank)
{
    const struct sfc_cuda_dense_vectors *v = &d->vectors;
    cudaStream_t stream = d->cuda->stream;
    cudaError_t status =
        cudaMemcpyAsync(d->device_tiles, d->tiles, d->tile_count * sizeof *d->tiles,
                        cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess)
        status = cudaMemsetAsync(v->momentum, 0, d->length * sizeof *v->momentum, stream);
    if (status == cudaSuccess && v->second)
        status = cudaMemsetAsync(v->second, 0, d->length * sizeof *v->second, stream);
    if (status == cudaSuccess && blank)
        status = cudaMemsetAsync(v->values, 0, d->length * sizeof *v->values, stream);
    if (status == cudaSuccess && !blank)
        status = sfc_cuda_dense_init(d->device_tiles, d->tile_count, seed, v->values, stream);
    return status == cudaSuccess ? cudaStreamSynchronize(stream) : status;
}

/* All but the structure itself. */
static int build(struct sfc_cuda_dense *d, const struct sfc_dense_config *config,
                 const uint64_t *blocks, size_t count, bool blank, struct sfc_error *err)
{
    size_t bytes = measure(d, config, blocks, count);
    if (d->tile_count > INT_MAX)
        return sfc_fail(err, SFC_ELIMIT,
                        "dense: %zu runs of floats are more than %d; take longer "
                        "segments or more shards",
                        d->tile_count, INT_MAX);
    int rc = sfc_cuda_enter(d->cuda, err);
    if (!rc)
        rc = allocate_host(d, err);
    if (!rc)
        rc = allocate_device(d, config, bytes, err);
    if (rc)
        return rc;
    cut_tiles(d, config, blocks);
    return sfc_cuda_check(d->cuda, fill_device(d, config->seed, blank),
                          "first values of the backbone blocks", err);
}

int sfc_cuda_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                       const uint64_t *blocks, size_t count, bool blank,
                       struct sfc_dense_part **out, struct sfc_error *err)
{
    struct sfc_cuda_dense *d = calloc(1, sizeof *d);
    if (!d)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory");
    d->cuda = (struct sfc_cuda *)backend;
    int rc = build(d, config, blocks, count, blank, err);
    if (rc) {
        sfc_cuda_dense_free(&d->base);
        return rc;
    }
    *out = &d->base;
    return SFC_OK;
}

void sfc_cuda_dense_free(struct sfc_dense_part *dense)
{
    struct sfc_cuda_dense *d = (struct sfc_cuda_dense *)dense;
    sfc_cuda_enter(d->cuda, NULL);
    for (size_t i = 0; i < SFC_CUDA_PIECES; i++)
        if (d->pieces[i].done)
            cudaEventDestroy(d->pieces[i].done);
    if (d->staging)
        cudaFreeHost(d->staging);
    if (d->memory_base)
        cudaFree(d->memory_base);
    free(d->block_at);
    free(d->first_tile);
    free(d->tiles);
    free(d->found);
    free(d->left_out);
    free(d);
}

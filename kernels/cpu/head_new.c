#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/sample.h"

/* A tile, its product, the unit features and dw share the cache of a core, 1 or 2 MiB. */
#define TILE_BYTES ((size_t)512 << 10)
#define MAX_BYTES  0x1p56

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* Products of bf16 take rows in pairs. */
static size_t round2(size_t n)
{
    return (n + 1) / 2 * 2;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool is_dense(const struct sfc_head_config *config)
{
    return config->momentum_mode == SFC_MOMENTUM_DENSE;
}

/* ---- sizes and the layout of the memory */

/* Hands out 64-byte aligned ranges of a mapping; with base NULL it only measures. */
struct carver {
    char *base;
    size_t used;
};

static void *carve(struct carver *c, size_t count, size_t size)
{
    char *at = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 63) / 64 * 64;
    return at;
}

void sfc_cpu_product_sizes(const struct sfc_head_config *c, struct sfc_cpu_sizes *s)
{
    uint32_t full = c->classes < c->block_size ? (uint32_t)c->classes : c->block_size;
    size_t quota = sfc_sample_quota(full, c->sample_ppm, 0);
    s->pitch = round16(c->dim);
    size_t most = larger(TILE_BYTES / (s->pitch * sizeof(float)), 16);
    size_t tiles = (quota + most - 1) / most;
    s->tile = larger(round2((quota + tiles - 1) / tiles), 16);
    s->tensors = c->optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    s->mp = round16(c->micro_batch);
    s->bp = round16(c->batch);
    s->micro_batches = c->batch / c->micro_batch;
    s->groups = 1;
    while (s->groups < SFC_CPU_MAX_GROUPS && (size_t)1 << s->groups <= s->micro_batches &&
           s->mp << s->groups <= SFC_CPU_MAX_WIDTH)
        s->groups++;
    s->call_rows = larger(c->slots * s->mp, s->bp);
}

static void block_sizes(const struct sfc_head_config *c, const uint64_t *blocks, size_t count,
                        struct sfc_cpu_sizes *s)
{
    size_t quota = 0;
    s->store_rows = s->max_block = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t rows = (uint32_t)sfc_head_block_rows(c, blocks[i]);
        s->store_rows += rows;
        s->max_block = larger(s->max_block, rows);
        quota += sfc_sample_quota(rows, c->sample_ppm, 0);
    }
    /* A block exceeds its quota only by positives, and there are at most `batch` of those. */
    size_t bound = quota + c->batch;
    s->sample_rows = bound < s->store_rows ? bound : s->store_rows;
}

static void lay_out_worker(const struct sfc_cpu_head *head, struct sfc_cpu_worker *worker,
                           struct carver *carver)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cpu_sizes *s = &head->sizes;
    size_t columns = s->mp << (s->groups - 1);
    worker->tile = carve(carver, s->tile * s->pitch, head->operand_bytes);
    worker->row = carve(carver, 2 * s->pitch, sizeof(float));
    worker->product = carve(carver, s->tile * larger(columns, s->bp), sizeof(float));
    worker->result = carve(carver, larger(s->tile, s->call_rows) * s->pitch, sizeof(float));
    worker->exps = carve(carver, s->call_rows, sizeof(double));
    worker->sums = carve(carver, s->call_rows, sizeof(struct sfc_sum256));
    worker->dx = carve(carver, (size_t)c->slots * c->micro_batch * c->dim, sizeof(int64_t));
    worker->sample = carve(carver, sfc_sample_scratch((uint32_t)s->max_block), 1);
    worker->ahead =
        carve(carver, sfc_sample_quota((uint32_t)s->max_block, c->sample_ppm, 0), sizeof(uint32_t));
}

static void lay_out_state(struct sfc_cpu_head *head, struct carver *carver)
{
    size_t rows = head->sizes.store_rows;
    size_t record = head->sizes.tensors * sfc_tensor_bytes(head->format, head->config.dim);
    head->records = carve(carver, rows, record);
    head->last = is_dense(&head->config) ? carve(carver, rows, sizeof *head->last) : NULL;
}

/* The formats that follow from the configuration and the CPU. */
static void choose_formats(struct sfc_cpu_head *head, const struct sfc_cpu *cpu)
{
    head->half = head->config.gemm == SFC_DTYPE_BF16;
    head->operand = !head->half                                ? SFC_OPERAND_F32
                    : cpu->products == SFC_CPU_PRODUCTS_NATIVE ? SFC_OPERAND_BF16
                                                               : SFC_OPERAND_WIDE;
    head->operand_bytes = head->operand == SFC_OPERAND_BF16 ? sizeof(uint16_t) : sizeof(float);
    head->kept_bytes = head->half ? sizeof(uint16_t) : sizeof(float);
    head->format = head->config.dtype == SFC_DTYPE_BF16 ? SFC_STORE_BF16
                   : head->half                         ? SFC_STORE_SPLIT
                                                        : SFC_STORE_F32;
}

static void lay_out_step(struct sfc_cpu_head *head, struct carver *carver)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cpu_sizes *s = &head->sizes;
    head->rows = carve(carver, s->sample_rows, sizeof(uint32_t));
    head->inverse_norm = carve(carver, s->sample_rows, sizeof(float));
    head->add = carve(carver, s->sample_rows, sizeof(float));
    head->labels = carve(carver, c->batch, sizeof *head->labels);
    head->target_row = carve(carver, c->batch, sizeof(uint32_t));
    head->target_at = carve(carver, c->batch, sizeof(uint32_t));
    head->positive = carve(carver, c->batch, sizeof(uint32_t));
    head->z = carve(carver, (size_t)c->slots * s->sample_rows * s->mp, head->kept_bytes);
    head->x = carve(carver, (size_t)c->slots * c->micro_batch * s->pitch, head->operand_bytes);
    head->target_z = carve(carver, (size_t)c->slots * c->micro_batch, sizeof(float));
    head->slope = carve(carver, (size_t)c->slots * c->micro_batch, sizeof(float));
    head->zero = carve(carver, (size_t)c->slots * c->micro_batch, sizeof(bool));
    head->finite = carve(carver, c->slots, sizeof *head->finite);
    head->call_x = carve(carver, s->call_rows * s->pitch, head->operand_bytes);
    head->unit = carve(carver, s->pitch, sizeof(float));
    head->high = carve(carver, s->call_rows, sizeof(float));
    head->low = carve(carver, s->call_rows, sizeof(float));
    if (is_dense(c))
        head->lag = carve(carver, c->steps + 1, sizeof *head->lag);
}

/* The largest products of sizes, in doubles, so that size_t can't overflow below. */
static int check_size(const struct sfc_head_config *c, const struct sfc_cpu_sizes *s,
                      struct sfc_error *err)
{
    double rows = (double)s->store_rows * c->dim * 12;
    double kept = (double)c->slots * (double)s->sample_rows * (double)s->mp * 4;
    double batch = (double)s->call_rows * (double)s->pitch * 16;
    double tile = (double)s->tile * (double)larger(s->pitch, s->bp) * 16;
    if (rows + kept + batch + tile > MAX_BYTES)
        return sfc_fail(err, SFC_ELIMIT, "head: %.3g bytes are more than any machine has",
                        rows + kept + batch + tile);
    return SFC_OK;
}

static bool is_bf16(const struct sfc_cpu_head *head)
{
    return head->operand == SFC_OPERAND_BF16;
}

static struct sfc_gemm_shape logits_shape(const struct sfc_cpu_head *head, size_t g)
{
    const struct sfc_cpu_sizes *s = &head->sizes;
    return (struct sfc_gemm_shape){
        .m = (int64_t)s->tile,
        .n = (int64_t)(s->mp << g),
        .k = (int64_t)s->pitch,
        .b_transposed = true,
        .bf16 = is_bf16(head),
        .b_packed = true,
    };
}

static struct sfc_gemm_shape gradient_shape(const struct sfc_cpu_head *head, size_t g)
{
    const struct sfc_cpu_sizes *s = &head->sizes;
    return (struct sfc_gemm_shape){
        .m = (int64_t)(s->mp << g),
        .n = (int64_t)s->pitch,
        .k = (int64_t)s->tile,
        .a_transposed = true,
        .bf16 = is_bf16(head),
        .accumulate = true,
    };
}

static struct sfc_gemm_shape commit_shape(const struct sfc_cpu_head *head)
{
    const struct sfc_cpu_sizes *s = &head->sizes;
    return (struct sfc_gemm_shape){
        .m = (int64_t)s->tile,
        .n = (int64_t)s->pitch,
        .k = (int64_t)s->bp,
        .bf16 = is_bf16(head),
        .b_packed = true,
    };
}

struct scratch_call {
    const struct sfc_cpu *cpu;
    const struct sfc_cpu_head *head;
    size_t bytes;
    struct sfc_error error;
};

/* Scratch of oneDNN for the largest product; runs on one worker because oneDNN asks the calling
 * thread for its OpenMP settings. */
static void measure_scratch(void *arg, size_t item, unsigned worker)
{
    struct scratch_call *call = arg;
    (void)item;
    (void)worker;
    size_t groups = call->head->sizes.groups;
    for (size_t i = 0; i < 2 * groups + 1; i++) {
        size_t g = i / 2, bytes = 0;
        struct sfc_gemm_shape shape = g == groups ? commit_shape(call->head)
                                      : i % 2     ? gradient_shape(call->head, g)
                                                  : logits_shape(call->head, g);
        if (sfc_gemm_scratch(call->cpu->engine, &shape, &bytes, &call->error))
            return;
        call->bytes = larger(call->bytes, bytes);
    }
}

/* Fills sizes and memory of a head whose config is set. */
static int measure(struct sfc_cpu_head *head, const struct sfc_cpu *cpu, const uint64_t *blocks,
                   size_t count, struct sfc_error *err)
{
    struct sfc_cpu_sizes *s = &head->sizes;
    struct sfc_cpu_worker worker = {0};
    struct carver carver = {0};
    choose_formats(head, cpu);
    sfc_cpu_product_sizes(&head->config, s);
    block_sizes(&head->config, blocks, count, s);
    int rc = check_size(&head->config, s, err);
    if (rc)
        return rc;
    struct scratch_call call = {.cpu = cpu, .head = head};
    sfc_cpu_pool_run(cpu->pool, measure_scratch, &call, 1);
    if (call.error.code)
        return sfc_fail(err, call.error.code, "%s", call.error.text);
    lay_out_worker(head, &worker, &carver);
    carve(&carver, call.bytes, 1);
    s->scratch_bytes = sfc_cpu_mapped_bytes(carver.used);
    carver = (struct carver){0};
    lay_out_state(head, &carver);
    head->memory.state_bytes = sfc_cpu_mapped_bytes(carver.used);
    carver = (struct carver){0};
    lay_out_step(head, &carver);
    head->memory.step_bytes =
        sfc_cpu_mapped_bytes(carver.used) + count * sizeof(struct sfc_cpu_block);
    head->memory.scratch_bytes =
        cpu->threads * (s->scratch_bytes + sizeof(struct sfc_cpu_worker)) + sizeof *head;
    return SFC_OK;
}

int sfc_cpu_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err)
{
    struct sfc_cpu_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->config = *config;
    int rc = measure(head, (const struct sfc_cpu *)backend, blocks, count, err);
    if (!rc)
        *out = head->memory;
    free(head);
    return rc;
}

/* ---- life */

static int make_products(struct sfc_cpu_head *head, struct sfc_cpu_worker *worker)
{
    dnnl_engine_t engine = head->cpu->engine;
    struct sfc_gemm_shape shape = commit_shape(head);
    int rc = sfc_gemm_init(&worker->commit, engine, &shape, &worker->error);
    for (size_t g = 0; !rc && g < head->sizes.groups; g++) {
        shape = logits_shape(head, g);
        rc = sfc_gemm_init(&worker->logits[g], engine, &shape, &worker->error);
        shape = gradient_shape(head, g);
        if (!rc)
            rc = sfc_gemm_init(&worker->gradient[g], engine, &shape, &worker->error);
    }
    return rc;
}

static void worker_init(void *arg, size_t item, unsigned index)
{
    struct sfc_cpu_head *head = arg;
    struct sfc_cpu_worker *worker = &head->workers[index];
    (void)item;
    if (sfc_cpu_map(&worker->arena, head->sizes.scratch_bytes, "scratch", &worker->error))
        return;
    memset(worker->arena.data, 0, head->sizes.scratch_bytes);
    struct carver carver = {worker->arena.data, 0};
    lay_out_worker(head, worker, &carver);
    worker->gemm = carve(&carver, 0, 1);
    if (dnnl_stream_create(&worker->stream, head->cpu->engine, dnnl_stream_default_flags))
        sfc_fail(&worker->error, SFC_EDEVICE, "oneDNN can't make a stream");
    else
        make_products(head, worker);
}

static void worker_close(struct sfc_cpu_worker *worker)
{
    sfc_gemm_close(&worker->commit);
    for (size_t g = 0; g < SFC_CPU_MAX_GROUPS; g++) {
        sfc_gemm_close(&worker->logits[g]);
        sfc_gemm_close(&worker->gradient[g]);
    }
    if (worker->stream)
        dnnl_stream_destroy(worker->stream);
    sfc_cpu_unmap(&worker->arena);
}

/* Numbers [k, k + n) of one tensor of a row: where they are. */
struct numbers {
    float *floats;        /* or NULL: then */
    uint16_t *high, *low; /* low: SPLIT weights, else NULL */
};

static struct numbers numbers_at(const struct sfc_store *store, enum sfc_block_part part,
                                 size_t row, size_t k, size_t dim)
{
    size_t tensor = part == SFC_PART_VALUES ? 0 : part == SFC_PART_MOMENTUM ? 1 : 2;
    void *at = sfc_store_at(store, row, tensor, dim);
    uint16_t *high = (uint16_t *)at + k;
    if (store->format == SFC_STORE_BF16)
        return (struct numbers){NULL, high, NULL};
    if (store->format == SFC_STORE_SPLIT && tensor == 0)
        return (struct numbers){NULL, high, high + dim};
    return (struct numbers){(float *)at + k, NULL, NULL};
}

static void get_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                        enum sfc_block_part part, size_t row, size_t k, size_t n, float *out)
{
    struct numbers at = numbers_at(store, part, row, k, head->config.dim);
    if (at.floats)
        memcpy(out, at.floats, n * sizeof *out);
    else
        head->simd->half->unpack(at.high, at.low, n, store->format, out);
}

static void put_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                        enum sfc_block_part part, size_t row, size_t k, size_t n,
                        const float *values)
{
    struct numbers at = numbers_at(store, part, row, k, head->config.dim);
    if (at.floats)
        memcpy(at.floats, values, n * sizeof *values);
    else
        head->simd->half->pack(values, n, store->format, at.high, at.low);
}

static void init_block(void *arg, size_t item, unsigned worker)
{
    struct sfc_cpu_head *head = arg;
    const struct sfc_cpu_block *block = &head->blocks[item];
    const struct sfc_store store = sfc_cpu_store(head, block, &head->workers[worker]);
    size_t dim = head->config.dim;
    size_t moments = (store.tensors - 1) * sfc_tensor_bytes(store.format, dim);
    float std = (float)head->config.init_std, *row = store.scratch;
    for (size_t i = 0; i < block->rows; i++) {
        sfc_random_normals(head->config.seed, SFC_STREAM_CLASS_INIT,
                           block->id * head->config.block_size + i, 0, dim, row);
        for (size_t k = 0; k < dim; k++)
            row[k] *= std;
        put_numbers(head, &store, SFC_PART_VALUES, i, 0, dim, row);
        memset(sfc_store_at(&store, i, 1, dim), 0, moments); /* touched now, not in a step */
    }
    if (store.last)
        memset(store.last, 0, block->rows * sizeof *store.last);
}

static int allocate(struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                    struct sfc_error *err)
{
    size_t store = 0;
    struct carver carver = {0};
    head->blocks = calloc(count, sizeof *head->blocks);
    head->workers = calloc(head->cpu->threads, sizeof *head->workers);
    if (!head->blocks || !head->workers)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    head->block_count = count;
    for (size_t i = 0; i < count; i++) {
        head->blocks[i].id = blocks[i];
        head->blocks[i].rows = (uint32_t)sfc_head_block_rows(&head->config, blocks[i]);
        head->blocks[i].store = store;
        store += head->blocks[i].rows;
    }
    int rc =
        head->cpu->store_dir
            ? sfc_cpu_map_file(&head->state, head->memory.state_bytes, head->cpu->store_dir, err)
            : sfc_cpu_map(&head->state, head->memory.state_bytes, "class centres", err);
    if (rc)
        return rc;
    carver.base = head->state.data;
    lay_out_state(head, &carver);
    carver = (struct carver){0};
    lay_out_step(head, &carver);
    rc = sfc_cpu_map(&head->step, carver.used, "kept logits", err);
    if (rc)
        return rc;
    carver = (struct carver){head->step.data, 0};
    lay_out_step(head, &carver);
    memset(head->step.data, 0, carver.used);
    return SFC_OK;
}

int sfc_cpu_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                     const uint64_t *blocks, size_t count, struct sfc_head **out,
                     struct sfc_error *err)
{
    struct sfc_cpu_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->cpu = (struct sfc_cpu *)backend;
    head->simd = sfc_simd_select();
    head->config = *config;
    /* Without a correction z is at most the scale, and exp(z - shift) fits a float; the correction
     * adds up to ln 1e6. */
    head->exp_factor = config->correction == SFC_CORRECTION_LOGQ ? 0x1p20 : 1;
    int rc = measure(head, head->cpu, blocks, count, err);
    if (!rc)
        rc = allocate(head, blocks, count, err);
    if (!rc) {
        sfc_cpu_pool_each(head->cpu->pool, worker_init, head);
        rc = sfc_cpu_head_error(head, err);
    }
    if (!rc)
        rc = sfc_cpu_head_probe(head, err);
    if (rc) {
        sfc_cpu_head_free(&head->base);
        return rc;
    }
    sfc_cpu_pool_run(head->cpu->pool, init_block, head, count);
    *out = &head->base;
    return SFC_OK;
}

void sfc_cpu_head_free(struct sfc_head *base)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    for (unsigned i = 0; head->workers && i < head->cpu->threads; i++)
        worker_close(&head->workers[i]);
    sfc_cpu_unmap(&head->state);
    sfc_cpu_unmap(&head->step);
    free(head->workers);
    free(head->blocks);
    free(head);
}

/* ---- reading and writing the store */

struct sfc_store sfc_cpu_store(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block,
                               const struct sfc_cpu_worker *worker)
{
    size_t record = head->sizes.tensors * sfc_tensor_bytes(head->format, head->config.dim);
    return (struct sfc_store){
        .format = head->format,
        .records = head->records + block->store * record,
        .tensors = head->sizes.tensors,
        .last = head->last ? head->last + block->store : NULL,
        .lag = head->lag,
        .now = (uint32_t)head->base.step,
        .nearest = head->config.rounding == SFC_ROUNDING_NEAREST,
        .seed = head->config.seed,
        .first_class = block->id * head->config.block_size,
        .scratch = worker->row,
    };
}

static void read_last(const uint32_t *last, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = (float)last[i];
}

static void write_last(uint32_t *last, uint64_t count, const float *values)
{
    for (uint64_t i = 0; i < count; i++)
        last[i] = (uint32_t)values[i];
}

/* Numbers from offset on that lie in one row. */
static size_t piece(uint64_t offset, uint64_t count, size_t dim)
{
    size_t rest = dim - offset % dim;
    return count < rest ? (size_t)count : rest;
}

int sfc_cpu_head_read(struct sfc_head *base, size_t index, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], &head->workers[0]);
    (void)err;
    if (part == SFC_PART_LAST_STEP) {
        read_last(s.last + offset, count, out);
        return SFC_OK;
    }
    for (size_t dim = head->config.dim, n; count; offset += n, out += n, count -= n) {
        n = piece(offset, count, dim);
        get_numbers(head, &s, part, offset / dim, offset % dim, n, out);
    }
    return SFC_OK;
}

int sfc_cpu_head_write(struct sfc_head *base, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_store s = sfc_cpu_store(head, &head->blocks[index], &head->workers[0]);
    (void)err;
    if (part == SFC_PART_LAST_STEP) {
        write_last(s.last + offset, count, values);
        return SFC_OK;
    }
    for (size_t dim = head->config.dim, n; count; offset += n, values += n, count -= n) {
        n = piece(offset, count, dim);
        put_numbers(head, &s, part, offset / dim, offset % dim, n, values);
    }
    return SFC_OK;
}

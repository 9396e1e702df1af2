#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/carver.h"
#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/sample.h"

/* A tile, its product, the unit features and dw share the cache of a core, 1 or 2 MiB. */
#define TILE_BYTES ((size_t)512 << 10)

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

void sfc_cpu_product_sizes(const struct sfc_head_config *c, struct sfc_cpu_sizes *s)
{
    uint32_t full = c->classes < c->block_size ? (uint32_t)c->classes : c->block_size;
    size_t quota = sfc_sample_quota(full, c->sample_ppm, 0);
    s->full_block = full;
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

static void lay_out_worker(const struct sfc_cpu_head *head, struct sfc_cpu_worker *worker,
                           struct sfc_cpu_carver *carver)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cpu_sizes *s = &head->sizes;
    size_t columns = s->mp << (s->groups - 1);
    worker->tile = sfc_cpu_carve(carver, s->tile * s->pitch, head->operand_bytes);
    worker->row = sfc_cpu_carve(carver, 2 * s->pitch, sizeof(float));
    worker->product = sfc_cpu_carve(carver, s->tile * larger(columns, s->bp), sizeof(float));
    worker->result = sfc_cpu_carve(carver, larger(s->tile, s->call_rows) * s->pitch, sizeof(float));
    worker->exps = sfc_cpu_carve(carver, s->call_rows, sizeof(double));
    worker->sums = sfc_cpu_carve(carver, s->call_rows, sizeof(struct sfc_sum256));
    worker->dx = sfc_cpu_carve(carver, (size_t)c->slots * c->micro_batch * c->dim, sizeof(int64_t));
    worker->sample = sfc_cpu_carve(carver, sfc_sample_scratch((uint32_t)s->full_block), 1);
    worker->ahead = sfc_cpu_carve(
        carver, sfc_sample_quota((uint32_t)s->full_block, c->sample_ppm, 0), sizeof(uint32_t));
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

static void lay_out_step(struct sfc_cpu_head *head, struct sfc_cpu_carver *carver)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cpu_sizes *s = &head->sizes;
    head->labels = sfc_cpu_carve(carver, c->batch, sizeof *head->labels);
    head->target_row = sfc_cpu_carve(carver, c->batch, sizeof(uint32_t));
    head->target_at = sfc_cpu_carve(carver, c->batch, sizeof(uint32_t));
    head->positive = sfc_cpu_carve(carver, c->batch, sizeof(uint32_t));
    head->x =
        sfc_cpu_carve(carver, (size_t)c->slots * c->micro_batch * s->pitch, head->operand_bytes);
    head->target_z = sfc_cpu_carve(carver, (size_t)c->slots * c->micro_batch, sizeof(float));
    head->slope = sfc_cpu_carve(carver, (size_t)c->slots * c->micro_batch, sizeof(float));
    head->zero = sfc_cpu_carve(carver, (size_t)c->slots * c->micro_batch, sizeof(bool));
    head->finite = sfc_cpu_carve(carver, c->slots, sizeof *head->finite);
    head->call_x = sfc_cpu_carve(carver, s->call_rows * s->pitch, head->operand_bytes);
    head->unit = sfc_cpu_carve(carver, s->pitch, sizeof(float));
    head->high = sfc_cpu_carve(carver, s->call_rows, sizeof(float));
    head->low = sfc_cpu_carve(carver, s->call_rows, sizeof(float));
    if (is_dense(c))
        head->lag = sfc_cpu_carve(carver, c->steps + 1, sizeof *head->lag);
}

/* The largest products of sizes, in doubles, so that size_t can't overflow below. */
static int check_size(const struct sfc_cpu_sizes *s, struct sfc_error *err)
{
    double batch = (double)s->call_rows * (double)s->pitch * 16;
    double tile = (double)s->tile * (double)larger(s->pitch, s->bp) * 16;
    if (batch + tile > SFC_CPU_MAX_BYTES)
        return sfc_fail(err, SFC_ELIMIT, "head: %.3g bytes are more than any machine has",
                        batch + tile);
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

/* Fills sizes, formats and memory of a head whose config is set, without its blocks'. */
static int measure(struct sfc_cpu_head *head, const struct sfc_cpu *cpu, struct sfc_error *err)
{
    struct sfc_cpu_sizes *s = &head->sizes;
    struct sfc_cpu_worker worker = {0};
    struct sfc_cpu_carver carver = {0};
    choose_formats(head, cpu);
    sfc_cpu_product_sizes(&head->config, s);
    int rc = check_size(s, err);
    if (rc)
        return rc;
    struct scratch_call call = {.cpu = cpu, .head = head};
    sfc_cpu_pool_run(cpu->pool, measure_scratch, &call, 1);
    if (call.error.code)
        return sfc_fail(err, call.error.code, "%s", call.error.text);
    lay_out_worker(head, &worker, &carver);
    sfc_cpu_carve(&carver, call.bytes, 1);
    s->scratch_bytes = sfc_cpu_mapped_bytes(carver.used);
    carver = (struct sfc_cpu_carver){0};
    lay_out_step(head, &carver);
    head->memory.step_bytes = sfc_cpu_mapped_bytes(carver.used);
    head->memory.scratch_bytes =
        cpu->threads * (s->scratch_bytes + sizeof(struct sfc_cpu_worker)) + sizeof *head;
    return SFC_OK;
}

struct sfc_memory sfc_cpu_head_counted(const struct sfc_cpu_head *head,
                                       const struct sfc_cpu_slab *slabs, size_t blocks)
{
    struct sfc_memory memory = head->memory;
    memory.step_bytes += blocks * sizeof(struct sfc_cpu_block);
    for (const struct sfc_cpu_slab *s = slabs; s; s = s->next) {
        memory.state_bytes += s->state_bytes;
        memory.step_bytes += s->step_bytes;
    }
    return memory;
}

int sfc_cpu_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err)
{
    struct sfc_cpu_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->config = *config;
    struct sfc_cpu_slab slab = {0};
    int rc = measure(head, (const struct sfc_cpu *)backend, err);
    if (!rc)
        rc = sfc_cpu_slab_measure(head, blocks, count, &slab, err);
    if (!rc)
        *out = sfc_cpu_head_counted(head, &slab, count);
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
    struct sfc_cpu_carver carver = {worker->arena.data, 0};
    lay_out_worker(head, worker, &carver);
    worker->gemm = sfc_cpu_carve(&carver, 0, 1);
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

/* A row of W from the seed, moments and last step 0. */
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
        sfc_cpu_put_numbers(head, &store, SFC_PART_VALUES, i, 0, dim, row);
        memset(sfc_store_at(&store, i, 1, dim), 0, moments); /* touched now, not in a step */
    }
    sfc_cpu_put_done();
    if (store.last)
        memset(store.last, 0, block->rows * sizeof *store.last);
}

static int make_blocks(struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                       struct sfc_error *err)
{
    size_t store = 0;
    head->blocks = calloc(count, sizeof *head->blocks);
    if (!head->blocks)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    int rc = sfc_cpu_slab_new(head, blocks, count, &head->slabs, err);
    if (rc)
        return rc;
    head->block_count = count;
    for (size_t i = 0; i < count; i++) {
        head->blocks[i].id = blocks[i];
        head->blocks[i].rows = (uint32_t)sfc_head_block_rows(&head->config, blocks[i]);
        head->blocks[i].slab = head->slabs;
        head->blocks[i].store = store;
        store += head->blocks[i].rows;
    }
    return SFC_OK;
}

/* What computes: workers and the memory of the slots (zeros; touched when a slot is first in use:
 * blocks that come into a run may never need theirs, and a step waits for them). */
static int make_workers(struct sfc_cpu_head *head, struct sfc_error *err)
{
    struct sfc_cpu_carver carver = {0};
    lay_out_step(head, &carver);
    int rc = sfc_cpu_map(&head->step, carver.used, "a step", err);
    if (rc)
        return rc;
    carver = (struct sfc_cpu_carver){head->step.data, 0};
    lay_out_step(head, &carver);
    head->workers = calloc(head->cpu->threads, sizeof *head->workers);
    if (!head->workers)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %u threads", head->cpu->threads);
    sfc_cpu_pool_each(head->cpu->pool, worker_init, head);
    rc = sfc_cpu_head_error(head, err);
    return rc ? rc : sfc_cpu_head_probe(head, err);
}

int sfc_cpu_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                     const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
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
    int rc = measure(head, head->cpu, err);
    if (!rc)
        rc = make_blocks(head, blocks, count, err);
    if (!rc)
        rc = make_workers(head, err);
    if (rc) {
        sfc_cpu_head_free(&head->base);
        return rc;
    }
    if (!blank)
        sfc_cpu_pool_run(head->cpu->pool, init_block, head, count);
    *out = &head->base;
    return SFC_OK;
}

void sfc_cpu_head_free(struct sfc_head_part *base)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    for (unsigned i = 0; head->workers && i < head->cpu->threads; i++)
        worker_close(&head->workers[i]);
    for (struct sfc_cpu_slab *s = head->slabs, *next; s; s = next) {
        next = s->next;
        sfc_cpu_slab_free(s);
    }
    sfc_cpu_unmap(&head->step);
    free(head->workers);
    free(head->blocks);
    free(head);
}

#include "kernels/cuda/head.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/hd/layout.h"
#include "kernels/rng/sample.h"

#define ALIGNMENT     256
#define TILE_ROWS     8448  /* about as many positions are in a tile: ten chunks of 832 */
#define FUSED_ROWS    33536 /* where no product of logits lies beside it: forty, */
#define FUSED_TILES   6     /* or fewer that there are so many tiles of a whole run */
#define STAGING_BYTES ((size_t)16 << 20)
/* Of f32 on its way between host and device: long enough to keep the bus busy, short enough that
 * the host's copy and the bus overlap in a call for 4 MiB, a snapshot's. */
#define PIECE_BYTES   ((size_t)1 << 20)
#define MAX_POSITIONS ((size_t)INT32_MAX) /* targets are named by a signed position */
#define MAX_BYTES     0x1p56

/* Tests have room between the ranges, and see who goes beyond one. */
#ifndef SFC_CUDA_ROOM
#define SFC_CUDA_ROOM               0
#define SFC_CUDA_CARVED(end, bytes) ((void)(end))
#endif

void *sfc_cuda_carve(struct sfc_cuda_carver *carver, size_t count, size_t size)
{
    char *at = carver->base ? carver->base + carver->used : NULL;
    size_t bytes = count * size;
    size_t room = (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT + SFC_CUDA_ROOM;
    carver->used += bytes + room;
    if (at)
        SFC_CUDA_CARVED(at + bytes, room);
    return at;
}

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

static size_t round_up(size_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool is_dense(const struct sfc_head_config *config)
{
    return config->momentum_mode == SFC_MOMENTUM_DENSE;
}

/* ---- sizes */

static size_t quota_of(const struct sfc_head_config *c, uint64_t rows)
{
    return sfc_sample_quota((uint32_t)rows, c->sample_ppm, 0);
}

/* The shapes of the products follow from the configuration and the kind of device alone, never from
 * which blocks are held (I8): so do chunk and group. */
static void product_sizes(struct sfc_cuda_head *head)
{
    const struct sfc_head_config *c = &head->config;
    struct sfc_cuda_sizes *s = &head->sizes;
    uint64_t full = c->classes < c->block_size ? c->classes : c->block_size;
    s->full_block = (size_t)full;
    for (s->shift = 0; (size_t)1 << s->shift < s->full_block;)
        s->shift++;
    s->pitch = round16(c->dim);
    s->mp = round16(c->micro_batch);
    s->micro_batches = c->batch / c->micro_batch;
    s->bp = s->micro_batches * s->mp;
    s->columns = c->slots * s->mp;
    s->tensors = c->optimizer == SFC_OPTIMIZER_ADAMW ? 3 : 2;
    s->record =
        s->tensors * s->pitch * (head->format == SFC_CUDA_BF16 ? sizeof(uint16_t) : sizeof(float));
    s->chunk = sfc_hd_chunk(quota_of(c, full));
    uint64_t chunks = sfc_head_block_count(c) * sfc_hd_chunks(quota_of(c, full), s->chunk);
    head->fuses = head->half && head->cuda->fuses && s->chunk % SFC_CUDA_STRIP == 0;
    /* enough of them that the last ones, which wait for nothing more, don't count */
    size_t rows = head->fuses ? FUSED_ROWS : TILE_ROWS, most = larger(rows / s->chunk, 1);
    size_t some = larger(TILE_ROWS / s->chunk, (size_t)chunks / FUSED_TILES);
    s->group = larger(some < most ? some : most, 1);
    s->group = chunks < s->group ? (size_t)chunks : s->group;
    s->tile = sfc_cuda_whole_pages(s->group * s->chunk * s->columns * sfc_cuda_operand_bytes(head));
    /* with the numbers of the rows, where they are a list */
    size_t block = round_up(s->full_block * ((size_t)c->dim + 1) * sizeof(float));
    s->piece = block < PIECE_BYTES ? block : PIECE_BYTES;
}

static void block_sizes(struct sfc_cuda_head *head, const uint64_t *blocks)
{
    const struct sfc_head_config *c = &head->config;
    struct sfc_cuda_sizes *s = &head->sizes;
    struct sfc_hd_bound bound = {0};
    for (size_t i = 0; i < head->block_count; i++) {
        uint64_t rows = sfc_head_block_rows(c, blocks[i]);
        sfc_hd_bound_add(&bound, rows, quota_of(c, rows), s->chunk);
    }
    size_t chunks = sfc_hd_bound_chunks(&bound, c->batch, s->chunk);
    s->max_chunks = (chunks + s->group - 1) / s->group * s->group;
    s->positions = s->max_chunks * s->chunk;
}

static void choose_formats(struct sfc_cuda_head *head)
{
    head->half = head->config.gemm == SFC_DTYPE_BF16;
    head->format = head->config.dtype == SFC_DTYPE_BF16 ? SFC_CUDA_BF16
                   : head->half                         ? SFC_CUDA_SPLIT
                                                        : SFC_CUDA_F32;
}

/* The largest products of sizes, in doubles, so that size_t can't overflow below. */
static int check_sizes(const struct sfc_cuda_head *head, struct sfc_error *err)
{
    const struct sfc_cuda_sizes *s = &head->sizes;
    double places = (double)head->block_count * (double)((size_t)1 << s->shift);
    double bytes = places * (double)s->record + (double)s->positions * (double)s->columns * 4 +
                   (double)s->columns * (double)s->pitch * 32 +
                   (double)s->group * (double)s->chunk * (double)larger(s->bp, s->pitch) * 32;
    if (bytes > MAX_BYTES)
        return sfc_fail(err, SFC_ELIMIT, "head: %.3g bytes are more than any device has", bytes);
    if (s->positions > MAX_POSITIONS || places >= SFC_CUDA_PADDING)
        return sfc_fail(err, SFC_ELIMIT,
                        "head: %zu blocks with %zu places in a sample are more than one device "
                        "numbers; spread them over more shards",
                        head->block_count, s->positions);
    return SFC_OK;
}

/* ---- the products */

static struct sfc_cuda_gemm_shape shape_of(const struct sfc_cuda_head *head,
                                           enum sfc_cuda_product product)
{
    const struct sfc_cuda_sizes *s = &head->sizes;
    size_t positions = s->group * s->chunk, least = larger(TILE_ROWS / s->chunk, 1) * s->chunk;
    struct sfc_cuda_gemm_shape shape = {
        .product = product, .bf16 = head->half, .rows = positions, .batch = 1};
    switch (product) {
    case SFC_CUDA_LOGITS: /* where it is fused this is but measured (ceilings.c) */
        shape.rows = positions < least ? positions : least;
        shape.columns = s->bp;
        shape.depth = shape.lda = shape.ldb = s->pitch;
        break;
    case SFC_CUDA_GRADIENT:
        shape.rows = s->bp;
        shape.columns = shape.ldb = s->pitch;
        shape.depth = s->chunk;
        shape.lda = s->columns;
        shape.batch = s->group;
        shape.narrow = head->half;
        break;
    case SFC_CUDA_COMMIT:
    case SFC_CUDA_PRODUCTS:
        shape.columns = shape.ldb = s->pitch;
        shape.depth = s->bp;
        shape.lda = s->columns;
        break;
    }
    return shape;
}

size_t sfc_cuda_head_shapes(struct sfc_cuda *cuda, const struct sfc_head_config *config,
                            struct sfc_cuda_gemm_shape *shapes)
{
    struct sfc_cuda_head head = {.cuda = cuda, .config = *config};
    choose_formats(&head);
    product_sizes(&head);
    for (int i = 0; i < SFC_CUDA_PRODUCTS; i++)
        shapes[i] = shape_of(&head, (enum sfc_cuda_product)i);
    return head.sizes.mp;
}

static int choose_products(struct sfc_cuda_head *head, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (int i = 0; !rc && i < SFC_CUDA_PRODUCTS; i++) {
        struct sfc_cuda_gemm_shape shape = shape_of(head, (enum sfc_cuda_product)i);
        rc = sfc_cuda_gemm_init(&head->gemm[i], head->cuda, &shape, head->sizes.mp, err);
    }
    return rc;
}

static size_t workspace_bytes(const struct sfc_cuda_head *head)
{
    size_t most = 0;
    for (int i = 0; i < SFC_CUDA_PRODUCTS; i++)
        most = larger(most, head->gemm[i].workspace_bytes);
    return most;
}

/* ---- the layout of the memory */

static void lay_out_tables(struct sfc_cuda_head *head, struct sfc_cuda_carver *c)
{
    size_t n = head->block_count;
    head->block_records = sfc_cuda_carve(c, n, sizeof *head->block_records);
    head->block_class = sfc_cuda_carve(c, n, sizeof *head->block_class);
    head->block_rows = sfc_cuda_carve(c, n, sizeof *head->block_rows);
    head->last = is_dense(&head->config)
                     ? sfc_cuda_carve(c, n << head->sizes.shift, sizeof *head->last)
                     : NULL;
}

static void lay_out_step(struct sfc_cuda_head *head, struct sfc_cuda_carver *c)
{
    const struct sfc_head_config *config = &head->config;
    const struct sfc_cuda_sizes *s = &head->sizes;
    lay_out_tables(head, c);
    head->rows = sfc_cuda_carve(c, s->positions, sizeof *head->rows);
    head->add = sfc_cuda_carve(c, s->positions, sizeof *head->add);
    head->chunk_block = sfc_cuda_carve(c, s->max_chunks, sizeof *head->chunk_block);
    head->target = sfc_cuda_carve(c, config->batch, sizeof *head->target);
    head->lag = is_dense(config) ? sfc_cuda_carve(c, config->steps + 1, sizeof *head->lag) : NULL;
    head->x = sfc_cuda_carve(c, s->columns * s->pitch, sfc_cuda_operand_bytes(head));
    head->batch_x = sfc_cuda_carve(c, s->bp * s->pitch, sfc_cuda_operand_bytes(head));
    head->target_z = sfc_cuda_carve(c, s->columns, sizeof *head->target_z);
    head->slope = sfc_cuda_carve(c, s->columns, sizeof *head->slope);
    head->target_product = sfc_cuda_carve(c, s->columns, sizeof *head->target_product);
    head->target_p = sfc_cuda_carve(c, s->columns, sizeof *head->target_p);
    head->zero = sfc_cuda_carve(c, s->columns, sizeof *head->zero);
    head->not_finite = sfc_cuda_carve(c, config->slots, sizeof *head->not_finite);
    head->slot_table = sfc_cuda_carve(c, config->slots, sizeof *head->slot_table);
    head->inverse_norm = sfc_cuda_carve(c, s->positions, sizeof *head->inverse_norm);
    head->block_inverse = sfc_cuda_carve(c, head->block_count, sizeof *head->block_inverse);
    head->bad_block = sfc_cuda_carve(c, 1, sizeof *head->bad_block);
    head->exps =
        sfc_cuda_carve(c, s->max_chunks * sfc_cuda_strips(head) * s->columns, sizeof *head->exps);
    head->limbs = sfc_cuda_carve(c, s->columns * SFC_HD_LIMBS, sizeof *head->limbs);
    head->features = sfc_cuda_carve(c, (size_t)config->slots * config->micro_batch * config->dim,
                                    sizeof *head->features);
    head->high = sfc_cuda_carve(c, s->columns, sizeof *head->high);
    head->low = sfc_cuda_carve(c, s->columns, sizeof *head->low);
    head->column_target = sfc_cuda_carve(c, s->columns, sizeof *head->column_target);
}

static void lay_out_lanes(struct sfc_cuda_head *head, struct sfc_cuda_carver *c)
{
    const struct sfc_cuda_sizes *s = &head->sizes;
    size_t positions = s->group * s->chunk, workspace = workspace_bytes(head);
    size_t dx = s->group * s->bp * s->pitch * sfc_cuda_operand_bytes(head);
    size_t logits = head->fuses ? 0 : positions * s->bp * sizeof(float);
    size_t dw = positions * s->pitch * sizeof(float);
    for (int i = 0; i < SFC_CUDA_LANES; i++) {
        struct sfc_cuda_lane *lane = &head->lanes[i];
        lane->tile = sfc_cuda_carve(c, positions * s->pitch, sfc_cuda_operand_bytes(head));
        lane->product = sfc_cuda_carve(c, larger(dx, larger(logits, dw)), 1);
        lane->operand = sfc_cuda_carve(c, positions * s->bp, sfc_cuda_operand_bytes(head));
        lane->workspace = sfc_cuda_carve(c, workspace, 1);
        lane->dx = sfc_cuda_carve(c, s->columns * s->pitch, sizeof *lane->dx);
        lane->piece = sfc_cuda_carve(c, s->piece, 1);
    }
}

/* All of a step in one piece of memory; the number of bytes of the host's. */
static size_t lay_out_all(struct sfc_cuda_head *head, struct sfc_cuda_carver *step)
{
    lay_out_step(head, step);
    return sfc_cuda_plan_lay_out(head, step) + sfc_cuda_state_lay_out(head, step);
}

int sfc_cuda_head_measure(struct sfc_cuda_head *head, const uint64_t *blocks, struct sfc_error *err)
{
    struct sfc_cuda_carver step = {0};
    block_sizes(head, blocks);
    int rc = check_sizes(head, err);
    if (rc)
        return rc;
    head->host_bytes = lay_out_all(head, &step) + STAGING_BYTES;
    head->memory.state_bytes = sfc_cuda_slab_bytes(head, blocks, head->block_count);
    head->memory.step_bytes = step.used + sfc_cuda_tiles(head) * head->sizes.tile;
    return SFC_OK;
}

/* Fills sizes, products and memory of a head whose base members are not there yet. */
static int measure(struct sfc_cuda_head *head, const uint64_t *blocks, size_t count,
                   struct sfc_error *err)
{
    struct sfc_cuda_carver scratch = {0};
    head->block_count = count;
    choose_formats(head);
    product_sizes(head);
    int rc = sfc_cuda_head_measure(head, blocks, err);
    if (!rc)
        rc = choose_products(head, err);
    if (rc)
        return rc;
    head->staging_bytes = STAGING_BYTES;
    lay_out_lanes(head, &scratch);
    head->memory.scratch_bytes = scratch.used;
    return SFC_OK;
}

int sfc_cuda_head_check(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        struct sfc_error *err)
{
    const struct sfc_cuda *cuda = (const struct sfc_cuda *)backend;
    if (config->gemm == SFC_DTYPE_BF16 && !cuda->has_bf16)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s multiplies no bf16 (compute capability %d.%d, it begins with 8.0): "
                        "create the run with --gemm f32",
                        cuda->label, cuda->capability / 10, cuda->capability % 10);
    return SFC_OK;
}

int sfc_cuda_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err)
{
    struct sfc_cuda_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->config = *config;
    head->cuda = (struct sfc_cuda *)backend;
    int rc = measure(head, blocks, count, err);
    if (!rc)
        *out = head->memory;
    free(head);
    return rc;
}

/* ---- life */

int sfc_cuda_head_take_step(struct sfc_cuda_head *head, struct sfc_error *err)
{
    size_t bytes = head->memory.step_bytes - sfc_cuda_tiles(head) * head->sizes.tile;
    int rc = sfc_cuda_take(head, "a step", bytes, head->memory.step_bytes, &head->step_memory, err);
    if (rc)
        return rc;
    struct sfc_cuda_carver step = {.base = head->step_memory};
    lay_out_all(head, &step);
    head->z = calloc(sfc_cuda_tiles(head), sizeof *head->z);
    if (!head->z)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu tiles", sfc_cuda_tiles(head));
    rc = sfc_cuda_plan_init(head, err);
    return rc ? rc : sfc_cuda_state_init(head, err);
}

static int allocate(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_carver scratch = {0};
    size_t bytes = head->memory.scratch_bytes;
    int rc = sfc_cuda_take_slabs(head, err);
    if (!rc)
        rc = sfc_cuda_take(head, "scratch", bytes, bytes, &head->scratch_memory, err);
    if (!rc)
        rc = sfc_cuda_check(head->cuda, cudaMallocHost(&head->staging, head->staging_bytes),
                            "cudaMallocHost", err);
    if (rc)
        return rc;
    scratch.base = head->scratch_memory;
    lay_out_lanes(head, &scratch);
    rc = sfc_cuda_head_take_step(head, err);
    return rc ? rc : sfc_cuda_take_tiles(head, err);
}

/* Arrays of the host; with base NULL only counted. */
static void lay_out_host(struct sfc_cuda_head *head, struct sfc_cuda_carver *c)
{
    size_t slots = head->config.slots, columns = head->sizes.columns;
    struct sfc_cuda_answer *a = &head->answer;
    head->in_call = sfc_cuda_carve(c, slots, sizeof *head->in_call);
    head->table = sfc_cuda_carve(c, slots, sizeof *head->table);
    head->flags = sfc_cuda_carve(c, slots, sizeof *head->flags);
    head->slot_zero = sfc_cuda_carve(c, columns, sizeof *head->slot_zero);
    a->limbs = sfc_cuda_carve(c, columns * SFC_HD_LIMBS, sizeof *a->limbs);
    a->target_z = sfc_cuda_carve(c, columns, sizeof *a->target_z);
    a->high = sfc_cuda_carve(c, columns, sizeof *a->high);
    a->low = sfc_cuda_carve(c, columns, sizeof *a->low);
    a->target = sfc_cuda_carve(c, columns, sizeof *a->target);
}

static int allocate_host(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_carver carver = {0};
    lay_out_host(head, &carver);
    head->host = calloc(1, carver.used);
    if (!head->host)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu slots of %zu columns",
                        (size_t)head->config.slots, head->sizes.mp);
    carver = (struct sfc_cuda_carver){.base = head->host};
    lay_out_host(head, &carver);
    return SFC_OK;
}

int sfc_cuda_head_number(struct sfc_cuda_head *head, const uint64_t *blocks, struct sfc_error *err)
{
    head->blocks = calloc(head->block_count, sizeof *head->blocks);
    if (!head->blocks)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", head->block_count);
    for (size_t i = 0; i < head->block_count; i++)
        head->blocks[i] = (struct sfc_cuda_block){
            .id = blocks[i],
            .rows = (uint32_t)sfc_head_block_rows(&head->config, blocks[i]),
            .store = (uint32_t)(i << head->sizes.shift),
        };
    return SFC_OK;
}

static int make_events(struct sfc_cuda_head *head, struct sfc_error *err)
{
    int rc =
        sfc_cuda_check(head->cuda, cudaEventCreateWithFlags(&head->ready, cudaEventDisableTiming),
                       "cudaEventCreate", err);
    for (int i = 0; !rc && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(head->cuda,
                            cudaEventCreateWithFlags(&head->lanes[i].done, cudaEventDisableTiming),
                            "cudaEventCreate", err);
    return rc;
}

/* Without a correction z is at most the scale, and exp(z - shift) fits a float; the correction adds
 * up to ln 1e6. */
static void set_exponents(struct sfc_cuda_head *head)
{
    const struct sfc_head_config *c = &head->config;
    head->exp_factor = c->correction == SFC_CORRECTION_LOGQ ? 0x1p20 : 1;
    head->exp_base = -sfc_exp_shift(c->scale) - log(head->exp_factor);
}

int sfc_cuda_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                      struct sfc_error *err)
{
    struct sfc_cuda *cuda = (struct sfc_cuda *)backend;
    struct sfc_cuda_head *head = calloc(1, sizeof *head);
    if (!head)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    head->cuda = cuda;
    head->config = *config;
    set_exponents(head);
    int rc = sfc_cuda_enter(cuda, err);
    if (!rc)
        rc = measure(head, blocks, count, err);
    if (!rc)
        rc = sfc_cuda_head_number(head, blocks, err);
    if (!rc)
        rc = make_events(head, err);
    if (!rc)
        rc = allocate_host(head, err);
    if (!rc)
        rc = allocate(head, err);
    if (!rc)
        rc = sfc_cuda_state_fill(head, blank, err);
    if (!rc)
        rc = sfc_cuda_check(cuda, cudaStreamSynchronize(cuda->stream),
                            "the initial values of the class centres", err);
    if (rc) {
        sfc_cuda_head_free(&head->base);
        return rc;
    }
    *out = &head->base;
    return SFC_OK;
}

void sfc_cuda_head_free(struct sfc_head_part *base)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)base;
    sfc_cuda_enter(head->cuda, NULL);
    sfc_cuda_plan_free(head);
    sfc_cuda_state_free(head);
    for (size_t i = 0; head->blocks && i < head->block_count; i++)
        sfc_cuda_let_go(&head->blocks[i]);
    sfc_cuda_free_tiles(head);
    cudaFree(head->step_memory); /* waits for what is under way; NULL is fine */
    cudaFree(head->scratch_memory);
    cudaFreeHost(head->staging);
    for (int i = 0; i < SFC_CUDA_LANES; i++)
        if (head->lanes[i].done)
            cudaEventDestroy(head->lanes[i].done);
    if (head->ready)
        cudaEventDestroy(head->ready);
    free(head->blocks);
    free(head->host);
    free(head);
}

struct sfc_cuda_store sfc_cuda_store_of(const struct sfc_cuda_head *head)
{
    return (struct sfc_cuda_store){
        .format = head->format,
        .shift = head->sizes.shift,
        .records = head->block_records,
        .last = head->last,
        .record = head->sizes.record,
        .pitch = (uint32_t)head->sizes.pitch,
        .dim = head->config.dim,
        .lag = head->lag,
        .now = (uint32_t)head->base.step,
        .nearest = head->config.rounding == SFC_ROUNDING_NEAREST,
        .seed = head->config.seed,
        .block_class = head->block_class,
        .chunk_block = head->chunk_block,
        .chunk = (uint32_t)head->sizes.chunk,
    };
}

#include "server/run/run_setup.h"

#include <stdlib.h>
#include <string.h>

#include "proto/run_config.h"

#define STATISTIC_MOMENTUM 0.1
#define CALL_BYTES         (20u << 10)

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* Index of a text among its choices (the order of the enums in kernels/backend.h). */
static int choose(const char *field, const char *const *choices, const char *text, int *out,
                  struct sfc_error *err)
{
    *out = sfc_run_choice(choices, text ? text : "");
    return *out >= 0 ? SFC_OK : sfc_fail(err, SFC_EINVAL, "%s: unknown value '%s'", field, text);
}

static int head_options(struct sfc_head_config *head, const Shardfc__V1__RunConfig *c,
                        struct sfc_error *err)
{
    int grad = 0, correction = 0, dtype = 0, gemm = 0, optimizer = 0, mode = 0, rounding = 0;
    int code = choose("margin_grad", sfc_run_margin_grads, c->margin_grad, &grad, err);
    if (code == SFC_OK)
        code = choose("correction", sfc_run_corrections, c->correction, &correction, err);
    if (code == SFC_OK)
        code = choose("dtype", sfc_run_dtypes, c->dtype, &dtype, err);
    if (code == SFC_OK)
        code = choose("gemm", sfc_run_dtypes, c->gemm, &gemm, err);
    if (code == SFC_OK)
        code = choose("rounding", sfc_run_roundings, c->rounding, &rounding, err);
    if (code == SFC_OK)
        code = choose("optimizer", sfc_run_optimizers, c->optimizer, &optimizer, err);
    if (code == SFC_OK)
        code = choose("momentum_mode", sfc_run_momentum_modes, c->momentum_mode, &mode, err);
    if (code != SFC_OK)
        return code;
    head->margin_grad = (enum sfc_margin_grad)grad;
    head->correction = (enum sfc_correction)correction;
    head->dtype = (enum sfc_dtype)dtype;
    head->gemm = (enum sfc_dtype)gemm;
    head->rounding = (enum sfc_rounding)rounding;
    head->optimizer = (enum sfc_optimizer)optimizer;
    head->momentum_mode = (enum sfc_momentum_mode)mode;
    return SFC_OK;
}

static int head_setup(struct sfc_run_setup *setup, const Shardfc__V1__RunConfig *c,
                      struct sfc_error *err)
{
    if (c->micro_batch == 0 || c->global_batch == 0 || c->global_batch % c->micro_batch != 0)
        return sfc_fail(err, SFC_EINVAL, "global_batch %u is not a multiple of micro_batch %u",
                        c->global_batch, c->micro_batch);
    if (c->classes == 0 || c->dim == 0 || c->block_size == 0)
        return sfc_fail(err, SFC_EINVAL, "classes, dim and block_size must be at least 1");
    setup->micro_batches = c->global_batch / c->micro_batch;
    setup->slots = setup->micro_batches + SFC_RUN_SPARE_SLOTS;
    setup->head = (struct sfc_head_config){
        .seed = c->seed,
        .classes = c->classes,
        .dim = c->dim,
        .block_size = c->block_size,
        .sample_ppm = c->sample_ppm,
        .batch = c->global_batch,
        .micro_batch = c->micro_batch,
        .slots = setup->slots,
        .margin_m1 = c->margin_m1,
        .margin_m2 = c->margin_m2,
        .margin_m3 = c->margin_m3,
        .scale = c->scale,
        .has_filter = c->has_filter,
        .filter = c->filter,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .init_std = c->init_std,
        .steps = c->steps,
    };
    setup->class_blocks = divide_up(c->classes, c->block_size);
    setup->start_classes = c->classes;
    return head_options(&setup->head, c, err);
}

static int segment_setup(struct sfc_dense_segment *out, const Shardfc__V1__DenseSegment *s,
                         uint64_t offset, struct sfc_error *err)
{
    uint64_t length = 1;
    for (size_t i = 0; i < s->n_shape; i++) {
        if (s->shape[i] == 0 || length > (UINT64_C(1) << 40) / s->shape[i])
            return sfc_fail(err, SFC_EINVAL, "segment %s: impossible shape", s->name);
        length *= s->shape[i];
    }
    if (s->role > SHARDFC__V1__DENSE_SEGMENT__ROLE__STATISTIC)
        return sfc_fail(err, SFC_EINVAL, "segment %s: unknown role %d", s->name, (int)s->role);
    *out = (struct sfc_dense_segment){.offset = offset,
                                      .length = length,
                                      .role = (enum sfc_dense_role)s->role,
                                      .init_mean = s->init_mean,
                                      .init_std = s->init_std};
    return SFC_OK;
}

static int dense_setup(struct sfc_run_setup *setup, const Shardfc__V1__RunConfig *c,
                       struct sfc_error *err)
{
    if (c->n_segments == 0)
        return SFC_OK;
    if (c->dense_block_size == 0)
        return sfc_fail(err, SFC_EINVAL, "dense_block_size must be at least 1");
    setup->segments = calloc(c->n_segments, sizeof *setup->segments);
    if (!setup->segments)
        return sfc_fail(err, SFC_ENOMEM, "%zu segments", c->n_segments);
    uint64_t offset = 0;
    for (size_t i = 0; i < c->n_segments; i++) {
        int code = segment_setup(&setup->segments[i], c->segments[i], offset, err);
        if (code != SFC_OK)
            return code;
        offset += setup->segments[i].length;
    }
    setup->dense = (struct sfc_dense_config){
        .seed = c->seed,
        .size = offset,
        .block_size = c->dense_block_size,
        .slots = setup->slots,
        .micro_batches = setup->micro_batches,
        .segments = setup->segments,
        .segment_count = c->n_segments,
        .optimizer = setup->head.optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .statistic_momentum = STATISTIC_MOMENTUM,
        .sum_dtype = c->log_dense_bf16 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32,
    };
    setup->dense_blocks = divide_up(offset, c->dense_block_size);
    return SFC_OK;
}

int sfc_run_setup_init(struct sfc_run_setup *setup, const Shardfc__V1__RunConfig *config,
                       struct sfc_error *err)
{
    struct sfc_run_setup s = {0};
    int code = head_setup(&s, config, err);
    if (code == SFC_OK)
        code = dense_setup(&s, config, err);
    if (code == SFC_OK)
        *setup = s;
    else
        sfc_run_setup_close(&s);
    return code;
}

void sfc_run_setup_close(struct sfc_run_setup *setup)
{
    free(setup->segments);
    memset(setup, 0, sizeof *setup);
}

void sfc_run_setup_set_classes(struct sfc_run_setup *setup, uint64_t classes)
{
    setup->head.classes = classes;
    setup->class_blocks = divide_up(classes, setup->head.block_size);
}

bool sfc_run_block_grew(const struct sfc_run_setup *setup, uint64_t block)
{
    struct sfc_head_config start = setup->head;
    start.classes = setup->start_classes;
    return sfc_head_block_rows(&start, block) != sfc_head_block_rows(&setup->head, block);
}

uint64_t sfc_run_dense_length(const struct sfc_run_setup *setup, uint64_t block)
{
    uint64_t begin = block * setup->dense.block_size;
    if (begin >= setup->dense.size)
        return 0;
    uint64_t rest = setup->dense.size - begin;
    return rest < setup->dense.block_size ? rest : setup->dense.block_size;
}

uint64_t sfc_run_class_rows(const struct sfc_run_setup *setup, const uint64_t *blocks, size_t count)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < count; i++)
        rows += sfc_head_block_rows(&setup->head, blocks[i]);
    return rows;
}

uint64_t sfc_run_dense_floats(const struct sfc_run_setup *setup, const uint64_t *blocks,
                              size_t count)
{
    uint64_t floats = 0;
    for (size_t i = 0; i < count; i++)
        floats += sfc_run_dense_length(setup, blocks[i]);
    return floats;
}

uint64_t sfc_run_packed_bytes(const struct sfc_run_setup *setup, const uint64_t *blocks,
                              size_t count)
{
    struct sfc_dense_packing packing = sfc_dense_packing_of(&setup->dense, blocks, count);
    return sfc_dense_packed_bytes(&packing);
}

static uint64_t memory_sum(const struct sfc_memory *m)
{
    return m->state_bytes + m->step_bytes + m->scratch_bytes;
}

/* A shard may get any block of the run. */
uint64_t sfc_run_largest_block(const struct sfc_run_setup *setup)
{
    const struct sfc_head_config *head = &setup->head;
    uint64_t moments = head->optimizer == SFC_OPTIMIZER_ADAMW ? 2 : 1;
    uint64_t row = head->dim * (1 + moments) * (head->dtype == SFC_DTYPE_BF16 ? 2 : 4) + 4;
    uint64_t largest = head->block_size * row;
    uint64_t dense = setup->dense_blocks ? sfc_run_dense_length(setup, 0) * (1 + moments) * 4 : 0;
    uint64_t history = head->momentum_mode == SFC_MOMENTUM_DENSE ? head->steps * 4 : 0;
    largest = dense > largest ? dense : largest;
    return (history > largest ? history : largest) + SFC_RUN_BLOCK_PADDING;
}

/* The calls of a micro-batch on their way: its features as gRPC has them and, rounded up, as the
 * shard reads them, and what a call takes itself. */
static uint64_t message_bytes(const struct sfc_head_config *head)
{
    return (uint64_t)head->micro_batch * head->dim * sizeof(float) * 9 / 4 + CALL_BYTES;
}

int sfc_run_setup_memory(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                         const uint64_t *class_blocks, size_t class_count,
                         const uint64_t *dense_blocks, size_t dense_count,
                         struct sfc_run_memory *out, struct sfc_error *err)
{
    struct sfc_run_memory m = {0};
    int code = SFC_OK;
    code = sfc_head_memory(backend, &setup->head, class_blocks, class_count, &m.head, err);
    if (code == SFC_OK && setup->dense_blocks > 0)
        code = sfc_dense_memory(backend, &setup->dense, dense_blocks, dense_count, &m.dense, err);
    if (code != SFC_OK)
        return code;
    uint64_t rows = 2 * (uint64_t)setup->slots * setup->head.micro_batch; /* steps t and t + 1 */
    /* sum, logit, flag, dx; features and log-sum-exp as they came */
    uint64_t row_bytes = 32 + 4 + 1 + (uint64_t)setup->head.dim * 8 + setup->head.dim * 4ull + 8;
    m.answers = rows * row_bytes + (uint64_t)setup->head.batch * 8 +
                SFC_RUN_PULL_COPIES * sfc_run_dense_floats(setup, dense_blocks, dense_count) * 4;
    uint64_t sums = sfc_run_packed_bytes(setup, dense_blocks, dense_count);
    uint64_t step = (uint64_t)setup->head.batch * (setup->head.dim * 4ull + 32) + sums;
    m.durability = 2 * sfc_run_largest_block(setup) + step + sums;
    m.messages = setup->micro_batches * message_bytes(&setup->head);
    m.total = memory_sum(&m.head) + memory_sum(&m.dense) + m.answers + m.messages + m.durability;
    *out = m;
    return SFC_OK;
}

uint64_t sfc_run_slice_bytes(const struct sfc_run_setup *setup, const uint64_t *blocks,
                             size_t count)
{
    uint64_t packed = sfc_run_packed_bytes(setup, blocks, count);
    uint64_t slice = sfc_run_dense_floats(setup, blocks, count) * sizeof(float);
    return packed > slice ? packed : slice;
}

int sfc_run_mirror_memory(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                          const struct sfc_run_mirror *mirror, struct sfc_run_mirror_memory *out,
                          struct sfc_error *err)
{
    struct sfc_run_mirror_memory m = {0};
    int code = SFC_OK;
    if (mirror->mirrored_count > 0) {
        uint64_t own = sfc_run_slice_bytes(setup, mirror->dense_blocks, mirror->dense_count);
        uint64_t other = sfc_run_slice_bytes(setup, mirror->mirrored, mirror->mirrored_count);
        uint64_t sums = sfc_run_packed_bytes(setup, mirror->mirrored, mirror->mirrored_count);
        code = sfc_dense_memory(backend, &setup->dense, mirror->mirrored, mirror->mirrored_count,
                                &m.dense, err);
        m.host = (own > other ? own : other) + 2 * sums; /* a part; sums, and a step of the log */
    }
    m.host += (mirror->gives + mirror->takes) * sfc_run_largest_block(setup);
    if (code == SFC_OK)
        *out = m;
    return code;
}

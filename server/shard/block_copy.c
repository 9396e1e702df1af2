#include "server/shard/block_copy.h"

#include <string.h>

/* Floats of bf16 state that are widened at a time: on the stack, and enough that calls to a device
 * are few. */
enum { CHUNK = 16 * SFC_MAX_DIM };

/* SFC_SNAPSHOT_VALUES ... in the words of the kernels. */
static const enum sfc_block_part kernel_part[SFC_SNAPSHOT_PARTS] = {
    [SFC_SNAPSHOT_VALUES] = SFC_PART_VALUES,
    [SFC_SNAPSHOT_MOMENTUM] = SFC_PART_MOMENTUM,
    [SFC_SNAPSHOT_SECOND_MOMENT] = SFC_PART_SECOND_MOMENT,
    [SFC_SNAPSHOT_LAST_STEP] = SFC_PART_LAST_STEP,
};

void sfc_block_shape(const struct sfc_run_setup *setup, const struct sfc_snapshot_block *block,
                     uint64_t step, struct sfc_snapshot_shape *out)
{
    const struct sfc_head_config *head = &setup->head;
    struct sfc_snapshot_shape shape = {.dtype = SFC_SNAPSHOT_F32, .dim = 1};
    bool moments = block->kind != SFC_SNAPSHOT_HISTORY;
    shape.has[SFC_SNAPSHOT_VALUES] = true;
    shape.has[SFC_SNAPSHOT_MOMENTUM] = moments;
    shape.has[SFC_SNAPSHOT_SECOND_MOMENT] = moments && head->optimizer == SFC_OPTIMIZER_ADAMW;
    switch (block->kind) {
    case SFC_SNAPSHOT_CLASS:
        shape.rows = sfc_head_block_rows(head, block->block);
        shape.grown = sfc_run_block_grew(setup, block->block);
        shape.dim = head->dim;
        shape.has[SFC_SNAPSHOT_LAST_STEP] = head->momentum_mode == SFC_MOMENTUM_DENSE;
        if (head->dtype == SFC_DTYPE_BF16)
            shape.dtype = SFC_SNAPSHOT_BF16;
        break;
    case SFC_SNAPSHOT_DENSE:
        shape.rows = sfc_run_dense_length(setup, block->block);
        break;
    case SFC_SNAPSHOT_HISTORY:
        shape.rows = step;
        break;
    }
    *out = shape;
}

uint64_t sfc_block_grown(const struct sfc_run_setup *setup, const struct sfc_snapshot_block *block)
{
    return block->kind == SFC_SNAPSHOT_CLASS && sfc_run_block_grew(setup, block->block)
               ? sfc_head_block_rows(&setup->head, block->block)
               : 0;
}

struct place {
    struct sfc_head *head;
    struct sfc_dense *dense;
    const struct sfc_snapshot_block *block;
    enum sfc_block_part part;
};

static int read_some(const struct place *p, uint64_t offset, uint64_t count, float *out,
                     struct sfc_error *err)
{
    switch (p->block->kind) {
    case SFC_SNAPSHOT_DENSE:
        return sfc_dense_read(p->dense, p->block->block, p->part, offset, count, out, err);
    case SFC_SNAPSHOT_HISTORY:
        return sfc_head_read_rates(p->head, offset, count, out, err);
    default:
        return sfc_head_read(p->head, p->block->block, p->part, offset, count, out, err);
    }
}

static int write_some(const struct place *p, uint64_t offset, uint64_t count, const float *values,
                      struct sfc_error *err)
{
    return p->block->kind == SFC_SNAPSHOT_DENSE
               ? sfc_dense_write(p->dense, p->block->block, p->part, offset, count, values, err)
               : sfc_head_write(p->head, p->block->block, p->part, offset, count, values, err);
}

static bool is_half(const struct sfc_snapshot_shape *shape, enum sfc_snapshot_part part)
{
    return shape->dtype == SFC_SNAPSHOT_BF16 && part != SFC_SNAPSHOT_LAST_STEP;
}

static uint64_t elements(const struct sfc_snapshot_shape *shape, enum sfc_snapshot_part part)
{
    return sfc_snapshot_part_bytes(shape, part) /
           (is_half(shape, part) ? sizeof(uint16_t) : sizeof(float));
}

/* Kernels give state of bf16 as f32 whose lower half is zero. */
static void narrow(const float *wide, uint64_t count, uint16_t *out)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &wide[i], sizeof bits);
        out[i] = (uint16_t)(bits >> 16);
    }
}

static void widen(const uint16_t *half, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static int save_half(const struct place *p, uint64_t count, uint16_t *out, struct sfc_error *err)
{
    float wide[CHUNK];
    for (uint64_t at = 0; at < count; at += CHUNK) {
        uint64_t n = count - at < CHUNK ? count - at : CHUNK;
        int code = read_some(p, at, n, wide, err);
        if (code != SFC_OK)
            return code;
        narrow(wide, n, out + at);
    }
    return SFC_OK;
}

/* Elements offset .. offset + count - 1 of the part whose halves `from` are. */
static int write_half(const struct place *p, uint64_t offset, uint64_t count, const uint16_t *from,
                      struct sfc_error *err)
{
    float wide[CHUNK];
    for (uint64_t at = offset; at < offset + count; at += CHUNK) {
        uint64_t n = offset + count - at < CHUNK ? offset + count - at : CHUNK;
        widen(from + at, n, wide);
        int code = write_some(p, at, n, wide, err);
        if (code != SFC_OK)
            return code;
    }
    return SFC_OK;
}

int sfc_block_save(struct sfc_head *head, struct sfc_dense *dense,
                   const struct sfc_snapshot_block *block, const struct sfc_snapshot_shape *shape,
                   void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err)
{
    int code = SFC_OK;
    for (int i = 0; code == SFC_OK && i < SFC_SNAPSHOT_PARTS; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        struct place place = {head, dense, block, kernel_part[i]};
        uint64_t count = elements(shape, part);
        if (!shape->has[i] || count == 0)
            continue;
        code = is_half(shape, part) ? save_half(&place, count, parts[i], err)
                                    : read_some(&place, 0, count, parts[i], err);
    }
    return code;
}

int sfc_block_restore(struct sfc_head *head, struct sfc_dense *dense,
                      const struct sfc_snapshot_block *block,
                      const struct sfc_snapshot_shape *shape,
                      const struct sfc_snapshot_content *content, struct sfc_error *err)
{
    int code = block->kind == SFC_SNAPSHOT_DENSE
                   ? sfc_dense_set_block_step(dense, block->block, content->step, err)
                   : sfc_head_set_block_step(head, block->block, content->step, err);
    for (int i = 0; code == SFC_OK && i < SFC_SNAPSHOT_PARTS; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        struct place place = {head, dense, block, kernel_part[i]};
        uint64_t count = elements(shape, part);
        if (!shape->has[i])
            continue;
        code = is_half(shape, part) ? write_half(&place, 0, count, content->parts[i], err)
                                    : write_some(&place, 0, count, content->parts[i], err);
    }
    return code;
}

uint64_t sfc_block_lay_out(const struct sfc_snapshot_shape *shape, void *base,
                           void *parts[SFC_SNAPSHOT_PARTS])
{
    uint64_t at = 0;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        if (base)
            parts[i] = shape->has[i] ? (char *)base + at : NULL;
        at += (sfc_snapshot_part_bytes(shape, (enum sfc_snapshot_part)i) + 63) / 64 * 64;
    }
    return at;
}

/* Numbers of a row in this part. */
static uint64_t width(const struct sfc_snapshot_shape *shape, int part)
{
    return part == SFC_SNAPSHOT_LAST_STEP ? 1 : shape->dim;
}

int sfc_block_write_range(struct sfc_head *head, struct sfc_dense *dense,
                          const struct sfc_snapshot_block *block,
                          const struct sfc_snapshot_shape *shape,
                          void *const parts[SFC_SNAPSHOT_PARTS], uint64_t first, uint64_t count,
                          struct sfc_error *err)
{
    int code = SFC_OK;
    for (int i = 0; code == SFC_OK && i < SFC_SNAPSHOT_PARTS; i++) {
        struct place place = {head, dense, block, kernel_part[i]};
        uint64_t offset = first * width(shape, i), n = count * width(shape, i);
        if (!shape->has[i])
            continue;
        code = is_half(shape, (enum sfc_snapshot_part)i)
                   ? write_half(&place, offset, n, parts[i], err)
                   : write_some(&place, offset, n, (const float *)parts[i] + offset, err);
    }
    return code;
}

/* Of bf16 as many rows at a time as fit the stack. */
static int save_half_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part part,
                          const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                          uint16_t *out, struct sfc_error *err)
{
    float wide[CHUNK];
    uint64_t most = CHUNK / shape->dim;
    for (uint64_t at = 0; at < shape->rows; at += most) {
        uint64_t n = shape->rows - at < most ? shape->rows - at : most;
        int code = sfc_head_read_rows(head, block, part, rows + at, n, wide, err);
        if (code != SFC_OK)
            return code;
        narrow(wide, n * shape->dim, out + at * shape->dim);
    }
    return SFC_OK;
}

static int write_half_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part part,
                           const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                           const uint16_t *from, struct sfc_error *err)
{
    float wide[CHUNK];
    uint64_t most = CHUNK / shape->dim;
    for (uint64_t at = 0; at < shape->rows; at += most) {
        uint64_t n = shape->rows - at < most ? shape->rows - at : most;
        widen(from + at * shape->dim, n * shape->dim, wide);
        int code = sfc_head_write_rows(head, block, part, rows + at, n, wide, err);
        if (code != SFC_OK)
            return code;
    }
    return SFC_OK;
}

int sfc_block_save_rows(struct sfc_head *head, uint64_t block,
                        const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                        void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err)
{
    int code = SFC_OK;
    for (int i = 0; code == SFC_OK && i < SFC_SNAPSHOT_PARTS && shape->rows > 0; i++) {
        if (!shape->has[i])
            continue;
        code =
            is_half(shape, (enum sfc_snapshot_part)i)
                ? save_half_rows(head, block, kernel_part[i], shape, rows, parts[i], err)
                : sfc_head_read_rows(head, block, kernel_part[i], rows, shape->rows, parts[i], err);
    }
    return code;
}

int sfc_block_write_rows(struct sfc_head *head, uint64_t block,
                         const struct sfc_snapshot_shape *shape, const uint32_t *rows,
                         void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err)
{
    int code = SFC_OK;
    for (int i = 0; code == SFC_OK && i < SFC_SNAPSHOT_PARTS && shape->rows > 0; i++) {
        if (!shape->has[i])
            continue;
        code = is_half(shape, (enum sfc_snapshot_part)i)
                   ? write_half_rows(head, block, kernel_part[i], shape, rows, parts[i], err)
                   : sfc_head_write_rows(head, block, kernel_part[i], rows, shape->rows, parts[i],
                                         err);
    }
    return code;
}

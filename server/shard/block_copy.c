#include "server/shard/block_copy.h"

#include <string.h>

enum { CHUNK = 4096 }; /* floats of bf16 state that are widened at a time */

/* SFC_SNAPSHOT_VALUES ... in the words of the kernels. */
static const enum sfc_block_part kernel_part[SFC_SNAPSHOT_PARTS] = {
    [SFC_SNAPSHOT_VALUES] = SFC_PART_VALUES,
    [SFC_SNAPSHOT_MOMENTUM] = SFC_PART_MOMENTUM,
    [SFC_SNAPSHOT_SECOND_MOMENT] = SFC_PART_SECOND_MOMENT,
    [SFC_SNAPSHOT_LAST_STEP] = SFC_PART_LAST_STEP,
};

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
static int save_half(const struct place *p, uint64_t count, uint16_t *out, struct sfc_error *err)
{
    float wide[CHUNK];
    for (uint64_t at = 0; at < count; at += CHUNK) {
        uint64_t n = count - at < CHUNK ? count - at : CHUNK;
        int code = read_some(p, at, n, wide, err);
        if (code != SFC_OK)
            return code;
        for (uint64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, &wide[i], sizeof bits);
            out[at + i] = (uint16_t)(bits >> 16);
        }
    }
    return SFC_OK;
}

static int restore_half(const struct place *p, uint64_t count, const uint16_t *from,
                        struct sfc_error *err)
{
    float wide[CHUNK];
    for (uint64_t at = 0; at < count; at += CHUNK) {
        uint64_t n = count - at < CHUNK ? count - at : CHUNK;
        for (uint64_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)from[at + i] << 16;
            memcpy(&wide[i], &bits, sizeof bits);
        }
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
        code = is_half(shape, part) ? restore_half(&place, count, content->parts[i], err)
                                    : write_some(&place, 0, count, content->parts[i], err);
    }
    return code;
}

/* Dense blocks: argument checks and slot protocol for every backend. */
#include "kernels/backend_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIZE  ((uint64_t)1 << 40)
#define MAX_BLOCK (1u << 30)
#define MAX_SLOTS 65536u
/* Weights, gradients and moments of sane runs are far below, f32 goes to 3.4e38. AdamW squares
 * gradients. */
#define MAX_MAGNITUDE 1e36
#define MAX_SQUARED   1e18
#define MAX_NORMAL    8.0 /* of the initial values: Box-Muller with 24 bits */

static int check_segments(const struct sfc_dense_config *c, struct sfc_error *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < c->segment_count; i++) {
        const struct sfc_dense_segment *s = &c->segments[i];
        if (s->offset != at || s->length < 1 || s->length > c->size - at)
            return sfc_fail(err, SFC_EINVAL, "dense: segment %zu does not continue at %llu of %llu",
                            i, (unsigned long long)at, (unsigned long long)c->size);
        if ((unsigned)s->role > SFC_DENSE_STATISTIC)
            return sfc_fail(err, SFC_EINVAL, "dense: segment %zu has unknown role %d", i,
                            (int)s->role);
        if (!isfinite(s->init_mean) || !isfinite(s->init_std) || s->init_std < 0)
            return sfc_fail(err, SFC_EINVAL, "dense: segment %zu has no valid initial values", i);
        at += s->length;
    }
    if (at != c->size)
        return sfc_fail(err, SFC_EINVAL, "dense: segments end at %llu of %llu",
                        (unsigned long long)at, (unsigned long long)c->size);
    return SFC_OK;
}

static int check_config(const struct sfc_dense_config *c, const uint64_t *blocks, size_t count,
                        struct sfc_error *err)
{
    if (c->size < 1 || c->size > MAX_SIZE)
        return sfc_fail(err, SFC_EINVAL, "dense: size %llu is outside 1..%llu",
                        (unsigned long long)c->size, (unsigned long long)MAX_SIZE);
    if (c->block_size < 1 || c->block_size > MAX_BLOCK)
        return sfc_fail(err, SFC_EINVAL, "dense: block_size %u is outside 1..%u", c->block_size,
                        MAX_BLOCK);
    if (c->micro_batches < 1 || c->slots < c->micro_batches || c->slots > MAX_SLOTS)
        return sfc_fail(err, SFC_EINVAL, "dense: slots %u is outside %u..%u", c->slots,
                        c->micro_batches < 1 ? 1 : c->micro_batches, MAX_SLOTS);
    if (!(c->momentum >= 0 && c->momentum <= 0.9999))
        return sfc_fail(err, SFC_EINVAL, "dense: momentum %g is outside 0..0.9999", c->momentum);
    if (!(c->weight_decay >= 0 && c->weight_decay <= 1))
        return sfc_fail(err, SFC_EINVAL, "dense: weight_decay %g is outside 0..1", c->weight_decay);
    if (!(c->statistic_momentum >= 0 && c->statistic_momentum <= 1))
        return sfc_fail(err, SFC_EINVAL, "dense: statistic_momentum %g is outside 0..1",
                        c->statistic_momentum);
    int rc = check_segments(c, err);
    if (!rc && (unsigned)c->optimizer > SFC_OPTIMIZER_ADAMW)
        rc = sfc_fail(err, SFC_EINVAL, "dense: unknown optimizer %d", (int)c->optimizer);
    if (!rc && (unsigned)c->sum_dtype > SFC_DTYPE_BF16)
        rc = sfc_fail(err, SFC_EINVAL, "dense: unknown format %d of sums", (int)c->sum_dtype);
    if (!rc && c->optimizer == SFC_OPTIMIZER_ADAMW)
        rc = sfc_adamw_check("dense", c->beta1, c->beta2, c->epsilon, err);
    return rc ? rc : sfc_blocks_check("dense", blocks, count, sfc_dense_block_count(c), err);
}

int sfc_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                     const uint64_t *blocks, size_t count, struct sfc_memory *out,
                     struct sfc_error *err)
{
    struct sfc_memory memory = {0};
    int rc = check_config(config, blocks, count, err);
    if (!rc)
        rc = backend->ops->dense_memory(backend, config, blocks, count, &memory, err);
    if (rc)
        return rc;
    memory.step_bytes += sfc_extents_bytes(count) + count * 2 * sizeof(uint64_t) +
                         config->slots * sizeof(bool) +
                         config->segment_count * sizeof(struct sfc_dense_segment);
    *out = memory;
    return SFC_OK;
}

static struct sfc_extent_rule extent_rule(const struct sfc_dense_config *c)
{
    return (struct sfc_extent_rule){
        .optimizer = c->optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .slack = 1 + 0x1p-22,
        .limit = MAX_MAGNITUDE,
        .gradient = c->optimizer == SFC_OPTIMIZER_ADAMW ? MAX_SQUARED : MAX_MAGNITUDE,
    };
}

static double initial_extent(const struct sfc_dense_config *c)
{
    double w = 0;
    for (size_t i = 0; i < c->segment_count; i++)
        w = fmax(w, fabs(c->segments[i].init_mean) + MAX_NORMAL * c->segments[i].init_std);
    return w;
}

static int base_init(struct sfc_dense *dense, struct sfc_backend *backend,
                     const struct sfc_dense_config *config, const uint64_t *blocks, size_t count,
                     struct sfc_error *err)
{
    size_t segment_bytes = config->segment_count * sizeof(struct sfc_dense_segment);
    struct sfc_dense_segment *segments = malloc(segment_bytes);
    dense->backend = backend;
    dense->config = *config;
    dense->config.segments = segments;
    dense->block_count = count;
    dense->blocks = malloc(count * sizeof *blocks);
    dense->block_step = calloc(count, sizeof *dense->block_step);
    dense->pushed = calloc(config->slots, sizeof *dense->pushed);
    if (!segments || !dense->blocks || !dense->block_step || !dense->pushed)
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %zu blocks", count);
    memcpy(segments, config->segments, segment_bytes);
    memcpy(dense->blocks, blocks, count * sizeof *blocks);
    for (size_t i = 0; i < count; i++)
        dense->length += sfc_dense_block_length(config, blocks[i]);
    dense->packing = sfc_dense_packing_of(config, blocks, count);
    struct sfc_extent_rule rule = extent_rule(config);
    return sfc_extents_init(&dense->extents, &rule, count, initial_extent(config), err);
}

int sfc_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                  const uint64_t *blocks, size_t count, struct sfc_dense **out,
                  struct sfc_error *err)
{
    struct sfc_dense *dense = NULL;
    int rc = check_config(config, blocks, count, err);
    if (!rc)
        rc = backend->ops->dense_new(backend, config, blocks, count, &dense, err);
    if (rc)
        return rc;
    rc = base_init(dense, backend, config, blocks, count, err);
    if (rc) {
        sfc_dense_free(dense);
        return rc;
    }
    *out = dense;
    return SFC_OK;
}

void sfc_dense_free(struct sfc_dense *dense)
{
    if (!dense)
        return;
    free((void *)dense->config.segments);
    free(dense->blocks);
    free(dense->block_step);
    free(dense->pushed);
    sfc_extents_free(&dense->extents);
    dense->backend->ops->dense_free(dense);
}

static int find_range(const struct sfc_dense *dense, uint64_t block, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, size_t *index, struct sfc_error *err)
{
    size_t at = sfc_block_index(dense->blocks, dense->block_count, block);
    if (at == dense->block_count)
        return sfc_fail(err, SFC_ENOTFOUND, "dense: block %llu is not held here",
                        (unsigned long long)block);
    if (!sfc_has_part(dense->config.optimizer, false, part))
        return sfc_fail(err, SFC_EINVAL, "dense: block %llu has no part %d",
                        (unsigned long long)block, (int)part);
    uint64_t size = sfc_dense_block_length(&dense->config, block);
    if (offset > size || count > size - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "dense: floats %llu + %llu are outside block %llu of %llu floats",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)block, (unsigned long long)size);
    *index = at;
    return SFC_OK;
}

int sfc_dense_read(struct sfc_dense *dense, uint64_t block, enum sfc_block_part part,
                   uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    size_t index = 0;
    int rc = find_range(dense, block, part, offset, count, &index, err);
    return rc ? rc : dense->backend->ops->dense_read(dense, index, part, offset, count, out, err);
}

int sfc_dense_write(struct sfc_dense *dense, uint64_t block, enum sfc_block_part part,
                    uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    size_t index = 0;
    int rc = find_range(dense, block, part, offset, count, &index, err);
    if (!rc)
        rc = sfc_values_check("dense", block, part, offset, count, values, err);
    if (!rc)
        sfc_extents_forget(&dense->extents, index);
    return rc ? rc
              : dense->backend->ops->dense_write(dense, index, part, offset, count, values, err);
}

uint64_t sfc_dense_length(const struct sfc_dense *dense)
{
    return dense->length;
}

int sfc_dense_push(struct sfc_dense *dense, uint32_t slot, const float *slice,
                   struct sfc_error *err)
{
    if (slot >= dense->config.slots)
        return sfc_fail(err, SFC_EINVAL, "dense: slot %u is not below %u", slot,
                        dense->config.slots);
    int rc = dense->backend->ops->dense_push(dense, slot, slice, err);
    if (!rc)
        dense->pushed[slot] = true;
    return rc;
}

int sfc_dense_pull(struct sfc_dense *dense, float *out, struct sfc_error *err)
{
    return dense->backend->ops->dense_pull(dense, out, err);
}

/* A block whose update doesn't fit is not finite. */
static void check_extents(struct sfc_dense *dense, uint64_t step, double lr,
                          struct sfc_dense_sum *sums)
{
    struct sfc_extents *e = &dense->extents;
    for (size_t i = 0; i < e->count; i++)
        e->gradient[i] = sqrt(sums[i].sum_of_squares);
    if (sfc_extents_fit(e, lr, step))
        return;
    dense->backend->ops->dense_extents(dense, e->now);
    sfc_extents_fit(e, lr, step);
    for (size_t i = 0; i < e->count; i++)
        sums[i].finite = sums[i].finite && sfc_extents_fits(e, i);
}

int sfc_dense_prepare(struct sfc_dense *dense, uint64_t step, double lr, const uint32_t *slots,
                      struct sfc_dense_sum *out, struct sfc_error *err)
{
    dense->prepared = false;
    if (step < 1 || !isfinite((float)lr) || lr < 0)
        return sfc_fail(err, SFC_EINVAL, "dense: step %llu and learning rate %g must be >= 1 and 0",
                        (unsigned long long)step, lr);
    for (uint32_t j = 0; j < dense->config.micro_batches; j++) {
        if (slots[j] >= dense->config.slots)
            return sfc_fail(err, SFC_EINVAL, "dense: slot %u is not below %u", slots[j],
                            dense->config.slots);
        if (!dense->pushed[slots[j]])
            return sfc_fail(err, SFC_ESTATE, "dense: nothing was pushed to slot %u", slots[j]);
        for (uint32_t k = 0; k < j; k++)
            if (slots[k] == slots[j])
                return sfc_fail(err, SFC_EINVAL, "dense: slot %u is named twice", slots[j]);
    }
    int rc = dense->backend->ops->dense_prepare(dense, slots, out, err);
    if (!rc)
        check_extents(dense, step, lr, out);
    dense->prepared = rc == SFC_OK;
    dense->step = step;
    dense->loaded = false;
    return rc;
}

int sfc_dense_sums(struct sfc_dense *dense, void *out, struct sfc_error *err)
{
    if (!dense->prepared)
        return sfc_fail(err, SFC_ESTATE, "dense: sums without a prepare");
    return dense->backend->ops->dense_sums(dense, out, err);
}

/* Number of the first packed sum that is not finite; as many as there are: none. */
static uint64_t first_broken(const struct sfc_dense_packing *packing, const void *sums)
{
    const uint16_t *half = sums;
    const float *wide = (const void *)((const char *)sums + sfc_dense_packed_floats(packing));
    for (uint64_t i = 0; i < packing->halves; i++)
        if ((half[i] & 0x7f80) == 0x7f80)
            return i;
    for (uint64_t i = 0; i < packing->floats; i++)
        if (!isfinite(wide[i]))
            return packing->halves + i;
    return packing->halves + packing->floats;
}

int sfc_dense_load(struct sfc_dense *dense, uint64_t step, const void *sums, struct sfc_error *err)
{
    dense->prepared = false;
    uint64_t broken = first_broken(&dense->packing, sums);
    if (broken < dense->length)
        return sfc_fail(err, SFC_EINVAL, "dense: loaded sum %llu of step %llu is not finite",
                        (unsigned long long)broken, (unsigned long long)step);
    int rc = dense->backend->ops->dense_load(dense, sums, err);
    dense->prepared = rc == SFC_OK;
    dense->step = step;
    dense->loaded = true;
    return rc;
}

int sfc_dense_set_block_step(struct sfc_dense *dense, uint64_t block, uint64_t step,
                             struct sfc_error *err)
{
    size_t index = sfc_block_index(dense->blocks, dense->block_count, block);
    if (index == dense->block_count)
        return sfc_fail(err, SFC_ENOTFOUND, "dense: block %llu is not held here",
                        (unsigned long long)block);
    dense->block_step[index] = step;
    return SFC_OK;
}

int sfc_dense_commit(struct sfc_dense *dense, double clip_scale, double lr, struct sfc_error *err)
{
    if (!dense->prepared)
        return sfc_fail(err, SFC_ESTATE, "dense: commit without a prepare");
    if (!isfinite((float)lr) || lr < 0 || !isfinite(clip_scale) || clip_scale < 0)
        return sfc_fail(err, SFC_EINVAL, "dense: clip scale %g and learning rate %g must be >= 0",
                        clip_scale, lr);
    int rc = dense->backend->ops->dense_commit(dense, clip_scale, lr, err);
    if (rc)
        return rc;
    dense->extents.asked = dense->extents.asked && !dense->loaded && clip_scale <= 1;
    sfc_extents_commit(&dense->extents);
    dense->prepared = false;
    memset(dense->pushed, 0, dense->config.slots * sizeof *dense->pushed);
    return SFC_OK;
}

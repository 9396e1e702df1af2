/* Dense blocks: argument checks and slot protocol for every backend, and the vectors of several
 * parts. */
#include <math.h>
#include <string.h>

#include "kernels/dense_internal.h"

static const struct sfc_backend_ops *ops_of(const struct sfc_dense *dense)
{
    return dense->backend->ops;
}

static int find(const struct sfc_dense *dense, uint64_t block, const struct sfc_dense_place **out,
                struct sfc_error *err)
{
    const struct sfc_dense_place *place = sfc_dense_find(dense, block);
    if (!place)
        return sfc_fail(err, SFC_ENOTFOUND, "dense: block %llu is not held here",
                        (unsigned long long)block);
    *out = place;
    return SFC_OK;
}

static int find_range(const struct sfc_dense *dense, uint64_t block, enum sfc_block_part what,
                      uint64_t offset, uint64_t count, const struct sfc_dense_place **out,
                      struct sfc_error *err)
{
    const struct sfc_dense_place *place = NULL;
    int rc = find(dense, block, &place, err);
    if (rc)
        return rc;
    if (!sfc_has_part(dense->config.optimizer, false, what))
        return sfc_fail(err, SFC_EINVAL, "dense: block %llu has no part %d",
                        (unsigned long long)block, (int)what);
    uint64_t size = place->length.vector;
    if (offset > size || count > size - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "dense: floats %llu + %llu are outside block %llu of %llu floats",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)block, (unsigned long long)size);
    *out = place;
    return SFC_OK;
}

int sfc_dense_read(struct sfc_dense *dense, uint64_t block, enum sfc_block_part what,
                   uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    const struct sfc_dense_place *p = NULL;
    int rc = find_range(dense, block, what, offset, count, &p, err);
    return rc ? rc : ops_of(dense)->dense_read(p->part, p->index, what, offset, count, out, err);
}

int sfc_dense_write(struct sfc_dense *dense, uint64_t block, enum sfc_block_part what,
                    uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    const struct sfc_dense_place *p = NULL;
    int rc = find_range(dense, block, what, offset, count, &p, err);
    if (!rc)
        rc = sfc_values_check("dense", block, what, offset, count, values, err);
    if (rc)
        return rc;
    sfc_extents_forget(&p->part->extents, p->index);
    return ops_of(dense)->dense_write(p->part, p->index, what, offset, count, values, err);
}

uint64_t sfc_dense_length(const struct sfc_dense *dense)
{
    return dense->length;
}

/* ---- vectors of several parts, block by block */

/* The part's floats of a vector of all blocks. */
static void gather(const struct sfc_dense *dense, const struct sfc_dense_part *part,
                   const float *whole, float *out)
{
    for (size_t i = 0; i < dense->count; i++) {
        const struct sfc_dense_place *p = &dense->places[i];
        if (p->part == part)
            memcpy(out + p->in_part.vector, whole + p->whole.vector,
                   p->length.vector * sizeof *out);
    }
}

static void scatter(const struct sfc_dense *dense, const struct sfc_dense_part *part,
                    const float *in, float *whole)
{
    for (size_t i = 0; i < dense->count; i++) {
        const struct sfc_dense_place *p = &dense->places[i];
        if (p->part == part)
            memcpy(whole + p->whole.vector, in + p->in_part.vector, p->length.vector * sizeof *in);
    }
}

/* Packed sums: where the halves and the floats of a block are. */
static char *halves_at(const void *packed, uint64_t at)
{
    return (char *)packed + at * sizeof(uint16_t);
}

static char *floats_at(const struct sfc_dense_packing *packing, const void *packed, uint64_t at)
{
    return (char *)packed + sfc_dense_packed_floats(packing) + at * sizeof(float);
}

/* to_part: from the sums of all blocks to those of the part, else back. */
static void copy_sums(const struct sfc_dense *dense, const struct sfc_dense_part *part,
                      const void *whole, void *of_part, bool to_part)
{
    for (size_t i = 0; i < dense->count; i++) {
        const struct sfc_dense_place *p = &dense->places[i];
        if (p->part != part)
            continue;
        char *a = halves_at(whole, p->whole.halves), *b = halves_at(of_part, p->in_part.halves);
        memcpy(to_part ? b : a, to_part ? a : b, p->length.halves * sizeof(uint16_t));
        a = floats_at(&dense->packing, whole, p->whole.floats);
        b = floats_at(&part->packing, of_part, p->in_part.floats);
        memcpy(to_part ? b : a, to_part ? a : b, p->length.floats * sizeof(float));
    }
}

static int push_parts(struct sfc_dense *dense, uint32_t slot, const float *slice,
                      struct sfc_error *err)
{
    int rc = SFC_OK;
    for (struct sfc_dense_part *p = dense->parts; !rc && p; p = p->next) {
        if (!dense->direct)
            gather(dense, p, slice, dense->scratch);
        rc = ops_of(dense)->dense_push(p, slot, dense->direct ? slice : dense->scratch, err);
    }
    return rc;
}

int sfc_dense_push(struct sfc_dense *dense, uint32_t slot, const float *slice,
                   struct sfc_error *err)
{
    if (slot >= dense->config.slots)
        return sfc_fail(err, SFC_EINVAL, "dense: slot %u is not below %u", slot,
                        dense->config.slots);
    int rc = push_parts(dense, slot, slice, err);
    if (!rc)
        dense->pushed[slot] = true;
    return rc;
}

int sfc_dense_pull(struct sfc_dense *dense, float *out, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (struct sfc_dense_part *p = dense->parts; !rc && p; p = p->next) {
        rc = ops_of(dense)->dense_pull(p, dense->direct ? out : dense->scratch, err);
        if (!rc && !dense->direct)
            scatter(dense, p, dense->scratch, out);
    }
    return rc;
}

/* ---- sums */

static bool gone(const struct sfc_dense_part *part, size_t index)
{
    return part->block_step[index] == SFC_BLOCK_GONE;
}

/* A block whose update doesn't fit is not finite. */
static void check_extents(struct sfc_dense_part *part, uint64_t step, double lr,
                          struct sfc_dense_sum *sums)
{
    struct sfc_extents *e = &part->extents;
    for (size_t i = 0; i < e->count; i++)
        e->gradient[i] = gone(part, i) ? 0 : sqrt(sums[i].sum_of_squares);
    if (sfc_extents_fit(e, lr, step))
        return;
    part->backend->ops->dense_extents(part, e->now);
    for (size_t i = 0; i < e->count; i++)
        if (gone(part, i))
            e->now[i] = (struct sfc_extent){0};
    sfc_extents_fit(e, lr, step);
    for (size_t i = 0; i < e->count; i++)
        sums[i].finite = sums[i].finite && sfc_extents_fits(e, i);
}

static int prepare_parts(struct sfc_dense *dense, uint64_t step, double lr, const uint32_t *slots,
                         struct sfc_dense_sum *out, struct sfc_error *err)
{
    for (struct sfc_dense_part *p = dense->parts; p; p = p->next) {
        struct sfc_dense_sum *sums = dense->direct ? out : dense->scratch;
        int rc = ops_of(dense)->dense_prepare(p, slots, sums, err);
        if (rc)
            return rc;
        p->step = step;
        p->loaded = false;
        check_extents(p, step, lr, sums);
        for (size_t i = 0; !dense->direct && i < dense->count; i++)
            if (dense->places[i].part == p)
                out[i] = sums[dense->places[i].index];
    }
    return SFC_OK;
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
    int rc = prepare_parts(dense, step, lr, slots, out, err);
    dense->prepared = rc == SFC_OK;
    return rc;
}

int sfc_dense_sums(struct sfc_dense *dense, void *out, struct sfc_error *err)
{
    int rc = SFC_OK;
    if (!dense->prepared)
        return sfc_fail(err, SFC_ESTATE, "dense: sums without a prepare");
    if (!dense->direct)
        memset(out, 0, sfc_dense_packed_floats(&dense->packing));
    for (struct sfc_dense_part *p = dense->parts; !rc && p; p = p->next) {
        rc = ops_of(dense)->dense_sums(p, dense->direct ? out : dense->scratch, err);
        if (!rc && !dense->direct)
            copy_sums(dense, p, out, dense->scratch, false);
    }
    return rc;
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

static int load_parts(struct sfc_dense *dense, uint64_t step, const void *sums,
                      struct sfc_error *err)
{
    int rc = SFC_OK;
    for (struct sfc_dense_part *p = dense->parts; !rc && p; p = p->next) {
        if (!dense->direct)
            copy_sums(dense, p, sums, dense->scratch, true);
        rc = ops_of(dense)->dense_load(p, dense->direct ? sums : dense->scratch, err);
        p->step = step;
        p->loaded = true;
    }
    return rc;
}

int sfc_dense_load(struct sfc_dense *dense, uint64_t step, const void *sums, struct sfc_error *err)
{
    dense->prepared = false;
    uint64_t broken = first_broken(&dense->packing, sums);
    if (broken < dense->length)
        return sfc_fail(err, SFC_EINVAL, "dense: loaded sum %llu of step %llu is not finite",
                        (unsigned long long)broken, (unsigned long long)step);
    int rc = load_parts(dense, step, sums, err);
    dense->prepared = rc == SFC_OK;
    return rc;
}

int sfc_dense_set_block_step(struct sfc_dense *dense, uint64_t block, uint64_t step,
                             struct sfc_error *err)
{
    const struct sfc_dense_place *p = NULL;
    int rc = find(dense, block, &p, err);
    if (!rc && step == SFC_BLOCK_GONE)
        rc = sfc_fail(err, SFC_EINVAL, "dense: block %llu can't be of step %llu",
                      (unsigned long long)block, (unsigned long long)step);
    if (rc)
        return rc;
    p->part->block_step[p->index] = step;
    return SFC_OK;
}

static int commit_parts(struct sfc_dense *dense, double clip_scale, double lr,
                        struct sfc_error *err)
{
    for (struct sfc_dense_part *p = dense->parts; p; p = p->next) {
        int rc = ops_of(dense)->dense_commit(p, clip_scale, lr, err);
        if (rc && p == dense->parts)
            return rc;
        if (rc && err)
            err->code = SFC_EDEVICE; /* whatever it was: other parts are updated */
        if (rc)
            return SFC_EDEVICE;
        p->extents.asked = p->extents.asked && !p->loaded && clip_scale <= 1;
        sfc_extents_commit(&p->extents);
    }
    return SFC_OK;
}

int sfc_dense_commit(struct sfc_dense *dense, double clip_scale, double lr, struct sfc_error *err)
{
    if (!dense->prepared)
        return sfc_fail(err, SFC_ESTATE, "dense: commit without a prepare");
    if (!isfinite((float)lr) || lr < 0 || !isfinite(clip_scale) || clip_scale < 0)
        return sfc_fail(err, SFC_EINVAL, "dense: clip scale %g and learning rate %g must be >= 0",
                        clip_scale, lr);
    int rc = commit_parts(dense, clip_scale, lr, err);
    if (rc)
        return rc;
    dense->prepared = false;
    memset(dense->pushed, 0, dense->config.slots * sizeof *dense->pushed);
    return SFC_OK;
}

#include "server/shard/dense_mirror.h"

#include <stdlib.h>
#include <string.h>

struct sfc_dense_mirror {
    const struct sfc_dense_config *config;
    struct sfc_dense_set own, mirrored, all; /* lists are owned */
    struct sfc_dense *dense;                 /* of the mirrored blocks: its state is never used */
    struct sfc_dense_sum *sums;              /* [mirrored.count] */
    void *part; /* slices or packed sums of the own blocks, or of the mirrored ones */
};

static uint64_t *copy_of(struct sfc_dense_set set)
{
    uint64_t *blocks = malloc((set.count + 1) * sizeof *blocks);
    if (blocks && set.count)
        memcpy(blocks, set.blocks, set.count * sizeof *blocks);
    return blocks;
}

int sfc_dense_mirror_new(struct sfc_backend *backend, const struct sfc_run_setup *setup,
                         struct sfc_dense_set own, struct sfc_dense_set mirrored,
                         struct sfc_dense_mirror **out, struct sfc_error *err)
{
    struct sfc_dense_mirror *m = calloc(1, sizeof *m);
    if (!m)
        return sfc_fail(err, SFC_ENOMEM, "no memory for mirrored dense blocks");
    uint64_t own_bytes = sfc_run_slice_bytes(setup, own.blocks, own.count);
    uint64_t other_bytes = sfc_run_slice_bytes(setup, mirrored.blocks, mirrored.count);
    uint64_t bytes = own_bytes > other_bytes ? own_bytes : other_bytes;
    m->config = &setup->dense;
    m->own = (struct sfc_dense_set){copy_of(own), own.count};
    m->mirrored = (struct sfc_dense_set){copy_of(mirrored), mirrored.count};
    m->all = sfc_dense_sets_join(own, mirrored);
    m->sums = calloc(mirrored.count, sizeof *m->sums);
    m->part = aligned_alloc(64, (bytes + 63) / 64 * 64);
    int code =
        m->own.blocks && m->mirrored.blocks && m->all.blocks && m->sums && m->part
            ? sfc_dense_new_blank(backend, &setup->dense, mirrored.blocks, mirrored.count,
                                  &m->dense, err)
            : sfc_fail(err, SFC_ENOMEM, "no memory for %zu mirrored dense blocks", mirrored.count);
    if (code == SFC_OK)
        *out = m;
    else
        sfc_dense_mirror_free(m);
    return code;
}

void sfc_dense_mirror_free(struct sfc_dense_mirror *m)
{
    if (!m)
        return;
    sfc_dense_free(m->dense);
    free((void *)(uintptr_t)m->own.blocks);
    free((void *)(uintptr_t)m->mirrored.blocks);
    free((void *)(uintptr_t)m->all.blocks);
    free(m->sums);
    free(m->part);
    free(m);
}

/* ---- a step */

int sfc_dense_mirror_push(struct sfc_dense_mirror *m, struct sfc_dense *own, uint32_t slot,
                          const float *slice, struct sfc_error *err)
{
    int code = SFC_OK;
    if (own) {
        sfc_dense_floats_cut(m->config, m->all, slice, m->own, m->part);
        code = sfc_dense_push(own, slot, m->part, err);
    }
    if (code != SFC_OK)
        return code;
    sfc_dense_floats_cut(m->config, m->all, slice, m->mirrored, m->part);
    return sfc_dense_push(m->dense, slot, m->part, err);
}

static int put_sums(struct sfc_dense_mirror *m, struct sfc_dense *dense, struct sfc_dense_set of,
                    void *packed, struct sfc_error *err)
{
    int code = sfc_dense_sums(dense, m->part, err);
    if (code == SFC_OK)
        sfc_dense_sums_put(m->config, of, m->part, m->all, packed);
    return code;
}

int sfc_dense_mirror_prepare(struct sfc_dense_mirror *m, struct sfc_dense *own, uint64_t step,
                             double lr, const uint32_t *slots, void *packed, struct sfc_error *err)
{
    int code = sfc_dense_prepare(m->dense, step, lr, slots, m->sums, err);
    if (code != SFC_OK || !packed)
        return code;
    sfc_dense_sums_pad(m->config, m->all, packed);
    if (own)
        code = put_sums(m, own, m->own, packed, err);
    return code == SFC_OK ? put_sums(m, m->dense, m->mirrored, packed, err) : code;
}

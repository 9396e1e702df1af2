/* What a dense object may be configured to. */
#include <math.h>

#include "kernels/dense_internal.h"

#define MAX_SIZE  ((uint64_t)1 << 40)
#define MAX_BLOCK (1u << 30)
#define MAX_SLOTS 65536u

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

int sfc_dense_check(const struct sfc_dense_config *c, const uint64_t *blocks, size_t count,
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

#include "server/shard/dense_sums.h"

#include <stdlib.h>
#include <string.h>

struct sfc_dense_set sfc_dense_sets_join(struct sfc_dense_set a, struct sfc_dense_set b)
{
    uint64_t *blocks = malloc((a.count + b.count + 1) * sizeof *blocks);
    size_t n = 0, i = 0, k = 0;
    while (blocks && (i < a.count || k < b.count)) {
        uint64_t x = i < a.count ? a.blocks[i] : UINT64_MAX;
        uint64_t y = k < b.count ? b.blocks[k] : UINT64_MAX;
        blocks[n++] = x < y ? x : y;
        i += x <= y;
        k += y <= x;
    }
    return (struct sfc_dense_set){blocks, n};
}

struct cursor { /* where the sums of a block are */
    uint64_t halves, floats;
};

static uint64_t halves_bytes(const struct sfc_dense_config *c, struct sfc_dense_set set)
{
    struct sfc_dense_packing p = sfc_dense_packing_of(c, set.blocks, set.count);
    return sfc_dense_packed_bytes(&p) - p.floats * sizeof(float);
}

static void advance(struct cursor *at, const struct sfc_dense_packing *block)
{
    at->halves += block->halves;
    at->floats += block->floats;
}

static void copy_block(const struct sfc_dense_packing *block, const void *in, const char *in_floats,
                       const struct cursor *source, void *out, char *out_floats,
                       const struct cursor *target)
{
    memcpy((char *)out + target->halves * sizeof(uint16_t),
           (const char *)in + source->halves * sizeof(uint16_t), block->halves * sizeof(uint16_t));
    memcpy(out_floats + target->floats * sizeof(float), in_floats + source->floats * sizeof(float),
           block->floats * sizeof(float));
}

size_t sfc_dense_sums_cut(const struct sfc_dense_config *c, struct sfc_dense_set from,
                          const void *in, struct sfc_dense_set to, const uint64_t *stamps,
                          uint64_t step, void *out)
{
    const char *in_floats = (const char *)in + halves_bytes(c, from);
    struct sfc_dense_packing all = sfc_dense_packing_of(c, to.blocks, to.count);
    char *out_floats = (char *)out + halves_bytes(c, to);
    struct cursor source = {0, 0}, target = {0, 0};
    size_t k = 0;
    memset(out, 0, sfc_dense_packed_bytes(&all));
    for (size_t i = 0; i < to.count; i++) {
        struct sfc_dense_packing own = sfc_dense_packing_of(c, &to.blocks[i], 1);
        for (; k < from.count && from.blocks[k] < to.blocks[i]; k++) {
            struct sfc_dense_packing other = sfc_dense_packing_of(c, &from.blocks[k], 1);
            advance(&source, &other);
        }
        bool there = k < from.count && from.blocks[k] == to.blocks[i];
        if (!there && stamps[i] < step)
            return i;
        if (there)
            copy_block(&own, in, in_floats, &source, out, out_floats, &target);
        advance(&target, &own);
    }
    return to.count;
}

void sfc_dense_sums_put(const struct sfc_dense_config *c, struct sfc_dense_set from, const void *in,
                        struct sfc_dense_set to, void *out)
{
    const char *in_floats = (const char *)in + halves_bytes(c, from);
    char *out_floats = (char *)out + halves_bytes(c, to);
    struct cursor source = {0, 0}, target = {0, 0};
    for (size_t i = 0, k = 0; i < to.count && k < from.count; i++) {
        struct sfc_dense_packing block = sfc_dense_packing_of(c, &to.blocks[i], 1);
        if (from.blocks[k] == to.blocks[i]) {
            copy_block(&block, in, in_floats, &source, out, out_floats, &target);
            advance(&source, &block);
            k++;
        }
        advance(&target, &block);
    }
}

void sfc_dense_sums_pad(const struct sfc_dense_config *c, struct sfc_dense_set to, void *out)
{
    struct sfc_dense_packing all = sfc_dense_packing_of(c, to.blocks, to.count);
    size_t end = all.halves * sizeof(uint16_t);
    memset((char *)out + end, 0, halves_bytes(c, to) - end);
}

static uint64_t floats_of(const struct sfc_dense_config *c, uint64_t block)
{
    struct sfc_dense_packing p = sfc_dense_packing_of(c, &block, 1);
    return p.halves + p.floats;
}

void sfc_dense_floats_cut(const struct sfc_dense_config *c, struct sfc_dense_set from,
                          const float *in, struct sfc_dense_set to, float *out)
{
    for (size_t i = 0, k = 0; k < to.count; i++) {
        uint64_t floats = floats_of(c, from.blocks[i]);
        if (from.blocks[i] == to.blocks[k]) {
            memcpy(out, in, floats * sizeof *out);
            out += floats;
            k++;
        }
        in += floats;
    }
}

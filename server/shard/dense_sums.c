#include "server/shard/dense_sums.h"

#include <string.h>

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
        if (there) {
            memcpy((char *)out + target.halves * sizeof(uint16_t),
                   (const char *)in + source.halves * sizeof(uint16_t),
                   own.halves * sizeof(uint16_t));
            memcpy(out_floats + target.floats * sizeof(float),
                   in_floats + source.floats * sizeof(float), own.floats * sizeof(float));
        }
        advance(&target, &own);
    }
    return to.count;
}

/* Blocks and their parts: what every backend and the checks before it share. No backend is named
 * here, so a plugin links it (kernels/plugin.h). */
#include "kernels/backend_impl.h"

#include <math.h>
#include <string.h>

size_t sfc_block_index(const uint64_t *blocks, size_t count, uint64_t block)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && blocks[low] == block ? low : count;
}

int sfc_blocks_check(const char *what, const uint64_t *blocks, size_t count, uint64_t limit,
                     struct sfc_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (blocks[i] >= limit)
            return sfc_fail(err, SFC_EINVAL, "%s: block %llu does not exist, there are %llu", what,
                            (unsigned long long)blocks[i], (unsigned long long)limit);
        if (i && blocks[i] <= blocks[i - 1])
            return sfc_fail(err, SFC_EINVAL, "%s: block ids are not ascending at block %llu", what,
                            (unsigned long long)blocks[i]);
    }
    return SFC_OK;
}

bool sfc_has_part(enum sfc_optimizer optimizer, bool last_step, enum sfc_block_part part)
{
    switch (part) {
    case SFC_PART_VALUES:
    case SFC_PART_MOMENTUM:
        return true;
    case SFC_PART_LAST_STEP:
        return last_step;
    case SFC_PART_SECOND_MOMENT:
        return optimizer == SFC_OPTIMIZER_ADAMW;
    }
    return false;
}

size_t sfc_first_broken(const float *v, size_t n)
{
    const uint32_t exponent = 0x7f800000;
    for (size_t begin = 0, end; begin < n; begin = end) {
        uint32_t broken = 0;
        end = n - begin < 1024 ? n : begin + 1024;
        for (size_t k = begin; k < end; k++) {
            uint32_t bits;
            memcpy(&bits, &v[k], sizeof bits);
            broken |= (bits & exponent) == exponent;
        }
        for (size_t k = begin; broken && k < end; k++)
            if (!isfinite(v[k]))
                return k;
    }
    return n;
}

int sfc_values_check(const char *what, uint64_t block, enum sfc_block_part part, uint64_t offset,
                     uint64_t count, const float *values, struct sfc_error *err)
{
    uint64_t broken = sfc_first_broken(values, count);
    if (broken < count)
        return sfc_fail(err, SFC_EINVAL, "%s: element %llu written to block %llu is not finite",
                        what, (unsigned long long)(offset + broken), (unsigned long long)block);
    for (uint64_t i = 0; part == SFC_PART_SECOND_MOMENT && i < count; i++)
        if (values[i] < 0)
            return sfc_fail(err, SFC_EINVAL,
                            "%s: second moment %llu written to block %llu is below 0", what,
                            (unsigned long long)(offset + i), (unsigned long long)block);
    return SFC_OK;
}

int sfc_adamw_check(const char *what, double beta1, double beta2, double epsilon,
                    struct sfc_error *err)
{
    if (!(beta1 >= 0 && beta1 < 1))
        return sfc_fail(err, SFC_EINVAL, "%s: beta1 %g is not within 0..1", what, beta1);
    if (!(beta2 >= 0 && beta2 < 1))
        return sfc_fail(err, SFC_EINVAL, "%s: beta2 %g is not within 0..1", what, beta2);
    if (!(epsilon >= 1e-30 && epsilon <= 1))
        return sfc_fail(err, SFC_EINVAL, "%s: epsilon %g is not within 1e-30..1", what, epsilon);
    return SFC_OK;
}

uint64_t sfc_head_block_count(const struct sfc_head_config *config)
{
    return (config->classes + config->block_size - 1) / config->block_size;
}

uint64_t sfc_head_block_rows(const struct sfc_head_config *config, uint64_t block)
{
    uint64_t first = block * config->block_size;
    if (first >= config->classes)
        return 0;
    uint64_t rest = config->classes - first;
    return rest < config->block_size ? rest : config->block_size;
}

uint64_t sfc_dense_block_count(const struct sfc_dense_config *config)
{
    return (config->size + config->block_size - 1) / config->block_size;
}

uint64_t sfc_dense_block_length(const struct sfc_dense_config *config, uint64_t block)
{
    uint64_t first = block * config->block_size;
    if (first >= config->size)
        return 0;
    uint64_t rest = config->size - first;
    return rest < config->block_size ? rest : config->block_size;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

struct sfc_dense_packing sfc_dense_packing_of(const struct sfc_dense_config *config,
                                              const uint64_t *blocks, size_t count)
{
    struct sfc_dense_packing packing = {0};
    size_t s = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t first = blocks[i] * config->block_size;
        uint64_t end = first + sfc_dense_block_length(config, blocks[i]);
        for (; s < config->segment_count && config->segments[s].offset < end; s++) {
            const struct sfc_dense_segment *segment = &config->segments[s];
            uint64_t stop = segment->offset + segment->length;
            uint64_t from = larger(first, segment->offset), to = smaller(end, stop);
            if (from < to)
                *(sfc_dense_is_half(config, segment->role) ? &packing.halves : &packing.floats) +=
                    to - from;
            if (stop > end) /* goes on in another block */
                break;
        }
    }
    return packing;
}

#include "server/core/growth.h"

#include "server/core/block_map.h"

typedef unsigned long long ull;

static const struct sfc_growth *last_of(const struct sfc_growths *g)
{
    return g->count > 0 ? &g->items[g->count - 1] : &g->start;
}

int sfc_growths_check(const struct sfc_growths *g, const struct sfc_growth *growth,
                      struct sfc_error *err)
{
    const struct sfc_growth *last = last_of(g);
    if (growth->from_step <= last->from_step)
        return sfc_fail(err, SFC_EINVAL,
                        "a growth from step %llu on: it must come after step %llu, from which on "
                        "the run has %llu classes",
                        (ull)growth->from_step, (ull)last->from_step, (ull)last->classes);
    if (growth->classes <= last->classes)
        return sfc_fail(err, SFC_EINVAL, "classes: %llu, but the run has %llu: it can only grow",
                        (ull)growth->classes, (ull)last->classes);
    if (growth->samples < last->samples || (last->samples == 0 && growth->samples != 0))
        return sfc_fail(err, SFC_EINVAL, "samples: %llu, but the run's set has %llu",
                        (ull)growth->samples, (ull)last->samples);
    if (growth->data_step < growth->from_step || growth->data_step < last->data_step)
        return sfc_fail(err, SFC_EINVAL, "new samples from step %llu on: too early",
                        (ull)growth->data_step);
    if (g->count == SFC_CORE_GROWTHS)
        return sfc_fail(err, SFC_ELIMIT, "the run has grown %u times, which is the limit",
                        SFC_CORE_GROWTHS);
    return SFC_OK;
}

void sfc_growths_add(struct sfc_growths *g, const struct sfc_growth *growth)
{
    g->items[g->count++] = *growth;
}

void sfc_growths_cut(struct sfc_growths *g, uint64_t step)
{
    while (g->count > 0 && g->items[g->count - 1].from_step > step)
        g->count--;
}

uint64_t sfc_growths_classes(const struct sfc_growths *g, uint64_t step)
{
    for (uint32_t i = g->count; i > 0; i--)
        if (g->items[i - 1].from_step <= step)
            return g->items[i - 1].classes;
    return g->start.classes;
}

uint32_t sfc_growths_rows(const struct sfc_growths *g, uint32_t block_size, uint64_t step,
                          uint64_t block)
{
    uint64_t classes = sfc_growths_classes(g, step);
    if (block >= sfc_block_count(classes, block_size))
        return 0;
    uint64_t left = classes - block * block_size;
    return left < block_size ? (uint32_t)left : block_size;
}

struct sfc_growth_blocks sfc_growths_blocks(const struct sfc_growths *g, uint32_t block_size,
                                            uint64_t step)
{
    uint64_t before = sfc_growths_classes(g, step - 1), now = sfc_growths_classes(g, step);
    uint64_t first = sfc_block_count(before, block_size);
    return (struct sfc_growth_blocks){.fills = now > before && before % block_size != 0,
                                      .first = first,
                                      .count = sfc_block_count(now, block_size) - first};
}

uint64_t sfc_growths_next(const struct sfc_growths *g, uint64_t from, uint64_t to)
{
    for (uint32_t i = 0; i < g->count; i++)
        if (g->items[i].from_step > from && g->items[i].from_step <= to)
            return g->items[i].from_step;
    return 0;
}

/* The next part may begin where the last one does: then no epoch of that one was ever begun. */
size_t sfc_growths_order(const struct sfc_growths *g, uint32_t global_batch,
                         struct sfc_order_part *parts)
{
    if (g->start.samples == 0)
        return 0;
    size_t count = 1;
    parts[0] = (struct sfc_order_part){.samples = g->start.samples};
    for (uint32_t i = 0; i < g->count; i++) {
        const struct sfc_growth *growth = &g->items[i];
        struct sfc_order_part next, *last = &parts[count - 1];
        uint64_t position;
        if (__builtin_mul_overflow(growth->data_step - 1, (uint64_t)global_batch, &position))
            return 0;
        if (position < last->first_position)
            position = last->first_position;
        if (!sfc_order_next(last, position, growth->samples, &next))
            return 0;
        if (growth->samples == last->samples)
            continue;
        if (next.first_position == last->first_position)
            count--;
        parts[count++] = next;
    }
    return count;
}

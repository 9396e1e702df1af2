#include "kernels/rng/order.h"

#include "kernels/rng/permutation.h"

bool sfc_order_next(const struct sfc_order_part *last, uint64_t position, uint64_t samples,
                    struct sfc_order_part *out)
{
    uint64_t into = position - last->first_position, first;
    uint64_t epochs = into / last->samples + (into % last->samples != 0);
    if (__builtin_mul_overflow(epochs, last->samples, &first) ||
        __builtin_add_overflow(first, last->first_position, &first)) {
        return false;
    }
    *out = (struct sfc_order_part){
        .first_position = first, .first_epoch = last->first_epoch + epochs, .samples = samples};
    return true;
}

const struct sfc_order_part *sfc_order_part_at(const struct sfc_order_part *parts, size_t count,
                                               uint64_t position)
{
    size_t i = count - 1;
    while (i > 0 && parts[i].first_position > position) {
        i--;
    }
    return &parts[i];
}

uint64_t sfc_order_epoch(const struct sfc_order_part *parts, size_t count, uint64_t position)
{
    const struct sfc_order_part *p = sfc_order_part_at(parts, count, position);
    return p->first_epoch + (position - p->first_position) / p->samples;
}

uint64_t sfc_order_sample(const struct sfc_order_part *parts, size_t count, uint64_t seed,
                          uint64_t position)
{
    const struct sfc_order_part *p = sfc_order_part_at(parts, count, position);
    uint64_t into = position - p->first_position;
    return sfc_sample_of_epoch(seed, p->samples, p->first_epoch + into / p->samples,
                               into % p->samples);
}

#include "kernels/rng/rounding.h"

struct sfc_rounding_key sfc_rounding_key(uint64_t seed, uint64_t step, uint64_t class)
{
    struct sfc_rounding_key first, second;
    sfc_hd_rounding_keys(seed, step, class, &first, &second);
    return first;
}

struct sfc_rounding_key sfc_rounding_second_key(uint64_t seed, uint64_t step, uint64_t class)
{
    struct sfc_rounding_key first, second;
    sfc_hd_rounding_keys(seed, step, class, &first, &second);
    return second;
}

uint32_t sfc_rounding_word(struct sfc_rounding_key key, uint32_t column)
{
    return sfc_hd_rounding_word(key, column);
}

float sfc_bf16_nearest(float v)
{
    return sfc_hd_bf16_float(sfc_hd_bf16_nearest(v));
}

float sfc_bf16_stochastic(float v, uint16_t random)
{
    return sfc_hd_bf16_float(sfc_hd_bf16_stochastic(v, random));
}

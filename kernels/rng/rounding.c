#include "kernels/rng/rounding.h"

#include <string.h>

#include "kernels/rng/philox.h"

struct sfc_rounding_key sfc_rounding_key(uint64_t seed, uint64_t step, uint64_t class)
{
    struct sfc_philox words = sfc_random(seed, SFC_STREAM_ROUNDING, step, class);
    return (struct sfc_rounding_key){words.v[0], words.v[1]};
}

struct sfc_rounding_key sfc_rounding_second_key(uint64_t seed, uint64_t step, uint64_t class)
{
    struct sfc_philox words = sfc_random(seed, SFC_STREAM_ROUNDING, step, class);
    return (struct sfc_rounding_key){words.v[2], words.v[3]};
}

uint32_t sfc_rounding_word(struct sfc_rounding_key key, uint32_t column)
{
    uint32_t h = column * 0x9e3779b9u + key.add;
    h ^= h >> 16;
    h = (h ^ key.xor) * 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* Cuts the low half off after adding to the bits. */
static float cut(float v, uint32_t add)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits = (bits + add) & 0xffff0000u;
    memcpy(&v, &bits, sizeof v);
    return v;
}

float sfc_bf16_nearest(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return cut(v, 0x7fff + ((bits >> 16) & 1));
}

float sfc_bf16_stochastic(float v, uint16_t random)
{
    return cut(v, random);
}

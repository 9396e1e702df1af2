/* bf16, the high half of an f32, and its random bits (kernels/rng/rounding.h says what they are).
 */
#ifndef SFC_KERNELS_HD_ROUNDING_H
#define SFC_KERNELS_HD_ROUNDING_H

#include "kernels/hd/philox.h"

struct sfc_rounding_key {
    uint32_t add, flip;
};

/* Both keys of a row: of its weights and first moment, and of AdamW's second moment. */
static SFC_HD inline void sfc_hd_rounding_keys(uint64_t seed, uint64_t step, uint64_t class_id,
                                               struct sfc_rounding_key *first,
                                               struct sfc_rounding_key *second)
{
    struct sfc_philox words = sfc_hd_random(seed, SFC_STREAM_ROUNDING, step, class_id);
    first->add = words.v[0];
    first->flip = words.v[1];
    second->add = words.v[2];
    second->flip = words.v[3];
}

static SFC_HD inline uint32_t sfc_hd_rounding_word(struct sfc_rounding_key key, uint32_t column)
{
    uint32_t h = column * 0x9e3779b9u + key.add;
    h ^= h >> 16;
    h = (h ^ key.flip) * 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* The float that a bf16 is. */
static SFC_HD inline float sfc_hd_bf16_float(uint16_t high)
{
    return sfc_hd_float((uint32_t)high << 16);
}

/* The nearest bf16, ties to even. */
static SFC_HD inline uint16_t sfc_hd_bf16_nearest(float v)
{
    uint32_t bits = sfc_hd_bits(v);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

/* One of the two neighbours of v, by the low 16 bits of random. */
static SFC_HD inline uint16_t sfc_hd_bf16_stochastic(float v, uint32_t random)
{
    return (uint16_t)((sfc_hd_bits(v) + (random & 0xffffu)) >> 16);
}

/* Halves of a float: high is the nearest bf16 (ties away from zero), low what is missing in the
 * integer bits; both together are the float. */
static SFC_HD inline uint16_t sfc_hd_split_high(float v)
{
    return (uint16_t)((sfc_hd_bits(v) + 0x8000u) >> 16);
}

static SFC_HD inline uint16_t sfc_hd_split_low(float v)
{
    return (uint16_t)(sfc_hd_bits(v) & 0xffffu); /* v - (high << 16), modulo 2^16 */
}

static SFC_HD inline float sfc_hd_split_join(uint16_t high, uint16_t low)
{
    uint32_t extended = low & 0x8000u ? 0xffff0000u | low : low; /* low is signed */
    return sfc_hd_float(((uint32_t)high << 16) + extended);
}

#endif

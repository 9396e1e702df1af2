#include "kernels/rng/permutation.h"

#include "kernels/rng/philox.h"

#define ROUNDS 8

/* One pass through the network: a bijection of [0, 2^(2 half_bits)). */
static uint64_t feistel(uint64_t seed, uint64_t epoch, unsigned half_bits, uint64_t x)
{
    uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct sfc_philox f = sfc_random(seed, SFC_STREAM_PERMUTATION, epoch, round << 32 | right);
        uint64_t next = left ^ (f.v[0] & mask);
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

/* Half of the bits (rounded up) that hold n - 1; at most 32. */
static unsigned half_bits_for(uint64_t n)
{
    unsigned bits = 0;
    while (bits < 64 && (n - 1) >> bits != 0) {
        bits++;
    }
    return (bits + 1) / 2;
}

uint64_t sfc_epoch_at(uint64_t samples, uint64_t position)
{
    return position / samples;
}

uint64_t sfc_sample_at(uint64_t seed, uint64_t samples, uint64_t position)
{
    return sfc_sample_of_epoch(seed, samples, position / samples, position % samples);
}

uint64_t sfc_sample_of_epoch(uint64_t seed, uint64_t samples, uint64_t epoch, uint64_t place)
{
    uint64_t x = place;
    if (samples == 1) {
        return 0;
    }
    unsigned half_bits = half_bits_for(samples);
    /* Cycle walking: the network's range is below 4 * samples, and a cycle that starts inside
     * [0, samples) comes back into it. */
    do {
        x = feistel(seed, epoch, half_bits, x);
    } while (x >= samples);
    return x;
}

#include "kernels/rng/below.h"

#define CALLS 16 /* at once: SFC_BELOW_SLACK words */

uint32_t sfc_random_below_plain(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                                uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words)
{
    uint32_t n = 0, some[4 * CALLS];
    for (uint32_t first = 0; first < count; first += 4 * CALLS) {
        uint32_t rest = count - first < 4 * CALLS ? count - first : 4 * CALLS;
        sfc_random_words(seed, stream, a, b + first / 4, CALLS, some);
        for (uint32_t i = 0; i < rest; i++) {
            index[n] = first + i;
            words[n] = some[i];
            n += some[i] <= limit;
        }
    }
    return n;
}

uint32_t sfc_random_below(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                          uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt")) {
        return sfc_random_below_avx512(seed, stream, a, b, count, limit, index, words);
    }
#endif
    return sfc_random_below_plain(seed, stream, a, b, count, limit, index, words);
}

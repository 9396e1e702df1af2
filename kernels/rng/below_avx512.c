/* sfc_random_below with AVX-512: 8 Philox calls per register, each word in the low half of a 64-bit
 * lane, so that the products of a round need no shuffles; what their high halves leave above a word
 * is never read. */
#include <immintrin.h>

#include "kernels/rng/below.h"

#define ROUNDS 10
#define CALLS  8 /* of one register */

struct keys {
    uint64_t k[ROUNDS][2]; /* of the rounds */
};

/* 8 calls before, between and after rounds. */
struct state {
    __m512i v[4];
};

static struct keys keys_of(uint64_t seed, enum sfc_stream stream)
{
    struct keys keys;
    uint32_t k[2];
    sfc_stream_key(seed, stream, k);
    for (int r = 0; r < ROUNDS; r++) {
        keys.k[r][0] = k[0];
        keys.k[r][1] = k[1];
        k[0] += SFC_PHILOX_W0;
        k[1] += SFC_PHILOX_W1;
    }
    return keys;
}

static inline struct state start(uint64_t a, uint64_t b)
{
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    __m512i low = _mm512_set1_epi64((long long)a);
    __m512i at = _mm512_add_epi64(_mm512_set1_epi64((long long)b), lanes);
    return (struct state){{low, _mm512_srli_epi64(low, 32), at, _mm512_srli_epi64(at, 32)}};
}

static inline __m512i xor3(__m512i x, __m512i y, uint64_t key)
{
    return _mm512_ternarylogic_epi64(x, y, _mm512_set1_epi64((long long)key), 0x96);
}

static inline struct state round_of(struct state s, const uint64_t key[2])
{
    __m512i p0 = _mm512_mul_epu32(s.v[0], _mm512_set1_epi64((long long)SFC_PHILOX_M0));
    __m512i p1 = _mm512_mul_epu32(s.v[2], _mm512_set1_epi64((long long)SFC_PHILOX_M1));
    return (struct state){{xor3(_mm512_srli_epi64(p1, 32), s.v[1], key[0]), p1,
                           xor3(_mm512_srli_epi64(p0, 32), s.v[3], key[1]), p0}};
}

/* Two words per lane: the low halves of x and y. */
static inline __m512i pairs(__m512i x, __m512i y)
{
    return _mm512_mask_shuffle_epi32(x, 0xaaaa, y, _MM_PERM_CCAA);
}

/* Appends the small ones of 16 words, the first of which has number `first`. */
static inline uint32_t append(__m512i words16, uint32_t first, __m512i limit, uint32_t *index,
                              uint32_t *words, uint32_t n)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __mmask16 small = _mm512_cmple_epu32_mask(words16, limit);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32((int)first), lanes);
    _mm512_storeu_si512(words + n, _mm512_maskz_compress_epi32(small, words16));
    _mm512_storeu_si512(index + n, _mm512_maskz_compress_epi32(small, at));
    return n + (uint32_t)__builtin_popcount(small);
}

/* The same of the words of 8 calls. */
static inline uint32_t append_calls(struct state s, uint32_t first, __m512i limit, uint32_t *index,
                                    uint32_t *words, uint32_t n)
{
    const __m512i low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    __m512i w01 = pairs(s.v[0], s.v[1]), w23 = pairs(s.v[2], s.v[3]);
    n = append(_mm512_permutex2var_epi64(w01, low, w23), first, limit, index, words, n);
    return append(_mm512_permutex2var_epi64(w01, high, w23), first + 2 * CALLS, limit, index, words,
                  n);
}

uint32_t sfc_random_below_avx512(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b,
                                 uint32_t count, uint32_t limit, uint32_t *index, uint32_t *words)
{
    const struct keys keys = keys_of(seed, stream);
    const __m512i limits = _mm512_set1_epi32((int)limit);
    uint32_t n = 0;
    for (uint32_t first = 0; first < count; first += 8 * CALLS) { /* two registers of calls */
        struct state s = start(a, b + first / 4), t = start(a, b + first / 4 + CALLS);
        for (int r = 0; r < ROUNDS; r++) {
            s = round_of(s, keys.k[r]);
            t = round_of(t, keys.k[r]);
        }
        n = append_calls(s, first, limits, index, words, n);
        n = append_calls(t, first + 4 * CALLS, limits, index, words, n);
    }
    while (n > 0 && index[n - 1] >= count) { /* drawn beyond the end */
        n--;
    }
    return n;
}

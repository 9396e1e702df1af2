#include "kernels/rng/philox.h"

#include <string.h>

/* Wider vectors give the same bits (integers; doubles without contraction), only faster. The
 * sanitizers instrument ifunc resolvers, which run before their runtime is up. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&      \
    !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

/* Calls that are computed side by side. */
#define LANES 16

struct lanes {
    uint32_t v[4][LANES];
};

struct sfc_philox sfc_philox4x32_10(const uint32_t counter[4], const uint32_t key[2])
{
    const struct sfc_philox_key k = {{key[0], key[1]}};
    return sfc_hd_philox(k, (uint64_t)counter[1] << 32 | counter[0],
                         (uint64_t)counter[3] << 32 | counter[2]);
}

void sfc_stream_key(uint64_t seed, enum sfc_stream stream, uint32_t key[2])
{
    struct sfc_philox_key k = sfc_hd_stream_key(seed, stream);
    memcpy(key, k.v, sizeof k.v);
}

struct sfc_philox sfc_random(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b)
{
    return sfc_hd_random(seed, stream, a, b);
}

static inline __attribute__((always_inline)) void
philox_lanes(uint64_t a, uint64_t b, const uint32_t key[2], struct lanes *out)
{
    struct lanes c;
    for (uint32_t l = 0; l < LANES; l++) {
        uint64_t bl = b + l;
        c.v[0][l] = (uint32_t)a;
        c.v[1][l] = (uint32_t)(a >> 32);
        c.v[2][l] = (uint32_t)bl;
        c.v[3][l] = (uint32_t)(bl >> 32);
    }
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < SFC_PHILOX_ROUNDS; round++) {
        for (uint32_t l = 0; l < LANES; l++) {
            uint64_t p0 = (uint64_t)SFC_PHILOX_M0 * c.v[0][l];
            uint64_t p1 = (uint64_t)SFC_PHILOX_M1 * c.v[2][l];
            c.v[0][l] = (uint32_t)(p1 >> 32) ^ c.v[1][l] ^ k0;
            c.v[1][l] = (uint32_t)p1;
            c.v[2][l] = (uint32_t)(p0 >> 32) ^ c.v[3][l] ^ k1;
            c.v[3][l] = (uint32_t)p0;
        }
        k0 += SFC_PHILOX_W0;
        k1 += SFC_PHILOX_W1;
    }
    *out = c;
}

/* LANES calls from counter b, in the order of the calls: [4 * LANES]. */
WIDE static void word_lanes(uint64_t a, uint64_t b, const uint32_t key[2], uint32_t *out)
{
    struct lanes c;
    philox_lanes(a, b, key, &c);
    for (size_t l = 0; l < LANES; l++) {
        for (size_t w = 0; w < 4; w++) {
            out[4 * l + w] = c.v[w][l];
        }
    }
}

void sfc_random_words(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t b, size_t calls,
                      uint32_t *out)
{
    uint32_t key[2], rest[4 * LANES];
    sfc_stream_key(seed, stream, key);
    size_t i = 0;
    for (; calls - i >= LANES; i += LANES) {
        word_lanes(a, b + i, key, out + 4 * i);
    }
    if (i < calls) {
        word_lanes(a, b + i, key, rest);
        memcpy(out + 4 * i, rest, (calls - i) * 4 * sizeof *out);
    }
}

float sfc_uniform(uint32_t word)
{
    return sfc_hd_uniform(word);
}

void sfc_normal4(struct sfc_philox words, float out[4])
{
    sfc_hd_normal4(words, out);
}

/* LANES calls from counter b: [4 * LANES] normals. */
WIDE static void normal_lanes(uint64_t a, uint64_t b, const uint32_t key[2], float *out)
{
    struct lanes c;
    float n[4][LANES];
    philox_lanes(a, b, key, &c);
    for (size_t l = 0; l < LANES; l++) {
        sfc_hd_normal_pair(c.v[0][l], c.v[1][l], &n[0][l], &n[1][l]);
    }
    for (size_t l = 0; l < LANES; l++) {
        sfc_hd_normal_pair(c.v[2][l], c.v[3][l], &n[2][l], &n[3][l]);
    }
    for (size_t l = 0; l < LANES; l++) {
        for (size_t w = 0; w < 4; w++) {
            out[4 * l + w] = n[w][l];
        }
    }
}

void sfc_random_normals(uint64_t seed, enum sfc_stream stream, uint64_t a, uint64_t first,
                        size_t count, float *out)
{
    uint32_t key[2];
    sfc_stream_key(seed, stream, key);
    float chunk[4 * LANES];
    size_t done = 0;
    while (done < count) {
        uint64_t at = first + done;
        size_t skip = (size_t)(at % 4);
        size_t n = 4 * LANES - skip < count - done ? 4 * LANES - skip : count - done;
        normal_lanes(a, at / 4, key, chunk);
        memcpy(out + done, chunk + skip, n * sizeof *out);
        done += n;
    }
}

#include "proto/base/digest.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "proto/base/digest_level.h"

struct sfc_digest {
    XXH3_state_t *state;
};

_Static_assert(sizeof(XXH128_canonical_t) == SFC_DIGEST_SIZE, "canonical form of XXH3-128");

#ifdef __x86_64__
#define SFC_BEST(name, fallback)                                                                   \
    (__builtin_cpu_supports("avx512f") ? name##_avx512                                             \
     : __builtin_cpu_supports("avx2")  ? name##_avx2                                               \
                                       : fallback)
#else
#define SFC_BEST(name, fallback) fallback
#endif

static void library_update(void *state, const void *data, size_t size)
{
    XXH3_128bits_update(state, data, size);
}

uint64_t sfc_digest64(const void *data, size_t size)
{
    return SFC_BEST(sfc_digest64, XXH3_64bits)(data, size);
}

struct sfc_digest *sfc_digest_new(void)
{
    struct sfc_digest *digest = malloc(sizeof *digest);
    if (digest == NULL) {
        return NULL;
    }
    digest->state = XXH3_createState();
    if (digest->state == NULL) {
        free(digest);
        return NULL;
    }
    sfc_digest_reset(digest);
    return digest;
}

void sfc_digest_reset(struct sfc_digest *digest)
{
    XXH3_128bits_reset(digest->state);
}

void sfc_digest_copy(struct sfc_digest *to, const struct sfc_digest *from)
{
    XXH3_copyState(to->state, from->state);
}

void sfc_digest_update(struct sfc_digest *digest, const void *data, size_t size)
{
    if (size > 0) {
        SFC_BEST(sfc_digest_update, library_update)(digest->state, data, size);
    }
}

static void canonical(XXH128_hash_t hash, uint8_t out[SFC_DIGEST_SIZE])
{
    XXH128_canonical_t form;
    XXH128_canonicalFromHash(&form, hash);
    memcpy(out, form.digest, SFC_DIGEST_SIZE);
}

void sfc_digest_final(const struct sfc_digest *digest, uint8_t out[SFC_DIGEST_SIZE])
{
    canonical(XXH3_128bits_digest(digest->state), out);
}

uint64_t sfc_digest_final64(const struct sfc_digest *digest)
{
    return XXH3_64bits_digest(digest->state); /* one state serves both widths */
}

void sfc_digest_free(struct sfc_digest *digest)
{
    if (digest != NULL) {
        XXH3_freeState(digest->state);
        free(digest);
    }
}

void sfc_digest128(const void *data, size_t size, uint8_t out[SFC_DIGEST_SIZE])
{
    canonical(XXH3_128bits(data, size), out);
}

void sfc_hex(const uint8_t *bytes, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * size] = '\0';
}

#include "worker/data/glyph_pairs.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/rng/permutation.h"
#include "kernels/rng/philox.h"
#include "worker/data/file.h"
#include "worker/data/glyph_render.h"

#define RANKS 4 /* look-alikes per identity */

void sfc_glyph_feature_add(const uint8_t *pixels, float feature[SFC_GLYPH_FEATURE])
{
    const int side = SFC_GLYPH_SURVEY;
    for (int y = 0; y < 16; y++)
        for (int x = 0; x < 16; x++) {
            const uint8_t *p = pixels + 2 * y * side + 2 * x;
            feature[16 * y + x] += (float)(p[0] + p[1] + p[side] + p[side + 1]) / 4.0F;
        }
}

static float distance(const float *a, const float *b)
{
    float sum[8] = {0}; /* fixed order, eight lanes */
    for (int i = 0; i < SFC_GLYPH_FEATURE; i += 8)
        for (int k = 0; k < 8; k++) {
            float d = a[i + k] - b[i + k];
            sum[k] += d * d;
        }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

void sfc_glyph_nearest(const float *features, uint32_t identities, uint32_t ranks,
                       uint32_t *nearest)
{
    for (uint32_t i = 0; i < identities; i++) {
        uint32_t *row = nearest + (size_t)i * ranks;
        float best[RANKS];
        uint32_t found = 0;
        for (uint32_t k = 0; k < identities; k++) {
            if (k == i)
                continue;
            float d = distance(features + (size_t)i * SFC_GLYPH_FEATURE,
                               features + (size_t)k * SFC_GLYPH_FEATURE);
            uint32_t at = found < ranks ? found++ : ranks;
            for (; at > 0 && d < best[at - 1]; at--) {
                if (at == ranks)
                    continue;
                best[at] = best[at - 1];
                row[at] = row[at - 1];
            }
            if (at < ranks) {
                best[at] = d;
                row[at] = k;
            }
        }
    }
}

/* Random numbers of pair i. */
static struct sfc_philox draw(uint64_t seed, uint64_t what, uint64_t i)
{
    return sfc_random(seed, SFC_STREAM_SYNTHETIC, 0x70616972ULL << 32 | what, i); /* "pair" */
}

static uint32_t below(uint32_t word, uint32_t n)
{
    return (uint32_t)((uint64_t)word * n >> 32);
}

static uint32_t image_count(const struct sfc_pair_set *set, uint32_t identity)
{
    return set->first[identity + 1] - set->first[identity];
}

static void genuine(const struct sfc_pair_set *set, uint32_t identity, struct sfc_philox words,
                    struct sfc_bytes *pair)
{
    uint32_t n = image_count(set, identity), a = below(words.v[0], n);
    uint32_t b = n > 1 ? (a + 1 + below(words.v[1], n - 1)) % n : a;
    pair[0] = set->images[set->first[identity] + a];
    pair[1] = set->images[set->first[identity] + b];
}

static void impostor(const struct sfc_pair_set *set, uint32_t x, uint32_t y,
                     struct sfc_philox words, struct sfc_bytes *pair)
{
    uint32_t n = image_count(set, y);
    uint32_t a = set->first[x] + below(words.v[0], image_count(set, x));
    uint32_t b = set->first[y] + below(words.v[1], n);
    if (set->fonts[a] == set->fonts[b] && n > 1) /* the next face that drew y */
        b = set->first[y] + (b - set->first[y] + 1) % n;
    pair[0] = set->images[a];
    pair[1] = set->images[b];
}

static int write_file(const char *dir, const char *name, const struct sfc_bytes *images,
                      const bool *same, uint32_t pairs, struct sfc_error *err)
{
    char *path = sfc_path_join(dir, name);
    if (path == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = sfc_pairs_write(path, images, same, pairs, err);
    free(path);
    return rc;
}

int sfc_glyph_pairs_write(const char *dir, const struct sfc_pair_set *set, uint32_t pairs,
                          uint64_t seed, struct sfc_error *err)
{
    uint32_t n = set->identities, ranks = n - 1 < RANKS ? n - 1 : RANKS;
    struct sfc_bytes *easy = malloc(2 * (size_t)pairs * sizeof *easy);
    struct sfc_bytes *hard = malloc(2 * (size_t)pairs * sizeof *hard);
    bool *same = malloc(pairs * sizeof *same);
    uint32_t *nearest = malloc((size_t)n * RANKS * sizeof *nearest);
    int rc = SFC_OK;
    if (easy == NULL || hard == NULL || same == NULL || nearest == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for %u pairs", pairs);
        goto out;
    }
    sfc_glyph_nearest(set->features, n, ranks, nearest);
    for (uint32_t i = 0; i < pairs; i++) {
        uint32_t turn = i / 2, x = (uint32_t)sfc_sample_at(seed, n, turn);
        struct sfc_philox words = draw(seed, i % 2, turn);
        same[i] = i % 2 == 0;
        if (same[i]) {
            genuine(set, x, words, easy + 2 * (size_t)i);
            genuine(set, x, words, hard + 2 * (size_t)i);
            continue;
        }
        uint32_t other = (x + 1 + below(words.v[2], n - 1)) % n;
        impostor(set, x, other, words, easy + 2 * (size_t)i);
        impostor(set, x, nearest[(size_t)x * ranks + turn / n % ranks], words,
                 hard + 2 * (size_t)i);
    }
    rc = write_file(dir, "pairs_easy.bin", easy, same, pairs, err);
    if (rc == SFC_OK)
        rc = write_file(dir, "pairs_hard.bin", hard, same, pairs, err);
out:
    free(easy);
    free(hard);
    free(same);
    free(nearest);
    return rc;
}

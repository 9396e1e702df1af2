/* Verification pairs of held-out glyph images: easy ones with random impostors, hard ones whose
 * impostors are pixel-nearest look-alikes. Both files share their genuine pairs, so that only the
 * impostors differ. */
#ifndef SFC_WORKER_DATA_GLYPH_PAIRS_H
#define SFC_WORKER_DATA_GLYPH_PAIRS_H

#include <stdint.h>

#include "worker/data/pickle_bin.h"

#define SFC_GLYPH_FEATURE 256 /* 16 x 16 */

struct sfc_pair_set {
    const struct sfc_bytes *images; /* JPEG, grouped by identity */
    const uint32_t *fonts;          /* [images]: which face drew it */
    const uint32_t *first;          /* [identities + 1]: images of identity i are first[i].. */
    uint32_t identities;            /* >= 2, each with at least one image */
    const float *features;          /* [identities][SFC_GLYPH_FEATURE] */
};

/* Writes DIR/pairs_easy.bin and DIR/pairs_hard.bin: `pairs` (even) pairs, genuine and impostor in
 * turn. A genuine pair is two images of one identity by different faces; an impostor pair is by
 * different faces too where both have more than one. */
int sfc_glyph_pairs_write(const char *dir, const struct sfc_pair_set *set, uint32_t pairs,
                          uint64_t seed, struct sfc_error *err);

/* The survey picture of a glyph added to an identity's feature: 2 x 2 means. */
void sfc_glyph_feature_add(const uint8_t *pixels, float feature[SFC_GLYPH_FEATURE]);

/* nearest[i * ranks + r]: the identity whose feature is r-th nearest to that of i (never i itself).
 * ranks < identities, at most 4. */
void sfc_glyph_nearest(const float *features, uint32_t identities, uint32_t ranks,
                       uint32_t *nearest);

#endif

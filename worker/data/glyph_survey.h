/* The survey of one side (training or held-out faces): draws characters small, leaves out what is
 * no picture of its own, and keeps the first characters that have enough pictures. */
#ifndef SFC_WORKER_DATA_GLYPH_SURVEY_H
#define SFC_WORKER_DATA_GLYPH_SURVEY_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/data/glyph_fonts.h"

struct sfc_survey {
    struct sfc_font *fonts; /* of this side; counters are filled */
    uint32_t font_count;    /* <= 64 */
    uint32_t wanted;        /* identities */
    uint32_t min_images;
    uint32_t threads;
    sfc_progress_fn progress;
    void *progress_arg;
    const char *phase;
    /* results */
    uint32_t *kept;       /* characters, in the order of candidates */
    uint64_t *kept_faces; /* bit f: face f has a picture of its own */
    uint32_t kept_count;
    uint64_t surveyed; /* characters drawn */
};

/* candidates: characters in the order in which they are taken; taken[i] true: not available. Marks
 * the kept ones. Deterministic: threads don't matter. */
int sfc_survey_run(struct sfc_survey *survey, const uint32_t *candidates, bool *taken,
                   uint32_t count, struct sfc_error *err);
void sfc_survey_free(struct sfc_survey *survey);

#endif

/* `shardfc data glyphs`: a real data set with many classes that any Debian machine can make.
 * Identity = Unicode character (CJK unified ideographs), sample = how one installed font face draws
 * it.
 *
 * Out: DIR/train.rec + .idx, DIR/holdout.rec + .idx (labelled; characters that are not in train,
 * drawn by font families that are not in train), DIR/pairs_easy.bin, DIR/pairs_hard.bin (pairs of
 * held-out images; in the hard ones the impostors are pixel-nearest look-alikes), DIR/meta.json.
 * The bytes are a function of (options, font files). */
#ifndef SFC_WORKER_DATA_GLYPHS_H
#define SFC_WORKER_DATA_GLYPHS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/status.h"
#include "worker/data/progress.h"

struct sfc_glyph_options {
    const char *out;
    const char *fonts;    /* searched recursively; NULL: /usr/share/fonts */
    uint32_t classes;     /* training identities wanted; 0: 10,000 */
    uint32_t holdout;     /* held-out identities wanted; 0: 1,500 */
    uint32_t faces;       /* at most this many training faces, in the order of the table; 0: all */
    uint32_t size;        /* 32 (0) or 112: width and height */
    uint32_t min_faces;   /* distinct images a training identity needs; 0: 8 */
    uint32_t min_holdout; /* distinct images a held-out identity needs; 0: 3 */
    uint32_t pairs;       /* in each .bin file, half of them of one identity; 0: 6,000 */
    uint32_t threads;     /* 0: 2 */
    uint64_t seed;
    sfc_progress_fn progress; /* NULL: silent */
    void *progress_arg;
};

struct sfc_glyph_face {
    char family[64]; /* as the font file says */
    char style[32];
    char group[24]; /* families of one descent share it and stay on one side */
    char file[256];
    uint32_t index; /* face in a collection */
    bool holdout;
    uint64_t surveyed;               /* characters drawn */
    uint64_t blank, tofu, duplicate; /* of them left out, and why */
    uint64_t used;                   /* images written */
};

struct sfc_glyph_report {
    struct sfc_glyph_face *faces;
    uint32_t face_count;
    uint64_t identities, samples;
    uint64_t holdout_identities, holdout_samples;
    uint64_t pairs;                    /* in each file */
    uint64_t candidates;               /* characters surveyed */
    uint32_t min_samples, max_samples; /* per training identity */
    double seconds;
    char digest[33]; /* of the training set */
};

/* SFC_ENOTFOUND: no known font, or fewer identities than 2 (the message names the packages that
 * deploy/font-packages lists). Fewer identities than wanted is not an error: the report says so. */
int sfc_data_glyphs(const struct sfc_glyph_options *options, struct sfc_glyph_report *report,
                    struct sfc_error *err);
void sfc_glyph_report_free(struct sfc_glyph_report *report); /* zeroed is fine */
/* The table of faces and the identities kept. */
void sfc_glyph_report_text(const struct sfc_glyph_report *report, FILE *file);
/* One JSON object, malloc'ed text; NULL when memory is short. */
char *sfc_glyph_report_json(const struct sfc_glyph_report *report);

#endif

#include "worker/data/glyphs.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/rng/permutation.h"
#include "worker/data/dataset.h"
#include "worker/data/file.h"
#include "worker/data/glyph_fonts.h"
#include "worker/data/glyph_pairs.h"
#include "worker/data/glyph_render.h"
#include "worker/data/glyph_survey.h"
#include "worker/data/jpeg.h"
#include "worker/data/ordered.h"
#include "worker/data/set_writer.h"

#define QUALITY     95
#define BLOCK       16U /* identities per unit of work */
#define FACES_LIMIT 64U /* bits of a mask */

/* Unified ideographs, extension A, Hangul syllables. Compatibility ideographs are other code points
 * of the same glyphs and stay out. The later ranges are used when the first can't give enough. */
static const struct range {
    uint32_t first, last;
} ranges[] = {{0x4e00, 0x9fff}, {0x3400, 0x4dbf}, {0xac00, 0xd7a3}};

/* JPEGs of one block of identities. */
struct blob {
    uint8_t *data;
    size_t used, capacity;
    struct item {
        size_t offset, length;
        uint32_t identity, font;
    } * items;
    uint32_t count;
};

/* One side of the job: survey, then rendering into NAME.rec. */
struct side {
    struct sfc_survey survey;
    const char *name;
    struct sfc_renderer **renderers; /* [threads] */
    struct sfc_jpeg **jpegs;
    uint8_t **pixels;
    struct blob *blobs; /* [slots] */
    uint32_t slots, size;
    struct sfc_set_writer *writer;
    struct sfc_meta_file file;
    struct sfc_progress_clock clock;
    uint64_t samples;
    bool keep;           /* also collect the images for pairs */
    struct blob kept;    /* all of them, when keep */
    uint32_t kept_space; /* items */
};

static int blob_reserve(struct blob *blob, size_t more, struct sfc_error *err)
{
    if (blob->used + more <= blob->capacity)
        return SFC_OK;
    size_t capacity = 2 * (blob->used + more);
    uint8_t *data = realloc(blob->data, capacity);
    if (data == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu bytes of images", capacity);
    blob->data = data;
    blob->capacity = capacity;
    return SFC_OK;
}

static int blob_add(struct blob *blob, const uint8_t *jpeg, size_t length, uint32_t identity,
                    uint32_t font, struct sfc_error *err)
{
    int rc = blob_reserve(blob, length, err);
    if (rc != SFC_OK)
        return rc;
    memcpy(blob->data + blob->used, jpeg, length);
    blob->items[blob->count++] = (struct item){blob->used, length, identity, font};
    blob->used += length;
    return SFC_OK;
}

static int render_block(void *arg, uint32_t thread, uint64_t block, uint32_t slot,
                        struct sfc_error *err)
{
    struct side *side = arg;
    const struct sfc_survey *s = &side->survey;
    struct blob *blob = &side->blobs[slot];
    uint32_t first = (uint32_t)block * BLOCK;
    uint32_t end = first + BLOCK < s->kept_count ? first + BLOCK : s->kept_count;
    uint8_t *pixels = side->pixels[thread];
    int rc = SFC_OK;
    blob->used = blob->count = 0;
    for (uint32_t i = first; i < end; i++)
        for (uint32_t f = 0; f < s->font_count && rc == SFC_OK; f++) {
            const uint8_t *jpeg = NULL;
            size_t length = 0;
            if ((s->kept_faces[i] >> f & 1) == 0)
                continue;
            if (!sfc_renderer_draw(side->renderers[thread], f, s->kept[i], pixels))
                rc = sfc_fail(err, SFC_EINTERNAL, "%s draws U+%04X no more", s->fonts[f].path,
                              s->kept[i]);
            if (rc == SFC_OK)
                rc = sfc_jpeg_encode_grey(side->jpegs[thread], pixels, side->size, side->size,
                                          QUALITY, &jpeg, &length, err);
            if (rc == SFC_OK)
                rc = blob_add(blob, jpeg, length, i, f, err);
        }
    return rc;
}

static int keep_item(struct side *side, const struct blob *blob, const struct item *item,
                     struct sfc_error *err)
{
    struct blob *kept = &side->kept;
    if (kept->count == side->kept_space) {
        uint32_t space = side->kept_space * 2 + 1024;
        struct item *items = realloc(kept->items, space * sizeof *items);
        if (items == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for %u held-out images", space);
        kept->items = items;
        side->kept_space = space;
    }
    return blob_add(kept, blob->data + item->offset, item->length, item->identity, item->font, err);
}

static int write_block(void *arg, uint64_t block, uint32_t slot, struct sfc_error *err)
{
    struct side *side = arg;
    struct sfc_survey *s = &side->survey;
    const struct blob *blob = &side->blobs[slot];
    int rc = SFC_OK;
    for (uint32_t i = 0; i < blob->count && rc == SFC_OK; i++) {
        const struct item *item = &blob->items[i];
        rc = sfc_set_writer_add(side->writer, item->identity, blob->data + item->offset,
                                item->length, err);
        if (rc == SFC_OK && side->keep)
            rc = keep_item(side, blob, item, err);
        s->fonts[item->font].face.used++;
        side->samples++;
    }
    if (rc != SFC_OK)
        return rc;
    uint64_t done = (block + 1) * BLOCK < s->kept_count ? (block + 1) * BLOCK : s->kept_count;
    return sfc_progress_tell(&side->clock, s->progress, s->progress_arg, side->name, "identities",
                             done, s->kept_count, err);
}

static int side_prepare(struct side *side, struct sfc_error *err)
{
    const struct sfc_survey *s = &side->survey;
    side->slots = 4 * s->threads;
    side->renderers = calloc(s->threads, sizeof(void *));
    side->jpegs = calloc(s->threads, sizeof(void *));
    side->pixels = calloc(s->threads, sizeof(void *));
    side->blobs = calloc(side->slots, sizeof *side->blobs);
    bool ok = side->renderers != NULL && side->jpegs != NULL && side->pixels != NULL &&
              side->blobs != NULL;
    for (uint32_t i = 0; i < side->slots && ok; i++) {
        side->blobs[i].items = malloc((size_t)BLOCK * s->font_count * sizeof *side->blobs[i].items);
        ok = side->blobs[i].items != NULL;
    }
    for (uint32_t t = 0; t < s->threads && ok; t++) {
        side->pixels[t] = malloc((size_t)side->size * side->size);
        ok = side->pixels[t] != NULL;
    }
    if (!ok)
        return sfc_fail(err, SFC_ENOMEM, "no memory to draw %u identities", s->kept_count);
    int rc = SFC_OK;
    for (uint32_t t = 0; t < s->threads && rc == SFC_OK; t++) {
        rc = sfc_renderer_new(s->fonts, s->font_count, side->size, &side->renderers[t], err);
        if (rc == SFC_OK)
            rc = sfc_jpeg_new(&side->jpegs[t], err);
    }
    return rc;
}

static void side_free(struct side *side)
{
    const struct sfc_survey *s = &side->survey;
    for (uint32_t t = 0; t < s->threads; t++) {
        if (side->renderers != NULL)
            sfc_renderer_free(side->renderers[t]);
        if (side->jpegs != NULL)
            sfc_jpeg_free(side->jpegs[t]);
        if (side->pixels != NULL)
            free(side->pixels[t]);
    }
    for (uint32_t i = 0; i < side->slots && side->blobs != NULL; i++) {
        free(side->blobs[i].data);
        free(side->blobs[i].items);
    }
    free(side->renderers);
    free(side->jpegs);
    free(side->pixels);
    free(side->blobs);
    free(side->kept.data);
    free(side->kept.items);
    sfc_set_writer_free(side->writer);
    sfc_survey_free(&side->survey);
}

/* NAME.txt: which character each label is. */
static int write_names(const struct side *side, const char *dir, struct sfc_error *err)
{
    char *path = NULL;
    struct sfc_out_file file = {0};
    if (asprintf(&path, "%s/%s.txt", dir, side->name) < 0)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = sfc_out_file_open(&file, path, err);
    for (uint32_t i = 0; i < side->survey.kept_count && rc == SFC_OK; i++)
        if (fprintf(file.stream, "%u\tU+%04X\n", i, side->survey.kept[i]) < 0)
            rc = sfc_fail_errno(err, "write %s", path);
    if (rc == SFC_OK)
        rc = sfc_out_file_commit(&file, err);
    sfc_out_file_abort(&file);
    free(path);
    return rc;
}

static int side_write(struct side *side, const char *dir, struct sfc_error *err)
{
    const struct sfc_survey *s = &side->survey;
    int rc = side_prepare(side, err);
    if (rc == SFC_OK)
        rc = sfc_set_writer_new(dir, side->name, &side->writer, err);
    if (rc != SFC_OK)
        return rc;
    struct sfc_ordered work = {.blocks = (s->kept_count + BLOCK - 1) / BLOCK,
                               .threads = s->threads,
                               .slots = side->slots,
                               .arg = side,
                               .make = render_block,
                               .consume = write_block};
    sfc_progress_begin(&side->clock);
    rc = sfc_ordered_run(&work, err);
    if (rc == SFC_OK)
        rc = sfc_set_writer_finish(side->writer, &side->file, err);
    if (rc == SFC_OK)
        rc = write_names(side, dir, err);
    return rc;
}

/* Mean pictures of the held-out identities, drawn small. */
static int make_features(const struct side *side, float *features, struct sfc_error *err)
{
    const struct sfc_survey *s = &side->survey;
    struct sfc_renderer *renderer = NULL;
    uint8_t pixels[SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY];
    int rc = sfc_renderer_new(s->fonts, s->font_count, SFC_GLYPH_SURVEY, &renderer, err);
    for (uint32_t i = 0; i < s->kept_count && rc == SFC_OK; i++) {
        float *feature = features + (size_t)i * SFC_GLYPH_FEATURE;
        for (uint32_t f = 0; f < s->font_count; f++)
            if ((s->kept_faces[i] >> f & 1) != 0 &&
                sfc_renderer_draw(renderer, f, s->kept[i], pixels))
                sfc_glyph_feature_add(pixels, feature);
        float faces = (float)__builtin_popcountll(s->kept_faces[i]);
        for (uint32_t k = 0; k < SFC_GLYPH_FEATURE; k++)
            feature[k] /= faces;
    }
    sfc_renderer_free(renderer);
    return rc;
}

static int write_pairs(const struct side *side, const char *dir, uint32_t pairs, uint64_t seed,
                       struct sfc_error *err)
{
    uint32_t n = side->survey.kept_count, images = side->kept.count;
    struct sfc_bytes *bytes = malloc(images * sizeof *bytes);
    uint32_t *fonts = malloc(images * sizeof *fonts);
    uint32_t *first = calloc((size_t)n + 1, sizeof *first);
    float *features = calloc((size_t)n * SFC_GLYPH_FEATURE, sizeof *features);
    int rc = SFC_OK;
    if (bytes == NULL || fonts == NULL || first == NULL || features == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for the pairs of %u identities", n);
        goto out;
    }
    for (uint32_t i = 0; i < images; i++) {
        const struct item *item = &side->kept.items[i];
        bytes[i] = (struct sfc_bytes){side->kept.data + item->offset, item->length};
        fonts[i] = item->font;
        first[item->identity + 1] = i + 1;
    }
    rc = make_features(side, features, err);
    if (rc != SFC_OK)
        goto out;
    struct sfc_pair_set set = {bytes, fonts, first, n, features};
    rc = sfc_glyph_pairs_write(dir, &set, pairs, seed, err);
out:
    free(bytes);
    free(fonts);
    free(first);
    free(features);
    return rc;
}

struct job {
    struct sfc_glyph_options options; /* defaults filled in */
    struct sfc_font *fonts;           /* training faces first */
    uint32_t font_count, training;    /* of them training */
    uint32_t *candidates;
    bool *taken;
    uint32_t candidate_count;
    struct side train, holdout;
};

static int fill_defaults(struct sfc_glyph_options *o, struct sfc_error *err)
{
    o->fonts = o->fonts != NULL ? o->fonts : "/usr/share/fonts";
    o->classes = o->classes > 0 ? o->classes : 10000;
    o->holdout = o->holdout > 0 ? o->holdout : 1500;
    o->size = o->size > 0 ? o->size : 32;
    o->min_faces = o->min_faces > 0 ? o->min_faces : 8;
    o->min_holdout = o->min_holdout > 0 ? o->min_holdout : 3;
    o->pairs = o->pairs > 0 ? o->pairs : 6000;
    o->threads = o->threads > 0 ? o->threads : 2;
    if (o->out == NULL || o->out[0] == 0)
        return sfc_fail(err, SFC_EINVAL, "glyphs: no output folder");
    if (o->size != 32 && o->size != 112)
        return sfc_fail(err, SFC_EINVAL, "glyphs: size %u, 32 and 112 are made", o->size);
    if (o->threads > 256 || o->pairs % 20 != 0 || o->pairs > 10000000)
        return sfc_fail(err, SFC_EINVAL,
                        "glyphs: %u threads (at most 256), %u pairs (a multiple of 20)", o->threads,
                        o->pairs);
    if (o->holdout < 2 || o->classes < 2)
        return sfc_fail(err, SFC_EINVAL, "glyphs: at least 2 identities on each side");
    return SFC_OK;
}

/* Training faces to the front, at most options.faces of them, the held-out ones behind. */
static int sort_fonts(struct job *job, struct sfc_error *err)
{
    struct sfc_font *sorted = calloc(job->font_count, sizeof *sorted);
    if (sorted == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %u faces", job->font_count);
    uint32_t limit = job->options.faces > 0 ? job->options.faces : FACES_LIMIT, n = 0;
    for (uint32_t i = 0; i < job->font_count; i++)
        if (!job->fonts[i].face.holdout && n < limit) {
            sorted[n++] = job->fonts[i];
            job->fonts[i].path = NULL;
        }
    job->training = n;
    for (uint32_t i = 0; i < job->font_count; i++)
        if (job->fonts[i].face.holdout && n - job->training < FACES_LIMIT) {
            sorted[n++] = job->fonts[i];
            job->fonts[i].path = NULL;
        }
    sfc_fonts_free(job->fonts, job->font_count);
    job->fonts = sorted;
    job->font_count = n;
    return SFC_OK;
}

/* All characters of the ranges that are needed, range after range, each in a seeded order. */
static int make_candidates(struct job *job, struct sfc_error *err)
{
    uint32_t wanted = job->options.classes + job->options.holdout, count = 0, used = 0;
    for (; used < sizeof ranges / sizeof ranges[0]; used++) {
        if (used > 0 && wanted <= 18000)
            break; /* the ideographs are enough */
        count += ranges[used].last - ranges[used].first + 1;
    }
    job->candidates = malloc(count * sizeof *job->candidates);
    job->taken = calloc(count, sizeof *job->taken);
    if (job->candidates == NULL || job->taken == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %u characters", count);
    for (uint32_t r = 0; r < used; r++) {
        uint32_t n = ranges[r].last - ranges[r].first + 1;
        for (uint32_t i = 0; i < n; i++)
            job->candidates[job->candidate_count++] =
                ranges[r].first + (uint32_t)sfc_sample_at(job->options.seed, n, i);
    }
    return SFC_OK;
}

static int run_side(struct job *job, struct side *side, struct sfc_error *err)
{
    const struct sfc_glyph_options *o = &job->options;
    bool holdout = side == &job->holdout;
    struct sfc_survey *s = &side->survey;
    s->fonts = job->fonts + (holdout ? job->training : 0);
    s->font_count = holdout ? job->font_count - job->training : job->training;
    s->wanted = holdout ? o->holdout : o->classes;
    s->min_images = holdout ? o->min_holdout : o->min_faces;
    s->threads = o->threads;
    s->progress = o->progress;
    s->progress_arg = o->progress_arg;
    s->phase = holdout ? "survey held-out" : "survey";
    side->name = holdout ? "holdout" : "train";
    side->size = o->size;
    side->keep = holdout;
    int rc = sfc_survey_run(s, job->candidates, job->taken, job->candidate_count, err);
    if (rc == SFC_OK && s->kept_count < 2)
        rc = sfc_fail(err, SFC_ENOTFOUND,
                      "glyphs: %u %s identities with at least %u distinct pictures in %u faces: "
                      "install the packages that deploy/font-packages lists",
                      s->kept_count, side->name, s->min_images, s->font_count);
    return rc == SFC_OK ? side_write(side, o->out, err) : rc;
}

static int write_meta(const struct job *job, struct sfc_error *err)
{
    const struct sfc_glyph_options *o = &job->options;
    struct sfc_meta meta = {.width = o->size,
                            .height = o->size,
                            .channels = o->size == 32 ? 1 : 3, /* the backbones' inputs */
                            .flip = false,
                            .origin = "glyphs",
                            .seed = o->seed,
                            .files = {job->train.file, job->holdout.file},
                            .file_count = 2};
    char *path = sfc_path_join(o->out, "meta.json");
    if (path == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = sfc_meta_write(path, &meta, err);
    free(path);
    return rc;
}

static int fill_report(const struct job *job, struct sfc_glyph_report *out, struct sfc_error *err)
{
    struct sfc_glyph_report report = {0};
    struct sfc_dataset *set = NULL;
    const struct sfc_survey *s = &job->train.survey;
    int rc = sfc_dataset_open(job->options.out, &set, err); /* what was written can be read */
    if (rc != SFC_OK)
        return rc;
    strcpy(report.digest, sfc_dataset_info(set)->digest);
    sfc_dataset_close(set);
    report.faces = calloc(job->font_count, sizeof *report.faces);
    if (report.faces == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the report");
    report.face_count = job->font_count;
    for (uint32_t i = 0; i < job->font_count; i++)
        report.faces[i] = job->fonts[i].face;
    report.identities = s->kept_count;
    report.samples = job->train.samples;
    report.holdout_identities = job->holdout.survey.kept_count;
    report.holdout_samples = job->holdout.samples;
    report.candidates = s->surveyed + job->holdout.survey.surveyed;
    report.pairs = job->options.pairs;
    report.min_samples = UINT32_MAX;
    for (uint32_t i = 0; i < s->kept_count; i++) {
        uint32_t faces = (uint32_t)__builtin_popcountll(s->kept_faces[i]);
        report.min_samples = faces < report.min_samples ? faces : report.min_samples;
        report.max_samples = faces > report.max_samples ? faces : report.max_samples;
    }
    *out = report;
    return SFC_OK;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int sfc_data_glyphs(const struct sfc_glyph_options *options, struct sfc_glyph_report *report,
                    struct sfc_error *err)
{
    struct job job = {.options = *options};
    double start = now();
    int rc = fill_defaults(&job.options, err);
    if (rc == SFC_OK)
        rc = sfc_folder_create(job.options.out, err);
    if (rc == SFC_OK)
        rc = sfc_fonts_find(job.options.fonts, &job.fonts, &job.font_count, err);
    if (rc == SFC_OK)
        rc = sort_fonts(&job, err);
    if (rc == SFC_OK)
        rc = make_candidates(&job, err);
    if (rc == SFC_OK)
        rc = run_side(&job, &job.holdout, err);
    if (rc == SFC_OK)
        rc = write_pairs(&job.holdout, job.options.out, job.options.pairs, job.options.seed, err);
    if (rc == SFC_OK)
        rc = run_side(&job, &job.train, err);
    if (rc == SFC_OK)
        rc = write_meta(&job, err);
    if (rc == SFC_OK)
        rc = fill_report(&job, report, err);
    if (rc == SFC_OK)
        report->seconds = now() - start;
    side_free(&job.train);
    side_free(&job.holdout);
    sfc_fonts_free(job.fonts, job.font_count);
    free(job.candidates);
    free(job.taken);
    return rc;
}

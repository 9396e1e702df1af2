#include "worker/data/glyph_survey.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "worker/data/glyph_render.h"
#include "worker/data/ordered.h"

#define BLOCK      32U /* characters per unit of work */
#define TOFU_LIMIT 3U  /* one picture for more characters than this stands for none of them */
#define HASH_NONE  0U  /* the face has no such glyph */
#define HASH_BLANK 1U

struct pool {
    struct sfc_survey *survey;
    struct sfc_renderer **renderers; /* [threads] */
    uint32_t *characters, *places;   /* places: index in candidates */
    uint64_t *hashes;                /* [characters][fonts] */
    uint64_t *faces;                 /* [characters]: usable faces, after judge */
    uint64_t *tofu;                  /* scratch of judge: one face's hashes */
    uint32_t count, from;            /* from: first one of this round */
    struct sfc_progress_clock clock;
};

static uint64_t hash_of(const uint8_t *pixels)
{
    if (sfc_glyph_is_blank(pixels))
        return HASH_BLANK;
    return XXH3_64bits(pixels, (size_t)SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY) | 2U;
}

static int draw_block(void *arg, uint32_t thread, uint64_t block, uint32_t slot,
                      struct sfc_error *err)
{
    (void)slot;
    (void)err;
    struct pool *pool = arg;
    uint32_t fonts = pool->survey->font_count;
    uint8_t pixels[SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY];
    uint32_t first = pool->from + (uint32_t)block * BLOCK;
    uint32_t end = first + BLOCK < pool->count ? first + BLOCK : pool->count;
    for (uint32_t i = first; i < end; i++)
        for (uint32_t f = 0; f < fonts; f++) {
            bool drawn = sfc_renderer_draw(pool->renderers[thread], f, pool->characters[i], pixels);
            pool->hashes[(size_t)i * fonts + f] = drawn ? hash_of(pixels) : HASH_NONE;
        }
    return SFC_OK;
}

static int tell_block(void *arg, uint64_t block, uint32_t slot, struct sfc_error *err)
{
    (void)slot;
    struct pool *pool = arg;
    const struct sfc_survey *s = pool->survey;
    uint64_t total = pool->count - pool->from, done = (block + 1) * BLOCK;
    done = done < total ? done : total;
    return sfc_progress_tell(&pool->clock, s->progress, s->progress_arg, s->phase, "glyphs",
                             done * s->font_count, total * s->font_count, err);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The face's picture of missing glyphs. */
static uint64_t missing_hash(struct pool *pool, uint32_t font)
{
    uint8_t pixels[SFC_GLYPH_SURVEY * SFC_GLYPH_SURVEY];
    return sfc_renderer_draw(pool->renderers[0], font, 0, pixels) ? hash_of(pixels) : HASH_NONE;
}

/* Marks the pictures of one face that stand for many characters, in a sorted list. */
static void judge_face(struct pool *pool, uint32_t f)
{
    struct sfc_survey *s = pool->survey;
    struct sfc_glyph_face *face = &s->fonts[f].face;
    uint64_t missing = missing_hash(pool, f), *tofu = pool->tofu;
    uint32_t n = 0, list = 0;
    face->surveyed = face->blank = face->tofu = 0;
    for (uint32_t i = 0; i < pool->count; i++) {
        uint64_t hash = pool->hashes[(size_t)i * s->font_count + f];
        face->surveyed += hash != HASH_NONE;
        face->blank += hash == HASH_BLANK;
        if (hash > HASH_BLANK)
            tofu[n++] = hash;
    }
    qsort(tofu, n, sizeof *tofu, by_value);
    for (uint32_t i = 0, run = 1; i < n; i++, run++) {
        if (i + 1 < n && tofu[i + 1] == tofu[i])
            continue;
        if (run > TOFU_LIMIT || tofu[i] == missing)
            tofu[list++] = tofu[i];
        run = 0;
    }
    for (uint32_t i = 0; i < pool->count; i++) {
        uint64_t hash = pool->hashes[(size_t)i * s->font_count + f];
        if (hash <= HASH_BLANK)
            continue;
        if (list > 0 && bsearch(&hash, tofu, list, sizeof hash, by_value) != NULL)
            face->tofu++;
        else
            pool->faces[i] |= 1ULL << f;
    }
}

/* A picture that an earlier face drew already adds nothing. */
static void drop_duplicates(struct pool *pool, uint32_t i)
{
    struct sfc_survey *s = pool->survey;
    const uint64_t *hashes = pool->hashes + (size_t)i * s->font_count;
    for (uint32_t f = 1; f < s->font_count; f++)
        for (uint32_t e = 0; e < f && (pool->faces[i] >> f & 1) != 0; e++)
            if ((pool->faces[i] >> e & 1) != 0 && hashes[e] == hashes[f]) {
                pool->faces[i] &= ~(1ULL << f);
                s->fonts[f].face.duplicate++;
            }
}

/* Judges the whole pool anew and takes the first characters with enough pictures. */
static void judge(struct pool *pool)
{
    struct sfc_survey *s = pool->survey;
    memset(pool->faces, 0, pool->count * sizeof *pool->faces);
    for (uint32_t f = 0; f < s->font_count; f++) {
        s->fonts[f].face.duplicate = 0;
        judge_face(pool, f);
    }
    s->kept_count = 0;
    for (uint32_t i = 0; i < pool->count; i++) {
        drop_duplicates(pool, i);
        if (s->kept_count == s->wanted ||
            (uint32_t)__builtin_popcountll(pool->faces[i]) < s->min_images)
            continue;
        s->kept[s->kept_count] = i; /* becomes the character at the end */
        s->kept_faces[s->kept_count++] = pool->faces[i];
    }
}

/* Enough of this side's faces name the character. */
static bool is_covered(struct pool *pool, uint32_t character)
{
    struct sfc_survey *s = pool->survey;
    uint32_t has = 0;
    for (uint32_t f = 0; f < s->font_count && has < s->min_images; f++)
        has += sfc_renderer_has(pool->renderers[0], f, character);
    return has >= s->min_images;
}

static int survey_round(struct pool *pool, const uint32_t *candidates, const bool *taken,
                        uint32_t count, uint32_t *next, struct sfc_error *err)
{
    struct sfc_survey *s = pool->survey;
    uint32_t missing = s->wanted - s->kept_count;
    uint32_t target = pool->count + missing + missing / 20 + BLOCK;
    pool->from = pool->count;
    for (; *next < count && pool->count < target; (*next)++) {
        if (taken[*next] || !is_covered(pool, candidates[*next]))
            continue;
        pool->characters[pool->count] = candidates[*next];
        pool->places[pool->count++] = *next;
    }
    struct sfc_ordered work = {.blocks = (pool->count - pool->from + BLOCK - 1) / BLOCK,
                               .threads = s->threads,
                               .slots = 4 * s->threads,
                               .arg = pool,
                               .make = draw_block,
                               .consume = tell_block};
    sfc_progress_begin(&pool->clock);
    int rc = sfc_ordered_run(&work, err);
    if (rc == SFC_OK)
        judge(pool);
    return rc;
}

static int pool_init(struct pool *pool, uint32_t count, struct sfc_error *err)
{
    struct sfc_survey *s = pool->survey;
    size_t pictures = (size_t)count * s->font_count;
    pool->renderers = calloc(s->threads, sizeof *pool->renderers);
    pool->characters = malloc(count * sizeof *pool->characters);
    pool->places = malloc(count * sizeof *pool->places);
    pool->hashes = malloc(pictures * sizeof *pool->hashes);
    pool->faces = malloc(count * sizeof *pool->faces);
    pool->tofu = malloc(count * sizeof *pool->tofu);
    s->kept = malloc(count * sizeof *s->kept);
    s->kept_faces = malloc(count * sizeof *s->kept_faces);
    if (pool->renderers == NULL || pool->characters == NULL || pool->places == NULL ||
        pool->hashes == NULL || pool->faces == NULL || pool->tofu == NULL || s->kept == NULL ||
        s->kept_faces == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory to survey %u characters", count);
    int rc = SFC_OK;
    for (uint32_t t = 0; t < s->threads && rc == SFC_OK; t++)
        rc = sfc_renderer_new(s->fonts, s->font_count, SFC_GLYPH_SURVEY, &pool->renderers[t], err);
    return rc;
}

static void pool_free(struct pool *pool)
{
    for (uint32_t t = 0; t < pool->survey->threads && pool->renderers != NULL; t++)
        sfc_renderer_free(pool->renderers[t]);
    free(pool->renderers);
    free(pool->characters);
    free(pool->places);
    free(pool->hashes);
    free(pool->faces);
    free(pool->tofu);
}

int sfc_survey_run(struct sfc_survey *s, const uint32_t *candidates, bool *taken, uint32_t count,
                   struct sfc_error *err)
{
    struct pool pool = {.survey = s};
    uint32_t next = 0;
    int rc = pool_init(&pool, count, err);
    while (rc == SFC_OK && s->kept_count < s->wanted && next < count)
        rc = survey_round(&pool, candidates, taken, count, &next, err);
    for (uint32_t k = 0; k < s->kept_count && rc == SFC_OK; k++) {
        taken[pool.places[s->kept[k]]] = true;
        s->kept[k] = pool.characters[s->kept[k]];
    }
    s->surveyed = pool.count;
    pool_free(&pool);
    return rc;
}

void sfc_survey_free(struct sfc_survey *s)
{
    free(s->kept);
    free(s->kept_faces);
    s->kept = NULL;
    s->kept_faces = NULL;
}

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/glyphs.h"

void sfc_glyph_report_free(struct sfc_glyph_report *report)
{
    free(report->faces);
    memset(report, 0, sizeof *report);
}

void sfc_glyph_report_text(const struct sfc_glyph_report *r, FILE *file)
{
    fprintf(file, "%-22s %-8s %-10s %-8s %8s %6s %6s %9s %8s\n", "family", "style", "group", "side",
            "drawn", "blank", "tofu", "duplicate", "written");
    for (uint32_t i = 0; i < r->face_count; i++) {
        const struct sfc_glyph_face *f = &r->faces[i];
        fprintf(file, "%-22s %-8s %-10s %-8s %8llu %6llu %6llu %9llu %8llu\n", f->family, f->style,
                f->group, f->holdout ? "held-out" : "train", (unsigned long long)f->surveyed,
                (unsigned long long)f->blank, (unsigned long long)f->tofu,
                (unsigned long long)f->duplicate, (unsigned long long)f->used);
    }
    fprintf(file,
            "train: %llu identities, %llu images (%u to %u each)\n"
            "held out: %llu identities, %llu images in families that train never shows\n"
            "pairs: %llu easy, %llu hard\ndigest %s, %.1f s\n",
            (unsigned long long)r->identities, (unsigned long long)r->samples, r->min_samples,
            r->max_samples, (unsigned long long)r->holdout_identities,
            (unsigned long long)r->holdout_samples, (unsigned long long)r->pairs,
            (unsigned long long)r->pairs, r->digest, r->seconds);
}

static json_t *face_json(const struct sfc_glyph_face *f)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:b, s:I, s:I, s:I, s:I, s:I}", "family", f->family,
                     "style", f->style, "group", f->group, "file", f->file, "index", (int)f->index,
                     "holdout", (int)f->holdout, "drawn", (json_int_t)f->surveyed, "blank",
                     (json_int_t)f->blank, "tofu", (json_int_t)f->tofu, "duplicate",
                     (json_int_t)f->duplicate, "written", (json_int_t)f->used);
}

char *sfc_glyph_report_json(const struct sfc_glyph_report *r)
{
    json_t *root =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:f, s:s, s:[]}", "identities",
                  (json_int_t)r->identities, "samples", (json_int_t)r->samples,
                  "holdout_identities", (json_int_t)r->holdout_identities, "holdout_samples",
                  (json_int_t)r->holdout_samples, "pairs", (json_int_t)r->pairs, "candidates",
                  (json_int_t)r->candidates, "min_samples", (int)r->min_samples, "max_samples",
                  (int)r->max_samples, "seconds", r->seconds, "digest", r->digest, "faces");
    int failed = root == NULL;
    for (uint32_t i = 0; i < r->face_count && !failed; i++)
        failed = json_array_append_new(json_object_get(root, "faces"), face_json(&r->faces[i]));
    char *text = failed ? NULL : json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    return text;
}

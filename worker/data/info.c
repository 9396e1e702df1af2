#include "worker/data/info.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int count_classes(const struct sfc_dataset *set, struct sfc_data_report *r,
                         struct sfc_error *err)
{
    uint64_t *labels = malloc(r->info.samples * sizeof *labels);
    if (labels == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %" PRIu64 " labels", r->info.samples);
    bool ascending = true;
    for (uint64_t i = 0; i < r->info.samples; i++) {
        labels[i] = sfc_dataset_label(set, i);
        ascending = ascending && (i == 0 || labels[i - 1] <= labels[i]);
    }
    if (!ascending)
        qsort(labels, r->info.samples, sizeof *labels, compare);
    r->min_per_class = UINT64_MAX;
    for (uint64_t i = 0, run = 1; i < r->info.samples; i++, run++) {
        if (i + 1 < r->info.samples && labels[i + 1] == labels[i])
            continue;
        r->used_classes++;
        r->min_per_class = run < r->min_per_class ? run : r->min_per_class;
        r->max_per_class = run > r->max_per_class ? run : r->max_per_class;
        run = 0;
    }
    free(labels);
    return SFC_OK;
}

static int verify_images(const struct sfc_dataset *set, sfc_progress_fn progress,
                         void *progress_arg, struct sfc_data_report *r, struct sfc_error *err)
{
    struct sfc_decoder *decoder = NULL;
    struct sfc_progress_clock clock;
    size_t pixels = (size_t)r->info.width * r->info.height * r->info.channels;
    float *image = malloc(pixels * sizeof *image);
    int rc = SFC_OK;
    if (image == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for an image");
    rc = sfc_decoder_new(set, &decoder, err);
    sfc_progress_begin(&clock);
    for (uint64_t i = 0; i < r->info.samples && rc == SFC_OK; i++) {
        struct sfc_error cause = {0};
        if (sfc_decoder_read(decoder, i, NULL, 0, 0, image, &cause) != SFC_OK && r->broken++ == 0) {
            r->first_broken = i;
            memcpy(r->first_broken_cause, cause.text, sizeof cause.text);
        }
        rc = sfc_progress_tell(&clock, progress, progress_arg, "verify", "images", i + 1,
                               r->info.samples, err);
    }
    r->verified = rc == SFC_OK;
    sfc_decoder_free(decoder);
    free(image);
    return rc;
}

int sfc_data_info(const char *path, bool verify, sfc_progress_fn progress, void *progress_arg,
                  struct sfc_data_report *report, struct sfc_error *err)
{
    struct sfc_dataset *set = NULL;
    struct sfc_data_report r = {0};
    int rc = sfc_dataset_open(path, &set, err);
    if (rc != SFC_OK)
        return rc;
    r.info = *sfc_dataset_info(set);
    r.bytes = sfc_dataset_bytes(set);
    rc = count_classes(set, &r, err);
    if (rc == SFC_OK && verify)
        rc = verify_images(set, progress, progress_arg, &r, err);
    sfc_dataset_close(set);
    if (rc == SFC_OK)
        *report = r;
    return rc;
}

char *sfc_data_report_json(const struct sfc_data_report *r)
{
    json_t *root = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:b, s:s, s:b}", "samples",
        (json_int_t)r->info.samples, "classes", (json_int_t)r->info.classes, "used_classes",
        (json_int_t)r->used_classes, "min_per_class", (json_int_t)r->min_per_class, "max_per_class",
        (json_int_t)r->max_per_class, "bytes", (json_int_t)r->bytes, "width", (int)r->info.width,
        "height", (int)r->info.height, "channels", (int)r->info.channels, "flip", (int)r->info.flip,
        "digest", r->info.digest, "verified", (int)r->verified);
    int failed = root == NULL;
    if (!failed && r->verified)
        failed = json_object_set_new(root, "broken", json_integer((json_int_t)r->broken));
    if (!failed && r->broken > 0)
        failed = json_object_set_new(root, "first_broken", json_string(r->first_broken_cause));
    char *text = failed ? NULL : json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    return text;
}

void sfc_data_report_text(const struct sfc_data_report *r, FILE *file)
{
    fprintf(file,
            "samples   %" PRIu64 "\nclasses   %" PRIu64 " (%" PRIu64 " with images, %" PRIu64
            " to %" PRIu64 " each)\nimages    %u x %u, %s%s\nbytes     %" PRIu64 "\ndigest    %s\n",
            r->info.samples, r->info.classes, r->used_classes, r->min_per_class, r->max_per_class,
            r->info.width, r->info.height, r->info.channels == 1 ? "grey" : "colour",
            r->info.flip ? ", may be mirrored" : "", r->bytes, r->info.digest);
    if (r->verified)
        fprintf(file, "verified  %" PRIu64 " images, %" PRIu64 " broken\n", r->info.samples,
                r->broken);
    if (r->broken > 0)
        fprintf(file, "first     %s\n", r->first_broken_cause);
}

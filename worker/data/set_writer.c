#include "worker/data/set_writer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "worker/data/file.h"
#include "worker/data/recordio.h"

#define FIRST_RECORD  (SFC_RECORD_HEADER + SFC_RANGE_HEADER)
#define LIMIT_SAMPLES 3000000000U

struct sfc_set_writer {
    struct sfc_out_file records, index;
    char name[64];
    uint64_t offset;  /* bytes written to records */
    uint64_t samples; /* image records; their keys are 1..samples */
    uint64_t *first;  /* first[c]: key of the first image of class c */
    uint64_t classes, capacity;
    uint8_t *payload, *encoded;
    size_t buffer; /* bytes of payload; encoded has sfc_record_bound(buffer) */
    XXH3_state_t *hash;
};

static int open_file(struct sfc_out_file *file, const char *dir, const char *name,
                     const char *suffix, struct sfc_error *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s%s", dir, name, suffix) < 0)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name in %s", dir);
    int rc = sfc_out_file_open(file, path, err);
    free(path);
    return rc;
}

static int grow(struct sfc_set_writer *w, size_t length, struct sfc_error *err)
{
    if (length <= w->buffer)
        return SFC_OK;
    if (length > SFC_RECORD_MAX)
        return sfc_fail(err, SFC_ELIMIT, "an image of %zu bytes: at most %u", length,
                        SFC_RECORD_MAX);
    size_t size = length + length / 2 + 4096;
    uint8_t *payload = realloc(w->payload, size);
    if (payload != NULL)
        w->payload = payload;
    uint8_t *encoded = realloc(w->encoded, sfc_record_bound(size));
    if (encoded != NULL)
        w->encoded = encoded;
    if (payload == NULL || encoded == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a record of %zu bytes", length);
    w->buffer = size;
    return SFC_OK;
}

/* Writes w->payload as record `key`. */
static int put_record(struct sfc_set_writer *w, uint64_t key, size_t length, struct sfc_error *err)
{
    size_t bytes = sfc_record_encode(w->payload, length, w->encoded);
    if (fwrite(w->encoded, 1, bytes, w->records.stream) != bytes)
        return sfc_fail_errno(err, "write %s", w->records.temporary);
    if (fprintf(w->index.stream, "%" PRIu64 "\t%" PRIu64 "\n", key, w->offset) < 0)
        return sfc_fail_errno(err, "write %s", w->index.temporary);
    if (key > 0)
        XXH3_128bits_update(w->hash, w->encoded, bytes);
    w->offset += bytes;
    return SFC_OK;
}

int sfc_set_writer_new(const char *dir, const char *name, struct sfc_set_writer **out,
                       struct sfc_error *err)
{
    struct sfc_set_writer *w = calloc(1, sizeof *w);
    if (w == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a writer");
    int rc = SFC_OK;
    if (strlen(name) + 5 > sizeof w->name) {
        rc = sfc_fail(err, SFC_EINVAL, "the name %s is too long", name);
        goto fail;
    }
    snprintf(w->name, sizeof w->name, "%s.rec", name);
    w->hash = XXH3_createState();
    if (w->hash == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for a writer");
        goto fail;
    }
    XXH3_128bits_reset(w->hash);
    rc = open_file(&w->records, dir, name, ".rec", err);
    if (rc == SFC_OK)
        rc = open_file(&w->index, dir, name, ".idx", err);
    if (rc == SFC_OK)
        rc = grow(w, 4096, err);
    if (rc == SFC_OK) { /* the numbers are known at the end only */
        sfc_range_header_encode(0, 0, w->payload);
        rc = put_record(w, 0, SFC_RANGE_HEADER, err);
    }
    if (rc == SFC_OK) {
        *out = w;
        return SFC_OK;
    }
fail:
    sfc_set_writer_free(w);
    return rc;
}

static int begin_class(struct sfc_set_writer *w, struct sfc_error *err)
{
    if (w->classes == w->capacity) {
        uint64_t capacity = w->capacity * 2 + 1024;
        uint64_t *first = realloc(w->first, capacity * sizeof *first);
        if (first == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for %" PRIu64 " classes", capacity);
        w->first = first;
        w->capacity = capacity;
    }
    w->first[w->classes++] = w->samples + 1;
    return SFC_OK;
}

int sfc_set_writer_add(struct sfc_set_writer *w, uint64_t label, const uint8_t *jpeg, size_t length,
                       struct sfc_error *err)
{
    if (label + 1 != w->classes && label != w->classes)
        return sfc_fail(err, SFC_EINVAL, "label %" PRIu64 " after %" PRIu64 " classes", label,
                        w->classes);
    if (w->samples == LIMIT_SAMPLES || label >= SFC_LABEL_LIMIT)
        return sfc_fail(err, SFC_ELIMIT, "more than %u images", LIMIT_SAMPLES);
    int rc = grow(w, SFC_IMAGE_HEADER + length, err);
    if (rc == SFC_OK && label == w->classes)
        rc = begin_class(w, err);
    if (rc != SFC_OK)
        return rc;
    sfc_image_header_encode(label, w->samples, w->payload);
    memcpy(w->payload + SFC_IMAGE_HEADER, jpeg, length);
    rc = put_record(w, w->samples + 1, SFC_IMAGE_HEADER + length, err);
    if (rc == SFC_OK)
        w->samples++;
    return rc;
}

static int put_identities(struct sfc_set_writer *w, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (uint64_t c = 0; c < w->classes && rc == SFC_OK; c++) {
        uint64_t end = c + 1 < w->classes ? w->first[c + 1] : w->samples + 1;
        sfc_range_header_encode(w->first[c], end, w->payload);
        rc = put_record(w, w->samples + 1 + c, SFC_RANGE_HEADER, err);
    }
    return rc;
}

/* Record 0 again, now with the numbers. */
static int patch_first(struct sfc_set_writer *w, struct sfc_error *err)
{
    sfc_range_header_encode(w->samples + 1, w->samples + 1 + w->classes, w->payload);
    size_t bytes = sfc_record_encode(w->payload, SFC_RANGE_HEADER, w->encoded);
    if (bytes != FIRST_RECORD)
        return sfc_fail(err, SFC_EINTERNAL, "record 0 changed its size");
    if (fseek(w->records.stream, 0, SEEK_SET) != 0 ||
        fwrite(w->encoded, 1, bytes, w->records.stream) != bytes)
        return sfc_fail_errno(err, "write %s", w->records.temporary);
    XXH3_128bits_update(w->hash, w->encoded, bytes);
    return SFC_OK;
}

int sfc_set_writer_finish(struct sfc_set_writer *w, struct sfc_meta_file *file,
                          struct sfc_error *err)
{
    if (w->samples == 0)
        return sfc_fail(err, SFC_EINVAL, "%s would hold no image", w->name);
    int rc = put_identities(w, err);
    if (rc == SFC_OK)
        rc = patch_first(w, err);
    if (rc == SFC_OK)
        rc = sfc_out_file_commit(&w->records, err);
    if (rc == SFC_OK)
        rc = sfc_out_file_commit(&w->index, err);
    if (rc != SFC_OK)
        return rc;
    XXH128_hash_t hash = XXH3_128bits_digest(w->hash);
    strcpy(file->name, w->name);
    file->samples = w->samples;
    file->classes = w->classes;
    file->bytes = w->offset;
    snprintf(file->content, sizeof file->content, "%016" PRIx64 "%016" PRIx64,
             (uint64_t)hash.high64, (uint64_t)hash.low64);
    return SFC_OK;
}

void sfc_set_writer_free(struct sfc_set_writer *w)
{
    if (w == NULL)
        return;
    sfc_out_file_abort(&w->records);
    sfc_out_file_abort(&w->index);
    if (w->hash != NULL)
        XXH3_freeState(w->hash);
    free(w->first);
    free(w->payload);
    free(w->encoded);
    free(w);
}

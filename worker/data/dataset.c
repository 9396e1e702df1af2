#include "worker/data/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "worker/data/augment.h"
#include "worker/data/file.h"
#include "worker/data/jpeg.h"
#include "worker/data/meta.h"
#include "worker/data/recordio.h"

#define INDEX_LIMIT (16ULL << 30)
#define PROBE       64 /* bytes read per record at open: part header, image header, first labels */

struct place {
    uint64_t offset;
    uint32_t span; /* bytes of the record with all its parts */
};

struct sfc_dataset {
    char *path; /* of the record file */
    int fd;
    uint64_t file_size;
    struct place *places;
    uint64_t *keys, *labels;
    uint32_t max_span;
    struct sfc_dataset_info info;
    char content[33];
    uint64_t meta_samples, class_limit; /* 0: unknown */
};

struct sfc_decoder {
    const struct sfc_dataset *set;
    struct sfc_dataset_info info;
    struct sfc_jpeg *jpeg;
    uint8_t *record; /* max_span bytes */
    uint8_t *pixels; /* interleaved */
    float *scratch;  /* one image */
};

static int read_at(const struct sfc_dataset *set, uint64_t offset, uint8_t *out, size_t length,
                   struct sfc_error *err)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pread(set->fd, out + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sfc_fail_errno(err, "read %zu bytes at %" PRIu64, length, offset);
        if (n == 0)
            return sfc_fail(err, SFC_ECORRUPT, "the file ends %zu bytes into a record of %zu", done,
                            length);
        done += (size_t)n;
    }
    return SFC_OK;
}

/* Bytes of the record at offset, over all its parts. */
static int record_span(const struct sfc_dataset *set, uint64_t offset, uint32_t *span,
                       struct sfc_error *err)
{
    uint64_t at = offset;
    enum sfc_record_part part = SFC_PART_FIRST;
    do {
        uint8_t header[SFC_RECORD_HEADER];
        uint32_t bytes = 0;
        int rc = read_at(set, at, header, sizeof header, err);
        if (rc == SFC_OK)
            rc = sfc_record_part_header(header, sizeof header, &part, &bytes, err);
        if (rc != SFC_OK)
            return rc;
        at += SFC_RECORD_HEADER + bytes;
        if (at > set->file_size)
            return sfc_fail(err, SFC_ECORRUPT,
                            "record cut short: it needs %" PRIu64 " bytes more than the file has",
                            at - set->file_size);
        at = (at + 3) & ~3ULL;
        if (at - offset > SFC_RECORD_MAX)
            return sfc_fail(err, SFC_ECORRUPT, "record is larger than %u bytes", SFC_RECORD_MAX);
    } while (part == SFC_PART_FIRST || part == SFC_PART_MIDDLE);
    at = at < set->file_size ? at : set->file_size; /* the last padding may be missing */
    *span = (uint32_t)(at - offset);
    return SFC_OK;
}

/* The image header of the record at offset, through a probe where that is enough. *buffer grows. */
static int read_header(const struct sfc_dataset *set, uint64_t offset, uint32_t *span,
                       uint8_t **buffer, size_t *capacity, struct sfc_image_header *header,
                       struct sfc_error *err)
{
    uint64_t left = set->file_size - offset;
    size_t probe = left < PROBE ? (size_t)left : PROBE;
    enum sfc_record_part part = SFC_PART_WHOLE;
    uint32_t bytes = 0;
    int rc = read_at(set, offset, *buffer, probe, err);
    if (rc == SFC_OK)
        rc = sfc_record_part_header(*buffer, probe, &part, &bytes, err);
    if (rc != SFC_OK)
        return rc;
    uint64_t total = SFC_RECORD_HEADER + (uint64_t)bytes;
    if (part == SFC_PART_WHOLE && total <= left && total <= SFC_RECORD_MAX) {
        uint64_t padded = (total + 3) & ~3ULL;
        *span = (uint32_t)(padded < left ? padded : left);
        size_t seen = probe - SFC_RECORD_HEADER < bytes ? probe - SFC_RECORD_HEADER : bytes;
        if (sfc_image_header_decode(*buffer + SFC_RECORD_HEADER, seen, header, NULL) == SFC_OK)
            return SFC_OK;
    }
    rc = record_span(set, offset, span, err);
    if (rc != SFC_OK)
        return rc;
    if (*span > *capacity) {
        uint8_t *larger = realloc(*buffer, *span);
        if (larger == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for a record of %u bytes", *span);
        *buffer = larger;
        *capacity = *span;
    }
    size_t length = 0, used = 0;
    rc = read_at(set, offset, *buffer, *span, err);
    if (rc == SFC_OK)
        rc = sfc_record_decode(*buffer, *span, *buffer, &length, &used, err);
    if (rc == SFC_OK)
        rc = sfc_image_header_decode(*buffer, length, header, err);
    return rc;
}

struct scan {
    struct sfc_index_entry *entries;
    size_t count;
    uint64_t image_end; /* insightface layout: keys 1..image_end-1 are images; 0: every key is */
    uint8_t *buffer;
    size_t capacity;
};

/* Record 0 of an insightface set. */
static int scan_first(struct sfc_dataset *set, struct scan *s, struct sfc_error *err)
{
    struct sfc_image_header header;
    uint32_t span = 0;
    uint64_t images = 0, identities = 0;
    if (s->entries[0].key != 0)
        return SFC_OK;
    int rc = read_header(set, s->entries[0].offset, &span, &s->buffer, &s->capacity, &header, err);
    if (rc == SFC_OK && header.flag == 0)
        return SFC_OK; /* an image like any other */
    if (rc == SFC_OK)
        rc = sfc_range_header_values(&header, &images, &identities, err);
    if (rc == SFC_OK && (images < 2 || identities < images))
        rc = sfc_fail(err, SFC_ECORRUPT, "ranges [%" PRIu64 ", %" PRIu64 ") hold no images", images,
                      identities);
    if (rc != SFC_OK)
        return sfc_prefix(err, "%s: record 0", set->path);
    s->image_end = images;
    if (set->class_limit == 0)
        set->class_limit = identities - images; /* 0: the set names no identities */
    return SFC_OK;
}

static int scan_sample(struct sfc_dataset *set, struct scan *s, const struct sfc_index_entry *entry,
                       struct sfc_error *err)
{
    struct sfc_image_header header;
    uint64_t n = set->info.samples, label = 0;
    uint32_t span = 0;
    int rc = read_header(set, entry->offset, &span, &s->buffer, &s->capacity, &header, err);
    if (rc == SFC_OK)
        rc = sfc_image_label(&header, &label, err);
    if (rc == SFC_OK && set->class_limit > 0 && label >= set->class_limit)
        rc = sfc_fail(err, SFC_ECORRUPT,
                      "label %" PRIu64 " is outside the set's %" PRIu64 " classes", label,
                      set->class_limit);
    if (rc != SFC_OK)
        return sfc_prefix(err, "%s: record %" PRIu64 " at byte %" PRIu64, set->path, entry->key,
                          entry->offset);
    set->places[n] = (struct place){entry->offset, span};
    set->keys[n] = entry->key;
    set->labels[n] = label;
    if (span > set->max_span)
        set->max_span = span;
    if (label >= set->info.classes)
        set->info.classes = label + 1;
    set->info.samples = n + 1;
    return SFC_OK;
}

static int scan_records(struct sfc_dataset *set, struct scan *s, struct sfc_error *err)
{
    s->capacity = 4096;
    s->buffer = malloc(s->capacity);
    set->places = malloc(s->count * sizeof *set->places);
    set->keys = malloc(s->count * sizeof *set->keys);
    set->labels = malloc(s->count * sizeof *set->labels);
    if (s->buffer == NULL || set->places == NULL || set->keys == NULL || set->labels == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu records of %s", s->count, set->path);
    int rc = scan_first(set, s, err);
    uint64_t outside = 0;
    for (size_t i = 0; i < s->count && rc == SFC_OK; i++) {
        uint64_t key = s->entries[i].key;
        if (s->image_end > 0 && (key == 0 || key >= s->image_end)) {
            outside++;
            continue;
        }
        rc = scan_sample(set, s, &s->entries[i], err);
    }
    if (rc != SFC_OK)
        return rc;
    if (s->image_end > 0 && set->info.samples != s->image_end - 1)
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s: record 0 announces %" PRIu64 " images, the index holds %" PRIu64
                        " (and %" PRIu64 " other records)",
                        set->path, s->image_end - 1, set->info.samples, outside);
    if (set->info.samples == 0)
        return sfc_fail(err, SFC_ECORRUPT, "%s holds no image", set->path);
    if (set->meta_samples > 0 && set->meta_samples != set->info.samples)
        return sfc_fail(err, SFC_ECORRUPT,
                        "%s holds %" PRIu64 " images, its meta.json says %" PRIu64, set->path,
                        set->info.samples, set->meta_samples);
    return SFC_OK;
}

static int read_index(struct sfc_dataset *set, struct scan *s, struct sfc_error *err)
{
    uint8_t *text = NULL;
    size_t length = 0;
    char *path = strdup(set->path);
    if (path == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    memcpy(path + strlen(path) - 4, ".idx", 4);
    int rc = sfc_file_read(path, INDEX_LIMIT, &text, &length, err);
    if (rc == SFC_OK) {
        rc = sfc_index_parse((const char *)text, length, set->file_size, &s->entries, &s->count,
                             err);
        if (rc != SFC_OK)
            rc = sfc_prefix(err, "%s", path);
    }
    free(text);
    free(path);
    return rc;
}

/* meta.json of the folder; without one, what insightface sets are. */
static int read_meta(struct sfc_dataset *set, struct sfc_error *err)
{
    struct sfc_meta meta;
    char *path = NULL;
    const char *slash = strrchr(set->path, '/');
    const char *name = slash != NULL ? slash + 1 : set->path;
    if (asprintf(&path, "%.*smeta.json", (int)(name - set->path), set->path) < 0)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = SFC_OK;
    if (access(path, F_OK) != 0 && errno == ENOENT) {
        set->info.width = set->info.height = 112;
        set->info.channels = 3;
        set->info.flip = true;
        goto out;
    }
    rc = sfc_meta_read(path, &meta, err);
    if (rc != SFC_OK)
        goto out;
    set->info.width = meta.width;
    set->info.height = meta.height;
    set->info.channels = meta.channels;
    set->info.flip = meta.flip;
    const struct sfc_meta_file *file = sfc_meta_find(&meta, name);
    if (file == NULL)
        goto out;
    if (file->bytes != set->file_size)
        rc = sfc_fail(err, SFC_ECORRUPT, "%s has %" PRIu64 " bytes, its meta.json says %" PRIu64,
                      set->path, set->file_size, file->bytes);
    set->meta_samples = file->samples;
    set->class_limit = file->classes;
    memcpy(set->content, file->content, sizeof set->content);
out:
    free(path);
    return rc;
}

static void hash_number(XXH3_state_t *state, uint64_t value)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    XXH3_128bits_update(state, bytes, sizeof bytes);
}

static void hash_hex(XXH3_state_t *state, char out[33])
{
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
}

/* Of a set of the first samples, whose record file has this content ("": not known). */
static int make_digest(const struct sfc_dataset *set, uint64_t samples, const char *content,
                       char out[33], struct sfc_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a digest");
    XXH3_128bits_reset(state);
    hash_number(state, samples);
    hash_number(state, (uint64_t)set->info.width << 32 | set->info.height);
    hash_number(state, (uint64_t)set->info.channels << 32 | (set->info.flip ? 1 : 0));
    for (uint64_t i = 0; i < samples; i++) {
        hash_number(state, set->places[i].offset);
        hash_number(state, set->places[i].span);
        hash_number(state, set->labels[i]);
    }
    XXH3_128bits_update(state, content, strlen(content));
    hash_hex(state, out);
    XXH3_freeState(state);
    return SFC_OK;
}

/* ---- what a set begins with */

/* The records of the images, as they lie in the file. */
static int hash_images(const struct sfc_dataset *set, uint64_t samples, XXH3_state_t *state,
                       struct sfc_error *err)
{
    uint8_t *record = malloc(set->max_span);
    int rc = record ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no memory for a record");
    for (uint64_t i = 0; i < samples && rc == SFC_OK; i++) {
        rc = read_at(set, set->places[i].offset, record, set->places[i].span, err);
        if (rc == SFC_OK)
            XXH3_128bits_update(state, record, set->places[i].span);
        else
            sfc_prefix(err, "%s", set->path);
    }
    free(record);
    return rc;
}

static void hash_range(XXH3_state_t *state, uint64_t first, uint64_t second)
{
    uint8_t payload[SFC_RANGE_HEADER], encoded[8 * SFC_RANGE_HEADER];
    sfc_range_header_encode(first, second, payload);
    XXH3_128bits_update(state, encoded, sfc_record_encode(payload, sizeof payload, encoded));
}

/* The identity records and record 0 that such a file ends with and begins with. */
static int hash_ranges(const struct sfc_dataset *set, uint64_t samples, XXH3_state_t *state,
                       struct sfc_error *err)
{
    uint64_t classes = 0, first = 0;
    for (uint64_t i = 0; i <= samples; i++) {
        uint64_t label = i < samples ? set->labels[i] : classes;
        if (label == classes) { /* the identity before ends here */
            if (classes > 0)
                hash_range(state, first + 1, i + 1);
            first = i;
            classes++;
        } else if (label + 1 != classes) {
            return sfc_fail(err, SFC_EINVAL,
                            "%s: sample %" PRIu64 " is of identity %" PRIu64 " after %" PRIu64
                            " identities: they are not one after the other",
                            set->path, i, label, classes);
        }
    }
    hash_range(state, samples + 1, samples + classes);
    return SFC_OK;
}

int sfc_dataset_begin(const struct sfc_dataset *set, uint64_t samples, char out[33],
                      struct sfc_error *err)
{
    char content[33] = "";
    if (samples == 0 || samples > set->info.samples)
        return sfc_fail(err, SFC_EINVAL, "%s has %" PRIu64 " samples, not %" PRIu64, set->path,
                        set->info.samples, samples);
    if (samples < set->info.samples && set->labels[samples] == set->labels[samples - 1])
        return sfc_fail(err, SFC_EINVAL,
                        "%s: identity %" PRIu64 " has samples on both sides of sample %" PRIu64,
                        set->path, set->labels[samples], samples);
    if (set->content[0] == '\0')
        return make_digest(set, samples, "", out, err);
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a digest");
    XXH3_128bits_reset(state);
    int rc = hash_images(set, samples, state, err);
    if (rc == SFC_OK)
        rc = hash_ranges(set, samples, state, err);
    if (rc == SFC_OK)
        hash_hex(state, content);
    XXH3_freeState(state);
    return rc == SFC_OK ? make_digest(set, samples, content, out, err) : rc;
}

/* DIR -> DIR/train.rec; FILE.rec stays. */
static int resolve(const char *path, char **out, struct sfc_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return sfc_fail_errno(err, "open data set %s", path);
    size_t length = strlen(path);
    if (S_ISDIR(st.st_mode))
        *out = sfc_path_join(path, "train.rec");
    else if (length > 4 && strcmp(path + length - 4, ".rec") == 0)
        *out = strdup(path);
    else
        return sfc_fail(err, SFC_EINVAL, "%s is neither a folder nor a .rec file", path);
    if (*out == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    return SFC_OK;
}

static int open_records(struct sfc_dataset *set, struct sfc_error *err)
{
    struct stat st;
    set->fd = open(set->path, O_RDONLY | O_CLOEXEC);
    if (set->fd < 0)
        return sfc_fail_errno(err, "open %s", set->path);
    if (fstat(set->fd, &st) != 0)
        return sfc_fail_errno(err, "stat %s", set->path);
    if (!S_ISREG(st.st_mode))
        return sfc_fail(err, SFC_EINVAL, "%s is not a file", set->path);
    set->file_size = (uint64_t)st.st_size;
    return SFC_OK;
}

int sfc_dataset_open(const char *path, struct sfc_dataset **out, struct sfc_error *err)
{
    struct scan scan = {0};
    struct sfc_dataset *set = calloc(1, sizeof *set);
    if (set == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a data set");
    set->fd = -1;
    int rc = resolve(path, &set->path, err);
    if (rc == SFC_OK)
        rc = open_records(set, err);
    if (rc == SFC_OK)
        rc = read_meta(set, err);
    if (rc == SFC_OK)
        rc = read_index(set, &scan, err);
    if (rc == SFC_OK)
        rc = scan_records(set, &scan, err);
    if (rc == SFC_OK)
        rc = make_digest(set, set->info.samples, set->content, set->info.digest, err);
    free(scan.entries);
    free(scan.buffer);
    if (rc != SFC_OK) {
        sfc_dataset_close(set);
        return rc;
    }
    (void)posix_fadvise(set->fd, 0, 0, POSIX_FADV_RANDOM);
    *out = set;
    return SFC_OK;
}

void sfc_dataset_close(struct sfc_dataset *set)
{
    if (set == NULL)
        return;
    if (set->fd >= 0)
        close(set->fd);
    free(set->path);
    free(set->places);
    free(set->keys);
    free(set->labels);
    free(set);
}

const struct sfc_dataset_info *sfc_dataset_info(const struct sfc_dataset *set)
{
    return &set->info;
}

uint64_t sfc_dataset_label(const struct sfc_dataset *set, uint64_t sample)
{
    return set->labels[sample];
}

uint64_t sfc_dataset_bytes(const struct sfc_dataset *set)
{
    return set->file_size;
}

static size_t image_pixels(const struct sfc_dataset_info *info)
{
    return (size_t)info->width * info->height * info->channels;
}

/* set NULL: for single JPEGs only. */
static int make_decoder(const struct sfc_dataset *set, const struct sfc_dataset_info *info,
                        struct sfc_decoder **out, struct sfc_error *err)
{
    struct sfc_decoder *decoder = calloc(1, sizeof *decoder);
    if (decoder == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a decoder");
    decoder->set = set;
    decoder->info = *info;
    decoder->record = malloc(set == NULL ? 1 : set->max_span);
    decoder->pixels = malloc(image_pixels(info));
    decoder->scratch = malloc(image_pixels(info) * sizeof(float));
    int rc = SFC_OK;
    if (decoder->record == NULL || decoder->pixels == NULL || decoder->scratch == NULL)
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for a decoder of %u x %u images", info->width,
                      info->height);
    if (rc == SFC_OK)
        rc = sfc_jpeg_new(&decoder->jpeg, err);
    if (rc != SFC_OK) {
        sfc_decoder_free(decoder);
        return rc;
    }
    *out = decoder;
    return SFC_OK;
}

int sfc_decoder_new(const struct sfc_dataset *set, struct sfc_decoder **out, struct sfc_error *err)
{
    return make_decoder(set, &set->info, out, err);
}

int sfc_decoder_new_plain(const struct sfc_dataset_info *info, struct sfc_decoder **out,
                          struct sfc_error *err)
{
    return make_decoder(NULL, info, out, err);
}

void sfc_decoder_free(struct sfc_decoder *decoder)
{
    if (decoder == NULL)
        return;
    sfc_jpeg_free(decoder->jpeg);
    free(decoder->record);
    free(decoder->pixels);
    free(decoder->scratch);
    free(decoder);
}

/* Interleaved bytes -> planar floats. */
static void convert(const struct sfc_dataset_info *info, const uint8_t *pixels, float *image)
{
    size_t plane = (size_t)info->width * info->height;
    float offset = info->channels == 1 ? 0.0F : 1.0F;
    for (uint32_t c = 0; c < info->channels; c++)
        for (size_t i = 0; i < plane; i++)
            image[c * plane + i] = (float)pixels[i * info->channels + c] / 127.5F - offset;
}

int sfc_decoder_jpeg(struct sfc_decoder *decoder, const uint8_t *jpeg, uint64_t length,
                     float *image, struct sfc_error *err)
{
    const struct sfc_dataset_info *info = &decoder->info;
    int rc = sfc_jpeg_decode(decoder->jpeg, jpeg, (size_t)length, info->width, info->height,
                             info->channels, decoder->pixels, err);
    if (rc == SFC_OK)
        convert(info, decoder->pixels, image);
    return rc;
}

static int read_image(struct sfc_decoder *decoder, uint64_t sample, float *image,
                      struct sfc_error *err)
{
    const struct sfc_dataset *set = decoder->set;
    struct sfc_image_header header;
    size_t length = 0, used = 0;
    uint64_t label = 0;
    uint32_t span = set->places[sample].span;
    int rc = read_at(set, set->places[sample].offset, decoder->record, span, err);
    if (rc == SFC_OK)
        rc = sfc_record_decode(decoder->record, span, decoder->record, &length, &used, err);
    if (rc == SFC_OK)
        rc = sfc_image_header_decode(decoder->record, length, &header, err);
    if (rc == SFC_OK)
        rc = sfc_image_label(&header, &label, err);
    if (rc == SFC_OK && label != set->labels[sample])
        rc = sfc_fail(err, SFC_ECORRUPT, "label is %" PRIu64 " now and was %" PRIu64 " at open",
                      label, set->labels[sample]);
    if (rc == SFC_OK)
        rc = sfc_decoder_jpeg(decoder, header.image, header.image_length, image, err);
    return rc;
}

int sfc_decoder_read(struct sfc_decoder *decoder, uint64_t sample,
                     const struct sfc_augment *augment, uint64_t seed, uint64_t epoch, float *image,
                     struct sfc_error *err)
{
    const struct sfc_dataset *set = decoder->set;
    if (set == NULL)
        return sfc_fail(err, SFC_EINVAL, "sample %" PRIu64 ": this decoder has no data set",
                        sample);
    if (sample >= set->info.samples)
        return sfc_fail(err, SFC_EINVAL, "%s: sample %" PRIu64 " of %" PRIu64, set->path, sample,
                        set->info.samples);
    int rc = read_image(decoder, sample, image, err);
    if (rc != SFC_OK)
        return sfc_prefix(err, "%s: record %" PRIu64 " (sample %" PRIu64 ")", set->path,
                          set->keys[sample], sample);
    if (augment == NULL)
        return SFC_OK;
    struct sfc_augment allowed = *augment;
    allowed.flip = augment->flip && set->info.flip;
    struct sfc_image_shape shape = {set->info.width, set->info.height, set->info.channels};
    sfc_augment_image(&allowed, seed, epoch, sample, shape, image, decoder->scratch);
    return SFC_OK;
}

#include "worker/data/meta.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/file.h"
#include "worker/data/jpeg.h"

#define META_FORMAT "shardfc-images-1"
#define META_LIMIT  (1U << 20)

/* A non-negative integer of at most `limit`. */
static int get_number(const json_t *object, const char *name, uint64_t limit, uint64_t *out,
                      struct sfc_error *err)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > limit)
        return sfc_fail(err, SFC_ECORRUPT, "\"%s\" is not an integer in 0..%llu", name,
                        (unsigned long long)limit);
    *out = (uint64_t)json_integer_value(value);
    return SFC_OK;
}

static int get_text(const json_t *object, const char *name, char *out, size_t size,
                    struct sfc_error *err)
{
    const char *text = json_string_value(json_object_get(object, name));
    if (text == NULL || strlen(text) >= size)
        return sfc_fail(err, SFC_ECORRUPT, "\"%s\" is not a text of less than %zu bytes", name,
                        size);
    strcpy(out, text);
    return SFC_OK;
}

static int parse_file(const char *name, const json_t *object, struct sfc_meta *out,
                      struct sfc_error *err)
{
    if (out->file_count == SFC_META_FILES)
        return sfc_fail(err, SFC_ECORRUPT, "\"files\" has more than %d entries", SFC_META_FILES);
    struct sfc_meta_file *file = &out->files[out->file_count];
    if (strlen(name) >= sizeof file->name)
        return sfc_fail(err, SFC_ECORRUPT, "a file name in \"files\" is too long");
    strcpy(file->name, name);
    int rc = get_number(object, "samples", INT64_MAX, &file->samples, err);
    if (rc == SFC_OK)
        rc = get_number(object, "classes", INT64_MAX, &file->classes, err);
    if (rc == SFC_OK)
        rc = get_number(object, "bytes", INT64_MAX, &file->bytes, err);
    if (rc == SFC_OK)
        rc = get_text(object, "xxh3_128", file->content, sizeof file->content, err);
    if (rc != SFC_OK)
        return sfc_prefix(err, "file \"%s\"", name);
    out->file_count++;
    return SFC_OK;
}

static int parse_shape(const json_t *root, struct sfc_meta *out, struct sfc_error *err)
{
    char format[32];
    uint64_t width = 0, height = 0, channels = 0;
    int rc = get_text(root, "format", format, sizeof format, err);
    if (rc == SFC_OK && strcmp(format, META_FORMAT) != 0)
        rc = sfc_fail(err, SFC_EUNSUPPORTED, "format \"%s\", this program reads \"%s\"", format,
                      META_FORMAT);
    if (rc == SFC_OK)
        rc = get_number(root, "width", SFC_JPEG_MAX_SIDE, &width, err);
    if (rc == SFC_OK)
        rc = get_number(root, "height", SFC_JPEG_MAX_SIDE, &height, err);
    if (rc == SFC_OK)
        rc = get_number(root, "channels", 3, &channels, err);
    if (rc != SFC_OK)
        return rc;
    if (width == 0 || height == 0 || (channels != 1 && channels != 3))
        return sfc_fail(err, SFC_ECORRUPT, "images of %llu x %llu with %llu channels",
                        (unsigned long long)width, (unsigned long long)height,
                        (unsigned long long)channels);
    if (!json_is_boolean(json_object_get(root, "flip")))
        return sfc_fail(err, SFC_ECORRUPT, "\"flip\" is not true or false");
    out->width = (uint32_t)width;
    out->height = (uint32_t)height;
    out->channels = (uint32_t)channels;
    out->flip = json_is_true(json_object_get(root, "flip"));
    return SFC_OK;
}

int sfc_meta_parse(const char *text, size_t length, struct sfc_meta *out, struct sfc_error *err)
{
    json_error_t where;
    struct sfc_meta meta;
    memset(&meta, 0, sizeof meta);
    json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (root == NULL)
        return sfc_fail(err, SFC_ECORRUPT, "line %d: %s", where.line, where.text);
    int rc = SFC_OK;
    if (!json_is_object(root))
        rc = sfc_fail(err, SFC_ECORRUPT, "not a JSON object");
    if (rc == SFC_OK)
        rc = parse_shape(root, &meta, err);
    if (rc == SFC_OK && json_object_get(root, "origin") != NULL)
        rc = get_text(root, "origin", meta.origin, sizeof meta.origin, err);
    if (rc == SFC_OK && json_object_get(root, "seed") != NULL)
        rc = get_number(root, "seed", INT64_MAX, &meta.seed, err);
    const char *name = NULL;
    json_t *file = NULL;
    json_object_foreach(json_object_get(root, "files"), name, file) if (rc == SFC_OK) rc =
        parse_file(name, file, &meta, err);
    json_decref(root);
    if (rc == SFC_OK)
        *out = meta;
    return rc;
}

int sfc_meta_read(const char *path, struct sfc_meta *out, struct sfc_error *err)
{
    uint8_t *text = NULL;
    size_t length = 0;
    int rc = sfc_file_read(path, META_LIMIT, &text, &length, err);
    if (rc != SFC_OK)
        return rc;
    rc = sfc_meta_parse((const char *)text, length, out, err);
    free(text);
    return rc == SFC_OK ? rc : sfc_prefix(err, "%s", path);
}

static json_t *file_json(const struct sfc_meta_file *file)
{
    return json_pack("{s:I, s:I, s:I, s:s}", "samples", (json_int_t)file->samples, "classes",
                     (json_int_t)file->classes, "bytes", (json_int_t)file->bytes, "xxh3_128",
                     file->content);
}

int sfc_meta_write(const char *path, const struct sfc_meta *meta, struct sfc_error *err)
{
    struct sfc_out_file file = {0};
    char *text = NULL;
    int rc = SFC_OK;
    json_t *root = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:b, s:I, s:{}}", "format", META_FORMAT, "origin", meta->origin,
        "width", (int)meta->width, "height", (int)meta->height, "channels", (int)meta->channels,
        "flip", (int)meta->flip, "seed", (json_int_t)(meta->seed & INT64_MAX), "files");
    for (uint32_t i = 0; i < meta->file_count && root != NULL; i++)
        if (json_object_set_new(json_object_get(root, "files"), meta->files[i].name,
                                file_json(&meta->files[i])) != 0) {
            json_decref(root);
            root = NULL;
        }
    if (root != NULL)
        text = json_dumps(root, JSON_INDENT(2));
    if (text == NULL) {
        rc = sfc_fail(err, SFC_ENOMEM, "no memory for %s", path);
        goto out;
    }
    rc = sfc_out_file_open(&file, path, err);
    if (rc != SFC_OK)
        goto out;
    if (fprintf(file.stream, "%s\n", text) < 0)
        rc = sfc_fail_errno(err, "write %s", path);
    else
        rc = sfc_out_file_commit(&file, err);
    sfc_out_file_abort(&file);
out:
    free(text);
    json_decref(root);
    return rc;
}

const struct sfc_meta_file *sfc_meta_find(const struct sfc_meta *meta, const char *name)
{
    for (uint32_t i = 0; i < meta->file_count; i++)
        if (strcmp(meta->files[i].name, name) == 0)
            return &meta->files[i];
    return NULL;
}

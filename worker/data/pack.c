#include "worker/data/pack.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "worker/data/dataset.h"
#include "worker/data/file.h"
#include "worker/data/jpeg.h"
#include "worker/data/set_writer.h"

#define FILE_LIMIT (32U << 20)

struct names {
    char **items;
    size_t count, capacity;
};

struct pack {
    const struct sfc_pack_options *options;
    struct sfc_pack_report *report;
    struct sfc_set_writer *writer;
    struct sfc_jpeg *jpeg;
    struct sfc_jpeg_info shape; /* of the first image */
    char *shape_path;
    uint8_t *pixels;
};

static void names_free(struct names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->items[i]);
    free(names->items);
    memset(names, 0, sizeof *names);
}

static int names_add(struct names *names, const char *name, struct sfc_error *err)
{
    if (names->count == names->capacity) {
        size_t capacity = names->capacity * 2 + 64;
        char **items = realloc(names->items, capacity * sizeof *items);
        if (items == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for %zu names", capacity);
        names->items = items;
        names->capacity = capacity;
    }
    char *copy = strdup(name);
    if (copy == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a name");
    names->items[names->count++] = copy;
    return SFC_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Entries of a folder in byte order, without those that start with a dot. */
static int list(const char *folder, struct names *out, struct sfc_error *err)
{
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return sfc_fail_errno(err, "read folder %s", folder);
    int rc = SFC_OK;
    struct dirent *entry = NULL;
    errno = 0;
    while (rc == SFC_OK && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.')
            rc = names_add(out, entry->d_name, err);
        errno = 0;
    }
    if (rc == SFC_OK && errno != 0)
        rc = sfc_fail_errno(err, "read folder %s", folder);
    closedir(dir);
    if (out->count > 0)
        qsort(out->items, out->count, sizeof *out->items, by_bytes);
    return rc;
}

static bool is_jpeg(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL && (strcasecmp(dot, ".jpg") == 0 || strcasecmp(dot, ".jpeg") == 0);
}

/* Only the JPEG files of a folder. */
static int list_images(struct pack *pack, const char *folder, struct names *out,
                       struct sfc_error *err)
{
    int rc = list(folder, out, err);
    size_t kept = 0;
    for (size_t i = 0; i < out->count; i++) {
        if (is_jpeg(out->items[i])) {
            char *name = out->items[i];
            out->items[i] = out->items[kept];
            out->items[kept++] = name;
        } else {
            pack->report->ignored_files++;
        }
    }
    while (out->count > kept)
        free(out->items[--out->count]);
    return rc;
}

static int check_shape(struct pack *pack, const char *path, const uint8_t *data, size_t length,
                       struct sfc_error *err)
{
    struct sfc_jpeg_info info = {0};
    int rc = sfc_jpeg_info(pack->jpeg, data, length, &info, err);
    if (rc != SFC_OK)
        return rc;
    if (pack->shape_path == NULL) {
        pack->shape = info;
        pack->shape_path = strdup(path);
        pack->pixels = malloc((size_t)info.width * info.height * info.channels);
        if (pack->shape_path == NULL || pack->pixels == NULL)
            return sfc_fail(err, SFC_ENOMEM, "no memory for an image");
    }
    const struct sfc_jpeg_info *first = &pack->shape;
    if (info.width != first->width || info.height != first->height ||
        info.channels != first->channels)
        return sfc_fail(err, SFC_EINVAL,
                        "%u x %u %s, but %s is %u x %u %s: all images must be alike", info.width,
                        info.height, info.channels == 1 ? "grey" : "colour", pack->shape_path,
                        first->width, first->height, first->channels == 1 ? "grey" : "colour");
    return sfc_jpeg_decode(pack->jpeg, data, length, first->width, first->height, first->channels,
                           pack->pixels, err);
}

static int add_image(struct pack *pack, const char *folder, const char *name, struct sfc_error *err)
{
    uint8_t *data = NULL;
    size_t length = 0;
    char *path = sfc_path_join(folder, name);
    if (path == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = sfc_file_read(path, FILE_LIMIT, &data, &length, err);
    if (rc == SFC_OK) {
        rc = check_shape(pack, path, data, length, err);
        if (rc != SFC_OK)
            rc = sfc_prefix(err, "%s", path);
    }
    if (rc == SFC_OK)
        rc = sfc_set_writer_add(pack->writer, pack->report->identities, data, length, err);
    if (rc == SFC_OK)
        pack->report->samples++;
    free(data);
    free(path);
    return rc;
}

static int add_identity(struct pack *pack, const char *name, struct sfc_error *err)
{
    struct names images = {0};
    struct stat st;
    char *folder = sfc_path_join(pack->options->folder, name);
    if (folder == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = SFC_OK;
    if (stat(folder, &st) != 0) {
        rc = sfc_fail_errno(err, "read %s", folder);
        goto out;
    }
    if (!S_ISDIR(st.st_mode)) {
        pack->report->ignored_files++;
        goto out;
    }
    rc = list_images(pack, folder, &images, err);
    if (rc != SFC_OK)
        goto out;
    uint32_t least = pack->options->min_images > 0 ? pack->options->min_images : 1;
    if (images.count < least) {
        pack->report->dropped_identities++;
        goto out;
    }
    for (size_t i = 0; i < images.count && rc == SFC_OK; i++)
        rc = add_image(pack, folder, images.items[i], err);
    if (rc == SFC_OK)
        pack->report->identities++;
out:
    names_free(&images);
    free(folder);
    return rc;
}

static int add_all(struct pack *pack, struct sfc_error *err)
{
    const struct sfc_pack_options *o = pack->options;
    struct names identities = {0};
    struct sfc_progress_clock clock;
    int rc = list(o->folder, &identities, err);
    sfc_progress_begin(&clock);
    for (size_t i = 0; i < identities.count && rc == SFC_OK; i++) {
        rc = add_identity(pack, identities.items[i], err);
        if (rc == SFC_OK)
            rc = sfc_progress_tell(&clock, o->progress, o->progress_arg, "pack", "folders", i + 1,
                                   identities.count, err);
    }
    names_free(&identities);
    if (rc == SFC_OK && pack->report->samples == 0)
        rc = sfc_fail(err, SFC_ENOTFOUND, "%s holds no identity folder with JPEG files", o->folder);
    return rc;
}

static int finish(struct pack *pack, struct sfc_error *err)
{
    struct sfc_dataset *set = NULL;
    struct sfc_pack_report *r = pack->report;
    struct sfc_meta meta = {.width = pack->shape.width,
                            .height = pack->shape.height,
                            .channels = pack->shape.channels,
                            .flip = !pack->options->no_flip,
                            .origin = "pack",
                            .file_count = 1};
    char *path = sfc_path_join(pack->options->out, "meta.json");
    if (path == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a file name");
    int rc = sfc_set_writer_finish(pack->writer, &meta.files[0], err);
    if (rc == SFC_OK)
        rc = sfc_meta_write(path, &meta, err);
    if (rc == SFC_OK)
        rc = sfc_dataset_open(pack->options->out, &set, err); /* what was written can be read */
    if (rc == SFC_OK) {
        r->bytes = meta.files[0].bytes;
        r->width = meta.width;
        r->height = meta.height;
        r->channels = meta.channels;
        memcpy(r->digest, sfc_dataset_info(set)->digest, sizeof r->digest);
    }
    sfc_dataset_close(set);
    free(path);
    return rc;
}

int sfc_data_pack(const struct sfc_pack_options *options, struct sfc_pack_report *report,
                  struct sfc_error *err)
{
    struct sfc_pack_report result = {0};
    struct pack pack = {.options = options, .report = &result};
    int rc = sfc_folder_create(options->out, err);
    if (rc == SFC_OK)
        rc = sfc_jpeg_new(&pack.jpeg, err);
    if (rc == SFC_OK)
        rc = sfc_set_writer_new(options->out, "train", &pack.writer, err);
    if (rc == SFC_OK)
        rc = add_all(&pack, err);
    if (rc == SFC_OK)
        rc = finish(&pack, err);
    if (rc == SFC_OK)
        *report = result;
    sfc_set_writer_free(pack.writer);
    sfc_jpeg_free(pack.jpeg);
    free(pack.shape_path);
    free(pack.pixels);
    return rc;
}

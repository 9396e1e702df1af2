/* meta.json beside record files: how the images look, and what each file holds (docs/FORMATS.md).
 */
#ifndef SFC_WORKER_DATA_META_H
#define SFC_WORKER_DATA_META_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_META_FILES 4

struct sfc_meta_file {
    char name[64]; /* "train.rec" */
    uint64_t samples, classes, bytes;
    char content[33]; /* XXH3-128 in hex of the record file */
};

struct sfc_meta {
    uint32_t width, height, channels;
    bool flip;
    char origin[32]; /* "glyphs", "pack" */
    uint64_t seed;   /* of glyphs */
    struct sfc_meta_file files[SFC_META_FILES];
    uint32_t file_count;
};

/* Text of at most 1 MiB. SFC_ECORRUPT names the field. */
int sfc_meta_parse(const char *text, size_t length, struct sfc_meta *out, struct sfc_error *err);
/* SFC_ENOTFOUND: no such file. */
int sfc_meta_read(const char *path, struct sfc_meta *out, struct sfc_error *err);
int sfc_meta_write(const char *path, const struct sfc_meta *meta, struct sfc_error *err);
/* NULL: the file is not in meta. */
const struct sfc_meta_file *sfc_meta_find(const struct sfc_meta *meta, const char *name);

#endif

#include "server/durable/snapshot_file.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/snapshot_store.h"

static const char *const part_names[SFC_SNAPSHOT_PARTS] = {"values", "momentum", "last steps",
                                                           "second moment"};

static int corrupt(struct sfc_file *file, const char *name, uint64_t offset, const char *why,
                   struct sfc_error *err)
{
    return sfc_fail(err, SFC_ECORRUPT, "%s/%s: byte %" PRIu64 ": %s", file->folder->path, name,
                    offset, why);
}

static int check_header(struct sfc_file *file, const char *name, struct sfc_snapshot_header *header,
                        struct sfc_error *err)
{
    uint8_t bytes[SFC_SNAPSHOT_HEADER];
    const struct sfc_folder_ops *ops = file->folder->ops;
    struct sfc_snapshot_key key;
    uint64_t size;
    size_t got;
    int code = ops->read(file, 0, bytes, sizeof bytes, &got, err);
    if (code == SFC_OK) {
        code = ops->size(file, &size, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_snapshot_decode_header(bytes, got, header, err);
    if (code != SFC_OK) {
        return sfc_prefix(err, "%s/%s", file->folder->path, name), code;
    }
    if (!sfc_snapshot_parse_name(name, &key) || key.kind != header->key.kind ||
        key.block != header->key.block || key.step != header->key.step ||
        (key.grown != 0 && key.grown != header->shape.rows)) {
        return corrupt(file, name, 0, "the header is that of another block or step", err);
    }
    header->key.grown = key.grown;
    uint64_t expected = sfc_snapshot_offset(header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS);
    if (size != expected) {
        return corrupt(file, name, size < expected ? size : expected,
                       size < expected ? "the file ends here" : "more bytes than there should be",
                       err);
    }
    return SFC_OK;
}

int sfc_snapshot_file_open(struct sfc_folder *folder, const char *name, struct sfc_file **file,
                           struct sfc_snapshot_header *header, struct sfc_error *err)
{
    struct sfc_file *opened;
    int code = folder->ops->open(folder, name, false, &opened, err);
    if (code != SFC_OK) {
        return code;
    }
    code = check_header(opened, name, header, err);
    if (code != SFC_OK) {
        folder->ops->close_file(opened);
        return code;
    }
    *file = opened;
    return SFC_OK;
}

static int check_padding(struct sfc_file *file, const char *name, uint64_t offset, uint64_t size,
                         struct sfc_error *err)
{
    static const uint8_t zeros[8];
    uint8_t bytes[8];
    size_t pad = (size_t)(-size & 7), got;
    int code = file->folder->ops->read(file, offset + size, bytes, pad, &got, err);
    if (code == SFC_OK && (got != pad || memcmp(bytes, zeros, pad) != 0)) {
        return corrupt(file, name, offset + size, "padding is not zero", err);
    }
    return code;
}

int sfc_snapshot_scratch_init(struct sfc_snapshot_scratch *scratch, struct sfc_error *err)
{
    struct sfc_snapshot_scratch s = {.piece = malloc(SFC_SNAPSHOT_PIECE),
                                     .digest = sfc_digest_new()};
    int code = s.piece == NULL || s.digest == NULL
                   ? sfc_fail(err, SFC_ENOMEM, "out of memory for the snapshots")
                   : sfc_unpacker_new(&s.unpacker, err);
    if (code != SFC_OK) {
        sfc_snapshot_scratch_free(&s);
        return code;
    }
    *scratch = s;
    return SFC_OK;
}

void sfc_snapshot_scratch_free(struct sfc_snapshot_scratch *scratch)
{
    free(scratch->piece);
    sfc_digest_free(scratch->digest);
    sfc_unpacker_free(scratch->unpacker);
    *scratch = (struct sfc_snapshot_scratch){0};
}

/* A part on its way from the file. */
struct reading {
    struct sfc_file *file;
    const char *name;
    const struct sfc_snapshot_header *header;
    enum sfc_snapshot_part part;
    uint8_t *out; /* NULL: only checked */
    struct sfc_snapshot_scratch *scratch;
    uint64_t offset, size; /* as stored */
};

static int broken_frame(const struct reading *r, int code, const struct sfc_error *why,
                        struct sfc_error *err)
{
    char text[192];
    if (code != SFC_ECORRUPT) {
        return sfc_fail(err, code, "%s", why->text);
    }
    snprintf(text, sizeof text, "the compressed %s are damaged: %.100s", part_names[r->part],
             why->text);
    return corrupt(r->file, r->name, r->offset, text, err);
}

/* Stored bytes from `done` on: their checksum, and where they belong. */
static int read_piece(const struct reading *r, uint64_t done, size_t n, struct sfc_error *err)
{
    bool packed = r->header->storage == SFC_SNAPSHOT_ZSTD;
    uint8_t *to = packed || r->out == NULL ? r->scratch->piece : r->out + done;
    size_t got = 0;
    int code = r->file->folder->ops->read(r->file, r->offset + done, to, n, &got, err);
    if (code == SFC_OK && got != n) {
        code = corrupt(r->file, r->name, r->offset + done + got, "the file ends here", err);
    }
    if (code != SFC_OK) {
        return code;
    }
    sfc_digest_update(r->scratch->digest, to, n);
    struct sfc_error why;
    code = packed ? sfc_unpacker_take(r->scratch->unpacker, to, n, &why) : SFC_OK;
    return code == SFC_OK ? SFC_OK : broken_frame(r, code, &why, err);
}

static int end_reading(const struct reading *r, struct sfc_error *err)
{
    struct sfc_error why;
    int code = SFC_OK;
    if (sfc_digest_final64(r->scratch->digest) != r->header->checksum[r->part]) {
        char text[64];
        snprintf(text, sizeof text, "the checksum of the %s is wrong", part_names[r->part]);
        return corrupt(r->file, r->name, r->offset, text, err);
    }
    if (r->header->storage == SFC_SNAPSHOT_ZSTD) {
        code = sfc_unpacker_end(r->scratch->unpacker, &why);
    }
    return code == SFC_OK ? check_padding(r->file, r->name, r->offset, r->size, err)
                          : broken_frame(r, code, &why, err);
}

int sfc_snapshot_file_part(struct sfc_file *file, const char *name,
                           const struct sfc_snapshot_header *header, enum sfc_snapshot_part part,
                           uint8_t *out, struct sfc_snapshot_scratch *scratch,
                           struct sfc_error *err)
{
    const struct reading r = {file,
                              name,
                              header,
                              part,
                              out,
                              scratch,
                              sfc_snapshot_offset(header, part),
                              header->stored[part]};
    int code = SFC_OK;
    if (!header->shape.has[part]) {
        return SFC_OK;
    }
    sfc_digest_reset(scratch->digest);
    sfc_unpacker_begin(scratch->unpacker, out, sfc_snapshot_part_bytes(&header->shape, part));
    for (uint64_t done = 0; done < r.size && code == SFC_OK;) {
        uint64_t left = r.size - done;
        size_t n = left < SFC_SNAPSHOT_PIECE ? (size_t)left : SFC_SNAPSHOT_PIECE;
        code = read_piece(&r, done, n, err);
        done += n;
    }
    return code == SFC_OK ? end_reading(&r, err) : code;
}

/* out: all parts one behind the other, or NULL to check only. */
static int read_all(struct sfc_file *file, const char *name,
                    const struct sfc_snapshot_header *header, uint8_t *out, struct sfc_error *err)
{
    struct sfc_snapshot_scratch scratch = {0};
    int code = sfc_snapshot_scratch_init(&scratch, err);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS && code == SFC_OK; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        code = sfc_snapshot_file_part(file, name, header, part, out, &scratch, err);
        if (out != NULL) {
            out += sfc_snapshot_part_bytes(&header->shape, part);
        }
    }
    sfc_snapshot_scratch_free(&scratch);
    return code;
}

int sfc_snapshot_check(struct sfc_folder *folder, const char *name,
                       struct sfc_snapshot_header *header, struct sfc_error *err)
{
    struct sfc_snapshot_header found;
    struct sfc_file *file;
    int code = sfc_snapshot_file_open(folder, name, &file, &found, err);
    if (code != SFC_OK) {
        return code;
    }
    if (header != NULL) {
        *header = found;
    }
    code = read_all(file, name, &found, NULL, err);
    folder->ops->close_file(file);
    return code;
}

int sfc_snapshot_load(struct sfc_folder *folder, const char *name,
                      struct sfc_snapshot_header *header, uint8_t **out, struct sfc_error *err)
{
    struct sfc_file *file;
    uint8_t *bytes = NULL;
    int code = sfc_snapshot_file_open(folder, name, &file, header, err);
    if (code != SFC_OK) {
        return code;
    }
    uint64_t size = sfc_snapshot_file_bytes(&header->shape);
    if (size >> 17 > sfc_snapshot_offset(header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS)) {
        code = corrupt(file, name, 0, "far more content than so few bytes can hold", err);
    } else {
        bytes = malloc((size_t)size);
        code = bytes == NULL ? sfc_fail(err, SFC_ENOMEM,
                                        "out of memory for %" PRIu64 " bytes of %s", size, name)
                             : read_all(file, name, header, bytes, err);
    }
    folder->ops->close_file(file);
    if (code != SFC_OK) {
        free(bytes);
        return code;
    }
    *out = bytes;
    return SFC_OK;
}

#include "server/durable/snapshot_file.h"

#include <inttypes.h>
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
        key.block != header->key.block || key.step != header->key.step) {
        return corrupt(file, name, 0, "the header is that of another block or step", err);
    }
    uint64_t expected = sfc_snapshot_file_bytes(&header->shape);
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

int sfc_snapshot_file_part(struct sfc_file *file, const char *name,
                           const struct sfc_snapshot_header *header, enum sfc_snapshot_part part,
                           uint8_t *out, uint8_t *piece, struct sfc_digest *digest,
                           struct sfc_error *err)
{
    uint64_t offset = sfc_snapshot_part_offset(&header->shape, part);
    uint64_t size = sfc_snapshot_part_bytes(&header->shape, part);
    int code = SFC_OK;
    if (!header->shape.has[part]) {
        return SFC_OK;
    }
    sfc_digest_reset(digest);
    for (uint64_t done = 0; done < size && code == SFC_OK;) {
        uint64_t left = size - done;
        size_t n = left < SFC_SNAPSHOT_PIECE ? (size_t)left : SFC_SNAPSHOT_PIECE, got = 0;
        uint8_t *to = out == NULL ? piece : out + done;
        code = file->folder->ops->read(file, offset + done, to, n, &got, err);
        if (code == SFC_OK && got != n) {
            code = corrupt(file, name, offset + done + got, "the file ends here", err);
        }
        sfc_digest_update(digest, to, got);
        done += n;
    }
    if (code == SFC_OK && sfc_digest_final64(digest) != header->checksum[part]) {
        char why[64];
        snprintf(why, sizeof why, "the checksum of the %s is wrong", part_names[part]);
        code = corrupt(file, name, offset, why, err);
    }
    return code == SFC_OK ? check_padding(file, name, offset, size, err) : code;
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
    uint8_t *piece = malloc(SFC_SNAPSHOT_PIECE);
    struct sfc_digest *digest = sfc_digest_new();
    if (piece == NULL || digest == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for checking %s", name);
    }
    for (int part = 0; part < SFC_SNAPSHOT_PARTS && code == SFC_OK; part++) {
        code = sfc_snapshot_file_part(file, name, &found, (enum sfc_snapshot_part)part, NULL, piece,
                                      digest, err);
    }
    sfc_digest_free(digest);
    free(piece);
    folder->ops->close_file(file);
    return code;
}

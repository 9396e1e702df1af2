/* Writing one snapshot in pieces: temporary file, sync, rename, sync of the folder. What is written
 * directly is on the disk at once, as far as pieces are synced for: so that the last sync has
 * little to do. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/buffer.h"
#include "server/durable/snapshot_internal.h"

#define CACHED ((uint64_t)256 << 10) /* bytes that are put, and summed while they are near */

struct sfc_snapshot_write {
    struct sfc_snapshot_store *store;
    struct sfc_snapshot_header header;
    const void *parts[SFC_SNAPSHOT_PARTS];
    struct sfc_file *file;
    int part;        /* being written */
    uint64_t done;   /* bytes of it that were taken; header.stored: that were written */
    uint64_t offset; /* of the part in the file */
    bool begun;      /* the part */
    bool finished;
    bool direct;
    uint64_t
        filled; /* direct: bytes of the file that were put, the last of them in store->direct */
    char temporary[SFC_SNAPSHOT_NAME_SIZE + 8];
};

static int check_begin(const struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                       const struct sfc_snapshot_shape *shape,
                       const void *const parts[SFC_SNAPSHOT_PARTS], struct sfc_error *err)
{
    size_t n, first = sfc_snapshot_store_find(store, key->kind, key->block, &n);
    if (store->writing != NULL) {
        return sfc_fail(err, SFC_ESTATE, "another snapshot is being written");
    }
    for (size_t i = 0; i < n; i++) {
        if (store->keys[first + i].step == key->step &&
            store->keys[first + i].grown == key->grown) {
            return sfc_fail(err, SFC_EEXIST,
                            "block %" PRIu64 " has a snapshot of step %" PRIu64 " already",
                            key->block, key->step);
        }
    }
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        if (shape->has[i] != (parts[i] != NULL)) {
            return sfc_fail(err, SFC_EINVAL,
                            "snapshot: the parts given are not those of the shape");
        }
    }
    return sfc_snapshot_shape_check(shape, err);
}

/* The name must be free on the disk too: a rename that survives a crash must not find the remains
 * of an attempt before under it. */
static int clear_temporary(struct sfc_snapshot_store *store, const char *temporary,
                           struct sfc_error *err)
{
    int code = store->folder->ops->remove(store->folder, temporary, err);
    if (code != SFC_OK && code != SFC_ENOTFOUND) {
        return code;
    }
    if (code == SFC_ENOTFOUND && !store->remains) {
        return SFC_OK;
    }
    code = store->folder->ops->sync_names(store->folder, err);
    if (code == SFC_OK) {
        store->remains = false;
    }
    return code;
}

int sfc_snapshot_write_begin(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key,
                             const struct sfc_snapshot_shape *shape,
                             const void *const parts[SFC_SNAPSHOT_PARTS],
                             struct sfc_snapshot_write **out, struct sfc_error *err)
{
    int code = check_begin(store, key, shape, parts, err);
    if (code == SFC_OK) {
        code = sfc_snapshot_store_reserve(store, err);
    }
    if (code != SFC_OK) {
        return code;
    }
    struct sfc_snapshot_write *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a snapshot");
    }
    char name[SFC_SNAPSHOT_NAME_SIZE];
    sfc_snapshot_name(key, name);
    snprintf(w->temporary, sizeof w->temporary, "%s" SFC_SNAPSHOT_TMP, name);
    w->store = store;
    w->header =
        (struct sfc_snapshot_header){.identity = store->identity, .key = *key, .shape = *shape};
    w->header.storage = store->packer != NULL ? SFC_SNAPSHOT_ZSTD : SFC_SNAPSHOT_RAW;
    w->offset = SFC_SNAPSHOT_HEADER;
    memcpy(w->parts, parts, sizeof w->parts);
    code = clear_temporary(store, w->temporary, err);
    if (code == SFC_OK) {
        code = store->folder->ops->create(store->folder, w->temporary, &w->file, err);
    }
    if (code != SFC_OK) {
        free(w);
        return code;
    }
    store->writing = w;
    *out = w;
    return SFC_OK;
}

void sfc_snapshot_write_direct(struct sfc_snapshot_write *w)
{
    struct sfc_snapshot_store *store = w->store;
    if (store->direct == NULL) {
        store->direct = sfc_buffer_new(SFC_SNAPSHOT_DIRECT);
    }
    if (store->direct == NULL || !store->folder->ops->direct(w->file, true)) {
        return;
    }
    memset(store->direct, 0, SFC_SNAPSHOT_HEADER); /* it is written last */
    w->filled = SFC_SNAPSHOT_HEADER;
    w->direct = true;
}

/* The bytes behind those that were put, through store->direct. */
static int put_direct(struct sfc_snapshot_write *w, const uint8_t *data, size_t size,
                      struct sfc_error *err)
{
    uint8_t *buffer = w->store->direct;
    int code = SFC_OK;
    while (code == SFC_OK && size > 0) {
        size_t at = w->filled % SFC_SNAPSHOT_DIRECT, room = SFC_SNAPSHOT_DIRECT - at;
        size_t n = size < room ? size : room;
        memcpy(buffer + at, data, n);
        if (n == room) {
            struct sfc_bytes whole = {buffer, SFC_SNAPSHOT_DIRECT};
            code = w->store->folder->ops->write(w->file, w->filled - at, &whole, 1, err);
        }
        w->filled += n;
        data += n;
        size -= n;
    }
    return code;
}

/* What is left in the buffer, and an ordinary file again, of the size that it has to have. */
static int end_direct(struct sfc_snapshot_write *w, struct sfc_error *err)
{
    const struct sfc_folder_ops *ops = w->store->folder->ops;
    size_t left = w->filled % SFC_SNAPSHOT_DIRECT;
    size_t padded = (left + SFC_FILE_DIRECT - 1) / SFC_FILE_DIRECT * SFC_FILE_DIRECT;
    struct sfc_bytes rest = {w->store->direct, padded};
    int code = SFC_OK;
    memset(w->store->direct + left, 0, padded - left);
    if (padded > 0) {
        code = ops->write(w->file, w->filled - left, &rest, 1, err);
    }
    if (code == SFC_OK && !ops->direct(w->file, false)) {
        code =
            sfc_fail(err, SFC_EIO, "%s: the file stays one that is written directly", w->temporary);
    }
    w->direct = false;
    return code == SFC_OK ? ops->resize(w->file, w->filled, err) : code;
}

/* Behind what is there. */
static int put(struct sfc_snapshot_write *w, uint64_t offset, const void *data, size_t size,
               struct sfc_error *err)
{
    struct sfc_bytes bytes = {data, size};
    return w->direct ? put_direct(w, data, size, err)
                     : w->store->folder->ops->write(w->file, offset, &bytes, 1, err);
}

static int begin_part(struct sfc_snapshot_write *w, struct sfc_error *err)
{
    uint64_t size = sfc_snapshot_part_bytes(&w->header.shape, (enum sfc_snapshot_part)w->part);
    w->begun = true;
    w->done = 0;
    sfc_digest_reset(w->store->digest);
    return w->header.storage == SFC_SNAPSHOT_ZSTD ? sfc_packer_begin(w->store->packer, size, err)
                                                  : SFC_OK;
}

/* Bytes as they are stored, behind what is there of the part. */
static int append(void *ctx, const void *data, size_t size, struct sfc_error *err)
{
    struct sfc_snapshot_write *w = ctx;
    uint64_t *stored = &w->header.stored[w->part];
    int code = put(w, w->offset + *stored, data, size, err);
    if (code == SFC_OK) {
        sfc_digest_update(w->store->digest, data, size);
        *stored += size;
    }
    return code;
}

/* One piece of the part at hand. */
static int write_piece(struct sfc_snapshot_write *w, uint64_t *budget, struct sfc_error *err)
{
    enum sfc_snapshot_part part = (enum sfc_snapshot_part)w->part;
    uint64_t left = sfc_snapshot_part_bytes(&w->header.shape, part) - w->done;
    uint64_t most = *budget < CACHED ? *budget : CACHED;
    uint64_t n = left < most ? left : most;
    const uint8_t *from = (const uint8_t *)w->parts[part] + w->done;
    const struct sfc_packed_sink sink = {append, w};
    int code = w->header.storage == SFC_SNAPSHOT_ZSTD
                   ? sfc_packer_take(w->store->packer, from, (size_t)n, &sink, err)
                   : append(w, from, (size_t)n, err);
    if (code == SFC_OK) {
        w->done += n;
        *budget -= n;
    }
    return code;
}

/* The end of the frame, padding, and on to the next part. */
static int end_part(struct sfc_snapshot_write *w, struct sfc_error *err)
{
    static const uint8_t zeros[8];
    const struct sfc_packed_sink sink = {append, w};
    uint64_t *stored = &w->header.stored[w->part];
    int code = w->header.storage == SFC_SNAPSHOT_ZSTD ? sfc_packer_end(w->store->packer, &sink, err)
                                                      : SFC_OK;
    size_t padding = (size_t)(-*stored & 7);
    if (code == SFC_OK && padding > 0) {
        code = put(w, w->offset + *stored, zeros, padding, err);
    }
    w->header.checksum[w->part] = sfc_digest_final64(w->store->digest);
    w->offset += *stored + padding;
    w->part++;
    w->begun = false;
    return code;
}

static int publish(struct sfc_snapshot_write *w, struct sfc_error *err)
{
    struct sfc_folder *folder = w->store->folder;
    char name[SFC_SNAPSHOT_NAME_SIZE];
    sfc_snapshot_name(&w->header.key, name);
    int code = folder->ops->rename(folder, w->temporary, name, err);
    if (code == SFC_OK) {
        code = folder->ops->sync_names(folder, err);
        if (code != SFC_OK) { /* nobody knows whether the name is durable: it is not listed */
            (void)folder->ops->remove(folder, name, NULL);
        }
    }
    return code;
}

static int finish(struct sfc_snapshot_write *w, struct sfc_error *err)
{
    uint8_t header[SFC_SNAPSHOT_HEADER];
    struct sfc_bytes bytes = {header, sizeof header};
    const struct sfc_folder_ops *ops = w->store->folder->ops;
    sfc_snapshot_encode_header(&w->header, header);
    int code = w->direct ? end_direct(w, err) : SFC_OK;
    if (code == SFC_OK) {
        code = ops->write(w->file, 0, &bytes, 1, err);
    }
    if (code == SFC_OK && SFC_PLANT_BUG != 4) { /* bug 4: rename before the content is durable */
        code = ops->sync(w->file, err);
    }
    if (code == SFC_OK) {
        code = publish(w, err);
    }
    if (code == SFC_OK) {
        w->finished = true;
        (void)sfc_snapshot_store_add(w->store, &w->header.key);
        sfc_snapshot_store_prune(w->store, w->header.key.kind, w->header.key.block);
    }
    return code;
}

int sfc_snapshot_write_some(struct sfc_snapshot_write *w, uint64_t max_bytes, bool *done,
                            struct sfc_error *err)
{
    int code = SFC_OK;
    while (code == SFC_OK && w->part < SFC_SNAPSHOT_PARTS) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)w->part;
        if (!w->header.shape.has[part]) {
            w->part++;
        } else if (!w->begun) {
            code = begin_part(w, err);
        } else if (w->done == sfc_snapshot_part_bytes(&w->header.shape, part)) {
            code = end_part(w, err);
        } else if (max_bytes > 0) {
            code = write_piece(w, &max_bytes, err);
        } else {
            break;
        }
    }
    if (code != SFC_OK) {
        return code;
    }
    if (w->part < SFC_SNAPSHOT_PARTS) {
        *done = false;
        return w->direct ? SFC_OK : w->store->folder->ops->sync(w->file, err);
    }
    code = finish(w, err);
    if (code == SFC_OK) {
        *done = true;
    }
    return code;
}

void sfc_snapshot_write_end(struct sfc_snapshot_write *w)
{
    if (w == NULL) {
        return;
    }
    struct sfc_folder *folder = w->store->folder;
    folder->ops->close_file(w->file);
    if (!w->finished) {
        (void)folder->ops->remove(folder, w->temporary, NULL);
        w->store->remains = true;
    }
    w->store->writing = NULL;
    free(w);
}

#include "server/durable/dense_list.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/digest.h"
#include "proto/limits.h"
#include "server/durable/log_codec.h"

#define VERSION   1u
#define HEADER    40u
#define TEMPORARY "blocks.tmp"

static const uint8_t magic[8] = {'S', 'F', 'C', 'B', 'L', 'O', 'C', 'K'};

void sfc_dense_list_name(uint64_t digest, char out[SFC_DENSE_LIST_NAME])
{
    snprintf(out, SFC_DENSE_LIST_NAME, "blocks-%016" PRIx64 ".sfb", digest);
}

bool sfc_dense_list_parse_name(const char *name, uint64_t *digest)
{
    char again[SFC_DENSE_LIST_NAME];
    uint64_t n = 0;
    if (sscanf(name, "blocks-%16" SCNx64, &n) != 1) {
        return false;
    }
    sfc_dense_list_name(n, again);
    if (strcmp(again, name) != 0) {
        return false;
    }
    *digest = n;
    return true;
}

int sfc_dense_list_encode(const struct sfc_run_identity *own, const uint64_t *blocks, size_t count,
                          uint8_t **out, size_t *size, struct sfc_error *err)
{
    size_t bytes = HEADER + 8 * count + 8;
    uint8_t *data = malloc(bytes);
    struct sfc_writer w;
    if (data == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a list of %zu blocks", count);
    }
    sfc_writer_init(&w, data, bytes);
    sfc_write_bytes(&w, magic, sizeof magic);
    sfc_write_u32(&w, VERSION);
    sfc_write_u32(&w, HEADER);
    sfc_write_u64(&w, own->run_id);
    sfc_write_u64(&w, own->nonce);
    sfc_write_u64(&w, count);
    for (size_t i = 0; i < count; i++) {
        sfc_write_u64(&w, blocks[i]);
    }
    sfc_write_u64(&w, sfc_digest64(data, bytes - 8));
    *out = data;
    *size = bytes;
    return SFC_OK;
}

static int take_blocks(struct sfc_reader *r, uint64_t count, struct sfc_dense_list *out,
                       struct sfc_error *err)
{
    uint64_t *blocks = malloc((count + 1) * sizeof *blocks);
    if (blocks == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a list of %" PRIu64 " blocks", count);
    }
    for (uint64_t i = 0; i < count; i++) {
        blocks[i] = sfc_read_u64(r);
        if (i > 0 && blocks[i] <= blocks[i - 1]) {
            free(blocks);
            return sfc_fail(err, SFC_ECORRUPT, "the blocks are not in ascending order");
        }
    }
    *out = (struct sfc_dense_list){sfc_log_blocks_digest(blocks, (size_t)count), blocks,
                                   (size_t)count};
    return SFC_OK;
}

int sfc_dense_list_decode(const uint8_t *data, size_t size, const struct sfc_run_identity *own,
                          struct sfc_dense_list *out, struct sfc_error *err)
{
    struct sfc_reader r;
    if (size < HEADER + 8 || size % 8 != 0 || memcmp(data, magic, sizeof magic) != 0) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: this is no list of blocks");
    }
    sfc_reader_init(&r, data + size - 8, 8);
    if (sfc_read_u64(&r) != sfc_digest64(data, size - 8)) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: the checksum is wrong");
    }
    sfc_reader_init(&r, data + sizeof magic, size - 8 - sizeof magic);
    uint32_t version = sfc_read_u32(&r), header = sfc_read_u32(&r);
    struct sfc_run_identity file = {.run_id = sfc_read_u64(&r)};
    file.nonce = sfc_read_u64(&r);
    uint64_t count = sfc_read_u64(&r);
    if (version != VERSION || header != HEADER) {
        return sfc_fail(err, SFC_EUNSUPPORTED, "has format version %u; this program knows %u",
                        version, VERSION);
    }
    if (count != (size - HEADER - 8) / 8 || count > SFC_LIMIT_BLOCKS) {
        return sfc_fail(err, SFC_ECORRUPT, "says %" PRIu64 " blocks in %zu bytes", count, size);
    }
    int code = sfc_run_identity_check_run(&file, own, err);
    return code == SFC_OK ? take_blocks(&r, count, out, err) : code;
}

static int write_file(struct sfc_folder *folder, const uint8_t *data, size_t size,
                      struct sfc_error *err)
{
    struct sfc_bytes bytes = {data, size};
    struct sfc_file *file;
    (void)folder->ops->remove(folder, TEMPORARY, NULL); /* that a crash left */
    int code = folder->ops->create(folder, TEMPORARY, &file, err);
    if (code != SFC_OK) {
        return code;
    }
    code = folder->ops->write(file, 0, &bytes, 1, err);
    if (code == SFC_OK) {
        code = folder->ops->sync(file, err);
    }
    folder->ops->close_file(file);
    return code;
}

int sfc_dense_list_store(struct sfc_folder *folder, const struct sfc_run_identity *own,
                         const uint64_t *blocks, size_t count, struct sfc_error *err)
{
    char name[SFC_DENSE_LIST_NAME];
    uint8_t *data = NULL;
    size_t size = 0;
    int code = sfc_dense_list_encode(own, blocks, count, &data, &size, err);
    if (code != SFC_OK) {
        return code;
    }
    sfc_dense_list_name(sfc_log_blocks_digest(blocks, count), name);
    code = write_file(folder, data, size, err);
    free(data);
    if (code == SFC_OK) {
        code = folder->ops->rename(folder, TEMPORARY, name, err);
    }
    return code == SFC_OK ? folder->ops->sync_names(folder, err) : code;
}

/* ---- all of a folder */

struct loading {
    struct sfc_folder *folder;
    const struct sfc_run_identity *own;
    struct sfc_dense_lists lists;
    char *loud;
};

static int take(struct sfc_dense_lists *lists, struct sfc_dense_list *list, struct sfc_error *err)
{
    struct sfc_dense_list *items =
        reallocarray(lists->items, lists->count + 1, sizeof *lists->items);
    if (items == NULL) {
        free(list->blocks);
        return sfc_fail(err, SFC_ENOMEM, "out of memory for lists of blocks");
    }
    lists->items = items;
    items[lists->count++] = *list;
    return SFC_OK;
}

static int read_file(struct sfc_folder *folder, const char *name, uint8_t **out, size_t *size,
                     struct sfc_error *err)
{
    struct sfc_file *file;
    uint64_t bytes = 0;
    int code = folder->ops->open(folder, name, false, &file, err);
    if (code != SFC_OK) {
        return code;
    }
    code = folder->ops->size(file, &bytes, err);
    if (code == SFC_OK && bytes > HEADER + 8 * SFC_LIMIT_BLOCKS + 8) {
        code = sfc_fail(err, SFC_ECORRUPT, "has %" PRIu64 " bytes", bytes);
    }
    uint8_t *data = code == SFC_OK ? malloc((size_t)bytes + 1) : NULL;
    if (code == SFC_OK && data == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "out of memory for a list of blocks");
    }
    if (code == SFC_OK) {
        code = folder->ops->read(file, 0, data, (size_t)bytes, size, err);
    }
    folder->ops->close_file(file);
    if (code != SFC_OK) {
        free(data);
        return code;
    }
    *out = data;
    return SFC_OK;
}

int sfc_dense_list_read(struct sfc_folder *folder, const char *name,
                        const struct sfc_run_identity *own, struct sfc_dense_list *out,
                        struct sfc_error *err)
{
    uint64_t digest = 0;
    uint8_t *data = NULL;
    size_t size = 0;
    struct sfc_dense_list list = {0};
    if (!sfc_dense_list_parse_name(name, &digest)) {
        return sfc_fail(err, SFC_EINVAL, "%s is no name of a list of blocks", name);
    }
    int code = read_file(folder, name, &data, &size, err);
    if (code == SFC_OK) {
        code = sfc_dense_list_decode(data, size, own, &list, err);
    }
    free(data);
    if (code == SFC_OK && list.digest != digest) {
        free(list.blocks);
        return sfc_fail(err, SFC_ECORRUPT, "its blocks have another digest");
    }
    if (code == SFC_OK) {
        *out = list;
    }
    return code;
}

static int visit(void *ctx, const char *name, struct sfc_error *err)
{
    struct loading *l = ctx;
    struct sfc_dense_list list;
    struct sfc_error why = {0};
    uint64_t digest = 0;
    if (!sfc_dense_list_parse_name(name, &digest)) {
        return SFC_OK;
    }
    int code = sfc_dense_list_read(l->folder, name, l->own, &list, &why);
    if (code == SFC_ENOMEM || code == SFC_ESTALE || code == SFC_EUNSUPPORTED) {
        return sfc_fail(err, code, "%s/%s: %.200s", l->folder->path, name, why.text);
    }
    if (code != SFC_OK) {
        snprintf(l->loud, 256, "%.100s/%s: %.100s", l->folder->path, name, why.text);
        return SFC_OK;
    }
    return take(&l->lists, &list, err);
}

int sfc_dense_lists_load(struct sfc_folder *folder, const struct sfc_run_identity *own,
                         struct sfc_dense_lists *out, char loud[256], struct sfc_error *err)
{
    struct loading l = {.folder = folder, .own = own, .loud = loud};
    loud[0] = '\0';
    int code = folder->ops->list(folder, visit, &l, err);
    if (code != SFC_OK) {
        sfc_dense_lists_free(&l.lists);
        return code;
    }
    *out = l.lists;
    return SFC_OK;
}

int sfc_dense_lists_add(struct sfc_dense_lists *lists, const uint64_t *blocks, size_t count,
                        struct sfc_error *err)
{
    struct sfc_dense_list list = {.digest = sfc_log_blocks_digest(blocks, count), .count = count};
    if (sfc_dense_lists_find(lists, list.digest) != NULL) {
        return SFC_OK;
    }
    list.blocks = malloc((count + 1) * sizeof *list.blocks);
    if (list.blocks == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a list of %zu blocks", count);
    }
    if (count > 0) {
        memcpy(list.blocks, blocks, count * sizeof *blocks);
    }
    return take(lists, &list, err);
}

const struct sfc_dense_list *sfc_dense_lists_find(const struct sfc_dense_lists *lists,
                                                  uint64_t digest)
{
    for (size_t i = 0; i < lists->count; i++) {
        if (lists->items[i].digest == digest) {
            return &lists->items[i];
        }
    }
    return NULL;
}

void sfc_dense_lists_free(struct sfc_dense_lists *lists)
{
    for (size_t i = 0; i < lists->count; i++) {
        free(lists->items[i].blocks);
    }
    free(lists->items);
    *lists = (struct sfc_dense_lists){0};
}

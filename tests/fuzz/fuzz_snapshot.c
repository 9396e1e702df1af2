/* Any bytes as a snapshot file. Bit 0 of the first byte repairs the checksums first, so that the
 * fuzzer gets behind them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/snapshot_store.h"
#include "tests/lib/memory_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool condition)
{
    if (!condition) {
        abort();
    }
}

static void put_u64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

static void repair_header(uint8_t *data)
{
    put_u64(data + SFC_SNAPSHOT_HEADER - 8, sfc_digest64(data, SFC_SNAPSHOT_HEADER - 8));
}

static void repair(uint8_t *data, size_t size)
{
    struct sfc_snapshot_header header;
    if (size < SFC_SNAPSHOT_HEADER) {
        return;
    }
    repair_header(data);
    if (sfc_snapshot_decode_header(data, size, &header, NULL) != SFC_OK) {
        return;
    }
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        uint64_t at = sfc_snapshot_offset(&header, part), bytes = header.stored[i];
        if (header.shape.has[i] && at <= size && bytes <= size - at) {
            put_u64(data + 80 + 16 * i + 8, sfc_digest64(data + at, (size_t)bytes));
        }
    }
    repair_header(data);
}

/* A whole file is read as what it is, and its header comes out again. */
static void read_whole(struct sfc_folder *folder, const struct sfc_snapshot_header *header,
                       const uint8_t *data, size_t size)
{
    struct sfc_snapshot_store *store;
    struct sfc_snapshot_content content;
    char loud[512];
    uint8_t again[SFC_SNAPSHOT_HEADER];
    sfc_snapshot_encode_header(header, again);
    must(sfc_snapshot_offset(header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS) == size);
    must(memcmp(again, data, sizeof again) == 0);
    must(sfc_snapshot_store_open(folder, &header->identity, &store, NULL) == SFC_OK);
    int code = sfc_snapshot_store_read(store, header->key.kind, header->key.block, UINT64_MAX,
                                       &header->shape, &content, loud, NULL);
    bool odd_history =
        header->key.kind == SFC_SNAPSHOT_HISTORY && header->shape.rows != header->key.step;
    must(code == (odd_history ? SFC_ESTALE : SFC_OK));
    for (int i = 0; i < SFC_SNAPSHOT_PARTS && code == SFC_OK; i++) {
        enum sfc_snapshot_part part = (enum sfc_snapshot_part)i;
        must((content.parts[i] != NULL) == header->shape.has[i]);
        must(content.parts[i] == NULL || header->storage == SFC_SNAPSHOT_ZSTD ||
             memcmp(content.parts[i], data + sfc_snapshot_offset(header, part),
                    (size_t)sfc_snapshot_part_bytes(&header->shape, part)) == 0);
    }
    sfc_snapshot_store_close(store);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size)
{
    if (input_size == 0) {
        return 0;
    }
    size_t size = input_size - 1;
    uint8_t *data = malloc(size + 1);
    must(data != NULL);
    memcpy(data, input + 1, size);
    if ((input[0] & 1) != 0) {
        repair(data, size);
    }
    struct sfc_snapshot_header header = {0};
    (void)sfc_snapshot_decode_header(data, size, &header, NULL);
    char name[SFC_SNAPSHOT_NAME_SIZE];
    struct memory_files *files = memory_files_new(1);
    struct sfc_folder *folder = memory_files_folder(files);
    struct sfc_file *file;
    struct sfc_bytes bytes = {data, size};
    sfc_snapshot_name(&header.key, name);
    must(folder->ops->create(folder, name, &file, NULL) == SFC_OK);
    must(folder->ops->write(file, 0, &bytes, 1, NULL) == SFC_OK);
    folder->ops->close_file(file);
    if (sfc_snapshot_check(folder, name, &header, NULL) == SFC_OK) {
        read_whole(folder, &header, data, size);
    }
    sfc_folder_close(folder);
    memory_files_free(files);
    free(data);
    return 0;
}

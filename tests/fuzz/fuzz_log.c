/* Any bytes as the newest segments of a step log. The first byte: bit 0 repairs checksums and
 * offsets first, so that the fuzzer gets behind them; the other bits say where a second segment
 * begins. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/durable/log_scan.h"
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

static void repair(uint8_t *data, size_t size)
{
    if (size < SFC_LOG_SEGMENT_HEADER) {
        return;
    }
    put_u64(data + SFC_LOG_SEGMENT_HEADER - 8, sfc_digest64(data, SFC_LOG_SEGMENT_HEADER - 8));
    for (size_t at = SFC_LOG_SEGMENT_HEADER; at + SFC_LOG_RECORD_HEADER <= size;) {
        uint8_t *record = data + at, *body = record + SFC_LOG_RECORD_HEADER;
        size_t left = size - at - SFC_LOG_RECORD_HEADER;
        uint32_t place = (uint32_t)(at / 8);
        uint64_t body_size;
        memcpy(&body_size, record + 8, sizeof body_size);
        memcpy(record + 40, &place, sizeof place);
        if (body_size <= left) {
            put_u64(record + 48, sfc_digest64(body, (size_t)body_size));
        }
        put_u64(record + 56, sfc_digest64(record, SFC_LOG_RECORD_HEADER - 8));
        at += SFC_LOG_RECORD_HEADER + (body_size <= left ? (size_t)sfc_log_padded(body_size) : 0);
    }
}

static void add_file(struct sfc_folder *folder, uint64_t number, const uint8_t *data, size_t size)
{
    char name[SFC_LOG_NAME_SIZE];
    struct sfc_file *file;
    struct sfc_bytes bytes = {data, size};
    sfc_log_name(number, name);
    must(folder->ops->create(folder, name, &file, NULL) == SFC_OK);
    must(folder->ops->write(file, 0, &bytes, 1, NULL) == SFC_OK);
    folder->ops->close_file(file);
}

/* What the scan calls whole is what was written: the same bytes come out again. */
static void check_scan(const struct sfc_log_scan *scan, const uint8_t *data, size_t size)
{
    uint8_t header[SFC_LOG_SEGMENT_HEADER], record[SFC_LOG_RECORD_HEADER];
    must(scan->room * sizeof *scan->entries <= 4 * size + 1024); /* log_scan.h */
    must(scan->good_end <= scan->end && scan->end <= size);
    if (scan->header_code != SFC_OK) {
        must(scan->count == 0);
        return;
    }
    sfc_log_encode_segment(&scan->header, header);
    must(memcmp(header, data, sizeof header) == 0);
    for (size_t i = 0; i < scan->count; i++) {
        const struct sfc_log_record *r = &scan->entries[i].record;
        must(r->offset + sizeof record + r->body_size <= size);
        sfc_log_encode_record(r, record);
        must(memcmp(record, data + r->offset, sizeof record) == 0);
        must(sfc_digest64(data + r->offset + sizeof record, (size_t)r->body_size) ==
             r->body_checksum);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size)
{
    if (input_size == 0) {
        return 0;
    }
    size_t size = input_size - 1, cut = (input[0] >> 1) * 8u;
    cut = cut < size ? cut : size;
    uint8_t *data = malloc(size + 1);
    must(data != NULL);
    memcpy(data, input + 1, size);
    if ((input[0] & 1) != 0) {
        repair(data, cut);
        repair(data + cut, size - cut);
    }
    struct memory_files *files = memory_files_new(1);
    struct sfc_folder *folder = memory_files_folder(files);
    struct sfc_log_chain chain;
    add_file(folder, 1, data, cut);
    add_file(folder, 2, data + cut, size - cut);
    must(sfc_log_chain_read(folder, &chain, NULL) == SFC_OK && chain.count == 2);
    for (size_t i = 0; i < 2; i++) {
        if (chain.files[i].place == SFC_LOG_CHAINED && chain.files[i].scan.header_code == SFC_OK) {
            check_scan(&chain.files[i].scan, i == 0 ? data : data + cut, i == 0 ? cut : size - cut);
        }
    }
    sfc_log_chain_free(&chain);
    sfc_folder_close(folder);
    memory_files_free(files);
    free(data);
    return 0;
}

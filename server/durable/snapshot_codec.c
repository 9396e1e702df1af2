#include "server/durable/snapshot_codec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/limits.h"

static const char magic[8] = {'S', 'F', 'C', 'S', 'N', 'A', 'P', 'S'};
static const char *const kind_names[SFC_SNAPSHOT_KINDS] = {"class", "dense", "history"};
#define ROWS_MAX     SFC_LIMIT_STEPS /* of a history; blocks are far smaller */
#define NAME_FORMAT  "%s-%" PRIu64 "-%" PRIu64 ".sfs"
#define GROWN_FORMAT "%s-%" PRIu64 "-%" PRIu64 "r%" PRIu64 ".sfs"

/* ---- shape */

uint64_t sfc_snapshot_part_bytes(const struct sfc_snapshot_shape *shape,
                                 enum sfc_snapshot_part part)
{
    if (!shape->has[part]) {
        return 0;
    }
    if (part == SFC_SNAPSHOT_LAST_STEP) {
        return 4 * shape->rows;
    }
    return (shape->dtype == SFC_SNAPSHOT_BF16 ? 2 : 4) * shape->rows * shape->dim;
}

static uint64_t padded(uint64_t size)
{
    return (size + 7) & ~7ull;
}

uint64_t sfc_snapshot_file_bytes(const struct sfc_snapshot_shape *shape)
{
    uint64_t bytes = SFC_SNAPSHOT_HEADER;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        bytes += padded(sfc_snapshot_part_bytes(shape, (enum sfc_snapshot_part)i));
    }
    return bytes;
}

uint64_t sfc_snapshot_offset(const struct sfc_snapshot_header *header, enum sfc_snapshot_part part)
{
    uint64_t offset = SFC_SNAPSHOT_HEADER;
    for (int i = 0; i < (int)part; i++) {
        offset += padded(header->stored[i]);
    }
    return offset;
}

static bool stored_fits(const struct sfc_snapshot_header *h, enum sfc_snapshot_part part)
{
    uint64_t bytes = sfc_snapshot_part_bytes(&h->shape, part);
    if (h->storage == SFC_SNAPSHOT_RAW || !h->shape.has[part]) {
        return h->stored[part] == bytes;
    }
    return h->stored[part] > 0 && h->stored[part] <= sfc_snapshot_stored_limit(bytes);
}

int sfc_snapshot_shape_check(const struct sfc_snapshot_shape *shape, struct sfc_error *err)
{
    bool dtype = shape->dtype == SFC_SNAPSHOT_F32 || shape->dtype == SFC_SNAPSHOT_BF16;
    if (!dtype || shape->rows > ROWS_MAX || shape->dim == 0 || shape->dim > SFC_LIMIT_DIM ||
        !shape->has[SFC_SNAPSHOT_VALUES]) {
        return sfc_fail(err, SFC_EINVAL,
                        "snapshot of %" PRIu64 " rows of %u numbers of type %d: out of bounds",
                        shape->rows, shape->dim, (int)shape->dtype);
    }
    return SFC_OK;
}

/* ---- names */

void sfc_snapshot_name(const struct sfc_snapshot_key *key, char out[SFC_SNAPSHOT_NAME_SIZE])
{
    if (key->grown) {
        snprintf(out, SFC_SNAPSHOT_NAME_SIZE, GROWN_FORMAT, kind_names[key->kind], key->block,
                 key->step, key->grown);
    } else {
        snprintf(out, SFC_SNAPSHOT_NAME_SIZE, NAME_FORMAT, kind_names[key->kind], key->block,
                 key->step);
    }
}

bool sfc_snapshot_parse_name(const char *name, struct sfc_snapshot_key *out)
{
    for (int kind = 0; kind < SFC_SNAPSHOT_KINDS; kind++) {
        size_t length = strlen(kind_names[kind]);
        struct sfc_snapshot_key key = {.kind = (enum sfc_snapshot_kind)kind};
        char again[SFC_SNAPSHOT_NAME_SIZE];
        if (strncmp(name, kind_names[kind], length) != 0 ||
            sscanf(name + length, "-%18" SCNu64 "-%18" SCNu64 "r%10" SCNu64, &key.block, &key.step,
                   &key.grown) < 2) {
            continue;
        }
        sfc_snapshot_name(&key, again);
        if (strcmp(again, name) == 0) {
            *out = key;
            return true;
        }
    }
    return false;
}

/* ---- header */

void sfc_snapshot_encode_header(const struct sfc_snapshot_header *header,
                                uint8_t out[SFC_SNAPSHOT_HEADER])
{
    const struct sfc_snapshot_shape *shape = &header->shape;
    struct sfc_writer w;
    memset(out, 0, SFC_SNAPSHOT_HEADER);
    sfc_writer_init(&w, out, SFC_SNAPSHOT_HEADER);
    sfc_write_bytes(&w, magic, sizeof magic);
    sfc_write_u32(&w, SFC_SNAPSHOT_VERSION);
    sfc_write_u32(&w, SFC_SNAPSHOT_HEADER);
    sfc_write_u64(&w, header->identity.run_id);
    sfc_write_bytes(&w, header->identity.config_digest, SFC_DIGEST_SIZE);
    sfc_write_u32(&w, (uint32_t)header->key.kind);
    sfc_write_u32(&w, (uint32_t)shape->dtype);
    sfc_write_u64(&w, header->key.block);
    sfc_write_u64(&w, header->key.step);
    sfc_write_u64(&w, shape->rows);
    sfc_write_u32(&w, shape->dim);
    uint32_t parts = 0;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        parts |= shape->has[i] ? 1u << i : 0;
    }
    sfc_write_u32(&w, parts);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        sfc_write_u64(&w, sfc_snapshot_part_bytes(shape, (enum sfc_snapshot_part)i));
        sfc_write_u64(&w, header->checksum[i]);
    }
    sfc_write_u64(&w, sfc_snapshot_offset(header, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS));
    sfc_write_bytes(&w, header->identity.numerics, SFC_NUMERICS_SIZE);
    sfc_write_u64(&w, header->identity.nonce);
    sfc_write_u64(&w, (uint64_t)header->storage);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        sfc_write_u64(&w, header->stored[i]);
    }
    sfc_write_u64(&w, header->key.round.incarnation);
    sfc_write_u64(&w, header->key.round.counter);
    w.at = SFC_SNAPSHOT_HEADER - 8;
    sfc_write_u64(&w, sfc_digest64(out, SFC_SNAPSHOT_HEADER - 8));
}

/* The rest of a header whose checksum is right. */
static int read_fields(struct sfc_reader *r, struct sfc_snapshot_header *h, struct sfc_error *err)
{
    uint64_t bytes[SFC_SNAPSHOT_PARTS];
    h->identity.run_id = sfc_read_u64(r);
    memcpy(h->identity.config_digest, sfc_read_bytes(r, SFC_DIGEST_SIZE), SFC_DIGEST_SIZE);
    uint32_t kind = sfc_read_u32(r);
    h->shape.dtype = (enum sfc_snapshot_dtype)sfc_read_u32(r);
    h->key.block = sfc_read_u64(r);
    h->key.step = sfc_read_u64(r);
    h->shape.rows = sfc_read_u64(r);
    h->shape.dim = sfc_read_u32(r);
    uint32_t parts = sfc_read_u32(r);
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        h->shape.has[i] = (parts >> i & 1) != 0;
        bytes[i] = sfc_read_u64(r);
        h->checksum[i] = sfc_read_u64(r);
    }
    uint64_t file_bytes = sfc_read_u64(r);
    memcpy(h->identity.numerics, sfc_read_bytes(r, SFC_NUMERICS_SIZE), SFC_NUMERICS_SIZE);
    h->identity.nonce = sfc_read_u64(r);
    uint64_t storage = sfc_read_u64(r);
    h->storage = storage == SFC_SNAPSHOT_ZSTD ? SFC_SNAPSHOT_ZSTD : SFC_SNAPSHOT_RAW;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS; i++) {
        h->stored[i] = sfc_read_u64(r);
    }
    h->key.round.incarnation = sfc_read_u64(r);
    h->key.round.counter = sfc_read_u64(r);
    bool right = kind < SFC_SNAPSHOT_KINDS && parts < 1u << SFC_SNAPSHOT_PARTS &&
                 h->identity.numerics[SFC_NUMERICS_SIZE - 1] == '\0' &&
                 storage <= SFC_SNAPSHOT_ZSTD &&
                 sfc_snapshot_shape_check(&h->shape, NULL) == SFC_OK;
    for (int i = 0; i < SFC_SNAPSHOT_PARTS && right; i++) {
        right = bytes[i] == sfc_snapshot_part_bytes(&h->shape, (enum sfc_snapshot_part)i) &&
                stored_fits(h, (enum sfc_snapshot_part)i);
    }
    right =
        right && file_bytes == sfc_snapshot_offset(h, (enum sfc_snapshot_part)SFC_SNAPSHOT_PARTS);
    h->key.kind = (enum sfc_snapshot_kind)kind;
    return right ? SFC_OK : sfc_fail(err, SFC_ECORRUPT, "byte 0: the header contradicts itself");
}

int sfc_snapshot_decode_header(const uint8_t *data, size_t size, struct sfc_snapshot_header *out,
                               struct sfc_error *err)
{
    struct sfc_reader r;
    struct sfc_snapshot_header header = {0};
    if (size < SFC_SNAPSHOT_HEADER) {
        return sfc_fail(err, SFC_ECORRUPT, "byte %zu: the file ends inside the header", size);
    }
    sfc_reader_init(&r, data, SFC_SNAPSHOT_HEADER);
    if (memcmp(sfc_read_bytes(&r, sizeof magic), magic, sizeof magic) != 0) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: no snapshot (magic)");
    }
    uint32_t version = sfc_read_u32(&r);
    uint32_t header_size = sfc_read_u32(&r);
    struct sfc_reader end = r;
    end.at = SFC_SNAPSHOT_HEADER - 8;
    if (sfc_read_u64(&end) != sfc_digest64(data, SFC_SNAPSHOT_HEADER - 8)) {
        return sfc_fail(err, SFC_ECORRUPT, "byte 0: the checksum of the header is wrong");
    }
    if (version != SFC_SNAPSHOT_VERSION || header_size != SFC_SNAPSHOT_HEADER) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "snapshot format %u; this version of ShardFC reads format %u", version,
                        SFC_SNAPSHOT_VERSION);
    }
    int code = read_fields(&r, &header, err);
    uint8_t again[SFC_SNAPSHOT_HEADER];
    if (code == SFC_OK) {
        sfc_snapshot_encode_header(&header, again);
    }
    if (code == SFC_OK && memcmp(again, data, sizeof again) != 0) {
        code = sfc_fail(err, SFC_ECORRUPT, "byte 0: the header has bytes that no field has");
    }
    if (code == SFC_OK) {
        *out = header;
    }
    return code;
}

#include "server/durable/log_codec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/limits.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arrays go to the file as they are");
_Static_assert(sizeof(struct sfc_attempt) == 16, "attempts go to the file as they are");

static const char segment_magic[8] = {'S', 'F', 'C', 'S', 'T', 'L', 'O', 'G'};
#define RECORD_MAGIC     0x72434653u /* "SFCr" */
#define RECORD_BYTES_MAX (8ull << 30)

/* ---- geometry */

uint64_t sfc_log_blocks_digest(const uint64_t *blocks, size_t count)
{
    return sfc_digest64(blocks, count * sizeof *blocks);
}

void sfc_log_prepare_layout(const struct sfc_log_geometry *g, struct sfc_log_layout *out)
{
    out->labels = 8;
    out->features = out->labels + 8ull * g->batch;
    out->attempts = out->features + sfc_log_padded(4ull * g->batch * g->dim);
    out->lse = out->attempts + sizeof(struct sfc_attempt) * sfc_log_micro_batches(g);
    out->dense = out->lse + 8ull * g->batch;
    out->dense_bytes =
        sfc_log_padded(2 * g->dense_halves) + 4 * (g->dense_floats - g->dense_halves);
    out->size = out->dense + sfc_log_padded(out->dense_bytes);
}

int sfc_log_geometry_check(const struct sfc_log_geometry *g, struct sfc_error *err)
{
    if (g->batch == 0 || g->batch > SFC_LIMIT_BATCH || g->dim == 0 || g->dim > SFC_LIMIT_DIM ||
        g->micro_batch == 0 || g->batch % g->micro_batch != 0 ||
        g->batch / g->micro_batch > SFC_LIMIT_MICRO_BATCHES ||
        g->dense_floats > SFC_LIMIT_DENSE_SIZE || g->dense_halves > g->dense_floats) {
        return sfc_fail(err, SFC_EINVAL,
                        "step log: batch %u, micro-batch %u, dim %u, %" PRIu64
                        " dense floats, %" PRIu64 " of them bf16: out of bounds",
                        g->batch, g->micro_batch, g->dim, g->dense_floats, g->dense_halves);
    }
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(g, &layout);
    if (layout.size > RECORD_BYTES_MAX) {
        return sfc_fail(err, SFC_EINVAL, "step log: a step of %" PRIu64 " bytes; at most %llu",
                        layout.size, RECORD_BYTES_MAX);
    }
    return SFC_OK;
}

struct sfc_log_geometry sfc_log_body_geometry(const struct sfc_log_geometry *geometry,
                                              enum sfc_log_type type)
{
    struct sfc_log_geometry g = *geometry;
    if (type == SFC_LOG_FETCHED) {
        g.dense_floats = g.dense_halves = 0;
    }
    return g;
}

void sfc_log_view_prepare(const struct sfc_log_geometry *geometry, enum sfc_log_type type,
                          const uint8_t *body, struct sfc_log_prepare_view *out)
{
    struct sfc_log_geometry g = sfc_log_body_geometry(geometry, type);
    struct sfc_log_layout at;
    sfc_log_prepare_layout(&g, &at);
    memcpy(&out->lr, body, sizeof out->lr);
    out->labels = (const uint64_t *)(const void *)(body + at.labels);
    out->features = (const float *)(const void *)(body + at.features);
    out->attempts = (const struct sfc_attempt *)(const void *)(body + at.attempts);
    out->lse = (const double *)(const void *)(body + at.lse);
    out->dense = type == SFC_LOG_FETCHED ? NULL : body + at.dense;
    out->dense_blocks = geometry->dense_blocks;
}

/* ---- names */

void sfc_log_name(uint64_t number, char out[SFC_LOG_NAME_SIZE])
{
    snprintf(out, SFC_LOG_NAME_SIZE, "log-%08" PRIu64 ".sfl", number);
}

bool sfc_log_parse_name(const char *name, uint64_t *number)
{
    uint64_t n = 0;
    char again[SFC_LOG_NAME_SIZE];
    if (sscanf(name, "log-%18" SCNu64, &n) != 1 || n == 0) {
        return false;
    }
    sfc_log_name(n, again);
    if (strcmp(again, name) != 0) {
        return false;
    }
    *number = n;
    return true;
}

/* ---- segment header */

void sfc_log_encode_segment(const struct sfc_log_segment *s, uint8_t out[SFC_LOG_SEGMENT_HEADER])
{
    struct sfc_writer w;
    memset(out, 0, SFC_LOG_SEGMENT_HEADER);
    sfc_writer_init(&w, out, SFC_LOG_SEGMENT_HEADER);
    sfc_write_bytes(&w, segment_magic, sizeof segment_magic);
    sfc_write_u32(&w, SFC_LOG_VERSION);
    sfc_write_u32(&w, SFC_LOG_SEGMENT_HEADER);
    sfc_write_u64(&w, s->identity.run_id);
    sfc_write_bytes(&w, s->identity.config_digest, SFC_DIGEST_SIZE);
    sfc_write_u32(&w, s->geometry.batch);
    sfc_write_u32(&w, s->geometry.micro_batch);
    sfc_write_u32(&w, s->geometry.dim);
    sfc_write_u32(&w, 0);
    sfc_write_u64(&w, s->geometry.dense_floats);
    sfc_write_u64(&w, s->geometry.dense_blocks);
    sfc_write_u64(&w, s->number);
    sfc_write_u64(&w, s->previous);
    sfc_write_u64(&w, s->previous_length);
    sfc_write_bytes(&w, s->identity.numerics, SFC_NUMERICS_SIZE);
    sfc_write_u64(&w, s->identity.nonce);
    sfc_write_u64(&w, s->geometry.dense_halves);
    w.at = SFC_LOG_SEGMENT_HEADER - 8;
    sfc_write_u64(&w, sfc_digest64(out, SFC_LOG_SEGMENT_HEADER - 8));
}

static bool zero_terminated(const char *text, size_t size)
{
    size_t length = strnlen(text, size);
    for (size_t i = length; i < size; i++) {
        if (text[i] != '\0') {
            return false;
        }
    }
    return length < size;
}

/* Bytes that no field has must be zero: what is decoded is encoded to the same bytes. */
static int check_segment(const struct sfc_log_segment *s, const uint8_t *data,
                         struct sfc_error *err)
{
    uint8_t again[SFC_LOG_SEGMENT_HEADER];
    sfc_log_encode_segment(s, again);
    if (memcmp(again, data, sizeof again) != 0 ||
        !zero_terminated(s->identity.numerics, SFC_NUMERICS_SIZE) || s->number == 0 ||
        s->previous >= s->number ||
        (s->previous == 0 ? s->previous_length != 0
                          : s->previous_length < SFC_LOG_SEGMENT_HEADER) ||
        s->previous_length % 8 != 0) {
        return sfc_fail(err, SFC_ECORRUPT, "the segment header contradicts itself");
    }
    return sfc_log_geometry_check(&s->geometry, err) == SFC_OK
               ? SFC_OK
               : sfc_fail(err, SFC_ECORRUPT, "the segment header has a geometry out of bounds");
}

int sfc_log_decode_segment(const uint8_t *data, size_t size, struct sfc_log_segment *out,
                           struct sfc_error *err)
{
    struct sfc_reader r;
    struct sfc_log_segment s = {0};
    if (size < SFC_LOG_SEGMENT_HEADER) {
        return sfc_fail(err, SFC_ECORRUPT, "%zu bytes; a segment header has %u", size,
                        SFC_LOG_SEGMENT_HEADER);
    }
    sfc_reader_init(&r, data, SFC_LOG_SEGMENT_HEADER);
    if (memcmp(sfc_read_bytes(&r, sizeof segment_magic), segment_magic, sizeof segment_magic) !=
        0) {
        return sfc_fail(err, SFC_ECORRUPT, "no segment of a step log (magic)");
    }
    uint32_t version = sfc_read_u32(&r);
    uint32_t header = sfc_read_u32(&r);
    s.identity.run_id = sfc_read_u64(&r);
    memcpy(s.identity.config_digest, sfc_read_bytes(&r, SFC_DIGEST_SIZE), SFC_DIGEST_SIZE);
    s.geometry.batch = sfc_read_u32(&r);
    s.geometry.micro_batch = sfc_read_u32(&r);
    s.geometry.dim = sfc_read_u32(&r);
    (void)sfc_read_u32(&r);
    s.geometry.dense_floats = sfc_read_u64(&r);
    s.geometry.dense_blocks = sfc_read_u64(&r);
    s.number = sfc_read_u64(&r);
    s.previous = sfc_read_u64(&r);
    s.previous_length = sfc_read_u64(&r);
    memcpy(s.identity.numerics, sfc_read_bytes(&r, SFC_NUMERICS_SIZE), SFC_NUMERICS_SIZE);
    s.identity.nonce = sfc_read_u64(&r);
    s.geometry.dense_halves = sfc_read_u64(&r);
    r.at = SFC_LOG_SEGMENT_HEADER - 8;
    if (sfc_read_u64(&r) != sfc_digest64(data, SFC_LOG_SEGMENT_HEADER - 8)) {
        return sfc_fail(err, SFC_ECORRUPT, "the checksum of the segment header is wrong");
    }
    if (version != SFC_LOG_VERSION || header != SFC_LOG_SEGMENT_HEADER) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "step log format %u; this version of ShardFC reads format %u", version,
                        SFC_LOG_VERSION);
    }
    int code = check_segment(&s, data, err);
    if (code == SFC_OK) {
        *out = s;
    }
    return code;
}

/* ---- records */

void sfc_log_encode_record(const struct sfc_log_record *record, uint8_t out[SFC_LOG_RECORD_HEADER])
{
    struct sfc_writer w;
    sfc_writer_init(&w, out, SFC_LOG_RECORD_HEADER);
    sfc_write_u32(&w, RECORD_MAGIC);
    sfc_write_u32(&w, (uint32_t)record->type);
    sfc_write_u64(&w, record->body_size);
    sfc_write_u64(&w, record->step);
    sfc_write_u64(&w, record->round.incarnation);
    sfc_write_u64(&w, record->round.counter);
    sfc_write_u32(&w, (uint32_t)(record->offset / 8));
    sfc_write_u32(&w, (uint32_t)(record->flushed / 8));
    sfc_write_u64(&w, record->body_checksum);
    sfc_write_u64(&w, sfc_digest64(out, SFC_LOG_RECORD_HEADER - 8));
}

static int check_record(const struct sfc_log_record *record, uint64_t offset,
                        const struct sfc_log_geometry *geometry, struct sfc_error *err)
{
    struct sfc_log_geometry body = sfc_log_body_geometry(geometry, record->type);
    struct sfc_log_layout layout;
    sfc_log_prepare_layout(&body, &layout);
    bool prepare = record->type == SFC_LOG_PREPARE || record->type == SFC_LOG_FETCHED;
    if (!prepare && record->type != SFC_LOG_COMMIT) {
        return sfc_fail(err, SFC_ECORRUPT, "a record of unknown type %d", (int)record->type);
    }
    if (record->offset != offset || record->flushed > offset) {
        return sfc_fail(err, SFC_ECORRUPT, "a record that was written for byte %" PRIu64,
                        record->offset);
    }
    if (record->body_size != (prepare ? layout.size : SFC_LOG_COMMIT_BODY)) {
        return sfc_fail(err, SFC_ECORRUPT, "a record with a body of %" PRIu64 " bytes",
                        record->body_size);
    }
    return SFC_OK;
}

/* Magic, fields and checksum; what they mean is not checked. */
static int read_record(const uint8_t data[SFC_LOG_RECORD_HEADER], struct sfc_log_record *record,
                       struct sfc_error *err)
{
    struct sfc_reader r;
    sfc_reader_init(&r, data, SFC_LOG_RECORD_HEADER);
    if (sfc_read_u32(&r) != RECORD_MAGIC) {
        return sfc_fail(err, SFC_ECORRUPT, "no record (magic)");
    }
    record->type = (enum sfc_log_type)sfc_read_u32(&r);
    record->body_size = sfc_read_u64(&r);
    record->step = sfc_read_u64(&r);
    record->round.incarnation = sfc_read_u64(&r);
    record->round.counter = sfc_read_u64(&r);
    record->offset = 8ull * sfc_read_u32(&r);
    record->flushed = 8ull * sfc_read_u32(&r);
    record->body_checksum = sfc_read_u64(&r);
    if (sfc_read_u64(&r) != sfc_digest64(data, SFC_LOG_RECORD_HEADER - 8)) {
        return sfc_fail(err, SFC_ECORRUPT, "the checksum of a record header is wrong");
    }
    return SFC_OK;
}

uint64_t sfc_log_record_flushed(const uint8_t data[SFC_LOG_RECORD_HEADER], uint64_t offset)
{
    struct sfc_log_record record;
    return read_record(data, &record, NULL) == SFC_OK && record.offset == offset ? record.flushed
                                                                                 : 0;
}

int sfc_log_decode_record(const uint8_t *data, size_t size, uint64_t offset,
                          const struct sfc_log_geometry *geometry, struct sfc_log_record *out,
                          struct sfc_error *err)
{
    struct sfc_log_record record;
    if (size < SFC_LOG_RECORD_HEADER) {
        return sfc_fail(err, SFC_ECORRUPT, "%zu bytes; a record header has %u", size,
                        SFC_LOG_RECORD_HEADER);
    }
    int code = read_record(data, &record, err);
    if (code == SFC_OK) {
        code = check_record(&record, offset, geometry, err);
    }
    if (code == SFC_OK) {
        *out = record;
    }
    return code;
}

void sfc_log_encode_commit(const struct sfc_log_commit *commit, uint64_t offset, uint64_t flushed,
                           uint8_t out[SFC_LOG_RECORD_HEADER + SFC_LOG_COMMIT_BODY])
{
    struct sfc_writer w;
    uint8_t *body = out + SFC_LOG_RECORD_HEADER;
    sfc_writer_init(&w, body, SFC_LOG_COMMIT_BODY);
    sfc_write_f64(&w, commit->clip_scale);
    sfc_write_f64(&w, commit->lr);
    sfc_write_u64(&w, commit->apply ? 1 : 0);
    struct sfc_log_record record = {
        .type = SFC_LOG_COMMIT,
        .step = commit->step,
        .round = commit->round,
        .offset = offset,
        .flushed = flushed,
        .body_size = SFC_LOG_COMMIT_BODY,
        .body_checksum = sfc_digest64(body, SFC_LOG_COMMIT_BODY),
    };
    sfc_log_encode_record(&record, out);
}

int sfc_log_decode_commit(const struct sfc_log_record *record, const uint8_t *body,
                          struct sfc_log_commit *out, struct sfc_error *err)
{
    struct sfc_reader r;
    sfc_reader_init(&r, body, SFC_LOG_COMMIT_BODY);
    double clip_scale = sfc_read_f64(&r);
    double lr = sfc_read_f64(&r);
    uint64_t apply = sfc_read_u64(&r);
    if (apply > 1) {
        return sfc_fail(err, SFC_ECORRUPT, "a commit that neither applies nor skips");
    }
    *out = (struct sfc_log_commit){.step = record->step,
                                   .round = record->round,
                                   .clip_scale = clip_scale,
                                   .lr = lr,
                                   .apply = apply == 1};
    return SFC_OK;
}

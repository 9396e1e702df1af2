/* Bytes of the step log, pure. docs/FORMATS.md ("Step log of a shard") has the tables.
 *
 * A segment is a header of 256 bytes and records; a record is a header of 64 bytes and a body
 * padded with zeros to a multiple of 8. Every byte is under a checksum or must be zero. Everything
 * is little-endian; arrays are copied as they are in memory, so the host must be little-endian too.
 *
 * Two fields make damage decidable:
 * - a record header holds its own offset and the number of bytes of its segment that were known to
 * be durable when it was written (`flushed`): a bad byte below any valid record's `flushed` was
 * once on disk, so it is corruption and not a torn write;
 * - a segment header names the segment before it and how many of its bytes count, so what lies
 * behind them (remains of a failed write) is never read. */
#ifndef SFC_DURABLE_LOG_CODEC_H
#define SFC_DURABLE_LOG_CODEC_H

#include <stdbool.h>

#include "proto/base/bytes.h"
#include "server/core/types.h"
#include "server/durable/identity.h"

#define SFC_LOG_VERSION        4u
#define SFC_LOG_SEGMENT_HEADER 256u
#define SFC_LOG_RECORD_HEADER  64u
#define SFC_LOG_COMMIT_BODY    24u
#define SFC_LOG_NAME_SIZE      32u

/* Shape of every record of a log. */
struct sfc_log_geometry {
    uint32_t batch;       /* rows of a step */
    uint32_t micro_batch; /* divides batch */
    uint32_t dim;
    uint64_t dense_floats; /* of all own dense blocks, may be 0 */
    uint64_t dense_halves; /* so many of them are kept as bf16, the others as f32 */
    uint64_t dense_blocks; /* sfc_log_blocks_digest of the own dense blocks */
};
uint64_t sfc_log_blocks_digest(const uint64_t *blocks, size_t count);
static inline uint32_t sfc_log_micro_batches(const struct sfc_log_geometry *g)
{
    return g->batch / g->micro_batch;
}
/* SFC_EINVAL: a number out of proto/limits.h, or a micro_batch that doesn't divide batch. */
int sfc_log_geometry_check(const struct sfc_log_geometry *geometry, struct sfc_error *err);

struct sfc_log_segment {
    struct sfc_run_identity identity;
    struct sfc_log_geometry geometry;
    uint64_t number;          /* 1, 2, ... as in the name */
    uint64_t previous;        /* number of the segment before, 0: this is the first */
    uint64_t previous_length; /* bytes of it that count */
};

enum sfc_log_type {
    SFC_LOG_PREPARE = 1,
    SFC_LOG_COMMIT = 2,
    SFC_LOG_FETCHED = 3 /* a PREPARE that was lost, from another shard: without dense sums */
};

struct sfc_log_record {
    enum sfc_log_type type;
    uint64_t step;
    struct sfc_attempt round;
    uint64_t offset;        /* of this header in its segment */
    uint64_t flushed;       /* see above */
    uint64_t body_size;     /* without padding */
    uint64_t body_checksum; /* XXH3-64 */
};
/* The geometry of the body of a PREPARE or FETCHED. */
struct sfc_log_geometry sfc_log_body_geometry(const struct sfc_log_geometry *geometry,
                                              enum sfc_log_type type);
static inline uint64_t sfc_log_padded(uint64_t size)
{
    return (size + 7) & ~7ull;
}

struct sfc_log_commit {
    uint64_t step;
    struct sfc_attempt round; /* of the Prepare that counts */
    double clip_scale, lr;
    bool apply; /* false: the step is over and changes nothing */
};

/* "log-00000042.sfl"; parse: false when the name is none of a segment. */
void sfc_log_name(uint64_t number, char out[SFC_LOG_NAME_SIZE]);
bool sfc_log_parse_name(const char *name, uint64_t *number);

void sfc_log_encode_segment(const struct sfc_log_segment *segment,
                            uint8_t out[SFC_LOG_SEGMENT_HEADER]);
/* SFC_ECORRUPT with the cause ("header checksum ..."), SFC_EUNSUPPORTED: another format version. */
int sfc_log_decode_segment(const uint8_t *data, size_t size, struct sfc_log_segment *out,
                           struct sfc_error *err);
void sfc_log_encode_record(const struct sfc_log_record *record, uint8_t out[SFC_LOG_RECORD_HEADER]);
/* offset: where data was found. The body's size is checked against type and geometry. SFC_ECORRUPT
 * with the cause. */
int sfc_log_decode_record(const uint8_t *data, size_t size, uint64_t offset,
                          const struct sfc_log_geometry *geometry, struct sfc_log_record *out,
                          struct sfc_error *err);
/* `flushed` of a whole record header that was written for this offset, 0 for anything else. For
 * segments whose own header is damaged, so that the geometry is not known. */
uint64_t sfc_log_record_flushed(const uint8_t data[SFC_LOG_RECORD_HEADER], uint64_t offset);
/* Record and body of a commit; the record's step and round are those of the commit. */
void sfc_log_encode_commit(const struct sfc_log_commit *commit, uint64_t offset, uint64_t flushed,
                           uint8_t out[SFC_LOG_RECORD_HEADER + SFC_LOG_COMMIT_BODY]);
/* body: SFC_LOG_COMMIT_BODY bytes whose checksum has been checked. */
int sfc_log_decode_commit(const struct sfc_log_record *record, const uint8_t *body,
                          struct sfc_log_commit *out, struct sfc_error *err);

/* Body of a PREPARE: arrays in this order, each at a multiple of 8. */
struct sfc_log_layout {
    uint64_t labels, features, attempts, lse, dense; /* offsets in the body; lr is at 0 */
    uint64_t dense_bytes;                            /* without the padding at its end */
    uint64_t size;                                   /* a multiple of 8 */
};
void sfc_log_prepare_layout(const struct sfc_log_geometry *geometry, struct sfc_log_layout *out);
/* Pointers into a body: 8-byte aligned if the body is. */
struct sfc_log_prepare_view {
    double lr;
    const uint64_t *labels;             /* [batch] */
    const float *features;              /* [batch, dim] raw */
    const struct sfc_attempt *attempts; /* [micro-batches] */
    const double *lse;                  /* [batch] */
    /* bf16 [dense_halves], zeros up to a multiple of 8 bytes, f32 [dense_floats - dense_halves];
     * NULL: of a FETCHED, they are lost */
    const void *dense;
    uint64_t dense_blocks; /* sfc_log_blocks_digest of the blocks that they are of */
};
/* type: SFC_LOG_PREPARE or SFC_LOG_FETCHED. */
void sfc_log_view_prepare(const struct sfc_log_geometry *geometry, enum sfc_log_type type,
                          const uint8_t *body, struct sfc_log_prepare_view *out);

#endif

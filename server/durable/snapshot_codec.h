/* Bytes of a snapshot file, pure: one block (or the history) at one step. docs/FORMATS.md
 * ("Snapshots of a shard") has the table. A header of 512 bytes, then the parts that exist, raw or
 * compressed, each padded with zeros to a multiple of 8. Every byte is under a checksum or must be
 * zero. */
#ifndef SFC_DURABLE_SNAPSHOT_CODEC_H
#define SFC_DURABLE_SNAPSHOT_CODEC_H

#include <stdbool.h>

#include "proto/base/bytes.h"
#include "server/core/types.h"
#include "server/durable/identity.h"

#define SFC_SNAPSHOT_VERSION   4u
#define SFC_SNAPSHOT_HEADER    512u
#define SFC_SNAPSHOT_NAME_SIZE 80u

enum sfc_snapshot_kind { SFC_SNAPSHOT_CLASS, SFC_SNAPSHOT_DENSE, SFC_SNAPSHOT_HISTORY };
enum { SFC_SNAPSHOT_KINDS = 3 };
/* Of values, momentum and second moment. The last steps are always f32. */
enum sfc_snapshot_dtype { SFC_SNAPSHOT_F32, SFC_SNAPSHOT_BF16 };
/* How the parts of a file are stored: as they are, or each as one zstd frame. */
enum sfc_snapshot_storage { SFC_SNAPSHOT_RAW, SFC_SNAPSHOT_ZSTD };
/* In the order of kernels/backend.h. LAST_STEP: momentum mode dense, [rows]; SECOND_MOMENT: adamw.
 */
enum sfc_snapshot_part {
    SFC_SNAPSHOT_VALUES,
    SFC_SNAPSHOT_MOMENTUM,
    SFC_SNAPSHOT_LAST_STEP,
    SFC_SNAPSHOT_SECOND_MOMENT,
};
enum { SFC_SNAPSHOT_PARTS = 4 };

struct sfc_snapshot_key {
    enum sfc_snapshot_kind kind;
    uint64_t block; /* HISTORY: 0 */
    uint64_t step;  /* the stamp: the state after this step */
    uint64_t grown; /* rows of a class block that the run's growths gave rows: two of one step,
                       before and after it, have two names; 0: it never grew */
    struct sfc_attempt round; /* of its commit; zero at the start of the run. Not in the name. */
};

/* Rows and columns of a block: class [rows, dim], dense [floats, 1], history [steps, 1]. */
struct sfc_snapshot_shape {
    enum sfc_snapshot_dtype dtype;
    uint64_t rows;
    uint32_t dim;
    bool has[SFC_SNAPSHOT_PARTS]; /* VALUES always; rows may be 0 */
    bool grown; /* of a class block whose rows a growth of the run changed; not in the header */
};
/* Bytes of a part, without padding; 0 where there is none. */
uint64_t sfc_snapshot_part_bytes(const struct sfc_snapshot_shape *shape,
                                 enum sfc_snapshot_part part);
/* Of a file whose parts are raw. */
uint64_t sfc_snapshot_file_bytes(const struct sfc_snapshot_shape *shape);
/* SFC_EINVAL: a number out of proto/limits.h. */
int sfc_snapshot_shape_check(const struct sfc_snapshot_shape *shape, struct sfc_error *err);

struct sfc_snapshot_header {
    struct sfc_run_identity identity;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_shape shape;
    enum sfc_snapshot_storage storage;
    uint64_t stored[SFC_SNAPSHOT_PARTS];   /* bytes of a part in the file; RAW: its bytes */
    uint64_t checksum[SFC_SNAPSHOT_PARTS]; /* XXH3-64 of these; 0 where there is no part */
};
/* Where a part begins in the file; SFC_SNAPSHOT_PARTS: where the file ends. */
uint64_t sfc_snapshot_offset(const struct sfc_snapshot_header *header, enum sfc_snapshot_part part);
/* Most bytes that a compressed part of so many may take. */
static inline uint64_t sfc_snapshot_stored_limit(uint64_t bytes)
{
    return bytes + bytes / 128 + 1024;
}

/* "class-17-1200.sfs", "dense-0-1200.sfs", "history-0-1200.sfs"; parse: false when it is none. */
void sfc_snapshot_name(const struct sfc_snapshot_key *key, char out[SFC_SNAPSHOT_NAME_SIZE]);
bool sfc_snapshot_parse_name(const char *name, struct sfc_snapshot_key *out);

void sfc_snapshot_encode_header(const struct sfc_snapshot_header *header,
                                uint8_t out[SFC_SNAPSHOT_HEADER]);
/* SFC_ECORRUPT with the cause, SFC_EUNSUPPORTED: another format version. */
int sfc_snapshot_decode_header(const uint8_t *data, size_t size, struct sfc_snapshot_header *out,
                               struct sfc_error *err);

#endif

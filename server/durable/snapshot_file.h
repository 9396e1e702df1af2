/* One snapshot file, read and checked piece by piece. Private to server/durable. */
#ifndef SFC_DURABLE_SNAPSHOT_FILE_H
#define SFC_DURABLE_SNAPSHOT_FILE_H

#include "server/durable/file_layer.h"
#include "server/durable/snapshot_codec.h"
#include "server/durable/snapshot_zstd.h"

#define SFC_SNAPSHOT_PIECE (1u << 20)

/* What reading needs beside the memory that the parts go to. */
struct sfc_snapshot_scratch {
    uint8_t *piece; /* [SFC_SNAPSHOT_PIECE] */
    struct sfc_digest *digest;
    struct sfc_unpacker *unpacker;
};
int sfc_snapshot_scratch_init(struct sfc_snapshot_scratch *scratch, struct sfc_error *err);
void sfc_snapshot_scratch_free(struct sfc_snapshot_scratch *scratch); /* zeroed is fine */

/* Opens the file and checks header, name and length. SFC_ECORRUPT: "FOLDER/NAME: byte N: why". The
 * file is the caller's to close. */
int sfc_snapshot_file_open(struct sfc_folder *folder, const char *name, struct sfc_file **file,
                           struct sfc_snapshot_header *header, struct sfc_error *err);
/* Reads a part with its padding and checks both. out: sfc_snapshot_part_bytes, or NULL to check
 * only. */
int sfc_snapshot_file_part(struct sfc_file *file, const char *name,
                           const struct sfc_snapshot_header *header, enum sfc_snapshot_part part,
                           uint8_t *out, struct sfc_snapshot_scratch *scratch,
                           struct sfc_error *err);

#endif

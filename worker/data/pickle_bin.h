/* insightface verification files (.bin): a Python pickle of ([2N JPEG byte strings], [N booleans]).
 * A pickle is a program; this reader knows only the opcodes that build lists, tuples, bytes,
 * booleans and integers (protocols 0 to 5) and refuses every other one by name and offset. Nothing
 * is executed and nothing is imported. Formats: docs/FORMATS.md. */
#ifndef SFC_WORKER_DATA_PICKLE_BIN_H
#define SFC_WORKER_DATA_PICKLE_BIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

/* The content of a file. images[2i] and images[2i + 1] are pair i; same[i]: one identity. */
struct sfc_pairs {
    struct sfc_bytes *images; /* 2 * pairs, pointing into `file` */
    bool *same;
    size_t pairs;
    uint8_t *file;      /* owned bytes, NULL after sfc_pairs_parse */
    uint8_t *unescaped; /* owned, NULL unless a text string (protocol 0) was in the file */
};

/* Parses length bytes at data (pure). The images point into data, or into memory that out owns
 * where a byte string had to be unescaped (protocol 0). Memory: at most 32 times length + 1 MiB.
 * SFC_ECORRUPT: cut short, wrong types, counts that don't fit; SFC_EUNSUPPORTED: a refused opcode.
 */
int sfc_pairs_parse(const uint8_t *data, size_t length, struct sfc_pairs *out,
                    struct sfc_error *err);
/* Reads a whole file (at most 4 GiB). The message names the file. */
int sfc_pairs_read(const char *path, struct sfc_pairs *out, struct sfc_error *err);
void sfc_pairs_free(struct sfc_pairs *pairs); /* zeroed struct is fine */

/* Writes protocol 3, which Python 3 reads: images[2 * pairs], same[pairs]. Written to a temporary
 * file, synced and renamed. */
int sfc_pairs_write(const char *path, const struct sfc_bytes *images, const bool *same,
                    size_t pairs, struct sfc_error *err);

#endif

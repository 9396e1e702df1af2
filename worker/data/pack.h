/* `shardfc data pack FOLDER --out DIR`: a folder of identity subfolders with JPEG files becomes
 * train.rec, train.idx and meta.json. Identities are numbered in the byte order of their folder
 * names, images inside in the byte order of their file names. The JPEG bytes are stored as they
 * are. */
#ifndef SFC_WORKER_DATA_PACK_H
#define SFC_WORKER_DATA_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "worker/data/progress.h"

struct sfc_pack_options {
    const char *folder;
    const char *out;          /* created when missing; existing files are replaced as a whole */
    bool no_flip;             /* a mirrored image is another identity (characters) */
    uint32_t min_images;      /* identities with fewer are left out; 0 = 1 */
    sfc_progress_fn progress; /* NULL: silent */
    void *progress_arg;
};

struct sfc_pack_report {
    uint64_t identities, samples, bytes;
    uint64_t dropped_identities; /* fewer than min_images */
    uint64_t ignored_files;      /* neither .jpg nor .jpeg */
    uint32_t width, height, channels;
    char digest[33];
};

/* All images must have one size and one kind (grey or colour); the first that differs is an error
 * that names both files. A file that is no whole JPEG is an error too (SFC_ECORRUPT, naming it). */
int sfc_data_pack(const struct sfc_pack_options *options, struct sfc_pack_report *report,
                  struct sfc_error *err);

#endif

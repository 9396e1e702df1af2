/* Whole files: bounded reading, and writing that appears at once (temporary file, fsync, rename,
 * fsync of the folder). */
#ifndef SFC_WORKER_DATA_FILE_H
#define SFC_WORKER_DATA_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/status.h"

/* *data is malloc'ed (one zero byte behind it). SFC_ELIMIT: larger than limit. */
int sfc_file_read(const char *path, uint64_t limit, uint8_t **data, size_t *length,
                  struct sfc_error *err);

struct sfc_out_file {
    FILE *stream;
    char *path, *temporary;
};
int sfc_out_file_open(struct sfc_out_file *file, const char *path, struct sfc_error *err);
/* Flushes, syncs, renames; on failure the temporary file is removed. The struct is empty
 * afterwards. */
int sfc_out_file_commit(struct sfc_out_file *file, struct sfc_error *err);
/* Removes what was written; an empty struct is fine. */
void sfc_out_file_abort(struct sfc_out_file *file);

/* Creates the folder with its parents; an existing folder is fine. */
int sfc_folder_create(const char *path, struct sfc_error *err);
/* "DIR/NAME", malloc'ed; NULL when memory is short. */
char *sfc_path_join(const char *dir, const char *name);

#endif

/* Writes NAME.rec and NAME.idx in the insightface layout: record 0 with the ranges, images grouped
 * by identity, identity records. Both files appear at once at the end. */
#ifndef SFC_WORKER_DATA_SET_WRITER_H
#define SFC_WORKER_DATA_SET_WRITER_H

#include <stdint.h>

#include "proto/base/status.h"
#include "worker/data/meta.h"

struct sfc_set_writer;

/* dir must exist; name without ".rec". */
int sfc_set_writer_new(const char *dir, const char *name, struct sfc_set_writer **out,
                       struct sfc_error *err);
/* Labels start at 0 and each is the last one or the next. */
int sfc_set_writer_add(struct sfc_set_writer *writer, uint64_t label, const uint8_t *jpeg,
                       size_t length, struct sfc_error *err);
/* At least one image. Fills *file for meta.json. The writer must still be freed. */
int sfc_set_writer_finish(struct sfc_set_writer *writer, struct sfc_meta_file *file,
                          struct sfc_error *err);
/* Without finish before: removes what was written. NULL is fine. */
void sfc_set_writer_free(struct sfc_set_writer *writer);

#endif

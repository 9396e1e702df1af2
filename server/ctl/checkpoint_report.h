/* What is in a checkpoint folder, read offline, every byte checked. */
#ifndef SFC_CTL_CHECKPOINT_REPORT_H
#define SFC_CTL_CHECKPOINT_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/status.h"

/* Has the folder a file that only checkpoints have, or the name of one that did not finish? */
bool sfc_checkpoint_is_one(const char *dir);

/* One object, also the answer of `shardfc log --json`:
 *   checkpoint  the folder
 *   run, step, digest, classes, dim, backbone, optimizer, momentum_mode
 *   bytes       of all blocks
 *   files       [{file, kind: class|dense|history, block, bytes, xxh3, ok, why}]
 *   why         the manifest or run.pb is damaged, so that nothing else is known; else ""
 *   problems    number of bad things
 * progress(ctx, done, total) is told of each block, NULL: nobody is. *out is the caller's.
 * SFC_ENOTFOUND, SFC_EUNSUPPORTED: no checkpoint, or one of another version, and what to do. */
int sfc_checkpoint_report(const char *dir,
                          void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                          json_t **out, struct sfc_error *err);
void sfc_checkpoint_report_print(const json_t *report, FILE *file);

#endif

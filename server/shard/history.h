/* The history of learning rates (momentum mode dense) from another shard, for one that joins: it
 * has not seen the steps. Written into the head and, as a snapshot, to the disk, so that a recovery
 * needs no log of before.
 *
 * Threads: functions here are called from the loop thread. One fetch at a time. */
#ifndef SFC_SHARD_HISTORY_H
#define SFC_SHARD_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

struct sfc_shard_run;

/* Then `done`, from in here only without memory, unless the run was closed meanwhile. exactly: of
 * the steps up to `step`, which the others have applied; else as many as there are.
 * SFC_EUNAVAILABLE: none of the others gives it for as long as it makes sense to wait. */
void sfc_history_fetch(struct sfc_shard_run *run, bool exactly, uint64_t step,
                       void (*done)(struct sfc_shard_run *run, int code, const char *text));
/* Some time has passed. False: none is at work. */
bool sfc_history_tick(struct sfc_shard_run *run);
/* With the run, when no job is at work. */
void sfc_history_free(struct sfc_shard_run *run);

#endif

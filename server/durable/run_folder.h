/* Where a shard keeps its runs: STATE/run-<id>/, one folder per run with its step log and snapshots
 * (step_log.h, snapshot_store.h). A folder that is given up is renamed to dead-run-<id> before its
 * files go, so that nobody ever sees half of a run. */
#ifndef SFC_DURABLE_RUN_FOLDER_H
#define SFC_DURABLE_RUN_FOLDER_H

#include "server/durable/file_layer.h"

/* create false: SFC_ENOTFOUND when the run has no folder. create true: an existing one is opened as
 * it is; call sfc_run_folder_remove first where a run begins afresh. */
int sfc_run_folder_open(const char *state, uint64_t run_id, bool create, struct sfc_folder **out,
                        struct sfc_error *err);
/* Removes the run's folder with everything in it; a missing folder is fine (*existed, may be NULL,
 * says). Close the folder, its log and its snapshots first. */
int sfc_run_folder_remove(const char *state, uint64_t run_id, bool *existed, struct sfc_error *err);
/* Removes the folders of all runs but this one, and remains of earlier removals. *removed (may be
 * NULL): runs whose folder went. */
int sfc_run_folder_remove_others(const char *state, uint64_t run_id, unsigned *removed,
                                 struct sfc_error *err);
/* Calls told for the folder of every run; it returns SFC_OK to go on. A state folder that is not
 * there has none. */
int sfc_run_folder_each(const char *state,
                        int (*told)(void *ctx, struct sfc_folder *folder, struct sfc_error *err),
                        void *ctx, struct sfc_error *err);

#endif

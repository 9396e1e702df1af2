/* What the files of a run share: run.c (its life and its events), run_restore.c, run_records.c (the
 * store) and run_answers.c (calls). Loop thread. */
#ifndef SFC_SCHEDULER_RUN_PARTS_H
#define SFC_SCHEDULER_RUN_PARTS_H

#include "server/scheduler/scheduler_internal.h"

void sfc_sched_kept_free(struct sfc_kept_records *kept);
struct sfc_commit_record sfc_sched_record_of(const struct sfc_store_commit *c);
void sfc_sched_show_record(struct sfc_sched_run *run, const struct sfc_commit_record *record);

/* Actions. The first four become an event when the store has answered, or at the next tick where
 * there is no memory for it. */
void sfc_sched_write_record(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_write_drop(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_read_record(struct sfc_sched_run *run, uint64_t step);
void sfc_sched_write_rewind(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_write_state(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_reply(struct sfc_sched_run *run, const struct sfc_run_action *a);

#endif

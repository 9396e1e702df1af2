/* What the files of a run share: run.c (its life and its events), run_restore.c, run_records.c,
 * run_state.c and run_lr.c (the store), run_answers.c (calls), run_series.c (curves) and
 * run_delays.c (what its steps wait for). Loop thread. */
#ifndef SFC_SCHEDULER_RUN_PARTS_H
#define SFC_SCHEDULER_RUN_PARTS_H

#include "server/scheduler/scheduler_internal.h"

void sfc_sched_kept_free(struct sfc_kept_records *kept);
struct sfc_commit_record sfc_sched_record_of(const struct sfc_store_commit *c);
void sfc_sched_show_record(struct sfc_sched_run *run, const struct sfc_commit_record *record);

/* What people set of the learning rate, from the store and from messages. The caller frees. */
int sfc_sched_read_lr(struct sfc_store *store, uint64_t run_id, struct sfc_lr_change **out,
                      size_t *count, struct sfc_error *err);
int sfc_sched_take_lr(Shardfc__V1__LrChange *const *list, size_t count,
                      const struct sfc_schedule *schedule, struct sfc_lr_changes *out,
                      struct sfc_error *err);
/* items, list: [changes->count] */
void sfc_sched_show_lr(const struct sfc_lr_changes *changes, Shardfc__V1__LrChange *items,
                       Shardfc__V1__LrChange **list);

/* Actions. The first five become an event when the store has answered, or at the next tick where
 * there is no memory for it. */
void sfc_sched_write_record(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_write_lr(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_write_drop(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_read_record(struct sfc_sched_run *run, uint64_t step);
void sfc_sched_write_rewind(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_write_state(struct sfc_sched_run *run, const struct sfc_run_action *a);
/* The machine has granted a control call: answered when the state that comes of it is durable. */
void sfc_sched_grant_control(struct sfc_sched_run *run, struct sfc_parked *parked,
                             uint64_t from_step);
void sfc_sched_answer_controls(struct sfc_sched_run *run);   /* after the actions of an event */
void sfc_sched_store_state_again(struct sfc_sched_run *run); /* if it was not stored */

void sfc_sched_reply(struct sfc_sched_run *run, const struct sfc_run_action *a);

/* ---- run_delays.c */
/* After an event: what a step waited for until now is recorded as a span. */
void sfc_sched_note_delay(struct sfc_sched_run *run);
/* It went back: what was measured is of steps that were given up. */
void sfc_sched_forget_times(struct sfc_sched_run *run);

/* ---- run_series.c */
void sfc_sched_series_commit(struct sfc_sched_run *run, const struct sfc_commit_record *record);
void sfc_sched_series_cut(struct sfc_sched_run *run, uint64_t step); /* it went back to this one */
/* From the store, bit by bit: nobody else may use the store but by its queue from now on. */
void sfc_sched_series_restore(struct sfc_sched_run *run);

#endif

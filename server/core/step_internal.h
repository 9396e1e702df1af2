/* Shared by step_fsm.c (memory, actions, jobs), step_calls.c (workers), step_commit.c and
 * step_map.c (scheduler); not for others. */
#ifndef SFC_CORE_STEP_INTERNAL_H
#define SFC_CORE_STEP_INTERNAL_H

#include "server/core/step_fsm.h"

typedef unsigned long long ull;

/* step_fsm.c: actions */
struct sfc_step_action *sfc_step_emit(struct sfc_step_actions *out, enum sfc_step_action_type type,
                                      uint64_t token, enum sfc_step_event_type call);
void sfc_step_refuse(struct sfc_step_actions *out, uint64_t token, int code, const char *format,
                     ...) __attribute__((format(printf, 4, 5)));
struct sfc_step_action *sfc_step_reply(struct sfc_step_fsm *s, struct sfc_step_actions *out,
                                       uint64_t token, enum sfc_step_event_type call);
/* Puts a job at the end of the queue; the caller adds what its kind needs. */
struct sfc_step_action *sfc_step_start(struct sfc_step_fsm *s, struct sfc_step_actions *out,
                                       enum sfc_job_kind kind, uint64_t token, uint64_t step,
                                       uint32_t slot);
/* Keeps a call until something changes. */
void sfc_step_park(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                   struct sfc_step_actions *out);
/* Calls that waited are looked at again; those that can't go on yet wait on, in order. */
void sfc_step_unpark(struct sfc_step_fsm *s, struct sfc_step_actions *out);
/* Checks of a call; false: it was refused. */
bool sfc_step_check_run(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out);
bool sfc_step_check_map(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out);
bool sfc_step_check_round(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                          struct sfc_step_actions *out);

/* step_commit.c */
struct sfc_step_plan *sfc_step_plan_of(struct sfc_step_fsm *s, uint64_t step);
/* Samples the next step if its plan is here and the step before is applied. */
void sfc_step_start_plan(struct sfc_step_fsm *s, struct sfc_step_actions *out);
void sfc_step_reply_prepare(struct sfc_step_fsm *s, uint64_t token, uint32_t missing,
                            struct sfc_step_actions *out);
void sfc_step_on_plan(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out);
void sfc_step_on_prepare(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                         struct sfc_step_actions *out);
/* The prepare job is done: its inputs go to the log. */
void sfc_step_flush(struct sfc_step_fsm *s, struct sfc_step_actions *out);
void sfc_step_on_flushed(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                         struct sfc_step_actions *out);
void sfc_step_on_commit(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out);
void sfc_step_on_abort(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                       struct sfc_step_actions *out);

/* A newer round: plans and attempts are void. The phase is one that may end so. */
void sfc_step_new_round(struct sfc_step_fsm *s, struct sfc_attempt round,
                        struct sfc_step_actions *out);
/* A call takes the place of the one that waits for the same job. */
void sfc_step_supersede(uint64_t *waiting, uint64_t token, struct sfc_step_actions *out);

/* step_map.c */
void sfc_step_on_map(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out);
/* Its job is done. */
void sfc_step_mapped(struct sfc_step_fsm *s, struct sfc_step_actions *out);
void sfc_step_map_free(struct sfc_step_map *map);

/* step_calls.c */
void sfc_step_on_call(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out);
void sfc_step_on_pull(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out);

#endif

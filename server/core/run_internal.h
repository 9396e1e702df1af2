/* Shared by run_fsm.c (moves of the step), run_calls.c (events) and run_waiting.c (waiting calls);
 * not for others. */
#ifndef SFC_CORE_RUN_INTERNAL_H
#define SFC_CORE_RUN_INTERNAL_H

#include "server/core/run_fsm.h"

typedef unsigned long long ull;

/* run_fsm.c */
struct sfc_run_action *sfc_run_emit(struct sfc_run_actions *actions, enum sfc_run_action_type type);
void sfc_run_reply(struct sfc_run_actions *actions, uint64_t token, int code, const char *text);
void sfc_run_fail(struct sfc_run_fsm *run, const char *text);
void sfc_run_new_round(struct sfc_run_fsm *run);
/* Stands still at a boundary: every shard has applied exactly the committed step. */
bool sfc_run_still(const struct sfc_run_fsm *run);
void sfc_run_decide(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
void sfc_run_durable(struct sfc_run_fsm *run, uint64_t step, struct sfc_run_actions *actions);

/* run_calls.c */
void sfc_run_handle(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                    struct sfc_run_actions *actions);

/* run_waiting.c */
void sfc_run_wait(struct sfc_run_fsm *run, const struct sfc_waiting *waiting,
                  struct sfc_run_actions *actions);
void sfc_run_unwait(struct sfc_run_fsm *run, uint64_t token);
void sfc_run_worker_waits_no_more(struct sfc_run_fsm *run, uint64_t worker,
                                  struct sfc_run_actions *actions);
void sfc_run_hold(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                  struct sfc_run_actions *actions);
void sfc_run_release(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                     struct sfc_run_actions *actions);
/* Answers every waiting call that can be answered now. */
void sfc_run_serve(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions);

#endif

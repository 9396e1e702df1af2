/* Shared by run_fsm.c (moves of the step), run_calls.c (workers and people), run_shards.c (shards),
 * run_moves.c (the map), run_loss.c (a shard is given up), run_rewind.c (back to an earlier step),
 * run_set_lr.c (learning rate), run_waiting.c (waiting calls) and run_delay.c (what a step waits
 * for); not for others. */
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
bool sfc_run_active(const struct sfc_run_fsm *run); /* started, and not at its end */
/* Pause and block let nothing be prepared; so do holds. */
bool sfc_run_gate_open(const struct sfc_run_fsm *run);
bool sfc_run_busy(const struct sfc_run_fsm *run); /* the open step is being prepared or recorded */
/* The first step at which the run can stand still: a durable one. */
uint64_t sfc_run_first_stop(const struct sfc_run_fsm *run);
void sfc_run_decide(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
void sfc_run_write_record(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
void sfc_run_durable(struct sfc_run_fsm *run, uint64_t step, struct sfc_run_actions *actions);

/* What people dropped of the steps that are in the window. */
void sfc_run_apply_drops(struct sfc_run_fsm *run, uint64_t first_step);

/* run_shards.c */
void sfc_run_on_shard(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                      struct sfc_run_actions *actions);
/* Lost shards begin to recover, and a wanted round opens, unless a record or a map is on its way.
 */
void sfc_run_recover(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
/* The shard gets OpenRun, to the committed step, and Abort; duties that it had are void. */
void sfc_run_open_again(struct sfc_run_fsm *run, uint32_t shard);
/* Its process is a new one, or what it has is not what it should have. */
void sfc_run_lose(struct sfc_run_fsm *run, uint32_t shard);
/* What it said until now says nothing any more. */
void sfc_run_forget_life(struct sfc_run_shard *shard);
bool sfc_run_all_known(const struct sfc_run_fsm *run);
/* The shard that is waited for, if any. */
bool sfc_run_waits_for_shard(const struct sfc_run_fsm *run, char *out, size_t size);

/* run_moves.c */
void sfc_run_on_order(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                      struct sfc_run_actions *actions);
void sfc_run_on_map(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                    struct sfc_run_actions *actions);
void sfc_run_on_stray(struct sfc_run_fsm *run, const struct sfc_run_event *event);
/* About a shard that is no member: it was lost, is silent, or registered again. */
void sfc_run_on_guest(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                      struct sfc_run_actions *actions);
bool sfc_run_is_move_duty(enum sfc_duty duty);
void sfc_run_on_move_reply(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                           struct sfc_run_actions *actions);
/* Its shard has closed the run, or its process is gone: the place is free. */
void sfc_run_leave_place(struct sfc_run_fsm *run, uint32_t shard);
/* Moves the order as far as it goes. */
void sfc_run_moves_advance(struct sfc_run_fsm *run, uint64_t now_ms,
                           struct sfc_run_actions *actions);
void sfc_run_moves_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions);
/* A map waits for a step after which nothing is planned: no plan runs ahead, the step is durable.
 */
bool sfc_run_wants_boundary(const struct sfc_run_fsm *run);
/* Nothing may be planned now. */
bool sfc_run_flips(const struct sfc_run_fsm *run);
bool sfc_run_writes_map(const struct sfc_run_fsm *run);
/* The number that a message of this duty carries. */
uint64_t sfc_run_move_number(const struct sfc_run_fsm *run, uint32_t shard, enum sfc_duty duty);
bool sfc_run_waits_for_map(const struct sfc_run_fsm *run, char *out, size_t size);

/* Its disk leads to what the map says: it opens the run anew. */
void sfc_run_recover_with_map(struct sfc_run_fsm *run, uint32_t shard);

/* run_loss.c */
bool sfc_run_loses(const struct sfc_run_fsm *run); /* the order at work is a LOSS */
int sfc_run_check_loss(struct sfc_run_fsm *run, const struct sfc_run_event *event);
void sfc_run_begin_loss(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                        struct sfc_run_actions *actions);
/* May it still come to a good end? Else run->error says why not. */
bool sfc_run_loss_hopeful(struct sfc_run_fsm *run);
void sfc_run_loss_advance(struct sfc_run_fsm *run);
bool sfc_run_ask_adopters(struct sfc_run_fsm *run); /* false: there is none */
void sfc_run_flip_loss(struct sfc_run_fsm *run);
void sfc_run_note_missing(struct sfc_run_fsm *run, uint64_t now_ms);

/* run_rewind.c */
/* The run goes to a step, as far as the machine is concerned: every shard recovers to it in a new
 * round. record: of that step, all zero before the first commit. */
void sfc_run_go_to(struct sfc_run_fsm *run, uint64_t step, const struct sfc_commit_record *record);
/* To the last durable step: provisional ones are void. */
void sfc_run_go_back(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
bool sfc_run_rewinds(const struct sfc_run_fsm *run); /* shards or records are on their way */
void sfc_run_on_rewind(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                       struct sfc_run_actions *actions);
void sfc_run_on_record_read(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                            struct sfc_run_actions *actions);
void sfc_run_on_rewound(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                        struct sfc_run_actions *actions);
void sfc_run_rewind_advance(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
/* By a shard that was asked, or on its way. */
void sfc_run_rewind_refused(struct sfc_run_fsm *run, uint32_t shard, int code, const char *text,
                            struct sfc_run_actions *actions);
void sfc_run_rewind_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions);
bool sfc_run_waits_for_rewind(const struct sfc_run_fsm *run, char *out, size_t size);

/* run_set_lr.c */
void sfc_run_on_set_lr(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                       struct sfc_run_actions *actions);
void sfc_run_on_lr_written(struct sfc_run_fsm *run, const struct sfc_run_event *event);
void sfc_run_set_lr_advance(struct sfc_run_fsm *run, struct sfc_run_actions *actions);
void sfc_run_set_lr_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions);
/* The rate of this step is not known yet: it is neither planned nor prepared. */
bool sfc_run_lr_open(const struct sfc_run_fsm *run, uint64_t step);
bool sfc_run_waits_for_lr(const struct sfc_run_fsm *run, char *out, size_t size);

/* run_calls.c */
void sfc_run_block(struct sfc_run_fsm *run, uint64_t step, uint32_t j, int code, const char *cause);
bool sfc_run_ended(const struct sfc_run_fsm *run);
void sfc_run_handle(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                    struct sfc_run_actions *actions);

/* run_waiting.c */
void sfc_run_wait(struct sfc_run_fsm *run, const struct sfc_waiting *waiting,
                  struct sfc_run_actions *actions);
void sfc_run_unwait(struct sfc_run_fsm *run, uint64_t token);
/* Ends the waiting DROP of this number; its token, 0: none (any more). */
uint64_t sfc_run_unwait_drop(struct sfc_run_fsm *run, uint64_t number);
void sfc_run_worker_waits_no_more(struct sfc_run_fsm *run, uint64_t worker,
                                  struct sfc_run_actions *actions);
void sfc_run_hold(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                  struct sfc_run_actions *actions);
void sfc_run_watch(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                   struct sfc_run_actions *actions);
void sfc_run_release(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                     struct sfc_run_actions *actions);
/* Answers every waiting call that can be answered now. */
void sfc_run_serve(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions);

#endif

/* Which shards a run is to have, and how blocks lie on them: a *goal*, durable in the store, that
 * the scheduler works towards. The planner (server/core/move_plan.h) says which blocks move; they
 * are given to the run as orders (orders.h), one after another. When one is void, or a shard that
 * was waited for is there, everything is planned again from the map as it is then. So a restart of
 * the scheduler needs the goal alone.
 *
 * A run that was created with `elastic` also takes in shards that announce themselves
 * (RegisterShard.joins) when nobody asked for anything else. Loop thread. */
#ifndef SFC_SCHEDULER_SCALE_H
#define SFC_SCHEDULER_SCALE_H

#include "server/scheduler/scheduler_internal.h"

struct sfc_scale;

int sfc_scale_new(struct sfc_sched_run *run, struct sfc_scale **out, struct sfc_error *err);
/* The run has more classes: their load is measured anew, and what was planned is planned again. */
int sfc_scale_grown(struct sfc_sched_run *run, struct sfc_error *err);
void sfc_scale_free(struct sfc_scale *scale); /* NULL is fine; orders are the run's */
/* The goal that the store has. At start. */
int sfc_scale_restore(struct sfc_sched_run *run, struct sfc_error *err);
void sfc_scale_tick(struct sfc_sched_run *run);
/* A step has all its inputs: its labels say how much work each block is. */
void sfc_scale_note_step(struct sfc_sched_run *run, uint64_t step);

/* What Status says: goal, bytes of the moves towards it and of those that have arrived. The text
 * lives until the next event. */
void sfc_scale_fill_status(const struct sfc_sched_run *run, Shardfc__V1__StatusReply *out);

void sfc_sched_on_scale(struct sfc_rpc_call *call, void *ctx);

#endif

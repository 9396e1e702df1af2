/* What the files of scale.h share: scale.c (from goal to orders), scale_input.c (what the planner
 * is told), scale_mirrors.c (memory for mirrors) and scale_call.c (the RPC). */
#ifndef SFC_SCHEDULER_SCALE_PARTS_H
#define SFC_SCHEDULER_SCALE_PARTS_H

#include "server/core/block_load.h"
#include "server/core/move_plan.h"
#include "server/scheduler/scale.h"

/* A shard that said it had no room for what was planned: it has what it has. */
struct sfc_scale_full {
    uint64_t shard;
    uint64_t limit;
};

/* The question to the planner, with the memory that it points to. */
struct sfc_scale_input {
    struct sfc_plan_input in;
    struct sfc_plan_shard shards[SFC_CORE_MAX_SHARDS];
    char hosts[SFC_CORE_MAX_SHARDS][256];
    struct sfc_plan_block *blocks;
    char others[512]; /* shards that can't take part, and why; "" = none */
    uint32_t other_count;
};

struct sfc_scale {
    struct sfc_goal goal;
    uint64_t number;  /* of the goal, or of the last one; they are counted, from 1 */
    uint64_t reached; /* number of the last goal that was reached */
    bool storing;     /* a goal is on its way to the store */
    bool stale;       /* the run has grown since the plan was made */
    bool planned;     /* plan, ids: of the map as it was when the plan was made */
    struct sfc_move_plan plan;
    uint64_t ids[SFC_CORE_MAX_SHARDS]; /* of the plan's shards */
    uint32_t done_batches;
    uint64_t order;         /* that is under way, 0: none */
    uint32_t order_batches; /* of the plan that it moves */
    bool order_free;        /* it is of a run that stood still when it was given */
    bool order_shrinks;     /* it is being cancelled, because the run goes on */
    uint64_t again_ms;      /* not planned again before */
    uint64_t moved;         /* bytes that have arrived since the goal was set */
    char waits[512];        /* why nothing goes on; "" = it does */
    char text[640];         /* for Status */
    struct sfc_scale_full full[SFC_CORE_MAX_SHARDS];
    uint32_t full_count;
    struct sfc_block_load load;
    struct sfc_placement memory; /* bytes of blocks; class_bytes 0: not known yet */
};

/* Release with sfc_scale_input_free. */
int sfc_scale_input_new(struct sfc_sched_run *run, const struct sfc_goal *goal,
                        struct sfc_scale_input **out, struct sfc_error *err);
void sfc_scale_input_free(struct sfc_scale_input *input); /* NULL is fine */
/* sfc_move_plan_make, with memory for what shards mirror after it (scale_mirrors.c). */
int sfc_scale_plan(struct sfc_sched_run *run, struct sfc_scale_input *input,
                   struct sfc_move_plan *out, struct sfc_error *err);

/* Makes the goal durable; then it is this one, and what was under way for the one before ends. done
 * (may be NULL): called once, from here where there is no memory. Not while one is being stored. */
void sfc_scale_store(struct sfc_sched_run *run, const struct sfc_goal *goal,
                     void (*done)(void *ctx, const struct sfc_error *err), void *ctx);
/* The same for REBALANCE, because of the loss that the map has. */
void sfc_scale_store_spread(struct sfc_sched_run *run,
                            void (*done)(void *ctx, const struct sfc_error *err), void *ctx);
/* The same for the shards that are to be given up, beside the goal of now, which goes on. */
void sfc_scale_store_lost(struct sfc_sched_run *run, const struct sfc_wishes *wishes,
                          void (*done)(void *ctx, const struct sfc_error *err), void *ctx);
/* Calls that waited while a goal was being stored: the caller of one may have seen that another is
 * reached before the store has it. In order of arrival. */
void sfc_scale_stored(struct sfc_scheduler *s);
/* From what is stored; kind SFC_GOAL_NONE for an action that is none (CANCEL). */
struct sfc_goal sfc_scale_goal_of(const Shardfc__V1__ScaleRequest *request);

#endif

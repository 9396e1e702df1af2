/* Shared by move_plan.c (who stays), move_balance.c (what lies where), move_batches.c (in which
 * order) and move_text.c (why); not for others. */
#ifndef SFC_CORE_MOVE_PLAN_INTERNAL_H
#define SFC_CORE_MOVE_PLAN_INTERNAL_H

#include "server/core/move_plan.h"

/* Blocks of one shard, by falling load; equal ones by rising index. */
struct sfc_plan_list {
    uint32_t *items;
    uint32_t count, capacity;
};

/* A plan while it is made. */
struct sfc_plan_work {
    const struct sfc_plan_input *input;
    uint32_t blocks;
    bool in[SFC_CORE_MAX_SHARDS]; /* has blocks afterwards */
    double cost[SFC_CORE_MAX_SHARDS];
    double time[SFC_CORE_MAX_SHARDS];    /* of its blocks, now in the plan */
    uint64_t bytes[SFC_CORE_MAX_SHARDS]; /* the same */
    struct sfc_plan_list list[SFC_CORE_MAX_SHARDS];
    uint32_t *owner; /* [blocks] */
};

/* Free bytes of a shard that has so many bytes of blocks. */
uint64_t sfc_plan_room(const struct sfc_plan_shard *shard, uint64_t bytes);

/* move_balance.c */
int sfc_plan_work_init(struct sfc_plan_work *w, const struct sfc_plan_input *input, const bool *in,
                       struct sfc_error *err);
void sfc_plan_work_free(struct sfc_plan_work *w);
/* Expected time of the slowest member's step / the mean, with time[] as it is now. */
double sfc_plan_slowest(const struct sfc_plan_work *w, const bool *members);
/* Every block gets a shard that stays. SFC_ENOMEM: they don't fit. */
int sfc_plan_evict(struct sfc_plan_work *w, struct sfc_error *err);
int sfc_plan_balance(struct sfc_plan_work *w, struct sfc_error *err);

/* move_batches.c: from input owners to w->owner. */
int sfc_plan_batches(const struct sfc_plan_work *w, struct sfc_move_plan *plan,
                     struct sfc_error *err);

/* move_text.c */
int sfc_plan_explain(const struct sfc_plan_work *w, struct sfc_move_plan *plan,
                     struct sfc_error *err);

#endif

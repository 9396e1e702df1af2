/* Which blocks move where, so that a run has the shards that somebody asked for and each shard's
 * step takes about as long. Pure and deterministic: the same question has the same answer.
 *
 * The expected time of a shard's step is the sum of its blocks' loads and of what every shard does,
 * times how slow it is. Blocks of shards that leave must move; then blocks go from the slowest
 * shard to the others as long as that makes it faster by a good part of the block, the largest that
 * fit first, so that few move. A rebalance goes further: it also exchanges blocks, and stops when
 * the slowest shard is within SFC_PLAN_SLOWEST of the mean. No shard ever has more bytes than it
 * has room for, neither at the end nor between two batches.
 *
 * A plan is carried out as batches, one after another: some blocks of one shard to one other, of
 * one kind, at most so many bytes. */
#ifndef SFC_CORE_MOVE_PLAN_H
#define SFC_CORE_MOVE_PLAN_H

#include "server/core/types.h"

#define SFC_PLAN_SLOWEST 1.05 /* of the mean: a rebalance goes no further */

enum sfc_goal_kind {
    SFC_GOAL_NONE,
    SFC_GOAL_SHARDS,    /* so many shards */
    SFC_GOAL_JOIN,      /* this shard as well */
    SFC_GOAL_DRAIN,     /* without this shard */
    SFC_GOAL_REBALANCE, /* the same shards, equally slow */
};

struct sfc_goal {
    enum sfc_goal_kind kind;
    uint32_t shards; /* SHARDS */
    uint64_t shard;  /* JOIN, DRAIN: its id */
};

struct sfc_plan_shard {
    uint64_t id;
    const char *host; /* shards of one host fail together; "" is a host as well */
    bool member;      /* takes part in the run */
    bool ready;       /* answers, and may hold blocks of this run; else it is only counted */
    uint64_t limit;   /* bytes that the run may use there */
    uint64_t fixed;   /* of them used whatever its blocks are */
    double cost;      /* measured: how slow it is (step_cost.h); 0: not known */
};

struct sfc_plan_block {
    uint64_t bytes; /* of memory at its owner */
    uint64_t state; /* of them copied when it moves */
    double load;    /* > 0 */
    uint32_t owner; /* index into the shards */
};

struct sfc_plan_input {
    struct sfc_goal goal;
    const struct sfc_plan_shard *shards; /* at most SFC_CORE_MAX_SHARDS */
    uint32_t shard_count;
    const struct sfc_plan_block *blocks; /* class blocks, then dense blocks */
    uint32_t class_blocks, dense_blocks;
    double base_load;     /* of every shard, whatever its blocks are (step_cost.h) */
    bool measured;        /* the loads are; false: they are what blocks are expected to be */
    uint64_t batch_bytes; /* of class blocks in one batch; at least one block; 0: no bound */
    uint64_t dense_bytes; /* the same of dense blocks, which are copied while the run waits */
    double bytes_per_s;   /* 0: not known */
    double batch_s;       /* time of a batch beside its copying */
};

struct sfc_plan_move {
    uint32_t block; /* index into the input's blocks */
    uint32_t from, to;
};

struct sfc_plan_batch {
    uint32_t from, to;
    bool dense;
    uint32_t first, count; /* of the plan's moves; blocks ascend */
    uint64_t bytes;        /* of memory */
    uint64_t state;        /* to be copied */
};

struct sfc_move_plan {
    bool joins[SFC_CORE_MAX_SHARDS];  /* becomes a member, before the batches */
    bool leaves[SFC_CORE_MAX_SHARDS]; /* owns nothing after them, and is a member no more */
    uint32_t missing;                 /* so many shards must still register: nothing is planned */
    struct sfc_plan_move *moves;      /* in the order of the batches; owned */
    uint32_t move_count;
    struct sfc_plan_batch *batches; /* owned */
    uint32_t batch_count;
    uint32_t
        stuck; /* blocks that should change places, but for which no shard has room meanwhile */
    uint64_t bytes;                       /* to be copied */
    double estimated_s;                   /* 0: not known */
    double slowest_before, slowest_after; /* expected time of the slowest shard's step / the mean of
                                             the shards that there are then */
    char *text;                           /* why, for people: lines; owned */
};

/* SFC_EINVAL: impossible numbers (no shards, a shard that is not there, the last one drained).
 * SFC_ENOMEM: the blocks don't fit, with the numbers and what to do. SFC_ESTATE: a shard must
 * answer first. On success release *out with sfc_move_plan_free. */
int sfc_move_plan_make(const struct sfc_plan_input *input, struct sfc_move_plan *out,
                       struct sfc_error *err);
void sfc_move_plan_free(struct sfc_move_plan *plan); /* all-zero is fine */
/* Nothing is to be done: the goal is reached. */
bool sfc_move_plan_empty(const struct sfc_move_plan *plan);
/* "4 shards", "drain shard 2", ...; at least 64 bytes are enough. */
void sfc_goal_text(const struct sfc_goal *goal, char *out, size_t size);

#endif

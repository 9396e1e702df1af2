/* Two-phase commit of a step over all shards: presumed abort, the durable record is the truth.
 *
 *        labels complete          all Done            all Ready         record durable
 *   COLLECT ---------> COMPUTE ------------> PREPARE ----------> RECORD ---------------->
 * COLLECT(t+1) ^                     | one missing                  (Commit(t) goes on
 *                         '------ ROUND <-------'                               beside step t+1)
 *                   all Aborted     (also: restart of the scheduler, drop, new session)
 *
 * Beside the phase, each shard has *duties*: messages that it must acknowledge. A duty is sent
 * again until it is acknowledged, and waits for the duties named in a table (a shard gets Abort
 * after Commit, Plan after Abort, ...). Messages carry the round; a shard refuses older rounds, so
 * a late copy of a message can do no harm.
 *
 * Shards have places. A place may be empty, or its shard may be no member (yet, or any more): what
 * all shards must do or say concerns members alone. */
#ifndef SFC_CORE_COMMIT_FSM_H
#define SFC_CORE_COMMIT_FSM_H

#include "server/core/types.h"

enum sfc_duty {
    SFC_DUTY_OPEN,      /* OpenRun */
    SFC_DUTY_COMMIT,    /* Commit(committed) */
    SFC_DUTY_ABORT,     /* Abort(open step, round): opens the round */
    SFC_DUTY_PLAN,      /* Plan(open step) */
    SFC_DUTY_PLAN_NEXT, /* Plan(open step + 1), ahead of time */
    SFC_DUTY_PREPARE,   /* Prepare(open step) */
    SFC_DUTY_CLOSE,     /* CloseRun */
    SFC_DUTY_CHECK,     /* CheckRewind(a step that the machine does not know) */
    /* Of moves: run_moves.c says what they are for. */
    SFC_DUTY_JOIN,   /* OpenRun(join), to a shard that is not a member yet */
    SFC_DUTY_FETCH,  /* FetchBlocks */
    SFC_DUTY_TAKE,   /* TakeBlocks */
    SFC_DUTY_ADOPT,  /* CheckRewind(committed, with the map that is to come) */
    SFC_DUTY_SETMAP, /* SetMap */
    SFC_DUTY_CANCEL, /* CancelMove */
    SFC_DUTY_COUNT,
};
extern const char *const sfc_duty_names[SFC_DUTY_COUNT]; /* "OpenRun", "Commit", ... */

enum sfc_commit_phase {
    SFC_PHASE_ROUND,   /* waits for Abort of every shard (and Commit or OpenRun before it) */
    SFC_PHASE_COLLECT, /* labels of the open step are incomplete */
    SFC_PHASE_COMPUTE,
    SFC_PHASE_PREPARE,
    SFC_PHASE_RECORD,
};

/* What a Done said about one micro-batch. */
struct sfc_done {
    bool filled;
    struct sfc_attempt attempt;
    struct sfc_head_digest head_digest;
    uint64_t *dense_digests; /* [dense_blocks] in block order */
    double loss_sum;
    uint32_t zero_features;
};

struct sfc_dense_report {
    uint32_t block; /* of the whole map */
    double sum_of_squares;
    bool finite;
};

/* The durable record of a committed step: with the plan it determines the update. */
struct sfc_commit_record {
    uint64_t step;
    struct sfc_attempt round; /* of the Prepare that every shard answered with Ready */
    double clip_scale;
    double norm; /* of the dense gradient before clipping */
    bool apply;  /* false: not finite, skipped everywhere */
    double loss; /* mean over the global batch */
    double lr;
    uint64_t map_version;
    uint64_t next_position; /* of the sample sequence */
    uint32_t zero_features;
    uint32_t skipped_in_row; /* steps not applied up to and with this one */
    uint64_t skipped_total;
};

struct sfc_shard_duty {
    bool wanted;
    bool in_flight;
    uint64_t retry_ms; /* not before */
};

struct sfc_commit_config {
    uint32_t shards;   /* places that are in use, or were: 0..shards-1 */
    uint32_t capacity; /* places that there may be; 0: shards */
    uint32_t micro_batches;
    uint32_t global_batch;
    uint32_t dense_blocks;
    double clip;       /* 0 = none */
    uint64_t retry_ms; /* pause before a duty is sent again */
};

struct sfc_commit_fsm {
    struct sfc_commit_config config;
    enum sfc_commit_phase phase;
    uint64_t committed; /* last step with a durable record */
    struct sfc_attempt round;
    struct sfc_commit_record record;   /* of `committed`, or in RECORD of committed + 1 */
    struct sfc_done *done;             /* [J] of the open step */
    struct sfc_attempt *last_attempts; /* [J] of the committed step, for repeated Dones */
    uint32_t done_count;
    uint64_t *digests; /* memory of all dense_digests */
    double *sums;      /* [dense_blocks] */
    bool *reported;    /* [dense_blocks] */
    bool finite;
    bool *member;                   /* [capacity] */
    bool *ready;                    /* [capacity] */
    bool plan_sent, next_plan_sent; /* Plan of the open step, of the one after it: wanted or done */
    struct sfc_shard_duty (*duties)[SFC_DUTY_COUNT]; /* [capacity] */
};

/* Every shard is a member. */
int sfc_commit_init(struct sfc_commit_fsm *c, const struct sfc_commit_config *config,
                    struct sfc_error *err);
void sfc_commit_free(struct sfc_commit_fsm *c);

/* The shard of this place (within the capacity) is a member from now on, or is none. Between two
 * steps; its duties stay as they are. */
void sfc_commit_set_member(struct sfc_commit_fsm *c, uint32_t shard, bool member);

/* ---- duties */
void sfc_commit_want(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty);
void sfc_commit_want_all(struct sfc_commit_fsm *c, enum sfc_duty duty); /* of every member */
void sfc_commit_unwant_all(struct sfc_commit_fsm *c); /* every duty of every shard */
void sfc_commit_unwant(struct sfc_commit_fsm *c, enum sfc_duty duty);   /* of every shard */
void sfc_commit_unwant_shard(struct sfc_commit_fsm *c, uint32_t shard); /* every duty of this one */
bool sfc_commit_idle(const struct sfc_commit_fsm *c, enum sfc_duty duty); /* acknowledged by all */
/* The same, leaving out one shard; UINT32_MAX: none. */
bool sfc_commit_idle_but(const struct sfc_commit_fsm *c, enum sfc_duty duty, uint32_t shard);
/* The next message to send now: marks it in flight. false: none. */
bool sfc_commit_next(struct sfc_commit_fsm *c, uint64_t now_ms, uint32_t *shard,
                     enum sfc_duty *duty);
/* An answer: acknowledged (true) or to be tried again. Returns false for a duty that isn't in
 * flight. */
bool sfc_commit_answer(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty, bool ok,
                       uint64_t now_ms);
/* Not sent again before sfc_commit_resend or sfc_commit_want. */
void sfc_commit_suspend(struct sfc_commit_fsm *c, uint32_t shard, enum sfc_duty duty);
/* The connection to a shard is new: what was in flight is sent again. */
void sfc_commit_resend(struct sfc_commit_fsm *c, uint32_t shard);

/* ---- the step */
/* Plan of the open step (next: of the step after it) becomes a duty of every shard, once. */
void sfc_commit_plan(struct sfc_commit_fsm *c, bool next);
/* What a message of this duty must say now: step and round. */
void sfc_commit_key(const struct sfc_commit_fsm *c, enum sfc_duty duty, uint64_t *step,
                    struct sfc_attempt *round);
/* Takes what a Done said (copied); *all: every micro-batch is in. */
void sfc_commit_done(struct sfc_commit_fsm *c, uint32_t j, const struct sfc_done *done, bool *all);
/* Ready of a shard with its dense blocks. SFC_EINVAL: a block out of range or reported twice. */
int sfc_commit_ready(struct sfc_commit_fsm *c, uint32_t shard,
                     const struct sfc_dense_report *reports, uint32_t count, bool head_finite,
                     bool *all, struct sfc_error *err);
/* After the last Ready: fills the record (sums of squares in block order in double; clip factor
 * clip / max(norm, clip); not finite: apply = false). SFC_EINTERNAL: a dense block nobody reported.
 */
int sfc_commit_decide(struct sfc_commit_fsm *c, double lr, uint64_t map_version,
                      struct sfc_error *err);
/* The record is durable: Commit becomes a duty of every shard, the next step opens. */
void sfc_commit_durable(struct sfc_commit_fsm *c);
/* Everything of the open step is void: Abort becomes a duty of every shard. */
void sfc_commit_new_round(struct sfc_commit_fsm *c, struct sfc_attempt round);

#endif

/* The shard's machine of one run.
 *
 *   applied = t-1                          Plan(t)                    plan job done
 *      IDLE ------------------------------------------> SAMPLING ---------------------> OPEN
 *       ^ ^                                                                ^             | Prepare,
 *       | '--- Abort (a new round: plans and attempts are void) <-- any    | failed      v complete
 *       |                                                              FLUSHING <-job done-
 * PREPARING |                                                                  | flushed
 *       '-- commit job done, applied = t <-- COMMITTING <-- Commit -- READY <-'
 *
 * - Ready is answered only when the inputs of the step are durable. Where they can't be written the
 *   attempts stay and Prepare may come again (SFC_EUNAVAILABLE with the reason).
 * - Plan(t+1) may come while t is open: it is kept and sampled only after Commit(t) is applied.
 * - Calls of a step whose plan or commit isn't here yet are parked (bounded). So are Logits,
 *   Gradient and PullDense of the next map version, until its MAP: other shards may have it.
 * - A READY shard waits for Commit or Abort; it never decides by time.
 * - Anything of another run, incarnation, round, map version or step is refused with SFC_ESTALE.
 * - Answers of t are kept until t+1 commits: generation = step & 1; answer memory is [2][slots].
 * - A MAP comes at a boundary: IDLE, or void by its newer round. MAPPING until its job is done:
 * calls wait, and those of the version before are refused then. A joining shard owns nothing and
 * jumps to the step of its first MAP.
 *
 * The daemon turns calls into events with a token and carries out the actions in order. Every token
 * gets exactly one REPLY, REPLY_PREPARE or FAIL (CANCEL of a parked call: FAIL; of any other: its
 * usual reply). START actions form one FIFO queue to the compute thread; each gets exactly one
 * JOB_DONE, in that order. Texts and arrays in actions live until the next event.
 *
 * Each FLUSH gets exactly one FLUSHED; at most one is on its way. Until then the daemon may read
 * what the slots, the plan and the prepare job hold: nothing of it is reused, and an Abort waits. A
 * COMMIT job is also the moment to append the commit to the log, with no flush of its own: the next
 * Prepare's covers it, and the scheduler has the record of the last one. */
#ifndef SFC_CORE_STEP_FSM_H
#define SFC_CORE_STEP_FSM_H

#include "server/core/attempts.h"

struct sfc_step_config {
    uint64_t run_id;
    uint64_t incarnation;
    uint64_t map_version;
    uint64_t start_step;      /* applied at the beginning */
    bool joins;               /* not part of the run before its first MAP */
    struct sfc_attempt round; /* the present one; older messages are refused. Zero: the first */
    uint32_t global_batch;
    uint32_t micro_batch;
    uint32_t slots;        /* 0 = J + 2 */
    uint32_t dense_blocks; /* own; 0 = no PushDense needed */
    uint32_t max_parked;   /* 0 = 1024 */
};

enum sfc_step_phase {
    SFC_STEP_IDLE,
    SFC_STEP_MAPPING, /* blocks change their owners */
    SFC_STEP_SAMPLING,
    SFC_STEP_OPEN,
    SFC_STEP_PREPARING,
    SFC_STEP_FLUSHING,
    SFC_STEP_READY,
    SFC_STEP_COMMITTING,
    SFC_STEP_FAILED, /* a plan, prepare or commit job failed: the state can't be trusted */
};
const char *sfc_step_phase_name(enum sfc_step_phase phase);

enum sfc_step_event_type {
    SFC_SE_PLAN,   /* token, run_id, round, step, map_version, lr, labels */
    SFC_SE_LOGITS, /* token, run_id, step, j, attempt, map_version, digest */
    SFC_SE_GRADIENT,
    SFC_SE_DENSE,
    SFC_SE_PREPARE, /* token, run_id, round, step, prepared[] in order of j, provisional */
    SFC_SE_COMMIT, /* token, run_id, incarnation, round (of the Prepare), step, clip_scale, apply */
    SFC_SE_ABORT,  /* token, run_id, round (new), step */
    SFC_SE_PULL,   /* token, run_id, step, map_version, attempt (0.0: none) */
    SFC_SE_MAP,    /* token, run_id, round, step, map_version, dense_blocks */
    SFC_SE_CANCEL, /* token */
    SFC_SE_JOB_DONE, /* job, code, text, and by kind: head_digest, dense_digests, sums */
    SFC_SE_FLUSHED,  /* code, text, lost: of the FLUSH */
};

struct sfc_prepared {
    struct sfc_attempt attempt;
    struct sfc_head_digest head_digest;
    const uint64_t *dense_digests; /* [own dense blocks] in block order */
};

struct sfc_own_dense_sum {
    double sum_of_squares;
    bool finite;
};

struct sfc_step_event {
    enum sfc_step_event_type type;
    uint64_t token;
    uint64_t run_id;
    uint64_t incarnation; /* of the sender; Plan, Prepare and Abort: = round.incarnation */
    struct sfc_attempt round;
    uint64_t step;
    uint64_t map_version;
    uint32_t j;
    struct sfc_attempt attempt;
    uint64_t digest; /* XXH3-64 of the payload */
    double lr;
    const uint64_t *labels; /* [count]; copied */
    uint32_t count;
    const struct sfc_prepared *prepared; /* [prepared_count] */
    uint32_t prepared_count;
    double clip_scale;
    bool apply;
    /* JOB_DONE, FLUSHED */
    uint64_t job;
    int code;
    const char *text;
    struct sfc_head_digest head_digest;   /* GRADIENT jobs */
    const uint64_t *dense_digests;        /* DENSE jobs: [own dense blocks] */
    const struct sfc_own_dense_sum *sums; /* PREPARE jobs: [own dense blocks] */
    bool head_finite;                     /* PREPARE jobs */
    bool provisional;                     /* PREPARE: not durable before a later step is */
    uint32_t dense_blocks;                /* MAP: own ones from now on */
    bool lost; /* FLUSHED: inputs of steps that are committed, but were not durable, are gone */
};

enum sfc_job_kind {
    SFC_JOB_PLAN,   /* step; labels: sfc_step_labels() */
    SFC_JOB_LOGITS, /* token (its payload), step, generation, slot, j */
    SFC_JOB_GRADIENT,
    SFC_JOB_DENSE,
    SFC_JOB_PREPARE, /* slots [J], lr */
    SFC_JOB_COMMIT,  /* slots [J], round, lr, clip_scale, apply (false: touch nothing), provisional
                      */
    SFC_JOB_PULL,    /* token */
    SFC_JOB_MAP,     /* step: own blocks become those of the map */
};

enum sfc_step_action_type {
    SFC_SA_START, /* job, kind and its fields */
    SFC_SA_REPLY, /* token, call: the answer in (generation, slot) for LOGITS, GRADIENT; else
                     plain success with `step` */
    SFC_SA_FLUSH, /* step, round, generation, slots [J], lr, provisional: write the inputs of the
                     step to the log and, unless provisional, make all of the log durable */
    SFC_SA_REPLY_PREPARE, /* token, ready, missing[], sums[], head_finite */
    SFC_SA_FAIL,          /* token, code, text */
};

struct sfc_step_action {
    enum sfc_step_action_type type;
    uint64_t token;
    enum sfc_step_event_type call; /* of the token */
    uint64_t job;
    enum sfc_job_kind kind;
    uint64_t step;
    uint32_t generation;
    uint32_t slot;
    uint32_t j;
    struct sfc_attempt round;
    const uint32_t *slots; /* [J]; of a FLUSH: until its FLUSHED */
    double lr;
    double clip_scale;
    bool apply;
    bool provisional;
    bool ready;
    bool head_finite;
    const uint32_t *missing;
    uint32_t missing_count;
    const struct sfc_own_dense_sum *sums;
    int code;
    const char *text;
};

struct sfc_step_actions {
    struct sfc_step_action *items; /* owned */
    char (*texts)[256];            /* [capacity], owned: what .text points to */
    size_t count;
    size_t capacity;
};

struct sfc_step_plan {
    uint64_t step; /* 0 = none */
    double lr;
    uint64_t *labels; /* [global_batch] */
};

struct sfc_step_job {
    uint64_t id;
    enum sfc_job_kind kind;
    uint64_t token;
    uint64_t step;
    uint32_t generation;
    uint32_t slot;
    bool stale; /* an Abort came meanwhile: the result is dropped */
};

struct sfc_step_fsm {
    struct sfc_step_config config;
    uint32_t micro_batches;
    enum sfc_step_phase phase;
    uint64_t applied;
    struct sfc_attempt round;
    struct sfc_attempt asked;        /* newest round of an OpenRun that found it here, */
    uint64_t asked_step;             /* and the step that the run is at there */
    struct sfc_attempt answered;     /* newest round when an OpenRun succeeded last */
    struct sfc_step_plan plans[2];   /* by step & 1 */
    struct sfc_attempts attempts[2]; /* by step & 1 */
    uint32_t *slots;                 /* [J] chosen by Prepare */
    struct sfc_attempt *prepared;    /* [J] what Prepare named */
    struct sfc_own_dense_sum *sums;
    bool head_finite;
    bool provisional;                                /* what Prepare said */
    bool flushing;                                   /* a FLUSH is on its way */
    uint64_t prepare_token, commit_token, map_token; /* calls that wait for the job; 0 = none */
    struct sfc_step_map {                            /* of the MAP job */
        uint64_t version, step;
        uint32_t dense_blocks;
        struct sfc_attempts attempts[2];
        struct sfc_own_dense_sum *sums;
    } map;
    uint32_t *missing;
    struct sfc_step_job *jobs; /* FIFO ring of running jobs */
    uint32_t job_head, job_count, job_capacity;
    uint64_t next_job;
    struct sfc_step_event *parked; /* in order of arrival, without pointers */
    uint32_t parked_count;
    int failure_code;
    char failure[512];
    struct sfc_error error;
};

int sfc_step_init(struct sfc_step_fsm *s, const struct sfc_step_config *config,
                  struct sfc_error *err);
void sfc_step_free(struct sfc_step_fsm *s); /* all-zero is fine; waiting tokens get no reply */
int sfc_step_actions_init(struct sfc_step_actions *actions, const struct sfc_step_fsm *s,
                          struct sfc_error *err);
void sfc_step_actions_free(struct sfc_step_actions *actions);

/* actions is emptied first. Never fails: errors are FAIL actions. */
void sfc_step_step(struct sfc_step_fsm *s, const struct sfc_step_event *event,
                   struct sfc_step_actions *actions);

/* OpenRun of a run that is here already, in this round, to this step (recover). */
enum sfc_step_open {
    SFC_STEP_OPEN_STALE,    /* it was on its way when the run went on, or somewhere else */
    SFC_STEP_OPEN_ANSWERED, /* it succeeded in this round: the same answer, and nothing else */
    SFC_STEP_OPEN_HERE,     /* nothing is to be done; older ones are stale from now on */
    SFC_STEP_OPEN_ANEW,     /* the machine is elsewhere: what is on disk brings the run there */
};
enum sfc_step_open sfc_step_opens(struct sfc_step_fsm *s, struct sfc_attempt round, bool recover,
                                  uint64_t step);
/* The same, with the version of the map that it names: a recovery with a newer one is from the
 * disk, wherever the machine is (a SetMap was refused, or lost with the scheduler that sent it);
 * one with an older map is stale. */
enum sfc_step_open sfc_step_opens_map(struct sfc_step_fsm *s, struct sfc_attempt round,
                                      bool recover, uint64_t step, uint64_t map_version);
/* OpenRun is answered with success. */
void sfc_step_opened(struct sfc_step_fsm *s);
/* The newest round that it heard of: an OpenRun of an older one is stale, also when the run was
 * closed meanwhile. */
struct sfc_attempt sfc_step_newest_round(const struct sfc_step_fsm *s);

/* May this MAP be taken now? SFC_ESTALE, SFC_ESTATE as the event would be refused. */
int sfc_step_map_check(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                       struct sfc_error *err);

uint64_t sfc_step_applied(const struct sfc_step_fsm *s);
/* For RegisterShard: the step that is READY or COMMITTING, else 0. */
uint64_t sfc_step_prepared(const struct sfc_step_fsm *s);
/* Labels of the plan of a step [global_batch]; NULL when there is none. */
const uint64_t *sfc_step_labels(const struct sfc_step_fsm *s, uint64_t step);

#endif

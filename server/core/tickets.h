/* Tickets of a run: who reads and who computes which micro-batch.
 *
 * DATA tickets run ahead of the open step (the oldest uncommitted one) by a bounded number of
 * steps; COMPUTE grants exist only for the open step, once its labels are complete.
 *
 *   data (t, j):     free --give--> out --announce--> announced   (out -> free: death, give-up,
 * timeout) compute (t, j):  free --grant--> out --done--> done    (out -> free: the same, when no
 * grant is left)
 *
 * Labels are facts of the data set: an announcement survives its worker. Every grant has a new
 * attempt number. A straggler's micro-batch may be granted a second time (ticket_policy.h says
 * when), once in a round: then two grants count, and the first Done wins. Shards keep J + 2
 * attempts side by side; when more were given in a round they may have let go of older ones, so
 * then only the newest grant of a micro-batch counts. Used by run_fsm, which owns the policy. */
#ifndef SFC_CORE_TICKETS_H
#define SFC_CORE_TICKETS_H

#include "server/core/pace.h"

#define SFC_ATTEMPT_LIMIT   3u
#define SFC_SPARE_ATTEMPTS  2u         /* that shards keep beside one for each micro-batch */
#define SFC_TICKET_TRIAL    64u        /* steps without a grant after which a worker is a new one */
#define SFC_TICKET_WORKERS  1024u      /* whose pace is known at a time */
#define SFC_TICKET_STRANGER UINT32_MAX /* place of a worker beyond those */

struct sfc_tickets_config {
    uint64_t classes;
    uint32_t micro_batches; /* J */
    uint32_t micro_batch;   /* rows */
    uint32_t lead_steps;    /* data tickets exist for open step .. open step + lead */
    uint64_t last_step;
    uint64_t data_timeout_ms; /* a ticket without an answer for so long is given again */
    uint64_t grant_timeout_ms;
};

enum sfc_ticket_state { SFC_TICKET_FREE, SFC_TICKET_OUT, SFC_TICKET_DONE };

struct sfc_grant {
    uint64_t worker;
    uint32_t place; /* of the worker */
    uint64_t since_ms;
    struct sfc_attempt attempt;
};

struct sfc_micro_batch {
    enum sfc_ticket_state data;
    uint64_t data_worker; /* holder, then announcer */
    uint64_t data_since_ms;
    bool data_again; /* the ticket was given a second time */
    uint32_t data_failures;
    enum sfc_ticket_state grant; /* open step only */
    struct sfc_grant out[2];     /* OUT: those that count, older first */
    uint32_t out_count;
    bool again; /* it was granted a second time in this round */
    uint32_t failures;
    bool dropped;
};

/* What is known of a worker. */
struct sfc_ticket_worker {
    uint64_t id;          /* 0: free */
    struct sfc_pace pace; /* of its grants */
    uint32_t steps;       /* in a row of which it was granted nothing */
    uint32_t overtaken;   /* grants in a row that another was done with first */
    /* of the survey (ticket_policy.h): */
    uint32_t idle;  /* so many of its calls wait for a grant */
    double held_ms; /* since its oldest grant */
    bool data_late; /* it is late with a data ticket */
};

struct sfc_ticket_step {
    uint64_t step;
    uint32_t announced;
    uint32_t done;
    struct sfc_micro_batch *micro_batches; /* [J] */
    uint64_t *labels;                      /* [J * micro_batch] */
};

struct sfc_tickets {
    struct sfc_tickets_config config;
    uint64_t open_step;                  /* oldest uncommitted step */
    struct sfc_attempt last;             /* greatest attempt number given so far */
    struct sfc_ticket_step *steps;       /* ring of lead + 1 */
    uint32_t given;                      /* grants of this round */
    struct sfc_pace grant_pace;          /* of all workers: from grant to Done, */
    struct sfc_pace data_pace;           /* from data ticket to Announce */
    struct sfc_ticket_worker *workers;   /* [SFC_TICKET_WORKERS] */
    uint32_t worker_count;               /* all of them are before this place */
    uint64_t second_grants, second_data; /* given since the beginning */
};

int sfc_tickets_init(struct sfc_tickets *t, const struct sfc_tickets_config *config,
                     uint64_t incarnation, uint64_t open_step, struct sfc_error *err);
void sfc_tickets_free(struct sfc_tickets *t);

/* NULL: the step is outside the window. */
struct sfc_ticket_step *sfc_tickets_step(struct sfc_tickets *t, uint64_t step);
bool sfc_tickets_complete(struct sfc_tickets *t, uint64_t step); /* all labels of the step are in */

/* The lowest free data ticket; false: none now. */
bool sfc_tickets_give_data(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t *step,
                           uint32_t *j);
/* A grant of the open step; prefers micro-batches that this worker announced, then those whose
 * announcer died, then any. *step is always the open step. false: none now. */
bool sfc_tickets_give_grant(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t *step,
                            uint32_t *j, struct sfc_attempt *attempt);
/* Micro-batch j of the open step, which is out, is granted a second time. The older grant counts
 * beside it while shards certainly keep both attempts. */
struct sfc_attempt sfc_tickets_grant_again(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms,
                                           uint32_t j);
/* The same for a data ticket: whoever announces first has announced. */
void sfc_tickets_data_again(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t step,
                            uint32_t j);
/* The place of a worker in `workers`, until it died; SFC_TICKET_STRANGER: there is none for it. */
uint32_t sfc_tickets_worker(struct sfc_tickets *t, uint64_t worker);

/* Labels of (step, j): idempotent. *complete: this call completed the step's labels. SFC_ECONFLICT:
 * other labels were announced before (row and both values in the message). SFC_EINVAL: a label out
 * of range. SFC_ESTATE: a step beyond the window. Steps before the open one are accepted and
 * ignored. */
int sfc_tickets_announce(struct sfc_tickets *t, uint64_t worker, uint64_t now_ms, uint64_t step,
                         uint32_t j, const uint64_t *labels, uint32_t count, bool *complete,
                         struct sfc_error *err);
/* True when `attempt` is a grant of (open step, j) that is out and counts; it becomes done, and
 * what others hold of it counts no more. */
bool sfc_tickets_done(struct sfc_tickets *t, uint64_t now_ms, uint32_t j,
                      struct sfc_attempt attempt);

/* A grant or data ticket comes back. counts: it failed by itself (not: its worker died or lost its
 * connection). Returns true when this was failure number SFC_ATTEMPT_LIMIT: the run must block.
 * Unknown tickets are ignored. */
bool sfc_tickets_return_grant(struct sfc_tickets *t, uint64_t step, uint32_t j,
                              struct sfc_attempt attempt, bool counts);
bool sfc_tickets_return_data(struct sfc_tickets *t, uint64_t worker, uint64_t step, uint32_t j,
                             bool counts);
void sfc_tickets_worker_died(struct sfc_tickets *t, uint64_t worker);
void sfc_tickets_tick(struct sfc_tickets *t, uint64_t now_ms); /* timeouts */

/* A shard does not have what the Done of (open step, j) named: that attempt failed. Returns as
 * above. */
bool sfc_tickets_failed(struct sfc_tickets *t, uint32_t j);

/* Weight 0 for every row of (step, j) of the window: labels become NONE, failures are forgotten. */
void sfc_tickets_drop(struct sfc_tickets *t, uint64_t step, uint32_t j);
/* All grants of the open step are void; returns the new round. */
struct sfc_attempt sfc_tickets_new_round(struct sfc_tickets *t);
void sfc_tickets_forgive(struct sfc_tickets *t); /* failures of the window are forgotten */
/* Another step is the open one: nothing is announced, granted or dropped any more. Attempt numbers
 * go on. */
void sfc_tickets_reset(struct sfc_tickets *t, uint64_t open_step);
/* The open step is committed: the next opens. */
void sfc_tickets_advance(struct sfc_tickets *t);
uint32_t sfc_tickets_held(const struct sfc_tickets *t, uint64_t worker); /* grants out */

#endif

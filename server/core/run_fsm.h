/* The scheduler's machine of one run: tickets, commit, holds, pause, sessions, restart.
 *
 *                 all OpenRun (and START with load)
 *   IDLE  LOADING -------------------------------> RUNNING <--RESUME-- PAUSED
 *                                        restore --^  | ^ '--PAUSE-------^
 *                            hold reached / released  | |
 *                                          HELD <-----' | '-RESUME, DROP- BLOCKED  (3 failures, 10
 * skips) last step committed and acknowledged: FINISHED;  a shard refuses, other than to recover:
 * FAILED;  STOP: IDLE
 *
 * A shard that restarted has lost its memory and has the run on its disk: the open step is void,
 * and OpenRun tells it to recover to the committed step, which includes a Commit that it had not
 * acknowledged. Where a record is on its way to the store that waits: the record decides to which
 * step. Several at once, again while it recovers, and together with our own restart are the same.
 *
 * REWIND goes back to an earlier step: run_rewind.c. Shards join and leave, and blocks move from
 * one to another, while the run goes on: run_moves.c. A shard is given up for lost: run_loss.c.
 * SET_LR changes the learning rate: run_set_lr.c.
 *
 * With durable_every N only every N-th step is durable when it commits, and the last one, and where
 * the run stands still. The steps between are provisional: their records are in memory, their
 * inputs in the logs but not flushed. When a shard is lost, all go back to the last durable step,
 * and a restarted scheduler finds that one in its store.
 *
 * The daemon turns calls into events with a token (any number but 0 that names the waiting call)
 * and carries out the actions, in order, before the next event. Every token gets exactly one reply
 * action, now or at a later event; after CANCEL it gets none. Every SEND gets exactly one
 * SHARD_REPLY (a transport failure is a reply with its code); SEND is emitted again when that says
 * "unavailable". Every WRITE_RECORD gets exactly one RECORD_DURABLE or RECORD_FAILED, every
 * WRITE_DROP one DROPPED, every WRITE_LR one LR_WRITTEN, every READ_RECORD one RECORD_READ, every
 * WRITE_REWIND one REWOUND, every WRITE_MAP one MAP_DURABLE or MAP_FAILED, every ORDER one
 * ORDER_DONE. TICK at least every 250 ms. Texts in actions live until the next event.
 */
#ifndef SFC_CORE_RUN_FSM_H
#define SFC_CORE_RUN_FSM_H

#include "server/core/commit_fsm.h"
#include "server/core/lr_changes.h"
#include "server/core/mirror.h"
#include "server/core/schedule.h"
#include "server/core/tickets.h"

#define SFC_SKIPPED_LIMIT 10u
#define SFC_MAX_HOLDS     8u

enum sfc_run_state {
    SFC_RUN_IDLE, /* stopped: blocks are freed */
    SFC_RUN_LOADING,
    SFC_RUN_RUNNING,
    SFC_RUN_PAUSED,
    SFC_RUN_HELD,
    SFC_RUN_BLOCKED,
    SFC_RUN_FINISHED,
    SFC_RUN_FAILED,
};
const char *sfc_run_state_name(enum sfc_run_state state); /* "running" */

struct sfc_run_config {
    uint64_t run_id;
    uint64_t incarnation;      /* of the scheduler, durable before the first event */
    uint32_t shards;           /* places of the map; events and actions name shards by place */
    uint32_t max_shards;       /* places that there may be; 0: as many as the core allows */
    const uint64_t *shard_ids; /* [shards], 0: the place is empty; copied. NULL: the place */
    uint64_t map_version;      /* of the present map */
    uint64_t classes;          /* of the present map */
    uint32_t global_batch;
    uint32_t micro_batch;
    uint32_t dense_blocks;
    double clip;
    struct sfc_schedule schedule;           /* .steps is the last step */
    const struct sfc_lr_change *lr_changes; /* [lr_change_count], steps ascending; copied */
    size_t lr_change_count;
    uint64_t start_step;    /* committed at the beginning: 0, or the checkpoint's */
    bool load;              /* wait for START after OpenRun */
    bool session;           /* data set kind SESSION */
    uint32_t durable_every; /* 0: 1 */
    /* limits and times; 0 = default */
    uint32_t lead_steps;       /* 3 */
    uint32_t max_waiting;      /* 1024 waiting calls */
    uint64_t ticket_wait_ms;   /* 2000: then "nothing now, ask again" */
    uint64_t data_timeout_ms;  /* 30000 */
    uint64_t grant_timeout_ms; /* 120000 */
    uint64_t retry_ms;         /* 200 */
    uint64_t hold_lease_ms;    /* 10000 */
    uint64_t hold_wait_ms;     /* 1000 */
    uint64_t take_wait_ms;     /* 10000: the run stands still so long for blocks, not longer */
    uint64_t stall_ms;         /* 1000: a plan that nobody works on for so long gives way */
};

/* A micro-batch that a person dropped: its rows have weight 0. */
struct sfc_run_drop {
    uint64_t step;
    uint32_t j;
};

/* What a restarted scheduler read from its store. */
struct sfc_run_restore {
    bool has_record; /* false: no step was committed in the store (step = start_step) */
    struct sfc_commit_record record; /* of the last committed step */
    enum sfc_run_state state;        /* LOADING: OpenRun is sent again to shards without the run (no
                                        record yet); otherwise such shards recover */
    bool paused;                     /* by a person, whatever the state */
    const char *reason;              /* of BLOCKED and FAILED; copied. NULL: none */
    const struct sfc_run_drop *drops; /* of steps that are not committed */
    size_t drop_count;
    uint64_t map_step;  /* the map holds for the steps after this one; 0: from the beginning */
    uint64_t map_order; /* that made it; 0: none */
};

enum sfc_run_event_type {
    SFC_EV_TICK,
    SFC_EV_TICKET,       /* token, worker, data (kind) */
    SFC_EV_ANNOUNCE,     /* token, worker or session, step, j, labels, count */
    SFC_EV_DONE,         /* token, worker or session, step, j, done */
    SFC_EV_GIVE_UP,      /* token, worker, step, j, attempt, data, code, text */
    SFC_EV_WORKER_DIED,  /* worker (Leave counts as well) */
    SFC_EV_CANCEL,       /* token: the waiting call was cancelled */
    SFC_EV_OPEN_SESSION, /* token */
    SFC_EV_HOLD,         /* token, hold_id (0 = new), step (0 = next boundary) */
    SFC_EV_WATCH,        /* token, step: answered with REPLY_HOLD; nothing is held */
    SFC_EV_RELEASE,      /* token, hold_id */
    SFC_EV_START,
    SFC_EV_PAUSE,
    SFC_EV_RESUME,
    SFC_EV_STOP,    /* token */
    SFC_EV_DROP,    /* token, step, j */
    SFC_EV_DROPPED, /* number (of the WRITE_DROP), step, j, code, text: it is durable, or not */
    SFC_EV_SET_LR,  /* token, step (from it on; 0: the first that can be), lr (0: the schedule's) */
    SFC_EV_LR_WRITTEN,     /* step, code, text: the change is durable, or not */
    SFC_EV_REWIND,         /* token, step, oldest (step that shards say they can go back to) */
    SFC_EV_RECORD_READ,    /* step, code, text; record */
    SFC_EV_REWOUND,        /* step, code, text: the records of later steps are gone, or not */
    SFC_EV_SHARD_REPLY,    /* shard, life, duty, step, round (as in the SEND), code, text; prepare;
                              of OpenRun: applied */
    SFC_EV_SHARD_BACK,     /* shard, shard_run_id, map_version, step (applied), prepared_step: it
                              registered again with the same boot id (or for the first time since our
                              restart) */
    SFC_EV_SHARD_LOST,     /* shard: it restarted and lost its memory */
    SFC_EV_SHARD_SAYS,     /* shard, shard_run_id: the run that it has open or opens, 0 for none, in
                              a heartbeat; its next one is sent after the answer to this one */
    SFC_EV_SHARD_PROGRESS, /* shard, step (recovered so far), to_step, eta_s (0 = not known) */
    SFC_EV_SHARD_GONE,     /* shard: silent for its lease; only shown in the reason */
    SFC_EV_RECORD_DURABLE, /* step; of a provisional record: it is kept */
    SFC_EV_RECORD_FAILED,  /* step, code, text: tried again later, or the run fails */
    SFC_EV_ORDER, /* number (ascending, above incarnation << 32), order, shard, from, shard_id;
                     of a LOSS: adopters (places), adopter_count, wards, ward_count; of a GROW:
                     classes. Only when sfc_run_may_order, or for a LOSS sfc_run_may_give_up */
    SFC_EV_ORDER_CANCEL, /* number; 0: whichever is at work. Not once its map is being written */
    SFC_EV_MAP_DURABLE,  /* number */
    SFC_EV_MAP_FAILED,   /* number, code, text: SFC_EINVAL: this map can't be, the order is void;
                            SFC_EIO, _ENOMEM, _ESTATE: tried again later; else the run fails */
    SFC_EV_SHARD_STRAY,  /* shard (a free place), shard_id: it has the run open and no place */
};

/* Changes of the map, one at a time. */
enum sfc_order_kind {
    SFC_ORDER_NONE,
    SFC_ORDER_JOIN,  /* shard_id becomes a member at the free place `shard`, and owns nothing */
    SFC_ORDER_MOVE,  /* blocks of the shard at `from` go to the one at `shard` */
    SFC_ORDER_LEAVE, /* `shard`, which owns nothing any more, leaves */
    SFC_ORDER_LOSS,  /* `shard` is given up; the adopters, which mirror it, take its blocks */
    SFC_ORDER_GROW,  /* from the next step on there are `classes`; every member makes its new blocks
                      */
};

struct sfc_run_prepare_reply {
    bool ready;
    bool head_finite;
    const struct sfc_dense_report *reports;
    uint32_t report_count;
    const uint32_t *missing; /* micro-batches whose attempt failed */
    uint32_t missing_count;
};

/* A shard of whose blocks the one that is given up keeps copies. */
struct sfc_run_ward {
    uint32_t place;
    struct sfc_mirrors others; /* shards that can restore its blocks as well */
};

struct sfc_run_event {
    enum sfc_run_event_type type;
    uint64_t now_ms;
    uint64_t token;
    uint64_t worker;
    uint64_t session;
    uint64_t step;
    uint32_t j;
    struct sfc_attempt attempt;
    const uint64_t *labels;
    uint32_t count;
    const struct sfc_done *done;
    bool data;
    int code;
    const char *text;
    uint64_t hold_id;
    uint32_t shard;
    enum sfc_duty duty;
    struct sfc_attempt round;
    struct sfc_run_prepare_reply prepare;
    uint64_t shard_run_id;
    uint64_t prepared_step;
    uint64_t map_version;
    uint64_t shard_id;
    enum sfc_order_kind order;
    uint32_t from;
    const uint32_t *adopters;
    uint32_t adopter_count;
    const struct sfc_run_ward *wards;
    uint32_t ward_count;
    uint64_t life;
    uint64_t number;
    uint64_t applied;
    uint64_t to_step;
    double eta_s;
    uint64_t oldest;
    double lr;
    const struct sfc_commit_record *record;
    uint64_t classes;
};

enum sfc_run_action_type {
    SFC_ACT_SEND,         /* shard, life, duty, step, round; for OpenRun: recover, record (step 0:
                             none); for CheckRewind: record, the same; for Commit: record; for Plan: lr and
                             sfc_run_labels(); for Prepare: sfc_run_done() of each j, provisional;
                             for CheckRewind with the map to come (ADOPT): record;
                             for OpenRun(join), FetchBlocks, TakeBlocks, SetMap, CancelMove: number
                             (of the order; of SetMap the one that made the present map); for
                             OpenRun and CloseRun: number (of the newest order) */
    SFC_ACT_WRITE_DROP,   /* number, step, j */
    SFC_ACT_WRITE_LR,     /* step, lr: a change of the learning rate, in the place of all that begin
                             at its step or later */
    SFC_ACT_WRITE_RECORD, /* record, provisional; attempts, digests and labels from sfc_run_done(),
                             _labels(). Provisional: keep it in memory; else make it durable with
                             those that are kept, all or none of them */
    SFC_ACT_FORGET_RECORDS, /* those that are kept; the run goes back to step; round: below */
    SFC_ACT_READ_RECORD,    /* step: its commit record, kept or durable */
    SFC_ACT_WRITE_REWIND,   /* step, round (the newest one given before the run went back, to be
                               noted: what shards have from it of later steps is void): everything of
                               later steps goes, changes that begin with them too, in one piece;
                               records that are   kept of steps up to   this one become durable in it
                             */
    SFC_ACT_REPLY,    /* token, code, text: Announce, GiveUp, Release, controls; and any failure */
    SFC_ACT_REPLY_LR, /* token, step (from it on), lr */
    SFC_ACT_REPLY_TICKET,  /* token, granted, data, step, j, attempt, dropped */
    SFC_ACT_REPLY_DONE,    /* token, accepted */
    SFC_ACT_REPLY_SESSION, /* token, session, step (next), attempt */
    SFC_ACT_REPLY_HOLD,    /* token, hold_id (of a watch 0), held, step */
    SFC_ACT_COMMITTED,     /* step, record: for statistics and history */
    SFC_ACT_STATE,         /* state, paused, text (reason): it changed; make it durable */
    SFC_ACT_WRITE_MAP,     /* number, step, version: the map that the order makes of the present
                              one, for the steps after `step`; make it durable */
    SFC_ACT_MAP,           /* number: it is durable, and the present one from now on; what is sent
                              after this speaks of it */
    SFC_ACT_ORDER_DONE,    /* number, code, text: SFC_OK: the map has flipped and every shard has
                              it, or recovers with it; else nothing has changed */
};

struct sfc_run_action {
    enum sfc_run_action_type type;
    uint64_t token;
    int code;
    const char *text;
    uint32_t shard;
    enum sfc_duty duty;
    uint64_t step;
    uint32_t j;
    struct sfc_attempt round;
    struct sfc_attempt attempt;
    double lr;
    struct sfc_commit_record record;
    bool granted;
    bool data;
    bool dropped;
    bool accepted;
    bool held;
    uint64_t hold_id;
    uint64_t session;
    uint64_t life;
    uint64_t number;
    uint64_t version;
    bool recover;
    bool provisional;
    enum sfc_run_state state;
    bool paused;
};

struct sfc_run_actions {
    struct sfc_run_action *items; /* owned */
    size_t count;
    size_t capacity;
};

enum sfc_waiting_kind {
    SFC_WAITING_NONE,
    SFC_WAITING_DATA,
    SFC_WAITING_GRANT,
    SFC_WAITING_HOLD,
    SFC_WAITING_WATCH,
    SFC_WAITING_SESSION,
    SFC_WAITING_DROP,
    SFC_WAITING_REWIND,
    SFC_WAITING_LR
};

struct sfc_waiting {
    enum sfc_waiting_kind kind;
    uint64_t token;
    uint64_t worker;
    uint32_t place;   /* of the worker: tickets.h */
    uint64_t hold_id; /* DROP: its number; WATCH: the step */
    uint64_t since_ms;
};

enum sfc_rewind_phase {
    SFC_REWIND_NONE,
    SFC_REWIND_WANTED,  /* waits for a record that is on its way */
    SFC_REWIND_READING, /* the record of its step */
    SFC_REWIND_READ,
    SFC_REWIND_ASKING,  /* every shard checks that its disk leads there; nothing has moved */
    SFC_REWIND_MOVING,  /* shards go to its step; the records of later ones are still there */
    SFC_REWIND_WRITING, /* and now they go */
};

struct sfc_run_rewind {
    enum sfc_rewind_phase phase;
    uint64_t step;
    struct sfc_commit_record record;
    struct sfc_attempt given; /* the newest round before shards went */
    uint64_t back_step;       /* where the run was */
    struct sfc_commit_record back;
    uint64_t again_ms; /* when the removal is tried again; 0: it is on its way */
    char error[256];   /* why it failed the last time */
};

enum sfc_order_phase {
    SFC_ORDER_IDLE,
    SFC_ORDER_PREPARING, /* OpenRun(join), or FetchBlocks; the run goes on */
    SFC_ORDER_BOUNDARY,  /* waits for a durable step after which nothing is planned */
    SFC_ORDER_TAKING,    /* the last changes, or adopters are asked; from here on the run stands
                            still */
    SFC_ORDER_WRITING,   /* the map is on its way to the store, which decides */
    SFC_ORDER_SETTING,   /* it has flipped; shards are told */
};

struct sfc_run_moves {
    enum sfc_order_phase phase;
    enum sfc_order_kind kind;
    uint64_t number;
    uint32_t shard, from; /* places */
    uint64_t classes;     /* GROW */
    bool went_back;       /* the run did, since the order began */
    uint64_t since_ms;    /* TAKING: when it began */
    uint64_t idle_ms;     /* BOUNDARY: since when nobody works on the plan; 0: somebody does */
    uint64_t again_ms;    /* WRITING: when the map is written again; 0: it is on its way */
    char error[256];      /* why the last try failed, "" = none did */
    uint64_t map_step, map_order; /* of the present map: as in sfc_run_restore */
};

enum sfc_set_lr_phase {
    SFC_SET_LR_NONE,
    SFC_SET_LR_WRITING,
    SFC_SET_LR_WRITTEN, /* waits for a step that is being prepared */
};

/* A change of the learning rate that does not count yet. */
struct sfc_run_set_lr {
    enum sfc_set_lr_phase phase;
    struct sfc_lr_change change;
    uint64_t again_ms; /* when it is written again; 0: it is on its way */
    char error[256];   /* why it failed the last time */
};

struct sfc_hold {
    uint64_t id; /* 0 = free */
    uint64_t at_step;
    uint64_t seen_ms;
};

enum sfc_place {
    SFC_PLACE_EMPTY,
    SFC_PLACE_JOINING, /* opens the run, and is no member yet */
    SFC_PLACE_MEMBER,
    SFC_PLACE_CLOSING, /* is no member (any more), and closes the run */
};

struct sfc_run_shard {
    enum sfc_place place;
    uint64_t id;   /* for texts */
    uint64_t life; /* counts losses and occupants of the place: an answer from an earlier life says
                      nothing */
    uint64_t cancelled; /* the order that its CancelMove is about */
    bool known;         /* reported since our restart */
    bool gone;          /* silent for its lease */
    bool without;       /* its newest heartbeat says that it does not have the run */
    bool adopts;        /* takes blocks of the shard that is given up */
    bool is_ward;       /* which keeps copies of its blocks; so do these: */
    struct sfc_mirrors others;
    uint64_t missing_ms;         /* since when nobody can count on it; 0: it is there */
    bool lost;                   /* recovers as soon as no record is on its way */
    uint64_t recovered, to_step; /* what it says of its recovery; to_step 0: nothing yet */
    double eta_s;
    enum sfc_duty refused; /* what it could not do the last time, */
    char refusal[320];     /* and why; "" = nothing */
};

struct sfc_run_fsm {
    struct sfc_run_config config;
    enum sfc_run_state state;
    char reason[512];
    struct sfc_tickets tickets;
    struct sfc_commit_fsm commit;
    bool paused; /* by a person */
    bool paused_shown;
    bool blocked;
    uint64_t blocked_step;
    uint32_t blocked_j;          /* UINT32_MAX: not a micro-batch */
    bool blocked_before_restart; /* by what the reason says; step and micro-batch are not known */
    bool start_wanted;
    bool failed, stopped, finished;
    bool started;                 /* past LOADING */
    bool restoring;               /* waits for shards to report after a restart */
    bool round_wanted;            /* a new round as soon as no record is on its way */
    uint64_t record_again_ms;     /* when the record is written again; 0: it is on its way */
    char record_error[256];       /* why it was not durable the last time */
    struct sfc_run_shard *shards; /* [max_shards]; config.shards of them were ever in use */
    struct sfc_run_moves moves;
    uint64_t last_drop; /* number */
    struct sfc_run_rewind rewind;
    struct sfc_lr_changes lr_changes; /* that count */
    struct sfc_run_set_lr set_lr;
    uint64_t durable; /* last step whose record is durable */
    struct sfc_commit_record durable_record;
    bool provisional;           /* the step that is being prepared */
    bool back_wanted;           /* to the last durable step, as soon as no record is on its way */
    struct sfc_run_drop *drops; /* of steps that are not durable */
    uint32_t drop_count, drop_capacity;
    struct sfc_waiting *waiting; /* ring in order of arrival */
    uint32_t waiting_count;
    struct sfc_hold holds[SFC_MAX_HOLDS];
    uint64_t next_hold;
    uint64_t session; /* 0 = none */
    struct sfc_attempt session_attempt;
    bool session_wanted;
    struct sfc_error error;
};

/* Allocates everything that the machine will ever use. restore NULL: a new run, in LOADING; the
 * first event sends OpenRun. */
int sfc_run_init(struct sfc_run_fsm *run, const struct sfc_run_config *config,
                 const struct sfc_run_restore *restore, struct sfc_error *err);
void sfc_run_free(struct sfc_run_fsm *run); /* all-zero is fine; waiting tokens get no reply */
int sfc_run_actions_init(struct sfc_run_actions *actions, const struct sfc_run_fsm *run,
                         struct sfc_error *err);
void sfc_run_actions_free(struct sfc_run_actions *actions);

/* actions is emptied first. Never fails: errors are replies or states. */
void sfc_run_step(struct sfc_run_fsm *run, const struct sfc_run_event *event,
                  struct sfc_run_actions *actions);

uint64_t sfc_run_committed(const struct sfc_run_fsm *run);
uint64_t sfc_run_durable_step(const struct sfc_run_fsm *run);
/* Learning rate of a step, as of now. */
double sfc_run_lr(const struct sfc_run_fsm *run, uint64_t step);
/* [global_batch] of a step that is complete, or NULL; until the step is committed. */
const uint64_t *sfc_run_labels(struct sfc_run_fsm *run, uint64_t step);
/* Of the open step from PREPARE until the record is durable; NULL before. */
const struct sfc_done *sfc_run_done(const struct sfc_run_fsm *run, uint32_t j);
/* Shards are on their way to an earlier step, from rounds up to *last. */
bool sfc_run_returns(const struct sfc_run_fsm *run, uint64_t *step, struct sfc_attempt *last);
/* Micro-batches and data tickets that were given to a second worker, since the machine was made. */
uint64_t sfc_run_second_grants(const struct sfc_run_fsm *run);
uint64_t sfc_run_second_data(const struct sfc_run_fsm *run);
/* Grants that a worker holds now. */
uint32_t sfc_run_held(const struct sfc_run_fsm *run, uint64_t worker);
/* The shard has been told to recover and has not answered yet. */
bool sfc_run_recovers(const struct sfc_run_fsm *run, uint32_t shard);
/* No order is at work, and the run is in a state to take one. */
bool sfc_run_may_order(const struct sfc_run_fsm *run);
/* The same for a LOSS. */
bool sfc_run_may_give_up(const struct sfc_run_fsm *run);
/* The member does not answer, or can't recover and is not asked again. */
bool sfc_run_is_dead(const struct sfc_run_fsm *run, uint32_t shard);
/* For so long, as of the last TICK; 0 also for one that has come back since then. */
uint64_t sfc_run_missing(const struct sfc_run_fsm *run, uint32_t shard, uint64_t now_ms);
/* The scheduler itself stood still for so long: no hold's caller and no missing shard was silent
 * meanwhile as far as anybody knows. Before the TICK of now. */
void sfc_run_stood_still(struct sfc_run_fsm *run, uint64_t ms, uint64_t now_ms);
/* The ward is missing, and nobody who can restore its blocks is there: whoever keeps copies of them
 * must not be given up. */
bool sfc_run_endangers(const struct sfc_run_fsm *run, const struct sfc_run_ward *ward);
/* What keeps the open step from being computed, if it is not the step itself: the first of these
 * that there is. */
enum sfc_run_delay {
    SFC_DELAY_NONE,
    SFC_DELAY_AWAY,      /* the shard at *place is gone */
    SFC_DELAY_RECOVERY,  /* the one at *place is lost, or opens the run again */
    SFC_DELAY_TAKE,      /* the flip of a map: TakeBlocks, or adopters are asked, */
    SFC_DELAY_WRITE_MAP, /* the map is on its way to the store, */
    SFC_DELAY_SET_MAP,   /* to the shards */
    SFC_DELAY_BOUNDARY,  /* nothing is planned, and a shard still has to do with the step before */
    SFC_DELAY_ABORT,     /* a round opens */
};
enum sfc_run_delay sfc_run_delayed(const struct sfc_run_fsm *run, uint32_t *place);
/* What the order at work waits for, or why its last try failed, for people; "" = nothing special.
 */
void sfc_run_order_waits_for(const struct sfc_run_fsm *run, char *out, size_t size);
/* An empty place; UINT32_MAX: none. */
uint32_t sfc_run_free_place(const struct sfc_run_fsm *run);
/* What a running run waits for, for people ("labels of step 5: 3 of 4"). out is always terminated.
 */
void sfc_run_waits_for(struct sfc_run_fsm *run, char *out, size_t size);
/* Failures that say nothing about the micro-batch or the peer's state: try again. */
bool sfc_run_transient(int code);

#endif

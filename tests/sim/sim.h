/* Deterministic cluster simulator: the real machines of the scheduler and of K shards, model
 * workers, a virtual clock and a network that delays, drops, repeats and reorders. Workers, shards
 * and the scheduler crash and come back: a shard with what its disk has flushed, the scheduler with
 * what its store has. Everything is a pure function of the seed.
 *
 *   workers --calls--> scheduler: membership + run_fsm + log floor + model store
 *      |                   | SEND
 *      '---calls-----> shards: step_fsm + one compute queue + model blocks + model disk
 *
 * A run in four has a foreign session instead of workers (sim_session.c). The scheduler's store
 * fails to write, and what it failed to write may be there after a crash all the same
 * (sim_store.c). Only every N-th step is durable when it commits, by seed; people take the run back
 * to earlier steps; one shard without dense blocks may have a disk that loses records, or is
 * replaced by a copy of before.
 *
 * In half of the runs shards join and leave and blocks move (sim_moves.c): source, destination and
 * scheduler like to die in every phase of it. Each node has the map that it was told; the place of
 * shard k in it is k. In half of these each shard is mirrored by another one, disks vanish for
 * good, and whoever is missing for long is given up (sim_mirror.c); in most of the others the run
 * begins with some of the classes, and grows (sim_grow.c).
 *
 * The arithmetic is replaced by hashes: a block's state after step t is a hash of (its state after
 * t-1, inputs of step t). The oracle (sim_oracle.c) knows no shards and no faults: it computes the
 * same chain from the committed records, and after EVERY event every shard must hold exactly the
 * oracle's state of its applied step (I1..I4). A step that is taken anew after the run went back
 * takes the place of the one that was given up, in the oracle too. At the end the chain is computed
 * once more by somebody who knows nothing of what happened. */
#ifndef SFC_TESTS_SIM_H
#define SFC_TESTS_SIM_H

#include "server/core/growth.h"
#include "server/core/log_floor.h"
#include "server/core/membership.h"
#include "server/core/run_fsm.h"
#include "server/core/step_fsm.h"
#include "server/durable/lineage.h"

#define MAX_K        4
#define MAX_J        4
#define ROWS         2 /* of a micro-batch */
#define MAX_B        (MAX_J * ROWS)
#define MAX_D        5
#define BLOCKS       6
#define BLOCK_SIZE   16
#define CLASSES      (BLOCKS * BLOCK_SIZE)
#define SAMPLE_PPM   300000
#define SAMPLES      37
#define MORE_SAMPLES 11 /* that a growth brings */
#define MAX_GROWTHS  3
#define NOBODY       UINT32_MAX /* owns a block that is not there yet */
#define MAX_STEPS    24
#define MAX_WORKERS  4
#define RUN_ID       7
#define MAX_SLOTS    (MAX_J + 2)
#define MAX_BLOCKS   (BLOCKS + MAX_D)
#define MAX_RECORDS  1024 /* of one shard's log */
#define MAX_COPIES   8    /* snapshots of a block */
#define DROP_TOKEN   (UINT64_MAX - 1)
#define REWIND_TOKEN (UINT64_MAX - 2)
#define LR_TOKEN     (UINT64_MAX - 3)
#define WORKER_START 1 /* timer of a worker that is dead */

enum method {
    M_JOIN,
    M_BEAT,
    M_TICKET,
    M_ANNOUNCE,
    M_DONE,
    M_GIVE_UP,
    M_OPEN_SESSION, /* worker -> scheduler */
    M_REGISTER,
    M_SHARD_BEAT, /* shard -> scheduler */
    M_OPEN,
    M_COMMIT,
    M_ABORT,
    M_PLAN,
    M_PREPARE,
    M_CHECK,
    M_CLOSE,
    M_OPEN_JOIN,
    M_FETCH,
    M_TAKE,
    M_SET_MAP,
    M_CANCEL, /* scheduler -> shard */
    M_LOGITS,
    M_GRADIENT,
    M_DENSE,
    M_PULL, /* worker -> shard */
};

/* Block map: the place of shard k is k. Growths ascend by step. */
struct map {
    uint64_t version;
    bool member[MAX_K];
    uint32_t class_owner[BLOCKS], dense_owner[MAX_D];
    uint32_t mirror[MAX_K]; /* place of the shard's mirror + 1; 0: none */
    uint32_t growth_count;
    struct sfc_growth growths[MAX_GROWTHS];
};

/* Body of any request or reply. */
struct body {
    int code;
    struct map map;
    uint64_t map_version, move;
    uint32_t from;
    bool blocks[MAX_BLOCKS];
    bool grows;             /* M_FETCH: blocks that come from nowhere, by `map` */
    uint64_t samples[ROWS]; /* of a data ticket */
    char text[128];
    uint64_t worker, session, boot_id, step, prepared_step, digest, run_id;
    uint32_t j;
    struct sfc_attempt attempt, round;
    bool data, granted, dropped, accepted, ready, head_finite, apply, has_run, recover, has_floor;
    bool provisional;
    uint64_t incarnation; /* of the scheduler that sends it */
    uint64_t floor, oldest;
    uint32_t count;
    uint64_t labels[MAX_B];
    uint64_t value;        /* features, LSE, logits, gradient */
    uint64_t dense[MAX_D]; /* by block */
    double sums[MAX_D];
    bool finite[MAX_D];
    uint32_t missing[MAX_J];
    double lr, clip_scale, loss_sum;
    struct sfc_attempt attempts[MAX_J];
    struct sfc_head_digest heads[MAX_J];
    uint64_t digests[MAX_J][MAX_D];
    uint32_t return_count; /* OpenRun */
    struct sfc_return returns[MAX_STEPS + 1];
};

enum node_kind { SCHEDULER, SHARD, WORKER };
struct node {
    enum node_kind kind;
    uint32_t index;
};

/* One call of a client. */
struct rpc {
    bool pending;
    uint64_t shard_life; /* of the scheduler's machine */
    struct node from, to;
    enum method method;
    uint64_t from_life; /* a reply to an earlier life of the client is dropped */
    uint64_t tag;
};

/* One delivery of a request at its server. */
struct token {
    uint64_t rpc;
    enum method method;
    uint64_t life;        /* of the server */
    struct body *request; /* freed with the answer */
    bool answered;
};

enum event_kind {
    E_REQUEST,
    E_REPLY,
    E_TIMEOUT,
    E_JOB,
    E_FLUSHED,
    E_STORED,
    E_STATE_STORED,
    E_DROP_STORED,
    E_LR_STORED,
    E_RECORD_READ,
    E_NOTIFY,
    E_SNAPSHOT,
    E_SNAPSHOT_WRITTEN,
    E_SETTLED,
    E_CHECKED,
    E_MADE_DURABLE,
    E_MAP_STORED,
    E_FETCHED,
    E_TAKEN,
    E_JOINED,
    E_ORDER,
    E_RECOVERED,
    E_KILL_SHARD,
    E_START_SHARD,
    E_TICK,
    E_WORKER_TIMER,
    E_SHARD_BEAT,
    E_KILL_WORKER,
    E_KILL_SCHEDULER,
    E_START_SCHEDULER,
    E_CUT,
    E_OPERATOR,
    E_MIRROR,
    E_VANISH,
};

struct job {
    uint64_t id;
    enum sfc_job_kind kind;
    uint64_t token, step, opened;
    uint32_t generation, slot;
    uint32_t slots[MAX_J];
    uint64_t labels[MAX_B];
    double lr, clip_scale;
    bool apply;
};

struct record {
    struct sfc_commit_record r;
    struct sfc_attempt attempts[MAX_J];
    uint64_t labels[MAX_B];
};

/* Inputs of a step, or its commit, as a shard's log has them. */
struct log_record {
    bool commit, fetched; /* from another shard: without the sums of dense blocks */
    uint64_t step;
    struct sfc_attempt round;
    double lr, clip_scale;
    bool apply;
    uint64_t labels[MAX_B];
    struct sfc_attempt attempts[MAX_J];
    uint64_t features[MAX_J], lse[MAX_J];
    uint64_t sums[MAX_D]; /* of the own dense blocks, and of those that it mirrors, */
    bool own[MAX_D];      /* which are these */
};

struct snapshot {
    uint64_t step, state;
    uint32_t rows;            /* of a class block */
    struct sfc_attempt round; /* of the commit of its step; 0.0: none */
};

struct copies { /* of a block, newest first */
    uint32_t count;
    bool damaged; /* the newest was, and none came after it */
    struct snapshot items[MAX_COPIES];
};

/* What survives a crash of its shard: the first `flushed` records, perhaps some of those after
 * them, and snapshots. */
struct disk {
    struct log_record records[MAX_RECORDS];
    uint32_t count, flushed;
    struct copies copies[MAX_BLOCKS]; /* class blocks, then dense blocks */
    struct snapshot grown[BLOCKS];    /* with more rows than the block has yet; rows 0: none */
};

struct event {
    uint64_t time, seq;
    enum event_kind kind;
    uint64_t a, b, c;
    struct body body;
    struct job job;
};

struct slot_data {
    uint64_t features, logits, lse, gradient;
    uint64_t dense[MAX_D];
};

/* Blocks that a shard receives. */
struct staged {
    uint64_t move; /* the newest that it heard of */
    uint32_t from;
    bool grows;            /* from nowhere, */
    uint32_t rows[BLOCKS]; /* with so many rows */
    bool blocks[MAX_BLOCKS];
    bool begun, ready, taken;
    uint64_t stamp, step; /* of the copies on its disk; of the blocks, once taken */
    uint64_t state[MAX_BLOCKS];
};

struct shard {
    bool up;
    struct map map, next_map; /* of the run that is open; of the MAP job */
    uint64_t order;           /* newest that an OpenRun named */
    struct staged staged;
    bool joins;           /* opened the run, and is no member yet */
    uint64_t life;        /* of the process */
    uint64_t opened;      /* of the run in it: what was begun before says nothing */
    uint64_t boot_id, id; /* id given by the scheduler */
    uint64_t incarnation; /* newest that it heard of */
    bool has_run, recovering;
    uint64_t closing_until;
    uint64_t open_token;           /* the call that waits for the recovery */
    struct body open;              /* its request */
    struct sfc_attempt left_round; /* of what took it from the run that was open before */
    struct disk disk;
    struct sfc_lineage lineage; /* what the run gave up, as OpenRun said */
    uint64_t top;               /* later snapshots are hidden; UINT64_MAX: none */
    bool unsettled, settling, flush_waits, provisional, lost;
    uint64_t committing; /* the durable step whose commit is at work */
    uint64_t durable_step, trimmed, back_until, kept_back, kept_until;
    bool checks_back;
    uint32_t next_snapshot, next_mirror; /* block */
    bool vanished;                       /* with its disk, */
    uint64_t away_until;                 /* and is not started again before */
    struct sfc_step_fsm fsm;
    struct sfc_step_actions actions;
    struct log_record inputs; /* of the flush at work */
    uint64_t class_state[BLOCKS], dense_state[MAX_D];
    uint64_t sample[2][BLOCKS];
    struct slot_data slots[2][MAX_SLOTS];
    uint64_t busy_until, cut_until;
    bool registering;
};

struct worker {
    uint64_t life;
    bool alive;
    struct map map;
    uint64_t id, salt;
    uint64_t session;
    /* the lane */
    uint64_t step;
    uint32_t j;
    struct sfc_attempt attempt;
    bool dropped;
    unsigned phase, waiting, tries;
    uint64_t round; /* counts phases: an answer belongs to one */
    uint64_t dense[MAX_D], features, sum, lse;
    /* the reader */
    uint64_t data_step;
    uint32_t data_j;
    uint64_t samples[ROWS];
};

/* Records that are written in one piece, or a rewind. */
struct store_task {
    bool rewind;
    uint64_t step; /* of the last record; where the run goes back to */
    uint32_t count;
    struct record records[MAX_STEPS];
    struct sfc_lineage lineage;
    bool has_lineage;
};

struct store {
    uint64_t incarnation;
    bool created;
    bool writing;        /* `task` was given to it, and it has not said that it is durable */
    uint64_t busy_until; /* it writes one thing after the other */
    enum sfc_run_state state;
    bool paused;
    char reason[512];
    struct record records[MAX_STEPS + 1]; /* by step, 1..last */
    uint64_t last;
    struct sfc_lineage lineage;
    struct store_task task;
    struct map map, next_map; /* durable; on its way */
    uint64_t map_step, map_order, next_step, next_order;
    bool writing_map;
    bool dropped; /* the poisoned micro-batch */
    struct sfc_lr_changes lr_changes;
    uint64_t shard_ids[MAX_K];
};

struct scheduler {
    bool up;
    uint64_t life;
    struct sfc_membership members;
    struct sfc_member_actions member_actions;
    bool has_run;
    struct sfc_run_fsm run;
    struct sfc_run_actions actions;
    struct sfc_log_floor floor;
    uint64_t oldest[MAX_K];        /* what shards say they lead to */
    struct record kept[MAX_STEPS]; /* provisional, and the one that is being written with them */
    uint32_t kept_count;
    uint64_t kept_step, found_step; /* the machine is to be told; 0: nothing */
    struct sfc_lineage lineage;
    bool lineage_new;
    enum sfc_rewind_phase seen_phase;
    struct sfc_lr_change set_lr; /* on its way to the store; step 0: none */
    struct map map;              /* the present one */
    struct {                     /* the order at work */
        uint64_t number, count;
        enum sfc_order_kind kind;
        uint32_t shard, from;
        bool blocks[MAX_BLOCKS];
        uint64_t classes, samples; /* of a GROW, */
        uint32_t owners[BLOCKS];   /* and where its blocks are */
        enum sfc_order_phase seen_phase;
    } order;
    uint64_t lose_again; /* nobody is given up before */
};

/* What a Done promised; the oracle checks it when it is committed. */
struct promise {
    uint64_t step;
    uint32_t j;
    struct sfc_attempt attempt;
    uint64_t salt, features, lse;
    uint64_t dense[MAX_D];
};

struct oracle {
    uint64_t class_state[MAX_STEPS + 1][BLOCKS], dense_state[MAX_STEPS + 1][MAX_D];
    uint64_t sample[MAX_STEPS + 1][BLOCKS];
    struct record records[MAX_STEPS + 1]; /* of the step as it was committed last */
    uint64_t low, head; /* no shard may be more than a commit before, or after these */
    uint64_t most;      /* highest step that was ever committed */
    struct sfc_attempt
        accepted[MAX_J]; /* the Dones that the scheduler took of step accepted_step, */
    uint64_t accepted_step;
    struct sfc_attempt accepted_round; /* in this round */
    bool taken[MAX_J];
    struct promise *promises;
    size_t promise_count, promise_capacity;
};

/* For the line at the end. */
struct counts {
    uint64_t events, kills, restarts, cuts, aborts, crashes, recoveries, flush_errors;
    uint64_t store_errors, sessions, unsure_records;
    uint64_t rates, rewinds, refused_rewinds, returns, given_up, fetched, old_copies;
    uint64_t second_grants, second_data;
    uint64_t joins, moves, leaves, void_orders, refused_maps, losses, vanished, growths;
};

struct sim {
    uint64_t seed, random, now, seq;
    bool verbose, failed;
    char failure[512];
    /* shape */
    uint32_t k, j, d, workers, steps;
    unsigned slowness[MAX_WORKERS]; /* a worker takes so many times as long as a quick one */
    struct map first_map;
    uint64_t classes; /* at the start */
    bool grows;
    bool elastic;     /* shards come and go, blocks move */
    uint32_t mirrors; /* of each shard: 0 or 1 */
    unsigned drop_ppm, repeat_ppm, slow_ppm, give_up_ppm;
    bool mixed, not_finite, session;
    uint32_t durable_every, window; /* of rewinds */
    uint32_t bad_disk;              /* shard whose disk loses records; k: none */
    unsigned flush_error_ppm, store_error_ppm;
    uint32_t snapshot_ms;                   /* of one block of a shard */
    unsigned counted[MAX_STEPS + 1][MAX_J]; /* give-ups that were the micro-batch's own fault */
    bool drop_acknowledged;
    uint64_t poison_step; /* 0 = none */
    uint32_t poison_j;
    uint64_t chaos_end;
    /* state */
    struct scheduler scheduler;
    struct store store;
    struct shard shards[MAX_K];
    struct worker worker[MAX_WORKERS];
    struct oracle oracle;
    struct disk *old_copy, *right_disk; /* of the bad disk; right_disk: the copy is in its place */
    struct event **heap;
    size_t heap_count, heap_capacity;
    struct rpc *rpcs;
    size_t rpc_count, rpc_capacity;
    struct token *tokens;
    size_t token_count, token_capacity;
    struct counts counts;
    uint64_t hold_id, hold_token;
    bool rewinding; /* a REWIND waits for its answer */
    uint64_t rewind_to;
};

/* sim.c: clock, network, faults */
int sim_run(uint64_t seed, bool verbose, char *failure, size_t size, struct counts *stats);
uint32_t sim_below(struct sim *s, uint32_t n); /* uniform in [0, n) */
bool sim_chance(struct sim *s, unsigned ppm);
void sim_fail(struct sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_log(struct sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct event *sim_after(struct sim *s, uint64_t delay, enum event_kind kind);
void sim_call(struct sim *s, struct node from, struct node to, enum method method, uint64_t tag,
              uint64_t timeout, const struct body *body);
void sim_answer(struct sim *s, uint64_t token, const struct body *body);
struct body *sim_request(struct sim *s, uint64_t token);

/* sim_operator.c: people, who drop, hold, pause, rewind and set the learning rate */
void operator_plan(struct sim *s);
void operator_acts(struct sim *s, uint64_t what);
void operator_rewound(struct sim *s, int code, const char *text);
void operator_set_lr(struct sim *s, uint64_t step, double lr); /* it was acknowledged */

/* sim_scheduler.c */
void scheduler_start(struct sim *s);
void scheduler_stop(struct sim *s);
void scheduler_request(struct sim *s, uint64_t token);
void scheduler_reply(struct sim *s, const struct rpc *rpc, const struct body *body);
void scheduler_run_event(struct sim *s, struct sfc_run_event *event);
void scheduler_tick(struct sim *s);
void scheduler_member_event(struct sim *s, const struct sfc_member_event *event, int *code,
                            uint64_t *id);
struct sfc_schedule scheduler_rates(const struct sim *s);

/* sim_store.c: what the scheduler's daemon keeps, in memory and in its database */
uint64_t store_committed(const struct sim *s); /* provisional steps included */
void store_restore(struct sim *s);
void store_crash(struct sim *s);
struct event *store_after(struct sim *s, enum event_kind kind);
void store_write_record(struct sim *s, const struct sfc_run_action *a);
void store_write_rewind(struct sim *s, const struct sfc_run_action *a);
void store_forget(struct sim *s, const struct sfc_run_action *a);
void store_read_record(struct sim *s, uint64_t step);
/* Tells the machine what needed no disk. */
void store_feed(struct sim *s);
void store_written(struct sim *s, const struct event *e);
void store_notify(struct sim *s, const struct event *e);
void store_record_read(struct sim *s, const struct event *e);
void store_drop_written(struct sim *s, const struct event *e);
void store_write_lr(struct sim *s, const struct sfc_run_action *a);
void store_lr_written(struct sim *s, const struct event *e);
void store_state_written(struct sim *s, const struct event *e);
/* Returns of the run, with the one that shards are on their way for. */
void store_lineage(const struct sim *s, struct sfc_lineage *out);

/* sim_shard.c: the machine and its jobs */
void shard_request(struct sim *s, uint32_t k, uint64_t token);
void shard_step(struct sim *s, uint32_t k, struct sfc_step_event *event);
void shard_reply(struct sim *s, uint32_t k, const struct rpc *rpc, const struct body *body);
void shard_job(struct sim *s, uint32_t k, const struct job *job);
void shard_beat(struct sim *s, uint32_t k);
void shard_flush(struct sim *s, uint32_t k);
void shard_flushed(struct sim *s, uint32_t k, bool ok);
void shard_settled(struct sim *s, uint32_t k);

/* sim_shard_life.c: its process, and OpenRun */
void shard_kill(struct sim *s, uint32_t k);
void shard_start(struct sim *s, uint32_t k);
void shard_open_run(struct sim *s, uint32_t k, uint64_t token);
void shard_recovered(struct sim *s, uint32_t k);
void shard_check_rewind(struct sim *s, uint32_t k, uint64_t token);
void shard_made_durable(struct sim *s, uint32_t k, const struct event *e);
void shard_checked(struct sim *s, uint32_t k, const struct event *e);
void shard_unavailable(struct sim *s, uint64_t token, const char *text);
void shard_refuse(struct sim *s, uint64_t token, int code, const char *text);
void shard_close_run(struct sim *s, uint32_t k, uint64_t token);
/* A shard that joins opens the run: it is at the step of `b`, and owns nothing. */
void shard_join_run(struct sim *s, uint32_t k, const struct body *b);

/* sim_disk.c: the model of a shard's log and snapshots */
void disk_append(struct sim *s, struct disk *d, const struct log_record *record);
void disk_crash(struct sim *s, uint32_t k);
/* A copy of before that leads nowhere makes room for what was there. False: it was no copy. */
bool disk_put_back(struct sim *s, uint32_t k);
void disk_copy_does(struct sim *s); /* what was there before it is not needed any more */
/* The log is closed while its process lives: commits that wait for a flush are in memory only. */
void disk_close(struct sim *s, uint32_t k);
/* A write failed: what was not flushed is gone. True: with committed steps. */
bool disk_write_failed(struct sim *s, uint32_t k);
void disk_trim(struct disk *d, uint64_t floor);
uint64_t disk_floor(const struct sim *s, uint32_t k);
uint64_t disk_oldest(const struct sim *s, uint32_t k); /* step that the disk leads to */
uint64_t disk_first_logged(const struct disk *d);      /* step; 0: none */
void disk_take_snapshot(struct sim *s, uint32_t k);
void disk_snapshot_written(struct sim *s, uint32_t k, const struct event *e);
void disk_drop_hidden(struct sim *s, uint32_t k);
/* A copy that came from another shard; an older one is not there. */
void disk_copy_block(struct sim *s, uint32_t k, uint32_t block, uint64_t step, uint64_t state);
void disk_put_copy(struct sim *s, uint32_t k, uint32_t block, uint64_t step, uint64_t state);
/* The map of a growth has been taken, or not: what it made goes where it belongs, or goes. */
void disk_settle_grown(struct sim *s, uint32_t k, const struct map *map);
/* Copies of blocks that this map gives to others go; keep: of these they stay (NULL: of none). */
void disk_keep_owned(struct sim *s, uint32_t k, const struct map *map, const bool *keep);
/* The inputs of a step from a round, NULL: not there. */
const struct log_record *disk_find(const struct disk *d, uint64_t step, struct sfc_attempt round);
enum disk_result { DISK_LEADS, DISK_LACKS, DISK_ASKS_LATER };
/* Goes from snapshots over the log to the step of `last`, with steps that the log lacks from other
 * shards. keep: the shard's blocks are then there; else only looked at. *replayed: the longest
 * replay of a block. */
enum disk_result disk_recover(struct sim *s, uint32_t k, const struct sfc_commit_record *last,
                              bool keep, uint64_t *replayed);

/* sim_moves.c: changes of the map */
bool map_owns(const struct map *map, uint32_t k,
              uint32_t block); /* class blocks, then dense ones */
bool map_has_dense(const struct sim *s, const struct map *map, uint32_t k);
bool map_gets_dense(const struct sim *s, const struct map *map, uint32_t k); /* of gradients */
void moves_order(struct sim *s); /* E_ORDER: somebody orders something */
void moves_disturb(struct sim *s);
void moves_write_map(struct sim *s, const struct sfc_run_action *a);
void moves_map_stored(struct sim *s, const struct event *e);
void moves_crash(struct sim *s); /* what was being written may be there */
void moves_take_map(struct sim *s);
void moves_done(struct sim *s, const struct sfc_run_action *a);
void moves_fill(struct sim *s, const struct sfc_run_action *a, struct body *b); /* a request */
/* At a shard. */
void moves_request(struct sim *s, uint32_t k, uint64_t token, enum method method);
void moves_fetched(struct sim *s, uint32_t k, const struct event *e);
void moves_taken(struct sim *s, uint32_t k, const struct event *e);
void moves_joined(struct sim *s, uint32_t k, const struct event *e);
void moves_apply_map(struct sim *s, uint32_t k); /* the job */

/* sim_grow.c: identities are added */
uint64_t grow_classes(const struct sim *s, const struct map *map);
uint32_t grow_rows(const struct sim *s, const struct map *map, uint32_t block); /* 0: not there */
/* Where the present rows of a block begin: nothing leads to before it. */
uint64_t grow_since(const struct sim *s, const struct map *map, uint32_t block);
bool grow_grew(const struct sim *s, const struct map *map, uint32_t block);
bool grow_choose(struct sim *s, struct sfc_run_event *e);
void grow_change(struct sim *s, uint64_t step, struct map *map);
uint64_t grow_sample(const struct sim *s, const struct map *map, uint64_t position);
void grow_fetch(struct sim *s, uint32_t k, const struct body *b); /* fills `staged` */
void grow_take(struct sim *s, uint32_t k, uint64_t step);

/* sim_mirror.c: shards that keep what another one's blocks can be restored from */
void mirror_choose(const struct sim *s, struct map *map);
bool mirror_keeps(const struct sim *s, const struct map *map, uint32_t k, uint32_t block);
bool mirror_pushed(const struct sim *s, const struct map *map, uint32_t k,
                   uint32_t d);                /* owns or mirrors the dense block */
void mirror_sweep(struct sim *s, uint32_t k);  /* E_MIRROR */
void mirror_vanish(struct sim *s, uint32_t k); /* E_VANISH */
void mirror_tick(struct sim *s);
bool mirror_vanished(const struct sim *s); /* a disk, and its shard is not given up yet */

/* sim_session.c: worker w as a foreign framework */
void session_open(struct sim *s, uint32_t w);
void session_reply(struct sim *s, uint32_t w, const struct rpc *rpc, const struct body *body);
void session_timer(struct sim *s, uint32_t w, uint64_t what);

/* sim_worker.c */
void worker_start(struct sim *s, uint32_t w);
void worker_kill(struct sim *s, uint32_t w);
void worker_reply(struct sim *s, uint32_t w, const struct rpc *rpc, const struct body *body);
void worker_timer(struct sim *s, uint32_t w, uint64_t life, uint64_t what);

/* sim_model.c: the model arithmetic */
uint64_t mix(uint64_t a, uint64_t b);
uint64_t model_salt(uint64_t salt, struct sfc_attempt attempt);
uint64_t model_label(const struct sim *s, uint64_t sample);
/* A session has its own idea of what a step's batch is. */
uint64_t model_session_label(const struct sim *s, uint64_t salt, uint64_t step, uint32_t j,
                             uint32_t row);
/* rows 0: the block is not there */
uint64_t model_sample(const struct sim *s, uint64_t step, uint32_t block, uint32_t rows,
                      const uint64_t *labels);
/* A block as the seed makes it, and one that gets more rows. */
uint64_t model_seeded(uint32_t block, uint32_t rows);
uint64_t model_grown(uint64_t state, uint32_t block, uint32_t rows_before, uint32_t rows);
uint64_t model_features(const struct sim *s, uint64_t step, uint32_t j, uint64_t salt,
                        const uint64_t *dense);
uint64_t model_logits(uint64_t state, uint64_t sample, uint64_t features);
uint64_t model_lse(uint64_t logits);
uint64_t model_gradient(uint64_t state, uint64_t sample, uint64_t features, uint64_t lse);
uint64_t model_slice(uint64_t dx, uint64_t features, uint32_t block);
uint64_t model_class_update(uint64_t state, uint64_t sample, uint64_t inputs, double lr);
uint64_t model_dense_update(uint64_t state, uint64_t sum, double clip_scale, double lr);
double model_square(uint64_t sum);
bool model_finite(const struct sim *s, uint64_t step, uint32_t block);
uint64_t model_double(double value);

/* sim_oracle.c: the undisturbed run */
void oracle_init(struct sim *s);
void oracle_promise(struct sim *s, const struct promise *promise);
const struct promise *oracle_find(const struct sim *s, uint64_t step, uint32_t j,
                                  struct sfc_attempt attempt);
void oracle_commit(struct sim *s, const struct record *record);
void oracle_check(struct sim *s); /* after every event */
/* The scheduler is about to write this record. */
struct record oracle_check_record(struct sim *s, bool provisional);
void oracle_check_grant(struct sim *s, uint64_t step);
/* The scheduler says that this Done counts: the first one of its micro-batch, for good. */
void oracle_accept(struct sim *s, uint64_t step, uint32_t j, struct sfc_attempt attempt);
/* At most two grants of a micro-batch are out, and more than one only while shards keep both. */
void oracle_check_tickets(struct sim *s);
/* A shard goes through this step again, as of this round. */
void oracle_check_replay(struct sim *s, uint32_t k, uint64_t step, struct sfc_attempt round);
/* A map is about to be written: nothing of the next step is planned anywhere. */
void oracle_check_flip(struct sim *s, uint64_t step, const struct map *next);
void oracle_check_end(struct sim *s);

#endif

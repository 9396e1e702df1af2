/* Private to server/scheduler. */
#ifndef SFC_SCHEDULER_INTERNAL_H
#define SFC_SCHEDULER_INTERNAL_H

#include "proto/base/spans.h"
#include "proto/limits.h"
#include "proto/metrics.h"
#include "server/core/block_map.h"
#include "server/core/log_floor.h"
#include "server/core/membership.h"
#include "server/core/mirror.h"
#include "server/core/run_fsm.h"
#include "server/core/series.h"
#include "server/run/messages.h"
#include "server/run/growths.h"
#include "server/run/run_setup.h"
#include "server/scheduler/orders.h"
#include "server/scheduler/scheduler.h"
#include "server/scheduler/store_queue.h"

enum {
    SFC_MAX_WORKERS = SFC_LIMIT_WORKERS,
    SFC_MAX_COUNTERS = SFC_LIMIT_COUNTERS, /* of one member */
    SFC_MAX_LOST = 64,                     /* messages without memory between two ticks */
    SFC_TICK_MS = 100,
    SFC_HEARTBEAT_HOLD_MS = 1000,
    SFC_SCHED_ADDRESS = 300,
    SFC_JOIN_HOLD_MS = 2000,
    SFC_HOLD_LEASE_MS = 10000
};

_Static_assert(SFC_CORE_MAX_SHARDS == SFC_LIMIT_SHARDS, "docs/PROTOCOL.md names one number");
_Static_assert(SFC_CORE_MAX_MICRO_BATCHES == SFC_LIMIT_MICRO_BATCHES, "the same");
_Static_assert(SFC_LINEAGE_MAX == SFC_LIMIT_RETURNS, "the same");
_Static_assert(SFC_CORE_MAX_MIRRORS == SFC_LIMIT_MIRRORS, "the same");
_Static_assert(SFC_CORE_GROWTHS == SFC_LIMIT_GROWTHS, "the same");
_Static_assert(SFC_CORE_LR_CHANGES == SFC_LIMIT_LR_CHANGES, "the same");

struct sfc_counter_set {
    uint32_t count;
    struct {
        char name[48];
        uint64_t value;
    } items[SFC_MAX_COUNTERS];
};

/* What a shard says that it keeps of another one's blocks. */
struct sfc_mirror_view {
    uint32_t place; /* whose blocks */
    uint64_t map_version;
    struct sfc_attempt round;
    uint64_t blocks, copied, oldest_step, bytes;
    bool complete;
    char reason[120];
};

/* Shards, by id, that are to be given up for lost. */
struct sfc_wishes {
    uint64_t shards[SFC_CORE_MAX_SHARDS];
    uint32_t count;
};

struct sfc_shard_info {
    uint64_t id; /* 0: free */
    struct sfc_rpc_client *client;
    char backend[32];
    char numerics[128];
    uint64_t memory_limit;
    uint64_t disk_limit; /* not 0: class blocks live on disk and count there */
    uint64_t memory_bytes;
    uint64_t staged_bytes; /* of them for blocks on their way there */
    uint64_t step;
    double step_ms; /* that it computes for a step; 0: not known */
    bool joins;     /* wants to take part by itself; not looked at again once it was */
    /* of its last heartbeat */
    uint64_t log_floor, log_bytes, snapshot_lag, oldest_step;
    uint64_t oldest_of;   /* the run that oldest_step is of */
    char disk_error[160]; /* "": its last write succeeded */
    struct {
        uint64_t number; /* of the order, 0: it receives nothing */
        uint64_t bytes, copied;
        double bytes_per_s;
        char reason[160];
    } move;
    struct sfc_mirror_view *mirrors; /* owned; of its last heartbeat */
    size_t mirror_count;
    bool leaving; /* its blocks are to move away; for Status */
    bool strays;  /* its last heartbeat says that it has the run, in which it takes no part */
    bool recovering;
    uint64_t recovered, recovers_to;
    double recovery_eta_s;
    struct sfc_counter_set counters;
};

struct sfc_worker_info {
    uint64_t id; /* 0: free */
    uint64_t micro_batches;
    char data_digest[40];   /* of its set, */
    uint64_t begin_samples; /* and of the set that so many of its samples make; 0: not known */
    char begin_digest[40];
    char version[32], numerics[128];
    double clock_ahead_s;  /* 0: not said */
    uint64_t memory_bytes; /* 0: not said */
    struct sfc_counter_set counters;
};

enum sfc_parked_kind {
    SFC_PARKED_TICKET, /* the run machine answers these */
    SFC_PARKED_ANNOUNCE,
    SFC_PARKED_DONE,
    SFC_PARKED_EMPTY,
    SFC_PARKED_SESSION,
    SFC_PARKED_HOLD,
    SFC_PARKED_CONTROL,
    SFC_PARKED_GROW,
    SFC_PARKED_OF_RUN, /* last of them + 1 */
    SFC_PARKED_CREATE, /* until every shard has opened the run */
    SFC_PARKED_SCALE,  /* until the goal before is stored */
    SFC_PARKED_JOIN,
    SFC_PARKED_WORKER_HEARTBEAT,
    SFC_PARKED_SHARD_HEARTBEAT
};

/* A call that waits. Its address is the run machine's token. */
struct sfc_parked {
    struct sfc_parked *prev, *next;
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    enum sfc_parked_kind kind;
    uint64_t member;                      /* worker or shard id */
    uint64_t boot_id;                     /* shard */
    uint64_t due_ms;                      /* JOIN and heartbeats: answer then */
    uint64_t bytes_per_shard, wire_bytes; /* CREATE */
    uint64_t order;                       /* GROW */
    bool granted;                         /* CONTROL: done, but not durable yet */
    uint64_t state_number, from_step; /* CONTROL: waits for this state to be stored; of SET_LR */
    Shardfc__V1__JoinRequest *join;   /* JOIN; owned */
};

/* Commit records that are in memory only, in order of step. */
struct sfc_kept_records {
    struct sfc_store_commit *items; /* with attempts of their own */
    size_t count, room;
};

/* How a run is kept. */
struct sfc_keeping {
    uint64_t rewind_window;
    uint32_t durable_every;
    bool elastic;     /* shards that announce themselves take part */
    uint32_t mirrors; /* of each shard */
    uint32_t grace_s; /* then a silent shard is given up; 0: never by itself */
};

/* Where a run stands, as the store has it. */
struct sfc_run_standing {
    char state[16];
    bool paused;
    char reason[512];
};

struct sfc_sched_run {
    struct sfc_scheduler *scheduler;
    uint64_t id, nonce;
    struct sfc_lineage lineage;      /* where it went back */
    bool lineage_new;                /* goes to the store with the next records */
    Shardfc__V1__RunConfig *config;  /* owned */
    Shardfc__V1__BlockMap *map;      /* owned; the present one */
    Shardfc__V1__BlockMap *next_map; /* owned; on its way to the store, else NULL */
    struct {
        struct sfc_order *waiting; /* owned; the first one may be at work */
        struct sfc_order *over;    /* owned; the listener is still to be told */
        uint32_t count;            /* of those that wait */
        uint64_t last;
        bool awake; /* the loop will look at them */
    } orders;
    struct sfc_order_listener order_listener;
    struct sfc_run_setup setup; /* with the class blocks of the map */
    struct sfc_order_part sample_order[SFC_CORE_GROWTHS + 1];
    size_t order_parts; /* of sample_order; 0: no set */
    struct sfc_run_fsm fsm;
    struct sfc_run_actions actions;
    bool load;
    uint64_t rewind_window;
    uint32_t durable_every;
    bool elastic;
    uint32_t mirrors, grace_s;
    struct sfc_scale *scale; /* owned; scale.h */
    struct {
        struct sfc_wishes wishes; /* shards that people have given up; durable */
        bool stale;               /* those in the store are to be written anew */
        uint64_t spread; /* the last lost_version of the map that REBALANCE followed; durable */
        uint64_t unspread_ms;             /* it could not be noted: not before */
        uint64_t order;                   /* under way, 0: none */
        uint64_t shard;                   /* that it is about */
        uint64_t again_ms;                /* the next one not before */
        char text[400];                   /* why the last one was void; "" = none was */
        bool spared[SFC_CORE_MAX_SHARDS]; /* by place: an event said whose copies it has */
    } losing;                             /* loss.h */
    struct {
        uint64_t left;              /* blocks without a copy, as of the last tick */
        uint64_t from;              /* since then they have become fewer: so many, */
        uint64_t at_ms;             /* at this time */
    } unmirrored;                   /* loss.h */
    struct sfc_kept_records kept;   /* of provisional steps */
    uint64_t kept_step;             /* this one was just kept: the machine is told; 0: none */
    struct sfc_store_commit *found; /* in memory for READ_RECORD: the machine is told; NULL: none */
    struct sfc_log_floor floor;
    char numerics[128];      /* of its workers; "": none joined yet */
    uint64_t last_commit_us; /* 0: the next step does not count for the rates */
    struct {
        uint64_t committed, prepare, record; /* when they began or came, of sfc_spans_now; 0: not */
        uint64_t step;                       /* of prepare and record */
    } times;
    struct {
        enum sfc_run_delay what;
        uint32_t place;  /* of the shard that it is about */
        uint64_t step;   /* that waits */
        uint64_t since;  /* of sfc_spans_now; 0: not known */
    } delay;             /* run_delays.c */
    uint64_t running_us; /* when it began to run, or went on */
    uint64_t timed_steps, timed_us;
    double rate, loss, lr; /* rate: images per second, smoothed over the last steps */
    uint64_t skipped_steps;
    struct sfc_series series; /* for curves */
    uint64_t series_until;    /* up to this step the store is asked for it, after a restart */
    /* Messages and a record for which there was no memory: reported at the next tick. */
    struct sfc_lost_send {
        uint32_t shard;
        enum sfc_duty duty;
        uint64_t step;
        uint64_t life;
        uint64_t number;
        struct sfc_attempt round;
    } lost[SFC_MAX_LOST];
    uint32_t lost_count;
    uint64_t lost_record; /* step, 0: none */
    struct sfc_run_drop lost_drop;
    uint64_t lost_drop_number; /* 0: none */
    uint64_t lost_rewind;      /* step + 1, 0: none */
    uint64_t lost_map;         /* number of its order, 0: none */
    uint64_t lost_lr;          /* step, 0: none */
    struct sfc_run_standing standing;
    uint64_t state_number, stored_number; /* of `standing`; of the last one in the store */
    bool state_lost;                      /* it could not be stored: again at the next tick */
};

struct sfc_standby;

struct sfc_scheduler {
    uv_loop_t *uv;
    struct sfc_rpc_loop *rpc;
    struct sfc_rpc_server *server;
    const struct sfc_scheduler_options *options;
    char listening[SFC_SCHED_ADDRESS];
    char pages[SFC_SCHED_ADDRESS]; /* empty without --http */
    struct sfc_store *store;
    struct sfc_store_queue queue;
    uint64_t incarnation;
    uint64_t ticked_ms; /* 0: not yet */
    struct sfc_membership members;
    struct sfc_member_actions member_actions;
    struct sfc_shard_info shards[SFC_CORE_MAX_SHARDS];
    struct sfc_worker_info workers[SFC_MAX_WORKERS];
    struct sfc_sched_run *run; /* NULL: none */
    uint64_t last_run_id;      /* for History */
    char served_run[64];       /* name of the run that was there at start; "": none */
    bool creating;             /* a CreateRun is on its way to the store */
    struct sfc_parked *parked; /* list */
    uv_timer_t timer;
    bool timer_open;
    bool stopping;
    struct sfc_scheduler_end end;
    struct sfc_standby *standby;         /* of a shared state; else NULL */
    struct sfc_web *web;                 /* NULL: no pages */
    struct sfc_spans *spans;             /* owned: what took how long */
    struct sfc_sched_trace *trace;       /* owned; NULL: nobody asks */
    struct sfc_histogram step_durations; /* from commit to commit, of all runs since our start */
    uint64_t refused[SFC_EINTERNAL + 1];
    uint64_t broken_rows;    /* announced with weight 0 because their sample can't be read */
    uint64_t gave_up;        /* attempts and data tickets that workers gave back with a reason */
    uint64_t recoveries;     /* of shards, since our start */
    uint64_t fetched_steps;  /* of shards' logs that other shards had */
    unsigned events_waiting; /* on their way to the store */
    uint64_t events_stored;  /* since our start */
    uint64_t events_lost;    /* logged, but not stored: too many at a time */
};

/* ---- scheduler.c: the steps of a start */
/* listen with the port that it is. */
void sfc_sched_address(const char *listen, int port, char out[SFC_SCHED_ADDRESS]);
/* folder: where the port is kept; NULL: nowhere. */
int sfc_sched_listen(struct sfc_scheduler *s, const char *folder, struct sfc_error *err);
/* A new incarnation with what the open store has. */
int sfc_sched_take_up(struct sfc_scheduler *s, struct sfc_error *err);
void sfc_sched_serve(struct sfc_scheduler *s);

/* ---- standby.c: a state that several schedulers share */
/* Listens, refuses calls and waits until this scheduler leads; then takes up the state and serves.
 */
int sfc_sched_stand_by(struct sfc_scheduler *s, struct sfc_error *err);
void sfc_sched_leave(struct sfc_scheduler *s); /* it stops: waits no longer, and hears no more */
void sfc_sched_standby_free(struct sfc_standby *standby); /* NULL is fine */

/* ---- scheduler.c */
uint64_t sfc_sched_now(const struct sfc_scheduler *s);
void sfc_sched_refuse(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                      const struct sfc_error *err);
/* The request as a message, or NULL after the call was refused. */
void *sfc_sched_unpack(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                       const ProtobufCMessageDescriptor *type);
/* Puts a call on the list of waiting ones. NULL: refused for lack of memory. */
struct sfc_parked *sfc_sched_park(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                                  enum sfc_parked_kind kind);
void sfc_sched_unpark(struct sfc_parked *parked); /* after its call was ended; frees it */
void sfc_sched_event(struct sfc_scheduler *s, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* log and store */
/* The same of what the peer of this call asked for. */
void sfc_sched_event_by(struct sfc_scheduler *s, struct sfc_rpc_call *call, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- members.c */
void sfc_sched_on_register_shard(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_on_shard_heartbeat(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_on_join(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_on_heartbeat(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_on_leave(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_members_tick(struct sfc_scheduler *s);
/* A run has just been made: shards that went while it was being stored are gone for it too. */
void sfc_sched_members_of_new_run(struct sfc_scheduler *s);
void sfc_sched_member_cancelled(struct sfc_parked *parked); /* a heartbeat's peer is gone */
struct sfc_shard_info *sfc_sched_shard(struct sfc_scheduler *s, uint64_t id);
struct sfc_worker_info *sfc_sched_worker(struct sfc_scheduler *s, uint64_t id);
/* It takes part no more, and has to join again. */
void sfc_sched_part_worker(struct sfc_scheduler *s, uint64_t id);
/* The shards of the present run's map are not forgotten while they are gone. */
void sfc_sched_keep_shards(struct sfc_scheduler *s, const Shardfc__V1__BlockMap *map);
int sfc_sched_restore_shards(struct sfc_scheduler *s, struct sfc_error *err);

/* ---- run.c */
bool sfc_sched_run_active(const struct sfc_scheduler *s); /* may not be replaced */
/* Builds a run from its messages (taken on success only). lr_changes: [lr_count], copied. restore:
 * as for sfc_run_init. */
int sfc_sched_run_new(struct sfc_scheduler *s, uint64_t id, Shardfc__V1__RunConfig *config,
                      Shardfc__V1__BlockMap *map, uint64_t start_step, bool load,
                      struct sfc_keeping keeping, const struct sfc_lr_change *lr_changes,
                      size_t lr_count, const struct sfc_run_restore *restore,
                      struct sfc_sched_run **out, struct sfc_error *err);
void sfc_sched_run_free(
    struct sfc_sched_run *run); /* waiting calls of it are refused; NULL is fine */
int sfc_sched_restore_run(struct sfc_scheduler *s, struct sfc_error *err);
/* The lowest step that what the shards said they keep leads to. */
uint64_t sfc_sched_run_oldest(const struct sfc_sched_run *run);
/* Fills in the time, steps the machine, carries out the actions. */
void sfc_sched_run_event(struct sfc_sched_run *run, struct sfc_run_event *event);
void sfc_sched_run_tick(struct sfc_sched_run *run);
void sfc_sched_run_cancelled(struct sfc_parked *parked);
/* Place of a shard in the run, member or not (yet), or UINT32_MAX. */
uint32_t sfc_sched_run_shard(const struct sfc_sched_run *run, uint64_t shard);
/* Images per second over all steps, without the time in which the run stood still; 0: not known. */
double sfc_sched_run_average(const struct sfc_sched_run *run);

/* ---- send.c */
void sfc_sched_send(struct sfc_sched_run *run, const struct sfc_run_action *action);
/* Packed attempts and digests of the open step: for the record (shard UINT32_MAX: every dense
 * block) or for one shard. NULL: no memory. */
uint8_t *sfc_sched_pack_prepare(const struct sfc_sched_run *run, uint32_t shard, uint64_t step,
                                struct sfc_attempt round, bool provisional, size_t *size);

/* ---- create.c */
void sfc_sched_on_create_run(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_create_progress(struct sfc_sched_run *run); /* answers CreateRun when all is open */
/* Memory of blocks on shards like those of the map: class_bytes, dense_bytes and fixed_bytes. */
int sfc_sched_placement(struct sfc_scheduler *s, const struct sfc_run_setup *setup,
                        const Shardfc__V1__BlockMap *map, struct sfc_placement *out,
                        struct sfc_error *err);
/* What a shard like those of the map takes for blocks that it mirrors. */
int sfc_sched_mirror_memory(struct sfc_scheduler *s, const struct sfc_run_setup *setup,
                            const Shardfc__V1__BlockMap *map, const struct sfc_run_mirror *mirror,
                            uint64_t *bytes, struct sfc_error *err);
/* A shard is gone: a CreateRun that waits for it is refused and its run stopped. */
void sfc_sched_create_shard_gone(struct sfc_scheduler *s, uint64_t shard, const char *address);

/* ---- handlers.c */
extern const struct sfc_rpc_method sfc_scheduler_methods[];
extern const size_t sfc_scheduler_method_count;

/* ---- trace.c */
void sfc_sched_on_trace(struct sfc_rpc_call *call, void *ctx);
void sfc_sched_on_put_spans(struct sfc_rpc_call *call, void *ctx);
/* The worker is to hear now that its spans are asked for. */
bool sfc_trace_wants(struct sfc_scheduler *s, uint64_t worker);
void sfc_trace_tell(struct sfc_scheduler *s, uint64_t worker, Shardfc__V1__HeartbeatReply *out);
/* A heartbeat of it: whoever was told and has sent nothing is to hear it again. */
void sfc_trace_heard(struct sfc_scheduler *s, uint64_t worker);
void sfc_trace_tick(struct sfc_scheduler *s);
void sfc_trace_free(struct sfc_scheduler *s);

/* ---- events.c */
void sfc_sched_on_events(struct sfc_rpc_call *call, void *ctx);

/* ---- status.c */
void sfc_sched_on_status(struct sfc_rpc_call *call, void *ctx);
/* What Status answers; freed by sfc_sched_status_free before the next event. NULL: no memory. */
Shardfc__V1__StatusReply *sfc_sched_status(struct sfc_scheduler *s);
void sfc_sched_status_free(Shardfc__V1__StatusReply *status);
/* web.c: pages over HTTP, if the options ask for them; stop on the loop, free when it has ended. */
int sfc_web_start(struct sfc_scheduler *s, struct sfc_error *err);
void sfc_web_stop(struct sfc_scheduler *s);
void sfc_web_free(struct sfc_scheduler *s);
void sfc_sched_on_history(struct sfc_rpc_call *call, void *ctx);

#endif

/* Private to server/shard. */
#ifndef SFC_SHARD_INTERNAL_H
#define SFC_SHARD_INTERNAL_H

#include "proto/base/backoff.h"
#include "proto/base/digest.h"
#include "proto/tensor.h"
#include "server/core/step_fsm.h"
#include "server/run/messages.h"
#include "server/shard/compute.h"
#include "server/shard/copy_source.h"
#include "server/shard/durability.h"
#include "server/shard/history.h"
#include "server/shard/mirror.h"
#include "server/shard/move_in.h"
#include "server/shard/pinned.h"
#include "server/shard/run_blocks.h"
#include "server/shard/set_map.h"
#include "server/shard/shard.h"

/* Bytes that a reply borrows: freed when the last reply let go and its run no longer wants it. */
struct sfc_shared {
    unsigned refs; /* replies on their way */
    bool orphan;   /* its run is done with it */
    uint64_t step; /* parameters: 1 + the step whose state it holds, 0: none */
    size_t size;
    void *data; /* 64-byte aligned */
};
struct sfc_shared *sfc_shared_new(size_t size);
void sfc_shared_drop(struct sfc_shared *shared);               /* by its run; NULL is fine */
struct sfc_bytes sfc_shared_borrow(struct sfc_shared *shared); /* for a reply */
void sfc_shared_release(void *shared);                         /* by the reply */

/* The answers of one attempt, and what it sent. */
struct sfc_answer {
    struct sfc_shared *sums; /* u64 [micro_batch, 4] */
    struct sfc_shared *dx;   /* i64 [micro_batch, dim] */
    float *target;           /* [micro_batch] */
    uint8_t *has_target;
    uint32_t zero_features;
    struct sfc_digest *digest; /* of the features */
    float *features;           /* [micro_batch, dim] raw, for the log */
    double *lse;               /* [micro_batch] */
};

struct sfc_shard_run;

/* A call that waits for the step machine. Its address is the machine's token. */
struct sfc_waiting_call {
    struct sfc_waiting_call *prev, *next;
    struct sfc_shard_run *run;
    struct sfc_rpc_call *call;
    enum sfc_step_event_type type;
    uint64_t step;        /* of the call */
    uint32_t micro_batch; /* of the call */
    struct sfc_bytes tensor;
    struct sfc_shared *pull; /* PULL: where the parameters are */
};

/* A job of the step machine on the compute thread. */
struct sfc_run_job {
    struct sfc_compute_job compute;
    struct sfc_shard_run *run;
    uint64_t id;
    enum sfc_job_kind kind;
    struct sfc_waiting_call *waiting; /* LOGITS, GRADIENT, DENSE, PULL */
    struct sfc_answer *answer;
    struct sfc_head_digest head_digest;
    uint64_t *labels; /* PLAN: its own copy */
    int refused;      /* not SFC_OK: what it was started with failed */
    struct sfc_run_job *next_free;
};

struct sfc_shard_run {
    struct sfc_shard *shard;
    uint64_t id;
    uint64_t nonce; /* run ids begin anew where a scheduler's state is lost */
    bool open;      /* blocks are allocated */
    bool closed;    /* no further events */
    bool load;      /* blocks may be written before the first plan */
    bool joins;     /* not a member before its first SetMap */
    bool planned;
    bool checks_back; /* a CheckRewind is at work */
    uint64_t start_step;
    uint64_t map_version;
    char **places; /* [place_count] addresses of the map's shards; "": nobody */
    uint32_t place_count, self;
    struct sfc_run_setup setup;
    uint64_t *class_blocks, *dense_blocks;
    size_t class_count, dense_count;
    uint64_t dense_floats;
    struct sfc_shard_mirrored mirrored;
    struct sfc_run_memory memory;
    uint64_t resident;         /* of memory.total: in memory, neither on disk nor on a device */
    uint64_t on_device;        /* of memory.total */
    uint64_t *prefetch_labels; /* [batch] of the job that is running */
    bool prefetching;
    struct sfc_compute_job prefetch_job;
    struct sfc_step_fsm fsm;
    struct sfc_step_actions actions;
    struct sfc_answer *answers; /* [2][slots] */
    struct sfc_run_buffers dense;
    struct sfc_run_job *jobs, *free_jobs;
    uint32_t *prepare_slots, *commit_slots;
    struct sfc_digest *scratch_digest;
    uint64_t sampled;
    uint64_t compute_ns; /* of the present step */
    double step_ms;      /* of a step, on average */
    uint32_t timed_steps;
    struct sfc_waiting_call *waiting; /* list */
    struct sfc_lap open_lap;          /* from OpenRun until there is memory for the blocks */
    struct sfc_compute_job open_job, close_job;
    struct sfc_rpc_call *open_call, *close_call;
    struct sfc_durability durability;
    struct sfc_pinned pinned;
    struct sfc_copies copies;
    struct sfc_mirror *mirror;        /* NULL: --durable off, or not open yet */
    struct sfc_move *move;            /* NULL: none */
    struct sfc_move_bucket move_pace; /* of all moves */
    struct sfc_move_spare move_spare;
    struct sfc_moved { /* the last one that ended */
        uint64_t incarnation, move;
        int code;
        char reason[SFC_LIMIT_ERROR_TEXT];
    } moved;
    struct sfc_map_change *map_change; /* a SetMap at work */
    struct sfc_history *history;       /* that is being fetched */
    void (*on_durable)(struct sfc_shard_run *run, int code, const char *text);
    void (*on_closed)(struct sfc_shard_run *run);
};

enum { SFC_SHARD_COUNTERS = SFC_EINTERNAL + 1 };

struct sfc_shard {
    uv_loop_t *uv;
    struct sfc_rpc_loop *rpc;
    struct sfc_rpc_server *server;
    struct sfc_rpc_client *scheduler;
    struct sfc_compute *compute;
    /* NULL with --durable off */
    struct sfc_tasks *log_thread, *snapshot_thread, *checkpoint_thread;
    const struct sfc_shard_options *options;
    char listening[300];
    char advertised[300];
    uint64_t memory_limit;  /* of runs: without packing_bytes */
    uint64_t device_limit;  /* of blocks and what is computed with them; 0: these are in memory */
    uint64_t packing_bytes; /* what compressing snapshots takes, or reading compressed ones */
    int compression;        /* level of zstd for snapshots, 0: none */
    uint64_t disk_limit;    /* of class blocks; 0: they live in memory */
    uint64_t boot_id;
    uint64_t id;          /* 0: not registered */
    uint64_t incarnation; /* greatest seen */
    struct {
        uint64_t run, number; /* the newest change of the map that we heard of */
    } order;
    int lock;         /* of --state, -1: none */
    uv_timer_t timer; /* registration and heartbeats */
    uv_timer_t tick;  /* pace of writing snapshots */
    uv_timer_t pin;   /* of sfc_pinned_tick, while there is a pin */
    uv_timer_t moves; /* while blocks come, go or are copied */
    uv_timer_t end;   /* while it ends well: finish.c */
    struct {
        void (*quit)(void *ctx);
        void *ctx;
        enum sfc_finish state;
        uint64_t step, since; /* both have been so since */
        uint64_t extended;    /* when the service manager heard that it goes on */
    } finish;
    bool finishing;
    bool timer_open;
    bool stopping;
    unsigned failures; /* of registration in a row */
    struct sfc_backoff backoff;
    struct sfc_shard_run *run;
    uint64_t last_closed;                 /* greatest run that was closed here */
    uint64_t left_run;                    /* that was closed to be opened anew, */
    struct sfc_attempt left_round;        /* by OpenRun of this round: older ones come late */
    unsigned closing;                     /* runs whose jobs or files are not at an end yet */
    unsigned blocks_in_flight;            /* ReadBlock and WriteBlock jobs */
    unsigned steps_in_flight;             /* ReadStep tasks */
    uint64_t refused[SFC_SHARD_COUNTERS]; /* calls that ended with each status */
    uint64_t zero_features;
    uint64_t sampled_rows;     /* of all steps planned here */
    struct sfc_spans *spans;   /* owned: what took how long */
    struct sfc_shard_web *web; /* NULL: no pages */
    bool left; /* a run was closed here: it isn't announced for the next one by itself */
};

/* ---- run.c */
/* Takes the call in every case. */
void sfc_shard_open_run(struct sfc_shard *shard, struct sfc_rpc_call *call,
                        const Shardfc__V1__OpenRunRequest *request);
/* call: NULL, or answered when the blocks are freed. remove: the run is over, what is on disk of it
 * goes too. */
void sfc_shard_close_run(struct sfc_shard *shard, struct sfc_rpc_call *call, bool remove);
/* Adds the call to the run's waiting ones and gives the event, with its token, to the step machine.
 * Takes the call. */
void sfc_shard_event(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     struct sfc_step_event *event);

/* ---- events.c */
/* An event without a call. */
void sfc_shard_feed(struct sfc_shard_run *run, const struct sfc_step_event *event);
struct sfc_answer *sfc_shard_answer(const struct sfc_shard_run *run, uint32_t generation,
                                    uint32_t slot);

/* What a step takes, of the last ones; 0: not known yet. */
double sfc_shard_step_ms(const struct sfc_shard_run *run);

/* Class blocks on disk: begins to read the rows of a step that is known but can't be planned yet.
 */
void sfc_shard_prefetch(struct sfc_shard_run *run, uint64_t step);

/* ---- shard.c */
/* Begins now, of the whole step. Any thread. */
struct sfc_lap sfc_shard_lap(const struct sfc_shard_run *run, enum sfc_span_thread thread,
                             uint64_t step);
/* For a job beside the step at work. Loop thread. */
struct sfc_span sfc_shard_span(const struct sfc_shard_run *run, enum sfc_phase phase,
                               uint64_t bytes);
/* sfc_durability_tick of the run then. */
void sfc_shard_tick_in(struct sfc_shard *shard, uint64_t ms);
/* sfc_pinned_tick of the run again and again, until it has no pin. */
void sfc_shard_watch_pin(struct sfc_shard *shard);
/* The ticks of moves, copies and SetMap, from now on until nothing of them is left. */
void sfc_shard_watch_moves(struct sfc_shard *shard);

/* ---- handlers.c */
void sfc_shard_refuse(struct sfc_shard *shard, struct sfc_rpc_call *call, int code,
                      const char *text);
/* The message of a call, or NULL: then the call has ended. */
void *sfc_shard_unpack(struct sfc_shard *shard, struct sfc_rpc_call *call,
                       const ProtobufCMessageDescriptor *type);
/* The open run that a call names, or NULL with err. */
struct sfc_shard_run *sfc_shard_run_of(struct sfc_shard *shard, uint64_t run_id,
                                       struct sfc_error *err);
extern const struct sfc_rpc_method sfc_shard_methods[];
extern const size_t sfc_shard_method_count;

/* ---- read_step.c */
/* ReadStep. Takes the call; ctx: the shard. */
void sfc_shard_read_step(struct sfc_rpc_call *call, void *ctx);

/* ---- read_spans.c */
/* ReadSpans. Takes the call; ctx: the shard. */
void sfc_shard_read_spans(struct sfc_rpc_call *call, void *ctx);

/* ---- way_back.c */
/* CheckRewind of an open run. Takes the call. */
void sfc_shard_check_rewind(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                            const Shardfc__V1__CheckRewindRequest *request);

/* ---- register.c */
int sfc_shard_register_start(struct sfc_shard *shard, struct sfc_error *err);
void sfc_shard_register_stop(struct sfc_shard *shard);

#endif

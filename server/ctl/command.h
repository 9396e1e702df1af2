/* One function per subcommand of `shardfc`, and what they share. A command parses its own options
 * from one table, prints results on stdout (one JSON object with --json) and messages on stderr,
 * and returns the exit code: 0 done, 1 failed, 2 wrong usage or bad input. */
#ifndef SFC_CTL_COMMAND_H
#define SFC_CTL_COMMAND_H

#include <jansson.h>
#include <stdbool.h>

#include "proto/base/options.h"
#include "proto/base/status.h"
#include "proto/rpc_blocking.h"
#include "proto/security.h"
#include "proto/shardfc.pb-c.h"

#define SFC_DEFAULT_SCHEDULER "127.0.0.1:7400"

/* Options that mean the same in every command, for its table; at: offset of its field. */
#define SFC_COMMAND_SCHEDULER(at)                                                                  \
    {                                                                                              \
        .name = "scheduler", .type = SFC_OPTION_STRING, .offset = (at),                            \
        .fallback = SFC_DEFAULT_SCHEDULER, .metavar = "ADDR[,ADDR...]",                            \
        .help = "scheduler to talk to, or those of which one leads"                                \
    }
#define SFC_COMMAND_JSON(at)                                                                       \
    {                                                                                              \
        .name = "json", .type = SFC_OPTION_BOOL, .offset = (at), .help = "print one JSON object",  \
        .flags = SFC_OPTION_FLAG_ONLY                                                              \
    }

/* argv[0] is the word before the options (the subcommand). */
int sfc_cmd_create(int argc, char **argv);
int sfc_cmd_status(int argc, char **argv);
int sfc_cmd_watch(int argc, char **argv);
int sfc_cmd_scale(int argc, char **argv);
int sfc_cmd_drain(int argc, char **argv);
int sfc_cmd_rebalance(int argc, char **argv);
int sfc_cmd_events(int argc, char **argv);
int sfc_cmd_trace(int argc, char **argv);
int sfc_cmd_pause(int argc, char **argv);
int sfc_cmd_resume(int argc, char **argv);
int sfc_cmd_stop(int argc, char **argv);
int sfc_cmd_rewind(int argc, char **argv);
int sfc_cmd_grow(int argc, char **argv);
int sfc_cmd_set(int argc, char **argv);
int sfc_cmd_checkpoint(int argc, char **argv);
int sfc_cmd_restore(int argc, char **argv);
int sfc_cmd_verify(int argc, char **argv);
int sfc_cmd_export(int argc, char **argv);
int sfc_cmd_eval(int argc, char **argv);
int sfc_cmd_data(int argc, char **argv);
int sfc_cmd_rank(int argc, char **argv);
int sfc_cmd_bench(int argc, char **argv);
int sfc_cmd_cert(int argc, char **argv);
int sfc_cmd_log(int argc, char **argv);
int sfc_cmd_doctor(int argc, char **argv);

/* Prints "shardfc COMMAND: message" and returns the exit code of err->code: 2 for what the caller
 * has to change (a value, a file that is missing, damaged, in the way or of an unknown kind),
 * else 1. */
int sfc_command_failed(const char *command, const struct sfc_error *err);
/* Prints the object as one line on stdout and releases it. */
void sfc_command_json(json_t *object);
/* State and step of the run after a Control call. */
void sfc_command_say_state(const Shardfc__V1__ControlReply *reply, bool json);
/* A progress line on stderr: rewritten in place on a terminal, a new one every two seconds
 * elsewhere. */
struct sfc_command_progress {
    const char *what, *unit;
    double started; /* seconds, monotonic; 0 = not started */
    double last;
    uint64_t first; /* done at the first call: rate and percent count from there */
    int last_percent;
};
void sfc_command_progress(struct sfc_command_progress *progress, uint64_t done, uint64_t total);
/* What is counted won't get to its end, or what comes next is something else: begins a new line. */
void sfc_command_progress_end(struct sfc_command_progress *progress);
/* What a command waits for where nothing can be counted, on stderr: on a terminal rewritten in
 * place, elsewhere a new line when the text changes, at most every ten seconds, and after half a
 * minute again. All zero at first. */
struct sfc_command_waiting {
    char text[256];
    double last; /* seconds, monotonic; 0: nothing is shown */
};
void sfc_command_waiting(struct sfc_command_waiting *waiting, const char *text);
/* Nothing more is waited for: what comes next begins a new line. */
void sfc_command_waited(struct sfc_command_waiting *waiting);
/* A scheduler that answered before and restarts is waited for. All zero at first. */
struct sfc_command_silence {
    double since; /* 0: it answers */
    struct sfc_command_waiting waiting;
};
bool sfc_command_is_silence(int code); /* unavailable, or over its deadline */
/* true: code (of err) is silence that has not lasted for a minute yet; it is shown, and a moment
 * waited. */
bool sfc_command_bears(struct sfc_command_silence *silence, int code, const struct sfc_error *err);
/* Columns of the terminal that stdout is; 0: it is none. */
size_t sfc_command_columns(void);
double sfc_command_clock(void);
void sfc_command_wait(uint64_t ms);

/* ---- the cluster */

/* A connection to the scheduler and, on demand, to shards. */
struct sfc_cluster;
/* Waits until one of the schedulers leads. */
int sfc_cluster_connect(const char *scheduler, const struct sfc_security *security,
                        struct sfc_cluster **out, struct sfc_error *err);
void sfc_cluster_close(struct sfc_cluster *cluster); /* NULL is fine */
/* Calls method ("Status") of the Scheduler service. The answer is freed with sfc_answer_free. Of
 * several schedulers the one that leads is waited for, which says why; what may be repeated goes to
 * the next one when one is lost, and a few times to one that is alone. */
int sfc_cluster_scheduler(struct sfc_cluster *cluster, const char *method,
                          const ProtobufCMessage *message,
                          const ProtobufCMessageDescriptor *reply_type, unsigned deadline_ms,
                          struct sfc_answer *out, struct sfc_error *err);
/* The same, and asks for some seconds again while the scheduler answers that it can't do it now
 * (SFC_EUNAVAILABLE: it has just restarted, another one is being made durable). */
int sfc_cluster_insist(struct sfc_cluster *cluster, const char *method,
                       const ProtobufCMessage *message,
                       const ProtobufCMessageDescriptor *reply_type, unsigned deadline_ms,
                       struct sfc_answer *out, struct sfc_error *err);
/* The same in three steps, for what a command shows meanwhile. method and reply_type must outlive
 * the call, which sfc_cluster_finish ends. */
struct sfc_cluster_call {
    const char *method;
    const ProtobufCMessageDescriptor *reply_type;
    struct sfc_rpc_future *future;
};
int sfc_cluster_start(struct sfc_cluster *cluster, const char *method,
                      const ProtobufCMessage *message, const ProtobufCMessageDescriptor *reply_type,
                      unsigned deadline_ms, struct sfc_cluster_call *out, struct sfc_error *err);
int sfc_cluster_finish(struct sfc_cluster *cluster, struct sfc_cluster_call *call,
                       struct sfc_answer *out, struct sfc_error *err);
/* Calls method ("ReadBlock") of the Shard service at address; retries when the call may be
 * repeated. */
int sfc_cluster_shard(struct sfc_cluster *cluster, const char *address, const char *method,
                      const ProtobufCMessage *message, struct sfc_bytes tensor,
                      const ProtobufCMessageDescriptor *reply_type, struct sfc_answer *out,
                      struct sfc_error *err);
/* What a process says of itself: the shard at this address, or (NULL) the scheduler. Once, and for
 * seconds only. The answer's message is an AboutReply. */
int sfc_cluster_about(struct sfc_cluster *cluster, const char *shard, struct sfc_answer *out,
                      struct sfc_error *err);

/* Why a run does not get on: "the run is paused", "the run waits for shard 2, ...". */
void sfc_cluster_why(struct sfc_cluster *cluster, char *out, size_t size);

/* The floats that a shard answered ReadBlock with; SFC_ECORRUPT: not as many as were asked for. */
int sfc_answer_floats(const struct sfc_answer *answer, const char *address,
                      const Shardfc__V1__ReadBlockRequest *request, float *out,
                      struct sfc_error *err);

/* ---- options of several commands */

/* How a run is kept (RunKeeping), of `create` and `restore`; arguments: offsets of uint64_t, of
 * elastic: int (1: auto); grace_ms: a duration. */
extern const char *const sfc_elastic_names[];
#define SFC_KEEPING_OPTIONS(durable_every_at, rewind_window_at, elastic_at, mirrors_at, grace_at)  \
    {.name = "mirror",                                                                             \
     .type = SFC_OPTION_U64,                                                                       \
     .offset = mirrors_at,                                                                         \
     .max = 8,                                                                                     \
     .fallback = "0",                                                                              \
     .metavar = "N",                                                                               \
     .help = "so many other shards keep on their disks what each shard's blocks can be restored "  \
             "from, so that a machine that is lost for good takes nothing with it; costs their "   \
             "disks a copy of its blocks each, and gradients of the backbone go to them as well"}, \
        {.name = "grace",                                                                          \
         .type = SFC_OPTION_DURATION,                                                              \
         .offset = grace_at,                                                                       \
         .max = 86400000,                                                                          \
         .fallback = "120s",                                                                       \
         .help = "with --mirror: a shard that is missing for so long is given up, and the shards " \
                 "that mirror it take its blocks; 0: only when somebody says so (`shardfc drain "  \
                 "--lost`)"},                                                                      \
        {.name = "elastic",                                                                        \
         .type = SFC_OPTION_ENUM,                                                                  \
         .offset = elastic_at,                                                                     \
         .choices = sfc_elastic_names,                                                             \
         .fallback = "manual",                                                                     \
         .help =                                                                                   \
             "auto: shards that announce themselves (shardfc-shard --join auto) get blocks of "    \
             "this run by themselves; manual: shards change when somebody says so "                \
             "(`shardfc scale`, `drain`, `rebalance`)"},                                           \
        {.name = "durable-every",                                                                  \
         .type = SFC_OPTION_U64,                                                                   \
         .offset = durable_every_at,                                                               \
         .min = 1,                                                                                 \
         .max = 1000,                                                                              \
         .fallback = "1",                                                                          \
         .metavar = "N",                                                                           \
         .help =                                                                                   \
             "flush logs and records only every N steps, for disks that can't keep up: a crash "   \
             "takes all shards back to the last durable step, and the run goes on from there "     \
             "with "                                                                               \
             "the same bits"},                                                                     \
    {                                                                                              \
        .name = "rewind-window", .type = SFC_OPTION_U64, .offset = rewind_window_at,               \
        .max = UINT64_C(1) << 40, .fallback = "0", .metavar = "N",                                 \
        .help =                                                                                    \
            "shards keep what `shardfc rewind` needs to go back by so many steps: up to twice "    \
            "as many steps of log, two more snapshots of each block; at most a third of what "     \
            "--log-limit holds. 0: 1000 for a session, else no more than a crash needs"            \
    }

#endif

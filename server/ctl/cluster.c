#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/find_leader.h"
#include "server/ctl/command.h"

#define SHARD_DEADLINE_MS  60000
#define SHARD_RETRIES      3
#define STATUS_DEADLINE_MS 10000
#define SWITCH_DEADLINE_MS 4000 /* where another scheduler may lead by now */
#define SWITCH_TRIES       3
#define LOST_TRIES         3
#define LOST_MS            150 /* between them */
#define LOST_S             0.5 /* whoever refuses a connection does so sooner */
#define ABOUT_DEADLINE_MS  4000
#define NOT_NOW_S          15.0 /* longer than shards take to register after a restart */
#define NOT_NOW_MS         200  /* before the second try, twice as long before the next */
#define NOT_NOW_MAX_MS     3000

struct shard_client {
    struct sfc_rpc_client *client;
    struct shard_client *next;
};

struct sfc_cluster {
    struct sfc_rpc_runner *runner;
    struct sfc_rpc_client *scheduler;
    struct shard_client *shards;
};

/* ---- who leads */

static void say_waiting(void *ctx, const char *why)
{
    sfc_command_waiting(ctx, why);
}

static int find_leader(struct sfc_cluster *cluster, struct sfc_error *err)
{
    struct sfc_command_waiting waiting = {0};
    int code = sfc_find_leader(cluster->scheduler, say_waiting, &waiting, err);
    sfc_command_waited(&waiting);
    return code;
}

int sfc_cluster_connect(const char *scheduler, const struct sfc_security *security,
                        struct sfc_cluster **out, struct sfc_error *err)
{
    struct sfc_cluster *cluster = calloc(1, sizeof *cluster);
    if (cluster == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a connection");
    }
    int code = sfc_rpc_runner_start(security, &cluster->runner, err);
    if (code == SFC_OK) {
        code = sfc_rpc_runner_connect(cluster->runner, scheduler, &cluster->scheduler, err);
        if (code == SFC_EINVAL) {
            sfc_prefix(err, "--scheduler");
        }
    }
    if (code == SFC_OK) {
        code = find_leader(cluster, err);
    }
    if (code != SFC_OK) {
        sfc_cluster_close(cluster);
        return code;
    }
    *out = cluster;
    return SFC_OK;
}

void sfc_cluster_close(struct sfc_cluster *cluster)
{
    if (cluster == NULL) {
        return;
    }
    while (cluster->shards != NULL) {
        struct shard_client *next = cluster->shards->next;
        sfc_rpc_runner_disconnect(cluster->runner, cluster->shards->client);
        free(cluster->shards);
        cluster->shards = next;
    }
    sfc_rpc_runner_disconnect(cluster->runner, cluster->scheduler);
    sfc_rpc_runner_stop(cluster->runner);
    free(cluster);
}

/* People know what they asked for, not which call that is. */
static void drop_prefix(int code, const char *method, struct sfc_error *err)
{
    size_t length = strlen(method);
    if (code != SFC_OK && strncmp(err->text, method, length) == 0 &&
        strncmp(err->text + length, ": ", 2) == 0) {
        memmove(err->text, err->text + length + 2, strlen(err->text + length + 2) + 1);
    }
}

static struct sfc_ask ask_of(const char *path, const ProtobufCMessage *message,
                             const ProtobufCMessageDescriptor *reply_type, unsigned deadline_ms)
{
    return (struct sfc_ask){
        .method = path, .message = message, .deadline_ms = deadline_ms, .reply_type = reply_type};
}

static void path_of(const char *method, char path[128])
{
    snprintf(path, 128, "/shardfc.v1.Scheduler/%s", method);
}

/* ---- calls of the scheduler */

static bool several(const struct sfc_cluster *cluster)
{
    return sfc_rpc_client_addresses(cluster->scheduler) > 1;
}

/* Twice is like once. */
static bool repeatable(const char *method)
{
    static const char *const methods[] = {"Status", "History", "Events",
                                          "Hold",   "Release", "Scale"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (strcmp(methods[i], method) == 0) {
            return true;
        }
    }
    return false;
}

/* What can't be repeated goes to the one that leads now. */
int sfc_cluster_start(struct sfc_cluster *cluster, const char *method,
                      const ProtobufCMessage *message, const ProtobufCMessageDescriptor *reply_type,
                      unsigned deadline_ms, struct sfc_cluster_call *out, struct sfc_error *err)
{
    char path[128];
    path_of(method, path);
    struct sfc_ask ask = ask_of(path, message, reply_type, deadline_ms);
    struct sfc_cluster_call call = {.method = method, .reply_type = reply_type};
    int code = repeatable(method) ? SFC_OK : find_leader(cluster, err);
    if (code != SFC_OK) {
        return code;
    }
    code = sfc_ask_start(cluster->scheduler, &ask, &call.future, err);
    if (code == SFC_OK) {
        *out = call;
    }
    return code;
}

int sfc_cluster_finish(struct sfc_cluster *cluster, struct sfc_cluster_call *call,
                       struct sfc_answer *out, struct sfc_error *err)
{
    char path[128];
    path_of(call->method, path);
    struct sfc_ask ask = ask_of(path, NULL, call->reply_type, 0);
    int code = sfc_ask_finish(call->future, &ask, out, err);
    call->future = NULL;
    drop_prefix(code, call->method, err);
    if (code == SFC_EUNAVAILABLE && out->owned.answered) {
        return code; /* not now, in the scheduler's own words */
    }
    if (code == SFC_EUNAVAILABLE && several(cluster)) {
        return repeatable(call->method)
                   ? code
                   : sfc_prefix(
                         err, "the scheduler was lost while it worked on this, and it may be done "
                              "or not (`shardfc status` and `shardfc events` say)");
    }
    if (code == SFC_EUNAVAILABLE) {
        return sfc_prefix(err,
                          "scheduler %s does not answer (is shardfc-scheduler running there, and "
                          "with TLS? see --scheduler and --tls; `shardfc doctor` looks closer)",
                          sfc_rpc_client_address(cluster->scheduler));
    }
    return code;
}

static int call_once(struct sfc_cluster *cluster, const char *method,
                     const ProtobufCMessage *message, const ProtobufCMessageDescriptor *reply_type,
                     unsigned deadline_ms, struct sfc_answer *out, struct sfc_error *err)
{
    struct sfc_cluster_call call;
    int code = sfc_cluster_start(cluster, method, message, reply_type, deadline_ms, &call, err);
    return code == SFC_OK ? sfc_cluster_finish(cluster, &call, out, err) : code;
}

/* A connection that isn't made within a second is given up, though only the machine stood still.
 * Who isn't there is told at once. */
static int call_one(struct sfc_cluster *cluster, const char *method,
                    const ProtobufCMessage *message, const ProtobufCMessageDescriptor *reply_type,
                    unsigned deadline_ms, struct sfc_answer *out, struct sfc_error *err)
{
    double begun = sfc_command_clock();
    int code = call_once(cluster, method, message, reply_type, deadline_ms, out, err);
    for (unsigned tries = 1;
         code == SFC_EUNAVAILABLE && !out->owned.answered && repeatable(method) &&
         tries < LOST_TRIES && sfc_command_clock() - begun >= LOST_S;
         tries++) {
        sfc_command_wait(LOST_MS);
        code = call_once(cluster, method, message, reply_type, deadline_ms, out, err);
    }
    return code;
}

/* One of several is lost meanwhile: whoever leads next is asked. A leader that was found and is
 * silent again and again is not asked for ever. */
int sfc_cluster_scheduler(struct sfc_cluster *cluster, const char *method,
                          const ProtobufCMessage *message,
                          const ProtobufCMessageDescriptor *reply_type, unsigned deadline_ms,
                          struct sfc_answer *out, struct sfc_error *err)
{
    bool again = several(cluster) && repeatable(method);
    unsigned deadline =
        again && deadline_ms > SWITCH_DEADLINE_MS ? SWITCH_DEADLINE_MS : deadline_ms;
    int code = several(cluster)
                   ? call_once(cluster, method, message, reply_type, deadline, out, err)
                   : call_one(cluster, method, message, reply_type, deadline, out, err);
    for (unsigned tries = 1; again && sfc_command_is_silence(code) && tries < SWITCH_TRIES;
         tries++) {
        code = find_leader(cluster, err);
        if (code == SFC_OK) {
            code = call_once(cluster, method, message, reply_type, deadline_ms, out, err);
        }
    }
    return code;
}

int sfc_cluster_insist(struct sfc_cluster *cluster, const char *method,
                       const ProtobufCMessage *message,
                       const ProtobufCMessageDescriptor *reply_type, unsigned deadline_ms,
                       struct sfc_answer *out, struct sfc_error *err)
{
    struct sfc_command_waiting waiting = {0};
    double begun = sfc_command_clock();
    uint64_t wait_ms = NOT_NOW_MS;
    int code;
    for (;;) {
        out->owned.answered = false;
        code = sfc_cluster_scheduler(cluster, method, message, reply_type, deadline_ms, out, err);
        if (code != SFC_EUNAVAILABLE || !out->owned.answered ||
            sfc_command_clock() - begun >= NOT_NOW_S) {
            break;
        }
        sfc_command_waiting(&waiting, err->text);
        sfc_command_wait(wait_ms);
        wait_ms = wait_ms < NOT_NOW_MAX_MS ? 2 * wait_ms : NOT_NOW_MAX_MS;
    }
    sfc_command_waited(&waiting);
    return code;
}

static int find_shard(struct sfc_cluster *cluster, const char *address, struct sfc_rpc_client **out,
                      struct sfc_error *err)
{
    for (struct shard_client *s = cluster->shards; s != NULL; s = s->next) {
        if (strcmp(sfc_rpc_client_address(s->client), address) == 0) {
            *out = s->client;
            return SFC_OK;
        }
    }
    struct shard_client *shard = calloc(1, sizeof *shard);
    if (shard == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a connection");
    }
    int code = sfc_rpc_runner_connect(cluster->runner, address, &shard->client, err);
    if (code != SFC_OK) {
        free(shard);
        return code;
    }
    shard->next = cluster->shards;
    cluster->shards = shard;
    *out = shard->client;
    return SFC_OK;
}

int sfc_cluster_shard(struct sfc_cluster *cluster, const char *address, const char *method,
                      const ProtobufCMessage *message, struct sfc_bytes tensor,
                      const ProtobufCMessageDescriptor *reply_type, struct sfc_answer *out,
                      struct sfc_error *err)
{
    char path[128];
    snprintf(path, sizeof path, "/shardfc.v1.Shard/%s", method);
    struct sfc_ask ask = {.method = path,
                          .message = message,
                          .tensor = tensor,
                          .deadline_ms = SHARD_DEADLINE_MS,
                          .retries = SHARD_RETRIES,
                          .reply_type = reply_type};
    struct sfc_rpc_client *client = NULL;
    int code = find_shard(cluster, address, &client, err);
    if (code == SFC_OK) {
        code = sfc_ask(client, &ask, out, err);
        drop_prefix(code, method, err);
        if (code == SFC_EUNAVAILABLE) {
            sfc_prefix(err,
                       "shard %s is not available (if its process has ended, start it again with "
                       "the same --listen and --state; `shardfc doctor` says more)",
                       address);
        } else if (code != SFC_OK) {
            sfc_prefix(err, "shard %s", address);
        }
    }
    return code;
}

int sfc_cluster_about(struct sfc_cluster *cluster, const char *shard, struct sfc_answer *out,
                      struct sfc_error *err)
{
    Shardfc__V1__AboutRequest request = SHARDFC__V1__ABOUT_REQUEST__INIT;
    const char *path = shard != NULL ? "/shardfc.v1.Shard/About" : "/shardfc.v1.Scheduler/About";
    struct sfc_ask ask =
        ask_of(path, &request.base, &shardfc__v1__about_reply__descriptor, ABOUT_DEADLINE_MS);
    struct sfc_rpc_client *client = cluster->scheduler;
    int code = shard != NULL ? find_shard(cluster, shard, &client, err) : SFC_OK;
    if (code == SFC_OK) {
        code = sfc_ask(client, &ask, out, err);
        drop_prefix(code, "About", err);
    }
    return code;
}

void sfc_cluster_why(struct sfc_cluster *cluster, char *out, size_t size)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    struct sfc_error err;
    if (sfc_cluster_scheduler(cluster, "Status", &request.base,
                              &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, &answer,
                              &err) == SFC_OK) {
        const Shardfc__V1__StatusReply *s = (const Shardfc__V1__StatusReply *)answer.message;
        bool running = strcmp(s->state, "running") == 0;
        snprintf(out, size, "the run %s%s%s%s", running ? "" : "is ", running ? "" : s->state,
                 running || s->reason[0] == '\0' ? "" : ": ",
                 running && s->reason[0] == '\0' ? "goes on" : s->reason);
    } else {
        snprintf(out, size, "%s", err.text);
    }
    sfc_answer_free(&answer);
}

int sfc_answer_floats(const struct sfc_answer *answer, const char *address,
                      const Shardfc__V1__ReadBlockRequest *request, float *out,
                      struct sfc_error *err)
{
    size_t expected = request->count * sizeof(float);
    if (answer->tensor.size != expected) {
        return sfc_fail(err, SFC_ECORRUPT, "shard %s: %zu bytes of block %" PRIu64 ", expected %zu",
                        address, answer->tensor.size, request->block, expected);
    }
    memcpy(out, answer->tensor.data, expected);
    return SFC_OK;
}

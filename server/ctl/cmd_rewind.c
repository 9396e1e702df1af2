/* shardfc rewind. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/ctl/command.h"

#define REWIND_DEADLINE_MS 900000 /* every shard goes through the steps of its log */
#define STATUS_DEADLINE_MS 10000
#define LOOK_MS            500

struct rewind_options {
    const char *scheduler;
    struct sfc_security security;
    uint64_t to_step;
    bool json;
};

#define AT(field) offsetof(struct rewind_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    SFC_COMMAND_JSON(AT(json)),
    {.name = "to-step",
     .type = SFC_OPTION_U64,
     .offset = AT(to_step),
     .metavar = "T",
     .help = "the state after this step; what came later never happened",
     .flags = SFC_OPTION_REQUIRED},
};
static const struct sfc_program program = {
    .name = "shardfc rewind",
    .summary =
        "Brings the run back to the state after an earlier step, as if nothing had come after "
        "it: for a session whose own state comes from a checkpoint of that step. The open step "
        "and the session are void; open a new session and go on with step T + 1. How far back "
        "is possible: `shardfc status`, and --rewind-window of `shardfc create`.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* What is shown while the shards are on their way. */
struct way {
    uint64_t shard; /* whose steps are counted, 0: none's */
    char what[128];
    struct sfc_command_progress progress;
    struct sfc_command_waiting waiting;
};

/* The shard whose steps are shown goes on being it; else the one that has most before it. NULL:
 * none goes through its log now. */
static const Shardfc__V1__ShardStatus *choose(const struct way *way,
                                              const Shardfc__V1__StatusReply *s)
{
    const Shardfc__V1__ShardStatus *most = NULL;
    uint64_t left = 0;
    for (size_t i = 0; i < s->n_shards; i++) {
        const Shardfc__V1__ShardRecovery *r = s->shards[i]->recovery;
        if (r == NULL || r->to_step <= r->step) {
            continue;
        }
        if (s->shards[i]->id == way->shard) {
            return s->shards[i];
        }
        if (r->to_step - r->step > left) {
            left = r->to_step - r->step;
            most = s->shards[i];
        }
    }
    return most;
}

static void end_lines(struct way *way)
{
    sfc_command_waited(&way->waiting);
    sfc_command_progress_end(&way->progress);
}

static void show(struct way *way, const Shardfc__V1__StatusReply *s)
{
    const Shardfc__V1__ShardStatus *shard = choose(way, s);
    if (shard == NULL) {
        char text[256];
        snprintf(text, sizeof text, "rewind %s",
                 s->reason[0] != '\0' ? s->reason : "waits for the shards");
        sfc_command_waiting(&way->waiting, text);
        return;
    }
    if (shard->id != way->shard) {
        end_lines(way);
        way->shard = shard->id;
        way->progress = (struct sfc_command_progress){.what = way->what, .unit = "steps"};
        snprintf(way->what, sizeof way->what, "rewind: shard %.80s replays", shard->address);
    }
    sfc_command_progress(&way->progress, shard->recovery->step, shard->recovery->to_step);
}

/* A scheduler that doesn't say how far it is doesn't end the rewind. */
static void look(struct way *way, struct sfc_cluster *cluster)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    struct sfc_error err;
    if (sfc_cluster_scheduler(cluster, "Status", &request.base,
                              &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, &answer,
                              &err) == SFC_OK) {
        show(way, (const Shardfc__V1__StatusReply *)answer.message);
    } else {
        sfc_command_waiting(&way->waiting, err.text);
    }
    sfc_answer_free(&answer);
}

static int rewind_run(struct sfc_cluster *cluster, uint64_t to_step, struct sfc_answer *answer,
                      struct sfc_error *err)
{
    Shardfc__V1__ControlRequest request = SHARDFC__V1__CONTROL_REQUEST__INIT;
    struct sfc_cluster_call call;
    struct way way = {0};
    request.action = SHARDFC__V1__CONTROL_REQUEST__ACTION__REWIND;
    request.step = to_step;
    int code =
        sfc_cluster_start(cluster, "Control", &request.base,
                          &shardfc__v1__control_reply__descriptor, REWIND_DEADLINE_MS, &call, err);
    if (code != SFC_OK) {
        return code;
    }
    while (!sfc_rpc_wait_for(call.future, LOOK_MS)) {
        look(&way, cluster);
    }
    end_lines(&way);
    code = sfc_cluster_finish(cluster, &call, answer, err);
    return code == SFC_ETIMEOUT
               ? sfc_fail(err, code,
                          "not there after %d s; the rewind goes on without this command, and "
                          "`shardfc status` says what it waits for",
                          REWIND_DEADLINE_MS / 1000)
               : code;
}

int sfc_cmd_rewind(int argc, char **argv)
{
    struct rewind_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK) {
        code = rewind_run(cluster, o.to_step, &answer, &err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__ControlReply *reply = (const Shardfc__V1__ControlReply *)answer.message;
        sfc_command_say_state(reply, o.json);
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}

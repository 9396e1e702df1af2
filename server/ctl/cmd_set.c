/* shardfc set: what can be changed of a run that lives. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/ctl/command.h"

#define SET_DEADLINE_MS 60000

struct set_options {
    const char *scheduler;
    struct sfc_security security;
    uint64_t from_step;
    bool json;
};

#define AT(field) offsetof(struct set_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "from-step",
     .type = SFC_OPTION_U64,
     .offset = AT(from_step),
     .min = 1,
     .metavar = "T",
     .help = "the first step with it, which may be in the future; default: the first that is not "
             "planned yet, and while the run is paused or blocked the next one"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc set",
    .summary =
        "Changes the learning rate of the run: from a step on, X takes the place of --lr of "
        "`shardfc create`, and warm-up and decay go on as they were. `schedule` instead of X goes "
        "back to --lr. What was set for that step or later ones before is gone. The change is "
        "durable when this command returns; `shardfc status` lists it, a checkpoint carries it, "
        "and a rewind to a step before it takes it back.",
    .arguments = "lr X|schedule",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = table,
    .count = sizeof table / sizeof *table,
};

static int parse(const struct sfc_options *parsed, double *lr, struct sfc_error *err)
{
    const char *what = sfc_options_argument(parsed, 0), *value = sfc_options_argument(parsed, 1);
    if (strcmp(what, "lr") != 0) {
        return sfc_fail(err, SFC_EINVAL, "%s: only lr can be set: `shardfc set lr 0.05`", what);
    }
    if (strcmp(value, "schedule") == 0) {
        *lr = 0;
        return SFC_OK;
    }
    return sfc_parse_double(value, lr) == SFC_OK && *lr > 0
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL, "lr %s: not a number above 0, and not `schedule`",
                          value);
}

static void say(const Shardfc__V1__ControlReply *reply, double lr, bool json)
{
    if (json) {
        json_t *object =
            json_pack("{s:s, s:I, s:I}", "state", reply->state, "step", (json_int_t)reply->step,
                      "from_step", (json_int_t)reply->from_step);
        json_object_set_new(object, "lr", lr > 0 ? json_real(lr) : json_null());
        sfc_command_json(object);
    } else if (lr > 0) {
        printf("lr %g from step %" PRIu64
               " on, in the place of --lr (warm-up and decay stay its factors); %s at step %" PRIu64
               "\n",
               lr, reply->from_step, reply->state, reply->step);
    } else {
        printf("lr of the schedule from step %" PRIu64 " on; %s at step %" PRIu64 "\n",
               reply->from_step, reply->state, reply->step);
    }
}

int sfc_cmd_set(int argc, char **argv)
{
    struct set_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    Shardfc__V1__ControlRequest request = SHARDFC__V1__CONTROL_REQUEST__INIT;
    request.action = SHARDFC__V1__CONTROL_REQUEST__ACTION__SET_LR;
    request.step = o.from_step;
    int code = parse(parsed, &request.lr, &err);
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    }
    if (code == SFC_OK) {
        code = sfc_cluster_insist(cluster, "Control", &request.base,
                                  &shardfc__v1__control_reply__descriptor, SET_DEADLINE_MS, &answer,
                                  &err);
    }
    if (code == SFC_OK) {
        say((const Shardfc__V1__ControlReply *)answer.message, request.lr, o.json);
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}

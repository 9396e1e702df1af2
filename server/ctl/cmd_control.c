/* shardfc pause, resume, stop. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/ctl/command.h"

#define CONTROL_DEADLINE_MS 60000

struct control_options {
    const char *scheduler, *drop;
    struct sfc_security security;
    bool json;
};

#define AT(field) offsetof(struct control_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    SFC_COMMAND_JSON(AT(json)),
    {.name = "drop",
     .type = SFC_OPTION_STRING,
     .offset = AT(drop),
     .metavar = "T,J",
     .help = "go on with weight 0 for the rows of micro-batch J of step T"},
};
enum { WITH_DROP = sizeof table / sizeof *table, WITHOUT_DROP = WITH_DROP - 1 };

static int run_control(const struct sfc_program *program,
                       Shardfc__V1__ControlRequest__Action action, int argc, char **argv)
{
    struct control_options o = {0}; /* the table of pause and stop has no drop */
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    Shardfc__V1__ControlRequest request = SHARDFC__V1__CONTROL_REQUEST__INIT;
    request.action = action;
    int code = SFC_OK;
    if (o.drop != NULL) {
        char rest;
        request.action = SHARDFC__V1__CONTROL_REQUEST__ACTION__DROP;
        if (sscanf(o.drop, "%" SCNu64 ",%" SCNu32 "%c", &request.step, &request.micro_batch,
                   &rest) != 2) {
            code = sfc_fail(&err, SFC_EINVAL,
                            "--drop %s: expected STEP,MICRO_BATCH, as `shardfc status` names them",
                            o.drop);
        }
    }
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    }
    if (code == SFC_OK) {
        code = sfc_cluster_scheduler(cluster, "Control", &request.base,
                                     &shardfc__v1__control_reply__descriptor, CONTROL_DEADLINE_MS,
                                     &answer, &err);
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

int sfc_cmd_pause(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc pause",
        .summary = "Stops giving out work; the present step is finished first.",
        .options = table,
        .count = WITHOUT_DROP,
    };
    return run_control(&program, SHARDFC__V1__CONTROL_REQUEST__ACTION__PAUSE, argc, argv);
}

int sfc_cmd_resume(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc resume",
        .summary = "Goes on with a paused run, or with a blocked one after its cause is gone.",
        .options = table,
        .count = WITH_DROP,
    };
    return run_control(&program, SHARDFC__V1__CONTROL_REQUEST__ACTION__RESUME, argc, argv);
}

int sfc_cmd_stop(int argc, char **argv)
{
    static const struct sfc_program program = {
        .name = "shardfc stop",
        .summary = "Ends the run and frees its blocks. State that no checkpoint holds is gone.",
        .options = table,
        .count = WITHOUT_DROP,
    };
    return run_control(&program, SHARDFC__V1__CONTROL_REQUEST__ACTION__STOP, argc, argv);
}

/* shardfc status. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/ctl/command.h"
#include "server/run/status_json.h"
#include "server/ctl/show.h"

#define STATUS_DEADLINE_MS 10000

struct status_options {
    const char *scheduler;
    struct sfc_security security;
    bool json;
};

#define AT(field) offsetof(struct status_options, field)
static const struct sfc_option status_table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program status_program = {
    .name = "shardfc status",
    .summary = "Shows run, step, loss, rate, shards and workers.",
    .options = status_table,
    .count = sizeof status_table / sizeof *status_table,
};
static int get_status(struct sfc_cluster *cluster, struct sfc_answer *out, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    return sfc_cluster_scheduler(cluster, "Status", &request.base,
                                 &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, out,
                                 err);
}

/* The change that holds for the next step, and those to come. */
static void print_lr_changes(const Shardfc__V1__StatusReply *s)
{
    for (size_t i = 0; i < s->n_lr_changes; i++) {
        const Shardfc__V1__LrChange *c = s->lr_changes[i];
        if (i + 1 < s->n_lr_changes && s->lr_changes[i + 1]->from_step <= s->step + 1) {
            continue;
        }
        if (c->lr > 0) {
            printf("lr set to %g from step %" PRIu64 " on\n", c->lr, c->from_step);
        } else if (c->from_step > s->step) {
            printf("lr of the schedule again from step %" PRIu64 " on\n", c->from_step);
        }
    }
}

static void print_growths(const Shardfc__V1__StatusReply *s)
{
    if (s->n_growths > 0) {
        const Shardfc__V1__Growth *g = s->growths[s->n_growths - 1];
        printf("grown to %" PRIu64 " identities from step %" PRIu64 " on\n", g->classes,
               g->from_step);
    }
    if (s->grows[0] != '\0') {
        printf("grows %s\n", s->grows);
    }
}

static void print_status(const Shardfc__V1__StatusReply *s)
{
    size_t width = sfc_command_columns();
    sfc_show_run(stdout, width, s);
    print_lr_changes(s);
    print_growths(s);
    sfc_show_goal(stdout, width, s);
    sfc_show_shards(stdout, width, s, SIZE_MAX);
    sfc_show_workers(stdout, s, SIZE_MAX);
    for (size_t i = 0; i < s->n_counters; i++) {
        if (i == 0) {
            printf("\ncounters\n");
        }
        printf("  %-40s %" PRIu64 "\n", s->counters[i]->name, s->counters[i]->value);
    }
}

int sfc_cmd_status(int argc, char **argv)
{
    struct status_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&status_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    struct sfc_answer answer = {0};
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK) {
        code = get_status(cluster, &answer, &err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__StatusReply *status = (const Shardfc__V1__StatusReply *)answer.message;
        if (o.json) {
            sfc_command_json(sfc_status_json(status));
        } else {
            print_status(status);
        }
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("status", &err);
}

/* shardfc events. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server/ctl/command.h"

#define EVENTS_DEADLINE_MS 10000
#define FOLLOW_MS          1000

struct events_options {
    const char *scheduler;
    struct sfc_security security;
    uint64_t limit;
    bool json, follow;
};

#define AT(field) offsetof(struct events_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "limit",
     .type = SFC_OPTION_U64,
     .offset = AT(limit),
     .min = 1,
     .max = 10000,
     .fallback = "50",
     .metavar = "N",
     .help = "the newest N; the scheduler keeps 10000"},
    {.name = "follow",
     .type = SFC_OPTION_BOOL,
     .offset = AT(follow),
     .help = "go on with new ones as they come",
     .flags = SFC_OPTION_FLAG_ONLY},
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = AT(json),
     .help = "print one JSON object; with --follow one for each event",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program program = {
    .name = "shardfc events",
    .summary = "Lists what happened, when, and because of whom: members that came and went, runs "
               "that began, stopped or went back, blocks that moved, and what people asked for. "
               "The time is UTC.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

static void format_time(uint64_t ms, char *out, size_t size)
{
    struct tm parts;
    time_t seconds = (time_t)(ms / 1000);
    char text[32] = "?";
    if (gmtime_r(&seconds, &parts) != NULL) {
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    }
    snprintf(out, size, "%s.%03uZ", text, (unsigned)(ms % 1000));
}

static json_t *event_json(const Shardfc__V1__Event *e)
{
    char when[64];
    format_time(e->time_ms, when, sizeof when);
    return json_pack("{s:I, s:s, s:I, s:s, s:s}", "id", (json_int_t)e->id, "time", when, "run_id",
                     (json_int_t)e->run_id, "who", e->who, "what", e->text);
}

static void print_events(const Shardfc__V1__EventsReply *reply, bool json, bool follow)
{
    json_t *list = json_array();
    for (size_t i = 0; i < reply->n_events; i++) {
        const Shardfc__V1__Event *e = reply->events[i];
        char when[64];
        format_time(e->time_ms, when, sizeof when);
        if (json && follow) {
            sfc_command_json(event_json(e));
        } else if (json) {
            json_array_append_new(list, event_json(e));
        } else if (e->run_id != 0) {
            printf("%s  run %-3" PRIu64 " %-22s %s\n", when, e->run_id, e->who, e->text);
        } else {
            printf("%s  %-7s %-22s %s\n", when, "-", e->who, e->text);
        }
    }
    if (json && !follow) {
        sfc_command_json(json_pack("{s:O}", "events", list));
    }
    json_decref(list);
    fflush(stdout);
}

/* Prints those after *last, which moves on. */
static int more(struct sfc_cluster *cluster, const struct events_options *o, bool newest,
                uint64_t *last, struct sfc_error *err)
{
    Shardfc__V1__EventsRequest request = SHARDFC__V1__EVENTS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    request.after = *last;
    request.newest = newest;
    request.limit = (uint32_t)o->limit;
    int code = sfc_cluster_scheduler(cluster, "Events", &request.base,
                                     &shardfc__v1__events_reply__descriptor, EVENTS_DEADLINE_MS,
                                     &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__EventsReply *reply = (const Shardfc__V1__EventsReply *)answer.message;
    print_events(reply, o->json, o->follow);
    if (reply->n_events > 0) {
        *last = reply->events[reply->n_events - 1]->id;
    }
    sfc_answer_free(&answer);
    return ferror(stdout) == 0
               ? SFC_OK
               : sfc_fail(err, SFC_EIO, "standard output: can't be written any more");
}

int sfc_cmd_events(int argc, char **argv)
{
    struct events_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    uint64_t last = 0;
    int code = sfc_cluster_connect(o.scheduler, &o.security, &cluster, &err);
    if (code == SFC_OK) {
        code = more(cluster, &o, true, &last, &err);
    }
    struct sfc_command_silence silence = {0};
    while (code == SFC_OK && o.follow) {
        sfc_command_wait(FOLLOW_MS);
        code = more(cluster, &o, false, &last, &err);
        code = sfc_command_bears(&silence, code, &err) ? SFC_OK : code;
    }
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}

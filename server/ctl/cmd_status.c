/* shardfc status, shardfc watch. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/ctl/command.h"

#define STATUS_DEADLINE_MS 10000
#define HISTORY_CHUNK      1000
#define POLL_MS            500 /* notices the first commit and the end between two lines */

struct status_options {
    const char *scheduler, *trace;
    bool json, until_done;
    uint64_t interval_ms;
};

#define AT(field) offsetof(struct status_options, field)
#define OPTION_SCHEDULER                                                                           \
    {                                                                                              \
        .name = "scheduler", .type = SFC_OPTION_STRING, .offset = AT(scheduler),                   \
        .fallback = SFC_DEFAULT_SCHEDULER, .metavar = "ADDR", .help = "scheduler to talk to"       \
    }
static const struct sfc_option status_table[] = {
    OPTION_SCHEDULER,
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = AT(json),
     .help = "print one JSON object",
     .flags = SFC_OPTION_FLAG_ONLY},
};
static const struct sfc_program status_program = {
    .name = "shardfc status",
    .summary = "Shows run, step, loss, rate, shards and workers.",
    .options = status_table,
    .count = sizeof status_table / sizeof *status_table,
};
static const struct sfc_option watch_table[] = {
    OPTION_SCHEDULER,
    {.name = "interval",
     .type = SFC_OPTION_DURATION,
     .offset = AT(interval_ms),
     .min = 100,
     .fallback = "2s",
     .help = "time between two lines"},
    {.name = "until-done",
     .type = SFC_OPTION_BOOL,
     .offset = AT(until_done),
     .help = "end when the run ends, or is stopped; exit status 1 unless it finished. Without a "
             "run: wait for one"},
    {.name = "trace",
     .type = SFC_OPTION_STRING,
     .offset = AT(trace),
     .metavar = "FILE",
     .help = "write step,loss,lr,images_per_s of every step as CSV"},
};
static const struct sfc_program watch_program = {
    .name = "shardfc watch",
    .summary = "Follows a run: one line with step, loss, rate and time left at each interval.",
    .options = watch_table,
    .count = sizeof watch_table / sizeof *watch_table,
};

static int get_status(struct sfc_cluster *cluster, struct sfc_answer *out, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    return sfc_cluster_scheduler(cluster, "Status", &request.base,
                                 &shardfc__v1__status_reply__descriptor, STATUS_DEADLINE_MS, out,
                                 err);
}

/* JSON has no NaN: a loss that does not exist yet is null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* What a shard has on its disk, and how far its recovery is (null: it does not recover). */
static void durability_json(const Shardfc__V1__ShardStatus *h, json_t *out)
{
    const Shardfc__V1__ShardDurability *d = h->durability;
    const Shardfc__V1__ShardRecovery *r = h->recovery;
    json_object_set_new(out, "log_floor", json_integer(d ? (json_int_t)d->log_floor : 0));
    json_object_set_new(out, "log_bytes", json_integer(d ? (json_int_t)d->log_bytes : 0));
    json_object_set_new(out, "snapshot_lag", json_integer(d ? (json_int_t)d->snapshot_lag : 0));
    json_object_set_new(out, "oldest_step", json_integer(d ? (json_int_t)d->oldest_step : 0));
    json_object_set_new(out, "disk_error", json_string(d ? d->error : ""));
    json_object_set_new(out, "recovery",
                        r ? json_pack("{s:I, s:I, s:f}", "step", (json_int_t)r->step, "to_step",
                                      (json_int_t)r->to_step, "eta_s", r->eta_s)
                          : json_null());
}

static json_t *shards_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_shards; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        json_t *one =
            json_pack("{s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "id",
                      (json_int_t)h->id, "address", h->address, "state", h->state, "blocks",
                      (json_int_t)h->blocks, "dense_blocks", (json_int_t)h->dense_blocks, "classes",
                      (json_int_t)h->classes, "memory_bytes", (json_int_t)h->memory_bytes,
                      "memory_limit", (json_int_t)h->memory_limit, "step", (json_int_t)h->step,
                      "backend", h->backend, "numerics", h->numerics);
        durability_json(h, one);
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *workers_json(const Shardfc__V1__StatusReply *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_workers; i++) {
        const Shardfc__V1__WorkerStatus *w = s->workers[i];
        json_array_append_new(
            list, json_pack("{s:I, s:s, s:I, s:s, s:I, s:I}", "id", (json_int_t)w->id, "state",
                            w->state, "tickets", (json_int_t)w->tickets, "name", w->name, "lanes",
                            (json_int_t)w->lanes, "micro_batches", (json_int_t)w->micro_batches));
    }
    return list;
}

static json_t *status_json(const Shardfc__V1__StatusReply *s)
{
    json_t *counters = json_object();
    for (size_t i = 0; i < s->n_counters; i++) {
        json_object_set_new(counters, s->counters[i]->name,
                            json_integer((json_int_t)s->counters[i]->value));
    }
    return json_pack("{s:s, s:I, s:s, s:s, s:I, s:I, s:o, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o, "
                     "s:o, s:o, s:s, s:I, s:I, s:I, s:I}",
                     "run", s->run, "run_id", (json_int_t)s->run_id, "state", s->state, "reason",
                     s->reason, "step", (json_int_t)s->step, "steps", (json_int_t)s->steps, "loss",
                     number(s->loss), "images_per_s", s->images_per_s, "lr", s->lr, "eta_s",
                     s->eta_s, "epoch", s->epoch, "map_version", (json_int_t)s->map_version,
                     "incarnation", (json_int_t)s->incarnation, "skipped_steps",
                     (json_int_t)s->skipped_steps, "shards", shards_json(s), "workers",
                     workers_json(s), "counters", counters, "version", s->version, "oldest_step",
                     (json_int_t)s->oldest_step, "rewind_window",
                     (json_int_t)(s->keeping ? s->keeping->rewind_window : 0), "durable_step",
                     (json_int_t)s->durable_step, "durable_every",
                     (json_int_t)(s->keeping ? s->keeping->durable_every : 1));
}

static void format_duration(double seconds, char *out, size_t size)
{
    if (!isfinite(seconds) || seconds < 0) {
        snprintf(out, size, "?");
    } else if (seconds < 90) {
        snprintf(out, size, "%.0f s", seconds);
    } else if (seconds < 5400) {
        snprintf(out, size, "%.0f min", seconds / 60);
    } else {
        snprintf(out, size, "%.1f h", seconds / 3600);
    }
}

static bool is_over(const char *state)
{
    return strcmp(state, "finished") == 0 || strcmp(state, "failed") == 0 ||
           strcmp(state, "blocked") == 0;
}

/* No run, or one that was stopped. */
static bool is_idle(const Shardfc__V1__StatusReply *s)
{
    return s->run_id == 0 || strcmp(s->state, "idle") == 0;
}

/* How far the run is, without what nobody knows yet. */
static void format_progress(const Shardfc__V1__StatusReply *s, char *out, size_t size)
{
    char eta[32];
    char rate[80] = "";
    if (s->images_per_s > 0 && is_over(s->state)) {
        snprintf(rate, sizeof rate, ", %.0f images/s on average", s->images_per_s);
    } else if (s->images_per_s > 0) {
        format_duration(s->eta_s, eta, sizeof eta);
        snprintf(rate, sizeof rate, ", %.0f images/s, %s left", s->images_per_s, eta);
    }
    if (isfinite(s->loss) || s->lr > 0) {
        snprintf(out, size, "step %" PRIu64 "/%" PRIu64 " (epoch %.2f), loss %.4f, lr %.4g%s",
                 s->step, s->steps, s->epoch, s->loss, s->lr, rate);
    } else {
        snprintf(out, size, "step %" PRIu64 "/%" PRIu64 ", waiting for the first commit", s->step,
                 s->steps);
    }
}

static void print_run(const Shardfc__V1__StatusReply *s)
{
    char progress[256];
    format_progress(s, progress, sizeof progress);
    if (s->run_id == 0) {
        printf("no run (%s)%s%s\n", s->state, s->reason[0] != '\0' ? ": " : "", s->reason);
        return;
    }
    printf("run %s (%" PRIu64 "): %s%s%s\n", s->run, s->run_id, s->state,
           s->reason[0] != '\0' ? ": " : "", s->reason);
    printf("%s\n", progress);
    if (s->keeping && s->keeping->durable_every > 1) {
        printf("durable up to step %" PRIu64 " (every %u steps)\n", s->durable_step,
               s->keeping->durable_every);
    }
    if (s->keeping && s->keeping->rewind_window > 0) {
        printf("can be rewound to step %" PRIu64 " and later ones\n", s->oldest_step);
    }
}

static void print_status(const Shardfc__V1__StatusReply *s)
{
    print_run(s);
    printf("\nshards (block map %" PRIu64 ")\n", s->map_version);
    printf("  %4s  %-22s %-10s %7s %10s %12s %8s %9s\n", "id", "address", "state", "blocks",
           "classes", "memory MB", "step", "log MB");
    for (size_t i = 0; i < s->n_shards; i++) {
        const Shardfc__V1__ShardStatus *h = s->shards[i];
        const Shardfc__V1__ShardDurability *d = h->durability;
        printf("  %4" PRIu64 "  %-22s %-10s %7" PRIu64 " %10" PRIu64 " %12.1f %8" PRIu64 " %9.1f\n",
               h->id, h->address, h->state, h->blocks, h->classes, (double)h->memory_bytes / 1e6,
               h->step, d ? (double)d->log_bytes / 1e6 : 0);
        if (d && d->error[0] != '\0')
            printf("        disk: %s\n", d->error);
    }
    printf("\nworkers\n  %4s  %-30s %-8s %6s %8s %14s\n", "id", "name", "state", "lanes", "tickets",
           "micro-batches");
    for (size_t i = 0; i < s->n_workers; i++) {
        const Shardfc__V1__WorkerStatus *w = s->workers[i];
        printf("  %4" PRIu64 "  %-30s %-8s %6u %8u %14" PRIu64 "\n", w->id, w->name, w->state,
               w->lanes, w->tickets, w->micro_batches);
    }
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
    int code = sfc_cluster_connect(o.scheduler, &cluster, &err);
    if (code == SFC_OK) {
        code = get_status(cluster, &answer, &err);
    }
    if (code == SFC_OK) {
        const Shardfc__V1__StatusReply *status = (const Shardfc__V1__StatusReply *)answer.message;
        if (o.json) {
            sfc_command_json(status_json(status));
        } else {
            print_status(status);
        }
    }
    sfc_answer_free(&answer);
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("status", &err);
}

/* ---- watch */

/* Appends the steps after *last to the CSV file. */
static int trace_more(struct sfc_cluster *cluster, FILE *file, uint64_t run_id, uint64_t *last,
                      struct sfc_error *err)
{
    size_t got = HISTORY_CHUNK;
    while (got == HISTORY_CHUNK) {
        Shardfc__V1__HistoryRequest request = SHARDFC__V1__HISTORY_REQUEST__INIT;
        struct sfc_answer answer = {0};
        request.run_id = run_id;
        request.after_step = *last;
        request.limit = HISTORY_CHUNK;
        int code = sfc_cluster_scheduler(cluster, "History", &request.base,
                                         &shardfc__v1__history_reply__descriptor,
                                         STATUS_DEADLINE_MS, &answer, err);
        if (code != SFC_OK) {
            return code;
        }
        const Shardfc__V1__HistoryReply *history =
            (const Shardfc__V1__HistoryReply *)answer.message;
        got = history->n_points;
        for (size_t i = 0; i < got; i++) {
            const Shardfc__V1__HistoryPoint *p = history->points[i];
            fprintf(file, "%" PRIu64 ",%.17g,%.9g,%.1f\n", p->step, p->loss, p->lr,
                    p->images_per_s);
            *last = p->step;
        }
        sfc_answer_free(&answer);
    }
    return fflush(file) == 0 ? SFC_OK : sfc_fail_errno(err, "write the trace");
}

/* stuck: nothing was committed since the line before, so say what it waits for. */
static void print_line(const Shardfc__V1__StatusReply *s, bool stuck)
{
    char progress[256];
    format_progress(s, progress, sizeof progress);
    bool terminal = isatty(STDOUT_FILENO) != 0;
    if (is_idle(s)) {
        printf("%swaits for a run (`shardfc create`): %zu shards, %zu workers",
               terminal ? "\r\033[K" : "", s->n_shards, s->n_workers);
    } else {
        printf("%s%s: %s", terminal ? "\r\033[K" : "",
               strcmp(s->state, "running") == 0 ? s->run : s->state, progress);
        if (!is_over(s->state)) {
            printf(", %zu shards, %zu workers", s->n_shards, s->n_workers);
        }
        if (s->reason[0] != '\0' && (stuck || strcmp(s->state, "running") != 0)) {
            printf(" (%s)", s->reason);
        }
    }
    printf("%s", terminal ? "" : "\n");
    fflush(stdout);
}

/* What has been shown and traced. */
struct watch {
    uint64_t run_id, traced_step, shown_step;
    bool shown;
    bool lived; /* it was seen when it was not idle */
    double due; /* of the next line */
};

static int how_it_ended(const Shardfc__V1__StatusReply *s, struct sfc_error *err)
{
    if (strcmp(s->state, "finished") == 0) {
        return SFC_OK;
    }
    return is_idle(s) ? sfc_fail(err, SFC_ESTATE, "run %s was stopped", s->run)
                      : sfc_fail(err, SFC_ESTATE, "run %s is %s: %s", s->run, s->state, s->reason);
}

/* Prints a line when it is due, when the first rate is known and when the run is over. */
static void show(struct watch *w, const struct status_options *o, const Shardfc__V1__StatusReply *s,
                 bool over)
{
    double now = sfc_command_clock();
    if (s->run_id != w->run_id) {
        *w = (struct watch){.run_id = s->run_id};
    }
    bool first_rate = w->shown_step == 0 && s->images_per_s > 0;
    if (w->shown && !over && !first_rate && now < w->due) {
        return;
    }
    print_line(s, w->shown && s->step == w->shown_step);
    w->shown = true;
    w->shown_step = s->step;
    w->due = now + (double)o->interval_ms / 1e3;
}

static int follow(const struct status_options *o, struct sfc_cluster *cluster, FILE *trace,
                  struct sfc_error *err)
{
    struct watch w = {0};
    for (;;) {
        struct sfc_answer answer = {0};
        int code = get_status(cluster, &answer, err);
        if (code != SFC_OK) {
            return code;
        }
        const Shardfc__V1__StatusReply *s = (const Shardfc__V1__StatusReply *)answer.message;
        bool stopped = w.lived && w.run_id == s->run_id && is_idle(s);
        bool over = o->until_done && (is_over(s->state) || stopped);
        show(&w, o, s, over);
        w.lived = w.lived || !is_idle(s);
        if (ferror(stdout) != 0) { /* nobody is there to see the end */
            code = sfc_fail(err, SFC_EIO, "standard output: can't be written any more");
        }
        if (s->step < w.traced_step) { /* rewound: what comes again is written again */
            w.traced_step = s->step;
        }
        if (code == SFC_OK && trace != NULL && w.run_id != 0) {
            code = trace_more(cluster, trace, w.run_id, &w.traced_step, err);
        }
        if (code == SFC_OK && over) {
            code = how_it_ended(s, err);
        }
        sfc_answer_free(&answer);
        if (code != SFC_OK || over) {
            return code;
        }
        sfc_command_wait(o->interval_ms < POLL_MS ? o->interval_ms : POLL_MS);
    }
}

int sfc_cmd_watch(int argc, char **argv)
{
    struct status_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&watch_program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct sfc_cluster *cluster = NULL;
    FILE *trace = NULL;
    int code = SFC_OK;
    if (o.trace != NULL) {
        trace = fopen(o.trace, "w");
        if (trace == NULL) {
            code = sfc_fail_errno(&err, "create %s", o.trace);
        } else {
            fprintf(trace, "step,loss,lr,images_per_s\n");
        }
    }
    if (code == SFC_OK) {
        code = sfc_cluster_connect(o.scheduler, &cluster, &err);
    }
    if (code == SFC_OK) {
        code = follow(&o, cluster, trace, &err);
        printf("%s", isatty(STDOUT_FILENO) != 0 ? "\n" : "");
    }
    if (trace != NULL) {
        fclose(trace);
    }
    sfc_cluster_close(cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("watch", &err);
}

/* shardfc trace. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/span_list.h"
#include "server/ctl/command.h"
#include "server/ctl/reach.h"
#include "server/ctl/trace_file.h"

enum {
    DEADLINE_MS = 10000,
    ASK_MS = 50,     /* between two questions how far it is */
    WORKERS_S = 5,   /* what workers have not sent by then is missing */
    CLOCK_CALLS = 5, /* to a shard, of which the fastest tells its clock */
};

struct trace_options {
    const char *scheduler;
    struct sfc_security security;
    const char *step, *out;
    uint64_t steps, timeout_ms;
    bool json;
};

#define AT(field) offsetof(struct trace_options, field)
static const struct sfc_option table[] = {
    SFC_COMMAND_SCHEDULER(AT(scheduler)),
    SFC_SECURITY_OPTIONS(AT(security)),
    {.name = "step",
     .type = SFC_OPTION_STRING,
     .offset = AT(step),
     .fallback = "next",
     .max = 20,
     .metavar = "next|N",
     .help = "the first step: the one at work now, or step N, which is not over yet"},
    {.name = "steps",
     .type = SFC_OPTION_U64,
     .offset = AT(steps),
     .min = 1,
     .max = SFC_LIMIT_TRACE_STEPS,
     .fallback = "1",
     .metavar = "K",
     .help = "so many steps, one after another; of many short ones the first may be lost, which "
             "is said"},
    {.name = "out",
     .type = SFC_OPTION_STRING,
     .offset = AT(out),
     .min = 1,
     .max = 3000,
     .flags = SFC_OPTION_REQUIRED,
     .metavar = "FILE",
     .help = "where the trace goes, as JSON for chrome://tracing or ui.perfetto.dev"},
    {.name = "timeout",
     .type = SFC_OPTION_DURATION,
     .offset = AT(timeout_ms),
     .min = 1000,
     .fallback = "10m",
     .help = "give up when the steps are not committed by then"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc trace",
    .summary = "Writes what scheduler, shards and workers did in a step, on one clock, and prints "
               "where its time went: from one commit to the next over what was waited for, also "
               "where that was a shard that was away or recovered, or a change of the block map. "
               "A traced step does nothing that another one doesn't. One trace at a time: a second "
               "one is refused while the first goes on.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* What a command collects. */
struct collector {
    struct sfc_cluster *cluster;
    const struct trace_options *options;
    struct sfc_trace trace;
    char run[SFC_LIMIT_NAME + 1];
    int64_t scheduler_ns; /* the scheduler's clock minus ours */
    uint64_t uncertainty_ns;
};

/* ---- spans of one process, onto our clock */

static int keep(struct sfc_trace_process *p, Shardfc__V1__Span *const *list, size_t count,
                int64_t clock_ns, struct sfc_error *err)
{
    p->spans = calloc(count + 1, sizeof *p->spans);
    if (p->spans == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a trace");
    }
    p->offset_ns = -clock_ns;
    for (size_t i = 0; i < count; i++) {
        struct sfc_span s;
        if (!sfc_span_of_message(list[i], &s)) {
            return sfc_fail(err, SFC_ECORRUPT, "%s: span %zu is malformed", p->name, i);
        }
        s.begin_ns -= (uint64_t)clock_ns;
        s.end_ns -= (uint64_t)clock_ns;
        p->spans[p->count++] = s;
    }
    return SFC_OK;
}

static void note_gone(struct sfc_trace_process *p, bool gone)
{
    if (gone) {
        snprintf(p->missing, sizeof p->missing,
                 "its oldest spans: it keeps the last %d, and these steps had more (trace fewer "
                 "steps at a time)",
                 SFC_SPANS_KEPT);
    }
}

/* When the first of the steps began, as the scheduler says; 0: it does not. */
static uint64_t beginning(const struct sfc_trace *trace)
{
    const struct sfc_trace_process *s = &trace->processes[0];
    for (size_t i = 0; i < s->count; i++) {
        if (s->spans[i].phase == SFC_SPAN_COMPUTE && s->spans[i].step == trace->first) {
            return s->spans[i].begin_ns;
        }
    }
    return 0;
}

/* It was started, or started again, in the middle of the steps. since_ns: by its own clock. */
static void note_since(const struct sfc_trace *trace, struct sfc_trace_process *p,
                       uint64_t since_ns)
{
    uint64_t began = beginning(trace), since = since_ns + (uint64_t)p->offset_ns;
    if (p->missing[0] == '\0' && began != 0 && since > began + p->uncertainty_ns) {
        snprintf(p->missing, sizeof p->missing,
                 "what it did in the first %.1f ms of these steps: it was started, or opened the "
                 "run, only then",
                 (double)(since - began) / 1e6);
    }
}

/* ---- the scheduler and the workers */

static int ask(struct collector *c, const Shardfc__V1__TraceRequest *request,
               struct sfc_answer *answer, struct sfc_error *err)
{
    uint64_t sent = sfc_spans_now();
    int code =
        sfc_cluster_scheduler(c->cluster, "Trace", &request->base,
                              &shardfc__v1__trace_reply__descriptor, DEADLINE_MS, answer, err);
    const Shardfc__V1__TraceReply *m = (const Shardfc__V1__TraceReply *)answer->message;
    if (code == SFC_OK) {
        sfc_clock_estimate(sent, m->received_ns, m->replied_ns, sfc_spans_now(), &c->scheduler_ns,
                           &c->uncertainty_ns);
    }
    return code;
}

static bool all_arrived(const Shardfc__V1__TraceReply *m)
{
    for (size_t i = 0; i < m->n_workers; i++) {
        if (!m->workers[i]->arrived && !m->workers[i]->left && !m->workers[i]->gone) {
            return false;
        }
    }
    return true;
}

static int take_worker(struct collector *c, const Shardfc__V1__TracedWorker *w,
                       struct sfc_error *err)
{
    struct sfc_trace_process *p = sfc_trace_add(&c->trace, SFC_TRACE_WORKER, w->worker);
    if (p == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a trace");
    }
    snprintf(p->name, sizeof p->name, "worker %" PRIu64 " %s", w->worker, w->name);
    p->uncertainty_ns = c->uncertainty_ns + w->uncertainty_ns;
    note_gone(p, w->arrived && w->gone);
    if (!w->arrived) {
        snprintf(p->missing, sizeof p->missing, "all of it: the worker %s",
                 w->gone   ? "sent more than there was room for at the scheduler"
                 : w->left ? "has left or died"
                           : "did not send it in time");
    }
    /* its clock to the scheduler's, and that to ours */
    int code = keep(p, w->spans, w->n_spans, c->scheduler_ns - w->offset_ns, err);
    if (code == SFC_OK && w->arrived) {
        note_since(&c->trace, p, w->since_ns);
    }
    return code;
}

static int take_scheduler(struct collector *c, const Shardfc__V1__TraceReply *m,
                          struct sfc_error *err)
{
    struct sfc_trace_process *p = sfc_trace_add(&c->trace, SFC_TRACE_SCHEDULER, 0);
    if (p == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a trace");
    }
    snprintf(p->name, sizeof p->name, "scheduler %s", c->options->scheduler);
    p->uncertainty_ns = c->uncertainty_ns;
    note_gone(p, m->gone);
    c->trace.first = m->first_step;
    c->trace.last = m->last_step;
    int code = keep(p, m->spans, m->n_spans, c->scheduler_ns, err);
    for (size_t i = 0; i < m->n_workers && code == SFC_OK; i++) {
        code = take_worker(c, m->workers[i], err);
    }
    return code;
}

/* ---- shards */

static int read_shard(struct collector *c, const char *address, uint64_t run_id, bool clock_only,
                      struct sfc_answer *answer, int64_t *clock_ns, uint64_t *uncertainty_ns,
                      struct sfc_error *err)
{
    Shardfc__V1__ReadSpansRequest request = SHARDFC__V1__READ_SPANS_REQUEST__INIT;
    struct sfc_bytes none = {NULL, 0};
    request.run_id = run_id;
    request.first_step = clock_only ? 1 : c->trace.first - 1;
    request.last_step = clock_only ? 0 : c->trace.last;
    uint64_t sent = sfc_spans_now();
    int code = sfc_cluster_shard(c->cluster, address, "ReadSpans", &request.base, none,
                                 &shardfc__v1__read_spans_reply__descriptor, answer, err);
    const Shardfc__V1__ReadSpansReply *m = (const Shardfc__V1__ReadSpansReply *)answer->message;
    if (code == SFC_OK) {
        sfc_clock_estimate(sent, m->received_ns, m->replied_ns, sfc_spans_now(), clock_ns,
                           uncertainty_ns);
    }
    return code;
}

static uint32_t place_of(const Shardfc__V1__TraceReply *m, uint64_t shard)
{
    for (size_t k = 0; k < m->n_places; k++) {
        if (m->places[k] == shard) {
            return (uint32_t)k;
        }
    }
    return UINT32_MAX;
}

/* A shard that is gone leaves a gap, which is said; the rest is worth having. */
static int take_shard(struct collector *c, const Shardfc__V1__ShardStatus *shard, uint32_t place,
                      uint64_t run_id, struct sfc_error *err)
{
    struct sfc_error why = {0};
    struct sfc_trace_process *p = sfc_trace_add(&c->trace, SFC_TRACE_SHARD, shard->id);
    int64_t clock_ns = 0;
    int code = SFC_OK;
    if (p == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a trace");
    }
    snprintf(p->name, sizeof p->name, "shard %" PRIu64 " %s", shard->id, shard->address);
    p->place = place;
    p->uncertainty_ns = UINT64_MAX;
    if (strcmp(shard->state, "gone") == 0) {
        code = sfc_fail(&why, SFC_EUNAVAILABLE, "it is gone");
    }
    for (int i = 0; i <= CLOCK_CALLS && code == SFC_OK; i++) {
        struct sfc_answer answer = {0};
        bool last = i == CLOCK_CALLS;
        code = read_shard(c, shard->address, run_id, !last, &answer, &clock_ns, &p->uncertainty_ns,
                          &why);
        if (code == SFC_OK && last) {
            const Shardfc__V1__ReadSpansReply *m = (const void *)answer.message;
            note_gone(p, m->gone);
            code = keep(p, m->spans, m->n_spans, clock_ns, &why);
            note_since(&c->trace, p, m->since_ns);
        }
        sfc_answer_free(&answer);
    }
    if (code == SFC_ENOMEM) {
        *err = why;
        return code;
    }
    if (code != SFC_OK) {
        p->uncertainty_ns = 0;
        snprintf(p->missing, sizeof p->missing, "all of it: %.300s", why.text);
    }
    return SFC_OK;
}

static int take_shards(struct collector *c, const Shardfc__V1__TraceReply *m, struct sfc_error *err)
{
    Shardfc__V1__StatusRequest request = SHARDFC__V1__STATUS_REQUEST__INIT;
    struct sfc_answer answer = {0};
    int code =
        sfc_cluster_scheduler(c->cluster, "Status", &request.base,
                              &shardfc__v1__status_reply__descriptor, DEADLINE_MS, &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__StatusReply *s = (const Shardfc__V1__StatusReply *)answer.message;
    snprintf(c->run, sizeof c->run, "%s", s->run);
    for (size_t i = 0; i < s->n_shards && code == SFC_OK; i++) {
        uint32_t place = place_of(m, s->shards[i]->id);
        if (place != UINT32_MAX) {
            code = take_shard(c, s->shards[i], place, m->run_id, err);
        }
    }
    sfc_answer_free(&answer);
    return code;
}

/* ---- the trace */

static int first_step(const char *text, uint64_t *out, struct sfc_error *err)
{
    *out = 0;
    if (strcmp(text, "next") == 0) {
        return SFC_OK;
    }
    if (sfc_parse_u64(text, out) != SFC_OK || *out == 0) {
        return sfc_fail(err, SFC_EINVAL, "--step %s: give next, or the number of a step", text);
    }
    return SFC_OK;
}

static int wait_more(struct collector *c, struct sfc_reach *reach, const Shardfc__V1__TraceReply *m,
                     double began, struct sfc_error *err)
{
    if ((sfc_command_clock() - began) * 1e3 > (double)c->options->timeout_ms) {
        char why[200];
        sfc_cluster_why(c->cluster, why, sizeof why);
        return sfc_fail(err, SFC_ETIMEOUT,
                        "step %" PRIu64 " is not committed yet (--timeout), the run is at %" PRIu64
                        ": %s",
                        m->last_step, m->step, why);
    }
    sfc_reach_show(reach, c->cluster, m->step, m->last_step);
    sfc_command_wait(ASK_MS);
    return SFC_OK;
}

/* So that another one may begin. Nothing is lost when the scheduler does not hear it: it forgets a
 * trace that nobody asks for. */
static void let_go(struct collector *c, Shardfc__V1__TraceRequest *request)
{
    struct sfc_answer answer = {0};
    struct sfc_error ignored = {0};
    if (request->trace == 0) {
        return;
    }
    request->over = true;
    sfc_cluster_scheduler(c->cluster, "Trace", &request->base,
                          &shardfc__v1__trace_reply__descriptor, DEADLINE_MS, &answer, &ignored);
    sfc_answer_free(&answer);
}

/* Until the steps are committed and the workers have sent their part. *out is the last answer. */
static int follow(struct collector *c, struct sfc_answer *out, struct sfc_error *err)
{
    Shardfc__V1__TraceRequest request = SHARDFC__V1__TRACE_REQUEST__INIT;
    struct sfc_reach reach = {0};
    double began = sfc_command_clock(), done = 0;
    request.steps = (uint32_t)c->options->steps;
    int code = first_step(c->options->step, &request.first_step, err);
    while (code == SFC_OK) {
        struct sfc_answer answer = {0};
        code = ask(c, &request, &answer, err);
        if (code != SFC_OK) {
            break;
        }
        const Shardfc__V1__TraceReply *m = (const Shardfc__V1__TraceReply *)answer.message;
        request.trace = m->trace;
        request.run_id = m->run_id;
        done = m->complete && done == 0 ? sfc_command_clock() : done;
        if (m->complete && (all_arrived(m) || sfc_command_clock() > done + WORKERS_S)) {
            *out = answer;
            break;
        }
        code =
            m->complete ? (sfc_command_wait(ASK_MS), SFC_OK) : wait_more(c, &reach, m, began, err);
        sfc_answer_free(&answer);
    }
    sfc_reach_end(&reach);
    let_go(c, &request);
    return code;
}

static int collect(struct collector *c, struct sfc_error *err)
{
    struct sfc_answer answer = {0};
    c->uncertainty_ns = UINT64_MAX;
    int code = follow(c, &answer, err);
    if (code != SFC_OK) {
        return code;
    }
    const Shardfc__V1__TraceReply *m = (const Shardfc__V1__TraceReply *)answer.message;
    code = take_scheduler(c, m, err);
    if (code == SFC_OK) {
        code = take_shards(c, m, err);
    }
    sfc_answer_free(&answer);
    return code;
}

/* ---- what is printed */

static void print_path(const struct sfc_trace_path *path)
{
    double all = (double)(path->end_ns - path->begin_ns);
    printf("step %" PRIu64 ": %.3f ms from commit to commit\n", path->step, all / 1e6);
    for (size_t i = 0; i < path->row_count; i++) {
        double ns = (double)path->rows[i].ns;
        printf("  %-9s %-11s %10.3f ms %5.1f %%  %s\n", sfc_trace_kind_name(path->rows[i].kind),
               sfc_phase_name(path->rows[i].phase), ns / 1e6, 100 * ns / all,
               sfc_phase_help(path->rows[i].phase));
    }
    double rest = all - (double)path->known_ns;
    printf("  %-21s %10.3f ms %5.1f %%\n", "between them", rest / 1e6, 100 * rest / all);
}

static int write_file(const char *path, json_t *trace, struct sfc_error *err)
{
    if (trace == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for the file");
    }
    int failed = json_dump_file(trace, path, JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_decref(trace);
    return failed ? sfc_fail_errno(err, "--out: write %s", path) : SFC_OK;
}

static void print(const struct collector *c, const struct sfc_trace_path *paths, size_t count)
{
    json_t *steps = json_array();
    for (size_t i = 0; i < count; i++) {
        if (!c->options->json) {
            print_path(&paths[i]);
        }
        json_array_append_new(steps, sfc_trace_path_json(&paths[i]));
    }
    for (size_t i = 0; i < c->trace.count && !c->options->json; i++) {
        const struct sfc_trace_process *p = &c->trace.processes[i];
        if (p->missing[0] != '\0') {
            printf("missing of %s: %s\n", p->name, p->missing);
        }
    }
    if (c->options->json) {
        sfc_command_json(json_pack("{s:s, s:I, s:I, s:s, s:O, s:o}", "run", c->run, "first_step",
                                   (json_int_t)c->trace.first, "last_step",
                                   (json_int_t)c->trace.last, "out", c->options->out, "steps",
                                   steps, "processes", sfc_trace_processes_json(&c->trace)));
    } else {
        printf("written to %s: open it in ui.perfetto.dev or chrome://tracing\n", c->options->out);
    }
    json_decref(steps);
}

static int report(struct collector *c, struct sfc_error *err)
{
    size_t count = 0, most = (size_t)(c->trace.last - c->trace.first + 1);
    struct sfc_trace_path *paths = calloc(most, sizeof *paths);
    int code = paths != NULL ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no memory for the steps");
    for (uint64_t step = c->trace.first; step <= c->trace.last && code == SFC_OK; step++) {
        struct sfc_error why = {0};
        code = sfc_trace_path(&c->trace, step, &paths[count], &why);
        count += code == SFC_OK;
        if (code == SFC_ENOTFOUND) {
            fprintf(stderr, "shardfc trace: %s\n", why.text);
            code = SFC_OK;
        } else if (code != SFC_OK) {
            *err = why;
        }
    }
    if (code == SFC_OK) {
        code = write_file(c->options->out, sfc_trace_json(&c->trace, paths, count, c->run), err);
    }
    if (code == SFC_OK) {
        print(c, paths, count);
    }
    for (size_t i = 0; i < count; i++) {
        sfc_trace_path_close(&paths[i]);
    }
    free(paths);
    return code;
}

int sfc_cmd_trace(int argc, char **argv)
{
    struct trace_options o = {0};
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    struct collector c = {.options = &o};
    int code = sfc_cluster_connect(o.scheduler, &o.security, &c.cluster, &err);
    if (code == SFC_OK) {
        code = collect(&c, &err);
    }
    if (code == SFC_OK) {
        code = report(&c, &err);
    }
    sfc_trace_close(&c.trace);
    sfc_cluster_close(c.cluster);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed(argv[0], &err);
}

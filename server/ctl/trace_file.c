#include "server/ctl/trace_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PATH_PID = 1, FIRST_PID = 2, OF_A_KIND = 100000 };
/* Rows of the scheduler. */
enum {
    STEP_TID = 0,
    DELAYS_TID = 1,
    ASKS_TID = OF_A_KIND,     /* and the place of the shard */
    PLANS_TID = 2 * OF_A_KIND /* the same */
};

struct writer {
    json_t *events;
    uint64_t origin; /* ns of the common clock: 0 in the file */
    uint64_t flows;
};

static double us(const struct writer *w, uint64_t ns)
{
    return ((double)ns - (double)w->origin) / 1e3;
}

static void add(struct writer *w, json_t *event)
{
    json_array_append_new(w->events, event);
}

static void add_name(struct writer *w, const char *what, int pid, int tid, const char *name)
{
    add(w, json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "ph", "M", "name", what, "pid", pid, "tid",
                     tid, "args", "name", name));
}

/* ---- threads */

/* The scheduler asks several shards at a time, and plans while it waits for something else. */
static int thread_of(const struct sfc_trace_process *p, const struct sfc_span *s)
{
    if (p->kind != SFC_TRACE_SCHEDULER) {
        return s->thread * OF_A_KIND + (int)(s->index % OF_A_KIND);
    }
    switch (s->phase) {
    case SFC_SPAN_COMPUTE:
    case SFC_SPAN_PREPARE_ALL:
    case SFC_SPAN_RECORD:
        return STEP_TID;
    case SFC_SPAN_ASK_PREPARE:
    case SFC_SPAN_ASK_COMMIT:
        return ASKS_TID + (int)(s->index % OF_A_KIND);
    case SFC_SPAN_ASK_PLAN:
        return PLANS_TID + (int)(s->index % OF_A_KIND);
    default:
        return DELAYS_TID;
    }
}

static void thread_name(const struct sfc_trace_process *p, const struct sfc_span *s, char *out,
                        size_t size)
{
    int tid = thread_of(p, s);
    if (p->kind != SFC_TRACE_SCHEDULER) {
        snprintf(out, size, "%s %" PRIu32, sfc_thread_name(s->thread), s->index);
    } else if (tid == STEP_TID) {
        snprintf(out, size, "step");
    } else if (tid == DELAYS_TID) {
        snprintf(out, size, "what keeps it waiting");
    } else {
        snprintf(out, size, "%s shard place %" PRIu32, tid >= PLANS_TID ? "plan of" : "asks",
                 s->index);
    }
}

static void add_threads(struct writer *w, const struct sfc_trace_process *p, int pid)
{
    for (size_t i = 0; i < p->count; i++) {
        size_t k = 0;
        while (k < i && thread_of(p, &p->spans[k]) != thread_of(p, &p->spans[i])) {
            k++;
        }
        if (k == i) {
            char name[64];
            thread_name(p, &p->spans[i], name, sizeof name);
            add_name(w, "thread_name", pid, thread_of(p, &p->spans[i]), name);
        }
    }
}

/* ---- spans */

/* The shard that a span of the scheduler is about, where it is about one. */
static const struct sfc_trace_process *
about(const struct sfc_trace *trace, const struct sfc_trace_process *p, const struct sfc_span *s)
{
    bool one =
        thread_of(p, s) >= ASKS_TID || s->phase == SFC_SPAN_AWAY || s->phase == SFC_SPAN_RECOVERY;
    for (size_t i = 0; p->kind == SFC_TRACE_SCHEDULER && one && i < trace->count; i++) {
        if (trace->processes[i].kind == SFC_TRACE_SHARD && trace->processes[i].place == s->index) {
            return &trace->processes[i];
        }
    }
    return p->kind == SFC_TRACE_SHARD ? p : NULL;
}

static json_t *args_of(const struct sfc_trace *trace, const struct sfc_trace_process *p,
                       const struct sfc_span *s)
{
    const struct sfc_trace_process *shard = about(trace, p, s);
    json_t *args =
        json_pack("{s:I, s:s}", "step", (json_int_t)s->step, "what", sfc_phase_help(s->phase));
    if (s->micro_batch != UINT32_MAX) {
        json_object_set_new(args, "micro_batch", json_integer(s->micro_batch));
    }
    if (s->rows != 0) {
        json_object_set_new(args, "rows", json_integer(s->rows));
    }
    if (s->bytes != 0) {
        json_object_set_new(args, "bytes", json_integer((json_int_t)s->bytes));
    }
    if (shard != NULL) {
        json_object_set_new(args, "shard", json_integer((json_int_t)shard->id));
    }
    return args;
}

/* Jobs wait side by side: as asynchronous events, which may overlap. */
static void add_waiting(struct writer *w, const struct sfc_trace *trace, size_t process,
                        const struct sfc_span *s)
{
    const struct sfc_trace_process *p = &trace->processes[process];
    int pid = FIRST_PID + (int)process;
    json_int_t id = (json_int_t)++w->flows;
    add(w, json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:f, s:o}", "ph", "b", "name", "queue", "cat",
                     "queue", "id", id, "pid", pid, "tid", thread_of(p, s), "ts",
                     us(w, s->begin_ns), "args", args_of(trace, p, s)));
    add(w,
        json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:f}", "ph", "e", "name", "queue", "cat", "queue",
                  "id", id, "pid", pid, "tid", thread_of(p, s), "ts", us(w, s->end_ns)));
}

static void add_span(struct writer *w, const struct sfc_trace *trace, size_t process,
                     const struct sfc_span *s)
{
    const struct sfc_trace_process *p = &trace->processes[process];
    int pid = FIRST_PID + (int)process;
    if (s->phase == SFC_SPAN_QUEUE) {
        add_waiting(w, trace, process, s);
        return;
    }
    add(w, json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:o}", "ph", "X", "name",
                     sfc_phase_name(s->phase), "cat", sfc_trace_kind_name(p->kind), "pid", pid,
                     "tid", thread_of(p, s), "ts", us(w, s->begin_ns), "dur",
                     (double)(s->end_ns - s->begin_ns) / 1e3, "args", args_of(trace, p, s)));
}

static void add_flow(struct writer *w, const char *name, const struct sfc_trace_process *from,
                     int from_pid, const struct sfc_span *a, const struct sfc_trace_process *to,
                     int to_pid, const struct sfc_span *b)
{
    json_int_t id = (json_int_t)++w->flows;
    add(w,
        json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:f}", "ph", "s", "name", name, "cat", "call",
                  "id", id, "pid", from_pid, "tid", thread_of(from, a), "ts", us(w, a->begin_ns)));
    add(w, json_pack("{s:s, s:s, s:s, s:s, s:I, s:i, s:i, s:f}", "ph", "f", "bp", "e", "name", name,
                     "cat", "call", "id", id, "pid", to_pid, "tid", thread_of(to, b), "ts",
                     us(w, b->begin_ns)));
}

/* The scheduler's calls, to what the shard did for them. */
static void add_calls(struct writer *w, const struct sfc_trace *trace, size_t shard)
{
    static const struct {
        uint8_t asks, does;
        const char *name;
    } calls[] = {{SFC_SPAN_ASK_PLAN, SFC_SPAN_PLAN, "Plan"},
                 {SFC_SPAN_ASK_PREPARE, SFC_SPAN_PREPARE, "Prepare"},
                 {SFC_SPAN_ASK_COMMIT, SFC_SPAN_COMMIT, "Commit"}};
    const struct sfc_trace_process *s = &trace->processes[0], *p = &trace->processes[shard];
    for (size_t i = 0; i < s->count; i++) {
        const struct sfc_span *a = &s->spans[i];
        for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
            for (size_t k = 0; a->index == p->place && a->phase == calls[c].asks && k < p->count;
                 k++) {
                if (p->spans[k].phase == calls[c].does && p->spans[k].step == a->step) {
                    add_flow(w, calls[c].name, s, FIRST_PID, a, p, FIRST_PID + (int)shard,
                             &p->spans[k]);
                }
            }
        }
    }
}

/* ---- the way of a step */

static void label_of(enum sfc_trace_kind kind, unsigned phase, char *out, size_t size)
{
    snprintf(out, size, "%s %s", sfc_trace_kind_name(kind), sfc_phase_name(phase));
}

static void add_path(struct writer *w, const struct sfc_trace *trace,
                     const struct sfc_trace_path *path)
{
    for (size_t i = 0; i < path->count; i++) {
        const struct sfc_trace_piece *piece = &path->pieces[i];
        char label[64];
        label_of(piece->kind, piece->phase, label, sizeof label);
        add(w,
            json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:{s:I, s:s}}", "ph", "X", "name", label,
                      "cat", "path", "pid", PATH_PID, "tid", 0, "ts", us(w, piece->begin_ns), "dur",
                      (double)(piece->end_ns - piece->begin_ns) / 1e3, "args", "step",
                      (json_int_t)path->step, "process", trace->processes[piece->process].name));
    }
}

json_t *sfc_trace_path_json(const struct sfc_trace_path *path)
{
    json_t *phases = json_object();
    double all = (double)(path->end_ns - path->begin_ns);
    for (size_t i = 0; i < path->row_count; i++) {
        char label[64];
        label_of(path->rows[i].kind, path->rows[i].phase, label, sizeof label);
        json_object_set_new(phases, label, json_real((double)path->rows[i].ns / 1e6));
    }
    return json_pack("{s:I, s:f, s:f, s:o}", "step", (json_int_t)path->step, "ms", all / 1e6,
                     "known", all > 0 ? (double)path->known_ns / all : 0, "phases", phases);
}

json_t *sfc_trace_processes_json(const struct sfc_trace *trace)
{
    json_t *list = json_array();
    for (size_t i = 0; i < trace->count; i++) {
        const struct sfc_trace_process *p = &trace->processes[i];
        json_t *item =
            json_pack("{s:s, s:I, s:f, s:f}", "name", p->name, "spans", (json_int_t)p->count,
                      "clock_offset_us", (double)p->offset_ns / 1e3, "clock_uncertainty_us",
                      (double)p->uncertainty_ns / 1e3);
        if (p->missing[0] != '\0') {
            json_object_set_new(item, "missing", json_string(p->missing));
        }
        json_array_append_new(list, item);
    }
    return list;
}

static uint64_t first_ns(const struct sfc_trace *trace)
{
    uint64_t first = UINT64_MAX;
    for (size_t i = 0; i < trace->count; i++) {
        const struct sfc_trace_process *p = &trace->processes[i];
        for (size_t k = 0; k < p->count; k++) {
            first = p->spans[k].begin_ns < first ? p->spans[k].begin_ns : first;
        }
    }
    return first == UINT64_MAX ? 0 : first;
}

json_t *sfc_trace_json(const struct sfc_trace *trace, const struct sfc_trace_path *paths,
                       size_t path_count, const char *run)
{
    struct writer w = {.events = json_array(), .origin = first_ns(trace)};
    json_t *steps = json_array();
    add_name(&w, "process_name", PATH_PID, 0, "where the time went");
    add_name(&w, "thread_name", PATH_PID, 0, "from commit to commit");
    for (size_t i = 0; i < trace->count; i++) {
        const struct sfc_trace_process *p = &trace->processes[i];
        int pid = FIRST_PID + (int)i;
        add_name(&w, "process_name", pid, 0, p->name);
        add_threads(&w, p, pid);
        for (size_t k = 0; k < p->count; k++) {
            add_span(&w, trace, i, &p->spans[k]);
        }
        if (p->kind == SFC_TRACE_SHARD) {
            add_calls(&w, trace, i);
        }
    }
    for (size_t i = 0; i < path_count; i++) {
        add_path(&w, trace, &paths[i]);
        json_array_append_new(steps, sfc_trace_path_json(&paths[i]));
    }
    return json_pack("{s:o, s:s, s:{s:s, s:I, s:I, s:o, s:o}}", "traceEvents", w.events,
                     "displayTimeUnit", "ms", "metadata", "run", run, "first_step",
                     (json_int_t)trace->first, "last_step", (json_int_t)trace->last, "processes",
                     sfc_trace_processes_json(trace), "steps", steps);
}

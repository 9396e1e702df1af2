#include "server/ctl/trace_path.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *sfc_trace_kind_name(enum sfc_trace_kind kind)
{
    static const char *const names[] = {"scheduler", "shard", "worker"};
    return names[kind];
}

void sfc_trace_close(struct sfc_trace *trace)
{
    for (size_t i = 0; i < trace->count; i++) {
        free(trace->processes[i].spans);
    }
    free(trace->processes);
    *trace = (struct sfc_trace){0};
}

struct sfc_trace_process *sfc_trace_add(struct sfc_trace *trace, enum sfc_trace_kind kind,
                                        uint64_t id)
{
    if (trace->count == trace->room) {
        size_t room = 2 * trace->room + 8;
        struct sfc_trace_process *more = realloc(trace->processes, room * sizeof *trace->processes);
        if (more == NULL) {
            return NULL;
        }
        trace->processes = more;
        trace->room = room;
    }
    struct sfc_trace_process *p = &trace->processes[trace->count++];
    *p = (struct sfc_trace_process){.kind = kind, .id = id, .place = UINT32_MAX};
    return p;
}

/* ---- pieces */

struct way {
    struct sfc_trace_path *path;
    uint64_t at; /* where it has come to */
};

static int add_row(struct sfc_trace_path *path, const struct sfc_trace_piece *piece)
{
    size_t i = 0;
    while (i < path->row_count &&
           (path->rows[i].kind != piece->kind || path->rows[i].phase != piece->phase)) {
        i++;
    }
    if (i == SFC_TRACE_ROWS) {
        return SFC_EINTERNAL; /* there are fewer phases than that on any way */
    }
    path->row_count += i == path->row_count;
    path->rows[i].kind = piece->kind;
    path->rows[i].phase = piece->phase;
    path->rows[i].ns += piece->end_ns - piece->begin_ns;
    return SFC_OK;
}

/* The part of begin..end that lies behind where the way is and not after `until`. */
static int go(struct way *way, const struct sfc_trace *trace, size_t process, unsigned phase,
              uint64_t begin, uint64_t end, uint64_t until)
{
    struct sfc_trace_path *path = way->path;
    begin = begin > way->at ? begin : way->at;
    end = end < until ? end : until;
    if (end <= begin) {
        return SFC_OK;
    }
    struct sfc_trace_piece *more = realloc(path->pieces, (path->count + 1) * sizeof *more);
    if (more == NULL) {
        return SFC_ENOMEM;
    }
    path->pieces = more;
    more[path->count] = (struct sfc_trace_piece){begin, end, trace->processes[process].kind,
                                                 process, (uint8_t)phase};
    path->known_ns += end - begin;
    way->at = end;
    return add_row(path, &more[path->count++]);
}

/* ---- spans */

/* The last one of a step, as after an Abort a phase may be there twice. */
static const struct sfc_span *find(const struct sfc_trace_process *p, unsigned phase, uint64_t step)
{
    const struct sfc_span *found = NULL;
    for (size_t i = 0; i < p->count; i++) {
        const struct sfc_span *s = &p->spans[i];
        if (s->phase == phase && s->step == step &&
            (found == NULL || s->begin_ns >= found->begin_ns)) {
            found = s;
        }
    }
    return found;
}

/* Of Dones that were sent before `until` the last one. */
static const struct sfc_span *last_done(const struct sfc_trace *trace, uint64_t step,
                                        uint64_t until, size_t *process)
{
    const struct sfc_span *last = NULL;
    for (size_t i = 0; i < trace->count; i++) {
        const struct sfc_trace_process *p = &trace->processes[i];
        for (size_t k = 0; p->kind == SFC_TRACE_WORKER && k < p->count; k++) {
            const struct sfc_span *s = &p->spans[k];
            if (s->phase == SFC_SPAN_DONE && s->step == step &&
                s->begin_ns < until + p->uncertainty_ns &&
                (last == NULL || s->begin_ns > last->begin_ns)) {
                last = s;
                *process = i;
            }
        }
    }
    return last;
}

/* ---- what keeps a step from being computed */

static bool is_delay(unsigned phase)
{
    return phase >= SFC_SPAN_AWAY && phase <= SFC_SPAN_SET_MAP;
}

/* What a shard does while the scheduler waits for that. */
static bool is_part(const struct sfc_trace_process *p, const struct sfc_span *s,
                    const struct sfc_span *delay)
{
    if (p->kind != SFC_TRACE_SHARD) {
        return false;
    }
    if (delay->phase == SFC_SPAN_SET_MAP) {
        return s->phase == SFC_SPAN_TAKE_MAP;
    }
    return delay->phase == SFC_SPAN_RECOVERY && p->place == delay->index &&
           (s->phase == SFC_SPAN_OPEN || s->phase == SFC_SPAN_RESTORE ||
            s->phase == SFC_SPAN_REPLAY);
}

/* The next part of a delay that is not over where the way is. */
static const struct sfc_span *next_part(const struct way *way, const struct sfc_trace *trace,
                                        const struct sfc_span *delay, size_t *process)
{
    const struct sfc_span *next = NULL;
    for (size_t i = 0; i < trace->count; i++) {
        const struct sfc_trace_process *p = &trace->processes[i];
        for (size_t k = 0; k < p->count; k++) {
            const struct sfc_span *s = &p->spans[k];
            if (is_part(p, s, delay) && s->end_ns > way->at && s->begin_ns < delay->end_ns &&
                (next == NULL || s->begin_ns < next->begin_ns)) {
                next = s;
                *process = i;
            }
        }
    }
    return next;
}

static int along_delay(struct way *way, const struct sfc_trace *trace, const struct sfc_span *delay,
                       uint64_t until)
{
    uint64_t end = delay->end_ns < until ? delay->end_ns : until;
    size_t process = 0;
    int code = SFC_OK;
    way->at = delay->begin_ns > way->at ? delay->begin_ns : way->at;
    while (code == SFC_OK && way->at < end) {
        const struct sfc_span *part = next_part(way, trace, delay, &process);
        uint64_t to = part != NULL && part->begin_ns < end ? part->begin_ns : end;
        code = go(way, trace, 0, delay->phase, way->at, to, end);
        if (code == SFC_OK && to < end) {
            code = go(way, trace, process, part->phase, part->begin_ns, part->end_ns, end);
        }
    }
    return code;
}

/* To `until`, where a process waits in this phase (0: what it does is not known): whatever the
 * scheduler has waited for meanwhile is that. */
static int wait(struct way *way, const struct sfc_trace *trace, size_t process, unsigned phase,
                uint64_t until)
{
    const struct sfc_trace_process *s = &trace->processes[0];
    int code = SFC_OK;
    for (size_t k = 0; k < s->count && code == SFC_OK; k++) {
        const struct sfc_span *d = &s->spans[k];
        if (!is_delay(d->phase) || d->end_ns <= way->at || d->begin_ns >= until) {
            continue;
        }
        if (phase != 0) {
            code = go(way, trace, process, phase, way->at, d->begin_ns, until);
        }
        if (code == SFC_OK) {
            code = along_delay(way, trace, d, until);
        }
    }
    return code == SFC_OK && phase != 0 ? go(way, trace, process, phase, way->at, until, until)
                                        : code;
}

/* A lane does nothing of its own in these phases. */
static bool waits(unsigned phase)
{
    switch (phase) {
    case SFC_SPAN_TICKET:
    case SFC_SPAN_PARAMETERS:
    case SFC_SPAN_ASK_LOGITS:
    case SFC_SPAN_ASK_GRADIENT:
    case SFC_SPAN_ASK_PUSH:
    case SFC_SPAN_DONE:
    case SFC_SPAN_GIVE_UP:
    case SFC_SPAN_BACK_OFF:
    case SFC_SPAN_MAP:
    case SFC_SPAN_JOIN:
        return true;
    default:
        return false;
    }
}

/* ---- the lane that was last */

static int along_span(struct way *way, const struct sfc_trace *trace, size_t process,
                      const struct sfc_span *s, uint64_t until)
{
    uint64_t begin = s->begin_ns < until ? s->begin_ns : until;
    uint64_t end = s->end_ns < until ? s->end_ns : until;
    int code = wait(way, trace, process, 0, begin);
    if (code != SFC_OK || end <= way->at) {
        return code;
    }
    way->at = begin > way->at ? begin : way->at;
    return waits(s->phase) ? wait(way, trace, process, s->phase, end)
                           : go(way, trace, process, s->phase, s->begin_ns, s->end_ns, until);
}

static int along_lane(struct way *way, const struct sfc_trace *trace,
                      const struct sfc_span *compute)
{
    size_t process = 0;
    const struct sfc_span *done = last_done(trace, compute->step, compute->end_ns, &process);
    if (done == NULL) {
        return wait(way, trace, 0, compute->phase, compute->end_ns);
    }
    const struct sfc_trace_process *p = &trace->processes[process];
    int code = SFC_OK;
    for (size_t k = 0; k < p->count && code == SFC_OK; k++) {
        const struct sfc_span *s = &p->spans[k];
        bool lane = s->thread == SFC_THREAD_LANE && s->index == done->index;
        bool its = lane || s->phase == SFC_SPAN_JOIN;
        if (its && s->end_ns > way->at && s->begin_ns < compute->end_ns) {
            code = along_span(way, trace, process, s, compute->end_ns);
        }
    }
    return code == SFC_OK ? wait(way, trace, process, 0, compute->end_ns) : code;
}

/* ---- the shard that was last */

static uint64_t ready_at(const struct sfc_trace_process *p, uint64_t step)
{
    const struct sfc_span *flush = find(p, SFC_SPAN_FLUSH, step);
    const struct sfc_span *prepare = find(p, SFC_SPAN_PREPARE, step);
    const struct sfc_span *last = flush != NULL ? flush : prepare;
    return p->kind == SFC_TRACE_SHARD && last != NULL ? last->end_ns : 0;
}

static int along_shard(struct way *way, const struct sfc_trace *trace,
                       const struct sfc_span *prepare)
{
    size_t process = 0;
    for (size_t i = 0; i < trace->count; i++) {
        if (ready_at(&trace->processes[i], prepare->step) >
            ready_at(&trace->processes[process], prepare->step)) {
            process = i;
        }
    }
    const struct sfc_trace_process *p = &trace->processes[process];
    int code = SFC_OK;
    for (size_t k = 0; process != 0 && k < p->count && code == SFC_OK; k++) {
        const struct sfc_span *s = &p->spans[k];
        bool part = s->phase == SFC_SPAN_PREPARE || s->phase == SFC_SPAN_FLUSH;
        if (!part || s->step != prepare->step || s->end_ns <= way->at ||
            s->begin_ns >= prepare->end_ns) {
            continue;
        }
        /* the way to the shard, or between its threads, is the scheduler's waiting */
        code = go(way, trace, 0, prepare->phase, way->at, s->begin_ns, prepare->end_ns);
        if (code == SFC_OK) {
            code = go(way, trace, process, s->phase, s->begin_ns, s->end_ns, prepare->end_ns);
        }
    }
    return code == SFC_OK
               ? go(way, trace, 0, prepare->phase, way->at, prepare->end_ns, prepare->end_ns)
               : code;
}

int sfc_trace_path(const struct sfc_trace *trace, uint64_t step, struct sfc_trace_path *out,
                   struct sfc_error *err)
{
    const struct sfc_trace_process *s = &trace->processes[0];
    const struct sfc_span *compute = find(s, SFC_SPAN_COMPUTE, step),
                          *prepare = find(s, SFC_SPAN_PREPARE_ALL, step),
                          *record = find(s, SFC_SPAN_RECORD, step);
    if (compute == NULL || prepare == NULL || record == NULL) {
        return sfc_fail(err, SFC_ENOTFOUND,
                        "step %" PRIu64 ": the scheduler has not timed it from commit to commit "
                        "(it came after a pause, a start or a return)",
                        step);
    }
    struct sfc_trace_path path = {
        .step = step, .begin_ns = compute->begin_ns, .end_ns = record->end_ns};
    struct way way = {&path, path.begin_ns};
    int code = along_lane(&way, trace, compute);
    way.at = prepare->begin_ns;
    if (code == SFC_OK) {
        code = along_shard(&way, trace, prepare);
    }
    if (code == SFC_OK) {
        code = go(&way, trace, 0, record->phase, record->begin_ns, record->end_ns, record->end_ns);
    }
    if (code != SFC_OK) {
        sfc_trace_path_close(&path);
        return sfc_fail(err, code, "no memory for the way of step %" PRIu64, step);
    }
    *out = path;
    return SFC_OK;
}

void sfc_trace_path_close(struct sfc_trace_path *path)
{
    free(path->pieces);
    *path = (struct sfc_trace_path){0};
}

/* A trace of steps: what the scheduler recorded itself, and what workers send, whom nobody can
 * call. Whoever asks for it reads the shards' part from them. One at a time, of whoever came first;
 * it is forgotten when nobody asks any more. Recording is always on, so a trace changes nothing
 * about its steps. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/span_list.h"
#include "server/scheduler/scheduler_internal.h"

enum {
    FORGOTTEN_MS = 60000,
    TELLINGS = 3,     /* to a worker whose part doesn't come */
    SILENT_MS = 10000 /* whoever asked has ended without a word: another one may begin */
};
#define PARTS_BYTES (32u << 20) /* of all workers' spans together, as messages */

struct part {
    uint64_t worker;
    char name[SFC_LIMIT_NAME + 1];
    Shardfc__V1__PutSpansRequest *put; /* owned; NULL: it has not come */
    unsigned tellings;
    bool told, dropped; /* dropped: there was no room for it */
};

struct sfc_sched_trace {
    uint64_t id, run_id, first, last;
    uint64_t began_ms, asked_ms;
    char who[SFC_LIMIT_ADDRESS + SFC_LIMIT_NAME]; /* asked for it */
    size_t bytes, count;
    struct part parts[SFC_MAX_WORKERS];
};

void sfc_trace_free(struct sfc_scheduler *s)
{
    for (size_t i = 0; s->trace && i < s->trace->count; i++)
        sfc_message_free(s->trace->parts[i].put);
    free(s->trace);
    s->trace = NULL;
}

void sfc_trace_tick(struct sfc_scheduler *s)
{
    if (s->trace && sfc_sched_now(s) > s->trace->asked_ms + FORGOTTEN_MS)
        sfc_trace_free(s);
}

static struct part *part_of(struct sfc_sched_trace *t, uint64_t worker)
{
    for (size_t i = 0; i < t->count; i++)
        if (t->parts[i].worker == worker)
            return &t->parts[i];
    return NULL;
}

/* A worker that is there, now or since the trace began. NULL: there were too many. */
static struct part *add_part(struct sfc_scheduler *s, uint64_t worker)
{
    struct sfc_sched_trace *t = s->trace;
    const struct sfc_worker_member *member = sfc_membership_worker(&s->members, worker);
    if (!member || t->count == SFC_MAX_WORKERS)
        return NULL;
    struct part *part = &t->parts[t->count++];
    *part = (struct part){.worker = worker};
    snprintf(part->name, sizeof part->name, "%s", member->name);
    return part;
}

static bool complete(const struct sfc_scheduler *s)
{
    return s->trace && s->run && s->run->id == s->trace->run_id &&
           sfc_run_committed(&s->run->fsm) >= s->trace->last;
}

bool sfc_trace_wants(struct sfc_scheduler *s, uint64_t worker)
{
    struct part *part = complete(s) ? part_of(s->trace, worker) : NULL;
    if (complete(s) && !part)
        part = add_part(s, worker);
    return part && !part->put && !part->told && !part->dropped && part->tellings < TELLINGS;
}

void sfc_trace_tell(struct sfc_scheduler *s, uint64_t worker, Shardfc__V1__HeartbeatReply *out)
{
    if (!sfc_trace_wants(s, worker))
        return;
    struct part *part = part_of(s->trace, worker);
    part->told = true;
    part->tellings++;
    out->trace = s->trace->id;
    out->trace_first = s->trace->first;
    out->trace_last = s->trace->last;
}

/* It sends its part before its next heartbeat: the answer or the part was lost. */
void sfc_trace_heard(struct sfc_scheduler *s, uint64_t worker)
{
    struct part *part = s->trace ? part_of(s->trace, worker) : NULL;
    if (part)
        part->told = false;
}

/* ---- calls */

static int check_steps(const struct sfc_scheduler *s, const Shardfc__V1__TraceRequest *r,
                       struct sfc_error *err)
{
    uint64_t done = sfc_run_committed(&s->run->fsm), last = s->run->config->steps;
    if (s->run->fsm.stopped || s->run->fsm.failed)
        return sfc_fail(err, SFC_ESTATE, "run %s has %s at step %" PRIu64 ": no step follows",
                        s->run->config->name, s->run->fsm.failed ? "failed" : "been stopped", done);
    if (r->steps == 0 || r->steps > SFC_LIMIT_TRACE_STEPS)
        return sfc_fail(err, SFC_EINVAL, "steps: %u is not within 1..%u", r->steps,
                        SFC_LIMIT_TRACE_STEPS);
    if (r->first_step && r->first_step <= done)
        return sfc_fail(err, SFC_ESTATE,
                        "step %" PRIu64 " is over, the run is at step %" PRIu64
                        ": trace a later one, or the next",
                        r->first_step, done);
    uint64_t first = r->first_step ? r->first_step : done + 1;
    if (first > last || r->steps - 1 > last - first)
        return sfc_fail(err, SFC_ESTATE,
                        "the run ends with step %" PRIu64 ": there is no step %" PRIu64, last,
                        first > last ? first : first + r->steps - 1);
    return SFC_OK;
}

/* One at a time: workers are told of one, and their spans are large. */
static int check_free(const struct sfc_scheduler *s, struct sfc_error *err)
{
    const struct sfc_sched_trace *t = s->trace;
    uint64_t now = sfc_sched_now(s);
    if (!t || t->run_id != s->run->id || now > t->asked_ms + SILENT_MS)
        return SFC_OK;
    return sfc_fail(err, SFC_ESTATE,
                    "a trace of steps %" PRIu64 " to %" PRIu64 " is being taken, since %" PRIu64
                    " s for %s, and there is one at a time: try again when it is over (%d s after "
                    "its last question when its command was killed)",
                    t->first, t->last, (now - t->began_ms) / 1000, t->who, SILENT_MS / 1000);
}

static int begin(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                 const Shardfc__V1__TraceRequest *r, struct sfc_error *err)
{
    static uint64_t counter;
    int code = check_steps(s, r, err);
    if (code == SFC_OK)
        code = check_free(s, err);
    struct sfc_sched_trace *t = code == SFC_OK ? calloc(1, sizeof *t) : NULL;
    if (code == SFC_OK && !t)
        code = sfc_fail(err, SFC_EUNAVAILABLE, "no memory for a trace now");
    if (code != SFC_OK)
        return code;
    sfc_trace_free(s);
    s->trace = t;
    t->id = s->incarnation << 32 | ++counter;
    t->run_id = s->run->id;
    t->began_ms = sfc_sched_now(s);
    snprintf(t->who, sizeof t->who, "%s", sfc_rpc_call_peer(call));
    t->first = r->first_step ? r->first_step : sfc_run_committed(&s->run->fsm) + 1;
    t->last = t->first + r->steps - 1;
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++)
        if (s->workers[i].id)
            add_part(s, s->workers[i].id);
    return SFC_OK;
}

/* Spans of the step before are those from which the first step began. */
static int own_spans(const struct sfc_scheduler *s, struct sfc_span_list *out,
                     struct sfc_error *err)
{
    return complete(s) ? sfc_span_list_take(s->spans, s->trace->first - 1, s->trace->last, out, err)
                       : SFC_OK;
}

struct answer {
    Shardfc__V1__TraceReply m;
    Shardfc__V1__TracedWorker workers[SFC_MAX_WORKERS], *list[SFC_MAX_WORKERS];
    uint64_t places[SFC_CORE_MAX_SHARDS];
};

static void fill_part(struct sfc_scheduler *s, const struct part *part,
                      Shardfc__V1__TracedWorker *out)
{
    shardfc__v1__traced_worker__init(out);
    out->worker = part->worker;
    out->name = (char *)(uintptr_t)part->name;
    out->arrived = part->put != NULL;
    out->left = !sfc_sched_worker(s, part->worker);
    out->gone = part->dropped;
    if (!part->put)
        return;
    out->spans = part->put->spans;
    out->n_spans = part->put->n_spans;
    out->gone = part->put->gone;
    out->offset_ns = part->put->offset_ns;
    out->uncertainty_ns = part->put->uncertainty_ns;
    out->since_ns = part->put->since_ns;
}

static void reply(struct sfc_scheduler *s, struct sfc_rpc_call *call, struct answer *a,
                  struct sfc_span_list *own, uint64_t received)
{
    struct sfc_sched_trace *t = s->trace;
    shardfc__v1__trace_reply__init(&a->m);
    a->m.trace = t->id;
    a->m.run_id = t->run_id;
    a->m.first_step = t->first;
    a->m.last_step = t->last;
    a->m.step = sfc_run_committed(&s->run->fsm);
    a->m.complete = complete(s);
    a->m.n_spans = own->count;
    a->m.spans = own->list;
    a->m.gone = own->gone;
    for (size_t k = 0; k < s->run->map->n_shards && k < SFC_CORE_MAX_SHARDS; k++)
        a->places[a->m.n_places++] = s->run->map->shards[k]->shard;
    a->m.places = a->places;
    for (size_t i = 0; i < t->count; i++) {
        fill_part(s, &t->parts[i], &a->workers[i]);
        a->list[i] = &a->workers[i];
    }
    a->m.n_workers = t->count;
    a->m.workers = a->list;
    a->m.received_ns = received;
    a->m.replied_ns = sfc_spans_now();
    sfc_call_reply(call, &a->m);
}

static int check_trace(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                       const Shardfc__V1__TraceRequest *r, struct sfc_error *err)
{
    if (!s->run || (r->run_id && r->run_id != s->run->id))
        return sfc_fail(err, SFC_ESTATE, "run_id: there is no run %" PRIu64 " to trace", r->run_id);
    if (!r->trace)
        return begin(s, call, r, err);
    if (!s->trace || s->trace->id != r->trace || s->trace->run_id != s->run->id)
        return sfc_fail(err, SFC_ESTALE,
                        "the trace is not there any more: the scheduler restarted, or nobody asked "
                        "for it for %d s and another one began: trace again",
                        SILENT_MS / 1000);
    return SFC_OK;
}

/* True: that was all there is to it. */
static bool is_over(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                    const Shardfc__V1__TraceRequest *r)
{
    Shardfc__V1__TraceReply m = SHARDFC__V1__TRACE_REPLY__INIT;
    if (!r->over)
        return false;
    if (s->trace && s->trace->id == r->trace)
        sfc_trace_free(s);
    sfc_call_reply(call, &m);
    return true;
}

void sfc_sched_on_trace(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    uint64_t received = sfc_spans_now();
    struct sfc_span_list own = {0};
    struct answer *answer = NULL;
    Shardfc__V1__TraceRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__trace_request__descriptor);
    if (!r)
        return;
    if (is_over(s, call, r)) {
        sfc_message_free(r);
        return;
    }
    int code = check_trace(s, call, r, &err);
    if (code == SFC_OK)
        s->trace->asked_ms = sfc_sched_now(s);
    if (code == SFC_OK)
        code = own_spans(s, &own, &err);
    if (code == SFC_OK && !(answer = calloc(1, sizeof *answer)))
        code = sfc_fail(&err, SFC_EUNAVAILABLE, "no memory for the answer now");
    if (code == SFC_OK)
        reply(s, call, answer, &own, received);
    else
        sfc_sched_refuse(s, call, &err);
    free(answer);
    sfc_span_list_free(&own);
    sfc_message_free(r);
}

/* Takes the message if it is wanted. */
static bool take(struct sfc_scheduler *s, Shardfc__V1__PutSpansRequest *r, size_t size)
{
    struct part *part =
        s->trace && r->trace && s->trace->id == r->trace ? part_of(s->trace, r->worker) : NULL;
    if (!part || part->put)
        return false;
    if (s->trace->bytes + size > PARTS_BYTES) {
        part->dropped = true;
        return false;
    }
    s->trace->bytes += size;
    part->put = r;
    return true;
}

void sfc_sched_on_put_spans(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    uint64_t received = sfc_spans_now();
    size_t size = sfc_rpc_call_head(call).size;
    Shardfc__V1__PutSpansRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__put_spans_request__descriptor);
    if (!r)
        return;
    Shardfc__V1__PutSpansReply m = SHARDFC__V1__PUT_SPANS_REPLY__INIT;
    bool taken = take(s, r, size);
    m.received_ns = received;
    m.replied_ns = sfc_spans_now();
    sfc_call_reply(call, &m);
    if (!taken)
        sfc_message_free(r);
}

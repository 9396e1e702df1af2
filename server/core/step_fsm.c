#include "server/core/step_fsm.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/step_internal.h"

static const char *const phase_names[] = {
    [SFC_STEP_IDLE] = "idle",           [SFC_STEP_MAPPING] = "changing its blocks",
    [SFC_STEP_SAMPLING] = "sampling",   [SFC_STEP_OPEN] = "open",
    [SFC_STEP_PREPARING] = "preparing", [SFC_STEP_FLUSHING] = "flushing",
    [SFC_STEP_READY] = "ready",         [SFC_STEP_COMMITTING] = "committing",
    [SFC_STEP_FAILED] = "failed",
};

const char *sfc_step_phase_name(enum sfc_step_phase phase)
{
    return phase_names[phase];
}

/* ---- memory */

int sfc_step_init(struct sfc_step_fsm *s, const struct sfc_step_config *config,
                  struct sfc_error *err)
{
    struct sfc_step_fsm n = {.config = *config};
    struct sfc_step_config *c = &n.config;
    if (c->micro_batch < 1 || c->global_batch < 1 || c->global_batch % c->micro_batch != 0 ||
        c->global_batch / c->micro_batch > SFC_CORE_MAX_MICRO_BATCHES)
        return sfc_fail(err, SFC_EINVAL, "global batch %u in micro-batches of %u", c->global_batch,
                        c->micro_batch);
    n.micro_batches = c->global_batch / c->micro_batch;
    c->slots = c->slots ? c->slots : n.micro_batches + 2;
    c->max_parked = c->max_parked ? c->max_parked : 1024;
    if (c->slots < n.micro_batches)
        return sfc_fail(err, SFC_EINVAL, "%u slots for %u micro-batches", c->slots,
                        n.micro_batches);
    n.job_capacity = 2 * SFC_CALL_COUNT * c->slots + c->max_parked + 64;
    n.slots = calloc(n.micro_batches, sizeof(*n.slots));
    n.prepared = calloc(n.micro_batches, sizeof(*n.prepared));
    n.missing = calloc(n.micro_batches, sizeof(*n.missing));
    n.sums = calloc((size_t)c->dense_blocks + 1, sizeof(*n.sums));
    n.jobs = calloc(n.job_capacity, sizeof(*n.jobs));
    n.parked = calloc(c->max_parked, sizeof(*n.parked));
    bool ok = n.slots && n.prepared && n.missing && n.sums && n.jobs && n.parked;
    for (int i = 0; i < 2 && ok; i++) {
        n.plans[i].labels = calloc(c->global_batch, sizeof(*n.plans[i].labels));
        ok = n.plans[i].labels && sfc_attempts_init(&n.attempts[i], n.micro_batches, c->slots,
                                                    c->dense_blocks, err) == SFC_OK;
    }
    if (!ok) {
        sfc_step_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "step state of %u micro-batches", n.micro_batches);
    }
    n.applied = c->start_step;
    n.round =
        c->round.incarnation == c->incarnation ? c->round : (struct sfc_attempt){c->incarnation, 0};
    *s = n;
    return SFC_OK;
}

void sfc_step_free(struct sfc_step_fsm *s)
{
    free(s->slots);
    free(s->prepared);
    free(s->missing);
    free(s->sums);
    free(s->jobs);
    free(s->parked);
    for (int i = 0; i < 2; i++) {
        free(s->plans[i].labels);
        sfc_attempts_free(&s->attempts[i]);
    }
    sfc_step_map_free(&s->map);
    memset(s, 0, sizeof(*s));
}

int sfc_step_actions_init(struct sfc_step_actions *actions, const struct sfc_step_fsm *s,
                          struct sfc_error *err)
{
    struct sfc_step_actions n = {.capacity = (size_t)s->config.max_parked + 32};
    n.items = calloc(n.capacity, sizeof(*n.items));
    n.texts = calloc(n.capacity, sizeof(*n.texts));
    if (!n.items || !n.texts) {
        sfc_step_actions_free(&n);
        return sfc_fail(err, SFC_ENOMEM, "step actions");
    }
    *actions = n;
    return SFC_OK;
}

void sfc_step_actions_free(struct sfc_step_actions *actions)
{
    free(actions->items);
    free(actions->texts);
    memset(actions, 0, sizeof(*actions));
}

/* ---- actions */

struct sfc_step_action *sfc_step_emit(struct sfc_step_actions *out, enum sfc_step_action_type type,
                                      uint64_t token, enum sfc_step_event_type call)
{
    assert(out->count < out->capacity);
    struct sfc_step_action *a = &out->items[out->count++];
    memset(a, 0, sizeof(*a));
    a->type = type;
    a->token = token;
    a->call = call;
    a->text = "";
    return a;
}

void sfc_step_refuse(struct sfc_step_actions *out, uint64_t token, int code, const char *format,
                     ...)
{
    char *text = out->texts[out->count];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(*out->texts), format, args);
    va_end(args);
    struct sfc_step_action *a = sfc_step_emit(out, SFC_SA_FAIL, token, SFC_SE_CANCEL);
    a->code = code;
    a->text = text;
}

struct sfc_step_action *sfc_step_reply(struct sfc_step_fsm *s, struct sfc_step_actions *out,
                                       uint64_t token, enum sfc_step_event_type call)
{
    struct sfc_step_action *a = sfc_step_emit(out, SFC_SA_REPLY, token, call);
    a->step = s->applied;
    return a;
}

struct sfc_step_action *sfc_step_start(struct sfc_step_fsm *s, struct sfc_step_actions *out,
                                       enum sfc_job_kind kind, uint64_t token, uint64_t step,
                                       uint32_t slot)
{
    assert(s->job_count < s->job_capacity);
    struct sfc_step_job *job = &s->jobs[(s->job_head + s->job_count++) % s->job_capacity];
    *job = (struct sfc_step_job){.id = ++s->next_job,
                                 .kind = kind,
                                 .token = token,
                                 .step = step,
                                 .generation = (uint32_t)(step & 1),
                                 .slot = slot};
    struct sfc_step_action *a = sfc_step_emit(out, SFC_SA_START, token, SFC_SE_JOB_DONE);
    a->job = job->id;
    a->kind = kind;
    a->step = step;
    a->generation = job->generation;
    a->slot = slot;
    return a;
}

void sfc_step_park(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                   struct sfc_step_actions *out)
{
    if (s->parked_count == s->config.max_parked) {
        sfc_step_refuse(out, e->token, SFC_ELIMIT, "%u calls wait already: try again",
                        s->config.max_parked);
        return;
    }
    s->parked[s->parked_count++] = *e;
}

/* ---- checks; false: the call was refused */

bool sfc_step_check_run(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    if (e->run_id != s->config.run_id) {
        sfc_step_refuse(out, e->token, SFC_ESTALE, "run %llu, but this shard holds run %llu",
                        (ull)e->run_id, (ull)s->config.run_id);
        return false;
    }
    if (s->phase == SFC_STEP_FAILED) {
        sfc_step_refuse(out, e->token, s->failure_code, "%s", s->failure);
        return false;
    }
    return true;
}

bool sfc_step_check_map(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    if (e->map_version == s->config.map_version)
        return true;
    sfc_step_refuse(out, e->token, SFC_ESTALE, "map version %llu, but %llu is the present one",
                    (ull)e->map_version, (ull)s->config.map_version);
    return false;
}

bool sfc_step_check_round(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                          struct sfc_step_actions *out)
{
    int order = sfc_attempt_compare(e->round, s->round);
    if (order == 0)
        return true;
    sfc_step_refuse(out, e->token, order < 0 ? SFC_ESTALE : SFC_ESTATE,
                    "round %llu.%llu, but %llu.%llu is the present one%s",
                    (ull)e->round.incarnation, (ull)e->round.counter, (ull)s->round.incarnation,
                    (ull)s->round.counter, order < 0 ? "" : ": Abort opens a round");
    return false;
}

static void on_event(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out);

void sfc_step_unpark(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    uint32_t n = s->parked_count;
    for (uint32_t i = 0; i < n; i++) {
        struct sfc_step_event e = s->parked[0];
        s->parked_count--;
        memmove(s->parked, s->parked + 1, s->parked_count * sizeof(*s->parked));
        on_event(s, &e, out);
    }
}

static void on_cancel(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    for (uint32_t i = 0; i < s->parked_count; i++) {
        if (s->parked[i].token != e->token)
            continue;
        s->parked_count--;
        memmove(&s->parked[i], &s->parked[i + 1], (s->parked_count - i) * sizeof(*s->parked));
        sfc_step_refuse(out, e->token, SFC_ECANCELED, "canceled by the caller");
        return;
    }
}

/* ---- ends of jobs */

static void break_down(struct sfc_step_fsm *s, const struct sfc_step_event *e, const char *what,
                       struct sfc_step_actions *out)
{
    s->phase = SFC_STEP_FAILED;
    s->failure_code = e->code;
    snprintf(s->failure, sizeof(s->failure), "%s of step %llu failed: %.200s", what,
             (ull)s->applied + 1, e->text ? e->text : sfc_status_text(e->code));
    uint64_t tokens[] = {s->prepare_token, s->commit_token, s->map_token};
    for (int i = 0; i < 3; i++)
        if (tokens[i] != 0)
            sfc_step_refuse(out, tokens[i], e->code, "%s", s->failure);
    s->prepare_token = s->commit_token = s->map_token = 0;
}

static void plan_done(struct sfc_step_fsm *s, const struct sfc_step_job *job,
                      const struct sfc_step_event *e, struct sfc_step_actions *out)
{
    if (job->stale || s->phase == SFC_STEP_FAILED)
        return;
    if (e->code != SFC_OK)
        break_down(s, e, "the plan", out);
    else if (s->phase == SFC_STEP_SAMPLING && job->step == s->applied + 1)
        s->phase = SFC_STEP_OPEN;
}

static void prepare_done(struct sfc_step_fsm *s, const struct sfc_step_job *job,
                         const struct sfc_step_event *e, struct sfc_step_actions *out)
{
    if (job->stale || s->phase == SFC_STEP_FAILED)
        return;
    if (e->code != SFC_OK) {
        break_down(s, e, "Prepare", out);
        return;
    }
    if (s->config.dense_blocks > 0)
        memcpy(s->sums, e->sums, s->config.dense_blocks * sizeof(*s->sums));
    s->head_finite = e->head_finite;
    sfc_step_flush(s, out);
}

static void commit_done(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    if (e->code != SFC_OK) {
        break_down(s, e, "Commit", out);
        return;
    }
    s->applied++;
    sfc_step_plan_of(s, s->applied)->step = 0;
    s->phase = SFC_STEP_IDLE;
    sfc_step_reply(s, out, s->commit_token, SFC_SE_COMMIT);
    s->commit_token = 0;
    sfc_step_start_plan(s, out);
}

static void map_done(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out)
{
    if (e->code != SFC_OK)
        break_down(s, e, "the change of blocks before the plan", out);
    else
        sfc_step_mapped(s, out);
}

static void call_done(struct sfc_step_fsm *s, const struct sfc_step_job *job,
                      const struct sfc_step_event *e, struct sfc_step_actions *out)
{
    static const enum sfc_step_event_type types[] = {SFC_SE_LOGITS, SFC_SE_GRADIENT, SFC_SE_DENSE};
    enum sfc_call call = (enum sfc_call)(job->kind - SFC_JOB_LOGITS);
    struct sfc_slot *sl = &s->attempts[job->generation].slots[job->slot];
    bool ok = e->code == SFC_OK;
    sl->state[call] = ok ? SFC_CALL_DONE : SFC_CALL_NONE;
    if (sl->dead) {
        sl->used = sfc_slot_running(sl);
        sl->dead = sl->used;
        sfc_step_refuse(out, job->token, SFC_ESTALE,
                        "%s of step %llu micro-batch %u: the step was aborted",
                        sfc_call_names[call], (ull)job->step, sl->j);
        return;
    }
    if (!ok) {
        sfc_step_refuse(out, job->token, e->code, "%s",
                        e->text ? e->text : sfc_status_text(e->code));
        return;
    }
    if (call == SFC_CALL_GRADIENT)
        sl->head_digest = e->head_digest;
    if (call == SFC_CALL_DENSE)
        memcpy(sl->dense_digests, e->dense_digests,
               s->config.dense_blocks * sizeof(*sl->dense_digests));
    struct sfc_step_action *a = sfc_step_reply(s, out, job->token, types[call]);
    a->step = job->step;
    a->generation = job->generation;
    a->slot = job->slot;
    a->j = sl->j;
}

static void on_job_done(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    assert(s->job_count > 0 && s->jobs[s->job_head].id == e->job);
    struct sfc_step_job job = s->jobs[s->job_head];
    s->job_head = (s->job_head + 1) % s->job_capacity;
    s->job_count--;
    switch (job.kind) {
    case SFC_JOB_PLAN:
        plan_done(s, &job, e, out);
        break;
    case SFC_JOB_PREPARE:
        prepare_done(s, &job, e, out);
        break;
    case SFC_JOB_COMMIT:
        commit_done(s, e, out);
        break;
    case SFC_JOB_MAP:
        map_done(s, e, out);
        break;
    case SFC_JOB_PULL:
        if (e->code == SFC_OK)
            sfc_step_reply(s, out, job.token, SFC_SE_PULL)->step = job.step;
        else
            sfc_step_refuse(out, job.token, e->code, "%s",
                            e->text ? e->text : sfc_status_text(e->code));
        break;
    default:
        call_done(s, &job, e, out);
        break;
    }
    sfc_step_unpark(s, out);
}

static void on_event(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out)
{
    switch (e->type) {
    case SFC_SE_PLAN:
        sfc_step_on_plan(s, e, out);
        return;
    case SFC_SE_LOGITS:
    case SFC_SE_GRADIENT:
    case SFC_SE_DENSE:
        sfc_step_on_call(s, e, out);
        return;
    case SFC_SE_PREPARE:
        sfc_step_on_prepare(s, e, out);
        return;
    case SFC_SE_COMMIT:
        sfc_step_on_commit(s, e, out);
        return;
    case SFC_SE_ABORT:
        sfc_step_on_abort(s, e, out);
        return;
    case SFC_SE_PULL:
        sfc_step_on_pull(s, e, out);
        return;
    case SFC_SE_MAP:
        sfc_step_on_map(s, e, out);
        return;
    case SFC_SE_CANCEL:
        on_cancel(s, e, out);
        return;
    case SFC_SE_JOB_DONE:
        on_job_done(s, e, out);
        return;
    case SFC_SE_FLUSHED:
        sfc_step_on_flushed(s, e, out);
        sfc_step_unpark(s, out);
        return;
    }
}

void sfc_step_step(struct sfc_step_fsm *s, const struct sfc_step_event *event,
                   struct sfc_step_actions *actions)
{
    actions->count = 0;
    on_event(s, event, actions);
}

struct sfc_attempt sfc_step_newest_round(const struct sfc_step_fsm *s)
{
    return sfc_attempt_compare(s->asked, s->round) > 0 ? s->asked : s->round;
}

/* The scheduler never asks for two steps in one round: of the present round, for a step that is
 * over, it is a late one. One that succeeded in this round is a copy: the scheduler may count on
 * the open run already, and would not ask again for one that a copy closed, also when the disk has
 * failed meanwhile. Prepare says that. */
enum sfc_step_open sfc_step_opens(struct sfc_step_fsm *s, struct sfc_attempt round, bool recover,
                                  uint64_t step)
{
    bool committing = s->phase == SFC_STEP_COMMITTING;         /* nothing stops it */
    bool prepared = step != 0 && sfc_step_prepared(s) == step; /* a Commit brings it there */
    bool elsewhere = recover && !prepared && (s->applied != step || committing);
    int order = sfc_attempt_compare(round, sfc_step_newest_round(s));
#if SFC_PLANT_BUG == 11 /* a late OpenRun of a round that was given up is taken */
    order = 1;
#endif
    if (order < 0 || (order == 0 && elsewhere))
        return SFC_STEP_OPEN_STALE;
    if (elsewhere)
        return SFC_STEP_OPEN_ANEW;
    if (sfc_attempt_compare(round, s->answered) == 0)
        return SFC_STEP_OPEN_ANSWERED;
    s->asked = round;
    s->asked_step = step;
    return SFC_STEP_OPEN_HERE;
}

void sfc_step_opened(struct sfc_step_fsm *s)
{
    s->answered = sfc_step_newest_round(s);
}

uint64_t sfc_step_applied(const struct sfc_step_fsm *s)
{
    return s->applied;
}

uint64_t sfc_step_prepared(const struct sfc_step_fsm *s)
{
    return s->phase == SFC_STEP_READY || s->phase == SFC_STEP_COMMITTING ? s->applied + 1 : 0;
}

const uint64_t *sfc_step_labels(const struct sfc_step_fsm *s, uint64_t step)
{
    const struct sfc_step_plan *plan = &s->plans[step & 1];
    return plan->step == step && step != 0 ? plan->labels : NULL;
}

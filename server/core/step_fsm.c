#include "server/core/step_fsm.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

static const char *const phase_names[] = {
    [SFC_STEP_IDLE] = "idle",     [SFC_STEP_SAMPLING] = "sampling",
    [SFC_STEP_OPEN] = "open",     [SFC_STEP_PREPARING] = "preparing",
    [SFC_STEP_READY] = "ready",   [SFC_STEP_COMMITTING] = "committing",
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
    n.round.incarnation = c->incarnation;
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

static struct sfc_step_action *emit(struct sfc_step_actions *out, enum sfc_step_action_type type,
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

static void fail(struct sfc_step_actions *out, uint64_t token, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void fail(struct sfc_step_actions *out, uint64_t token, int code, const char *format, ...)
{
    char *text = out->texts[out->count];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(*out->texts), format, args);
    va_end(args);
    struct sfc_step_action *a = emit(out, SFC_SA_FAIL, token, SFC_SE_CANCEL);
    a->code = code;
    a->text = text;
}

static struct sfc_step_action *reply(struct sfc_step_fsm *s, struct sfc_step_actions *out,
                                     uint64_t token, enum sfc_step_event_type call)
{
    struct sfc_step_action *a = emit(out, SFC_SA_REPLY, token, call);
    a->step = s->applied;
    return a;
}

static struct sfc_step_action *start(struct sfc_step_fsm *s, struct sfc_step_actions *out,
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
    struct sfc_step_action *a = emit(out, SFC_SA_START, token, SFC_SE_JOB_DONE);
    a->job = job->id;
    a->kind = kind;
    a->step = step;
    a->generation = job->generation;
    a->slot = slot;
    return a;
}

static void park(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                 struct sfc_step_actions *out)
{
    if (s->parked_count == s->config.max_parked) {
        fail(out, e->token, SFC_ELIMIT, "%u calls wait already: try again", s->config.max_parked);
        return;
    }
    s->parked[s->parked_count++] = *e;
}

/* ---- checks; false: the call was refused */

static bool check_run(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    if (e->run_id != s->config.run_id) {
        fail(out, e->token, SFC_ESTALE, "run %llu, but this shard holds run %llu", (ull)e->run_id,
             (ull)s->config.run_id);
        return false;
    }
    if (s->phase == SFC_STEP_FAILED) {
        fail(out, e->token, s->failure_code, "%s", s->failure);
        return false;
    }
    return true;
}

static bool check_map(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    if (e->map_version == s->config.map_version)
        return true;
    fail(out, e->token, SFC_ESTALE, "map version %llu, but %llu is the present one",
         (ull)e->map_version, (ull)s->config.map_version);
    return false;
}

static bool check_round(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    int order = sfc_attempt_compare(e->round, s->round);
    if (order == 0)
        return true;
    fail(out, e->token, order < 0 ? SFC_ESTALE : SFC_ESTATE,
         "round %llu.%llu, but %llu.%llu is the present one%s", (ull)e->round.incarnation,
         (ull)e->round.counter, (ull)s->round.incarnation, (ull)s->round.counter,
         order < 0 ? "" : ": Abort opens a round");
    return false;
}

/* ---- plan */

static struct sfc_step_plan *plan_of(struct sfc_step_fsm *s, uint64_t step)
{
    return &s->plans[step & 1];
}

static void start_plan(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    uint64_t step = s->applied + 1;
    if (s->phase != SFC_STEP_IDLE || plan_of(s, step)->step != step)
        return;
#if SFC_PLANT_BUG == 1 /* sampled early already: goes on with what was gathered before the commit  \
                        */
    if (s->attempts[step & 1].step == step) {
        s->phase = SFC_STEP_OPEN;
        return;
    }
#endif
    s->phase = SFC_STEP_SAMPLING;
    sfc_attempts_reset(&s->attempts[step & 1], step);
    start(s, out, SFC_JOB_PLAN, 0, step, 0);
}

static bool same_plan(const struct sfc_step_fsm *s, const struct sfc_step_plan *plan,
                      const struct sfc_step_event *e)
{
    return plan->lr == e->lr &&
           memcmp(plan->labels, e->labels, s->config.global_batch * sizeof(*e->labels)) == 0;
}

static void on_plan(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                    struct sfc_step_actions *out)
{
    if (!check_run(s, e, out) || !check_round(s, e, out) || !check_map(s, e, out))
        return;
    if (e->count != s->config.global_batch) {
        fail(out, e->token, SFC_EINVAL, "plan of step %llu: %u labels for a batch of %u",
             (ull)e->step, e->count, s->config.global_batch);
        return;
    }
    if (e->step > s->applied + 2) {
        fail(out, e->token, SFC_ESTATE, "plan of step %llu, but step %llu is applied", (ull)e->step,
             (ull)s->applied);
        return;
    }
    struct sfc_step_plan *plan = plan_of(s, e->step);
    bool known = plan->step == e->step;
    if (e->step > s->applied && known && !same_plan(s, plan, e)) {
        fail(out, e->token, SFC_ECONFLICT, "plan of step %llu again with other labels or rate",
             (ull)e->step);
        return;
    }
    if (e->step > s->applied && !known) {
        plan->step = e->step;
        plan->lr = e->lr;
        memcpy(plan->labels, e->labels, s->config.global_batch * sizeof(*e->labels));
#if SFC_PLANT_BUG == 1
        if (e->step == s->applied + 2) {
            sfc_attempts_reset(&s->attempts[e->step & 1], e->step);
            start(s, out, SFC_JOB_PLAN, 0, e->step, 0);
        }
#endif
    }
    start_plan(s, out);
    reply(s, out, e->token, e->type);
}

/* ---- calls of workers */

static enum sfc_call call_of(enum sfc_step_event_type type)
{
    return type == SFC_SE_LOGITS     ? SFC_CALL_LOGITS
           : type == SFC_SE_GRADIENT ? SFC_CALL_GRADIENT
                                     : SFC_CALL_DENSE;
}

/* A repeat of a call that ran: its answer, or a conflict. */
static void repeat(struct sfc_step_fsm *s, const struct sfc_step_event *e, uint32_t slot,
                   struct sfc_step_actions *out)
{
    enum sfc_call call = call_of(e->type);
    if (s->attempts[e->step & 1].slots[slot].digest[call] != e->digest) {
        fail(out, e->token, SFC_ECONFLICT,
             "%s of step %llu micro-batch %u attempt %llu.%llu again with another body",
             sfc_call_names[call], (ull)e->step, e->j, (ull)e->attempt.incarnation,
             (ull)e->attempt.counter);
        return;
    }
    struct sfc_step_action *a = reply(s, out, e->token, e->type);
    a->step = e->step;
    a->generation = (uint32_t)(e->step & 1);
    a->slot = slot;
    a->j = e->j;
}

static void refuse_attempt(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                           const char *why, struct sfc_step_actions *out)
{
    fail(out, e->token, SFC_ESTALE,
         "%s of step %llu micro-batch %u attempt %llu.%llu: %s (step "
         "%llu is applied, round %llu.%llu)",
         sfc_call_names[call_of(e->type)], (ull)e->step, e->j, (ull)e->attempt.incarnation,
         (ull)e->attempt.counter, why, (ull)s->applied, (ull)s->round.incarnation,
         (ull)s->round.counter);
}

static void run_call(struct sfc_step_fsm *s, const struct sfc_step_event *e, uint32_t slot,
                     struct sfc_step_actions *out)
{
    static const enum sfc_job_kind kinds[] = {SFC_JOB_LOGITS, SFC_JOB_GRADIENT, SFC_JOB_DENSE};
    enum sfc_call call = call_of(e->type);
    struct sfc_slot *sl = &s->attempts[e->step & 1].slots[slot];
    if (call == SFC_CALL_GRADIENT && sl->state[SFC_CALL_LOGITS] != SFC_CALL_DONE) {
        if (sl->state[SFC_CALL_LOGITS] == SFC_CALL_RUNNING)
            park(s, e, out);
        else
            fail(out, e->token, SFC_ESTATE, "Gradient of step %llu micro-batch %u before Logits",
                 (ull)e->step, e->j);
        return;
    }
    sl->state[call] = SFC_CALL_RUNNING;
    sl->digest[call] = e->digest;
    start(s, out, kinds[call], e->token, e->step, slot)->j = e->j;
}

/* A call of the step that is open. */
static void open_call(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    struct sfc_attempts *table = &s->attempts[e->step & 1];
    enum sfc_call call = call_of(e->type);
    uint32_t slot = sfc_attempts_find(table, e->j, e->attempt);
    bool busy = false;
    if (slot == UINT32_MAX && call == SFC_CALL_GRADIENT) {
        refuse_attempt(s, e, "not here: evicted or never begun", out);
        return;
    }
    if (slot == UINT32_MAX)
        slot = sfc_attempts_take(table, e->j, e->attempt, &busy);
    if (slot == UINT32_MAX) {
        if (busy)
            park(s, e, out);
        else
            refuse_attempt(s, e, "newer attempts took its place", out);
        return;
    }
    const struct sfc_slot *sl = &table->slots[slot];
    if (sl->state[call] == SFC_CALL_NONE)
        run_call(s, e, slot, out);
    else if (sl->state[call] == SFC_CALL_RUNNING && sl->digest[call] == e->digest)
        park(s, e, out); /* the same call again: waits for the job's answer */
    else
        repeat(s, e, slot, out);
}

/* A call of a step that takes no new work: only repeats of what ran. */
static void closed_call(struct sfc_step_fsm *s, const struct sfc_step_event *e, const char *why,
                        struct sfc_step_actions *out)
{
    struct sfc_attempts *table = &s->attempts[e->step & 1];
    uint32_t slot =
        table->step == e->step ? sfc_attempts_find(table, e->j, e->attempt) : UINT32_MAX;
    if (slot != UINT32_MAX && table->slots[slot].state[call_of(e->type)] == SFC_CALL_DONE)
        repeat(s, e, slot, out);
    else
        refuse_attempt(s, e, why, out);
}

static void on_call(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                    struct sfc_step_actions *out)
{
    if (!check_run(s, e, out) || !check_map(s, e, out))
        return;
    if (e->j >= s->micro_batches) {
        fail(out, e->token, SFC_EINVAL, "micro-batch %u; the run has %u", e->j, s->micro_batches);
        return;
    }
    if (e->type == SFC_SE_DENSE && s->config.dense_blocks == 0) {
        reply(s, out, e->token, e->type);
        return;
    }
    if (e->step <= s->applied) {
        closed_call(s, e, "the step is applied", out);
        return;
    }
    if (sfc_attempt_compare(e->attempt, s->round) <= 0 ||
        e->attempt.incarnation != s->round.incarnation) {
        refuse_attempt(s, e, "the attempt is void", out);
        return;
    }
    if (e->step > s->applied + 2) {
        refuse_attempt(s, e, "the step is too early", out);
        return;
    }
#if SFC_PLANT_BUG == 1 /* values gathered before the commit */
    if (e->step == s->applied + 2 && plan_of(s, e->step)->step == e->step) {
        open_call(s, e, out);
        return;
    }
#endif
    if (e->step == s->applied + 2 || s->phase == SFC_STEP_IDLE || s->phase == SFC_STEP_SAMPLING)
        park(s, e, out); /* until the commit or the plan is here */
    else if (s->phase == SFC_STEP_OPEN)
        open_call(s, e, out);
    else
        closed_call(s, e, "the step is prepared with other attempts", out);
}

static void on_pull(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                    struct sfc_step_actions *out)
{
    if (!check_run(s, e, out) || !check_map(s, e, out))
        return;
    bool committing = s->phase == SFC_STEP_COMMITTING;
    if (e->step == s->applied + 1 || (e->step == s->applied && committing)) {
        park(s, e, out);
        return;
    }
    if (e->step != s->applied) {
        fail(out, e->token, e->step < s->applied ? SFC_ESTALE : SFC_ESTATE,
             "values after step %llu, but step %llu is applied", (ull)e->step, (ull)s->applied);
        return;
    }
    if (s->job_count + 64 >= s->job_capacity) {
        fail(out, e->token, SFC_ELIMIT, "%u jobs wait already: try again", s->job_count);
        return;
    }
    start(s, out, SFC_JOB_PULL, e->token, e->step, 0);
}

/* ---- prepare, commit, abort */

static bool matches(const struct sfc_step_fsm *s, const struct sfc_slot *slot,
                    const struct sfc_prepared *p)
{
    size_t dense = s->config.dense_blocks * sizeof(*slot->dense_digests);
    return sfc_slot_complete(slot, s->config.dense_blocks) &&
           memcmp(&slot->head_digest, &p->head_digest, sizeof(p->head_digest)) == 0 &&
           (dense == 0 || memcmp(slot->dense_digests, p->dense_digests, dense) == 0);
}

/* Fills slots[] and missing[]; returns the number of missing ones. */
static uint32_t choose_slots(struct sfc_step_fsm *s, const struct sfc_step_event *e)
{
    struct sfc_attempts *table = &s->attempts[e->step & 1];
    uint32_t missing = 0;
    bool open = s->phase == SFC_STEP_OPEN;
    for (uint32_t j = 0; j < s->micro_batches; j++) {
        uint32_t slot = UINT32_MAX;
        if (open)
            slot = sfc_attempts_find(table, j, e->prepared[j].attempt);
        bool ok = slot != UINT32_MAX && matches(s, &table->slots[slot], &e->prepared[j]);
#if SFC_PLANT_BUG == 2 /* attempts mixed between shards: takes any complete attempt */
        for (uint32_t i = 0; open && i < table->slot_count; i++)
            if (table->slots[i].j == j &&
                sfc_slot_complete(&table->slots[i], s->config.dense_blocks)) {
                slot = i;
                ok = true;
                break;
            }
#endif
        if (ok)
            s->slots[j] = slot;
        else
            s->missing[missing++] = j;
    }
    return missing;
}

static void reply_prepare(struct sfc_step_fsm *s, uint64_t token, uint32_t missing,
                          struct sfc_step_actions *out)
{
    struct sfc_step_action *a = emit(out, SFC_SA_REPLY_PREPARE, token, SFC_SE_PREPARE);
    a->step = s->applied + 1;
    a->ready = missing == 0;
    a->missing = s->missing;
    a->missing_count = missing;
    a->sums = s->sums;
    a->head_finite = s->head_finite;
}

static bool same_prepare(const struct sfc_step_fsm *s, const struct sfc_step_event *e)
{
    for (uint32_t j = 0; j < s->micro_batches; j++)
        if (sfc_attempt_compare(s->prepared[j], e->prepared[j].attempt) != 0)
            return false;
    return true;
}

/* A call takes the place of the one that waits for the same job. */
static void supersede(uint64_t *waiting, uint64_t token, struct sfc_step_actions *out)
{
    if (*waiting != 0)
        fail(out, *waiting, SFC_EUNAVAILABLE, "the same call came again; that one is answered");
    *waiting = token;
}

static void on_prepare(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                       struct sfc_step_actions *out)
{
    if (!check_run(s, e, out) || !check_round(s, e, out))
        return;
    if (e->step != s->applied + 1) {
        fail(out, e->token, e->step <= s->applied ? SFC_ESTALE : SFC_ESTATE,
             "Prepare of step %llu, but step %llu is applied", (ull)e->step, (ull)s->applied);
        return;
    }
    if (e->prepared_count != s->micro_batches) {
        fail(out, e->token, SFC_EINVAL, "Prepare of step %llu names %u of %u micro-batches",
             (ull)e->step, e->prepared_count, s->micro_batches);
        return;
    }
    if (s->phase >= SFC_STEP_PREPARING) {
        if (!same_prepare(s, e))
            fail(out, e->token, SFC_ECONFLICT, "Prepare of step %llu again with other attempts",
                 (ull)e->step);
        else if (s->phase == SFC_STEP_PREPARING)
            supersede(&s->prepare_token, e->token, out);
        else
            reply_prepare(s, e->token, 0, out);
        return;
    }
    uint32_t missing = choose_slots(s, e);
    if (missing > 0) {
        reply_prepare(s, e->token, missing, out);
        return;
    }
    for (uint32_t j = 0; j < s->micro_batches; j++)
        s->prepared[j] = e->prepared[j].attempt;
    s->phase = SFC_STEP_PREPARING;
    s->prepare_token = e->token;
    start(s, out, SFC_JOB_PREPARE, 0, e->step, 0)->slots = s->slots;
}

static void on_commit(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    if (!check_run(s, e, out))
        return;
    if (e->incarnation < s->round.incarnation) {
        fail(out, e->token, SFC_ESTALE, "Commit from incarnation %llu, but %llu is the present one",
             (ull)e->incarnation, (ull)s->round.incarnation);
        return;
    }
    if (e->step <= s->applied) {
        reply(s, out, e->token, e->type);
        return;
    }
    bool prepared = s->phase == SFC_STEP_READY || s->phase == SFC_STEP_COMMITTING;
    if (e->step != s->applied + 1 || !prepared || sfc_attempt_compare(e->round, s->round) != 0) {
        fail(out, e->token, SFC_ESTATE,
             "Commit of step %llu round %llu.%llu, but step %llu is applied and the next is %s in "
             "round %llu.%llu",
             (ull)e->step, (ull)e->round.incarnation, (ull)e->round.counter, (ull)s->applied,
             phase_names[s->phase], (ull)s->round.incarnation, (ull)s->round.counter);
        return;
    }
    if (s->phase == SFC_STEP_COMMITTING) {
        supersede(&s->commit_token, e->token, out);
        return;
    }
    if (!isfinite(e->clip_scale) || e->clip_scale < 0) {
        fail(out, e->token, SFC_EINVAL, "Commit of step %llu: clip scale %g", (ull)e->step,
             e->clip_scale);
        return;
    }
    s->phase = SFC_STEP_COMMITTING;
    s->commit_token = e->token;
    struct sfc_step_action *a = start(s, out, SFC_JOB_COMMIT, 0, e->step, 0);
    a->slots = s->slots;
    a->lr = plan_of(s, e->step)->lr;
    a->clip_scale = e->clip_scale;
    a->apply = e->apply;
}

/* Calls that waited are looked at again; those that can't go on yet wait on, in order. */
static void on_event(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out);

static void unpark(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    uint32_t n = s->parked_count;
    for (uint32_t i = 0; i < n; i++) {
        struct sfc_step_event e = s->parked[0];
        s->parked_count--;
        memmove(s->parked, s->parked + 1, s->parked_count * sizeof(*s->parked));
        on_event(s, &e, out);
    }
}

static void on_abort(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out)
{
    if (!check_run(s, e, out))
        return;
    int order = sfc_attempt_compare(e->round, s->round);
    if (order == 0) {
        reply(s, out, e->token, e->type);
        return;
    }
    if (order < 0) {
        check_round(s, e, out);
        return;
    }
    if (s->phase == SFC_STEP_COMMITTING || s->job_count + 32 >= s->job_capacity) {
        fail(out, e->token, SFC_EUNAVAILABLE, "busy: try again");
        return;
    }
    if (e->step != s->applied + 1) {
        fail(out, e->token, SFC_ESTATE, "Abort of step %llu, but step %llu is applied",
             (ull)e->step, (ull)s->applied);
        return;
    }
    s->round = e->round;
    s->phase = SFC_STEP_IDLE;
    s->plans[0].step = 0;
    s->plans[1].step = 0;
    sfc_attempts_reset(&s->attempts[e->step & 1], 0);
    for (uint32_t i = 0; i < s->job_count; i++) {
        struct sfc_step_job *job = &s->jobs[(s->job_head + i) % s->job_capacity];
        job->stale = job->stale || job->kind == SFC_JOB_PLAN || job->kind == SFC_JOB_PREPARE;
    }
    if (s->prepare_token != 0)
        fail(out, s->prepare_token, SFC_ESTALE, "the step was aborted");
    s->prepare_token = 0;
    reply(s, out, e->token, e->type);
    unpark(s, out);
}

static void on_cancel(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    for (uint32_t i = 0; i < s->parked_count; i++) {
        if (s->parked[i].token != e->token)
            continue;
        s->parked_count--;
        memmove(&s->parked[i], &s->parked[i + 1], (s->parked_count - i) * sizeof(*s->parked));
        fail(out, e->token, SFC_ECANCELED, "canceled by the caller");
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
    uint64_t tokens[] = {s->prepare_token, s->commit_token};
    for (int i = 0; i < 2; i++)
        if (tokens[i] != 0)
            fail(out, tokens[i], e->code, "%s", s->failure);
    s->prepare_token = 0;
    s->commit_token = 0;
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
    s->phase = SFC_STEP_READY;
    reply_prepare(s, s->prepare_token, 0, out);
    s->prepare_token = 0;
}

static void commit_done(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    if (e->code != SFC_OK) {
        break_down(s, e, "Commit", out);
        return;
    }
    s->applied++;
    plan_of(s, s->applied)->step = 0;
    s->phase = SFC_STEP_IDLE;
    reply(s, out, s->commit_token, SFC_SE_COMMIT);
    s->commit_token = 0;
    start_plan(s, out);
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
        fail(out, job->token, SFC_ESTALE, "%s of step %llu micro-batch %u: the step was aborted",
             sfc_call_names[call], (ull)job->step, sl->j);
        return;
    }
    if (!ok) {
        fail(out, job->token, e->code, "%s", e->text ? e->text : sfc_status_text(e->code));
        return;
    }
    if (call == SFC_CALL_GRADIENT)
        sl->head_digest = e->head_digest;
    if (call == SFC_CALL_DENSE)
        memcpy(sl->dense_digests, e->dense_digests,
               s->config.dense_blocks * sizeof(*sl->dense_digests));
    struct sfc_step_action *a = reply(s, out, job->token, types[call]);
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
    case SFC_JOB_PULL:
        if (e->code == SFC_OK)
            reply(s, out, job.token, SFC_SE_PULL)->step = job.step;
        else
            fail(out, job.token, e->code, "%s", e->text ? e->text : sfc_status_text(e->code));
        break;
    default:
        call_done(s, &job, e, out);
        break;
    }
    unpark(s, out);
}

static void on_event(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                     struct sfc_step_actions *out)
{
    switch (e->type) {
    case SFC_SE_PLAN:
        on_plan(s, e, out);
        return;
    case SFC_SE_LOGITS:
    case SFC_SE_GRADIENT:
    case SFC_SE_DENSE:
        on_call(s, e, out);
        return;
    case SFC_SE_PREPARE:
        on_prepare(s, e, out);
        return;
    case SFC_SE_COMMIT:
        on_commit(s, e, out);
        return;
    case SFC_SE_ABORT:
        on_abort(s, e, out);
        return;
    case SFC_SE_PULL:
        on_pull(s, e, out);
        return;
    case SFC_SE_CANCEL:
        on_cancel(s, e, out);
        return;
    case SFC_SE_JOB_DONE:
        on_job_done(s, e, out);
        return;
    }
}

void sfc_step_step(struct sfc_step_fsm *s, const struct sfc_step_event *event,
                   struct sfc_step_actions *actions)
{
    actions->count = 0;
    on_event(s, event, actions);
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

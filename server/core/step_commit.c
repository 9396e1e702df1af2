/* The shard's machine: Plan, Prepare, Commit and Abort of the scheduler. */
#include <math.h>
#include <string.h>

#include "server/core/step_internal.h"

/* ---- plan */

struct sfc_step_plan *sfc_step_plan_of(struct sfc_step_fsm *s, uint64_t step)
{
    return &s->plans[step & 1];
}

void sfc_step_start_plan(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    uint64_t step = s->applied + 1;
    if (s->phase != SFC_STEP_IDLE || sfc_step_plan_of(s, step)->step != step)
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
    sfc_step_start(s, out, SFC_JOB_PLAN, 0, step, 0);
}

static bool same_plan(const struct sfc_step_fsm *s, const struct sfc_step_plan *plan,
                      const struct sfc_step_event *e)
{
    return plan->lr == e->lr &&
           memcmp(plan->labels, e->labels, s->config.global_batch * sizeof(*e->labels)) == 0;
}

void sfc_step_on_plan(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    bool late = SFC_PLANT_BUG == 12 && sfc_attempt_compare(e->round, s->round) < 0; /* is taken */
    if (!sfc_step_check_run(s, e, out) || (!late && !sfc_step_check_round(s, e, out)) ||
        !sfc_step_check_map(s, e, out))
        return;
    if (e->count != s->config.global_batch) {
        sfc_step_refuse(out, e->token, SFC_EINVAL, "plan of step %llu: %u labels for a batch of %u",
                        (ull)e->step, e->count, s->config.global_batch);
        return;
    }
    if (e->step > s->applied + 2) {
        sfc_step_refuse(out, e->token, SFC_ESTATE, "plan of step %llu, but step %llu is applied",
                        (ull)e->step, (ull)s->applied);
        return;
    }
    struct sfc_step_plan *plan = sfc_step_plan_of(s, e->step);
    bool known = plan->step == e->step;
    if (e->step > s->applied && known && !same_plan(s, plan, e)) {
        sfc_step_refuse(out, e->token, SFC_ECONFLICT,
                        "plan of step %llu again with other labels or rate", (ull)e->step);
        return;
    }
    if (e->step > s->applied && !known) {
        plan->step = e->step;
        plan->lr = e->lr;
        memcpy(plan->labels, e->labels, s->config.global_batch * sizeof(*e->labels));
#if SFC_PLANT_BUG == 1
        if (e->step == s->applied + 2) {
            sfc_attempts_reset(&s->attempts[e->step & 1], e->step);
            sfc_step_start(s, out, SFC_JOB_PLAN, 0, e->step, 0);
        }
#endif
    }
    sfc_step_start_plan(s, out);
    sfc_step_reply(s, out, e->token, e->type);
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

void sfc_step_reply_prepare(struct sfc_step_fsm *s, uint64_t token, uint32_t missing,
                            struct sfc_step_actions *out)
{
    struct sfc_step_action *a = sfc_step_emit(out, SFC_SA_REPLY_PREPARE, token, SFC_SE_PREPARE);
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

void sfc_step_supersede(uint64_t *waiting, uint64_t token, struct sfc_step_actions *out)
{
    if (*waiting != 0)
        sfc_step_refuse(out, *waiting, SFC_EUNAVAILABLE,
                        "the same call came again; that one is answered");
    *waiting = token;
}

void sfc_step_on_prepare(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                         struct sfc_step_actions *out)
{
    if (!sfc_step_check_run(s, e, out) || !sfc_step_check_round(s, e, out))
        return;
    if (e->step != s->applied + 1) {
        sfc_step_refuse(out, e->token, e->step <= s->applied ? SFC_ESTALE : SFC_ESTATE,
                        "Prepare of step %llu, but step %llu is applied", (ull)e->step,
                        (ull)s->applied);
        return;
    }
    if (e->prepared_count != s->micro_batches) {
        sfc_step_refuse(out, e->token, SFC_EINVAL,
                        "Prepare of step %llu names %u of %u micro-batches", (ull)e->step,
                        e->prepared_count, s->micro_batches);
        return;
    }
    if (s->phase >= SFC_STEP_PREPARING) {
        if (!same_prepare(s, e))
            sfc_step_refuse(out, e->token, SFC_ECONFLICT,
                            "Prepare of step %llu again with other attempts", (ull)e->step);
        else if (s->phase == SFC_STEP_PREPARING || s->phase == SFC_STEP_FLUSHING)
            sfc_step_supersede(&s->prepare_token, e->token, out);
        else
            sfc_step_reply_prepare(s, e->token, 0, out);
        return;
    }
    uint32_t missing = choose_slots(s, e);
    if (missing > 0) {
        sfc_step_reply_prepare(s, e->token, missing, out);
        return;
    }
    for (uint32_t j = 0; j < s->micro_batches; j++)
        s->prepared[j] = e->prepared[j].attempt;
    s->phase = SFC_STEP_PREPARING;
    s->provisional = e->provisional;
    s->prepare_token = e->token;
    struct sfc_step_action *a = sfc_step_start(s, out, SFC_JOB_PREPARE, 0, e->step, 0);
    a->slots = s->slots;
    a->lr = sfc_step_plan_of(s, e->step)->lr;
}

void sfc_step_flush(struct sfc_step_fsm *s, struct sfc_step_actions *out)
{
    s->phase = SFC_STEP_FLUSHING;
    s->flushing = true;
    struct sfc_step_action *a = sfc_step_emit(out, SFC_SA_FLUSH, 0, SFC_SE_FLUSHED);
    a->step = s->applied + 1;
    a->round = s->round;
    a->generation = (uint32_t)(a->step & 1);
    a->slots = s->slots;
    a->lr = sfc_step_plan_of(s, a->step)->lr;
    a->provisional = s->provisional;
#if SFC_PLANT_BUG == 5 /* Ready before the inputs are durable */
    s->phase = SFC_STEP_READY;
    sfc_step_reply_prepare(s, s->prepare_token, 0, out);
    s->prepare_token = 0;
#endif
}

void sfc_step_on_flushed(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                         struct sfc_step_actions *out)
{
    s->flushing = false;
    if (s->phase != SFC_STEP_FLUSHING)
        return; /* the machine broke down meanwhile */
    uint64_t token = s->prepare_token;
    s->prepare_token = 0;
    s->phase = e->code == SFC_OK ? SFC_STEP_READY : SFC_STEP_OPEN;
    if (e->code == SFC_OK)
        sfc_step_reply_prepare(s, token, 0, out);
    else
        sfc_step_refuse(out, token, e->lost ? SFC_EIO : SFC_EUNAVAILABLE, "%s",
                        e->text ? e->text : sfc_status_text(e->code));
}

void sfc_step_on_commit(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                        struct sfc_step_actions *out)
{
    if (!sfc_step_check_run(s, e, out))
        return;
    if (e->incarnation < s->round.incarnation) {
        sfc_step_refuse(out, e->token, SFC_ESTALE,
                        "Commit from incarnation %llu, but %llu is the present one",
                        (ull)e->incarnation, (ull)s->round.incarnation);
        return;
    }
    if (e->step <= s->applied) {
        sfc_step_reply(s, out, e->token, e->type);
        return;
    }
    bool back = sfc_attempt_compare(s->asked, s->round) > 0 && e->step > s->asked_step;
    if (back && e->incarnation <= s->asked.incarnation) { /* a newer one has decided anew */
        sfc_step_refuse(out, e->token, SFC_ESTALE,
                        "Commit of step %llu, but the run has gone back to step %llu", (ull)e->step,
                        (ull)s->asked_step);
        return;
    }
    bool prepared = s->phase == SFC_STEP_READY || s->phase == SFC_STEP_COMMITTING;
    if (e->step != s->applied + 1 || !prepared || sfc_attempt_compare(e->round, s->round) != 0) {
        sfc_step_refuse(
            out, e->token, SFC_ESTATE,
            "Commit of step %llu round %llu.%llu, but step %llu is applied and the next is %s in "
            "round %llu.%llu",
            (ull)e->step, (ull)e->round.incarnation, (ull)e->round.counter, (ull)s->applied,
            sfc_step_phase_name(s->phase), (ull)s->round.incarnation, (ull)s->round.counter);
        return;
    }
    if (s->phase == SFC_STEP_COMMITTING) {
        sfc_step_supersede(&s->commit_token, e->token, out);
        return;
    }
    if (!isfinite(e->clip_scale) || e->clip_scale < 0) {
        sfc_step_refuse(out, e->token, SFC_EINVAL, "Commit of step %llu: clip scale %g",
                        (ull)e->step, e->clip_scale);
        return;
    }
    s->phase = SFC_STEP_COMMITTING;
    s->commit_token = e->token;
    struct sfc_step_action *a = sfc_step_start(s, out, SFC_JOB_COMMIT, 0, e->step, 0);
    a->slots = s->slots;
    a->round = s->round;
    a->lr = sfc_step_plan_of(s, e->step)->lr;
    a->clip_scale = e->clip_scale;
    a->apply = e->apply;
    a->provisional = s->provisional;
}

void sfc_step_new_round(struct sfc_step_fsm *s, struct sfc_attempt round,
                        struct sfc_step_actions *out)
{
    s->round = round;
    s->phase = SFC_STEP_IDLE;
    s->plans[0].step = 0;
    s->plans[1].step = 0;
    sfc_attempts_reset(&s->attempts[(s->applied + 1) & 1], 0);
    for (uint32_t i = 0; i < s->job_count; i++) {
        struct sfc_step_job *job = &s->jobs[(s->job_head + i) % s->job_capacity];
        job->stale = job->stale || job->kind == SFC_JOB_PLAN || job->kind == SFC_JOB_PREPARE;
    }
    if (s->prepare_token != 0)
        sfc_step_refuse(out, s->prepare_token, SFC_ESTALE, "the step was aborted");
    s->prepare_token = 0;
}

void sfc_step_on_abort(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                       struct sfc_step_actions *out)
{
    if (!sfc_step_check_run(s, e, out))
        return;
    int order = sfc_attempt_compare(e->round, s->round);
    if (order == 0) {
        sfc_step_reply(s, out, e->token, e->type);
        return;
    }
    if (order < 0) {
        sfc_step_check_round(s, e, out);
        return;
    }
    if (s->phase == SFC_STEP_COMMITTING || s->job_count + 32 >= s->job_capacity) {
        sfc_step_refuse(out, e->token, SFC_EUNAVAILABLE, "busy: try again");
        return;
    }
    if (e->step != s->applied + 1) {
        sfc_step_refuse(out, e->token, SFC_ESTATE, "Abort of step %llu, but step %llu is applied",
                        (ull)e->step, (ull)s->applied);
        return;
    }
    if (s->flushing || s->phase == SFC_STEP_MAPPING) {
        sfc_step_park(s, e, out); /* the log still reads what would be given up; blocks change */
        return;
    }
    sfc_step_new_round(s, e->round, out);
    sfc_step_reply(s, out, e->token, e->type);
    sfc_step_unpark(s, out);
}

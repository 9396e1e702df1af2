/* The shard's machine: calls of workers. */
#include <string.h>

#include "server/core/step_internal.h"

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
        sfc_step_refuse(out, e->token, SFC_ECONFLICT,
                        "%s of step %llu micro-batch %u attempt %llu.%llu again with another body",
                        sfc_call_names[call], (ull)e->step, e->j, (ull)e->attempt.incarnation,
                        (ull)e->attempt.counter);
        return;
    }
    struct sfc_step_action *a = sfc_step_reply(s, out, e->token, e->type);
    a->step = e->step;
    a->generation = (uint32_t)(e->step & 1);
    a->slot = slot;
    a->j = e->j;
}

static void refuse_attempt(const struct sfc_step_fsm *s, const struct sfc_step_event *e,
                           const char *why, struct sfc_step_actions *out)
{
    sfc_step_refuse(out, e->token, SFC_ESTALE,
                    "%s of step %llu micro-batch %u attempt %llu.%llu: %s (step "
                    "%llu is applied, round %llu.%llu)",
                    sfc_call_names[call_of(e->type)], (ull)e->step, e->j,
                    (ull)e->attempt.incarnation, (ull)e->attempt.counter, why, (ull)s->applied,
                    (ull)s->round.incarnation, (ull)s->round.counter);
}

static void run_call(struct sfc_step_fsm *s, const struct sfc_step_event *e, uint32_t slot,
                     struct sfc_step_actions *out)
{
    static const enum sfc_job_kind kinds[] = {SFC_JOB_LOGITS, SFC_JOB_GRADIENT, SFC_JOB_DENSE};
    enum sfc_call call = call_of(e->type);
    struct sfc_slot *sl = &s->attempts[e->step & 1].slots[slot];
    if (call == SFC_CALL_GRADIENT && sl->state[SFC_CALL_LOGITS] != SFC_CALL_DONE) {
        if (sl->state[SFC_CALL_LOGITS] == SFC_CALL_RUNNING)
            sfc_step_park(s, e, out);
        else
            sfc_step_refuse(out, e->token, SFC_ESTATE,
                            "Gradient of step %llu micro-batch %u before Logits", (ull)e->step,
                            e->j);
        return;
    }
    sl->state[call] = SFC_CALL_RUNNING;
    sl->digest[call] = e->digest;
    sfc_step_start(s, out, kinds[call], e->token, e->step, slot)->j = e->j;
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
            sfc_step_park(s, e, out);
        else
            refuse_attempt(s, e, "newer attempts took its place", out);
        return;
    }
    const struct sfc_slot *sl = &table->slots[slot];
    if (sl->state[call] == SFC_CALL_NONE)
        run_call(s, e, slot, out);
    else if (sl->state[call] == SFC_CALL_RUNNING && sl->digest[call] == e->digest)
        sfc_step_park(s, e, out); /* the same call again: waits for the job's answer */
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

/* Another shard may have the next map already, and its caller too: the call waits for SetMap. Not
 * so a dense gradient: its size was checked by the map of now, and grants of the next map come when
 * every shard has it. */
static bool is_of_next_map(const struct sfc_step_fsm *s, const struct sfc_step_event *e)
{
    return e->map_version == s->config.map_version + 1 && e->type != SFC_SE_DENSE &&
           SFC_PLANT_BUG != 25; /* bug 25: refused, like a call of any other map */
}

/* Run and map of a call; false: it was refused, or waits. */
static bool is_of_run_and_map(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                              struct sfc_step_actions *out)
{
    if (!sfc_step_check_run(s, e, out))
        return false;
    if (!is_of_next_map(s, e))
        return sfc_step_check_map(s, e, out);
    sfc_step_park(s, e, out);
    return false;
}

void sfc_step_on_call(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    if (!is_of_run_and_map(s, e, out))
        return;
    if (e->j >= s->micro_batches) {
        sfc_step_refuse(out, e->token, SFC_EINVAL, "micro-batch %u; the run has %u", e->j,
                        s->micro_batches);
        return;
    }
    if (e->type == SFC_SE_DENSE && s->config.dense_blocks == 0) {
        sfc_step_reply(s, out, e->token, e->type);
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
    if (e->step == s->applied + 2 && sfc_step_plan_of(s, e->step)->step == e->step) {
        open_call(s, e, out);
        return;
    }
#endif
    if (e->step == s->applied + 2 || s->phase == SFC_STEP_IDLE || s->phase == SFC_STEP_MAPPING ||
        s->phase == SFC_STEP_SAMPLING)
        sfc_step_park(s, e, out); /* until the commit or the plan is here */
    else if (s->phase == SFC_STEP_OPEN)
        open_call(s, e, out);
    else
        closed_call(s, e, "the step is prepared with other attempts", out);
}

void sfc_step_on_pull(struct sfc_step_fsm *s, const struct sfc_step_event *e,
                      struct sfc_step_actions *out)
{
    if (!is_of_run_and_map(s, e, out))
        return;
    const struct sfc_attempt none = {0, 0};
    if (sfc_attempt_compare(e->attempt, none) != 0 &&
        sfc_attempt_compare(e->attempt, s->round) <= 0) {
        sfc_step_refuse(out, e->token, SFC_ESTALE,
                        "values after step %llu: attempt %llu.%llu is void (step %llu is applied, "
                        "round %llu.%llu)",
                        (ull)e->step, (ull)e->attempt.incarnation, (ull)e->attempt.counter,
                        (ull)s->applied, (ull)s->round.incarnation, (ull)s->round.counter);
        return;
    }
    bool changing = s->phase == SFC_STEP_COMMITTING || s->phase == SFC_STEP_MAPPING;
    if (e->step == s->applied + 1 || (e->step == s->applied && changing)) {
        sfc_step_park(s, e, out);
        return;
    }
    if (e->step != s->applied) {
        sfc_step_refuse(out, e->token, e->step < s->applied ? SFC_ESTALE : SFC_ESTATE,
                        "values after step %llu, but step %llu is applied", (ull)e->step,
                        (ull)s->applied);
        return;
    }
    if (s->job_count + 64 >= s->job_capacity) {
        sfc_step_refuse(out, e->token, SFC_ELIMIT, "%u jobs wait already: try again", s->job_count);
        return;
    }
    sfc_step_start(s, out, SFC_JOB_PULL, e->token, e->step, 0);
}

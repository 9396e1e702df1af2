/* People set the learning rate of a run that lives. The change is made durable first, and counts
 * then: until that, the step from which it is to hold is neither planned nor prepared. What is
 * decided stays decided: a change that can't be written is written again until it is. */
#include <stdio.h>
#include <string.h>

#include "server/core/run_internal.h"

#define AGAIN_MS 500 /* until a change that could not be written is tried again */

bool sfc_run_lr_open(const struct sfc_run_fsm *run, uint64_t step)
{
    return run->set_lr.phase != SFC_SET_LR_NONE && step >= run->set_lr.change.from_step;
}

/* ---- the call */

static uint64_t last_planned(const struct sfc_run_fsm *run)
{
    const struct sfc_commit_fsm *c = &run->commit;
    return c->committed + c->plan_sent + c->next_plan_sent;
}

/* The first step that is not planned; while the run stands still for a person, or is about to, the
 * first one after that, whose plan can be made anew. A session would not survive that. */
static uint64_t first_step(const struct sfc_run_fsm *run)
{
    if (run->config.session || (!run->paused && !run->blocked))
        return last_planned(run) + 1;
    if (run->blocked)
        return run->commit.committed + sfc_run_busy(run) + 1;
    return sfc_run_first_stop(run) + 1;
}

static int check_from_step(struct sfc_run_fsm *run, uint64_t from)
{
    uint64_t committed = run->commit.committed;
    if (from <= committed + sfc_run_busy(run))
        return sfc_fail(&run->error, SFC_EINVAL,
                        "from step %llu: too late, the run is at step %llu", (ull)from,
                        (ull)(committed + sfc_run_busy(run)));
    if (run->config.session && from <= last_planned(run))
        return sfc_fail(&run->error, SFC_EINVAL,
                        "from step %llu: too late, the session has begun with it: from step %llu "
                        "on is possible",
                        (ull)from, (ull)last_planned(run) + 1);
    return SFC_OK;
}

static int check_call(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      const struct sfc_lr_change *change)
{
    if (run->set_lr.phase != SFC_SET_LR_NONE)
        return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                        "another change of the learning rate, from step %llu on, is being made "
                        "durable: try again",
                        (ull)run->set_lr.change.from_step);
    if (run->rewind.phase != SFC_REWIND_NONE)
        return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                        "a rewind to step %llu is at work: try again when it is done",
                        (ull)run->rewind.step);
    if (run->waiting_count == run->config.max_waiting)
        return sfc_fail(&run->error, SFC_ELIMIT, "too many waiting calls: try again");
    int rc = sfc_lr_change_check(change, &run->config.schedule, &run->error);
    if (rc == SFC_OK && e->step != 0)
        rc = check_from_step(run, e->step);
    return rc == SFC_OK ? sfc_lr_changes_room(&run->lr_changes, change, &run->error) : rc;
}

static void reply_set(struct sfc_run_actions *actions, uint64_t token,
                      const struct sfc_lr_change *change)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_LR);
    a->token = token;
    a->step = change->from_step;
    a->lr = change->lr;
}

/* There is at most one. */
static uint64_t end_waiting(struct sfc_run_fsm *run)
{
    for (uint32_t i = 0; i < run->waiting_count; i++) {
        uint64_t token = run->waiting[i].token;
        if (run->waiting[i].kind != SFC_WAITING_LR)
            continue;
        sfc_run_unwait(run, token);
        return token;
    }
    return 0;
}

static void write(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_WRITE_LR);
    a->step = run->set_lr.change.from_step;
    a->lr = run->set_lr.change.lr;
    run->set_lr.again_ms = 0;
}

void sfc_run_on_set_lr(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    const struct sfc_lr_change change = {e->step ? e->step : first_step(run), e->lr};
    if (check_call(run, e, &change) != SFC_OK) {
        sfc_run_reply(actions, e->token, run->error.code, run->error.text);
        return;
    }
    if (sfc_lr_changes_has(&run->lr_changes, &change)) {
        reply_set(actions, e->token, &change);
        return;
    }
    const struct sfc_waiting w = {.kind = SFC_WAITING_LR, .token = e->token, .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
    run->set_lr = (struct sfc_run_set_lr){.phase = SFC_SET_LR_WRITING, .change = change};
    write(run, actions);
#if SFC_PLANT_BUG == 16 /* it counts while it is on its way to the store */
    run->set_lr.phase = SFC_SET_LR_WRITTEN;
#endif
}

/* ---- its way */

void sfc_run_on_lr_written(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    struct sfc_run_set_lr *s = &run->set_lr;
    if (s->phase != SFC_SET_LR_WRITING || e->step != s->change.from_step)
        return;
    if (e->code == SFC_OK) {
        s->phase = SFC_SET_LR_WRITTEN;
        return;
    }
    s->again_ms = e->now_ms + AGAIN_MS;
    snprintf(s->error, sizeof(s->error), "%.255s", e->text ? e->text : "");
}

/* A plan with the rate of before is void, once nothing is on its way that it could mix with. */
void sfc_run_set_lr_advance(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_set_lr *s = &run->set_lr;
    if (s->phase != SFC_SET_LR_WRITTEN || sfc_run_busy(run))
        return;
    run->round_wanted = run->round_wanted || s->change.from_step <= last_planned(run);
    sfc_lr_changes_set(&run->lr_changes, &s->change);
    s->phase = SFC_SET_LR_NONE;
    uint64_t token = end_waiting(run);
    if (token != 0)
        reply_set(actions, token, &s->change);
}

void sfc_run_set_lr_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    if (run->set_lr.phase == SFC_SET_LR_WRITING && run->set_lr.again_ms != 0 &&
        now_ms >= run->set_lr.again_ms)
        write(run, actions);
}

bool sfc_run_waits_for_lr(const struct sfc_run_fsm *run, char *out, size_t size)
{
    const struct sfc_run_set_lr *s = &run->set_lr;
    if (s->phase != SFC_SET_LR_WRITING || !s->error[0])
        return false;
    snprintf(out, size, "the learning rate from step %llu on to be durable: %s",
             (ull)s->change.from_step, s->error);
    return true;
}

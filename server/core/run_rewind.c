/* A run goes back to an earlier step. First every shard is asked whether its disk leads there, and
 * reads what it would need: while one can't, none has given anything up, and the run goes on. Then
 * every shard goes there, by the way of a recovery, while the records of what came later are still
 * there: if one fails now, the run returns to where it was, by the same way. Only then the records
 * go, in one piece; that decides. What shards have on their disks of the later steps they give up
 * when the next plan comes. */
#include <stdio.h>
#include <string.h>

#include "server/core/run_internal.h"

#define REWIND_PAUSE_MS 500 /* until records that could not be removed are tried again */

bool sfc_run_rewinds(const struct sfc_run_fsm *run)
{
    return run->rewind.phase >= SFC_REWIND_MOVING;
}

bool sfc_run_returns(const struct sfc_run_fsm *run, uint64_t *step, struct sfc_attempt *last)
{
    *step = run->rewind.step;
    *last = run->rewind.given;
    return sfc_run_rewinds(run);
}

void sfc_run_go_to(struct sfc_run_fsm *run, uint64_t step, const struct sfc_commit_record *record)
{
    struct sfc_commit_fsm *c = &run->commit;
    c->committed = step;
    c->record = *record;
    memset(c->last_attempts, 0, c->config.micro_batches * sizeof(*c->last_attempts));
    run->moves.went_back = true;
    for (uint32_t k = 0; k < run->config.shards; k++) {
        if (!run->commit.member[k])
            continue;
#if SFC_PLANT_BUG == 13 /* only shards that were lost go back to the last durable step */
        if (run->rewind.phase != SFC_REWIND_MOVING && !run->shards[k].lost)
            continue;
#endif
        sfc_run_forget_life(&run->shards[k]);
        sfc_run_open_again(run, k);
    }
    sfc_run_new_round(run);
    run->round_wanted = false;
    run->finished = false;
}

static void unblock(struct sfc_run_fsm *run)
{
    run->blocked = false;
    run->blocked_before_restart = false;
    run->blocked_j = UINT32_MAX;
}

static void answer(struct sfc_run_fsm *run, int code, const char *text,
                   struct sfc_run_actions *actions)
{
    run->rewind.phase = SFC_REWIND_NONE;
    for (uint32_t i = 0; i < run->waiting_count; i++) {
        uint64_t token = run->waiting[i].token;
        if (run->waiting[i].kind != SFC_WAITING_REWIND)
            continue;
        sfc_run_unwait(run, token);
        sfc_run_reply(actions, token, code, text);
        return; /* there is at most one */
    }
}

void sfc_run_go_back(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    bool above = run->rewind.phase != SFC_REWIND_NONE && run->rewind.step > run->durable;
    if (run->rewind.phase == SFC_REWIND_MOVING || above) {
        sfc_commit_unwant(&run->commit, SFC_DUTY_CHECK);
        sfc_fail(&run->error, SFC_EUNAVAILABLE,
                 "a shard was lost on the way to step %llu, which was not durable; the run goes "
                 "back to its last durable step, %llu",
                 (ull)run->rewind.step, (ull)run->durable);
        answer(run, run->error.code, run->error.text, actions);
    }
    struct sfc_attempt given = run->commit.round;
    sfc_run_go_to(run, run->durable, &run->durable_record);
    sfc_tickets_reset(&run->tickets, run->durable + 1);
    sfc_run_apply_drops(run, run->durable + 1);
    unblock(run); /* the step that blocked it comes again */
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_FORGET_RECORDS);
    a->step = run->durable;
    a->round = given;
}

/* ---- the call */

static int may_rewind(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    uint64_t committed = run->commit.committed;
    if (run->rewind.phase != SFC_REWIND_NONE)
        return sfc_fail(&run->error, SFC_ESTATE, "a rewind to step %llu is at work",
                        (ull)run->rewind.step);
    if (sfc_run_loses(run))
        return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                        "shard %llu is being given up for lost: try again",
                        (ull)run->shards[run->moves.shard].id);
    if (run->restoring)
        return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                        "the scheduler has just restarted and waits for shards: try again");
    if (e->step > committed)
        return sfc_fail(&run->error, SFC_EINVAL,
                        "step %llu is above the last commit: the run is at step %llu", (ull)e->step,
                        (ull)committed);
    if (e->step < run->config.start_step)
        return sfc_fail(&run->error, SFC_EINVAL, "step %llu: the run began at step %llu",
                        (ull)e->step, (ull)run->config.start_step);
    if (e->step < e->oldest)
        return sfc_fail(&run->error, SFC_EINVAL,
                        "step %llu is too far back: what the shards keep leads to step %llu and "
                        "later ones (--rewind-window of `shardfc create` says how much they keep)",
                        (ull)e->step, (ull)e->oldest);
    if (run->waiting_count == run->config.max_waiting)
        return sfc_fail(&run->error, SFC_ELIMIT, "too many waiting calls: try again");
    return SFC_OK;
}

void sfc_run_on_rewind(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    if (may_rewind(run, e) != SFC_OK) {
        sfc_run_reply(actions, e->token, run->error.code, run->error.text);
        return;
    }
    const struct sfc_waiting w = {
        .kind = SFC_WAITING_REWIND, .token = e->token, .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
    run->rewind = (struct sfc_run_rewind){.phase = SFC_REWIND_WANTED, .step = e->step};
}

/* ---- its way */

void sfc_run_on_record_read(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                            struct sfc_run_actions *actions)
{
    if (sfc_run_ended(run) || run->rewind.phase != SFC_REWIND_READING ||
        e->step != run->rewind.step)
        return;
    if (e->code != SFC_OK || !e->record) {
        sfc_fail(&run->error, e->code, "the commit record of step %llu can't be read: %s",
                 (ull)e->step, e->text ? e->text : sfc_status_text(e->code));
        answer(run, run->error.code, run->error.text, actions);
        return;
    }
    run->rewind.record = *e->record;
    run->rewind.phase = SFC_REWIND_READ;
}

static void want_record(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_rewind *r = &run->rewind;
    r->phase = SFC_REWIND_READ;
    if (r->step == run->commit.record.step)
        r->record = run->commit.record;
    else if (r->step == run->config.start_step)
        memset(&r->record, 0, sizeof(r->record)); /* before the first commit */
    else {
        r->phase = SFC_REWIND_READING;
        sfc_run_emit(actions, SFC_ACT_READ_RECORD)->step = r->step;
    }
}

static void write_rewind(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    run->rewind.phase = SFC_REWIND_WRITING;
    run->rewind.again_ms = 0;
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_WRITE_REWIND);
    a->step = run->rewind.step;
    a->round = run->rewind.given;
}

static bool all_there(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].lost)
            return false;
    return sfc_commit_idle(&run->commit, SFC_DUTY_OPEN) &&
           sfc_commit_idle(&run->commit, SFC_DUTY_COMMIT);
}

/* One that can't recover to where the run is has nothing to lose, and its process is not asked
 * again for anything: its way back is tried. */
static bool all_willing(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        const struct sfc_shard_duty *d = run->commit.duties[k];
        bool lame = d[SFC_DUTY_OPEN].wanted && d[SFC_DUTY_OPEN].retry_ms == UINT64_MAX;
        if (run->shards[k].lost || (d[SFC_DUTY_CHECK].wanted && !lame))
            return false;
    }
    return true;
}

static void move(struct sfc_run_fsm *run)
{
    struct sfc_run_rewind *r = &run->rewind;
    r->back_step = run->commit.committed;
    r->back = run->commit.record;
    r->given = run->commit.round;
    r->phase = SFC_REWIND_MOVING;
    sfc_run_go_to(run, r->step, &r->record);
}

void sfc_run_rewind_advance(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_rewind *r = &run->rewind;
    /* first it is known what is committed, and where blocks are */
    bool record = run->commit.phase == SFC_PHASE_RECORD || sfc_run_writes_map(run);
    if (r->phase == SFC_REWIND_WANTED && !record && run->set_lr.phase == SFC_SET_LR_NONE)
        want_record(run, actions);
    if (r->phase == SFC_REWIND_READ && !record) {
        r->phase = SFC_REWIND_ASKING;
        sfc_commit_want_all(&run->commit, SFC_DUTY_CHECK);
    } else if (r->phase == SFC_REWIND_ASKING && !record && all_willing(run)) {
        move(run);
    } else if (r->phase == SFC_REWIND_MOVING && all_there(run)) {
        write_rewind(run, actions);
    }
}

void sfc_run_rewind_refused(struct sfc_run_fsm *run, uint32_t shard, int code, const char *text,
                            struct sfc_run_actions *actions)
{
    struct sfc_run_rewind *r = &run->rewind;
    bool moved = r->phase == SFC_REWIND_MOVING;
    uint64_t back = r->back_step < run->durable ? r->back_step : run->durable;
    struct sfc_error why;
    sfc_fail(&why, code, "shard %llu can't go back to step %llu: %.300s. %s %llu",
             (ull)run->shards[shard].id, (ull)r->step, text,
             moved ? "The shards recover step" : "Nothing has changed: the run is at step",
             (ull)(moved ? back : run->commit.committed));
    run->error = why;
    answer(run, code, run->error.text, actions);
    sfc_commit_unwant(&run->commit, SFC_DUTY_CHECK);
    if (!moved)
        return;
    if (r->back_step > run->durable)
        sfc_run_go_back(run, actions); /* shards have left the provisional ones */
    else
        sfc_run_go_to(run, r->back_step, &r->back);
}

void sfc_run_on_rewound(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                        struct sfc_run_actions *actions)
{
    struct sfc_run_rewind *r = &run->rewind;
    if (r->phase != SFC_REWIND_WRITING || e->step != r->step)
        return;
    if (e->code != SFC_OK) {
        r->again_ms = e->now_ms + REWIND_PAUSE_MS;
        snprintf(r->error, sizeof(r->error), "%.255s", e->text ? e->text : "");
        return;
    }
    sfc_tickets_reset(&run->tickets, r->step + 1);
    run->durable = r->step;
    run->durable_record = r->record;
    run->drop_count = 0;
#if SFC_PLANT_BUG != 17 /* a change that a rewind gave up goes on */
    sfc_lr_changes_cut(&run->lr_changes, r->step);
#endif
    unblock(run);
    answer(run, SFC_OK, "", actions);
}

void sfc_run_rewind_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    if (run->rewind.phase == SFC_REWIND_WRITING && run->rewind.again_ms != 0 &&
        now_ms >= run->rewind.again_ms)
        write_rewind(run, actions);
}

bool sfc_run_waits_for_rewind(const struct sfc_run_fsm *run, char *out, size_t size)
{
    const struct sfc_run_rewind *r = &run->rewind;
    if (r->phase != SFC_REWIND_WRITING)
        return false;
    snprintf(out, size, "the records after step %llu to be removed%s%s", (ull)r->step,
             r->error[0] ? ": " : "", r->error);
    return true;
}

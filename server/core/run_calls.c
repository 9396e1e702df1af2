/* Events of a run: calls of workers and people. */
#include <stdio.h>
#include <string.h>

#include "server/core/run_internal.h"

#define RECORD_PAUSE_MS 500 /* until a record that could not be written is tried again */

static void reply_error(struct sfc_run_fsm *run, uint64_t token, struct sfc_run_actions *actions)
{
    sfc_run_reply(actions, token, run->error.code, run->error.text);
}

static void reply_state(struct sfc_run_fsm *run, uint64_t token, struct sfc_run_actions *actions)
{
    sfc_fail(&run->error, SFC_ESTATE, "not possible while the run is %s%s%s",
             sfc_run_state_name(run->state), run->reason[0] ? ": " : "", run->reason);
    reply_error(run, token, actions);
}

bool sfc_run_ended(const struct sfc_run_fsm *run)
{
    return run->failed || run->stopped;
}

/* A call of a foreign framework must name the present session, any other call none. */
static bool session_ok(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    if (e->session == run->session && (run->session != 0) == run->config.session)
        return true;
    sfc_fail(&run->error, SFC_ESTALE, "session %llx, but session %llx is the present one%s",
             (ull)e->session, (ull)run->session,
             run->config.session ? ": open a session" : " (this run has workers, no sessions)");
    reply_error(run, e->token, actions);
    return false;
}

static void on_ticket(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      struct sfc_run_actions *actions)
{
    const struct sfc_waiting w = {.kind = e->data ? SFC_WAITING_DATA : SFC_WAITING_GRANT,
                                  .token = e->token,
                                  .worker = e->worker,
                                  .place = sfc_tickets_worker(&run->tickets, e->worker),
                                  .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
}

static void on_announce(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                        struct sfc_run_actions *actions)
{
    bool complete;
    if (sfc_run_ended(run)) {
        reply_state(run, e->token, actions);
        return;
    }
    if (!session_ok(run, e, actions))
        return;
    int rc = sfc_tickets_announce(&run->tickets, e->worker, e->now_ms, e->step, e->j, e->labels,
                                  e->count, &complete, &run->error);
    sfc_run_reply(actions, e->token, rc, rc == SFC_OK ? "" : run->error.text);
}

static bool same_done(const struct sfc_run_fsm *run, const struct sfc_done *a,
                      const struct sfc_done *b)
{
    size_t dense = run->config.dense_blocks * sizeof(*a->dense_digests);
    return memcmp(&a->head_digest, &b->head_digest, sizeof(a->head_digest)) == 0 &&
           (dense == 0 || memcmp(a->dense_digests, b->dense_digests, dense) == 0);
}

static void reply_done(struct sfc_run_actions *actions, uint64_t token, bool accepted)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_DONE);
    a->token = token;
    a->accepted = accepted;
}

/* Done for the open step from a holder of a grant (or the session): the first one counts. */
static bool take_done(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (run->commit.phase != SFC_PHASE_COMPUTE)
        return false;
    if (!run->config.session)
        return sfc_tickets_done(&run->tickets, e->now_ms, e->j, e->done->attempt);
    return sfc_attempt_compare(e->done->attempt, run->session_attempt) == 0;
}

static void on_done(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    struct sfc_run_actions *actions)
{
    struct sfc_commit_fsm *c = &run->commit;
    bool all;
    if (e->j >= c->config.micro_batches) {
        sfc_fail(&run->error, SFC_EINVAL, "micro-batch %u; the run has %u", e->j,
                 c->config.micro_batches);
        reply_error(run, e->token, actions);
        return;
    }
    if (sfc_run_ended(run)) {
        reply_state(run, e->token, actions);
        return;
    }
    if (!session_ok(run, e, actions))
        return;
    if (e->step <= c->committed) {
        reply_done(actions, e->token,
                   e->step == c->committed &&
                       sfc_attempt_compare(c->last_attempts[e->j], e->done->attempt) == 0);
        return;
    }
    if (e->step != c->committed + 1) {
        sfc_fail(&run->error, SFC_ESTATE, "Done for step %llu, but step %llu is open", (ull)e->step,
                 (ull)c->committed + 1);
        reply_error(run, e->token, actions);
        return;
    }
    const struct sfc_done *d = &c->done[e->j];
    if (d->filled && sfc_attempt_compare(d->attempt, e->done->attempt) == 0) {
        if (same_done(run, d, e->done)) {
            reply_done(actions, e->token, true);
            return;
        }
        sfc_fail(&run->error, SFC_ECONFLICT,
                 "Done of step %llu micro-batch %u again with other "
                 "digests",
                 (ull)e->step, e->j);
        reply_error(run, e->token, actions);
        return;
    }
    bool taken = take_done(run, e);
#if SFC_PLANT_BUG == 20 /* after Prepare a second Done takes the place of the first */
    taken = taken || (d->filled && !run->config.session && c->phase == SFC_PHASE_PREPARE);
#endif
    if (taken)
        sfc_commit_done(c, e->j, e->done, &all);
    reply_done(actions, e->token, taken);
}

void sfc_run_block(struct sfc_run_fsm *run, uint64_t step, uint32_t j, int code, const char *cause)
{
    if (run->blocked)
        return;
    run->blocked = true;
    run->blocked_step = step;
    run->blocked_j = j;
    snprintf(run->reason, sizeof(run->reason),
             "step %llu micro-batch %u failed %u times, the last time with: %.300s. Resume tries "
             "again; resume --drop %llu,%u goes on without it%s",
             (ull)step, j, SFC_ATTEMPT_LIMIT, cause ? cause : "no reason given", (ull)step, j,
             code == SFC_ECORRUPT ? "; a run created with --skip-broken leaves such samples out"
                                  : "");
}

static void on_give_up(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    bool counts = !sfc_run_transient(e->code), limit = false;
    if (!sfc_run_ended(run) && e->data)
        limit = sfc_tickets_return_data(&run->tickets, e->worker, e->step, e->j, counts);
    else if (!sfc_run_ended(run))
        limit = sfc_tickets_return_grant(&run->tickets, e->step, e->j, e->attempt, counts);
    if (limit)
        sfc_run_block(run, e->step, e->j, e->code, e->text);
    sfc_run_reply(actions, e->token, SFC_OK, "");
}

static void on_open_session(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                            struct sfc_run_actions *actions)
{
    if (sfc_run_ended(run) || !run->config.session) {
        if (sfc_run_ended(run)) {
            reply_state(run, e->token, actions);
            return;
        }
        sfc_run_reply(
            actions, e->token, SFC_ESTATE,
            "this run has workers of its own: create one with a data set of kind SESSION");
        return;
    }
    for (uint32_t i = 0; i < run->waiting_count; i++) {
        struct sfc_waiting *w = &run->waiting[i];
        if (w->kind != SFC_WAITING_SESSION)
            continue;
        uint64_t token = w->token;
        sfc_run_unwait(run, token);
        sfc_run_reply(actions, token, SFC_ESTALE, "a newer session was opened");
        break; /* there is at most one */
    }
    run->session_wanted = true;
    const struct sfc_waiting w = {
        .kind = SFC_WAITING_SESSION, .token = e->token, .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
}

/* ---- people */

static void resume(struct sfc_run_fsm *run)
{
    run->paused = false;
    run->blocked = false;
    run->blocked_before_restart = false;
    run->blocked_j = UINT32_MAX;
    run->commit.record.skipped_in_row = 0;
    sfc_tickets_forgive(&run->tickets);
}

static void stop(struct sfc_run_fsm *run)
{
    run->stopped = true;
    snprintf(run->reason, sizeof(run->reason), "the run was stopped");
    sfc_commit_unwant_all(&run->commit);
    sfc_commit_want_all(&run->commit, SFC_DUTY_CLOSE);
}

/* Is this what the run is blocked by? After a restart only the person knows; what is not in the
 * window of steps that are read and computed can't be it. */
static int check_drop(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    const struct sfc_tickets *t = &run->tickets;
    ull last = (ull)(t->open_step + t->config.lead_steps);
    last = last < t->config.last_step ? last : (ull)t->config.last_step;
    if (!run->blocked)
        return sfc_fail(&run->error, SFC_ESTATE,
                        "nothing blocks the run, which is %s: a micro-batch is dropped only when "
                        "it does",
                        sfc_run_state_name(run->state));
    if (e->step <= run->commit.committed)
        return sfc_fail(&run->error, SFC_ESTATE,
                        "step %llu is committed, and keeps its micro-batches", (ull)e->step);
    if (!sfc_tickets_step(&run->tickets, e->step))
        return sfc_fail(&run->error, SFC_ESTATE,
                        "step %llu is not being read yet: what blocks the run is of the steps %llu "
                        "to %llu",
                        (ull)e->step, (ull)t->open_step, last);
    if (run->blocked_before_restart || (run->blocked_j == e->j && run->blocked_step == e->step))
        return SFC_OK;
    return sfc_fail(&run->error, SFC_ESTATE,
                    "micro-batch %u of step %llu does not block the run: %.300s", e->j,
                    (ull)e->step, run->reason);
}

/* First made durable: a restart must not bring the rows back. */
static void write_drop(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    if (run->waiting_count == run->config.max_waiting || run->drop_count >= run->drop_capacity) {
        sfc_run_reply(actions, e->token, SFC_ELIMIT,
                      "too many waiting calls, or drops since the last durable step: try again");
        return;
    }
    const struct sfc_waiting w = {.kind = SFC_WAITING_DROP,
                                  .token = e->token,
                                  .hold_id = ++run->last_drop,
                                  .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_WRITE_DROP);
    a->number = run->last_drop;
    a->step = e->step;
    a->j = e->j;
}

/* Shards may have a plan with the old labels. */
static bool planned(const struct sfc_run_fsm *run, uint64_t step)
{
    const struct sfc_commit_fsm *c = &run->commit;
    return (step == c->committed + 1 && c->plan_sent) ||
           (step == c->committed + 2 && c->next_plan_sent);
}

static int drop(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    const struct sfc_commit_fsm *c = &run->commit;
    if (e->code != SFC_OK)
        return sfc_fail(&run->error, e->code, "the drop can't be written: %s",
                        e->text ? e->text : sfc_status_text(e->code));
    if (e->step <= c->committed || (c->phase == SFC_PHASE_RECORD && e->step == c->record.step))
        return sfc_fail(&run->error, SFC_ESTATE,
                        "step %llu was committed with micro-batch %u meanwhile", (ull)e->step,
                        e->j);
    run->round_wanted = run->round_wanted || planned(run, e->step);
    run->drops[run->drop_count++] = (struct sfc_run_drop){e->step, e->j};
    sfc_tickets_drop(&run->tickets, e->step, e->j);
    resume(run);
    return SFC_OK;
}

static void on_dropped(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    uint64_t token = sfc_run_unwait_drop(run, e->number);
    if (sfc_run_ended(run)) {
        if (token != 0)
            reply_state(run, token, actions);
        return;
    }
    int rc = drop(run, e);
    if (token != 0)
        sfc_run_reply(actions, token, rc, rc == SFC_OK ? "" : run->error.text);
}

static void on_control(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                       struct sfc_run_actions *actions)
{
    bool ok = !sfc_run_ended(run) && !run->finished;
    bool rewind = e->type == SFC_EV_REWIND && !sfc_run_ended(run) && run->started;
    if (rewind) {
        sfc_run_on_rewind(run, e, actions);
        return;
    }
    if (e->type == SFC_EV_SET_LR && ok && run->started) {
        sfc_run_on_set_lr(run, e, actions);
        return;
    }
    switch (e->type) {
    case SFC_EV_START:
        ok = ok && run->config.load;
        run->start_wanted = run->start_wanted || ok;
        break;
    case SFC_EV_PAUSE:
        run->paused = run->paused || ok;
        break;
    case SFC_EV_RESUME: /* of a finished run too: a pause would outlast a rewind */
        ok = ok || (run->finished && run->paused && !sfc_run_ended(run));
        if (ok)
            resume(run);
        break;
    case SFC_EV_DROP:
        if (!ok)
            break;
        if (check_drop(run, e) == SFC_OK)
            write_drop(run, e, actions);
        else
            reply_error(run, e->token, actions);
        return;
    case SFC_EV_REWIND:
    case SFC_EV_SET_LR:
        ok = false;
        break;
    default:
        ok = !run->stopped;
        if (ok)
            stop(run);
        break;
    }
    if (ok)
        sfc_run_reply(actions, e->token, SFC_OK, "");
    else
        reply_state(run, e->token, actions);
}

/* What was decided stays decided: the same record is written until it is durable, so whether a
 * failed try left one makes no difference. */
static void on_record_failed(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (run->commit.phase != SFC_PHASE_RECORD || e->step != run->commit.record.step)
        return;
    sfc_fail(&run->error, e->code, "the commit record of step %llu can't be written: %s",
             (ull)e->step, e->text ? e->text : "unknown error");
    snprintf(run->record_error, sizeof(run->record_error), "%.255s", e->text ? e->text : "");
    run->record_again_ms = e->now_ms + RECORD_PAUSE_MS;
#if SFC_PLANT_BUG == 10 /* taken for a record that is not there: the step is void */
    run->record_again_ms = 0;
    sfc_run_new_round(run);
#endif
    if (e->code != SFC_EIO && e->code != SFC_ENOMEM && e->code != SFC_ESTATE)
        sfc_run_fail(run, run->error.text);
}

static void on_tick(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    struct sfc_run_actions *actions)
{
    sfc_tickets_tick(&run->tickets, e->now_ms);
    sfc_run_note_missing(run, e->now_ms);
    if (!sfc_run_ended(run)) {
        sfc_run_rewind_tick(run, e->now_ms, actions);
        sfc_run_set_lr_tick(run, e->now_ms, actions);
        sfc_run_moves_tick(run, e->now_ms, actions);
    }
    if (run->record_again_ms == 0 || e->now_ms < run->record_again_ms || sfc_run_ended(run))
        return;
    run->record_again_ms = 0;
    sfc_run_write_record(run, actions);
}

void sfc_run_handle(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    struct sfc_run_actions *actions)
{
    switch (e->type) {
    case SFC_EV_TICK:
        on_tick(run, e, actions);
        return;
    case SFC_EV_TICKET:
        on_ticket(run, e, actions);
        return;
    case SFC_EV_ANNOUNCE:
        on_announce(run, e, actions);
        return;
    case SFC_EV_DONE:
        on_done(run, e, actions);
        return;
    case SFC_EV_GIVE_UP:
        on_give_up(run, e, actions);
        return;
    case SFC_EV_WORKER_DIED:
        sfc_tickets_worker_died(&run->tickets, e->worker);
        sfc_run_worker_waits_no_more(run, e->worker, actions);
        return;
    case SFC_EV_CANCEL:
        sfc_run_unwait(run, e->token);
        return;
    case SFC_EV_OPEN_SESSION:
        on_open_session(run, e, actions);
        return;
    case SFC_EV_HOLD:
        sfc_run_hold(run, e, actions);
        return;
    case SFC_EV_WATCH:
        sfc_run_watch(run, e, actions);
        return;
    case SFC_EV_RELEASE:
        sfc_run_release(run, e, actions);
        return;
    case SFC_EV_START:
    case SFC_EV_PAUSE:
    case SFC_EV_RESUME:
    case SFC_EV_STOP:
    case SFC_EV_DROP:
    case SFC_EV_REWIND:
    case SFC_EV_SET_LR:
        on_control(run, e, actions);
        return;
    case SFC_EV_LR_WRITTEN:
        sfc_run_on_lr_written(run, e);
        return;
    case SFC_EV_DROPPED:
        on_dropped(run, e, actions);
        return;
    case SFC_EV_RECORD_READ:
        sfc_run_on_record_read(run, e, actions);
        return;
    case SFC_EV_REWOUND:
        if (!sfc_run_ended(run))
            sfc_run_on_rewound(run, e, actions);
        return;
    case SFC_EV_SHARD_REPLY:
    case SFC_EV_SHARD_BACK:
    case SFC_EV_SHARD_LOST:
    case SFC_EV_SHARD_GONE:
    case SFC_EV_SHARD_SAYS:
    case SFC_EV_SHARD_PROGRESS:
        if (e->shard < run->config.shards)
            sfc_run_on_shard(run, e, actions);
        return;
    case SFC_EV_RECORD_DURABLE:
        sfc_run_durable(run, e->step, actions);
        return;
    case SFC_EV_RECORD_FAILED:
        on_record_failed(run, e);
        return;
    case SFC_EV_ORDER:
    case SFC_EV_ORDER_CANCEL:
        sfc_run_on_order(run, e, actions);
        return;
    case SFC_EV_MAP_DURABLE:
    case SFC_EV_MAP_FAILED:
        sfc_run_on_map(run, e, actions);
        return;
    case SFC_EV_SHARD_STRAY:
        sfc_run_on_stray(run, e);
        return;
    }
}

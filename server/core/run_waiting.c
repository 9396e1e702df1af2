/* Waiting calls of a run: tickets, holds, sessions. */
#include <string.h>

#include "server/core/run_internal.h"
#include "server/core/ticket_policy.h"

void sfc_run_wait(struct sfc_run_fsm *run, const struct sfc_waiting *waiting,
                  struct sfc_run_actions *actions)
{
    if (run->waiting_count == run->config.max_waiting) {
        sfc_run_reply(actions, waiting->token, SFC_ELIMIT, "too many waiting calls: try again");
        return;
    }
    run->waiting[run->waiting_count++] = *waiting;
}

static void take_out(struct sfc_run_fsm *run, uint32_t i)
{
    run->waiting_count--;
    memmove(&run->waiting[i], &run->waiting[i + 1],
            (run->waiting_count - i) * sizeof(*run->waiting));
}

void sfc_run_unwait(struct sfc_run_fsm *run, uint64_t token)
{
    for (uint32_t i = 0; i < run->waiting_count; i++)
        if (run->waiting[i].token == token) {
            take_out(run, i);
            return;
        }
}

uint64_t sfc_run_unwait_drop(struct sfc_run_fsm *run, uint64_t number)
{
    for (uint32_t i = 0; i < run->waiting_count; i++)
        if (run->waiting[i].kind == SFC_WAITING_DROP && run->waiting[i].hold_id == number) {
            uint64_t token = run->waiting[i].token;
            take_out(run, i);
            return token;
        }
    return 0;
}

static struct sfc_run_action *no_ticket(struct sfc_run_actions *actions, uint64_t token, bool data)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_TICKET);
    a->token = token;
    a->data = data;
    return a;
}

static bool is_ticket(const struct sfc_waiting *w)
{
    return w->kind == SFC_WAITING_DATA || w->kind == SFC_WAITING_GRANT;
}

void sfc_run_worker_waits_no_more(struct sfc_run_fsm *run, uint64_t worker,
                                  struct sfc_run_actions *actions)
{
    for (uint32_t i = 0; i < run->waiting_count;) {
        const struct sfc_waiting *w = &run->waiting[i];
        if (!is_ticket(w) || w->worker != worker) {
            i++;
            continue;
        }
        no_ticket(actions, w->token, w->kind == SFC_WAITING_DATA);
        take_out(run, i);
    }
}

/* ---- holds */

static struct sfc_hold *find_hold(struct sfc_run_fsm *run, uint64_t id)
{
    for (unsigned i = 0; i < SFC_MAX_HOLDS; i++)
        if (run->holds[i].id == id)
            return &run->holds[i];
    return NULL;
}

static int check_end(struct sfc_run_fsm *run, uint64_t step)
{
    if (step > run->config.schedule.steps)
        return sfc_fail(&run->error, SFC_EINVAL, "the run ends at step %llu, before step %llu",
                        (ull)run->config.schedule.steps, (ull)step);
    return SFC_OK;
}

/* Whether there is a state that can be read, now or later. */
static int check_state(struct sfc_run_fsm *run)
{
    if (run->failed)
        return sfc_fail(&run->error, SFC_ESTATE, "the run has failed: %s", run->reason);
    if (run->stopped)
        return sfc_fail(&run->error, SFC_ESTATE, "the run is stopped, its blocks are freed");
    if (run->config.load && !run->start_wanted)
        return sfc_fail(&run->error, SFC_ESTATE,
                        "the run is loading: wait for `shardfc restore` to end, or stop the run");
    return SFC_OK;
}

uint64_t sfc_run_first_stop(const struct sfc_run_fsm *run)
{
    uint64_t next = run->commit.committed + 1;
    if (sfc_run_busy(run))
        return run->provisional ? next + 1 : next;
    return run->durable == run->commit.committed ? run->commit.committed : next;
}

static int new_hold(struct sfc_run_fsm *run, const struct sfc_run_event *e, struct sfc_hold **out)
{
    const struct sfc_commit_fsm *c = &run->commit;
    struct sfc_hold *h = find_hold(run, 0);
    uint64_t first = sfc_run_first_stop(run);
    if (!h)
        return sfc_fail(&run->error, SFC_ELIMIT, "%u holds are there already", SFC_MAX_HOLDS);
    int rc = check_end(run, e->step);
    if (rc != SFC_OK)
        return rc;
    if (e->step != 0 && e->step < first)
        return sfc_fail(&run->error, SFC_ESTATE, "step %llu has passed: the run is at step %llu",
                        (ull)e->step, (ull)c->committed);
    *h = (struct sfc_hold){.id = run->config.incarnation << 32 | ++run->next_hold,
                           .at_step = e->step ? e->step : first};
    *out = h;
    return SFC_OK;
}

void sfc_run_hold(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                  struct sfc_run_actions *actions)
{
    struct sfc_hold *h = NULL;
    int rc = check_state(run);
    if (rc == SFC_OK && e->hold_id == 0)
        rc = new_hold(run, e, &h);
    else if (rc == SFC_OK && !(h = find_hold(run, e->hold_id)))
        rc = sfc_fail(&run->error, SFC_ENOTFOUND,
                      "hold %llx is not known (any more): its lease ended and the run went on",
                      (ull)e->hold_id);
    if (rc != SFC_OK) {
        sfc_run_reply(actions, e->token, rc, run->error.text);
        return;
    }
    h->seen_ms = e->now_ms;
    const struct sfc_waiting w = {
        .kind = SFC_WAITING_HOLD, .token = e->token, .hold_id = h->id, .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
}

void sfc_run_watch(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                   struct sfc_run_actions *actions)
{
    int rc = check_state(run);
    if (rc == SFC_OK)
        rc = check_end(run, e->step);
    if (rc != SFC_OK) {
        sfc_run_reply(actions, e->token, rc, run->error.text);
        return;
    }
    const struct sfc_waiting w = {
        .kind = SFC_WAITING_WATCH, .token = e->token, .hold_id = e->step, .since_ms = e->now_ms};
    sfc_run_wait(run, &w, actions);
}

void sfc_run_release(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                     struct sfc_run_actions *actions)
{
    struct sfc_hold *h = e->hold_id != 0 ? find_hold(run, e->hold_id) : NULL;
    if (h)
        memset(h, 0, sizeof(*h));
    sfc_run_reply(actions, e->token, SFC_OK, "");
}

static bool hold_has_caller(const struct sfc_run_fsm *run, uint64_t id)
{
    for (uint32_t i = 0; i < run->waiting_count; i++)
        if (run->waiting[i].kind == SFC_WAITING_HOLD && run->waiting[i].hold_id == id)
            return true;
    return false;
}

static void expire_holds(struct sfc_run_fsm *run, uint64_t now_ms)
{
    for (unsigned i = 0; i < SFC_MAX_HOLDS; i++) {
        struct sfc_hold *h = &run->holds[i];
        if (h->id != 0 && !hold_has_caller(run, h->id) &&
            now_ms > h->seen_ms + run->config.hold_lease_ms)
            memset(h, 0, sizeof(*h));
    }
}

void sfc_run_stood_still(struct sfc_run_fsm *run, uint64_t ms, uint64_t now_ms)
{
    for (unsigned i = 0; i < SFC_MAX_HOLDS; i++)
        if (run->holds[i].id != 0)
            run->holds[i].seen_ms += ms;
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].missing_ms != 0)
            run->shards[k].missing_ms =
                run->shards[k].missing_ms + ms < now_ms ? run->shards[k].missing_ms + ms : now_ms;
}

/* ---- answers */

static bool over(const struct sfc_waiting *w, uint64_t now_ms, uint64_t wait_ms)
{
    return now_ms >= w->since_ms + wait_ms;
}

static bool may_work(const struct sfc_run_fsm *run)
{
    bool paused = run->paused && run->durable == run->commit.committed; /* else one step more */
    return run->started && !run->failed && !run->stopped && !run->finished && !paused &&
           !run->blocked && !run->restoring && !sfc_run_rewinds(run) && !run->config.session;
}

static void survey_tickets(struct sfc_run_fsm *run, uint64_t now_ms,
                           struct sfc_ticket_survey *survey)
{
    bool computing = run->commit.phase == SFC_PHASE_COMPUTE;
#if SFC_PLANT_BUG == 4
    computing = computing || run->commit.phase == SFC_PHASE_PREPARE;
#endif
    bool looked = false;
    for (uint32_t i = 0; i < run->waiting_count; i++) {
        if (!is_ticket(&run->waiting[i]))
            continue;
        if (!looked)
            sfc_ticket_survey(&run->tickets, now_ms, computing, survey);
        looked = true;
        sfc_ticket_survey_call(&run->tickets, survey, run->waiting[i].place,
                               run->waiting[i].kind == SFC_WAITING_DATA);
    }
}

static bool serve_ticket(struct sfc_run_fsm *run, const struct sfc_waiting *w,
                         struct sfc_ticket_survey *survey, struct sfc_run_actions *actions)
{
    bool data = w->kind == SFC_WAITING_DATA, given = false;
    uint64_t step = 0;
    uint32_t j = 0;
    struct sfc_attempt attempt = {0};
    if (may_work(run) && data)
        given = sfc_ticket_policy_data(&run->tickets, survey, w->worker, w->place, &step, &j);
    else if (may_work(run))
        given = sfc_ticket_policy_grant(&run->tickets, survey, w->worker, w->place, &step, &j,
                                        &attempt);
    bool ended = run->failed || run->stopped;
    if (!given && !ended && !over(w, survey->now_ms, run->config.ticket_wait_ms))
        return false;
    struct sfc_run_action *a = no_ticket(actions, w->token, data);
    if (!given)
        return true;
    a->granted = true;
    a->step = step;
    a->j = j;
    a->attempt = attempt;
    a->dropped = sfc_tickets_step(&run->tickets, step)->micro_batches[j].dropped;
    return true;
}

static bool serve_hold(struct sfc_run_fsm *run, const struct sfc_waiting *w, uint64_t now_ms,
                       struct sfc_run_actions *actions)
{
    struct sfc_hold *h = find_hold(run, w->hold_id);
    if (!h || run->failed || run->stopped) {
        sfc_run_reply(actions, w->token, SFC_ESTATE, h ? run->reason : "the hold was released");
        return true;
    }
    bool held = sfc_run_still(run) && h->at_step <= run->commit.committed &&
                run->durable == run->commit.committed;
    if (!held && !over(w, now_ms, run->config.hold_wait_ms))
        return false;
    h->seen_ms = now_ms;
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_HOLD);
    a->token = w->token;
    a->hold_id = h->id;
    a->held = held;
    a->step = run->commit.committed;
    return true;
}

static bool serve_watch(struct sfc_run_fsm *run, const struct sfc_waiting *w, uint64_t now_ms,
                        struct sfc_run_actions *actions)
{
    bool there = w->hold_id <= run->commit.committed;
    int rc = check_state(run);
    if (rc != SFC_OK) {
        sfc_run_reply(actions, w->token, rc, run->error.text);
        return true;
    }
    if (!there && !over(w, now_ms, run->config.hold_wait_ms))
        return false;
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_HOLD);
    a->token = w->token;
    a->held = there;
    a->step = run->commit.committed;
    return true;
}

static bool serve_session(struct sfc_run_fsm *run, const struct sfc_waiting *w,
                          struct sfc_run_actions *actions)
{
    if (run->failed || run->stopped || run->finished) {
        sfc_run_reply(actions, w->token, SFC_ESTATE,
                      run->finished ? "the run is finished" : run->reason);
        return true;
    }
    /* wanted: the one that is there is somebody else's */
    if (run->session_wanted || run->session == 0 || run->commit.phase == SFC_PHASE_ROUND)
        return false;
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_REPLY_SESSION);
    a->token = w->token;
    a->session = run->session;
    a->step = run->commit.committed + 1;
    a->attempt = run->session_attempt;
    return true;
}

/* Otherwise what it waits for answers it. */
static bool serve_change(const struct sfc_run_fsm *run, const struct sfc_waiting *w,
                         struct sfc_run_actions *actions)
{
    if (sfc_run_ended(run))
        sfc_run_reply(actions, w->token, SFC_ESTATE, run->reason);
    return sfc_run_ended(run);
}

void sfc_run_serve(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    struct sfc_ticket_survey survey = {.now_ms = now_ms};
    expire_holds(run, now_ms);
    survey_tickets(run, now_ms, &survey);
    for (uint32_t i = 0; i < run->waiting_count;) {
        const struct sfc_waiting *w = &run->waiting[i];
        bool answered;
        if (is_ticket(w))
            answered = serve_ticket(run, w, &survey, actions);
        else if (w->kind == SFC_WAITING_HOLD)
            answered = serve_hold(run, w, now_ms, actions);
        else if (w->kind == SFC_WAITING_WATCH)
            answered = serve_watch(run, w, now_ms, actions);
        else if (w->kind == SFC_WAITING_SESSION)
            answered = serve_session(run, w, actions);
        else if (w->kind == SFC_WAITING_REWIND || w->kind == SFC_WAITING_LR)
            answered = serve_change(run, w, actions);
        else
            answered = false; /* DROPPED answers it */
        if (answered)
            take_out(run, i);
        else
            i++;
    }
}

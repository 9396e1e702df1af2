/* Events of a run: answers of shards, their loss and their recovery. */
#include <stdio.h>
#include <string.h>

#include "server/core/run_internal.h"

static ull name(const struct sfc_run_fsm *run, uint32_t k)
{
    return (ull)run->shards[k].id;
}

/* ---- loss and recovery */

bool sfc_run_all_known(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->commit.member[k] && !run->shards[k].known)
            return false;
    return true;
}

bool sfc_run_recovers(const struct sfc_run_fsm *run, uint32_t shard)
{
    return run->started && !sfc_run_ended(run) &&
           (run->shards[shard].lost || run->commit.duties[shard][SFC_DUTY_OPEN].wanted);
}

void sfc_run_open_again(struct sfc_run_fsm *run, uint32_t k)
{
    run->shards[k].lost = false;
    sfc_commit_unwant_shard(&run->commit, k);
    sfc_commit_want(&run->commit, k, SFC_DUTY_OPEN);
    sfc_commit_want(&run->commit, k, SFC_DUTY_ABORT);
    if (run->rewind.phase == SFC_REWIND_ASKING)
        sfc_commit_want(&run->commit, k, SFC_DUTY_CHECK);
}

/* What a lost shard had of provisional steps is gone. Where a disk failed all go to the last
 * durable step, also when they are there: that shard opens the run again. Records that a rewind
 * writes decide: by then every shard had its step on the disk. */
static bool must_go_back(const struct sfc_run_fsm *run)
{
    bool lost = false;
    for (uint32_t k = 0; k < run->config.shards; k++)
        lost = lost || run->shards[k].lost;
    lost = lost && run->durable < run->commit.committed;
    return (lost || run->back_wanted) && run->rewind.phase != SFC_REWIND_WRITING;
}

void sfc_run_recover(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    if (run->commit.phase == SFC_PHASE_RECORD && SFC_PLANT_BUG != 9)
        return; /* the record decides to which step a lost shard recovers */
    if (sfc_run_writes_map(run))
        return; /* the map decides what it recovers */
    if (must_go_back(run))
        sfc_run_go_back(run, actions);
    run->back_wanted = false;
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].lost)
            sfc_run_open_again(run, k);
    if (run->round_wanted)
        sfc_run_new_round(run);
    run->round_wanted = false;
}

void sfc_run_forget_life(struct sfc_run_shard *s)
{
    s->life++;
    s->without = false;
    s->recovered = 0;
    s->to_step = 0;
    s->refusal[0] = '\0';
}

/* Its process is a new one. While restoring no round is needed: nothing was granted in this one,
 * and a shard that isn't known yet may need a Commit before its Abort. */
void sfc_run_lose(struct sfc_run_fsm *run, uint32_t k)
{
    sfc_run_forget_life(&run->shards[k]);
    run->shards[k].gone = false;
    if (!run->started && run->config.load && !run->commit.duties[k][SFC_DUTY_OPEN].wanted) {
        sfc_fail(&run->error, SFC_ESTATE,
                 "shard %llu was restarted while the run was loading: stop it and restore again",
                 name(run, k));
        sfc_run_fail(run, run->error.text);
        return;
    }
    run->shards[k].lost = true;
    run->shards[k].known = true;
    run->round_wanted = run->round_wanted || (run->started && !run->restoring);
}

static void on_open_reply(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    struct sfc_commit_fsm *c = &run->commit;
    if (e->applied == c->committed)
        return;
    /* It had not lost anything: it still waits for the Commit. */
    if (run->started && e->applied + 1 == c->committed && c->record.step == c->committed) {
        sfc_commit_want(c, e->shard, SFC_DUTY_COMMIT);
        return;
    }
    sfc_fail(&run->error, SFC_ESTATE, "shard %llu opened the run at step %llu instead of %llu",
             name(run, e->shard), (ull)e->applied, (ull)c->committed);
    sfc_run_fail(run, run->error.text);
}

/* After our restart: what does this shard need to be at the committed step in the new round? */
static void sync_shard(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    struct sfc_commit_fsm *c = &run->commit;
    bool ours = e->shard_run_id == run->config.run_id;
    bool behind = ours && e->step + 1 == c->committed && e->prepared_step == c->committed &&
                  c->record.step == c->committed;
    /* We may have died between the durable map and the last SetMap. It knows what it can take. */
    bool takes_map = ours && run->started && run->moves.map_order != 0 &&
                     e->map_version + 1 == run->config.map_version &&
                     run->moves.map_step == c->committed;
    bool map = e->map_version == run->config.map_version || takes_map;
#if SFC_PLANT_BUG == 19 /* after our restart shards keep the map that they have */
    map = true;
    takes_map = false;
#endif
    if (!ours || !map || (run->started && e->step != c->committed && !behind && !takes_map)) {
        sfc_run_lose(run, e->shard); /* it has a step that is gone, or lacks some: its disk brings
                                        it here */
        return;
    }
    if (takes_map)
        sfc_commit_want(c, e->shard, SFC_DUTY_SETMAP);
    /* A provisional Commit that our predecessor sent may still be on its way to it. */
    if (!run->started || run->config.durable_every > 1)
        sfc_commit_want(c, e->shard, SFC_DUTY_OPEN);
    if (behind && !takes_map)
        sfc_commit_want(c, e->shard, SFC_DUTY_COMMIT);
    sfc_commit_want(c, e->shard, SFC_DUTY_ABORT);
    run->shards[e->shard].known = true;
}

static void on_shard_back(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (sfc_run_ended(run))
        return;
    run->shards[e->shard].gone = false;
    if (run->restoring && !run->shards[e->shard].known) {
        sync_shard(run, e);
        return;
    }
    /* The same process, so it has what it acknowledged. What it says about its run may be older
     * than an OpenRun that it has answered meanwhile: not used. */
    sfc_commit_resend(&run->commit, e->shard);
}

/* One that should have the run has not, though its process is the same: somebody closed it, or had
 * it open another one. A heartbeat may have been on its way when the shard opened the run; the one
 * after it was sent later. */
static bool has_lost_it(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    struct sfc_run_shard *s = &run->shards[e->shard];
    const struct sfc_shard_duty *duties = run->commit.duties[e->shard];
    bool opens = duties[SFC_DUTY_OPEN].wanted || duties[SFC_DUTY_JOIN].wanted || s->lost ||
                 (run->restoring && !s->known);
    bool due = s->place == SFC_PLACE_MEMBER || s->place == SFC_PLACE_JOINING;
    bool before = s->without;
    s->without = due && !opens && !sfc_run_ended(run) && e->shard_run_id != run->config.run_id;
    return before && s->without;
}

static void on_shard_says(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                          struct sfc_run_actions *actions)
{
    struct sfc_run_event lost = *e;
    lost.type = SFC_EV_SHARD_LOST;
    if (has_lost_it(run, e))
        sfc_run_on_shard(run, &lost, actions);
}

/* ---- answers */

static void on_prepare_reply(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                             struct sfc_run_actions *actions)
{
    bool all;
    if (run->commit.phase != SFC_PHASE_PREPARE)
        return;
    if (!e->prepare.ready) {
        for (uint32_t i = 0; i < e->prepare.missing_count; i++)
            if (sfc_tickets_failed(&run->tickets, e->prepare.missing[i]))
                sfc_run_block(run, e->step, e->prepare.missing[i], SFC_EINTERNAL,
                              "a shard does not have what the worker said it sent");
        sfc_run_new_round(run);
        return;
    }
    if (sfc_commit_ready(&run->commit, e->shard, e->prepare.reports, e->prepare.report_count,
                         e->prepare.head_finite, &all, &run->error) != SFC_OK) {
        sfc_prefix(&run->error, "shard %llu", name(run, e->shard));
        sfc_run_fail(run, run->error.text);
        return;
    }
    if (all)
        sfc_run_decide(run, actions);
}

/* Keeps why a shard could not do its duty, for `status`. */
static void note(struct sfc_run_shard *s, enum sfc_duty duty, int code, const char *text)
{
    if (code == SFC_OK && s->refused != duty)
        return;
    s->refused = duty;
    snprintf(s->refusal, sizeof(s->refusal), "%s",
             code == SFC_OK    ? ""
             : text && text[0] ? text
                               : sfc_status_text(code));
}

static bool current(const struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    enum sfc_duty duty)
{
    uint64_t step;
    struct sfc_attempt round;
    if (e->life != run->shards[e->shard].life)
        return false;
    if (duty == SFC_DUTY_OPEN || duty == SFC_DUTY_CLOSE)
        return true;
    if (duty == SFC_DUTY_CHECK)
        return run->rewind.phase == SFC_REWIND_ASKING && e->step == run->rewind.step;
    sfc_commit_key(&run->commit, duty, &step, &round);
    return step == e->step && sfc_attempt_compare(round, e->round) == 0;
}

static void on_shard_reply(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                           struct sfc_run_actions *actions)
{
    enum sfc_duty duty = e->duty;
    if (duty >= SFC_DUTY_COUNT)
        return;
    if (sfc_run_is_move_duty(duty)) {
        sfc_run_on_move_reply(run, e, actions);
        return;
    }
    if (duty == SFC_DUTY_PLAN_NEXT && e->step == run->commit.committed + 1)
        duty = SFC_DUTY_PLAN; /* its step has opened meanwhile */
    bool ok = e->code == SFC_OK;
    if (!current(run, e, duty) || !sfc_commit_answer(&run->commit, e->shard, duty, ok, e->now_ms))
        return;
    note(&run->shards[e->shard], duty, e->code, e->text);
    if (ok && duty == SFC_DUTY_CLOSE && run->shards[e->shard].place == SFC_PLACE_CLOSING)
        sfc_run_leave_place(run, e->shard);
    if (ok && duty == SFC_DUTY_OPEN)
        on_open_reply(run, e);
    if (ok && duty == SFC_DUTY_PREPARE)
        on_prepare_reply(run, e, actions);
    if (ok || sfc_run_transient(e->code) || duty == SFC_DUTY_CLOSE)
        return;
    if (duty == SFC_DUTY_CHECK ||
        (duty == SFC_DUTY_OPEN && run->rewind.phase == SFC_REWIND_MOVING)) {
        sfc_run_rewind_refused(run, e->shard, e->code, run->shards[e->shard].refusal, actions);
        return;
    }
    if (duty == SFC_DUTY_OPEN && run->started && e->code == SFC_EIO)
        return; /* its disk failed while it recovered, and may work the next time */
    if (duty == SFC_DUTY_OPEN && run->started) {
        /* What it lacks may be there when its process comes back (another --state, more memory). */
        sfc_commit_suspend(&run->commit, e->shard, duty);
        return;
    }
    if (e->code == SFC_ESTALE && run->started) {
        sfc_run_lose(run, e->shard); /* it does not have the run (any more) */
        return;
    }
    if (duty == SFC_DUTY_PREPARE && e->code == SFC_EIO) {
        run->back_wanted = true; /* its disk lost steps that were not durable */
        return;
    }
    sfc_fail(&run->error, e->code, "shard %llu refused %s of step %llu: %s", name(run, e->shard),
             sfc_duty_names[duty], (ull)e->step, e->text ? e->text : sfc_status_text(e->code));
    sfc_run_fail(run, run->error.text);
}

void sfc_run_on_shard(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      struct sfc_run_actions *actions)
{
    struct sfc_run_shard *s = &run->shards[e->shard];
    if (e->type == SFC_EV_SHARD_SAYS) {
        on_shard_says(run, e, actions);
        return;
    }
    if (e->type != SFC_EV_SHARD_REPLY && s->place != SFC_PLACE_MEMBER) {
        sfc_run_on_guest(run, e, actions);
        return;
    }
    switch (e->type) {
    case SFC_EV_SHARD_BACK:
        on_shard_back(run, e);
        return;
    case SFC_EV_SHARD_LOST:
        if (!sfc_run_ended(run))
            sfc_run_lose(run, e->shard);
        return;
    case SFC_EV_SHARD_GONE:
        s->gone = true;
        return;
    case SFC_EV_SHARD_PROGRESS:
        s->recovered = e->step;
        s->to_step = e->to_step;
        s->eta_s = e->eta_s;
        return;
    default:
        on_shard_reply(run, e, actions);
        return;
    }
}

/* ---- for people */

static void say_recovery(const struct sfc_run_fsm *run, uint32_t k, char *out, size_t size)
{
    const struct sfc_run_shard *s = &run->shards[k];
    const struct sfc_shard_duty *open = &run->commit.duties[k][SFC_DUTY_OPEN];
    if (open->wanted && open->retry_ms == UINT64_MAX)
        snprintf(out, size,
                 "shard %llu, which can't recover step %llu and is asked again when it is started "
                 "again: %s",
                 name(run, k), (ull)run->commit.committed, s->refusal);
    else if (s->to_step != 0 && s->eta_s > 0)
        snprintf(out, size, "shard %llu, which recovers: step %llu of %llu, %.0f s left",
                 name(run, k), (ull)s->recovered, (ull)s->to_step, s->eta_s);
    else if (s->to_step != 0)
        snprintf(out, size, "shard %llu, which recovers: step %llu of %llu%s%s", name(run, k),
                 (ull)s->recovered, (ull)s->to_step, s->refusal[0] ? "; the try before: " : "",
                 s->refusal);
    else
        snprintf(out, size, "shard %llu, which recovers step %llu%s%s", name(run, k),
                 (ull)run->commit.committed, s->refusal[0] && !open->in_flight ? ": " : "",
                 open->in_flight ? "" : s->refusal);
}

static void say_check(const struct sfc_run_fsm *run, uint32_t k, char *out, size_t size)
{
    const struct sfc_run_shard *s = &run->shards[k];
    bool failed = s->refusal[0] && s->refused == SFC_DUTY_CHECK;
    snprintf(out, size, "shard %llu, which checks that its disk leads back to step %llu%s%s",
             name(run, k), (ull)run->rewind.step, failed ? ": " : "", failed ? s->refusal : "");
}

static bool say_duty(const struct sfc_run_fsm *run, uint32_t k, char *out, size_t size)
{
    const struct sfc_run_shard *s = &run->shards[k];
    for (unsigned d = 0; d < SFC_DUTY_COUNT; d++) {
        bool plan = d == SFC_DUTY_PLAN || d == SFC_DUTY_PLAN_NEXT;
        bool beside = d == SFC_DUTY_JOIN || d == SFC_DUTY_FETCH || d == SFC_DUTY_CANCEL;
        bool refused = s->refusal[0] && s->refused == d;
        if (!run->commit.duties[k][d].wanted || (plan && !refused) || beside)
            continue;
        if (d == SFC_DUTY_CHECK) {
            say_check(run, k, out, size);
            return true;
        }
        snprintf(out, size, "%s of shard %llu%s%s", sfc_duty_names[d], name(run, k),
                 refused ? ": " : "", refused ? s->refusal : "");
        return true;
    }
    return false;
}

bool sfc_run_waits_for_shard(const struct sfc_run_fsm *run, char *out, size_t size)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        const struct sfc_run_shard *s = &run->shards[k];
        if (s->place != SFC_PLACE_MEMBER)
            continue;
        if (s->gone) {
            snprintf(out, size,
                     "shard %llu, which does not answer; if its process has ended, start it again "
                     "with the same --listen and --state",
                     name(run, k));
            return true;
        }
        if (run->restoring && !s->known) {
            snprintf(out, size, "shard %llu, which is not registered since the restart",
                     name(run, k));
            return true;
        }
        if (sfc_run_recovers(run, k)) {
            say_recovery(run, k, out, size);
            return true;
        }
    }
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->commit.member[k] && say_duty(run, k, out, size))
            return true;
    return false;
}

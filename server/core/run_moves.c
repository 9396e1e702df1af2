/* The map of a run changes while the run goes on: a shard joins, blocks move to another shard, a
 * shard that owns nothing leaves, identities are added. One order at a time:
 *
 *   IDLE --ORDER--> PREPARING --acknowledged--> BOUNDARY --T--> TAKING --acknowledged--> WRITING
 *                    OpenRun(join)                              TakeBlocks             |
 *                    FetchBlocks                                                durable: the flip
 *   IDLE <--ORDER_DONE-- all members have it or recover with it -- SETTING <-----------'
 *                                                                  SetMap
 *
 * (LEAVE needs no preparing; only MOVE and GROW take anything, and GROW is prepared and taken by
 * every member: a shard that gets no block of it says so at once.) The boundary is a step T that is
 * committed, durable and acknowledged by every member, and of T + 1 nothing is planned: while it is
 * wanted no plan runs ahead, and a plan that is out is waited for, or voided where nobody works on
 * it. So a step has one map, from its plan to its commit.
 *
 * The durable map decides. Before it is durable the order can become void at any moment (a shard
 * that has to do with it is lost, a rewind begins, time is up, a person cancels it): nothing has
 * changed then, the source owns the blocks, and CancelMove tidies up. Afterwards nothing takes it
 * back: a shard that can't take the new map (or dies) recovers with it. While the map is on its way
 * to the store lost shards wait, as they do for a record.
 *
 * A flip waits while somebody holds the run: who holds it reads blocks by the map. (Not that of a
 * LOSS: run_loss.c. Who holds the run can't read from a lost shard.) */
#include <stdio.h>
#include <string.h>

#include "server/core/run_internal.h"

#define MAP_PAUSE_MS 500 /* until a map that could not be written is tried again */

static ull name(const struct sfc_run_fsm *run, uint32_t k)
{
    return (ull)run->shards[k].id;
}

bool sfc_run_flips(const struct sfc_run_fsm *run)
{
    return run->moves.phase >= SFC_ORDER_TAKING;
}

bool sfc_run_writes_map(const struct sfc_run_fsm *run)
{
    return run->moves.phase == SFC_ORDER_WRITING;
}

static bool held(const struct sfc_run_fsm *run)
{
    for (unsigned i = 0; i < SFC_MAX_HOLDS; i++)
        if (run->holds[i].id != 0 && run->holds[i].at_step <= run->commit.committed)
            return true;
    return false;
}

bool sfc_run_wants_boundary(const struct sfc_run_fsm *run)
{
    return run->moves.phase == SFC_ORDER_BOUNDARY && run->rewind.phase == SFC_REWIND_NONE &&
           (!held(run) || sfc_run_loses(run));
}

/* ---- places */

uint32_t sfc_run_free_place(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.max_shards; k++)
        if (run->shards[k].place == SFC_PLACE_EMPTY)
            return k;
    return UINT32_MAX;
}

static void take_place(struct sfc_run_fsm *run, uint32_t k, uint64_t id, enum sfc_place place)
{
    run->shards[k] =
        (struct sfc_run_shard){.place = place, .id = id, .life = run->shards[k].life + 1};
    sfc_commit_set_member(&run->commit, k, false);
    run->config.shards = run->commit.config.shards;
    sfc_commit_unwant_shard(&run->commit, k);
}

void sfc_run_leave_place(struct sfc_run_fsm *run, uint32_t k)
{
    take_place(run, k, 0, SFC_PLACE_EMPTY);
}

static void close_place(struct sfc_run_fsm *run, uint32_t k)
{
    take_place(run, k, run->shards[k].id, SFC_PLACE_CLOSING);
    sfc_commit_want(&run->commit, k, SFC_DUTY_CLOSE);
}

void sfc_run_on_stray(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (e->shard >= run->config.max_shards || run->shards[e->shard].place != SFC_PLACE_EMPTY ||
        sfc_run_ended(run))
        return;
    take_place(run, e->shard, e->shard_id, SFC_PLACE_CLOSING);
    sfc_commit_want(&run->commit, e->shard, SFC_DUTY_CLOSE);
}

/* ---- the end of an order */

static void done(struct sfc_run_fsm *run, int code, const char *text,
                 struct sfc_run_actions *actions)
{
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_ORDER_DONE);
    a->number = run->moves.number;
    a->code = code;
    a->text = text;
    run->moves.phase = SFC_ORDER_IDLE;
    run->moves.kind = SFC_ORDER_NONE;
}

static void cancel_at(struct sfc_run_fsm *run, uint32_t k)
{
    run->commit.duties[k][SFC_DUTY_FETCH] = (struct sfc_shard_duty){0};
    run->commit.duties[k][SFC_DUTY_TAKE] = (struct sfc_shard_duty){0};
    if (run->shards[k].place != SFC_PLACE_MEMBER || run->shards[k].lost ||
        run->commit.duties[k][SFC_DUTY_OPEN].wanted)
        return; /* what it had of the order is gone */
    run->shards[k].cancelled = run->moves.number;
    sfc_commit_want(&run->commit, k, SFC_DUTY_CANCEL);
}

/* Nothing has changed; run->error says why. */
static void give_up(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    const struct sfc_run_moves *m = &run->moves;
    if (m->kind == SFC_ORDER_MOVE && !sfc_run_ended(run)) {
        cancel_at(run, m->shard);
        cancel_at(run, m->from);
    }
    for (uint32_t k = 0; m->kind == SFC_ORDER_GROW && !sfc_run_ended(run) && k < run->config.shards;
         k++)
        cancel_at(run, k);
    if (m->kind == SFC_ORDER_JOIN && run->shards[m->shard].place == SFC_PLACE_JOINING)
        close_place(run, m->shard);
    sfc_commit_unwant(&run->commit, SFC_DUTY_ADOPT);
    done(run, run->error.code, run->error.text, actions);
}

static bool fit(struct sfc_run_fsm *run, uint32_t k)
{
    const struct sfc_run_shard *s = &run->shards[k];
    if (!s->gone && !s->lost && !run->commit.duties[k][SFC_DUTY_OPEN].wanted)
        return true;
    sfc_fail(&run->error, SFC_EUNAVAILABLE, "shard %llu %s", name(run, k),
             s->gone ? "does not answer" : "has to recover");
    return false;
}

static bool in_time(struct sfc_run_fsm *run, uint64_t now_ms)
{
    if (run->moves.phase != SFC_ORDER_TAKING || sfc_run_loses(run) ||
        now_ms < run->moves.since_ms + run->config.take_wait_ms)
        return true;
    const char *because = run->moves.error[0] ? ": " : "";
    if (run->moves.kind == SFC_ORDER_GROW)
        sfc_fail(&run->error, SFC_ETIMEOUT, "new blocks were not durable within %llu ms%s%s",
                 (ull)run->config.take_wait_ms, because, run->moves.error);
    else
        sfc_fail(
            &run->error, SFC_ETIMEOUT, "shard %llu did not get the last changes within %llu ms%s%s",
            name(run, run->moves.shard), (ull)run->config.take_wait_ms, because, run->moves.error);
    return false;
}

static bool all_fit(struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].place == SFC_PLACE_MEMBER && !fit(run, k))
            return false;
    return true;
}

static bool no_rewind(struct sfc_run_fsm *run)
{
    if (run->moves.phase != SFC_ORDER_TAKING || run->rewind.phase == SFC_REWIND_NONE)
        return true;
    sfc_fail(&run->error, SFC_EUNAVAILABLE, "a rewind to step %llu began", (ull)run->rewind.step);
    return false;
}

/* May what is not decided yet still come to a good end? */
static bool hopeful(struct sfc_run_fsm *run, uint64_t now_ms)
{
    const struct sfc_run_moves *m = &run->moves;
    if (sfc_run_ended(run)) {
        sfc_fail(&run->error, SFC_ESTATE, "the run has ended: %s", run->reason);
        return false;
    }
    if (m->kind == SFC_ORDER_LOSS)
        return sfc_run_loss_hopeful(run);
    if (m->went_back && m->kind != SFC_ORDER_LEAVE) {
        sfc_fail(&run->error, SFC_EUNAVAILABLE, "the run went back to step %llu",
                 (ull)run->commit.committed);
        return false;
    }
    if (m->kind == SFC_ORDER_MOVE && (!fit(run, m->from) || !fit(run, m->shard)))
        return false;
    if (m->kind == SFC_ORDER_GROW && !all_fit(run))
        return false;
    return in_time(run, now_ms) && no_rewind(run);
}

/* ---- the boundary */

/* The order at work is about a shard that is dead. */
static bool about_dead(const struct sfc_run_fsm *run)
{
    const struct sfc_run_moves *m = &run->moves;
    bool leaves = m->kind == SFC_ORDER_LEAVE &&
                  (run->shards[m->shard].gone || sfc_run_recovers(run, m->shard));
    return leaves || m->kind == SFC_ORDER_LOSS;
}

/* It keeps nobody waiting. */
static bool left_out(const struct sfc_run_fsm *run, uint32_t k)
{
    if (sfc_run_loses(run))
        return sfc_run_is_dead(run, k);
    return k == run->moves.shard && about_dead(run);
}

static bool owed(const struct sfc_run_fsm *run, enum sfc_duty duty)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->commit.duties[k][duty].wanted && !left_out(run, k))
            return true;
    return false;
}

/* A map that changes who mirrors whom would take from a dead shard those that can restore its
 * blocks. */
static bool any_missing(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if ((run->shards[k].lost || sfc_run_is_dead(run, k)) && !left_out(run, k))
            return true;
    return false;
}

static bool at_boundary(const struct sfc_run_fsm *run)
{
    const struct sfc_commit_fsm *c = &run->commit;
#if SFC_PLANT_BUG == 21 /* the map flips in the middle of a plan */
    bool unplanned = c->phase == SFC_PHASE_COLLECT || c->phase == SFC_PHASE_COMPUTE;
#else
    bool unplanned = (c->phase == SFC_PHASE_COLLECT && !c->plan_sent && !c->next_plan_sent) ||
                     (c->phase == SFC_PHASE_ROUND && about_dead(run));
#endif
    bool known = !run->restoring || sfc_run_loses(run);
    return unplanned && known && run->durable == c->committed && !run->round_wanted &&
           !run->back_wanted && !any_missing(run) && !owed(run, SFC_DUTY_OPEN) &&
           !owed(run, SFC_DUTY_COMMIT) && !owed(run, SFC_DUTY_ABORT) && !owed(run, SFC_DUTY_SETMAP);
}

static bool granted(const struct sfc_run_fsm *run)
{
    const struct sfc_tickets *t = &run->tickets;
    const struct sfc_ticket_step *s = &t->steps[t->open_step % (t->config.lead_steps + 1)];
    for (uint32_t j = 0; j < t->config.micro_batches; j++)
        if (s->micro_batches[j].grant == SFC_TICKET_OUT)
            return true;
    return false;
}

/* The plan of a step that won't be prepared gives way at once; one that nobody computes, after a
 * while. A session would not survive it. */
static bool plan_gives_way(struct sfc_run_fsm *run, uint64_t now_ms)
{
    const struct sfc_commit_fsm *c = &run->commit;
    struct sfc_run_moves *m = &run->moves;
    bool dead = about_dead(run);
    bool planned = c->phase == SFC_PHASE_COMPUTE || (dead && c->phase == SFC_PHASE_PREPARE);
    bool may = planned && run->durable == c->committed && !run->restoring;
    if (may && (dead || (run->session == 0 && !sfc_run_gate_open(run))))
        return true;
    bool unused = may && run->session == 0 && c->done_count == 0 && !granted(run);
    if (!unused || m->idle_ms == 0)
        m->idle_ms = unused ? now_ms : 0;
    return unused && now_ms >= m->idle_ms + run->config.stall_ms;
}

/* ---- the flip */

static void write_map(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    run->moves.phase = SFC_ORDER_WRITING;
    run->moves.again_ms = 0;
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_WRITE_MAP);
    a->number = run->moves.number;
    a->step = run->commit.committed;
    a->version = run->config.map_version + 1;
#if SFC_PLANT_BUG == 18 /* shards are told before the map is durable */
    sfc_run_emit(actions, SFC_ACT_MAP)->number = run->moves.number;
    run->moves.map_order = run->moves.number;
    sfc_commit_want_all(&run->commit, SFC_DUTY_SETMAP);
#endif
}

static void begin_flip(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    struct sfc_run_moves *m = &run->moves;
    m->error[0] = '\0';
    if (m->kind == SFC_ORDER_LOSS && sfc_run_ask_adopters(run)) {
        m->phase = SFC_ORDER_TAKING;
        return;
    }
#if SFC_PLANT_BUG == 23 /* a run grows before the new blocks are on disks */
    bool takes = m->kind == SFC_ORDER_MOVE;
#else
    bool takes = m->kind == SFC_ORDER_MOVE || m->kind == SFC_ORDER_GROW;
#endif
    if (!takes) {
        write_map(run, actions);
        return;
    }
    m->phase = SFC_ORDER_TAKING;
    m->since_ms = now_ms;
    if (m->kind == SFC_ORDER_GROW)
        sfc_commit_want_all(&run->commit, SFC_DUTY_TAKE);
    else
        sfc_commit_want(&run->commit, m->shard, SFC_DUTY_TAKE);
}

static void flip(struct sfc_run_fsm *run, struct sfc_run_actions *actions)
{
    struct sfc_run_moves *m = &run->moves;
    run->config.map_version++;
    m->map_step = run->commit.committed;
    m->map_order = m->number;
    m->error[0] = '\0';
    m->phase = SFC_ORDER_SETTING;
    sfc_run_emit(actions, SFC_ACT_MAP)->number = m->number;
    if (m->kind == SFC_ORDER_JOIN) {
        run->shards[m->shard].place = SFC_PLACE_MEMBER;
        run->shards[m->shard].known = true;
        run->round_wanted = run->round_wanted || run->shards[m->shard].lost;
        sfc_commit_set_member(&run->commit, m->shard, true);
    } else if (m->kind == SFC_ORDER_LEAVE || m->kind == SFC_ORDER_LOSS) {
        const struct sfc_run_shard *s = &run->shards[m->shard];
        bool gone = s->gone || s->lost || (run->restoring && !s->known);
        close_place(run, m->shard);
        if (gone)
            sfc_run_leave_place(run, m->shard);
    } else if (m->kind == SFC_ORDER_GROW) {
        run->config.classes = m->classes;
        run->tickets.config.classes = m->classes;
    }
    sfc_commit_want_all(&run->commit, SFC_DUTY_SETMAP);
    if (m->kind == SFC_ORDER_LOSS)
        sfc_run_flip_loss(run);
}

/* Every shard has the map; one that is silent gets it, or recovers with it, when it is back. */
static bool settled(const struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->commit.duties[k][SFC_DUTY_SETMAP].wanted && !run->shards[k].gone)
            return false;
    return true;
}

void sfc_run_moves_advance(struct sfc_run_fsm *run, uint64_t now_ms,
                           struct sfc_run_actions *actions)
{
    struct sfc_run_moves *m = &run->moves;
    bool undecided = m->phase < SFC_ORDER_WRITING;
    if (m->phase == SFC_ORDER_IDLE)
        return;
    if ((undecided || sfc_run_ended(run)) && !hopeful(run, now_ms)) {
        give_up(run, actions);
        return;
    }
    if (sfc_run_loses(run))
        sfc_run_loss_advance(run);
    if (sfc_run_wants_boundary(run) && plan_gives_way(run, now_ms))
        sfc_run_new_round(run);
    if (sfc_run_wants_boundary(run) && at_boundary(run))
        begin_flip(run, now_ms, actions);
    if (m->phase == SFC_ORDER_SETTING && settled(run))
        done(run, SFC_OK, "", actions);
}

void sfc_run_moves_tick(struct sfc_run_fsm *run, uint64_t now_ms, struct sfc_run_actions *actions)
{
    if (run->moves.phase == SFC_ORDER_WRITING && run->moves.again_ms != 0 &&
        now_ms >= run->moves.again_ms)
        write_map(run, actions);
}

/* ---- events */

bool sfc_run_may_order(const struct sfc_run_fsm *run)
{
    return sfc_run_active(run) && !run->restoring && run->moves.phase == SFC_ORDER_IDLE;
}

static bool is_place(const struct sfc_run_fsm *run, uint32_t k, enum sfc_place place)
{
    return k < run->config.max_shards && run->shards[k].place == place;
}

static int check_order(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (e->order == SFC_ORDER_LOSS)
        return sfc_run_check_loss(run, e);
    if (!sfc_run_may_order(run))
        return sfc_fail(&run->error, SFC_ESTATE, "not possible while the run is %s",
                        run->restoring ? "waiting for its shards after a restart"
                                       : sfc_run_state_name(run->state));
    if (e->order == SFC_ORDER_GROW)
        return e->classes > run->config.classes
                   ? SFC_OK
                   : sfc_fail(&run->error, SFC_EINVAL, "classes: %llu, but the run has %llu",
                              (ull)e->classes, (ull)run->config.classes);
    enum sfc_place place = e->order == SFC_ORDER_JOIN ? SFC_PLACE_EMPTY : SFC_PLACE_MEMBER;
    bool from = e->order != SFC_ORDER_MOVE ||
                (is_place(run, e->from, SFC_PLACE_MEMBER) && e->from != e->shard);
    if (e->order == SFC_ORDER_NONE || !is_place(run, e->shard, place) || !from)
        return sfc_fail(&run->error, SFC_EINVAL, "the order names a shard that is %s",
                        e->order == SFC_ORDER_JOIN ? "a member already" : "no member (any more)");
    return SFC_OK;
}

static void begin(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                  struct sfc_run_actions *actions)
{
    struct sfc_run_moves *m = &run->moves;
    m->phase = SFC_ORDER_PREPARING;
    m->kind = e->order;
    m->number = e->number;
    m->shard = e->shard;
    m->from = e->from;
    m->classes = e->classes;
    m->went_back = false;
    m->idle_ms = 0;
    m->error[0] = '\0';
    if (e->order == SFC_ORDER_JOIN) {
        take_place(run, e->shard, e->shard_id, SFC_PLACE_JOINING);
        sfc_commit_want(&run->commit, e->shard, SFC_DUTY_JOIN);
    } else if (e->order == SFC_ORDER_MOVE) {
        sfc_commit_want(&run->commit, e->shard, SFC_DUTY_FETCH);
    } else if (e->order == SFC_ORDER_LOSS) {
        sfc_run_begin_loss(run, e, actions);
    } else if (e->order == SFC_ORDER_GROW) {
        sfc_commit_want_all(&run->commit, SFC_DUTY_FETCH);
    } else {
        m->phase = SFC_ORDER_BOUNDARY;
    }
}

static void on_cancel(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      struct sfc_run_actions *actions)
{
    const struct sfc_run_moves *m = &run->moves;
    if (m->phase == SFC_ORDER_IDLE || m->phase >= SFC_ORDER_WRITING ||
        (e->number != 0 && e->number != m->number))
        return;
    sfc_fail(&run->error, SFC_ECANCELED, "it was cancelled");
    give_up(run, actions);
}

void sfc_run_on_order(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      struct sfc_run_actions *actions)
{
    if (e->type == SFC_EV_ORDER_CANCEL) {
        on_cancel(run, e, actions);
        return;
    }
    if (check_order(run, e) == SFC_OK) {
        begin(run, e, actions);
        return;
    }
    struct sfc_run_action *a = sfc_run_emit(actions, SFC_ACT_ORDER_DONE);
    a->number = e->number;
    a->code = run->error.code;
    a->text = run->error.text;
}

void sfc_run_on_map(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    struct sfc_run_actions *actions)
{
    struct sfc_run_moves *m = &run->moves;
    if (m->phase != SFC_ORDER_WRITING || e->number != m->number || sfc_run_ended(run))
        return;
    if (e->type == SFC_EV_MAP_DURABLE) {
        flip(run, actions);
        return;
    }
    sfc_fail(&run->error, e->code, "the map of version %llu can't be written: %s",
             (ull)run->config.map_version + 1, e->text ? e->text : sfc_status_text(e->code));
    snprintf(m->error, sizeof(m->error), "%.255s", e->text ? e->text : "");
    m->again_ms = e->now_ms + MAP_PAUSE_MS;
    if (e->code == SFC_EINVAL)
        give_up(run, actions);
    else if (e->code != SFC_EIO && e->code != SFC_ENOMEM && e->code != SFC_ESTATE)
        sfc_run_fail(run, run->error.text);
}

void sfc_run_on_guest(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                      struct sfc_run_actions *actions)
{
    uint32_t k = e->shard;
    if (e->type == SFC_EV_SHARD_BACK) {
        run->shards[k].gone = false;
        sfc_commit_resend(&run->commit, k);
    }
    if (e->type != SFC_EV_SHARD_LOST && e->type != SFC_EV_SHARD_GONE)
        return;
    if (run->shards[k].place == SFC_PLACE_JOINING) {
        sfc_fail(&run->error, SFC_EUNAVAILABLE, "shard %llu %s while it joined", name(run, k),
                 e->type == SFC_EV_SHARD_LOST ? "was restarted" : "did not answer any more");
        if (!sfc_run_writes_map(run)) {
            give_up(run, actions);
        } else if (e->type == SFC_EV_SHARD_LOST) {
            sfc_run_forget_life(&run->shards[k]);
            run->shards[k].gone = false;
            run->shards[k].lost = true; /* the map decides whether it recovers */
            return;
        } else {
            run->shards[k].gone = true;
            return;
        }
    }
    if (run->shards[k].place == SFC_PLACE_CLOSING)
        sfc_run_leave_place(run, k);
}

/* ---- answers */

bool sfc_run_is_move_duty(enum sfc_duty duty)
{
    return duty >= SFC_DUTY_JOIN && duty <= SFC_DUTY_CANCEL;
}

uint64_t sfc_run_move_number(const struct sfc_run_fsm *run, uint32_t k, enum sfc_duty duty)
{
    if (duty == SFC_DUTY_CANCEL)
        return run->shards[k].cancelled;
    if (duty == SFC_DUTY_SETMAP)
        return run->moves.map_order;
    bool newest = sfc_run_is_move_duty(duty) || duty == SFC_DUTY_OPEN || duty == SFC_DUTY_CLOSE;
    return newest ? run->moves.number : 0;
}

static void acknowledged(struct sfc_run_fsm *run, enum sfc_duty duty,
                         struct sfc_run_actions *actions)
{
    run->moves.error[0] = '\0';
    if (!sfc_commit_idle(&run->commit, duty)) /* GROW: others have not answered yet */
        return;
    if (duty == SFC_DUTY_JOIN || duty == SFC_DUTY_FETCH)
        run->moves.phase = SFC_ORDER_BOUNDARY;
    else if (duty == SFC_DUTY_TAKE && hopeful(run, 0))
        write_map(run, actions);
    else if (duty == SFC_DUTY_ADOPT && sfc_commit_idle(&run->commit, SFC_DUTY_ADOPT) &&
             hopeful(run, 0))
        write_map(run, actions);
}

/* Its disk leads to what the map says. The round is a newer one than it has heard of, or OpenRun
 * would look like a late copy to it. */
void sfc_run_recover_with_map(struct sfc_run_fsm *run, uint32_t k)
{
    sfc_run_lose(run, k);
    if (!run->restoring)
        return;
    sfc_run_new_round(run);
    for (uint32_t i = 0; i < run->config.shards; i++)
        if (!run->shards[i].known) /* it may need a Commit first */
            run->commit.duties[i][SFC_DUTY_ABORT] = (struct sfc_shard_duty){0};
}

static void refused(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                    struct sfc_run_actions *actions)
{
    const char *text = e->text && e->text[0] ? e->text : sfc_status_text(e->code);
    bool old = sfc_attempt_compare(e->round, run->commit.round) != 0; /* an Abort overtook it */
    if (e->duty == SFC_DUTY_SETMAP) {
        if (!sfc_run_transient(e->code) && !old)
            sfc_run_recover_with_map(run, e->shard);
        return;
    }
    snprintf(run->moves.error, sizeof(run->moves.error), "%.255s", text);
    if (sfc_run_transient(e->code))
        return;
    sfc_fail(&run->error, e->code, "shard %llu refused %s: %.300s", name(run, e->shard),
             sfc_duty_names[e->duty], text);
    give_up(run, actions);
}

void sfc_run_on_move_reply(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                           struct sfc_run_actions *actions)
{
    bool ok = e->code == SFC_OK, cancel = e->duty == SFC_DUTY_CANCEL;
    bool over = ok || (cancel && !sfc_run_transient(e->code)); /* it knows nothing of it: fine */
    if (e->life != run->shards[e->shard].life ||
        e->number != sfc_run_move_number(run, e->shard, e->duty) ||
        !sfc_commit_answer(&run->commit, e->shard, e->duty, over, e->now_ms) || cancel)
        return;
    if (!ok)
        refused(run, e, actions);
    else if (e->duty != SFC_DUTY_SETMAP)
        acknowledged(run, e->duty, actions);
}

/* ---- for people */

void sfc_run_order_waits_for(const struct sfc_run_fsm *run, char *out, size_t size)
{
    const struct sfc_run_moves *m = &run->moves;
    bool boundary = m->phase == SFC_ORDER_BOUNDARY;
    const char *text = "";
    if (m->phase != SFC_ORDER_IDLE && m->error[0])
        text = m->error;
    else if (boundary && run->rewind.phase != SFC_REWIND_NONE)
        text = "the end of a rewind";
    else if (boundary && held(run))
        text = "the end of a hold: somebody reads blocks";
    else if (boundary)
        text = "the end of the step that is planned";
    snprintf(out, size, "%s", text);
}

bool sfc_run_waits_for_map(const struct sfc_run_fsm *run, char *out, size_t size)
{
    const struct sfc_run_moves *m = &run->moves;
    if (m->phase != SFC_ORDER_WRITING)
        return false;
    snprintf(out, size, "the map of version %llu to be written%s%s",
             (ull)run->config.map_version + 1, m->error[0] ? ": " : "", m->error);
    return true;
}

/* The call Scale: what would be done, and, unless that was all that was asked, the goal. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/loss.h"
#include "server/scheduler/scale_parts.h"

static Shardfc__V1__PlannedMove *planned_moves(const struct sfc_scale_input *x,
                                               const struct sfc_move_plan *plan)
{
    Shardfc__V1__PlannedMove *moves = calloc(plan->move_count + 1, sizeof *moves);
    for (uint32_t i = 0; moves && i < plan->move_count; i++) {
        const struct sfc_plan_move *m = &plan->moves[i];
        bool dense = m->block >= x->in.class_blocks;
        shardfc__v1__planned_move__init(&moves[i]);
        moves[i].kind =
            dense ? SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK : SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK;
        moves[i].block = m->block - (dense ? x->in.class_blocks : 0);
        moves[i].from = x->shards[m->from].id;
        moves[i].to = x->shards[m->to].id;
        moves[i].bytes = x->blocks[m->block].state;
    }
    return moves;
}

/* That a plan leaves too few shards for the mirrors that the run was created with. */
static void say_mirrors(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                        const struct sfc_move_plan *plan, char *out, size_t size)
{
    uint32_t after = 0;
    for (uint32_t k = 0; k < x->in.shard_count; k++)
        after += plan->joins[k] || (x->shards[k].member && !plan->leaves[k]) ? 1 : 0;
    out[0] = '\0';
    if (plan->missing == 0 && after > 0 && after <= run->mirrors)
        snprintf(out, size,
                 "then %u of the %u mirrors of each shard (--mirror) are left, until there are %u "
                 "shards again%s\n",
                 after - 1, run->mirrors, run->mirrors + 1,
                 after == 1 ? ": with the last shard's machine the run would be lost" : "");
}

/* Packed. NULL: no memory. */
static uint8_t *pack_reply(const struct sfc_sched_run *run, const struct sfc_scale_input *x,
                           const struct sfc_move_plan *plan, size_t *size)
{
    Shardfc__V1__ScaleReply m = SHARDFC__V1__SCALE_REPLY__INIT;
    Shardfc__V1__PlannedMove *moves = planned_moves(x, plan);
    Shardfc__V1__PlannedMove **list =
        calloc(plan->move_count + 1, sizeof(Shardfc__V1__PlannedMove *));
    char mirrors[200];
    size_t room = strlen(plan->text) + sizeof x->others + sizeof mirrors + 80;
    char *text = calloc(1, room);
    uint8_t *bytes = NULL;
    if (moves && list && text) {
        for (uint32_t i = 0; i < plan->move_count; i++)
            list[i] = &moves[i];
        say_mirrors(run, x, plan, mirrors, sizeof mirrors);
        snprintf(text, room, "%s%s%s%s%s", plan->text, x->others[0] ? "can't take part: " : "",
                 x->others, x->others[0] ? "\n" : "", mirrors);
        m.n_moves = plan->move_count;
        m.moves = list;
        m.bytes = plan->bytes;
        m.estimated_s = plan->estimated_s;
        m.explanation = text;
        m.map_version = run->map->version;
        m.goal = run->scale->number + 1;
        bytes = sfc_message_pack(&m, size);
    }
    free(moves);
    free(list);
    free(text);
    return bytes;
}

/* ---- durable */

struct scale_call {
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    uint8_t *reply;
    size_t reply_size;
};

static void call_free(struct scale_call *c)
{
    free(c->reply);
    free(c);
}

static void stored(void *ctx, const struct sfc_error *err)
{
    struct scale_call *c = ctx;
    if (err->code == SFC_OK)
        sfc_rpc_reply(c->call, (struct sfc_bytes){c->reply, c->reply_size},
                      (struct sfc_bytes){NULL, 0}, NULL, NULL);
    else
        sfc_sched_refuse(c->scheduler, c->call, err);
    call_free(c);
}

/* ---- the call */

static int check_run(struct sfc_scheduler *s, const Shardfc__V1__ScaleRequest *r,
                     struct sfc_error *err)
{
    struct sfc_sched_run *run = s->run;
    if (!run || (r->run_id && r->run_id != run->id))
        return sfc_fail(err, run ? SFC_ESTALE : SFC_ESTATE,
                        run ? "run_id: %" PRIu64 " is not the present run" : "there is no run",
                        r->run_id);
    const struct sfc_run_fsm *fsm = &run->fsm;
    if (!fsm->started && !fsm->failed && !fsm->stopped)
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "run %s is loading: its shards can't change yet; try again",
                        run->config->name);
    if (fsm->failed || fsm->stopped)
        return sfc_fail(err, SFC_ESTATE, "run %s is %s: its shards can't change", run->config->name,
                        sfc_run_state_name(fsm->state));
    return SFC_OK;
}

static int check(struct sfc_scheduler *s, const Shardfc__V1__ScaleRequest *r, struct sfc_error *err)
{
    int code = check_run(s, r, err);
    const struct sfc_sched_run *run = s->run;
    if (code != SFC_OK)
        return code;
    if (run->fsm.finished)
        return sfc_fail(err, SFC_ESTATE, "run %s is %s: its shards can't change", run->config->name,
                        sfc_run_state_name(run->fsm.state));
    if (r->action != SHARDFC__V1__SCALE_REQUEST__ACTION__CANCEL &&
        sfc_scale_goal_of(r).kind == SFC_GOAL_NONE)
        return sfc_fail(err, SFC_EINVAL, "action: %d", (int)r->action);
    return SFC_OK;
}

/* Shards of another numerics class are there, and enough others are not. */
static int check_others(const struct sfc_scale_input *x, const struct sfc_move_plan *plan,
                        struct sfc_error *err)
{
    if (plan->missing == 0 || x->other_count == 0)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL,
                    "%u more shard%s needed, and of those that are there: %s. Results would depend "
                    "on the placement (create the run with --mixed to allow it)",
                    plan->missing, plan->missing == 1 ? " is" : "s are", x->others);
}

static int check_wanted(const struct sfc_sched_run *run, const struct sfc_goal *goal,
                        const struct sfc_scale_input *x, struct sfc_error *err)
{
    const struct sfc_shard_member *m = sfc_membership_shard(&run->scheduler->members, goal->shard);
    if (goal->kind != SFC_GOAL_DRAIN && goal->kind != SFC_GOAL_JOIN)
        return SFC_OK;
    if (goal->kind == SFC_GOAL_DRAIN && m && sfc_sched_run_shard(run, goal->shard) == UINT32_MAX)
        return sfc_fail(err, SFC_EINVAL, "shard %" PRIu64 " takes no part in run %s", goal->shard,
                        run->config->name);
    return goal->kind == SFC_GOAL_JOIN && x->other_count && m
               ? sfc_fail(err, SFC_EINVAL, "%s (create the run with --mixed to allow it)",
                          x->others)
               : SFC_OK;
}

static int make(struct sfc_sched_run *run, const struct sfc_goal *goal, struct scale_call *c,
                struct sfc_error *err)
{
    struct sfc_scale_input *x = NULL;
    struct sfc_move_plan plan = {0};
    int code = sfc_scale_input_new(run, goal, &x, err);
    if (code == SFC_OK)
        code = check_wanted(run, goal, x, err);
    if (code == SFC_OK)
        code = sfc_scale_plan(run, x, &plan, err);
    if (code == SFC_OK)
        code = check_others(x, &plan, err);
    if (code == SFC_OK) {
        c->reply = pack_reply(run, x, &plan, &c->reply_size);
        if (!c->reply)
            code = sfc_fail(err, SFC_ENOMEM, "no memory for the plan");
    }
    sfc_move_plan_free(&plan);
    sfc_scale_input_free(x);
    return code;
}

static void note(struct sfc_scheduler *s, struct sfc_rpc_call *call, const struct sfc_goal *goal)
{
    char what[64];
    sfc_goal_text(goal, what, sizeof what);
    if (goal->kind == SFC_GOAL_NONE)
        sfc_sched_event_by(s, call, "asks run %s to leave its blocks where they are",
                           s->run->config->name);
    else
        sfc_sched_event_by(s, call, "asks run %s for: %s", s->run->config->name, what);
}

/* Answered when it is durable; the order follows, and Status says when the shard is no member any
 * more. */
static void give_up(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                    const Shardfc__V1__ScaleRequest *r)
{
    struct sfc_error err = {0};
    Shardfc__V1__ScaleReply m = SHARDFC__V1__SCALE_REPLY__INIT;
    char text[256];
    struct scale_call *c = calloc(1, sizeof *c);
    int code = c ? check_run(s, r, &err) : sfc_fail(&err, SFC_ENOMEM, "no memory for the call");
    if (code == SFC_OK)
        code = sfc_loss_check(s->run, r->shard, text, sizeof text, &err);
    if (code == SFC_OK) {
        m.explanation = text;
        m.map_version = s->run->map->version;
        *c = (struct scale_call){.scheduler = s, .call = call};
        c->reply = sfc_message_pack(&m, &c->reply_size);
        if (!c->reply)
            code = sfc_fail(&err, SFC_ENOMEM, "no memory for the answer");
    }
    if (code != SFC_OK) {
        sfc_sched_refuse(s, call, &err);
        free(c);
    } else if (r->dry_run) {
        stored(c, &(struct sfc_error){.code = SFC_OK});
    } else {
        const struct sfc_wishes wishes = sfc_loss_wishes(s->run, r->shard);
        sfc_sched_event_by(s, call, "gives shard %" PRIu64 " of run %s up for lost", r->shard,
                           s->run->config->name);
        sfc_scale_store_lost(s->run, &wishes, stored, c);
    }
}

void sfc_sched_on_scale(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ScaleRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__scale_request__descriptor);
    if (!r)
        return;
    if (s->run && s->run->scale->storing) { /* one goal at a time, see sfc_scale_stored */
        sfc_sched_park(s, call, SFC_PARKED_SCALE);
        sfc_message_free(r);
        return;
    }
    if (r->action == SHARDFC__V1__SCALE_REQUEST__ACTION__LOST) {
        give_up(s, call, r);
        sfc_message_free(r);
        return;
    }
    struct scale_call *c = calloc(1, sizeof *c);
    const struct sfc_goal goal = sfc_scale_goal_of(r);
    int code = c ? check(s, r, &err) : sfc_fail(&err, SFC_ENOMEM, "no memory for the plan");
    if (code == SFC_OK) {
        c->scheduler = s;
        c->call = call;
        code = make(s->run, &goal, c, &err);
        if (code == SFC_ESTATE && sfc_loss_may_register(s->run))
            code = sfc_fail(&err, SFC_EUNAVAILABLE,
                            "shards may still register, because the scheduler has just restarted: "
                            "try again");
    }
    if (code != SFC_OK) {
        sfc_sched_refuse(s, call, &err);
        if (c)
            call_free(c);
    } else if (r->dry_run) {
        stored(c, &(struct sfc_error){.code = SFC_OK});
    } else {
        note(s, call, &goal);
        sfc_scale_store(s->run, &goal, stored, c);
    }
    sfc_message_free(r);
}

static struct sfc_parked *first_waiting(struct sfc_scheduler *s)
{
    struct sfc_parked *first = NULL;
    for (struct sfc_parked *p = s->parked; p; p = p->next)
        if (p->kind == SFC_PARKED_SCALE)
            first = p; /* the newest is in front */
    return first;
}

void sfc_scale_stored(struct sfc_scheduler *s)
{
    struct sfc_parked *p;
    while (s->run && !s->run->scale->storing && (p = first_waiting(s))) {
        struct sfc_rpc_call *call = p->call;
        sfc_rpc_call_on_cancel(call, NULL, NULL);
        sfc_sched_unpark(p);
        sfc_sched_on_scale(call, s);
    }
}

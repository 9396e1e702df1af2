/* A shard is given up for lost: order LOSS. Its blocks go to shards that mirror it, which recover
 * them, with their own ones, from their disks; its place becomes empty.
 *
 * It is a change of the map like others (run_moves.c), with three differences. It doesn't wait for
 * the dead: what they owe is left out of the boundary. What the lost shard may hold up (a plan,
 * provisional steps, a rewind that is under way) is void. And at the boundary those who take the
 * blocks are asked first whether their disks lead there with them (CheckRewind with the new map):
 * the new map takes the way back to the lost shard's own disk away.
 *
 * With its place goes its disk, also for those that it mirrors (its wards). So while one of them is
 * missing too, and nobody else is there who can restore that one, it stays: either may come back,
 * and the run needs no more than that. */
#include <stdio.h>

#include "server/core/run_internal.h"

/* It answers, but can't recover, and is not asked again. */
static bool lame(const struct sfc_run_fsm *run, uint32_t k)
{
    const struct sfc_shard_duty *open = &run->commit.duties[k][SFC_DUTY_OPEN];
    return run->started && open->wanted && open->retry_ms == UINT64_MAX;
}

bool sfc_run_is_dead(const struct sfc_run_fsm *run, uint32_t k)
{
    const struct sfc_run_shard *s = &run->shards[k];
    return s->place == SFC_PLACE_MEMBER &&
           (s->gone || (run->restoring && !s->known) || lame(run, k));
}

void sfc_run_note_missing(struct sfc_run_fsm *run, uint64_t now_ms)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        struct sfc_run_shard *s = &run->shards[k];
        if (!sfc_run_is_dead(run, k))
            s->missing_ms = 0;
        else if (s->missing_ms == 0)
            s->missing_ms = now_ms ? now_ms : 1;
    }
}

uint64_t sfc_run_missing(const struct sfc_run_fsm *run, uint32_t k, uint64_t now_ms)
{
    uint64_t since = run->shards[k].missing_ms;
    return since != 0 && now_ms > since && sfc_run_is_dead(run, k) ? now_ms - since : 0;
}

bool sfc_run_may_give_up(const struct sfc_run_fsm *run)
{
    return sfc_run_active(run) && run->moves.phase == SFC_ORDER_IDLE &&
           run->rewind.phase != SFC_REWIND_WRITING;
}

bool sfc_run_loses(const struct sfc_run_fsm *run)
{
    return run->moves.kind == SFC_ORDER_LOSS;
}

/* ---- the order */

/* One that recovers may turn out to have lost its disk: from when adopters are asked until the map
 * is written it does not count. */
static bool is_there(const struct sfc_run_fsm *run, uint32_t k)
{
    bool asked = run->moves.phase == SFC_ORDER_TAKING;
    bool recovers = run->shards[k].lost || run->commit.duties[k][SFC_DUTY_OPEN].wanted;
    return !sfc_run_is_dead(run, k) && !(asked && recovers);
}

bool sfc_run_endangers(const struct sfc_run_fsm *run, const struct sfc_run_ward *ward)
{
    bool safe = is_there(run, ward->place);
    for (uint32_t i = 0; i < ward->others.count && !safe; i++)
        safe = is_there(run, ward->others.at[i]);
    return !safe;
}

static int check_ward(struct sfc_run_fsm *run, const struct sfc_run_ward *ward)
{
#if SFC_PLANT_BUG == 24 /* the only copies of a missing shard's blocks go with its mirror */
    return SFC_OK;
#endif
    if (!sfc_run_endangers(run, ward))
        return SFC_OK;
    return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                    "shard %llu is missing as well, or has to recover, and this one may have the "
                    "only copies of its blocks",
                    (ull)run->shards[ward->place].id);
}

int sfc_run_check_loss(struct sfc_run_fsm *run, const struct sfc_run_event *e)
{
    if (!sfc_run_may_give_up(run))
        return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                        "another change of the map, or the end of a rewind, comes first");
    if (e->shard >= run->config.shards || !sfc_run_is_dead(run, e->shard))
        return sfc_fail(&run->error, SFC_ESTATE, "the shard answers, or is no member any more");
    for (uint32_t i = 0; i < e->adopter_count; i++) {
        uint32_t k = e->adopters[i];
        if (k >= run->config.shards || run->shards[k].place != SFC_PLACE_MEMBER ||
            sfc_run_is_dead(run, k))
            return sfc_fail(&run->error, SFC_EUNAVAILABLE,
                            "a shard that is to take its blocks does not answer");
    }
    for (uint32_t i = 0; i < e->ward_count; i++)
        if (check_ward(run, &e->wards[i]) != SFC_OK)
            return run->error.code;
    return SFC_OK;
}

void sfc_run_begin_loss(struct sfc_run_fsm *run, const struct sfc_run_event *e,
                        struct sfc_run_actions *actions)
{
    run->moves.phase = SFC_ORDER_BOUNDARY;
    for (uint32_t k = 0; k < run->config.shards; k++)
        run->shards[k].adopts = run->shards[k].is_ward = false;
    for (uint32_t i = 0; i < e->adopter_count; i++)
        run->shards[e->adopters[i]].adopts = true;
    for (uint32_t i = 0; i < e->ward_count; i++) {
        run->shards[e->wards[i].place].is_ward = true;
        run->shards[e->wards[i].place].others = e->wards[i].others;
    }
    if (run->rewind.phase != SFC_REWIND_NONE)
        sfc_run_rewind_refused(run, e->shard, SFC_EUNAVAILABLE, "it is given up for lost", actions);
}

static bool spares_wards(struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        const struct sfc_run_ward ward = {.place = k, .others = run->shards[k].others};
        if (run->shards[k].is_ward && check_ward(run, &ward) != SFC_OK)
            return false;
    }
    return true;
}

bool sfc_run_loss_hopeful(struct sfc_run_fsm *run)
{
    uint32_t lost = run->moves.shard;
    if (!sfc_run_is_dead(run, lost)) {
        sfc_fail(&run->error, SFC_ECANCELED, "shard %llu answers again", (ull)run->shards[lost].id);
        return false;
    }
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].adopts && !is_there(run, k)) {
            sfc_fail(&run->error, SFC_EUNAVAILABLE,
                     "shard %llu, which was to take its blocks, is missing too, or has to recover",
                     (ull)run->shards[k].id);
            return false;
        }
    return spares_wards(run);
}

/* Provisional steps are in the lost shard's log only as far as anybody knows. */
void sfc_run_loss_advance(struct sfc_run_fsm *run)
{
    if (run->moves.phase == SFC_ORDER_BOUNDARY && run->commit.phase != SFC_PHASE_RECORD &&
        run->durable < run->commit.committed)
        run->back_wanted = true;
}

bool sfc_run_ask_adopters(struct sfc_run_fsm *run)
{
    bool any = false;
#if SFC_PLANT_BUG == 22 /* blocks go to a mirror whether it can restore them or not */
    return any;
#endif
    for (uint32_t k = 0; k < run->config.shards; k++)
        if (run->shards[k].adopts) {
            sfc_commit_want(&run->commit, k, SFC_DUTY_ADOPT);
            any = true;
        }
    return any;
}

/* Whoever takes blocks recovers with the new map. One that is not known since our restart says
 * itself what it needs. */
void sfc_run_flip_loss(struct sfc_run_fsm *run)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        if (run->restoring && !run->shards[k].known)
            run->commit.duties[k][SFC_DUTY_SETMAP] = (struct sfc_shard_duty){0};
        if (run->shards[k].adopts)
            sfc_run_recover_with_map(run, k);
        run->shards[k].adopts = false;
    }
}

/* What keeps the open step from being computed. */
#include "server/core/run_internal.h"

static bool waits_for_shard(const struct sfc_run_fsm *run, enum sfc_run_delay *delay,
                            uint32_t *place)
{
    for (uint32_t k = 0; k < run->config.shards; k++) {
        if (run->shards[k].place != SFC_PLACE_MEMBER || !run->shards[k].gone)
            continue;
        *delay = SFC_DELAY_AWAY;
        *place = k;
        return true;
    }
    for (uint32_t k = 0; k < run->config.shards; k++) {
        if (run->shards[k].place != SFC_PLACE_MEMBER || !sfc_run_recovers(run, k))
            continue;
        *delay = SFC_DELAY_RECOVERY;
        *place = k;
        return true;
    }
    return false;
}

static enum sfc_run_delay of_map(const struct sfc_run_fsm *run)
{
    const struct sfc_commit_fsm *c = &run->commit;
    if (run->moves.phase == SFC_ORDER_TAKING)
        return SFC_DELAY_TAKE;
    if (run->moves.phase == SFC_ORDER_WRITING)
        return SFC_DELAY_WRITE_MAP;
    if (!sfc_commit_idle(c, SFC_DUTY_SETMAP))
        return SFC_DELAY_SET_MAP;
    bool unplanned = c->phase == SFC_PHASE_COLLECT && !c->plan_sent;
    return unplanned && sfc_run_wants_boundary(run) ? SFC_DELAY_BOUNDARY : SFC_DELAY_NONE;
}

enum sfc_run_delay sfc_run_delayed(const struct sfc_run_fsm *run, uint32_t *place)
{
    enum sfc_run_delay delay = SFC_DELAY_NONE;
    *place = 0;
    if (!sfc_run_active(run) || run->finished || waits_for_shard(run, &delay, place))
        return delay;
    delay = of_map(run);
    if (delay == SFC_DELAY_NONE && run->commit.phase == SFC_PHASE_ROUND && !sfc_run_rewinds(run))
        delay = SFC_DELAY_ABORT;
    return delay;
}

/* What shards say in their heartbeats of the blocks that they mirror, and whether it counts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/loss.h"
#include "server/scheduler/map_change.h"

void sfc_mirrors_forget(struct sfc_shard_info *info)
{
    free(info->mirrors);
    info->mirrors = NULL;
    info->mirror_count = 0;
}

/* Without memory it has said nothing. */
void sfc_mirrors_take(struct sfc_shard_info *info, const Shardfc__V1__ShardHeartbeatRequest *r)
{
    sfc_mirrors_forget(info);
    size_t n = r->n_mirrors < SFC_CORE_MAX_SHARDS ? r->n_mirrors : SFC_CORE_MAX_SHARDS;
    info->mirrors = n ? calloc(n, sizeof *info->mirrors) : NULL;
    for (size_t i = 0; info->mirrors && i < n; i++) {
        const Shardfc__V1__MirrorState *m = r->mirrors[i];
        struct sfc_mirror_view *view = &info->mirrors[info->mirror_count++];
        *view = (struct sfc_mirror_view){.place = m->place,
                                         .map_version = m->map_version,
                                         .blocks = m->blocks,
                                         .copied = m->copied,
                                         .complete = m->complete,
                                         .oldest_step = m->oldest_step,
                                         .bytes = m->bytes};
        if (m->round)
            view->round = (struct sfc_attempt){m->round->incarnation, m->round->counter};
        snprintf(view->reason, sizeof view->reason, "%s", m->reason);
    }
}

/* Said before the run went back the last time: its copies may be of steps that are void. */
static bool is_old(const struct sfc_sched_run *run, const struct sfc_mirror_view *view)
{
    size_t n = run->lineage.count;
    return n > 0 && sfc_attempt_compare(view->round, run->lineage.returns[n - 1].last) <= 0;
}

const struct sfc_mirror_view *sfc_mirrors_view(struct sfc_sched_run *run, uint32_t mirror,
                                               uint32_t place)
{
    const struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, run->fsm.shards[mirror].id);
    if (!info || sfc_run_is_dead(&run->fsm, mirror))
        return NULL;
    for (size_t i = 0; i < info->mirror_count; i++) {
        const struct sfc_mirror_view *view = &info->mirrors[i];
        if (view->place == place && view->map_version == run->map->version && !is_old(run, view))
            return view;
    }
    return NULL;
}

/* Of the shard at this place, by the mirror that has most. */
static uint64_t unmirrored(struct sfc_sched_run *run, uint32_t place)
{
    const Shardfc__V1__ShardAddress *shard = run->map->shards[place];
    uint64_t owned = sfc_map_owned(run->map, place), most = 0;
    for (size_t i = 0; i < shard->n_mirrors; i++) {
        const struct sfc_mirror_view *view = sfc_mirrors_view(run, shard->mirrors[i], place);
        uint64_t copied = !view ? 0 : view->complete ? owned : view->copied;
        most = copied > most ? copied : most;
    }
    return owned > most ? owned - most : 0;
}

uint64_t sfc_mirrors_left(struct sfc_sched_run *run)
{
    uint64_t left = 0;
    for (uint32_t k = 0; run->mirrors && k < run->map->n_shards; k++)
        left += run->map->shards[k]->address[0] ? unmirrored(run, k) : 0;
    return left;
}

void sfc_mirrors_tick(struct sfc_sched_run *run)
{
    uint64_t left = sfc_mirrors_left(run), now = sfc_sched_now(run->scheduler);
    if (left > run->unmirrored.left || left == 0) {
        run->unmirrored.from = left;
        run->unmirrored.at_ms = now;
    }
    run->unmirrored.left = left;
}

double sfc_mirrors_eta(const struct sfc_sched_run *run)
{
    uint64_t left = run->unmirrored.left, done = run->unmirrored.from - left;
    double since_s = 1e-3 * (double)(sfc_sched_now(run->scheduler) - run->unmirrored.at_ms);
    return left > 0 && done > 0 ? since_s * (double)left / (double)done : 0;
}

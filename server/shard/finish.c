/* A shard that is told to end: it lets the step that may be committed end, writes every block as it
 * is then, and quits. What other processes do meanwhile, and a step that has begun, is not lost:
 * nobody was promised it. */
#include <inttypes.h>
#include <stdio.h>

#include "proto/base/log.h"
#include "proto/base/service.h"
#include "server/shard/shard_internal.h"

enum {
    TICK_MS = 20,
    STEP_PATIENCE_MS = 20000, /* with a step that others have to end */
    READY_PATIENCE_MS =
        5000, /* with a Commit; it comes at once, or another shard is gone as well */
    ALONE_PATIENCE_MS = 2000, /* the same when the scheduler is gone */
    EXTEND_MS = 30000 /* writing goes on: the service manager waits as long, again and again */
};

static void quit(struct sfc_shard *shard)
{
    uv_timer_stop(&shard->end);
    shard->finish.quit(shard->finish.ctx);
}

static void gave_up(struct sfc_shard *shard, const char *why)
{
    sfc_warning_log("run %" PRIu64 ": ends without a copy of every block of one step: %s; the next "
                    "start goes through logged steps, which needs the same version",
                    shard->run->id, why);
    quit(shard);
}

static bool patient(struct sfc_shard *shard, uint64_t ms)
{
    uint64_t least = shard->id ? ms : ALONE_PATIENCE_MS;
    return uv_now(shard->uv) - shard->finish.since <= least;
}

static void note(struct sfc_shard *shard, enum sfc_finish state)
{
    uint64_t applied = sfc_step_applied(&shard->run->fsm);
    if (shard->finish.state == state && shard->finish.step == applied)
        return;
    shard->finish.state = state;
    shard->finish.step = applied;
    shard->finish.since = uv_now(shard->uv);
}

static void all_written(struct sfc_shard *shard, const char *more)
{
    if (shard->run->durability.on)
        sfc_info_log("run %" PRIu64 ": every block is on disk as it is after step %" PRIu64 "%s",
                     shard->run->id, sfc_step_applied(&shard->run->fsm), more);
    quit(shard);
}

static void write_on(struct sfc_shard *shard)
{
    uint64_t now = uv_now(shard->uv);
    if (now - shard->finish.extended < EXTEND_MS / 10)
        return;
    shard->finish.extended = now;
    sfc_service_extend(EXTEND_MS);
}

static void on_finish(uv_timer_t *timer)
{
    struct sfc_shard *shard = timer->data;
    struct sfc_shard_run *run = shard->run;
    struct sfc_error err = {0};
    if (!run || !run->open) {
        quit(shard);
        return;
    }
    enum sfc_finish state = sfc_durability_finish(run, &err);
    note(shard, state);
    switch (state) {
    case SFC_FINISH_WAITS:
        if (!patient(shard, STEP_PATIENCE_MS))
            gave_up(shard, "a step that others have to end does not end");
        break;
    case SFC_FINISH_WRITES:
        write_on(shard);
        break;
    case SFC_FINISH_READY:
        if (!patient(shard, READY_PATIENCE_MS))
            all_written(shard,
                        "; if the step after it is committed, the next start goes through it");
        break;
    case SFC_FINISH_FAILED:
        gave_up(shard, err.text);
        break;
    case SFC_FINISH_DONE:
        all_written(shard, "");
        break;
    }
}

bool sfc_shard_finish(struct sfc_shard *shard, void (*done)(void *ctx), void *ctx)
{
    if (!shard->run || !shard->run->open || !shard->timer_open)
        return false;
    shard->finish.quit = done;
    shard->finish.ctx = ctx;
    shard->finish.since = uv_now(shard->uv);
    shard->finish.step = UINT64_MAX;
    shard->finishing = true;
    uv_timer_start(&shard->end, on_finish, 0, TICK_MS);
    return true;
}

/* ---- what it says of itself */

static void say_finishing(const struct sfc_shard_run *run, struct sfc_service_state *out)
{
    const struct sfc_sweep *sweep = &run->durability.sweep;
    size_t written = 0;
    for (size_t i = 0; i < sweep->count; i++)
        written += sweep->blocks[i].stamp >= out->step;
    snprintf(out->text, sizeof out->text,
             "ending: run %" PRIu64 ", step %" PRIu64 ", %zu of %zu blocks written", out->run,
             out->step, written, sweep->count);
}

static void say_run(const struct sfc_shard *shard, struct sfc_service_state *out)
{
    const struct sfc_shard_run *run = shard->run;
    const struct sfc_recovery *recovery = &run->durability.recovery;
    out->run = run->id;
    out->step = sfc_step_applied(&run->fsm);
    if (!run->open && run->durability.recovers)
        snprintf(out->text, sizeof out->text,
                 "run %" PRIu64 ": recovering, step %" PRIu64 " of %" PRIu64, run->id,
                 atomic_load(&recovery->step), recovery->last.step);
    else if (!run->open)
        snprintf(out->text, sizeof out->text, "run %" PRIu64 ": opening", run->id);
    else if (shard->finishing)
        say_finishing(run, out);
    else
        snprintf(out->text, sizeof out->text,
                 "run %" PRIu64 ", step %" PRIu64 ", %zu class blocks, %zu dense blocks", run->id,
                 out->step, run->class_count, run->dense_count);
}

void sfc_shard_look(const struct sfc_shard *shard, struct sfc_service_state *out)
{
    out->ready = shard->id != 0;
    out->working = !sfc_compute_late(shard->compute, sfc_service_patience());
    if (shard->run)
        say_run(shard, out);
    else
        snprintf(out->text, sizeof out->text, "no run is open here");
    if (shard->id == 0)
        snprintf(out->text, sizeof out->text, "waiting for the scheduler at %.150s",
                 shard->options->scheduler);
}

void sfc_shard_reloaded(struct sfc_shard *shard)
{
    if (!shard->run || !shard->run->durability.sweeps)
        return;
    shard->run->durability.sweep.config.rate = shard->options->snapshot_rate;
    shard->run->durability.sweep.config.recovery_target_ms = shard->options->recovery_target;
}

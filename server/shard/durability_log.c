/* The log: inputs are flushed before Ready, commits go with the next flush, and what nobody needs
 * is deleted. */
#include <inttypes.h>

#include "proto/base/log.h"
#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

/* Steps that were committed on the promise of a later flush did not reach the disk. */
static int check_lost(struct sfc_durability *d, struct sfc_error *err)
{
    return atomic_load(&d->lost)
               ? sfc_fail(
                     err, SFC_EIO,
                     "--state %s: the disk failed before committed steps were durable; the run "
                     "goes back to its last durable step",
                     d->storage.state)
               : SFC_OK;
}

static int flush_step(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    struct sfc_step_log *log = d->storage.log;
    struct sfc_step_log_state state;
    pthread_mutex_lock(&d->storage.log_lock);
    sfc_step_log_without_limit(log, d->prepare.step > d->durable_step + 1);
    int code = check_lost(d, err);
    if (code == SFC_OK && d->has_commit)
        code = sfc_step_log_append_commit(log, &d->commit, err);
    d->has_commit = d->has_commit && code != SFC_OK;
    if (code == SFC_OK)
        code = sfc_step_log_append_prepare(log, &d->prepare, err);
    if (code == SFC_OK && !d->provisional)
        code = sfc_step_log_flush(log, err);
    if (sfc_step_log_lost(log))
        atomic_store(&d->lost, true);
    sfc_step_log_state(log, &state);
    pthread_mutex_unlock(&d->storage.log_lock);
    d->flushed_bytes = state.bytes;
    return code;
}

static int flush_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_lap lap = sfc_shard_lap(run, SFC_THREAD_LOG, run->durability.prepare.step);
    int code = flush_step(task, err);
    sfc_lap_end(&lap, SFC_SPAN_FLUSH, 0);
    return code;
}

void sfc_durability_flush_end(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_step_event event = {
        .type = SFC_SE_FLUSHED, .code = code, .text = text, .lost = sfc_durability_lost(run)};
    sfc_shard_feed(run, &event);
}

bool sfc_durability_lost(const struct sfc_shard_run *run)
{
    return atomic_load(&run->durability.lost);
}

/* The Prepares are in the log, and the commit of the last one is in the scheduler's store or with
 * whoever asks. */
static int make_durable_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    pthread_mutex_lock(&d->storage.log_lock);
    int code = check_lost(d, err);
    if (code == SFC_OK)
        code = sfc_step_log_flush(d->storage.log, err);
    if (code != SFC_OK)
        atomic_store(&d->lost, true); /* with a step, perhaps, that it said to have */
    pthread_mutex_unlock(&d->storage.log_lock);
    return code;
}

static void make_durable_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    d->made_durable = false;
    if (run->closed)
        return;
    sfc_durability_say_error(run, d->log_error, task->code == SFC_OK ? "" : task->error.text);
    run->on_durable(run, task->code == SFC_OK ? SFC_OK : SFC_EIO, task->error.text);
}

void sfc_durability_make_durable(struct sfc_shard_run *run,
                                 void (*done)(struct sfc_shard_run *run, int code,
                                              const char *text))
{
    struct sfc_durability *d = sfc_durability_of(run);
    run->on_durable = done;
    if (!d->on || d->durable_every == 1) { /* each Prepare did */
        done(run, SFC_OK, "");
        return;
    }
    if (d->made_durable)
        return;
    d->made_durable = true;
    d->here_task =
        (struct sfc_task){.work = make_durable_work, .done = make_durable_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->here_task);
}

static void flush_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    if (run->closed)
        return;
    d->log_bytes = d->flushed_bytes;
    sfc_durability_say_error(run, d->log_error, task->code == SFC_OK ? "" : task->error.text);
    sfc_sweep_urgent(&d->sweep, task->code == SFC_ELIMIT);
    sfc_durability_flush_end(run, task->code, task->error.text);
    if (task->code != SFC_OK) {
        sfc_durability_make_room(run);
        sfc_durability_kick(run);
    }
}

void sfc_durability_flush_now(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->flush_task = (struct sfc_task){.work = flush_work, .done = flush_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->flush_task);
}

void sfc_durability_flush(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->on) {
        sfc_durability_flush_end(run, SFC_OK, "");
        return;
    }
    for (uint32_t j = 0; j < run->setup.micro_batches; j++) {
        const struct sfc_answer *answer = sfc_shard_answer(run, a->generation, a->slots[j]);
        d->features[j] = answer->features;
        d->lse[j] = answer->lse;
    }
    d->prepare = (struct sfc_log_prepare){.step = a->step,
                                          .round = a->round,
                                          .lr = a->lr,
                                          .labels = sfc_step_labels(&run->fsm, a->step),
                                          .features = d->features,
                                          .attempts = run->fsm.prepared,
                                          .lse = d->lse,
                                          .dense = run->dense.dense_sums};
    d->provisional = a->provisional;
    d->flush_waits = d->base_missing || d->unsettled || sfc_durability_finish_holds(run);
    if (!d->flush_waits)
        sfc_durability_flush_now(run);
    else if (d->unsettled)
        sfc_durability_settle(run);
    else
        sfc_durability_kick(run);
}

void sfc_durability_commit(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->has_commit = d->on;
    d->committing = a->provisional ? 0 : a->step;
    d->commit = (struct sfc_log_commit){.step = a->step,
                                        .round = a->round,
                                        .clip_scale = a->clip_scale,
                                        .lr = a->lr,
                                        .apply = a->apply};
    d->newest = d->commit;
}

static int trim_work(struct sfc_task *task, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(task->owner);
    struct sfc_step_log_state state;
    pthread_mutex_lock(&d->storage.log_lock);
    int code = sfc_step_log_trim(d->storage.log, d->trim_floor, err);
    sfc_step_log_state(d->storage.log, &state);
    pthread_mutex_unlock(&d->storage.log_lock);
    d->trimmed_bytes = state.bytes;
    return code;
}

static void trim_done(struct sfc_task *task)
{
    struct sfc_shard_run *run = task->owner;
    struct sfc_durability *d = sfc_durability_of(run);
    d->trimming = false;
    d->log_bytes = d->trimmed_bytes;
    if (task->code != SFC_OK && !run->closed)
        sfc_warning_log("run %" PRIu64 ": %s", run->id, task->error.text);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What others than the recovery of this shard's blocks need of the log; mirrors come last. */
static uint64_t kept_floor(const struct sfc_shard_run *run, bool mirror)
{
    uint64_t floor = least(sfc_pinned_floor(run), sfc_move_floor(run));
    return mirror ? least(floor, sfc_mirror_floor(run)) : floor;
}

/* Log of steps up to this one may go as far as this shard is concerned. Without blocks it needs
 * none for itself. */
uint64_t sfc_durability_own_floor(const struct sfc_shard_run *run, bool mirror)
{
    const struct sfc_durability *d = &run->durability;
    return least(least(d->floor, kept_floor(run, mirror)), d->durable_step);
}

static void trim(struct sfc_shard_run *run, uint64_t floor)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (d->trimming || d->unsettled || floor <= d->trimmed)
        return;
    uint64_t from = d->trimmed;
    d->trimming = true;
    d->trim_floor = d->trimmed = floor;
    sfc_durability_note_oldest(run, from, d->oldest);
    d->trim_task = (struct sfc_task){.work = trim_work, .done = trim_done, .owner = run};
    sfc_tasks_submit(run->shard->log_thread, &d->trim_task);
}

/* floor: of all shards. It may be of the time before the run went back, when this one needed less.
 */
void sfc_durability_trim(struct sfc_shard_run *run, uint64_t floor)
{
    const struct sfc_durability *d = sfc_durability_of(run);
    if (d->on && sfc_step_applied(&run->fsm) > d->back_until)
        trim(run, least(floor, sfc_durability_own_floor(run, true)));
}

/* Where the second-newest snapshots free nothing and each block has one of the newest step, those
 * have to be enough: no better ones come before the next step. */
static uint64_t room_floor(struct sfc_shard_run *run, bool mirror)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t floor = sfc_durability_own_floor(run, mirror), applied = sfc_step_applied(&run->fsm);
    if (floor > d->trimmed || !sfc_sweep_complete(&d->sweep) || sfc_sweep_lag(&d->sweep) > 0 ||
        d->durable_step != applied)
        return floor;
    floor = least(applied, kept_floor(run, mirror));
    if (floor > d->trimmed)
        sfc_warning_log("run %" PRIu64 ": the log is too small for two snapshots of each "
                        "block: until the next ones only those of step %" PRIu64
                        " count (--log-limit)",
                        run->id, floor);
    return floor;
}

/* Frees a log that is full without waiting for the others: their floors may stand still for as long
 * as this shard lets no step pass. The price: another one that lost these steps can't have them
 * from here. What is mirrored here is given up last, and copied anew. */
void sfc_durability_make_room(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->sweep.urgent || d->trimming || d->finishing) /* nothing is appended any more */
        return;
    sfc_pinned_give_way(run);
    sfc_move_give_way(run);
    uint64_t floor = room_floor(run, true);
    if (floor <= d->trimmed && sfc_mirror_floor(run) <= d->trimmed) {
        floor = room_floor(run, false);
        if (floor > d->trimmed)
            sfc_warning_log("run %" PRIu64 ": the log is full of steps that blocks of other shards "
                            "need, which are mirrored here: they are copied anew (--log-limit)",
                            run->id);
    }
    trim(run, floor);
}

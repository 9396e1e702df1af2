#include "server/shard/recovery.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"
#include "server/shard/replay.h"

#define SPEAK_S 2.0 /* a line of progress this often */

/* One recovery at work. */
struct work {
    struct sfc_recovery *recovery;
    struct sfc_storage *storage;
    const struct sfc_head_config *config;
    struct sfc_head *head;
    struct sfc_dense *dense;
    uint64_t least, most;                  /* stamps of the blocks */
    uint64_t dense_least;                  /* of the dense ones; UINT64_MAX: there are none */
    struct sfc_snapshot_block dense_block; /* with that stamp */
    uint64_t *dense_blocks, *dense_stamps; /* [dense_count] */
    size_t dense_count;
    void *sums; /* of them, where a step was logged with others */
    size_t from_snapshots;
    double began, spoke;
    /* steps of other shards */
    uint64_t fetched, unkept;
    char damage[256];         /* what is wrong with the own log */
    struct sfc_attempt round; /* of the commit of the step before, as far as it is known */
    struct sfc_error keep;    /* why fetched steps could not be written */
    const float **features;   /* [micro-batches] */
    const double **lse;       /* [micro-batches] */
    struct sfc_replay replay;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int check_abandon(const struct sfc_recovery *r, struct sfc_error *err)
{
    return atomic_load(&r->abandon) ? sfc_fail(err, SFC_ECANCELED, "the run was closed") : SFC_OK;
}

/* ---- blocks */

static const char *const kind_names[SFC_SNAPSHOT_KINDS] = {"class block", "dense block", "history"};

/* A block without a usable snapshot: as the seed makes it, if the run began so. */
static int from_seed(struct work *w, const struct sfc_snapshot_block *block, int code,
                     uint64_t *stamp, struct sfc_error *err)
{
    struct sfc_storage *s = w->storage;
    if (code != SFC_ENOTFOUND && code != SFC_ECORRUPT)
        return code;
    bool seed = sfc_storage_from_seed(s, block);
    if (!seed && s->from_seed && code == SFC_ENOTFOUND)
        return sfc_fail(err, SFC_ENOTFOUND,
                        "--state %s has no snapshot of class block %" PRIu64
                        ", which got its rows when the run grew: it is another shard's folder, or "
                        "files of it were lost; stop the run and restore a checkpoint",
                        s->state, block->block);
    if (!seed && code == SFC_ENOTFOUND)
        return sfc_fail(
            err, SFC_ENOTFOUND,
            "--state %s has no snapshot of %s %" PRIu64
            ", and the run began from a checkpoint: it is another shard's folder, or the shard "
            "died before its first snapshots were complete; stop the run and restore the "
            "checkpoint again",
            s->state, kind_names[block->kind], block->block);
    if (!seed)
        return code;
    if (code == SFC_ECORRUPT)
        sfc_warning_log("run %" PRIu64 ": %s; using the seed and the whole log instead", s->run_id,
                        err ? err->text : "damaged snapshots");
    *stamp = s->start_step;
    return SFC_OK;
}

/* *content: NULL when the seed is used. */
static int read_block(struct work *w, size_t index, uint64_t *stamp,
                      struct sfc_snapshot_shape *shape, struct sfc_snapshot_content *content,
                      bool *found, struct sfc_error *err)
{
    struct sfc_storage *s = w->storage;
    const struct sfc_snapshot_block *block = &s->blocks[index];
    uint64_t target = w->recovery->last.step;
    struct sfc_error own = {0};
    char loud[512] = "";
    sfc_storage_shape(s, index, target, shape);
    int code = sfc_snapshot_store_read(s->store, block->kind, block->block, target, shape, content,
                                       loud, &own);
    *found = code == SFC_OK;
    if (loud[0])
        sfc_warning_log("run %" PRIu64 ": %s", s->run_id, loud);
    if (code != SFC_OK) {
        code = from_seed(w, block, code, stamp, &own);
        if (code != SFC_OK && err)
            *err = own;
        return code;
    }
    *stamp = content->step;
    w->from_snapshots++;
    return SFC_OK;
}

static int restore_block(struct work *w, size_t index, struct sfc_error *err)
{
    const struct sfc_snapshot_block *block = &w->storage->blocks[index];
    struct sfc_snapshot_shape shape;
    struct sfc_snapshot_content content;
    bool found = false;
    uint64_t stamp = 0;
    int code = read_block(w, index, &stamp, &shape, &content, &found, err);
    if (code != SFC_OK)
        return code;
    if (block->kind == SFC_SNAPSHOT_DENSE) {
        w->dense_blocks[w->dense_count] = block->block;
        w->dense_stamps[w->dense_count++] = stamp;
    }
    if (block->kind == SFC_SNAPSHOT_DENSE && stamp < w->dense_least) {
        w->dense_least = stamp;
        w->dense_block = *block;
    }
    w->least = stamp < w->least ? stamp : w->least;
    w->most = stamp > w->most ? stamp : w->most;
    if (block->kind != SFC_SNAPSHOT_HISTORY)
        return found ? sfc_block_restore(w->head, w->dense, block, &shape, &content, err) : SFC_OK;
    /* the last of the list: of the rates only those that no step below brings */
    return w->least > 0
               ? sfc_head_write_rates(w->head, 0, w->least, content.parts[SFC_SNAPSHOT_VALUES], err)
               : SFC_OK;
}

static int restore_blocks(struct work *w, struct sfc_error *err)
{
    w->least = w->recovery->last.step;
    w->dense_least = UINT64_MAX;
    w->dense_blocks = calloc(w->storage->count + 1, sizeof *w->dense_blocks);
    w->dense_stamps = calloc(w->storage->count + 1, sizeof *w->dense_stamps);
    if (!w->dense_blocks || !w->dense_stamps)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a list of blocks");
    for (size_t i = 0; i < w->storage->count; i++) {
        int code = check_abandon(w->recovery, err);
        if (code == SFC_OK)
            code = restore_block(w, i, err);
        if (code != SFC_OK)
            return code;
    }
    return SFC_OK;
}

/* ---- steps */

static int allocate(struct work *w, struct sfc_error *err)
{
    size_t micro_batches = w->config->batch / w->config->micro_batch;
    uint64_t sums = sfc_run_packed_bytes(w->storage->setup, w->dense_blocks, w->dense_count);
    w->features = calloc(micro_batches, sizeof *w->features);
    w->lse = calloc(micro_batches, sizeof *w->lse);
    w->sums = malloc(sums + 8);
    return w->features && w->lse && w->sums
               ? sfc_replay_init(&w->replay, w->config, err)
               : sfc_fail(err, SFC_ENOMEM, "no memory for the steps of the log");
}

static void release(struct work *w)
{
    sfc_replay_close(&w->replay);
    free(w->features);
    free(w->lse);
    free(w->sums);
    free(w->dense_blocks);
    free(w->dense_stamps);
}

/* What the log has of a step. SFC_ENOTFOUND, SFC_ECORRUPT: it lacks it. has_commit: *commit is
 * what was committed, though the inputs may be gone. */
static int read_step(struct work *w, uint64_t step, struct sfc_log_commit *commit, bool *has_commit,
                     struct sfc_log_prepare_view *view, struct sfc_error *err)
{
    struct sfc_storage *s = w->storage;
    pthread_mutex_lock(&s->log_lock);
    int code = sfc_step_log_commit_of(s->log, step, commit, err);
    *has_commit = code == SFC_OK;
    if (code == SFC_OK && commit->apply)
        code = sfc_step_log_read(s->log, step, commit->round, &w->replay.body, view, err);
    pthread_mutex_unlock(&s->log_lock);
    return code;
}

/* What another shard gave goes into the own log, for a next time when that shard may be gone. It is
 * in the log of that one, so a disk that is full or fails is no reason not to go on. */
static void keep(struct work *w, const struct sfc_peers_step *step, bool has_commit)
{
    struct sfc_storage *s = w->storage;
    const struct sfc_head_config *c = w->config;
    struct sfc_error err = {0};
    for (uint32_t j = 0; j < c->batch / c->micro_batch; j++) {
        w->features[j] = step->features + (size_t)j * c->micro_batch * c->dim;
        w->lse[j] = step->lse + (size_t)j * c->micro_batch;
    }
    struct sfc_log_prepare prepare = {.step = step->commit.step,
                                      .round = step->commit.round,
                                      .lr = step->commit.lr,
                                      .labels = step->labels,
                                      .features = w->features,
                                      .attempts = step->attempts,
                                      .lse = w->lse};
    pthread_mutex_lock(&s->log_lock);
    int code = step->commit.apply ? sfc_step_log_append_fetched(s->log, &prepare, &err) : SFC_OK;
    if (code == SFC_OK && !has_commit)
        code = sfc_step_log_append_commit(s->log, &step->commit, &err);
    pthread_mutex_unlock(&s->log_lock);
    if (code != SFC_OK && w->unkept++ == 0)
        w->keep = err;
}

/* The steps that were kept are durable before the shard says that it is back. */
static void keep_durable(struct work *w)
{
    struct sfc_error err = {0};
    if (w->fetched == 0)
        return;
    pthread_mutex_lock(&w->storage->log_lock);
    int code = sfc_step_log_flush(w->storage->log, &err);
    pthread_mutex_unlock(&w->storage->log_lock);
    if (code != SFC_OK && w->unkept++ == 0)
        w->keep = err;
    sfc_warning_log("run %" PRIu64 ": %" PRIu64 " steps of this shard's log were lost (%s) and "
                    "came from other shards; check the disk (shardfc log lists the damage)",
                    w->storage->run_id, w->fetched, w->damage);
    if (w->unkept)
        sfc_warning_log("run %" PRIu64 ": not all of these steps could be written to this "
                        "shard's log again: %s; the other shards keep them",
                        w->storage->run_id, w->keep.text);
}

/* The dense sums of a step are on the shard that owns the blocks and nowhere else. */
static int check_dense(const struct work *w, uint64_t step, struct sfc_error *err)
{
    if (step <= w->dense_least)
        return SFC_OK;
    return sfc_fail(err, SFC_ECORRUPT,
                    "its backbone gradient, which dense block %" PRIu64 " needs (snapshot of step "
                    "%" PRIu64 "), is on no other shard; damaged: %s; restore the run from a "
                    "checkpoint, or this folder from a copy (shardfc log lists the damage)",
                    w->dense_block.block, w->dense_least,
                    w->damage[0] ? w->damage : "this step came from another shard once before");
}

/* To whoever opens the run it is damage, or a matter of time. */
static int nobody_has(const struct work *w, int code, struct sfc_error *err)
{
    struct sfc_error words = *err;
    if (code != SFC_ENOTFOUND)
        return sfc_fail(err, code, "lost (%s); the other shards are asked for it: %.150s",
                        w->damage, words.text);
    return sfc_fail(err, SFC_ECORRUPT,
                    "lost (%s), and no other shard gives it (%.110s); restore the run from a "
                    "checkpoint, or this folder from a copy",
                    w->damage, words.text);
}

/* The step from another shard, put together in body as the log has it. */
static int fetch_step(struct work *w, struct sfc_log_commit *commit, bool has_commit,
                      struct sfc_log_prepare_view *view, struct sfc_error *err)
{
    struct sfc_peers_step step = {.commit = *commit};
    int code = sfc_peers_place(&w->storage->shape, &w->replay.body, &step, err);
    if (code != SFC_OK)
        return code;
    atomic_store(&w->recovery->eta_ms, 0); /* it takes as long as they take */
    code = sfc_peers_read(w->recovery->peers, &step, has_commit, &w->recovery->abandon, err);
    if (code != SFC_OK && code != SFC_ECANCELED)
        return nobody_has(w, code, err);
    if (code == SFC_OK && step.commit.apply)
        code = check_dense(w, commit->step, err);
    if (code != SFC_OK)
        return code;
    if (w->fetched++ == 0)
        sfc_warning_log("run %" PRIu64 ": step %" PRIu64 " is not in this shard's log (%s): "
                        "taking it from shard %s",
                        w->storage->run_id, commit->step, w->damage, step.from);
    keep(w, &step, has_commit);
    *commit = step.commit;
    sfc_log_view_prepare(&w->storage->shape, SFC_LOG_FETCHED, w->replay.body.data, view);
    return SFC_OK;
}

/* Rounds only rise. A commit of an older one than the step before has is of a step that was given
 * up (rewind), and the one that took its place is lost. */
static int check_round(const struct work *w, const struct sfc_log_commit *commit,
                       struct sfc_error *err)
{
    return sfc_attempt_compare(commit->round, w->round) >= 0
               ? SFC_OK
               : sfc_fail(err, SFC_ENOTFOUND,
                          "the log has only a commit that was given up (round %" PRIu64 ".%" PRIu64
                          ")",
                          commit->round.incarnation, commit->round.counter);
}

/* The inputs of a step, from wherever they are. */
static int step_inputs(struct work *w, uint64_t step, struct sfc_log_commit *commit,
                       struct sfc_log_prepare_view *view, struct sfc_error *err)
{
    struct sfc_error own = {0};
    bool has_commit = false;
    int code = read_step(w, step, commit, &has_commit, view, &own);
    if (has_commit && check_round(w, commit, &own) != SFC_OK) {
        code = SFC_ENOTFOUND;
        has_commit = false;
    }
    if (code == SFC_OK)
        return commit->apply && !view->dense ? check_dense(w, step, err) : SFC_OK;
    if (!w->recovery->peers || (code != SFC_ENOTFOUND && code != SFC_ECORRUPT))
        return sfc_fail(err, code, "%s", own.text);
    if (!w->damage[0])
        snprintf(w->damage, sizeof w->damage, "%.255s", own.text);
    if (!has_commit)
        *commit = (struct sfc_log_commit){.step = step};
    if (has_commit && (code = check_dense(w, step, err)) != SFC_OK)
        return code; /* nobody needs to be asked: its inputs are lost, so it was applied */
    return fetch_step(w, commit, has_commit, view, err);
}

static int apply_step(struct work *w, const struct sfc_log_commit *commit,
                      const struct sfc_log_prepare_view *v, struct sfc_error *err)
{
    struct sfc_dense *dense = commit->step > w->dense_least ? w->dense : NULL;
    struct sfc_dense_set own = {w->dense_blocks, w->dense_count};
    const void *sums = NULL;
    int code = dense && commit->apply ? sfc_storage_sums(w->storage, v, commit->step, own,
                                                         w->dense_stamps, w->sums, &sums, err)
                                      : SFC_OK;
    return code == SFC_OK ? sfc_replay_step(&w->replay, w->head, dense, commit, v, sums, err)
                          : code;
}

static void speak(struct work *w, uint64_t step)
{
    struct sfc_recovery *r = w->recovery;
    double now = seconds(), took = now - w->began;
    double rate = (double)(step - w->least) / (took > 0 ? took : 1e-9);
    double left = (double)(r->last.step - step) / rate;
    atomic_store(&r->step, step);
    atomic_store(&r->eta_ms, (uint64_t)(1e3 * left) + 1);
    if (now - w->spoke < SPEAK_S)
        return;
    w->spoke = now;
    sfc_info_log("run %" PRIu64 ": recovering, step %" PRIu64 " of %" PRIu64
                 ", %.1f steps/s, %.0f s left",
                 w->storage->run_id, step, r->last.step, rate, left);
}

static int replay(struct work *w, struct sfc_error *err)
{
    struct sfc_recovery *r = w->recovery;
    struct sfc_log_commit before;
    w->began = w->spoke = seconds();
    if (sfc_step_log_commit_of(w->storage->log, w->least, &before, NULL) == SFC_OK)
        w->round = before.round;
    for (uint64_t step = w->least + 1; step <= r->last.step; step++) {
        struct sfc_log_commit commit;
        struct sfc_log_prepare_view view = {0};
        int code = check_abandon(r, err);
        if (code == SFC_OK)
            code = step_inputs(w, step, &commit, &view, err);
        if (code == SFC_OK)
            code = apply_step(w, &commit, &view, err);
        if (code != SFC_OK)
            return sfc_prefix(err, "step %" PRIu64, step), code;
        w->round = commit.round;
        speak(w, step);
    }
    return SFC_OK;
}

/* What the own log lacks, and whether that matters. */
static void tell_damage(struct work *w, const struct sfc_step_log_report *report)
{
    uint64_t run_id = w->storage->run_id;
    snprintf(w->damage, sizeof w->damage, "%s",
             report->damage[0] ? report->damage
             : report->torn[0] ? report->torn
                               : report->gap);
    if (report->missing)
        sfc_warning_log("run %" PRIu64 ": the log lacks %" PRIu64
                        " of the steps that this recovery needs, step %" PRIu64
                        " first: %s; asking the other shards for them",
                        run_id, report->missing, report->first_missing, w->damage);
    else if (report->damage[0])
        sfc_warning_log("run %" PRIu64
                        ": the log is damaged where this recovery doesn't need it: %s; "
                        "check the disk (shardfc log lists the damage)",
                        run_id, report->damage);
    if (report->torn[0])
        sfc_warning_log("run %" PRIu64 ": the log's end was torn by the crash, dropped %" PRIu64
                        " bytes above the last commit: %s",
                        run_id, report->torn_bytes, report->torn);
}

static int open_log(struct work *w, struct sfc_error *err)
{
    struct sfc_storage *s = w->storage;
    struct sfc_step_log_recovery how = {.from = w->least + 1,
                                        .last = w->recovery->last,
                                        .lineage = &w->recovery->lineage,
                                        .has_last = w->recovery->has_last,
                                        .peers = w->recovery->peers};
    struct sfc_step_log_report report = {0};
    struct sfc_step_log *log = NULL;
    int code = sfc_step_log_recover(s->log_folder, &s->config, &how, &log, &report, err);
    if (code != SFC_OK)
        return code;
    sfc_storage_set_log(s, log);
    tell_damage(w, &report);
    return SFC_OK;
}

/* A log that does not do may be another shard's. */
static void say_blocks(const struct work *w, struct sfc_error *err)
{
    size_t used = strlen(err->text), count = w->storage->count;
    if (w->from_snapshots < count)
        snprintf(err->text + used, sizeof err->text - used,
                 "; no snapshot of %zu of %zu blocks: is --state this shard's?",
                 count - w->from_snapshots, count);
}

/* Steps that were provisional may become durable at the scheduler by where this recovery leads. */
static int flush(struct work *w, struct sfc_error *err)
{
    if (!w->recovery->durable)
        return SFC_OK;
    pthread_mutex_lock(&w->storage->log_lock);
    int code = sfc_step_log_flush(w->storage->log, err);
    pthread_mutex_unlock(&w->storage->log_lock);
    return code;
}

static int recover(struct work *w, struct sfc_error *err)
{
    struct sfc_recovery *r = w->recovery;
    struct sfc_lap lap = {
        r->spans,
        {.step = r->last.step + 1, .micro_batch = UINT32_MAX, .thread = SFC_THREAD_COMPUTE}};
    sfc_lap_begin(&lap);
    double began = seconds();
    int code = restore_blocks(w, err);
    sfc_lap_end(&lap, SFC_SPAN_RESTORE, 0);
    bool blocks = code == SFC_OK; /* are there: what fails below is the log's */
    double restored = seconds();
    if (code == SFC_OK)
        code = open_log(w, err);
    if (code == SFC_OK)
        code = allocate(w, err);
    if (code == SFC_OK)
        code = replay(w, err);
    if (code != SFC_OK && code != SFC_ECANCELED && blocks)
        say_blocks(w, err);
    if (code == SFC_OK)
        code = flush(w, err);
    if (code != SFC_OK)
        return code;
    keep_durable(w);
    sfc_lap_end(&lap, SFC_SPAN_REPLAY, 0);
    r->fetched = w->fetched;
    snprintf(r->damage, sizeof r->damage, "%s", w->fetched ? w->damage : "");
    double end = seconds();
    sfc_info_log("run %" PRIu64 ": recovered to step %" PRIu64 " in %.2f s: %zu of %zu blocks from "
                 "snapshots in %.2f s, steps %" PRIu64 "..%" PRIu64 " from the log in %.2f s",
                 w->storage->run_id, r->last.step, end - began, w->from_snapshots,
                 w->storage->count, restored - began, w->least + 1, r->last.step, end - w->began);
    return SFC_OK;
}

int sfc_recovery_run(struct sfc_recovery *recovery, struct sfc_head *head, struct sfc_dense *dense,
                     struct sfc_error *err)
{
    struct work w = {.recovery = recovery,
                     .storage = recovery->storage,
                     .config = &recovery->storage->setup->head,
                     .head = head,
                     .dense = dense};
    int code = recover(&w, err);
    release(&w);
    if (code != SFC_OK)
        sfc_prefix(err, "recover run %" PRIu64, recovery->storage->run_id);
    return code;
}

/* Answers CheckRewind: would the disk lead back to a step? Before a run goes back, every shard
 * reads here what a recovery to that step would read, each block's snapshot and each step of the
 * log, and checks every byte. A step that the log lacks, and no dense block needs, may be had from
 * another shard, as in a recovery: it is asked for here. So one that can't go back says so while it
 * still has what it has in memory. What was read is kept until the run has gone on by more than the
 * step that may be on its way.
 *
 * With a map the question is another one: could this shard take over the blocks that the map gives
 * it and that it mirrors (their owner is lost), at the step where it is? The same is read, of all
 * blocks of that map, and there must be memory for them.
 *
 * Snapshots are read on their thread. The log is read on that of checkpoints, because the thread of
 * the snapshots answers other shards meanwhile: two that ask each other don't wait for each other.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/shard/block_copy.h"
#include "server/shard/shard_internal.h"

struct way_back {
    struct sfc_task task;
    struct sfc_shard_run *run;
    struct sfc_rpc_call *call;
    struct sfc_log_commit last; /* of the step; step: where to */
    uint64_t until;             /* what is needed is kept while the run is at no later step */
    struct sfc_snapshot_block *blocks; /* that are to lead there */
    size_t count;
    /* from the thread */
    char damage[256]; /* of the first block whose snapshots are; the seed takes their place */
    uint64_t least, dense_least; /* stamps of the blocks; of the dense ones, UINT64_MAX: none */
    uint64_t *dense_blocks, *dense_stamps;
    size_t dense_count;
    void *sums;
    struct sfc_folder *folder; /* to read the log */
    struct sfc_log_body body;
};

/* ---- on the snapshot thread */

static int check_closed(const struct way_back *w, struct sfc_error *err)
{
    return atomic_load(&w->run->durability.recovery.abandon)
               ? sfc_fail(err, SFC_EUNAVAILABLE, "the run was closed")
               : SFC_OK;
}

static int check_block(struct way_back *w, size_t index, struct sfc_error *err)
{
    struct sfc_storage *s = &w->run->durability.storage;
    const struct sfc_snapshot_block *block = &w->blocks[index];
    struct sfc_snapshot_shape shape;
    struct sfc_snapshot_content content = {.step = s->start_step};
    char passed_over[512];
    sfc_block_shape(s->setup, block, w->last.step, &shape);
    int code = sfc_snapshot_store_read(s->store, block->kind, block->block, w->last.step, &shape,
                                       &content, passed_over, err);
    if (sfc_storage_from_seed(s, block) && (code == SFC_ENOTFOUND || code == SFC_ECORRUPT)) {
        if (code == SFC_ECORRUPT && !w->damage[0])
            snprintf(w->damage, sizeof w->damage, "%.255s", err->text);
        content.step = s->start_step; /* then the log has to begin there */
        code = SFC_OK;
    }
    w->least = content.step < w->least ? content.step : w->least;
    if (block->kind == SFC_SNAPSHOT_DENSE) {
        w->dense_blocks[w->dense_count] = block->block;
        w->dense_stamps[w->dense_count++] = content.step;
        w->dense_least = content.step < w->dense_least ? content.step : w->dense_least;
    }
    return code;
}

static int check_blocks(struct way_back *w, struct sfc_error *err)
{
    int code = SFC_OK;
    w->least = w->last.step;
    w->dense_least = UINT64_MAX;
    w->dense_blocks = calloc(w->count + 1, sizeof *w->dense_blocks);
    w->dense_stamps = calloc(w->count + 1, sizeof *w->dense_stamps);
    if (!w->dense_blocks || !w->dense_stamps)
        return sfc_fail(err, SFC_EUNAVAILABLE, "no memory for a list of blocks");
    for (size_t i = 0; code == SFC_OK && i < w->count; i++) {
        code = check_closed(w, err);
        if (code == SFC_OK)
            code = check_block(w, i, err);
    }
    return code;
}

static int blocks_work(struct sfc_task *task, struct sfc_error *err)
{
    struct way_back *w = task->owner;
    sfc_durability_keep_back(w->run, w->last.step, w->until);
    return check_blocks(w, err);
}

/* ---- on the checkpoint thread */

/* Rounds only rise: a commit of an older one than the step before has was given up, and the one
 * that took its place is lost. *has_commit: *commit is what counts, though the inputs may be gone.
 */
static int read_own(struct way_back *w, struct sfc_attempt before, struct sfc_log_commit *commit,
                    bool *has_commit, struct sfc_log_prepare_view *view, struct sfc_error *err)
{
    struct sfc_storage *s = &w->run->durability.storage;
    struct sfc_log_place_of place;
    uint64_t step = commit->step;
    *commit = w->last;
    int code = sfc_storage_find_step(s, step, NULL, commit, &place, err);
    *has_commit = commit->step == step && sfc_attempt_compare(commit->round, before) >= 0;
    if (commit->step == step && !*has_commit)
        return sfc_fail(err, SFC_ENOTFOUND, "the log has only a commit that was given up");
    if (code == SFC_OK && commit->apply)
        code = sfc_step_log_read_at(w->folder, &s->shape, &place, &w->body, view, err);
    return code;
}

static int check_dense(const struct way_back *w, uint64_t step, const char *damage,
                       struct sfc_error *err)
{
    if (step <= w->dense_least)
        return SFC_OK;
    return sfc_fail(err, SFC_ECORRUPT,
                    "its backbone gradient is lost%s%.140s, and a dense block's snapshot is of "
                    "step %" PRIu64,
                    damage[0] ? ": " : "", damage, w->dense_least);
}

/* Of the dense blocks of now; the record may be of others. */
static int check_sums(struct way_back *w, uint64_t step, const struct sfc_log_prepare_view *view,
                      struct sfc_error *err)
{
    struct sfc_dense_set own = {w->dense_blocks, w->dense_count};
    const void *sums;
    return sfc_storage_sums(&w->run->durability.storage, view, step, own, w->dense_stamps, w->sums,
                            &sums, err);
}

/* A shard that has the step gives it to this one now, and again when it recovers. */
static int ask_others(struct way_back *w, struct sfc_log_commit *commit, bool has_commit,
                      const struct sfc_error *own, struct sfc_error *err)
{
    struct sfc_durability *d = &w->run->durability;
    struct sfc_peers_step step = {.commit = *commit};
    int code = sfc_peers_place(&d->storage.shape, &w->body, &step, err);
    if (code != SFC_OK)
        return code;
    code = sfc_peers_read(d->recovery.peers, &step, has_commit, &d->recovery.abandon, err);
    if (code == SFC_OK) {
        *commit = step.commit;
        return commit->apply ? check_dense(w, commit->step, own->text, err) : SFC_OK;
    }
    struct sfc_error words = *err;
    if (code == SFC_ECANCELED)
        return check_closed(w, err);
    return sfc_fail(err, code, "lost (%.140s), and no other shard gives it (%.140s)", own->text,
                    words.text);
}

/* *round: of the step before, and then of this one. */
static int check_step(struct way_back *w, uint64_t step, struct sfc_attempt *round,
                      struct sfc_error *err)
{
    struct sfc_log_commit commit = {.step = step};
    struct sfc_log_prepare_view view = {0};
    struct sfc_error own = {0};
    bool has_commit = false;
    int code = read_own(w, *round, &commit, &has_commit, &view, &own);
    bool lacks = code == SFC_ENOTFOUND || code == SFC_ECORRUPT;
    if (!has_commit)
        commit = (struct sfc_log_commit){.step = step};
    if (lacks && has_commit) /* its inputs are lost, so it was applied */
        code = check_dense(w, step, own.text, err);
    else if (code != SFC_OK)
        *err = own;
    else if (commit.apply && !view.dense)
        code = check_dense(w, step, "", err);
    else if (commit.apply && step > w->dense_least)
        code = check_sums(w, step, &view, err);
    if (lacks && w->run->durability.recovery.peers && (!has_commit || code == SFC_OK))
        code = ask_others(w, &commit, has_commit, &own, err);
    else if (lacks && code == SFC_OK)
        code = sfc_fail(err, SFC_ENOTFOUND, "%s", own.text);
    *round = commit.round;
    return code == SFC_OK ? SFC_OK : (sfc_prefix(err, "step %" PRIu64, step), code);
}

static int check_steps(struct way_back *w, struct sfc_error *err)
{
    struct sfc_attempt round = {0, 0};
    int code = SFC_OK;
    for (uint64_t step = w->least + 1; code == SFC_OK && step <= w->last.step; step++) {
        code = check_closed(w, err);
        if (code == SFC_OK)
            code = check_step(w, step, &round, err);
    }
    if (code != SFC_OK && w->damage[0]) {
        struct sfc_error words = *err;
        sfc_fail(err, code, "%.140s (needed because of %.140s)", words.text, w->damage);
    }
    return code;
}

static int log_work(struct sfc_task *task, struct sfc_error *err)
{
    struct way_back *w = task->owner;
    struct sfc_storage *s = &w->run->durability.storage;
    w->sums = malloc(sfc_run_packed_bytes(s->setup, w->dense_blocks, w->dense_count) + 8);
    int code = w->sums ? sfc_run_folder_open(s->state, s->run_id, false, &w->folder, err)
                       : sfc_fail(err, SFC_ENOMEM, "no memory for a step of the log");
    if (code == SFC_OK)
        code = check_steps(w, err);
    sfc_folder_close(w->folder);
    sfc_log_body_free(&w->body);
    free(w->sums);
    return code;
}

/* ---- on the loop thread */

static void way_back_free(struct way_back *w)
{
    free(w->blocks);
    free(w->dense_blocks);
    free(w->dense_stamps);
    free(w);
}

static void check_done(struct sfc_task *task)
{
    struct way_back *w = task->owner;
    Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
    w->run->checks_back = false;
    if (task->code == SFC_OK)
        sfc_call_reply(w->call, &reply);
    else
        sfc_shard_refuse(w->run->shard, w->call, task->code, task->error.text);
    way_back_free(w);
}

static void blocks_done(struct sfc_task *task)
{
    struct way_back *w = task->owner;
    if (w->run->closed && task->code == SFC_OK)
        task->code = sfc_fail(&task->error, SFC_EUNAVAILABLE, "the run was closed");
    if (task->code != SFC_OK) {
        check_done(task);
        return;
    }
    w->task = (struct sfc_task){.work = log_work, .done = check_done, .owner = w};
    sfc_tasks_submit(w->run->shard->checkpoint_thread, &w->task);
}

static void take_commit(struct way_back *w, const Shardfc__V1__CheckRewindRequest *r)
{
    const Shardfc__V1__CommitRecord *c = r->last_commit;
    w->last.step = r->step;
    if (!c || !c->round)
        return;
    w->last = (struct sfc_log_commit){
        .step = r->step,
        .round = {c->round->incarnation, c->round->counter},
        .clip_scale = c->clip_scale,
        .lr = c->lr,
        .apply = c->apply,
    };
}

static int check_now(const struct sfc_shard_run *run, const Shardfc__V1__CheckRewindRequest *r,
                     struct sfc_error *err)
{
    int code = sfc_durability_may_go_back(run, r->step, err);
    if (code == SFC_OK && (run->checks_back || run->map_change || run->durability.trimming))
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "the log, the snapshots or the map are at work; try again");
    return code;
}

/* What the map gives this shard is what it has, or mirrors. */
static int check_covered(const struct sfc_shard_run *run, const struct sfc_shard_blocks *own,
                         struct sfc_error *err)
{
    struct sfc_storage *s = (struct sfc_storage *)(uintptr_t)&run->durability.storage;
    for (size_t i = 0; i < own->class_count + own->dense_count; i++) {
        bool dense = i >= own->class_count;
        const struct sfc_snapshot_block block = {dense ? SFC_SNAPSHOT_DENSE : SFC_SNAPSHOT_CLASS,
                                                 dense ? own->dense_blocks[i - own->class_count]
                                                       : own->class_blocks[i]};
        if (sfc_storage_lacks(s, &block))
            return sfc_fail(err, SFC_ESTATE,
                            "map version %" PRIu64 " gives this shard %s block %" PRIu64
                            ", which it neither has nor mirrors",
                            run->map_version, dense ? "dense" : "class", block.block);
    }
    return SFC_OK;
}

static int take_blocks(struct way_back *w, const Shardfc__V1__BlockMap *map, struct sfc_error *err)
{
    const struct sfc_shard_run *run = w->run;
    struct sfc_shard_blocks own = {run->class_blocks, run->dense_blocks, run->class_count,
                                   run->dense_count};
    struct sfc_shard_blocks given = {0};
    int code = SFC_OK;
    if (map) {
        code = sfc_shard_blocks_of(&run->setup, map, run->self, &given, err);
        own = given;
    }
    if (code == SFC_OK && map)
        code = check_covered(run, &own, err);
    if (code == SFC_OK && map)
        code = sfc_shard_check_map(run, map, &own, err);
    if (code == SFC_OK)
        code = sfc_storage_list(&run->durability.storage, own.class_blocks, own.class_count,
                                own.dense_blocks, own.dense_count, &w->blocks, &w->count, err);
    sfc_shard_blocks_free(&given);
    return code;
}

static int way_back_new(struct sfc_shard_run *run, const Shardfc__V1__CheckRewindRequest *r,
                        struct way_back **out, struct sfc_error *err)
{
    struct way_back *w = calloc(1, sizeof *w);
    if (!w)
        return sfc_fail(err, SFC_EUNAVAILABLE, "no memory for the check");
    w->run = run;
    w->until = sfc_step_applied(&run->fsm) + 1; /* whose Prepare may be out */
    take_commit(w, r);
    int code = take_blocks(w, r->map, err);
    if (code == SFC_OK)
        *out = w;
    else
        way_back_free(w);
    return code;
}

void sfc_shard_check_rewind(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                            const Shardfc__V1__CheckRewindRequest *r)
{
    struct sfc_error err = {0};
    Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
    struct way_back *w = NULL;
    uint64_t applied = sfc_step_applied(&run->fsm);
    if (applied <= r->step && !r->map) { /* no way back: it stays, and has what it has in memory */
        sfc_call_reply(call, &reply);
        return;
    }
    int code = check_now(run, r, &err);
    if (code == SFC_OK)
        code = way_back_new(run, r, &w, &err);
    if (code != SFC_OK) {
        sfc_shard_refuse(run->shard, call, code, err.text);
        return;
    }
    w->task = (struct sfc_task){.work = blocks_work, .done = blocks_done, .owner = w};
    w->call = call;
    run->checks_back = true;
    run->durability.back_until = w->until;
    sfc_tasks_submit(run->shard->snapshot_thread, &w->task);
}

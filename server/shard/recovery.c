#include "server/shard/recovery.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/base/log.h"
#include "server/shard/block_copy.h"

#define SPEAK_S 2.0 /* a line of progress this often */

/* One recovery at work. */
struct work {
    struct sfc_recovery *recovery;
    struct sfc_storage *storage;
    const struct sfc_head_config *config;
    struct sfc_head *head;
    struct sfc_dense *dense;
    uint64_t least, most; /* stamps of the blocks */
    size_t from_snapshots;
    double began, spoke;
    /* a step */
    uint8_t *body;
    struct sfc_head_logits_item *logits;
    struct sfc_head_gradient_item *gradients;
    uint32_t *slots;
    uint64_t *exp_sums;
    float *targets;
    uint8_t *has_target;
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
    if (!s->from_seed && code == SFC_ENOTFOUND)
        return sfc_fail(
            err, SFC_ENOTFOUND,
            "--state %s has no snapshot of %s %" PRIu64
            ", and the run began from a checkpoint: it is another shard's folder, or the shard "
            "died before its first snapshots were complete; stop the run and restore the "
            "checkpoint again",
            s->state, kind_names[block->kind], block->block);
    if (!s->from_seed)
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

static bool allocate(struct work *w)
{
    const struct sfc_head_config *c = w->config;
    size_t micro_batches = c->batch / c->micro_batch;
    size_t body = (sfc_step_log_body_size(w->storage->log) + 63) / 64 * 64;
    w->body = aligned_alloc(64, body);
    w->logits = calloc(micro_batches, sizeof *w->logits);
    w->gradients = calloc(micro_batches, sizeof *w->gradients);
    w->slots = calloc(micro_batches, sizeof *w->slots);
    w->exp_sums = calloc((size_t)c->batch * 4, sizeof *w->exp_sums);
    w->targets = calloc(c->batch, sizeof *w->targets);
    w->has_target = calloc(c->batch, 1);
    return w->body && w->logits && w->gradients && w->slots && w->exp_sums && w->targets &&
           w->has_target;
}

static void release(struct work *w)
{
    free(w->body);
    free(w->logits);
    free(w->gradients);
    free(w->slots);
    free(w->exp_sums);
    free(w->targets);
    free(w->has_target);
}

static void set_items(struct work *w, const struct sfc_log_prepare_view *v)
{
    const struct sfc_head_config *c = w->config;
    for (uint32_t j = 0; j < c->batch / c->micro_batch; j++) {
        size_t row = (size_t)j * c->micro_batch;
        w->slots[j] = j;
        w->logits[j] = (struct sfc_head_logits_item){.slot = j,
                                                     .micro_batch = j,
                                                     .features = v->features + row * c->dim,
                                                     .exp_sum = w->exp_sums + 4 * row,
                                                     .target_logit = w->targets + row,
                                                     .has_target = w->has_target + row};
        w->gradients[j] = (struct sfc_head_gradient_item){.slot = j, .lse = v->lse + row};
    }
}

static int apply_step(struct work *w, const struct sfc_log_commit *commit, struct sfc_error *err)
{
    struct sfc_log_prepare_view v;
    size_t micro_batches = w->config->batch / w->config->micro_batch;
    int code = sfc_step_log_read(w->storage->log, commit->step, commit->round, w->body, &v, err);
    if (code != SFC_OK)
        return code;
    set_items(w, &v);
    code = sfc_head_plan(w->head, commit->step, v.labels, NULL, err);
    if (code == SFC_OK)
        code = sfc_head_logits(w->head, w->logits, micro_batches, err);
    if (code == SFC_OK)
        code = sfc_head_gradient(w->head, w->gradients, micro_batches, err);
    if (code == SFC_OK)
        code = sfc_head_commit(w->head, w->slots, commit->lr, err);
    if (code == SFC_OK && w->dense)
        code = sfc_dense_load(w->dense, commit->step, v.dense, err);
    if (code == SFC_OK && w->dense)
        code = sfc_dense_commit(w->dense, commit->clip_scale, commit->lr, err);
    return code;
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
    w->began = w->spoke = seconds();
    for (uint64_t step = w->least + 1; step <= r->last.step; step++) {
        struct sfc_log_commit commit;
        int code = check_abandon(r, err);
        if (code == SFC_OK)
            code = sfc_step_log_commit_of(w->storage->log, step, &commit, err);
        if (code == SFC_OK)
            code = commit.apply ? apply_step(w, &commit, err) : sfc_head_skip(w->head, step, err);
        if (code != SFC_OK)
            return sfc_prefix(err, "step %" PRIu64, step), code;
        speak(w, step);
    }
    return SFC_OK;
}

static int open_log(struct work *w, struct sfc_error *err)
{
    struct sfc_storage *s = w->storage;
    struct sfc_step_log_recovery how = {
        .from = w->least + 1, .last = w->recovery->last, .has_last = w->recovery->has_last};
    struct sfc_step_log_report report = {0};
    int code = sfc_step_log_recover(s->log_folder, &s->config, &how, &s->log, &report, err);
    if (code != SFC_OK && w->from_snapshots < s->count)
        sfc_prefix(err, "--state %s has no snapshot of %zu of the %zu blocks (is it this shard's?)",
                   s->state, s->count - w->from_snapshots, s->count);
    if (code != SFC_OK)
        return code;
    if (report.damage[0])
        sfc_warning_log("run %" PRIu64
                        ": the log is damaged where this recovery doesn't need it: %s; "
                        "check the disk (shardfc log lists the damage)",
                        s->run_id, report.damage);
    if (report.torn[0])
        sfc_warning_log("run %" PRIu64 ": the log's end was torn by the crash, dropped %" PRIu64
                        " bytes above the last commit: %s",
                        s->run_id, report.torn_bytes, report.torn);
    return SFC_OK;
}

static int recover(struct work *w, struct sfc_error *err)
{
    struct sfc_recovery *r = w->recovery;
    double began = seconds();
    int code = restore_blocks(w, err);
    double restored = seconds();
    if (code == SFC_OK)
        code = open_log(w, err);
    if (code == SFC_OK && !allocate(w))
        code = sfc_fail(err, SFC_ENOMEM, "no memory for the steps of the log");
    if (code == SFC_OK)
        code = replay(w, err);
    if (code != SFC_OK)
        return code;
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

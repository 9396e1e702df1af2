#include "server/shard/durability.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "server/shard/durability_parts.h"
#include "server/shard/shard_internal.h"

/* ---- memory */

static int storage_init(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                        struct sfc_error *err)
{
    const struct sfc_shard_options *o = run->shard->options;
    const struct sfc_shard_blocks *mirrored = &run->mirrored.blocks;
    struct sfc_storage_config c = {
        .state = o->state,
        .run_id = run->id,
        .nonce = r->nonce,
        .start_step = r->start_step,
        .from_seed = !r->load && r->start_step == 0,
        .log_limit = o->log_limit,
        .compression = run->shard->compression,
        .numerics = sfc_backend_numerics(sfc_compute_backend(run->shard->compute)),
        .setup = &run->setup,
        .class_blocks = run->class_blocks,
        .class_count = run->class_count,
        .dense_blocks = run->dense_blocks,
        .dense_count = run->dense_count,
        .mirrored_class = mirrored->class_blocks,
        .mirrored_class_count = mirrored->class_count,
        .mirrored_dense = mirrored->dense_blocks,
        .mirrored_dense_count = mirrored->dense_count,
        .logged = run->mirrored.pushed,
    };
    uint8_t *packed = sfc_message_pack(r->config, &c.packed_size);
    if (!packed)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the configuration");
    c.packed_config = packed;
    int code = sfc_storage_init(&sfc_durability_of(run)->storage, &c, err);
    free(packed);
    return code;
}

static int buffers_new(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    uint64_t largest = (sfc_run_largest_block(&run->setup) + 63) / 64 * 64;
    d->staging = aligned_alloc(64, largest);
    d->features = calloc(run->setup.micro_batches, sizeof *d->features);
    d->lse = calloc(run->setup.micro_batches, sizeof *d->lse);
    if (!d->staging || !d->features || !d->lse)
        return sfc_fail(err, SFC_ENOMEM, "%" PRIu64 " bytes to copy a block to", largest);
    return SFC_OK;
}

int sfc_durability_take_returns(const Shardfc__V1__OpenRunRequest *r, struct sfc_lineage *out,
                                struct sfc_error *err)
{
    struct sfc_lineage x = {.count = r->n_returns};
    for (size_t i = 0; i < r->n_returns && i < SFC_LINEAGE_MAX; i++) {
        const Shardfc__V1__Attempt *last = r->returns[i]->last;
        x.returns[i].step = r->returns[i]->step;
        if (last)
            x.returns[i].last = (struct sfc_attempt){last->incarnation, last->counter};
    }
    int code = sfc_lineage_check(x.returns, x.count, err);
    if (code == SFC_OK)
        *out = x;
    return code;
}

/* Who may have what this shard's log has lost. */
int sfc_durability_peers(struct sfc_shard_run *run, const Shardfc__V1__BlockMap *map,
                         struct sfc_error *err)
{
    const struct sfc_head_config *c = &run->setup.head;
    struct sfc_recovery *r = &sfc_durability_of(run)->recovery;
    struct sfc_step_shape shape = {c->batch, c->micro_batch, c->dim, c->classes};
    if (!sfc_durability_of(run)->on)
        return SFC_OK;
    sfc_peers_free(r->peers);
    r->peers = NULL;
    return sfc_peers_new(run->shard->rpc, map, run->self, run->id, &shape, &r->lineage, &r->peers,
                         err);
}

int sfc_durability_init(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                        struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    d->on = run->shard->options->durable == SFC_DURABLE_ON;
    if (!d->on && r->recover)
        return sfc_fail(
            err, SFC_EUNSUPPORTED,
            "this shard runs with --durable off and keeps nothing to recover from; stop "
            "the run and restore its last checkpoint");
    if (!d->on)
        return SFC_OK;
    int code = storage_init(run, r, err);
    if (code == SFC_OK)
        code = buffers_new(run, err);
    if (code == SFC_OK)
        code = sfc_durability_take_returns(r, &d->recovery.lineage, err);
    if (code == SFC_OK)
        code = sfc_durability_peers(run, r->map, err);
    if (code != SFC_OK)
        return code;
    d->recovers = r->recover;
    d->unsettled = r->recover;
    d->asked_window = r->keeping ? r->keeping->rewind_window : 0;
    d->durable_every = r->keeping && r->keeping->durable_every ? r->keeping->durable_every : 1;
    d->durable_step = run->start_step;
    d->base_missing = !d->storage.from_seed && !r->recover && !r->join;
    d->recovery.storage = &d->storage;
    d->recovery.durable = d->durable_every > 1;
    d->recovery.last.step = r->start_step;
    if ((r->recover || r->join) && r->last_commit) {
        const Shardfc__V1__CommitRecord *c = r->last_commit;
        d->recovery.has_last = true;
        d->recovery.last = (struct sfc_log_commit){
            .step = c->step, .clip_scale = c->clip_scale, .lr = c->lr, .apply = c->apply};
        if (c->round)
            d->recovery.last.round = (struct sfc_attempt){c->round->incarnation, c->round->counter};
    }
    return SFC_OK;
}

void sfc_durability_free(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    sfc_snapshot_write_end(d->write);
    sfc_peers_free(d->recovery.peers);
    sfc_storage_free(&d->storage);
    sfc_sweep_close(&d->sweep);
    free(d->staging);
    free(d->features);
    free(d->lse);
}

/* ---- steps */

void sfc_durability_tick(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->paced) /* the timer of a run before this one */
        return;
    d->paced = false;
    sfc_durability_write_piece(run);
}

void sfc_durability_planned(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->on)
        return;
    if (d->unsettled)
        sfc_durability_settle(run);
    if (!d->base_missing)
        return;
    sfc_sweep_urgent(&d->sweep, true);
    sfc_durability_base_done(run);
    sfc_durability_kick(run);
}

int sfc_durability_keep(struct sfc_shard_run *run, bool *kept, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    char failed[SFC_LIMIT_ERROR_TEXT];
    snprintf(failed, sizeof failed, "%s", d->base_missing ? d->snapshot_error : "");
    sfc_durability_planned(run);
    *kept = !d->base_missing;
    return failed[0] && !*kept ? sfc_fail(err, SFC_EUNAVAILABLE, "%s", failed) : SFC_OK;
}

void sfc_durability_applied(struct sfc_shard_run *run)
{
    struct sfc_durability *d = sfc_durability_of(run);
    if (!d->on)
        return;
    sfc_pinned_applied(run);
    if (d->committing == sfc_step_applied(&run->fsm))
        d->durable_step = d->committing;
    sfc_sweep_applied(&d->sweep, sfc_step_applied(&run->fsm), 1e-6 * (double)d->step_ns,
                      sfc_step_log_step_bytes(&d->storage.config.geometry), d->log_bytes);
    sfc_durability_kick(run);
    sfc_mirror_applied(run, 1e-6 * (double)d->step_ns);
    d->step_ns = 0;
}

/* ---- a good end */

/* The blocks change, or Ready is about to be said. */
static bool between_steps(const struct sfc_shard_run *run)
{
    const struct sfc_step_fsm *f = &run->fsm;
    return f->phase == SFC_STEP_COMMITTING || f->phase == SFC_STEP_MAPPING ||
           (f->flushing && !run->durability.flush_waits);
}

static bool all_written(const struct sfc_durability *d)
{
    return !d->copying && sfc_sweep_lag(&d->sweep) == 0 &&
           (d->storage.from_seed || sfc_sweep_complete(&d->sweep));
}

enum sfc_finish sfc_durability_finish(struct sfc_shard_run *run, struct sfc_error *err)
{
    struct sfc_durability *d = sfc_durability_of(run);
    enum sfc_finish failed = SFC_FINISH_FAILED;
    d->finishing = d->on;
    if (!d->on)
        return SFC_FINISH_DONE;
    if (run->fsm.phase == SFC_STEP_FAILED || sfc_durability_lost(run))
        return sfc_fail(err, SFC_ESTATE, "its state can't be trusted"), failed;
    if (d->unsettled)
        return sfc_fail(err, SFC_ESTATE, "it was recovered and has had no step since"), failed;
    if (d->snapshot_error[0])
        return sfc_fail(err, SFC_EIO, "%s", d->snapshot_error), failed;
    if (between_steps(run) || d->durable_step != sfc_step_applied(&run->fsm))
        return SFC_FINISH_WAITS;
    if (all_written(d))
        return run->fsm.phase == SFC_STEP_READY ? SFC_FINISH_READY : SFC_FINISH_DONE;
    sfc_sweep_urgent(&d->sweep, true);
    sfc_durability_kick(run);
    return SFC_FINISH_WRITES;
}

/* ---- status */

void sfc_durability_report(const struct sfc_shard_run *run, Shardfc__V1__ShardDurability *out)
{
    const struct sfc_durability *d = &run->durability;
    out->has_floor = true;
    out->log_floor = d->on ? sfc_durability_own_floor(run, true) : sfc_step_applied(&run->fsm);
    out->oldest_step = sfc_step_applied(&run->fsm);
    if (!d->on)
        return;
    out->log_bytes = d->log_bytes;
    out->snapshot_lag = sfc_sweep_lag(&d->sweep);
    out->oldest_step = d->oldest;
    out->error = (char *)(uintptr_t)(d->log_error[0] ? d->log_error : d->snapshot_error);
}

/* The run that the store has, after a restart of the scheduler. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/scheduler/run_parts.h"
#include "server/scheduler/scale.h"

static bool restore_state(const char *name, enum sfc_run_state *out)
{
    static const enum sfc_run_state states[] = {SFC_RUN_LOADING, SFC_RUN_RUNNING, SFC_RUN_PAUSED,
                                                SFC_RUN_HELD,    SFC_RUN_BLOCKED, SFC_RUN_FINISHED,
                                                SFC_RUN_FAILED};
    for (size_t i = 0; i < sizeof states / sizeof *states; i++)
        if (strcmp(name, sfc_run_state_name(states[i])) == 0) {
            *out = states[i] == SFC_RUN_HELD ? SFC_RUN_RUNNING : states[i];
            return true;
        }
    return false;
}

static int restore_record(struct sfc_scheduler *s, uint64_t run_id, struct sfc_run_restore *out,
                          struct sfc_error *err)
{
    struct sfc_store_commit c;
    int code = sfc_store_last_commit(s->store, run_id, &c, err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK;
    if (code != SFC_OK)
        return code;
    out->has_record = true;
    out->record = sfc_sched_record_of(&c);
    return SFC_OK;
}

/* What people dropped of steps that are not committed. *drops is the caller's to free. */
static int restore_drops(struct sfc_scheduler *s, uint64_t run_id,
                         const Shardfc__V1__RunConfig *config, struct sfc_run_restore *out,
                         struct sfc_run_drop **drops, struct sfc_error *err)
{
    uint64_t committed = out->has_record ? out->record.step : 0;
    size_t limit =
        config->micro_batch ? 8 * (size_t)(config->global_batch / config->micro_batch) : 0;
    size_t count = 0;
    struct sfc_store_drop *stored = calloc(limit + 1, sizeof *stored);
    *drops = calloc(limit + 1, sizeof(**drops));
    int code = stored && *drops ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "dropped micro-batches");
    if (code == SFC_OK)
        code = sfc_store_drops(s->store, run_id, committed, limit, stored, &count, err);
    for (size_t i = 0; i < count; i++)
        (*drops)[i] = (struct sfc_run_drop){stored[i].step, stored[i].micro_batch};
    out->drops = *drops;
    out->drop_count = count;
    free(stored);
    return code;
}

/* The average rate of what was done before our restart, from the first and the last record. */
static int restore_average(struct sfc_scheduler *s, struct sfc_error *err)
{
    struct sfc_store_commit first, last;
    size_t count = 0;
    int code = sfc_store_last_commit(s->store, s->run->id, &last, err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK;
    if (code == SFC_OK)
        code = sfc_store_history(s->store, s->run->id, 0, 1, &first, &count, err);
    if (code == SFC_OK && count == 1 && last.time_us > first.time_us) {
        s->run->timed_steps = last.step - first.step;
        s->run->timed_us = last.time_us - first.time_us;
    }
    return code;
}

/* Provisional steps are known to nobody any more: so the run goes back to the last durable one. */
static int restore_lineage(struct sfc_sched_run *run, struct sfc_error *err)
{
    int code = sfc_store_lineage(run->scheduler->store, run->id, &run->lineage, err);
    if (code == SFC_OK && run->durable_every > 1) {
        sfc_lineage_add(&run->lineage, sfc_run_committed(&run->fsm),
                        (struct sfc_attempt){run->scheduler->incarnation - 1, UINT64_MAX});
        run->lineage_new = true;
    }
    return code;
}

int sfc_sched_restore_run(struct sfc_scheduler *s, struct sfc_error *err)
{
    struct sfc_store_run stored = {0};
    struct sfc_run_restore restore = {0};
    int code = sfc_store_last_run(s->store, &stored, err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK;
    if (code != SFC_OK)
        return code;
    s->last_run_id = stored.run_id;
    Shardfc__V1__RunConfig *config = NULL;
    Shardfc__V1__BlockMap *map = NULL;
    struct sfc_run_drop *drops = NULL;
    struct sfc_lr_change *lr_changes = NULL;
    size_t lr_count = 0;
    config = sfc_unpack((struct sfc_bytes){stored.config, stored.config_size},
                        &shardfc__v1__run_config__descriptor, &code);
    if (config)
        snprintf(s->served_run, sizeof s->served_run, "%s", config->name);
    if (!restore_state(stored.state, &restore.state)) {
        code = SFC_OK; /* stopped: only its history is left */
        goto done;
    }
    restore.reason = stored.reason;
    restore.map_step = stored.map_step;
    restore.map_order = stored.map_order;
    restore.paused = stored.paused;
    int map_code;
    map = sfc_unpack((struct sfc_bytes){stored.map, stored.map_size},
                     &shardfc__v1__block_map__descriptor, &map_code);
    if (code == SFC_ENOMEM || map_code == SFC_ENOMEM) {
        code = sfc_fail(err, SFC_ENOMEM, "no memory for the stored run %" PRIu64, stored.run_id);
        goto done;
    }
    if (!config || !map || map->n_shards == 0) {
        code =
            sfc_fail(err, SFC_ECORRUPT, "the stored run %" PRIu64 " is malformed", stored.run_id);
        goto done;
    }
    code = restore_record(s, stored.run_id, &restore, err);
    if (code == SFC_OK)
        code = restore_drops(s, stored.run_id, config, &restore, &drops, err);
    if (code == SFC_OK)
        code = sfc_sched_read_lr(s->store, stored.run_id, &lr_changes, &lr_count, err);
    if (code == SFC_OK)
        code =
            sfc_sched_run_new(s, stored.run_id, config, map, stored.start_step, stored.load,
                              (struct sfc_keeping){stored.rewind_window, stored.durable_every,
                                                   stored.elastic, stored.mirrors, stored.grace_s},
                              lr_changes, lr_count, &restore, &s->run, err);
    if (code == SFC_OK) {
        config = NULL;
        map = NULL;
        sfc_sched_keep_shards(s, s->run->map);
        s->run->nonce = stored.nonce;
        code = restore_lineage(s->run, err);
    }
    if (code == SFC_OK)
        code = sfc_scale_restore(s->run, err);
    if (code == SFC_OK) {
        memcpy(s->run->numerics, stored.numerics, sizeof s->run->numerics);
    }
    if (code == SFC_OK)
        code = restore_average(s, err);
    if (code == SFC_OK) {
        sfc_sched_show_record(s->run, &restore.record);
        sfc_info_log("run %" PRIu64 " (%s) %s at step %" PRIu64, stored.run_id,
                     s->run->config->name,
                     restore.state == SFC_RUN_FAILED ? "had failed" : "goes on",
                     sfc_run_committed(&s->run->fsm));
    }
done:
    free(drops);
    free(lr_changes);
    sfc_message_free(config);
    sfc_message_free(map);
    sfc_store_run_close(&stored);
    return code;
}

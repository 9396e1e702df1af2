/* A run at the scheduler: its machine, and what its actions do to the world. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/scheduler/loss.h"
#include "server/scheduler/grow.h"
#include "server/scheduler/order_parts.h"
#include "server/scheduler/run_parts.h"
#include "server/scheduler/scale.h"

#define RATE_WEIGHT 0.1 /* of the newest step in the smoothed images per second */

/* What this program grows by in a run: SQLite's page cache, and the calls of each micro-batch
 * (labels, tickets, plans). For the memory plan. */
#define GROWTH_BYTES (1u << 20)
#define CALLS_BYTES  (48u << 10)

static void perform(struct sfc_sched_run *run);

bool sfc_sched_run_active(const struct sfc_scheduler *s)
{
    if (!s->run)
        return false;
    enum sfc_run_state state = s->run->fsm.state;
    return state != SFC_RUN_IDLE && state != SFC_RUN_FINISHED && state != SFC_RUN_FAILED;
}

uint32_t sfc_sched_run_shard(const struct sfc_sched_run *run, uint64_t shard)
{
    for (uint32_t k = 0; shard != 0 && k < run->fsm.config.shards; k++)
        if (run->fsm.shards[k].place != SFC_PLACE_EMPTY && run->fsm.shards[k].id == shard)
            return k;
    return UINT32_MAX;
}

double sfc_sched_run_average(const struct sfc_sched_run *run)
{
    return run->timed_us
               ? 1e6 * (double)run->timed_steps * run->config->global_batch / (double)run->timed_us
               : 0;
}

/* ---- life */

static struct sfc_run_config machine_config(const struct sfc_sched_run *run, uint64_t start_step,
                                            const uint64_t *shard_ids)
{
    const Shardfc__V1__RunConfig *c = run->config;
    return (struct sfc_run_config){
        .run_id = run->id,
        .incarnation = run->scheduler->incarnation,
        .shards = (uint32_t)run->map->n_shards,
        .shard_ids = shard_ids,
        .map_version = run->map->version,
        .classes = run->setup.head.classes,
        .global_batch = c->global_batch,
        .micro_batch = c->micro_batch,
        .dense_blocks = (uint32_t)run->setup.dense_blocks,
        .clip = c->clip,
        .schedule = {.lr = c->lr,
                     .warmup_steps = c->warmup_steps,
                     .power = c->lr_power,
                     .end = c->lr_end,
                     .steps = c->steps},
        .start_step = start_step,
        .load = run->load,
        .session = c->data && c->data->kind == SHARDFC__V1__DATA_SET__KIND__SESSION,
        .durable_every = run->durable_every,
        .hold_lease_ms = SFC_HOLD_LEASE_MS,
    };
}

int sfc_sched_run_new(struct sfc_scheduler *s, uint64_t id, Shardfc__V1__RunConfig *config,
                      Shardfc__V1__BlockMap *map, uint64_t start_step, bool load,
                      struct sfc_keeping keeping, const struct sfc_lr_change *lr_changes,
                      size_t lr_count, const struct sfc_run_restore *restore,
                      struct sfc_sched_run **out, struct sfc_error *err)
{
    struct sfc_sched_run *run = calloc(1, sizeof *run);
    if (!run)
        return sfc_fail(err, SFC_ENOMEM, "run %" PRIu64, id);
    run->scheduler = s;
    run->id = id;
    run->config = config;
    run->map = map;
    run->load = load;
    run->rewind_window = keeping.rewind_window;
    run->durable_every = keeping.durable_every;
    run->elastic = keeping.elastic;
    run->mirrors = keeping.mirrors;
    run->grace_s = keeping.grace_s;
    run->loss = NAN;
    int code = sfc_run_setup_init(&run->setup, config, err);
    if (code == SFC_OK)
        code = sfc_sched_take_growths(run, err);
    uint64_t shard_ids[SFC_CORE_MAX_SHARDS];
    for (size_t k = 0; k < map->n_shards && k < SFC_CORE_MAX_SHARDS; k++)
        shard_ids[k] = map->shards[k]->shard;
    if (code == SFC_OK) {
        struct sfc_run_config machine = machine_config(run, start_step, shard_ids);
        machine.lr_changes = lr_changes;
        machine.lr_change_count = lr_count;
        code = sfc_run_init(&run->fsm, &machine, restore, err);
    }
    if (code == SFC_OK)
        code = sfc_log_floor_init(&run->floor, SFC_CORE_MAX_SHARDS, err);
    for (uint32_t k = 0; code == SFC_OK && k < SFC_CORE_MAX_SHARDS; k++)
        sfc_log_floor_set_member(&run->floor, k, run->fsm.shards[k].place == SFC_PLACE_MEMBER);
    if (code == SFC_OK)
        code = sfc_run_actions_init(&run->actions, &run->fsm, err);
    if (code == SFC_OK)
        code = sfc_scale_new(run, &run->scale, err);
    if (code == SFC_OK) {
        sfc_spans_forget(s->spans);
        uint64_t plan =
            sfc_process_memory() + GROWTH_BYTES + run->setup.micro_batches * (uint64_t)CALLS_BYTES;
        sfc_info_log("run %" PRIu64 ": memory plan: %.1f MiB; requests that no run needs may take "
                     "%.1f MiB more",
                     run->id, (double)plan / (1 << 20),
                     (double)sfc_rpc_message_memory(&run->scheduler->options->peers, 0) /
                         (1 << 20));
        *out = run;
        return SFC_OK;
    }
    run->config = NULL; /* still the caller's */
    run->map = NULL;
    sfc_sched_run_free(run);
    return code;
}

void sfc_sched_run_free(struct sfc_sched_run *run)
{
    if (!run)
        return;
    struct sfc_error err;
    sfc_fail(&err, SFC_ESTALE, "the run has ended");
    struct sfc_parked *p = run->scheduler->parked;
    while (p) {
        struct sfc_parked *next = p->next;
        if (p->kind < SFC_PARKED_OF_RUN || p->kind == SFC_PARKED_CREATE ||
            p->kind == SFC_PARKED_SCALE) {
            sfc_sched_refuse(run->scheduler, p->call, &err);
            sfc_sched_unpark(p);
        }
        p = next;
    }
    sfc_sched_kept_free(&run->kept);
    sfc_sched_orders_free(run);
    sfc_scale_free(run->scale);
    sfc_run_actions_free(&run->actions);
    sfc_run_free(&run->fsm);
    sfc_log_floor_free(&run->floor);
    sfc_run_setup_close(&run->setup);
    sfc_message_free(run->config);
    sfc_message_free(run->map);
    free(run);
}

uint64_t sfc_sched_run_oldest(const struct sfc_sched_run *run)
{
    uint64_t oldest = run->fsm.config.start_step;
    for (size_t k = 0; k < run->map->n_shards; k++) {
        const struct sfc_shard_info *info =
            sfc_sched_shard(run->scheduler, run->map->shards[k]->shard);
        if (info && info->oldest_of == run->id && info->oldest_step > oldest)
            oldest = info->oldest_step;
    }
    return oldest;
}

/* ---- events */

/* The phases that follow one another from one commit to the next. A step that was voided begins
 * anew; after a pause or a return the first one has no beginning. */
static void record_phase(struct sfc_sched_run *run, uint64_t step, enum sfc_phase phase,
                         uint64_t *since, uint64_t *next)
{
    uint64_t now = sfc_spans_now();
    struct sfc_span span = {.phase = (uint8_t)phase,
                            .step = step,
                            .micro_batch = UINT32_MAX,
                            .rows = run->config->global_batch,
                            .begin_ns = *since,
                            .end_ns = now};
    if (*since)
        sfc_spans_add(run->scheduler->spans, &span);
    *since = 0;
    *next = now;
}

static void prepares(struct sfc_sched_run *run, uint64_t step)
{
    if (run->times.step == step && run->times.prepare) /* to another shard */
        return;
    uint64_t since = run->times.committed;
    run->times.step = step;
    record_phase(run, step, SFC_SPAN_COMPUTE, &since, &run->times.prepare);
}

static void committed(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    uint64_t now = uv_hrtime() / 1000;
    sfc_sched_series_commit(run, &a->record); /* before the rate changes: as the record has it */
    if (run->last_commit_us && now > run->last_commit_us) {
        uint64_t took = now - run->last_commit_us;
        double rate = 1e6 * run->config->global_batch / (double)took;
        run->rate = run->rate > 0 ? run->rate + RATE_WEIGHT * (rate - run->rate) : rate;
        run->timed_steps++;
        run->timed_us += took;
        sfc_histogram_add(&run->scheduler->step_durations, (double)took / 1e6);
    }
    record_phase(run, a->record.step, SFC_SPAN_RECORD, &run->times.record, &run->times.committed);
    run->last_commit_us = now;
    run->loss = a->record.loss;
    run->lr = a->record.lr;
    run->skipped_steps = a->record.skipped_total;
}

static void perform(struct sfc_sched_run *run)
{
    for (size_t i = 0; i < run->actions.count; i++) {
        const struct sfc_run_action *a = &run->actions.items[i];
        switch (a->type) {
        case SFC_ACT_SEND:
            if (a->duty == SFC_DUTY_PREPARE)
                prepares(run, a->step);
            else if (a->duty == SFC_DUTY_ABORT)
                run->times.prepare = run->times.record = 0;
            sfc_sched_send(run, a);
            break;
        case SFC_ACT_WRITE_RECORD:
            record_phase(run, a->record.step, SFC_SPAN_PREPARE_ALL, &run->times.prepare,
                         &run->times.record);
            sfc_scale_note_step(run, a->record.step);
            sfc_sched_write_record(run, a);
            break;
        case SFC_ACT_WRITE_LR:
            sfc_sched_write_lr(run, a);
            break;
        case SFC_ACT_WRITE_DROP:
            sfc_sched_write_drop(run, a);
            break;
        case SFC_ACT_READ_RECORD:
            sfc_sched_read_record(run, a->step);
            break;
        case SFC_ACT_WRITE_REWIND:
            sfc_sched_write_rewind(run, a);
            break;
        case SFC_ACT_FORGET_RECORDS:
            sfc_sched_kept_free(&run->kept);
            sfc_lineage_add(&run->lineage, a->step, a->round);
            run->lineage_new = true;
            sfc_sched_show_record(run, &run->fsm.commit.record);
            sfc_sched_series_cut(run, a->step);
            sfc_sched_forget_times(run);
            sfc_sched_event(run->scheduler,
                            "run %" PRIu64 " (%s) goes back to its last durable step, %" PRIu64,
                            run->id, run->config->name, sfc_run_durable_step(&run->fsm));
            break;
        case SFC_ACT_COMMITTED:
            committed(run, a);
            break;
        case SFC_ACT_STATE:
            sfc_sched_write_state(run, a);
            break;
        case SFC_ACT_WRITE_MAP:
            sfc_sched_write_map(run, a);
            break;
        case SFC_ACT_MAP:
            sfc_sched_take_map(run);
            break;
        case SFC_ACT_ORDER_DONE:
            sfc_sched_order_done(run, a);
            break;
        case SFC_ACT_REPLY:
        case SFC_ACT_REPLY_LR:
        case SFC_ACT_REPLY_TICKET:
        case SFC_ACT_REPLY_DONE:
        case SFC_ACT_REPLY_SESSION:
        case SFC_ACT_REPLY_HOLD:
            sfc_sched_reply(run, a);
            break;
        }
    }
}

/* What memory answers at once. */
static void tell_kept(struct sfc_sched_run *run)
{
    struct sfc_run_event event = {.type = SFC_EV_RECORD_DURABLE, .step = run->kept_step};
    if (run->kept_step) {
        run->kept_step = 0;
        sfc_sched_run_event(run, &event);
    } else if (run->found) {
        struct sfc_commit_record record = sfc_sched_record_of(run->found);
        event = (struct sfc_run_event){
            .type = SFC_EV_RECORD_READ, .step = run->found->step, .record = &record};
        run->found = NULL;
        sfc_sched_run_event(run, &event);
    }
}

void sfc_sched_run_event(struct sfc_sched_run *run, struct sfc_run_event *event)
{
    event->now_ms = sfc_sched_now(run->scheduler);
    sfc_run_step(&run->fsm, event, &run->actions);
    perform(run);
    sfc_sched_note_delay(run);
    sfc_sched_answer_controls(run);
    tell_kept(run);
    sfc_sched_create_progress(run);
}

void sfc_sched_run_tick(struct sfc_sched_run *run)
{
    struct sfc_lost_send lost[SFC_MAX_LOST];
    uint32_t count = run->lost_count;
    memcpy(lost, run->lost, count * sizeof *lost);
    run->lost_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct sfc_run_event event = {.type = SFC_EV_SHARD_REPLY,
                                      .shard = lost[i].shard,
                                      .duty = lost[i].duty,
                                      .step = lost[i].step,
                                      .life = lost[i].life,
                                      .number = lost[i].number,
                                      .round = lost[i].round,
                                      .code = SFC_EUNAVAILABLE,
                                      .text = "no memory for the request"};
        sfc_sched_run_event(run, &event);
    }
    if (run->lost_record) {
        struct sfc_run_event event = {.type = SFC_EV_RECORD_FAILED,
                                      .step = run->lost_record,
                                      .code = SFC_ENOMEM,
                                      .text = "no memory for the commit record"};
        run->lost_record = 0;
        sfc_sched_run_event(run, &event);
    }
    if (run->lost_drop_number) {
        struct sfc_run_event event = {.type = SFC_EV_DROPPED,
                                      .number = run->lost_drop_number,
                                      .step = run->lost_drop.step,
                                      .j = run->lost_drop.j,
                                      .code = SFC_ENOMEM,
                                      .text = "no memory"};
        run->lost_drop_number = 0;
        sfc_sched_run_event(run, &event);
    }
    if (run->lost_lr) {
        struct sfc_run_event event = {.type = SFC_EV_LR_WRITTEN,
                                      .step = run->lost_lr,
                                      .code = SFC_ENOMEM,
                                      .text = "no memory"};
        run->lost_lr = 0;
        sfc_sched_run_event(run, &event);
    }
    if (run->lost_rewind) { /* only one of the two is waited for */
        struct sfc_run_event event = {.type = SFC_EV_RECORD_READ,
                                      .step = run->lost_rewind - 1,
                                      .code = SFC_ENOMEM,
                                      .text = "no memory"};
        run->lost_rewind = 0;
        sfc_sched_run_event(run, &event);
        event.type = SFC_EV_REWOUND;
        sfc_sched_run_event(run, &event);
    }
    sfc_sched_store_state_again(run);
    if (run->lost_map) {
        struct sfc_run_event event = {.type = SFC_EV_MAP_FAILED,
                                      .number = run->lost_map,
                                      .code = SFC_ENOMEM,
                                      .text = "no memory for the map"};
        run->lost_map = 0;
        sfc_sched_run_event(run, &event);
    }
    sfc_scale_tick(run);
    sfc_mirrors_tick(run);
    sfc_loss_tick(run);
    sfc_sched_orders_tick(run);
    struct sfc_run_event event = {.type = SFC_EV_TICK};
    sfc_sched_run_event(run, &event);
}

void sfc_sched_run_cancelled(struct sfc_parked *parked)
{
    struct sfc_sched_run *run = parked->scheduler->run;
    struct sfc_error err;
    struct sfc_run_event event = {.type = SFC_EV_CANCEL, .token = (uintptr_t)parked};
    sfc_fail(&err, SFC_ECANCELED, "the caller gave up");
    sfc_rpc_fail(parked->call, err.code, err.text);
    if (run)
        sfc_sched_run_event(run, &event);
    sfc_sched_unpark(parked);
}

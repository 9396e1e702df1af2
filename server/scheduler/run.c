/* A run at the scheduler: its machine, and what its actions do to the world. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/rng/permutation.h"
#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/scheduler/scheduler_internal.h"

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
    for (size_t i = 0; i < run->map->n_shards; i++)
        if (run->map->shards[i]->shard == shard)
            return (uint32_t)i;
    return UINT32_MAX;
}

double sfc_sched_run_average(const struct sfc_sched_run *run)
{
    return run->timed_us
               ? 1e6 * (double)run->timed_steps * run->config->global_batch / (double)run->timed_us
               : 0;
}

/* ---- records in memory */

static void kept_free(struct sfc_kept_records *kept)
{
    for (size_t i = 0; i < kept->count; i++)
        free((void *)(uintptr_t)kept->items[i].attempts);
    free(kept->items);
    memset(kept, 0, sizeof *kept);
}

/* Takes the record's attempts on success only. */
static bool keep(struct sfc_kept_records *kept, const struct sfc_store_commit *commit)
{
    if (kept->count == kept->room) {
        size_t room = 2 * kept->room + 8;
        struct sfc_store_commit *items = realloc(kept->items, room * sizeof *items);
        if (!items)
            return false;
        kept->items = items;
        kept->room = room;
    }
    kept->items[kept->count++] = *commit;
    return true;
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
        .classes = c->classes,
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
                      struct sfc_keeping keeping, const struct sfc_run_restore *restore,
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
    run->loss = NAN;
    int code = sfc_run_setup_init(&run->setup, config, err);
    uint64_t shard_ids[SFC_CORE_MAX_SHARDS];
    for (size_t k = 0; k < map->n_shards && k < SFC_CORE_MAX_SHARDS; k++)
        shard_ids[k] = map->shards[k]->shard;
    if (code == SFC_OK) {
        struct sfc_run_config machine = machine_config(run, start_step, shard_ids);
        code = sfc_run_init(&run->fsm, &machine, restore, err);
    }
    if (code == SFC_OK)
        code = sfc_log_floor_init(&run->floor, (uint32_t)map->n_shards, err);
    if (code == SFC_OK)
        code = sfc_run_actions_init(&run->actions, &run->fsm, err);
    if (code == SFC_OK) {
        sfc_info_log("run %" PRIu64 ": memory plan: %.1f MiB", run->id,
                     (double)(sfc_process_memory() + GROWTH_BYTES +
                              run->setup.micro_batches * (uint64_t)CALLS_BYTES) /
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
        if (p->kind < SFC_PARKED_OF_RUN || p->kind == SFC_PARKED_CREATE) {
            sfc_sched_refuse(run->scheduler, p->call, &err);
            sfc_sched_unpark(p);
        }
        p = next;
    }
    kept_free(&run->kept);
    sfc_run_actions_free(&run->actions);
    sfc_run_free(&run->fsm);
    sfc_log_floor_free(&run->floor);
    sfc_run_setup_close(&run->setup);
    sfc_message_free(run->config);
    sfc_message_free(run->map);
    free(run);
}

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

static struct sfc_commit_record record_of(const struct sfc_store_commit *c)
{
    return (struct sfc_commit_record){
        .step = c->step,
        .round = {c->round_incarnation, c->round_counter},
        .clip_scale = c->clip_scale,
        .norm = c->norm,
        .apply = c->applied,
        .loss = c->loss,
        .lr = c->lr,
        .map_version = c->map_version,
        .next_position = c->position,
        .zero_features = c->zero_features,
        .skipped_in_row = c->skipped_in_row,
        .skipped_total = c->skipped_total,
    };
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
    out->record = record_of(&c);
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

/* What status says of the last committed step; all zero: there is none. */
static void show_record(struct sfc_sched_run *run, const struct sfc_commit_record *record)
{
    run->loss = record->step ? record->loss : (double)NAN;
    run->lr = record->lr;
    run->skipped_steps = record->skipped_total;
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
    if (!restore_state(stored.state, &restore.state))
        goto done; /* stopped: only its history is left */
    restore.reason = stored.reason;
    int map_code;
    config = sfc_unpack((struct sfc_bytes){stored.config, stored.config_size},
                        &shardfc__v1__run_config__descriptor, &code);
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
        code = sfc_sched_run_new(s, stored.run_id, config, map, stored.start_step, stored.load,
                                 (struct sfc_keeping){stored.rewind_window, stored.durable_every},
                                 &restore, &s->run, err);
    if (code == SFC_OK) {
        config = NULL;
        map = NULL;
        sfc_sched_keep_shards(s, s->run->map);
        s->run->nonce = stored.nonce;
        code = restore_lineage(s->run, err);
        memcpy(s->run->numerics, stored.numerics, sizeof s->run->numerics);
    }
    if (code == SFC_OK)
        code = restore_average(s, err);
    if (code == SFC_OK) {
        show_record(s->run, &restore.record);
        sfc_info_log("run %" PRIu64 " (%s) %s at step %" PRIu64, stored.run_id,
                     s->run->config->name,
                     restore.state == SFC_RUN_FAILED ? "had failed" : "goes on",
                     sfc_run_committed(&s->run->fsm));
    }
done:
    free(drops);
    sfc_message_free(config);
    sfc_message_free(map);
    sfc_store_run_close(&stored);
    return code;
}

/* ---- durable records */

static uint64_t time_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

struct record_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id, step;
    struct sfc_kept_records records; /* the last one is of `step` */
    struct sfc_lineage lineage;
    bool has_lineage;
};

static void record_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct record_task *t = (struct record_task *)task;
    const struct sfc_kept_records *r = &t->records;
    task->code = r->count == 1 && !t->has_lineage
                     ? sfc_store_put_commit(store, &r->items[0], &task->error)
                     : sfc_store_put_commits(store, r->items, r->count,
                                             t->has_lineage ? &t->lineage : NULL, &task->error);
}

/* What could not be written is kept; the machine asks for the last one again. */
static void take_back(struct sfc_sched_run *run, struct sfc_kept_records *records)
{
    free((void *)(uintptr_t)records->items[--records->count].attempts);
    kept_free(&run->kept); /* empty: nothing was kept meanwhile */
    run->kept = *records;
    memset(records, 0, sizeof *records);
}

static void record_done(struct sfc_store_task *task)
{
    struct record_task *t = (struct record_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    struct sfc_run_event event = {.type = task->code == SFC_OK ? SFC_EV_RECORD_DURABLE
                                                               : SFC_EV_RECORD_FAILED,
                                  .step = t->step,
                                  .code = task->code,
                                  .text = task->error.text};
    bool ours = run && run->id == t->run_id && !t->scheduler->stopping;
    if (task->code != SFC_OK)
        sfc_error_log("commit record of step %" PRIu64 ": %s", t->step, task->error.text);
    if (ours && task->code != SFC_OK) {
        take_back(run, &t->records);
        run->lineage_new = run->lineage_new || t->has_lineage;
    }
    if (ours)
        sfc_sched_run_event(run, &event);
    kept_free(&t->records);
    free(t);
}

/* false: no memory. */
static bool pack_record(struct sfc_sched_run *run, const struct sfc_commit_record *r,
                        struct sfc_store_commit *out)
{
    size_t size = 0;
    uint8_t *attempts = sfc_sched_pack_prepare(run, UINT32_MAX, r->step, r->round, false, &size);
    *out = (struct sfc_store_commit){
        .run_id = run->id,
        .step = r->step,
        .clip_scale = r->clip_scale,
        .applied = r->apply,
        .loss = r->loss,
        .lr = r->lr,
        .images_per_s = run->rate,
        .time_us = time_us(),
        .norm = r->norm,
        .round_incarnation = r->round.incarnation,
        .round_counter = r->round.counter,
        .zero_features = r->zero_features,
        .skipped_in_row = r->skipped_in_row,
        .skipped_total = r->skipped_total,
        .classes = run->config->classes,
        .map_version = r->map_version,
        .position = r->next_position,
        .attempts = attempts,
        .attempts_size = size,
    };
    return attempts != NULL;
}

static void write_record(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct sfc_store_commit commit;
    struct record_task *t = a->provisional ? NULL : calloc(1, sizeof *t);
    bool packed = (a->provisional || t) && pack_record(run, &a->record, &commit);
    if (!packed || !keep(&run->kept, &commit)) {
        run->lost_record = a->record.step;
        if (packed)
            free((void *)(uintptr_t)commit.attempts);
        free(t);
        return;
    }
    if (a->provisional) {
        run->kept_step = a->record.step;
        return;
    }
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->step = a->record.step;
    t->records = run->kept;
    memset(&run->kept, 0, sizeof run->kept);
    t->lineage = run->lineage;
    t->has_lineage = run->lineage_new;
    run->lineage_new = false;
    t->task.work = record_work;
    t->task.done = record_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

struct drop_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id;
    uint64_t number;
    struct sfc_store_drop drop;
};

static void drop_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct drop_task *t = (struct drop_task *)task;
    task->code = sfc_store_put_drop(store, t->run_id, &t->drop, &task->error);
}

static void drop_done(struct sfc_store_task *task)
{
    struct drop_task *t = (struct drop_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    struct sfc_run_event event = {.type = SFC_EV_DROPPED,
                                  .number = t->number,
                                  .step = t->drop.step,
                                  .j = t->drop.micro_batch,
                                  .code = task->code,
                                  .text = task->error.text};
    if (run && run->id == t->run_id && !t->scheduler->stopping)
        sfc_sched_run_event(run, &event);
    free(t);
}

static void write_drop(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct drop_task *t = calloc(1, sizeof *t);
    if (!t) {
        run->lost_drop = (struct sfc_run_drop){a->step, a->j};
        run->lost_drop_number = a->number;
        return;
    }
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->number = a->number;
    t->drop = (struct sfc_store_drop){a->step, a->j};
    t->task.work = drop_work;
    t->task.done = drop_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

/* ---- back to an earlier step */

struct rewind_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id, step;
    struct sfc_store_commit commit;
    struct sfc_kept_records records; /* of a rewind */
    struct sfc_lineage lineage;      /* after it */
};

static void read_record_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct rewind_task *t = (struct rewind_task *)task;
    task->code = sfc_store_commit_of(store, t->run_id, t->step, &t->commit, &task->error);
}

static void rewind_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct rewind_task *t = (struct rewind_task *)task;
    task->code = sfc_store_rewind(store, t->run_id, t->step, t->records.items, t->records.count,
                                  &t->lineage, &task->error);
}

static void rewind_report(struct rewind_task *t, struct sfc_run_event *event)
{
    struct sfc_sched_run *run = t->scheduler->run;
    event->step = t->step;
    event->code = t->task.code;
    event->text = t->task.error.text;
    if (run && run->id == t->run_id && !t->scheduler->stopping)
        sfc_sched_run_event(run, event);
    kept_free(&t->records);
    free(t);
}

static void read_record_done(struct sfc_store_task *task)
{
    struct rewind_task *t = (struct rewind_task *)task;
    struct sfc_commit_record record = record_of(&t->commit);
    struct sfc_run_event event = {.type = SFC_EV_RECORD_READ, .record = &record};
    rewind_report(t, &event);
}

static void rewind_done(struct sfc_store_task *task)
{
    struct rewind_task *t = (struct rewind_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    struct sfc_run_event event = {.type = SFC_EV_REWOUND};
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    if (task->code != SFC_OK && run && run->id == t->run_id) {
        run->kept = t->records; /* empty meanwhile */
        memset(&t->records, 0, sizeof t->records);
    } else if (run && run->id == t->run_id) {
        run->lineage = t->lineage;
        run->lineage_new = false;
        sfc_sched_event(t->scheduler, "run %" PRIu64 " (%s) went back to step %" PRIu64, run->id,
                        run->config->name, t->step);
        show_record(run, &run->fsm.commit.record);
        run->last_commit_us = 0;
    }
    rewind_report(t, &event);
}

static void submit_rewind(struct sfc_sched_run *run, uint64_t step, struct sfc_attempt last,
                          void (*work)(struct sfc_store_task *, struct sfc_store *),
                          void (*done)(struct sfc_store_task *))
{
    struct rewind_task *t = calloc(1, sizeof *t);
    if (!t) {
        run->lost_rewind = step + 1;
        return;
    }
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->step = step;
    t->task.work = work;
    t->task.done = done;
    if (done == rewind_done) {
        t->records = run->kept;
        memset(&run->kept, 0, sizeof run->kept);
        t->lineage = run->lineage;
        sfc_lineage_add(&t->lineage, step, last);
    }
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

static void read_record(struct sfc_sched_run *run, uint64_t step)
{
    for (size_t i = 0; i < run->kept.count && !run->found; i++)
        if (run->kept.items[i].step == step)
            run->found = &run->kept.items[i];
    if (!run->found)
        submit_rewind(run, step, (struct sfc_attempt){0, 0}, read_record_work, read_record_done);
}

uint64_t sfc_sched_run_oldest(const struct sfc_sched_run *run)
{
    uint64_t oldest = run->fsm.config.start_step;
    for (size_t k = 0; k < run->map->n_shards; k++) {
        const struct sfc_shard_info *info =
            sfc_sched_shard(run->scheduler, run->map->shards[k]->shard);
        if (info && info->oldest_step > oldest)
            oldest = info->oldest_step;
    }
    return oldest;
}

struct state_task {
    struct sfc_store_task task;
    uint64_t run_id;
    char state[16];
    char reason[512];
};

static void state_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct state_task *t = (struct state_task *)task;
    task->code = sfc_store_set_run_state(store, t->run_id, t->state, t->reason, &task->error);
}

static void state_done(struct sfc_store_task *task)
{
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    free(task);
}

static void write_state(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    const char *name = a->state == SFC_RUN_IDLE ? "stopped" : sfc_run_state_name(a->state);
    sfc_sched_event(run->scheduler, "run %" PRIu64 " (%s): %s at step %" PRIu64 "%s%s", run->id,
                    run->config->name, name, sfc_run_committed(&run->fsm),
                    a->text && *a->text ? ": " : "", a->text ? a->text : "");
    if (a->state != SFC_RUN_RUNNING)
        run->last_commit_us = 0; /* standing still does not count as slow steps */
    else
        run->running_us = uv_hrtime() / 1000;
    struct state_task *t = calloc(1, sizeof *t);
    if (!t) {
        sfc_error_log("no memory to store the state of run %" PRIu64, run->id);
        return;
    }
    t->task.work = state_work;
    t->task.done = state_done;
    t->run_id = run->id;
    snprintf(t->state, sizeof t->state, "%s", name);
    snprintf(t->reason, sizeof t->reason, "%s", a->text ? a->text : "");
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

static void committed(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    uint64_t now = uv_hrtime() / 1000;
    if (run->last_commit_us && now > run->last_commit_us) {
        uint64_t took = now - run->last_commit_us;
        double rate = 1e6 * run->config->global_batch / (double)took;
        run->rate = run->rate > 0 ? run->rate + RATE_WEIGHT * (rate - run->rate) : rate;
        run->timed_steps++;
        run->timed_us += took;
    }
    run->last_commit_us = now;
    run->loss = a->record.loss;
    run->lr = a->record.lr;
    run->skipped_steps = a->record.skipped_total;
}

/* ---- answers */

static void set_attempt(Shardfc__V1__Attempt *out, struct sfc_attempt a)
{
    shardfc__v1__attempt__init(out);
    out->incarnation = a.incarnation;
    out->counter = a.counter;
}

static void reply_ticket(struct sfc_sched_run *run, struct sfc_parked *p,
                         const struct sfc_run_action *a)
{
    const Shardfc__V1__RunConfig *c = run->config;
    Shardfc__V1__TicketReply m = SHARDFC__V1__TICKET_REPLY__INIT;
    Shardfc__V1__Attempt attempt;
    uint64_t *samples = NULL;
    m.granted = a->granted;
    if (a->granted) {
        m.step = a->step;
        m.micro_batch = a->j;
        m.dropped = a->dropped;
        m.map_version = run->map->version;
        m.first_position = (a->step - 1) * c->global_batch + (uint64_t)a->j * c->micro_batch;
        if (!a->data) {
            set_attempt(&attempt, a->attempt);
            m.attempt = &attempt;
        }
        samples = calloc(c->micro_batch, sizeof *samples);
        if (samples && c->data && c->data->samples) {
            for (uint32_t r = 0; r < c->micro_batch; r++)
                samples[r] = sfc_sample_at(c->seed, c->data->samples, m.first_position + r);
            m.n_samples = c->micro_batch;
            m.samples = samples;
        }
    }
    sfc_call_reply(p->call, &m);
    free(samples);
}

static void reply_session(struct sfc_sched_run *run, struct sfc_parked *p,
                          const struct sfc_run_action *a)
{
    Shardfc__V1__OpenSessionReply m = SHARDFC__V1__OPEN_SESSION_REPLY__INIT;
    Shardfc__V1__Attempt attempt;
    set_attempt(&attempt, a->attempt);
    m.session = a->session;
    m.run_id = run->id;
    m.next_step = a->step;
    m.attempt = &attempt;
    m.config = run->config;
    m.map = run->map;
    sfc_call_reply(p->call, &m);
}

static void reply_hold(struct sfc_sched_run *run, struct sfc_parked *p,
                       const struct sfc_run_action *a)
{
    Shardfc__V1__HoldReply m = SHARDFC__V1__HOLD_REPLY__INIT;
    m.hold_id = a->hold_id;
    m.run_id = run->id;
    m.step = a->step;
    m.config = run->config;
    m.map = run->map;
    m.lease_ms = SFC_HOLD_LEASE_MS;
    m.held = a->held;
    sfc_call_reply(p->call, &m);
}

static void reply_plain(struct sfc_sched_run *run, struct sfc_parked *p)
{
    if (p->kind == SFC_PARKED_CONTROL) {
        Shardfc__V1__ControlReply m = SHARDFC__V1__CONTROL_REPLY__INIT;
        m.state = (char *)(uintptr_t)sfc_run_state_name(run->fsm.state);
        m.step = sfc_run_committed(&run->fsm);
        sfc_call_reply(p->call, &m);
    } else if (p->kind == SFC_PARKED_ANNOUNCE) {
        Shardfc__V1__AnnounceReply m = SHARDFC__V1__ANNOUNCE_REPLY__INIT;
        sfc_call_reply(p->call, &m);
    } else {
        Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
        sfc_call_reply(p->call, &m);
    }
}

static void reply_done(struct sfc_sched_run *run, struct sfc_parked *p,
                       const struct sfc_run_action *a)
{
    struct sfc_worker_info *w = sfc_sched_worker(run->scheduler, p->member);
    Shardfc__V1__DoneReply m = SHARDFC__V1__DONE_REPLY__INIT;
    m.accepted = a->accepted;
    if (w && a->accepted)
        w->micro_batches++;
    sfc_call_reply(p->call, &m);
}

static void reply(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct sfc_parked *p = (struct sfc_parked *)(uintptr_t)a->token;
    if (!p)
        return; /* the scheduler itself asked */
    if (a->type == SFC_ACT_REPLY && a->code != SFC_OK) {
        struct sfc_error err;
        sfc_fail(&err, a->code, "%s", a->text ? a->text : sfc_status_text(a->code));
        sfc_sched_refuse(run->scheduler, p->call, &err);
    } else if (a->type == SFC_ACT_REPLY_TICKET) {
        reply_ticket(run, p, a);
    } else if (a->type == SFC_ACT_REPLY_DONE) {
        reply_done(run, p, a);
    } else if (a->type == SFC_ACT_REPLY_SESSION) {
        reply_session(run, p, a);
    } else if (a->type == SFC_ACT_REPLY_HOLD) {
        reply_hold(run, p, a);
    } else {
        reply_plain(run, p);
    }
    sfc_sched_unpark(p);
}

/* ---- events */

static void perform(struct sfc_sched_run *run)
{
    for (size_t i = 0; i < run->actions.count; i++) {
        const struct sfc_run_action *a = &run->actions.items[i];
        switch (a->type) {
        case SFC_ACT_SEND:
            sfc_sched_send(run, a);
            break;
        case SFC_ACT_WRITE_RECORD:
            write_record(run, a);
            break;
        case SFC_ACT_WRITE_DROP:
            write_drop(run, a);
            break;
        case SFC_ACT_READ_RECORD:
            read_record(run, a->step);
            break;
        case SFC_ACT_WRITE_REWIND:
            submit_rewind(run, a->step, a->round, rewind_work, rewind_done);
            break;
        case SFC_ACT_FORGET_RECORDS:
            kept_free(&run->kept);
            sfc_lineage_add(&run->lineage, a->step, a->round);
            run->lineage_new = true;
            show_record(run, &run->fsm.commit.record);
            run->last_commit_us = 0;
            sfc_sched_event(run->scheduler,
                            "run %" PRIu64 " (%s) goes back to its last durable step, %" PRIu64,
                            run->id, run->config->name, sfc_run_durable_step(&run->fsm));
            break;
        case SFC_ACT_COMMITTED:
            committed(run, a);
            break;
        case SFC_ACT_STATE:
            write_state(run, a);
            break;
        case SFC_ACT_REPLY:
        case SFC_ACT_REPLY_TICKET:
        case SFC_ACT_REPLY_DONE:
        case SFC_ACT_REPLY_SESSION:
        case SFC_ACT_REPLY_HOLD:
            reply(run, a);
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
        struct sfc_commit_record record = record_of(run->found);
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

/* What a run writes to the store and reads there: commit records, drops, its way back. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/base/log.h"
#include "server/scheduler/run_parts.h"

/* ---- records in memory */

void sfc_sched_kept_free(struct sfc_kept_records *kept)
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

/* ---- what is shown */

struct sfc_commit_record sfc_sched_record_of(const struct sfc_store_commit *c)
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

/* What status says of the last committed step; all zero: there is none. */
void sfc_sched_show_record(struct sfc_sched_run *run, const struct sfc_commit_record *record)
{
    run->loss = record->step ? record->loss : (double)NAN;
    run->lr = record->lr;
    run->skipped_steps = record->skipped_total;
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
    sfc_sched_kept_free(&run->kept); /* empty: nothing was kept meanwhile */
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
    sfc_sched_kept_free(&t->records);
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
        .classes = run->setup.head.classes,
        .map_version = r->map_version,
        .position = r->next_position,
        .attempts = attempts,
        .attempts_size = size,
    };
    return attempts != NULL;
}

void sfc_sched_write_record(struct sfc_sched_run *run, const struct sfc_run_action *a)
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

void sfc_sched_write_drop(struct sfc_sched_run *run, const struct sfc_run_action *a)
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
    sfc_sched_kept_free(&t->records);
    free(t);
}

static void read_record_done(struct sfc_store_task *task)
{
    struct rewind_task *t = (struct rewind_task *)task;
    struct sfc_commit_record record = sfc_sched_record_of(&t->commit);
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
        sfc_sched_show_record(run, &run->fsm.commit.record);
        sfc_sched_series_cut(run, t->step);
        sfc_sched_forget_times(run);
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

void sfc_sched_read_record(struct sfc_sched_run *run, uint64_t step)
{
    for (size_t i = 0; i < run->kept.count && !run->found; i++)
        if (run->kept.items[i].step == step)
            run->found = &run->kept.items[i];
    if (!run->found)
        submit_rewind(run, step, (struct sfc_attempt){0, 0}, read_record_work, read_record_done);
}

void sfc_sched_write_rewind(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    submit_rewind(run, a->step, a->round, rewind_work, rewind_done);
}

/* The learning rate that people set: its way to the store and back, and into messages. */
#include <inttypes.h>
#include <stdlib.h>

#include "server/scheduler/run_parts.h"

struct lr_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id;
    struct sfc_store_lr change;
};

static void lr_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct lr_task *t = (struct lr_task *)task;
    task->code = sfc_store_put_lr(store, t->run_id, &t->change, &task->error);
}

static void note(struct sfc_sched_run *run, const struct sfc_store_lr *change)
{
    if (change->lr > 0)
        sfc_sched_event(run->scheduler,
                        "run %" PRIu64 " (%s): learning rate %g from step %" PRIu64 " on", run->id,
                        run->config->name, change->lr, change->from_step);
    else
        sfc_sched_event(run->scheduler,
                        "run %" PRIu64 " (%s): learning rate of the schedule from step %" PRIu64
                        " on",
                        run->id, run->config->name, change->from_step);
}

static void lr_done(struct sfc_store_task *task)
{
    struct lr_task *t = (struct lr_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    struct sfc_run_event event = {.type = SFC_EV_LR_WRITTEN,
                                  .step = t->change.from_step,
                                  .code = task->code,
                                  .text = task->error.text};
    if (run && run->id == t->run_id && !t->scheduler->stopping) {
        if (task->code == SFC_OK)
            note(run, &t->change);
        sfc_sched_run_event(run, &event);
    }
    free(t);
}

void sfc_sched_write_lr(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct lr_task *t = calloc(1, sizeof *t);
    if (!t) {
        run->lost_lr = a->step;
        return;
    }
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->change = (struct sfc_store_lr){a->step, a->lr};
    t->task.work = lr_work;
    t->task.done = lr_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

int sfc_sched_read_lr(struct sfc_store *store, uint64_t run_id, struct sfc_lr_change **out,
                      size_t *count, struct sfc_error *err)
{
    size_t n = 0, room = SFC_CORE_LR_CHANGES + 1; /* one more than there can be is refused later */
    struct sfc_store_lr *stored = calloc(room, sizeof *stored);
    struct sfc_lr_change *changes = calloc(room, sizeof *changes);
    int code = stored && changes ? sfc_store_lr_changes(store, run_id, room, stored, &n, err)
                                 : sfc_fail(err, SFC_ENOMEM, "changes of the learning rate");
    for (size_t i = 0; i < n; i++)
        changes[i] = (struct sfc_lr_change){stored[i].from_step, stored[i].lr};
    free(stored);
    if (code != SFC_OK) {
        free(changes);
        return code;
    }
    *out = changes;
    *count = n;
    return SFC_OK;
}

int sfc_sched_take_lr(Shardfc__V1__LrChange *const *list, size_t count,
                      const struct sfc_schedule *schedule, struct sfc_lr_changes *out,
                      struct sfc_error *err)
{
    struct sfc_lr_change *changes = calloc(count + 1, sizeof *changes);
    if (!changes)
        return sfc_fail(err, SFC_ENOMEM, "changes of the learning rate");
    for (size_t i = 0; i < count; i++)
        changes[i] = (struct sfc_lr_change){list[i]->from_step, list[i]->lr};
    int code = sfc_lr_changes_init(out, changes, count, schedule, err);
    free(changes);
    return code;
}

void sfc_sched_show_lr(const struct sfc_lr_changes *changes, Shardfc__V1__LrChange *items,
                       Shardfc__V1__LrChange **list)
{
    for (uint32_t i = 0; i < changes->count; i++) {
        shardfc__v1__lr_change__init(&items[i]);
        items[i].from_step = changes->items[i].from_step;
        items[i].lr = changes->items[i].lr;
        list[i] = &items[i];
    }
}

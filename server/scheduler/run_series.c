/* How a run went, for curves: its commits, and after a restart what the store has of them. */
#include <stdlib.h>

#include "proto/base/log.h"
#include "server/scheduler/run_parts.h"

/* Of a long run only some steps are read again, here and there, beside the work of the store. */
enum { READ_AT_ONCE = 100, READS = 1000 };

void sfc_sched_series_commit(struct sfc_sched_run *run, const struct sfc_commit_record *record)
{
    const struct sfc_series_step step = {
        .step = record->step, .loss = record->loss, .lr = record->lr, .images_per_s = run->rate};
    sfc_series_add(&run->series, &step);
}

void sfc_sched_series_cut(struct sfc_sched_run *run, uint64_t step)
{
    sfc_series_cut(&run->series, step);
    if (run->series_until > step)
        run->series_until = step;
}

struct series_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id, after, stride;
    size_t count;
    struct sfc_store_commit commits[READ_AT_ONCE];
};

static void series_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct series_task *t = (struct series_task *)task;
    task->code = sfc_store_history(store, t->run_id, t->after, READ_AT_ONCE, t->commits, &t->count,
                                   &task->error);
}

/* false: these were the last ones. */
static bool take(struct series_task *t, struct sfc_sched_run *run)
{
    uint64_t last = 0;
    for (size_t i = 0; i < t->count && t->commits[i].step <= run->series_until; i++) {
        const struct sfc_store_commit *c = &t->commits[i];
        const struct sfc_series_step step = {
            .step = c->step, .loss = c->loss, .lr = c->lr, .images_per_s = c->images_per_s};
        sfc_series_add(&run->series, &step);
        last = c->step;
    }
    t->after = last > t->after + t->stride ? last : t->after + t->stride;
    return last > 0 && t->after < run->series_until;
}

static void series_done(struct sfc_store_task *task)
{
    struct series_task *t = (struct series_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    bool ours = run && run->id == t->run_id && !t->scheduler->stopping;
    if (task->code != SFC_OK)
        sfc_error_log("the curves of run %llu begin anew: %s", (unsigned long long)t->run_id,
                      task->error.text);
    if (ours && task->code == SFC_OK && take(t, run))
        sfc_store_queue_submit(&t->scheduler->queue, task);
    else
        free(t);
}

void sfc_sched_series_restore(struct sfc_sched_run *run)
{
    uint64_t from = run->fsm.config.start_step, until = sfc_run_committed(&run->fsm);
    struct series_task *t = run->scheduler->web && until > from ? calloc(1, sizeof *t) : NULL;
    if (!t)
        return; /* nobody looks, there is nothing to show, or no memory for it */
    run->series_until = until;
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->after = from;
    t->stride = (until - from) / READS + 1;
    if (t->stride < READ_AT_ONCE)
        t->stride = READ_AT_ONCE;
    t->task.work = series_work;
    t->task.done = series_done;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

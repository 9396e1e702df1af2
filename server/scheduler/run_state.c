/* The state of a run on its way to the store. What people ask of a run is answered when the state
 * that came of it is durable: a scheduler that restarts then goes on with it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/scheduler/run_parts.h"

struct state_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    uint64_t run_id, number;
    struct sfc_run_standing standing;
};

static void state_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct state_task *t = (struct state_task *)task;
    task->code = sfc_store_set_run_state(store, t->run_id, t->standing.state, t->standing.paused,
                                         t->standing.reason, &task->error);
}

/* ---- who waits for it */

static void answer(struct sfc_sched_run *run, struct sfc_parked *p, const struct sfc_error *why)
{
    if (why) {
        struct sfc_error err;
        sfc_fail(&err, why->code,
                 "it is so now, but a scheduler that restarts would not know it: %.300s; this is "
                 "tried again until it is durable",
                 why->text);
        sfc_sched_refuse(run->scheduler, p->call, &err);
    } else {
        Shardfc__V1__ControlReply m = SHARDFC__V1__CONTROL_REPLY__INIT;
        m.state = (char *)(uintptr_t)sfc_run_state_name(run->fsm.state);
        m.step = sfc_run_committed(&run->fsm);
        m.from_step = p->from_step;
        sfc_call_reply(p->call, &m);
    }
    sfc_sched_unpark(p);
}

/* Those that wait for this state or an earlier one; why: it is not durable. */
static void answer_up_to(struct sfc_sched_run *run, uint64_t number, const struct sfc_error *why)
{
    struct sfc_parked *p = run->scheduler->parked;
    while (p) {
        struct sfc_parked *next = p->next;
        if (p->kind == SFC_PARKED_CONTROL && p->granted && p->state_number <= number)
            answer(run, p, why);
        p = next;
    }
}

void sfc_sched_grant_control(struct sfc_sched_run *run, struct sfc_parked *parked,
                             uint64_t from_step)
{
    parked->granted = true;
    parked->from_step = from_step;
    parked->state_number = run->state_number + 1; /* its own state comes with the next actions */
}

void sfc_sched_answer_controls(struct sfc_sched_run *run)
{
    for (struct sfc_parked *p = run->scheduler->parked; p; p = p->next)
        if (p->kind == SFC_PARKED_CONTROL && p->granted && p->state_number > run->state_number)
            p->state_number = run->state_number;
    answer_up_to(run, run->stored_number, NULL);
}

/* ---- the store */

static void state_done(struct sfc_store_task *task)
{
    struct state_task *t = (struct state_task *)task;
    struct sfc_sched_run *run = t->scheduler->run;
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    if (run && run->id == t->run_id && !t->scheduler->stopping) {
        if (task->code == SFC_OK)
            run->stored_number = t->number;
        else if (t->number == run->state_number)
            run->state_lost = true;
        answer_up_to(run, t->number, task->code == SFC_OK ? NULL : &task->error);
    }
    free(t);
}

static void submit(struct sfc_sched_run *run)
{
    struct state_task *t = calloc(1, sizeof *t);
    run->state_lost = !t;
    if (!t) {
        sfc_error_log("no memory to store the state of run %" PRIu64, run->id);
        return;
    }
    t->task.work = state_work;
    t->task.done = state_done;
    t->scheduler = run->scheduler;
    t->run_id = run->id;
    t->number = run->state_number;
    t->standing = run->standing;
    sfc_store_queue_submit(&run->scheduler->queue, &t->task);
}

void sfc_sched_store_state_again(struct sfc_sched_run *run)
{
    if (run->state_lost)
        submit(run);
}

void sfc_sched_write_state(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    const char *name = a->state == SFC_RUN_IDLE ? "stopped" : sfc_run_state_name(a->state);
    struct sfc_run_standing *s = &run->standing;
    bool also = a->paused && a->state != SFC_RUN_PAUSED && a->state != SFC_RUN_IDLE;
    sfc_sched_event(run->scheduler, "run %" PRIu64 " (%s): %s%s at step %" PRIu64 "%s%s", run->id,
                    run->config->name, name, also ? " and paused" : "",
                    sfc_run_committed(&run->fsm), a->text && *a->text ? ": " : "",
                    a->text ? a->text : "");
    if (a->state != SFC_RUN_RUNNING)
        run->last_commit_us = run->times.committed =
            0; /* standing still does not count as slow steps */
    else
        run->running_us = uv_hrtime() / 1000;
    snprintf(s->state, sizeof s->state, "%s", name);
    snprintf(s->reason, sizeof s->reason, "%s", a->text ? a->text : "");
    s->paused = a->paused;
    run->state_number++;
    submit(run);
}

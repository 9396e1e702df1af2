/* Events: what happened, when, because of whom, from the store. */
#include <stdlib.h>

#include "proto/limits.h"
#include "server/scheduler/scheduler_internal.h"

struct events_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_rpc_call *call;
    uint64_t after;
    bool newest;
    size_t limit, count;
    struct sfc_store_event *events;
};

/* The largest answer is many MiB: only the call that is at work has room for it. */
static void events_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct events_task *t = (struct events_task *)task;
    t->events = calloc(t->limit, sizeof *t->events);
    if (!t->events) {
        task->code = sfc_fail(&task->error, SFC_ENOMEM, "no memory for the answer");
        return;
    }
    task->code =
        sfc_store_events(store, t->after, t->newest, t->limit, t->events, &t->count, &task->error);
    void *fits = realloc(t->events, (t->count + 1) * sizeof *t->events);
    if (fits)
        t->events = fits;
}

static int events_reply(struct events_task *t)
{
    Shardfc__V1__Event *items = calloc(t->count + 1, sizeof *items);
    Shardfc__V1__Event **list = calloc(t->count + 1, sizeof(Shardfc__V1__Event *));
    int code = items && list ? SFC_OK : SFC_ENOMEM;
    for (size_t i = 0; code == SFC_OK && i < t->count; i++) {
        struct sfc_store_event *e = &t->events[i];
        shardfc__v1__event__init(&items[i]);
        items[i].id = e->id;
        items[i].time_ms = (uint64_t)e->time_ms;
        items[i].run_id = e->run_id;
        items[i].who = e->who;
        items[i].text = e->text;
        list[i] = &items[i];
    }
    if (code == SFC_OK) {
        Shardfc__V1__EventsReply m = SHARDFC__V1__EVENTS_REPLY__INIT;
        m.n_events = t->count;
        m.events = list;
        sfc_call_reply(t->call, &m);
    }
    free(items);
    free(list);
    return code;
}

static void events_done(struct sfc_store_task *task)
{
    struct events_task *t = (struct events_task *)task;
    if (task->code == SFC_OK && events_reply(t) != SFC_OK)
        task->code = sfc_fail(&task->error, SFC_ENOMEM, "no memory for the answer");
    if (task->code != SFC_OK)
        sfc_sched_refuse(t->scheduler, t->call, &task->error);
    free(t->events);
    free(t);
}

void sfc_sched_on_events(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    Shardfc__V1__EventsRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__events_request__descriptor);
    if (!r)
        return;
    struct events_task *t = calloc(1, sizeof *t);
    size_t limit = r->limit && r->limit < SFC_LIMIT_EVENTS ? r->limit : SFC_LIMIT_EVENTS;
    if (t) {
        t->scheduler = s;
        t->call = call;
        t->after = r->after;
        t->newest = r->newest;
        t->limit = limit;
        t->task.work = events_work;
        t->task.done = events_done;
        sfc_store_queue_submit(&s->queue, &t->task);
    } else {
        struct sfc_error err;
        sfc_fail(&err, SFC_ENOMEM, "no memory for the answer");
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

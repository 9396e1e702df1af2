#include "server/scheduler/scheduler.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/base/log.h"
#include "server/run/listen.h"
#include "server/scheduler/loss.h"
#include "server/scheduler/run_parts.h"

uint64_t sfc_sched_now(const struct sfc_scheduler *s)
{
    return uv_now(s->uv);
}

void sfc_sched_refuse(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                      const struct sfc_error *err)
{
    int code = err->code > 0 && err->code <= SFC_EINTERNAL ? err->code : SFC_EINTERNAL;
    s->refused[code]++;
    sfc_debug_log("refused a call of %s: %s: %s", sfc_rpc_call_peer(call), sfc_status_name(code),
                  err->text);
    sfc_rpc_fail(call, code, err->text);
}

void *sfc_sched_unpack(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                       const ProtobufCMessageDescriptor *type)
{
    void *message = sfc_call_unpack(call, type);
    if (!message)
        s->refused[SFC_EINVAL]++;
    return message;
}

/* ---- waiting calls */

static void cancelled(void *ctx)
{
    struct sfc_parked *p = ctx;
    if (p->kind < SFC_PARKED_OF_RUN)
        sfc_sched_run_cancelled(p);
    else
        sfc_sched_member_cancelled(p);
}

struct sfc_parked *sfc_sched_park(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                                  enum sfc_parked_kind kind)
{
    struct sfc_parked *p = calloc(1, sizeof *p);
    if (!p) {
        struct sfc_error err;
        sfc_fail(&err, SFC_ENOMEM, "no memory for the call");
        sfc_sched_refuse(s, call, &err);
        return NULL;
    }
    p->scheduler = s;
    p->call = call;
    p->kind = kind;
    p->next = s->parked;
    if (p->next)
        p->next->prev = p;
    s->parked = p;
    sfc_rpc_call_on_cancel(call, cancelled, p);
    return p;
}

void sfc_sched_unpark(struct sfc_parked *p)
{
    if (p->prev)
        p->prev->next = p->next;
    else
        p->scheduler->parked = p->next;
    if (p->next)
        p->next->prev = p->prev;
    sfc_message_free(p->join);
    free(p);
}

/* ---- events of the cluster */

enum { EVENTS_WAITING = 64 }; /* more are only logged: peers cause events, commits come first */

struct event_task {
    struct sfc_store_task task;
    struct sfc_scheduler *scheduler;
    struct sfc_store_event event;
};

static void event_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct event_task *t = (struct event_task *)task;
    task->code = sfc_store_put_event(store, &t->event, &task->error);
}

static void event_done(struct sfc_store_task *task)
{
    ((struct event_task *)task)->scheduler->events_waiting--;
    if (task->code != SFC_OK)
        sfc_error_log("%s", task->error.text);
    else
        ((struct event_task *)task)->scheduler->events_stored++;
    free(task);
}

static void store_event(struct sfc_scheduler *s, const char *who, const char *text)
{
    struct event_task *t = s->events_waiting < EVENTS_WAITING ? calloc(1, sizeof *t) : NULL;
    if (!t) {
        s->events_lost++;
        return;
    }
    s->events_waiting++;
    t->scheduler = s;
    snprintf(t->event.who, sizeof t->event.who, "%s", who);
    snprintf(t->event.text, sizeof t->event.text, "%s", text);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->event.time_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    t->event.run_id = s->run ? s->run->id : 0;
    t->task.work = event_work;
    t->task.done = event_done;
    sfc_store_queue_submit(&s->queue, &t->task);
}

void sfc_sched_event(struct sfc_scheduler *s, const char *format, ...)
{
    char text[sizeof((struct sfc_store_event *)0)->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    sfc_info_log("%s", text);
    store_event(s, "scheduler", text);
}

void sfc_sched_event_by(struct sfc_scheduler *s, struct sfc_rpc_call *call, const char *format, ...)
{
    char text[sizeof((struct sfc_store_event *)0)->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    sfc_info_log("%s: %s", sfc_rpc_call_peer(call), text);
    store_event(s, sfc_rpc_call_peer(call), text);
}

/* ---- start and stop */

static void on_tick(uv_timer_t *timer)
{
    struct sfc_scheduler *s = timer->data;
    sfc_service_at(s->run ? s->run->id : 0, s->run ? sfc_run_committed(&s->run->fsm) : 0);
    sfc_sched_members_tick(s);
    sfc_trace_tick(s);
    if (s->run)
        sfc_sched_run_tick(s->run);
}

static int members_start(struct sfc_scheduler *s, struct sfc_error *err)
{
    struct sfc_membership_config c = {.incarnation = s->incarnation,
                                      .max_workers = SFC_MAX_WORKERS,
                                      .max_shards = SFC_CORE_MAX_SHARDS,
                                      .worker_lease_ms = s->options->lease_ms,
                                      .shard_lease_ms = s->options->lease_ms};
    int code = sfc_membership_init(&s->members, &c, err);
    if (code == SFC_OK)
        code = sfc_member_actions_init(&s->member_actions, &s->members, err);
    if (code == SFC_OK)
        code = sfc_sched_restore_shards(s, err);
    return code;
}

void sfc_sched_address(const char *listen, int port, char out[SFC_SCHED_ADDRESS])
{
    const char *colon = strrchr(listen, ':');
    int host = colon ? (int)(colon - listen) : (int)strlen(listen);
    snprintf(out, SFC_SCHED_ADDRESS, "%.*s:%d", host, listen, port);
}

const char *sfc_scheduler_pages(const struct sfc_scheduler *s)
{
    return s->pages[0] ? s->pages : NULL;
}

int sfc_sched_listen(struct sfc_scheduler *s, const char *folder, struct sfc_error *err)
{
    int port = 0;
    const struct sfc_listen listen = {s->options->listen, folder, sfc_scheduler_methods,
                                      sfc_scheduler_method_count, s};
    int code = sfc_listen_start(s->rpc, &listen, &s->server, &port, err);
    if (code == SFC_OK)
        sfc_sched_address(s->options->listen, port, s->listening);
    return code;
}

int sfc_sched_take_up(struct sfc_scheduler *s, struct sfc_error *err)
{
    int code = sfc_store_next_incarnation(s->store, &s->incarnation, err);
    if (code != SFC_OK)
        return code;
    sfc_store_queue_init(&s->queue, s->uv, s->store);
    uv_update_time(s->uv);
    if ((code = members_start(s, err)) == SFC_OK)
        code = sfc_sched_restore_run(s, err);
    return code;
}

void sfc_sched_serve(struct sfc_scheduler *s)
{
    uv_timer_init(s->uv, &s->timer);
    s->timer.data = s;
    s->timer_open = true;
    uv_timer_start(&s->timer, on_tick, SFC_TICK_MS, SFC_TICK_MS);
    if (s->run)
        sfc_sched_series_restore(s->run);
    sfc_rpc_server_set_run(s->server, s->served_run);
    sfc_rpc_server_set_ready(s->server, true);
    sfc_info_log("incarnation %llu, state in %s", (unsigned long long)s->incarnation,
                 s->options->state);
}

static int start_alone(struct sfc_scheduler *s, struct sfc_error *err)
{
    int code = sfc_store_open(s->options->state, &s->store, err);
    if (code == SFC_OK)
        code = sfc_sched_take_up(s, err);
    if (code == SFC_OK)
        code = sfc_sched_listen(s, s->options->state, err);
    if (code == SFC_OK)
        sfc_sched_serve(s);
    return code;
}

int sfc_scheduler_start(struct sfc_rpc_loop *rpc, uv_loop_t *uv,
                        const struct sfc_scheduler_options *options,
                        const struct sfc_scheduler_end *end, struct sfc_scheduler **out,
                        const char **address, struct sfc_error *err)
{
    struct sfc_scheduler *s = calloc(1, sizeof *s);
    if (!s)
        return sfc_fail(err, SFC_ENOMEM, "start");
    *out = s;
    s->rpc = rpc;
    s->uv = uv;
    s->options = options;
    s->end = *end;
    int code = sfc_spans_new(&s->spans, err);
    if (code == SFC_OK)
        code = sfc_web_start(s, err);
    if (code == SFC_OK)
        code = sfc_store_shared(options->state) ? sfc_sched_stand_by(s, err) : start_alone(s, err);
    if (code == SFC_OK)
        *address = s->listening;
    return code;
}

static unsigned working_workers(const struct sfc_scheduler *s)
{
    unsigned count = 0;
    for (size_t i = 0; i < SFC_MAX_WORKERS; i++)
        count += s->workers[i].id != 0;
    return count;
}

void sfc_scheduler_look(const struct sfc_scheduler *s, struct sfc_service_state *out)
{
    const struct sfc_sched_run *run = s->run;
    out->ready = out->working = true; /* the loop that everything goes through asks */
    if (!s->timer_open) {
        snprintf(out->text, sizeof out->text, "standing by");
    } else if (!run) {
        snprintf(out->text, sizeof out->text, "no run");
    } else {
        out->run = run->id;
        out->step = sfc_run_committed(&run->fsm);
        snprintf(out->text, sizeof out->text,
                 "run %llu, %s%s: step %llu of %llu, loss %.4f, %u workers",
                 (unsigned long long)run->id, sfc_run_state_name(run->fsm.state),
                 run->fsm.paused ? ", paused" : "", (unsigned long long)out->step,
                 (unsigned long long)run->config->steps, run->loss, working_workers(s));
    }
}

/* Who asks for changes is not to ask again: part of it may be durable. */
static void end_parked(struct sfc_parked *p)
{
    bool changes =
        p->kind == SFC_PARKED_CONTROL || p->kind == SFC_PARKED_GROW || p->kind == SFC_PARKED_CREATE;
    sfc_rpc_fail(p->call, changes ? SFC_ECANCELED : SFC_EUNAVAILABLE,
                 changes ? "the scheduler is shutting down; what was asked for may be done or not "
                           "(`shardfc status` and `shardfc events` say)"
                         : "the scheduler is shutting down");
}

void sfc_scheduler_stop(struct sfc_scheduler *s)
{
    if (!s || s->stopping)
        return;
    s->stopping = true;
    sfc_web_stop(s);
    sfc_sched_leave(s);
    if (s->timer_open)
        uv_close((uv_handle_t *)&s->timer, NULL);
    s->timer_open = false;
    while (s->parked) {
        struct sfc_parked *p = s->parked;
        end_parked(p);
        sfc_sched_unpark(p);
    }
}

void sfc_scheduler_free(struct sfc_scheduler *s)
{
    if (!s)
        return;
    sfc_web_free(s);
    sfc_sched_run_free(s->run);
    for (size_t i = 0; i < SFC_CORE_MAX_SHARDS; i++)
        sfc_mirrors_forget(&s->shards[i]);
    sfc_member_actions_free(&s->member_actions);
    sfc_membership_free(&s->members);
    sfc_store_close(s->store);
    sfc_sched_standby_free(s->standby);
    sfc_trace_free(s);
    sfc_spans_free(s->spans);
    free(s);
}

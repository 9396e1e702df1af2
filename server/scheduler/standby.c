/* Several schedulers share a state in etcd. One leads; the others wait, serve only refusals that
 * say who leads, and one of them takes over when the leader gives up, dies or is cut off. Waiting
 * is a task of a worker thread; taking over happens on the loop, before anything is served. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "server/scheduler/scheduler_internal.h"

struct sfc_standby {
    struct sfc_scheduler *scheduler;
    char address[300]; /* where others reach this scheduler */
    struct sfc_store_owner owner;
    uv_work_t work;
    int code; /* of the work */
    struct sfc_error error;
    /* What other threads say; guarded by lock. */
    pthread_mutex_t lock;
    bool deaf;   /* the scheduler stops */
    bool posted; /* the loop will look */
    bool lost;
    char why[512];
};

/* ---- on the loop */

static void refuse(struct sfc_standby *b, const char *why)
{
    char text[600];
    snprintf(text, sizeof text, "this scheduler is a standby: %s", why);
    sfc_info_log("%s", text);
    sfc_rpc_server_refuse(b->scheduler->server, SFC_EUNAVAILABLE, text);
}

static void end(struct sfc_scheduler *s, int code)
{
    if (s->stopping)
        return;
    sfc_rpc_server_set_ready(s->server, false);
    sfc_rpc_server_refuse(s->server, SFC_EUNAVAILABLE, "this scheduler leads no more");
    s->end.ended(s->end.ctx, code);
}

static void heard(void *ctx)
{
    struct sfc_standby *b = ctx;
    char why[sizeof b->why];
    pthread_mutex_lock(&b->lock);
    bool lost = b->lost;
    b->posted = false;
    memcpy(why, b->why, sizeof why);
    pthread_mutex_unlock(&b->lock);
    if (b->scheduler->stopping)
        return;
    if (lost) {
        sfc_error_log("this scheduler leads no more: %s", why);
        end(b->scheduler, SFC_ESTALE);
    } else {
        refuse(b, why);
    }
}

static void take_over(uv_work_t *work, int status)
{
    struct sfc_standby *b = work->data;
    struct sfc_scheduler *s = b->scheduler;
    (void)status; /* it is never cancelled */
    if (s->stopping)
        return;
    if (b->code == SFC_OK)
        b->code = sfc_sched_take_up(s, &b->error);
    if (b->code != SFC_OK) {
        sfc_error_log("%s", b->error.text);
        end(s, b->code);
        return;
    }
    sfc_sched_serve(s);
    sfc_rpc_server_refuse(s->server, SFC_OK, "");
    sfc_sched_event(s, "the scheduler at %s leads, incarnation %llu", b->address,
                    (unsigned long long)s->incarnation);
}

/* ---- on other threads */

static void say(struct sfc_standby *b, bool lost, const char *why)
{
    pthread_mutex_lock(&b->lock);
    snprintf(b->why, sizeof b->why, "%s", why);
    b->lost = b->lost || lost;
    if (!b->posted && !b->deaf) {
        b->posted = true;
        sfc_rpc_loop_post(b->scheduler->rpc, heard, b);
    }
    pthread_mutex_unlock(&b->lock);
}

static void on_waits(void *ctx, const char *why)
{
    say(ctx, false, why);
}

static void on_lost(void *ctx, const char *why)
{
    say(ctx, true, why);
}

static void wait_for_lead(uv_work_t *work)
{
    struct sfc_standby *b = work->data;
    struct sfc_scheduler *s = b->scheduler;
    b->code = sfc_store_open_shared(s->options->state, &b->owner, &s->store, &b->error);
}

/* ---- start and stop */

static void take_advertised(struct sfc_standby *b)
{
    const struct sfc_scheduler *s = b->scheduler;
    const char *colon = strrchr(s->listening, ':');
    if (s->options->advertise)
        snprintf(b->address, sizeof b->address, "%s%s", s->options->advertise, colon);
    else
        snprintf(b->address, sizeof b->address, "%s", s->listening);
}

int sfc_sched_stand_by(struct sfc_scheduler *s, struct sfc_error *err)
{
    struct sfc_standby *b = calloc(1, sizeof *b);
    if (!b)
        return sfc_fail(err, SFC_ENOMEM, "start");
    pthread_mutex_init(&b->lock, NULL);
    s->standby = b;
    b->scheduler = s;
    b->owner = (struct sfc_store_owner){.address = b->address,
                                        .security = &s->options->security,
                                        .waits = on_waits,
                                        .lost = on_lost,
                                        .ctx = b};
    int code = sfc_sched_listen(s, NULL, err);
    if (code != SFC_OK)
        return code;
    take_advertised(b);
    refuse(b, "nobody knows yet who leads");
    b->work.data = b;
    uv_queue_work(s->uv, &b->work, wait_for_lead, take_over); /* fails only without a function */
    return SFC_OK;
}

void sfc_sched_leave(struct sfc_scheduler *s)
{
    struct sfc_standby *b = s->standby;
    if (!b)
        return;
    atomic_store(&b->owner.stop, true);
    pthread_mutex_lock(&b->lock);
    b->deaf = true; /* what was posted before is run before the loop ends */
    pthread_mutex_unlock(&b->lock);
}

void sfc_sched_standby_free(struct sfc_standby *b)
{
    if (!b)
        return;
    pthread_mutex_destroy(&b->lock);
    free(b);
}

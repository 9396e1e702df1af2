/* Actions of the run machine that answer calls. */
#include <stdlib.h>
#include <string.h>

#include "server/scheduler/run_parts.h"

static void set_attempt(Shardfc__V1__Attempt *out, struct sfc_attempt a)
{
    shardfc__v1__attempt__init(out);
    out->incarnation = a.incarnation;
    out->counter = a.counter;
}

static void name_samples(const struct sfc_sched_run *run, Shardfc__V1__TicketReply *m,
                         uint64_t *samples, uint64_t *epochs)
{
    const Shardfc__V1__RunConfig *c = run->config;
    for (uint32_t r = 0; r < c->micro_batch; r++) {
        uint64_t position = m->first_position + r;
        samples[r] = sfc_order_sample(run->sample_order, run->order_parts, c->seed, position);
        epochs[r] = sfc_order_epoch(run->sample_order, run->order_parts, position);
    }
    m->n_samples = c->micro_batch;
    m->samples = samples;
    m->n_epochs = run->map->n_growths ? c->micro_batch : 0;
    m->epochs = epochs;
}

static void reply_ticket(struct sfc_sched_run *run, struct sfc_parked *p,
                         const struct sfc_run_action *a)
{
    const Shardfc__V1__RunConfig *c = run->config;
    Shardfc__V1__TicketReply m = SHARDFC__V1__TICKET_REPLY__INIT;
    Shardfc__V1__Attempt attempt;
    uint64_t *samples = NULL, *epochs = NULL;
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
        epochs = calloc(c->micro_batch, sizeof *epochs);
        if (samples && epochs && run->order_parts)
            name_samples(run, &m, samples, epochs);
    }
    sfc_call_reply(p->call, &m);
    free(samples);
    free(epochs);
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

static void reply_plain(struct sfc_parked *p)
{
    if (p->kind == SFC_PARKED_ANNOUNCE) {
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

void sfc_sched_reply(struct sfc_sched_run *run, const struct sfc_run_action *a)
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
    } else if (a->type == SFC_ACT_REPLY_LR) {
        sfc_sched_grant_control(run, p, a->step);
        return;
    } else if (p->kind == SFC_PARKED_CONTROL) {
        sfc_sched_grant_control(run, p, 0);
        return;
    } else {
        reply_plain(p);
    }
    sfc_sched_unpark(p);
}

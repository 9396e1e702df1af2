/* RPC handlers that become events of the run machine. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "proto/limits.h"
#include "server/run/about.h"
#include "server/scheduler/grow.h"
#include "server/scheduler/scale.h"
#include "server/scheduler/scheduler_internal.h"

static int check_run(struct sfc_scheduler *s, uint64_t run_id, bool current_too,
                     struct sfc_error *err)
{
    if (!s->run)
        return sfc_fail(err, SFC_ESTALE,
                        "there is no run: `shardfc create` or `shardfc restore` begins one");
    if (s->run->id == run_id || (current_too && run_id == 0))
        return SFC_OK;
    return sfc_fail(err, SFC_ESTALE, "run_id: the run is %" PRIu64 ", not %" PRIu64, s->run->id,
                    run_id);
}

static int check_micro_batch(struct sfc_scheduler *s, uint32_t j, struct sfc_error *err)
{
    if (j < s->run->setup.micro_batches)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL, "micro_batch: %u, a step has %u", j,
                    s->run->setup.micro_batches);
}

static int check_attempt(const Shardfc__V1__Attempt *a, struct sfc_attempt *out,
                         struct sfc_error *err)
{
    if (!a)
        return sfc_fail(err, SFC_EINVAL, "attempt is missing");
    *out = (struct sfc_attempt){a->incarnation, a->counter};
    return SFC_OK;
}

/* Exactly one of worker and session names the caller; a worker must be a member. */
static int check_caller(struct sfc_scheduler *s, uint64_t worker, uint64_t session,
                        struct sfc_error *err)
{
    if (session)
        return SFC_OK;
    if (!sfc_sched_worker(s, worker))
        return sfc_fail(err, SFC_ESTALE, "worker: %" PRIu64 " is not a member, join again", worker);
    return SFC_OK;
}

/* Parks the call and gives the event, with its token, to the run. */
static void give(struct sfc_scheduler *s, struct sfc_rpc_call *call, enum sfc_parked_kind kind,
                 uint64_t member, struct sfc_run_event *event)
{
    struct sfc_parked *p = sfc_sched_park(s, call, kind);
    if (!p)
        return;
    p->member = member;
    event->token = (uintptr_t)p;
    sfc_sched_run_event(s->run, event);
}

static void on_ticket(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    Shardfc__V1__TicketRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__ticket_request__descriptor);
    if (!r)
        return;
    struct sfc_error err = {0};
    if (r->kind != SHARDFC__V1__TICKET_REQUEST__KIND__DATA &&
        r->kind != SHARDFC__V1__TICKET_REQUEST__KIND__COMPUTE) {
        sfc_fail(&err, SFC_EINVAL, "kind: %d", (int)r->kind);
        sfc_sched_refuse(s, call, &err);
    } else if (check_run(s, r->run_id, false, NULL) != SFC_OK || !sfc_sched_worker(s, r->worker)) {
        Shardfc__V1__TicketReply m = SHARDFC__V1__TICKET_REPLY__INIT;
        m.rejoin = true;
        sfc_call_reply(call, &m);
    } else {
        struct sfc_run_event event = {.type = SFC_EV_TICKET,
                                      .worker = r->worker,
                                      .data = r->kind == SHARDFC__V1__TICKET_REQUEST__KIND__DATA};
        give(s, call, SFC_PARKED_TICKET, r->worker, &event);
    }
    sfc_message_free(r);
}

static void on_announce(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__AnnounceRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__announce_request__descriptor);
    if (!r)
        return;
    int code = check_run(s, r->run_id, false, &err);
    if (code == SFC_OK)
        code = check_caller(s, r->worker, r->session, &err);
    if (code == SFC_OK)
        code = check_micro_batch(s, r->micro_batch, &err);
    if (code == SFC_OK && r->n_labels != s->run->config->micro_batch)
        code = sfc_fail(&err, SFC_EINVAL, "labels: %zu, a micro-batch has %u rows", r->n_labels,
                        s->run->config->micro_batch);
    if (code == SFC_OK && r->n_broken_rows > s->run->config->micro_batch)
        code = sfc_fail(&err, SFC_EINVAL, "broken_rows: %zu of %u rows", r->n_broken_rows,
                        s->run->config->micro_batch);
    if (code == SFC_OK && r->n_broken_rows && !s->run->config->skip_broken)
        code = sfc_fail(&err, SFC_EINVAL,
                        "broken_rows: row %u of step %" PRIu64
                        ", micro-batch %u: %.200s (create the run "
                        "with --skip-broken to go on without such rows)",
                        r->broken_rows[0], r->step, r->micro_batch, r->broken_reason);
    if (code == SFC_OK && r->n_broken_rows) {
        s->broken_rows += r->n_broken_rows;
        sfc_sched_event(
            s, "step %" PRIu64 ", micro-batch %u: %zu broken rows left out, first %u: %.200s",
            r->step, r->micro_batch, r->n_broken_rows, r->broken_rows[0], r->broken_reason);
    }
    if (code == SFC_OK) {
        struct sfc_run_event event = {.type = SFC_EV_ANNOUNCE,
                                      .worker = r->session ? 0 : r->worker,
                                      .session = r->session,
                                      .step = r->step,
                                      .j = r->micro_batch,
                                      .labels = r->labels,
                                      .count = (uint32_t)r->n_labels};
        give(s, call, SFC_PARKED_ANNOUNCE, r->worker, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static int check_done(struct sfc_scheduler *s, const Shardfc__V1__DoneRequest *r,
                      struct sfc_done *done, struct sfc_error *err)
{
    int code = check_run(s, r->run_id, false, err);
    if (code == SFC_OK)
        code = check_caller(s, r->worker, r->session, err);
    if (code == SFC_OK)
        code = check_micro_batch(s, r->micro_batch, err);
    if (code == SFC_OK)
        code = check_attempt(r->attempt, &done->attempt, err);
    if (code != SFC_OK)
        return code;
    if (r->head_digest.len != sizeof done->head_digest.bytes)
        return sfc_fail(err, SFC_EINVAL, "head_digest: %zu bytes, not 16", r->head_digest.len);
    if (r->n_dense_digests != s->run->setup.dense_blocks)
        return sfc_fail(err, SFC_EINVAL, "dense_digests: %zu, the run has %" PRIu64 " dense blocks",
                        r->n_dense_digests, s->run->setup.dense_blocks);
    if (r->zero_features > s->run->config->micro_batch)
        return sfc_fail(err, SFC_EINVAL, "zero_features: %u of %u rows", r->zero_features,
                        s->run->config->micro_batch);
    if (!isfinite(r->loss_sum)) /* features and log-sum-exps are finite, so this is no loss */
        return sfc_fail(err, SFC_EINVAL, "loss_sum: %g is not finite", r->loss_sum);
    memcpy(done->head_digest.bytes, r->head_digest.data, sizeof done->head_digest.bytes);
    done->filled = true;
    done->dense_digests = r->dense_digests;
    done->loss_sum = r->loss_sum;
    done->zero_features = r->zero_features;
    return SFC_OK;
}

static void on_done(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    struct sfc_done done = {0};
    Shardfc__V1__DoneRequest *r = sfc_sched_unpack(s, call, &shardfc__v1__done_request__descriptor);
    if (!r)
        return;
    if (check_done(s, r, &done, &err) == SFC_OK) {
        struct sfc_run_event event = {.type = SFC_EV_DONE,
                                      .worker = r->session ? 0 : r->worker,
                                      .session = r->session,
                                      .step = r->step,
                                      .j = r->micro_batch,
                                      .attempt = done.attempt,
                                      .done = &done};
        give(s, call, SFC_PARKED_DONE, r->worker, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static void on_give_up(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    struct sfc_attempt attempt = {0};
    Shardfc__V1__GiveUpRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__give_up_request__descriptor);
    if (!r)
        return;
    int code = check_run(s, r->run_id, false, &err);
    if (code == SFC_OK)
        code = check_caller(s, r->worker, 0, &err);
    if (code == SFC_OK)
        code = check_micro_batch(s, r->micro_batch, &err);
    if (code == SFC_OK && !r->data)
        code = check_attempt(r->attempt, &attempt, &err);
    if (code == SFC_OK) {
        struct sfc_run_event event = {.type = SFC_EV_GIVE_UP,
                                      .worker = r->worker,
                                      .step = r->step,
                                      .j = r->micro_batch,
                                      .attempt = attempt,
                                      .data = r->data,
                                      .code = r->code,
                                      .text = r->reason};
        if (r->code != SFC_ESTALE) { /* a void attempt: another was faster, or a round ended */
            s->gave_up++;
            sfc_sched_event(
                s, "worker %" PRIu64 " gave up step %" PRIu64 ", micro-batch %u: %s: %.300s",
                r->worker, r->step, r->micro_batch, sfc_status_name(r->code), r->reason);
        }
        give(s, call, SFC_PARKED_EMPTY, r->worker, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static void on_open_session(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__OpenSessionRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__open_session_request__descriptor);
    if (!r)
        return;
    int code = check_run(s, r->run_id, true, &err);
    if (code == SFC_OK && r->protocol != SFC_PROTOCOL_VERSION)
        code = sfc_fail(&err, SFC_EUNSUPPORTED, "protocol: version %u, this scheduler speaks %u",
                        r->protocol, SFC_PROTOCOL_VERSION);
    if (code == SFC_OK && !s->run->fsm.config.session)
        code = sfc_fail(&err, SFC_EINVAL,
                        "run %s has workers; sessions need a data set of kind SESSION",
                        s->run->config->name);
    if (code == SFC_OK) {
        struct sfc_run_event event = {.type = SFC_EV_OPEN_SESSION};
        give(s, call, SFC_PARKED_SESSION, 0, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

/* To whoever takes part in the run: which shard has which blocks now. */
static void on_get_map(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__GetMapRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__get_map_request__descriptor);
    if (!r)
        return;
    int code = check_run(s, r->run_id, false, &err);
    if (code == SFC_OK)
        code = check_caller(s, r->worker, r->session, &err);
    if (code == SFC_OK && r->session && r->session != s->run->fsm.session)
        code = sfc_fail(&err, SFC_ESTALE, "session: %" PRIx64 " is not the present one, open one",
                        r->session);
    if (code == SFC_OK) {
        Shardfc__V1__GetMapReply m = SHARDFC__V1__GET_MAP_REPLY__INIT;
        m.map = s->run->map;
        sfc_call_reply(call, &m);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static void on_hold(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__HoldRequest *r = sfc_sched_unpack(s, call, &shardfc__v1__hold_request__descriptor);
    if (!r)
        return;
    if (check_run(s, r->run_id, true, &err) == SFC_OK) {
        struct sfc_run_event event = {
            .type = SFC_EV_HOLD, .hold_id = r->hold_id, .step = r->at_step};
        if (r->watch)
            event.type = SFC_EV_WATCH;
        give(s, call, SFC_PARKED_HOLD, 0, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static void on_release(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ReleaseRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__release_request__descriptor);
    if (!r)
        return;
    if (check_run(s, 0, true, &err) == SFC_OK) {
        struct sfc_run_event event = {.type = SFC_EV_RELEASE, .hold_id = r->hold_id};
        give(s, call, SFC_PARKED_EMPTY, 0, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static int control_event(int action, enum sfc_run_event_type *out, struct sfc_error *err)
{
    static const enum sfc_run_event_type types[] = {
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__START] = SFC_EV_START,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__PAUSE] = SFC_EV_PAUSE,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__RESUME] = SFC_EV_RESUME,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__STOP] = SFC_EV_STOP,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__DROP] = SFC_EV_DROP,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__REWIND] = SFC_EV_REWIND,
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__SET_LR] = SFC_EV_SET_LR,
    };
    if (action < 0 || (size_t)action >= sizeof types / sizeof *types)
        return sfc_fail(err, SFC_EINVAL, "action: %d", action);
    *out = types[action];
    return SFC_OK;
}

/* What a person asked for; what became of it is an event of its own. */
static void note_control(struct sfc_scheduler *s, struct sfc_rpc_call *call,
                         const Shardfc__V1__ControlRequest *r)
{
    static const char *const plain[] = {
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__START] = "start",
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__PAUSE] = "pause",
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__RESUME] = "resume",
        [SHARDFC__V1__CONTROL_REQUEST__ACTION__STOP] = "stop",
    };
    const char *name = s->run->config->name;
    char when[32] = "the next step", rate[48] = "the schedule's learning rate";
    if (r->step)
        snprintf(when, sizeof when, "step %" PRIu64, r->step);
    if (r->lr > 0)
        snprintf(rate, sizeof rate, "learning rate %g", r->lr);
    if (r->action == SHARDFC__V1__CONTROL_REQUEST__ACTION__DROP)
        sfc_sched_event_by(s, call, "asks run %s to drop micro-batch %u of step %" PRIu64, name,
                           r->micro_batch, r->step);
    else if (r->action == SHARDFC__V1__CONTROL_REQUEST__ACTION__REWIND)
        sfc_sched_event_by(s, call, "asks run %s to rewind to step %" PRIu64, name, r->step);
    else if (r->action == SHARDFC__V1__CONTROL_REQUEST__ACTION__SET_LR)
        sfc_sched_event_by(s, call, "asks run %s to take %s from %s on", name, rate, when);
    else
        sfc_sched_event_by(s, call, "asks run %s to %s", name, plain[r->action]);
}

/* Blocks and samples of before are not kept. */
static int check_growths(const struct sfc_sched_run *run, uint64_t step, struct sfc_error *err)
{
    const Shardfc__V1__BlockMap *map = run->map;
    const Shardfc__V1__Growth *last = map->n_growths ? map->growths[map->n_growths - 1] : NULL;
    if (!last || step + 1 >= last->from_step)
        return SFC_OK;
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "step: the run grew to %" PRIu64 " classes from step %" PRIu64
                    " on, and can't be rewound to before that (step %" PRIu64
                    " or later is possible); restore a checkpoint of before instead",
                    last->classes, last->from_step, last->from_step - 1);
}

static void on_control(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_scheduler *s = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ControlRequest *r =
        sfc_sched_unpack(s, call, &shardfc__v1__control_request__descriptor);
    if (!r)
        return;
    struct sfc_run_event event = {.step = r->step, .j = r->micro_batch, .lr = r->lr};
    int code = check_run(s, r->run_id, true, &err);
    if (code == SFC_OK)
        code = control_event((int)r->action, &event.type, &err);
    if (code == SFC_OK && event.type == SFC_EV_DROP)
        code = check_micro_batch(s, r->micro_batch, &err);
    if (code == SFC_OK && event.type == SFC_EV_REWIND)
        event.oldest = sfc_sched_run_oldest(s->run);
    if (code == SFC_OK && event.type == SFC_EV_REWIND)
        code = check_growths(s->run, r->step, &err);
    if (code == SFC_OK) {
        note_control(s, call, r);
        give(s, call, SFC_PARKED_CONTROL, 0, &event);
    } else {
        sfc_sched_refuse(s, call, &err);
    }
    sfc_message_free(r);
}

static void on_about(struct sfc_rpc_call *call, void *ctx)
{
    const struct sfc_scheduler_options *options = ((struct sfc_scheduler *)ctx)->options;
    sfc_about_answer(call, options->state, options->security.tls);
}

#define PATH(name) "/shardfc.v1.Scheduler/" name

const struct sfc_rpc_method sfc_scheduler_methods[] = {
    {PATH("Status"), sfc_sched_on_status, SFC_LIMIT_SMALL, 256, SFC_ROLE_ADMIN | SFC_ROLE_WORKER},
    {PATH("History"), sfc_sched_on_history, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN | SFC_ROLE_WORKER},
    {PATH("Events"), sfc_sched_on_events, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN},
    {PATH("Trace"), sfc_sched_on_trace, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN},
    {PATH("PutSpans"), sfc_sched_on_put_spans, SFC_LIMIT_CONTROL, 1024, SFC_ROLE_WORKER},
    {PATH("About"), on_about, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("CreateRun"), sfc_sched_on_create_run, SFC_LIMIT_CONTROL, 16, SFC_ROLE_ADMIN},
    {PATH("Grow"), sfc_sched_on_grow, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN},
    {PATH("Scale"), sfc_sched_on_scale, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN},
    {PATH("Control"), on_control, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("Hold"), on_hold, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("Release"), on_release, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("RegisterShard"), sfc_sched_on_register_shard, SFC_LIMIT_SMALL, 512, SFC_ROLE_SHARD},
    {PATH("ShardHeartbeat"), sfc_sched_on_shard_heartbeat, SFC_LIMIT_SMALL, 512, SFC_ROLE_SHARD},
    {PATH("Join"), sfc_sched_on_join, SFC_LIMIT_SMALL, 2048, SFC_ROLE_WORKER},
    {PATH("GetMap"), on_get_map, SFC_LIMIT_SMALL, 2048, SFC_ROLE_WORKER},
    {PATH("Heartbeat"), sfc_sched_on_heartbeat, SFC_LIMIT_SMALL, 2048, SFC_ROLE_WORKER},
    {PATH("Leave"), sfc_sched_on_leave, SFC_LIMIT_SMALL, 2048, SFC_ROLE_WORKER},
    {PATH("Ticket"), on_ticket, SFC_LIMIT_SMALL, 4096, SFC_ROLE_WORKER},
    {PATH("Announce"), on_announce, SFC_LIMIT_CONTROL, 4096, SFC_ROLE_WORKER},
    {PATH("Done"), on_done, SFC_LIMIT_CONTROL, 4096, SFC_ROLE_WORKER},
    {PATH("GiveUp"), on_give_up, SFC_LIMIT_SMALL, 4096, SFC_ROLE_WORKER},
    {PATH("OpenSession"), on_open_session, SFC_LIMIT_SMALL, 64, SFC_ROLE_WORKER},
};
const size_t sfc_scheduler_method_count =
    sizeof sfc_scheduler_methods / sizeof *sfc_scheduler_methods;

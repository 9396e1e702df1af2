/* Messages to shards: the duties of the run machine as RPCs. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/block_map.h"
#include "proto/limits.h"
#include "server/scheduler/order_parts.h"
#include "server/scheduler/scheduler_internal.h"

struct send {
    struct sfc_scheduler *scheduler;
    uint64_t run_id;
    uint32_t shard;
    enum sfc_duty duty;
    uint64_t step;
    uint64_t life;
    uint64_t number;
    bool recover;
    struct sfc_attempt round;
    uint64_t began_ns;
    struct sfc_error error; /* of a call that could not start */
};

static const struct {
    const char *method;
    unsigned deadline_ms;
} duties[SFC_DUTY_COUNT] = {
    [SFC_DUTY_OPEN] = {"/shardfc.v1.Shard/OpenRun", 900000}, /* makes or recovers every block */
    [SFC_DUTY_COMMIT] = {"/shardfc.v1.Shard/Commit", 120000},
    [SFC_DUTY_ABORT] = {"/shardfc.v1.Shard/Abort", 60000},
    [SFC_DUTY_PLAN] = {"/shardfc.v1.Shard/Plan", 120000},
    [SFC_DUTY_PLAN_NEXT] = {"/shardfc.v1.Shard/Plan", 120000},
    [SFC_DUTY_PREPARE] = {"/shardfc.v1.Shard/Prepare", 120000},
    [SFC_DUTY_CLOSE] = {"/shardfc.v1.Shard/CloseRun", 120000},
    [SFC_DUTY_CHECK] = {"/shardfc.v1.Shard/CheckRewind", 900000}, /* reads every block */
    [SFC_DUTY_JOIN] = {"/shardfc.v1.Shard/OpenRun", 900000},
    [SFC_DUTY_FETCH] = {"/shardfc.v1.Shard/FetchBlocks", 60000}, /* asked again while it copies */
    [SFC_DUTY_TAKE] = {"/shardfc.v1.Shard/TakeBlocks", 60000},
    [SFC_DUTY_ADOPT] = {"/shardfc.v1.Shard/CheckRewind", 900000},
    [SFC_DUTY_SETMAP] = {"/shardfc.v1.Shard/SetMap", 120000},
    [SFC_DUTY_CANCEL] = {"/shardfc.v1.Shard/CancelMove", 60000},
};

/* ---- requests */

static void set_attempt(Shardfc__V1__Attempt *out, struct sfc_attempt a)
{
    shardfc__v1__attempt__init(out);
    out->incarnation = a.incarnation;
    out->counter = a.counter;
}

static void set_record(Shardfc__V1__CommitRecord *out, Shardfc__V1__Attempt *round,
                       const struct sfc_commit_record *record)
{
    shardfc__v1__commit_record__init(out);
    set_attempt(round, record->round);
    out->step = record->step;
    out->round = round;
    out->clip_scale = record->clip_scale;
    out->lr = record->lr;
    out->apply = record->apply;
}

struct returns_message {
    Shardfc__V1__Return items[SFC_LINEAGE_MAX], *list[SFC_LINEAGE_MAX];
    Shardfc__V1__Attempt last[SFC_LINEAGE_MAX];
};

/* With the one that shards are on their way for. */
static size_t pack_returns(const struct sfc_sched_run *run, struct returns_message *out)
{
    struct sfc_lineage x = run->lineage;
    uint64_t step;
    struct sfc_attempt last;
    if (sfc_run_returns(&run->fsm, &step, &last))
        sfc_lineage_add(&x, step, last);
    for (size_t i = 0; i < x.count; i++) {
        shardfc__v1__return__init(&out->items[i]);
        set_attempt(&out->last[i], x.returns[i].last);
        out->items[i].step = x.returns[i].step;
        out->items[i].last = &out->last[i];
        out->list[i] = &out->items[i];
    }
    return x.count;
}

static uint8_t *pack_open(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                          size_t *size)
{
    Shardfc__V1__CommitRecord last;
    Shardfc__V1__Attempt round;
    Shardfc__V1__OpenRunRequest m = SHARDFC__V1__OPEN_RUN_REQUEST__INIT;
    Shardfc__V1__RunKeeping keeping = SHARDFC__V1__RUN_KEEPING__INIT;
    Shardfc__V1__Attempt present;
    struct returns_message returns;
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.config = run->config;
    m.join = a->duty == SFC_DUTY_JOIN;
    m.map = m.join ? sfc_sched_map_to_join(run, a->shard) : run->map;
    m.self = a->shard;
    m.start_step = run->fsm.config.start_step;
    m.load = run->load;
    m.recover = a->recover;
    set_attempt(&present, a->round);
    m.round = &present;
    keeping.rewind_window = run->rewind_window;
    keeping.durable_every = run->durable_every;
    keeping.elastic = run->elastic;
    keeping.mirrors = run->mirrors;
    keeping.grace_s = run->grace_s;
    m.keeping = &keeping;
    m.nonce = run->nonce;
    m.order = a->number;
    m.n_returns = pack_returns(run, &returns);
    m.returns = returns.list;
    if ((a->recover || m.join) && a->record.step != 0) {
        set_record(&last, &round, &a->record);
        m.last_commit = &last;
    }
    uint8_t *bytes = m.map ? sfc_message_pack(&m, size) : NULL;
    if (m.join)
        sfc_message_free(m.map);
    return bytes;
}

static uint8_t *pack_plan(struct sfc_sched_run *run, const struct sfc_run_action *a, size_t *size)
{
    Shardfc__V1__PlanRequest m = SHARDFC__V1__PLAN_REQUEST__INIT;
    Shardfc__V1__Attempt round;
    set_attempt(&round, a->round);
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.step = a->step;
    m.map_version = run->map->version;
    m.lr = a->lr;
    m.labels = (uint64_t *)(uintptr_t)sfc_run_labels(&run->fsm, a->step);
    m.n_labels = m.labels ? run->config->global_batch : 0;
    m.round = &round;
    return sfc_message_pack(&m, size);
}

static uint8_t *pack_commit(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                            size_t *size)
{
    Shardfc__V1__CommitRequest m = SHARDFC__V1__COMMIT_REQUEST__INIT;
    Shardfc__V1__Attempt round;
    set_attempt(&round, a->round);
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.step = a->step;
    m.clip_scale = a->record.clip_scale;
    m.apply = a->record.apply;
    m.round = &round;
    return sfc_message_pack(&m, size);
}

static uint8_t *pack_abort(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                           size_t *size)
{
    Shardfc__V1__AbortRequest m = SHARDFC__V1__ABORT_REQUEST__INIT;
    Shardfc__V1__Attempt round;
    set_attempt(&round, a->round);
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.step = a->step;
    m.round = &round;
    return sfc_message_pack(&m, size);
}

static uint8_t *pack_check(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                           size_t *size)
{
    Shardfc__V1__CheckRewindRequest m = SHARDFC__V1__CHECK_REWIND_REQUEST__INIT;
    Shardfc__V1__CommitRecord last;
    Shardfc__V1__Attempt round;
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.step = a->step;
    if (a->record.step != 0) {
        set_record(&last, &round, &a->record);
        m.last_commit = &last;
    }
    if (a->duty == SFC_DUTY_ADOPT)
        m.map = sfc_sched_map_to_come(run);
    uint8_t *bytes = a->duty == SFC_DUTY_ADOPT && !m.map ? NULL : sfc_message_pack(&m, size);
    sfc_message_free(m.map);
    return bytes;
}

static uint8_t *pack_close(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                           size_t *size)
{
    Shardfc__V1__CloseRunRequest m = SHARDFC__V1__CLOSE_RUN_REQUEST__INIT;
    m.run_id = run->id;
    m.incarnation = run->scheduler->incarnation;
    m.order = a->number;
    m.leaves = !run->fsm.failed && !run->fsm.stopped;
    m.nonce = run->nonce;
    return sfc_message_pack(&m, size);
}

/* Memory of the repeated field of a Prepare. */
struct prepare_items {
    Shardfc__V1__PreparedAttempt *items;
    Shardfc__V1__PreparedAttempt **list;
    Shardfc__V1__Attempt *attempts;
    uint64_t *digests;
};

static size_t pushed_dense(const struct sfc_sched_run *run, uint32_t shard)
{
    size_t n = 0;
    for (size_t b = 0; b < run->map->n_dense_owner; b++)
        n += shard == UINT32_MAX || sfc_map_pushed(run->map, b, shard);
    return n;
}

static void fill_attempt(const struct sfc_sched_run *run, uint32_t shard, uint32_t j, size_t dense,
                         struct prepare_items *p)
{
    const struct sfc_done *done = sfc_run_done(&run->fsm, j);
    uint64_t *digests = p->digests + j * dense;
    shardfc__v1__prepared_attempt__init(&p->items[j]);
    p->list[j] = &p->items[j];
    p->items[j].micro_batch = j;
    p->items[j].attempt = &p->attempts[j];
    shardfc__v1__attempt__init(&p->attempts[j]);
    if (!done)
        return;
    set_attempt(&p->attempts[j], done->attempt);
    p->items[j].head_digest = (ProtobufCBinaryData){sizeof done->head_digest.bytes,
                                                    (uint8_t *)(uintptr_t)done->head_digest.bytes};
    size_t n = 0;
    for (size_t b = 0; b < run->map->n_dense_owner; b++)
        if (shard == UINT32_MAX || sfc_map_pushed(run->map, b, shard))
            digests[n++] = done->dense_digests[b];
    p->items[j].n_dense_digests = n;
    p->items[j].dense_digests = digests;
}

uint8_t *sfc_sched_pack_prepare(const struct sfc_sched_run *run, uint32_t shard, uint64_t step,
                                struct sfc_attempt round, bool provisional, size_t *size)
{
    uint32_t n = run->setup.micro_batches;
    size_t dense = pushed_dense(run, shard);
    uint8_t *bytes = NULL;
    struct prepare_items p = {
        calloc(n, sizeof *p.items),
        calloc(n, sizeof(Shardfc__V1__PreparedAttempt *)),
        calloc(n, sizeof *p.attempts),
        calloc(n * dense + 1, sizeof *p.digests),
    };
    if (p.items && p.list && p.attempts && p.digests) {
        for (uint32_t j = 0; j < n; j++)
            fill_attempt(run, shard, j, dense, &p);
        Shardfc__V1__PrepareRequest m = SHARDFC__V1__PREPARE_REQUEST__INIT;
        Shardfc__V1__Attempt r;
        set_attempt(&r, round);
        m.run_id = run->id;
        m.incarnation = run->scheduler->incarnation;
        m.step = step;
        m.n_attempts = n;
        m.attempts = p.list;
        m.round = &r;
        m.provisional = provisional;
        bytes = sfc_message_pack(&m, size);
    }
    free(p.items);
    free(p.list);
    free(p.attempts);
    free(p.digests);
    return bytes;
}

static uint8_t *pack(struct sfc_sched_run *run, const struct sfc_run_action *a, size_t *size)
{
    switch (a->duty) {
    case SFC_DUTY_OPEN:
    case SFC_DUTY_JOIN:
        return pack_open(run, a, size);
    case SFC_DUTY_PLAN:
    case SFC_DUTY_PLAN_NEXT:
        return pack_plan(run, a, size);
    case SFC_DUTY_PREPARE:
        return sfc_sched_pack_prepare(run, a->shard, a->step, a->round, a->provisional, size);
    case SFC_DUTY_COMMIT:
        return pack_commit(run, a, size);
    case SFC_DUTY_ABORT:
        return pack_abort(run, a, size);
    case SFC_DUTY_CLOSE:
        return pack_close(run, a, size);
    case SFC_DUTY_CHECK:
    case SFC_DUTY_ADOPT:
        return pack_check(run, a, size);
    case SFC_DUTY_FETCH:
    case SFC_DUTY_TAKE:
    case SFC_DUTY_SETMAP:
    case SFC_DUTY_CANCEL:
        return sfc_sched_pack_move(run, a, size);
    case SFC_DUTY_COUNT:
        break;
    }
    return NULL;
}

/* ---- answers */

static struct sfc_sched_run *run_of(const struct send *send)
{
    struct sfc_sched_run *run = send->scheduler->run;
    return run && run->id == send->run_id && !send->scheduler->stopping ? run : NULL;
}

static void take_prepare(struct sfc_bytes head, struct sfc_run_event *event,
                         struct sfc_dense_report **reports, Shardfc__V1__PrepareReply **out)
{
    int code;
    Shardfc__V1__PrepareReply *m =
        sfc_unpack_reply(head, &shardfc__v1__prepare_reply__descriptor, &code);
    *out = m;
    if (m)
        *reports = calloc(m->n_dense + 1, sizeof **reports);
    if (!m || !*reports) {
        bool malformed = code == SFC_ECORRUPT;
        event->code = malformed ? SFC_EINTERNAL : SFC_EUNAVAILABLE;
        event->text =
            malformed ? "the shard's answer to Prepare is malformed" : "no memory for the answer";
        return;
    }
    for (size_t i = 0; i < m->n_dense; i++)
        (*reports)[i] = (struct sfc_dense_report){m->dense[i]->block, m->dense[i]->sum_of_squares,
                                                  m->dense[i]->finite};
    event->prepare = (struct sfc_run_prepare_reply){.ready = m->ready,
                                                    .head_finite = m->head_finite,
                                                    .reports = *reports,
                                                    .report_count = (uint32_t)m->n_dense,
                                                    .missing = m->missing,
                                                    .missing_count = (uint32_t)m->n_missing};
}

/* A shard that lost a part of its log is well again, but its disk may not be. */
static void note_recovery(struct sfc_scheduler *s, uint64_t id, uint64_t run_id,
                          const Shardfc__V1__OpenRunReply *m)
{
    s->recoveries++;
    s->fetched_steps += m->fetched_steps;
    sfc_sched_event(s, "shard %" PRIu64 " has recovered run %" PRIu64 " at step %" PRIu64, id,
                    run_id, m->step);
    if (m->fetched_steps)
        sfc_sched_event(s,
                        "shard %" PRIu64 ": %" PRIu64
                        " steps of its log were lost (%.200s) and came from other shards; check "
                        "its disk",
                        id, m->fetched_steps, m->damage);
}

static void take_open(struct sfc_sched_run *run, const struct send *send, struct sfc_bytes head,
                      struct sfc_run_event *event)
{
    struct sfc_scheduler *s = run->scheduler;
    uint64_t id = run->fsm.shards[send->shard].id;
    struct sfc_shard_info *info = sfc_sched_shard(s, id);
    int code;
    Shardfc__V1__OpenRunReply *m =
        sfc_unpack_reply(head, &shardfc__v1__open_run_reply__descriptor, &code);
    if (!m) {
        bool malformed = code == SFC_ECORRUPT;
        event->code = malformed ? SFC_EINTERNAL : SFC_EUNAVAILABLE;
        event->text =
            malformed ? "the shard's answer to OpenRun is malformed" : "no memory for the answer";
        return;
    }
    event->applied = m->step;
    if (info) {
        info->memory_bytes = m->memory_bytes;
        info->step = m->step;
        info->recovering = false;
    }
    if (send->recover)
        note_recovery(s, id, run->id, m);
    sfc_message_free(m);
}

/* What Status shows between two heartbeats. */
static void take_commit(struct sfc_sched_run *run, const struct send *send)
{
    struct sfc_shard_info *info = sfc_sched_shard(run->scheduler, run->fsm.shards[send->shard].id);
    if (info && info->step < send->step)
        info->step = send->step;
}

static void report(struct send *send, int code, const char *text, struct sfc_bytes head)
{
    struct sfc_sched_run *run = run_of(send);
    struct sfc_run_event event = {.type = SFC_EV_SHARD_REPLY,
                                  .shard = send->shard,
                                  .duty = send->duty,
                                  .step = send->step,
                                  .life = send->life,
                                  .number = send->number,
                                  .round = send->round,
                                  .code = code,
                                  .text = text ? text : ""};
    struct sfc_dense_report *reports = NULL;
    Shardfc__V1__PrepareReply *prepare = NULL;
    if (run) {
        bool current = send->life == run->fsm.shards[send->shard].life;
        bool opens = send->duty == SFC_DUTY_OPEN || send->duty == SFC_DUTY_JOIN;
        if (opens && current && code == SFC_OK)
            take_open(run, send, head, &event);
        if (send->duty == SFC_DUTY_COMMIT && current && code == SFC_OK)
            take_commit(run, send);
        if (send->duty == SFC_DUTY_PREPARE && code == SFC_OK)
            take_prepare(head, &event, &reports, &prepare);
        sfc_sched_run_event(run, &event);
    }
    sfc_message_free(prepare);
    free(reports);
    free(send);
}

/* How long the shard took, with the network. */
static void record_answer(const struct send *send)
{
    static const uint8_t phases[SFC_DUTY_COUNT] = {[SFC_DUTY_PLAN] = SFC_SPAN_ASK_PLAN,
                                                   [SFC_DUTY_PLAN_NEXT] = SFC_SPAN_ASK_PLAN,
                                                   [SFC_DUTY_PREPARE] = SFC_SPAN_ASK_PREPARE,
                                                   [SFC_DUTY_COMMIT] = SFC_SPAN_ASK_COMMIT};
    struct sfc_span span = {.phase = phases[send->duty],
                            .step = send->step,
                            .micro_batch = UINT32_MAX,
                            .begin_ns = send->began_ns,
                            .end_ns = sfc_spans_now(),
                            .index = send->shard};
    if (span.phase)
        sfc_spans_add(send->scheduler->spans, &span);
}

static void answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    record_answer(ctx);
    report(ctx, view->code, view->text, view->head);
}

/* A call that could not start is reported from the loop, never from inside an action. */
static void not_started(void *ctx)
{
    struct send *send = ctx;
    report(send, send->error.code, send->error.text, (struct sfc_bytes){NULL, 0});
}

void sfc_sched_send(struct sfc_sched_run *run, const struct sfc_run_action *a)
{
    struct sfc_scheduler *s = run->scheduler;
    struct send *send = calloc(1, sizeof *send);
    if (!send) {
        if (run->lost_count < SFC_MAX_LOST)
            run->lost[run->lost_count++] =
                (struct sfc_lost_send){a->shard, a->duty, a->step, a->life, a->number, a->round};
        return;
    }
    *send = (struct send){.scheduler = s,
                          .run_id = run->id,
                          .shard = a->shard,
                          .duty = a->duty,
                          .step = a->step,
                          .life = a->life,
                          .number = a->number,
                          .recover = a->recover,
                          .round = a->round,
                          .began_ns = sfc_spans_now()};
    size_t size = 0;
    uint8_t *bytes = pack(run, a, &size);
    uint64_t id = run->fsm.shards[a->shard].id;
    struct sfc_shard_info *shard = sfc_sched_shard(s, id);
    int code;
    if (!bytes) {
        code = sfc_fail(&send->error, SFC_EUNAVAILABLE, "no memory for the request");
    } else if (!shard || !shard->client) {
        const struct sfc_shard_member *member = sfc_membership_shard(&s->members, id);
        code = sfc_fail(&send->error, SFC_EUNAVAILABLE, "shard %s has not registered yet",
                        member ? member->address : "?");
    } else {
        struct sfc_rpc_request request = {.method = duties[a->duty].method,
                                          .head = {bytes, size},
                                          .deadline_ms = duties[a->duty].deadline_ms};
        code = sfc_rpc_client_call(shard->client, &request, answered, send, NULL, &send->error);
    }
    if (code != SFC_OK)
        sfc_rpc_loop_post(s->rpc, not_started, send);
    free(bytes);
}

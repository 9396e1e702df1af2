/* RPC handlers of a shard: everything that a peer says is checked here, before it becomes an event.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/limits.h"
#include "proto/tensor.h"
#include "server/run/about.h"
#include "server/shard/shard_internal.h"

#define MAX_BLOCK_ELEMENTS (16u << 20)
#define MAX_BLOCK_JOBS     16u

void sfc_shard_refuse(struct sfc_shard *shard, struct sfc_rpc_call *call, int code,
                      const char *text)
{
    if (code > 0 && code < SFC_SHARD_COUNTERS)
        shard->refused[code]++;
    sfc_debug_log("refused a call of %s: %s: %s", sfc_rpc_call_peer(call), sfc_status_name(code),
                  text);
    sfc_rpc_fail(call, code, text);
}

static void refuse(struct sfc_shard *shard, struct sfc_rpc_call *call, const struct sfc_error *err)
{
    sfc_shard_refuse(shard, call, err->code, err->text);
}

void *sfc_shard_unpack(struct sfc_shard *shard, struct sfc_rpc_call *call,
                       const ProtobufCMessageDescriptor *type)
{
    void *message = sfc_call_unpack(call, type);
    if (!message)
        shard->refused[SFC_EINVAL]++;
    return message;
}

struct sfc_shard_run *sfc_shard_run_of(struct sfc_shard *shard, uint64_t run_id,
                                       struct sfc_error *err)
{
    struct sfc_shard_run *run = shard->run;
    if (!run || run->id != run_id) {
        if (run)
            sfc_fail(err, SFC_ESTALE, "run_id: this shard serves run %" PRIu64 ", not %" PRIu64,
                     run->id, run_id);
        else if (run_id > shard->last_closed)
            sfc_fail(err, SFC_EUNAVAILABLE,
                     "this shard has just started and has not opened run %" PRIu64 " yet", run_id);
        else
            sfc_fail(err, SFC_ESTALE, "run_id: this shard serves no run, not %" PRIu64, run_id);
        return NULL;
    }
    if (!run->open) {
        sfc_fail(err, SFC_EUNAVAILABLE, "run %" PRIu64 " is being opened", run_id);
        return NULL;
    }
    return run;
}

static int attempt_of(const Shardfc__V1__Attempt *from, const char *field, struct sfc_attempt *out,
                      struct sfc_error *err)
{
    if (!from)
        return sfc_fail(err, SFC_EINVAL, "%s is missing", field);
    *out = (struct sfc_attempt){from->incarnation, from->counter};
    return SFC_OK;
}

static int payload_digest(struct sfc_bytes payload, uint64_t said, uint64_t *out,
                          struct sfc_error *err)
{
    uint64_t digest = sfc_digest64(payload.data, payload.size);
    if (digest != said)
        return sfc_fail(err, SFC_ECORRUPT,
                        "payload_digest: the payload's XXH3-64 is %016" PRIx64 ", not %016" PRIx64,
                        digest, said);
    *out = digest;
    return SFC_OK;
}

/* ---- the scheduler's calls */

static int newer(struct sfc_shard *shard, uint64_t incarnation, struct sfc_error *err)
{
    if (incarnation < shard->incarnation)
        return sfc_fail(err, SFC_ESTALE,
                        "incarnation: %" PRIu64 " is older than the scheduler's %" PRIu64
                        "; if that one's state is gone, start this shard again",
                        incarnation, shard->incarnation);
    shard->incarnation = incarnation;
    return SFC_OK;
}

/* A message from before the change of the map that brought this shard where it is, or took it
 * away. */
static int in_order(struct sfc_shard *shard, uint64_t run_id, uint64_t number,
                    struct sfc_error *err)
{
    if (shard->order.run == run_id && number < shard->order.number)
        return sfc_fail(err, SFC_ESTALE,
                        "order: %" PRIx64 " is older than %" PRIx64 ", the newest one here", number,
                        shard->order.number);
    if (run_id >= shard->order.run) {
        shard->order.run = run_id;
        shard->order.number = number;
    }
    return SFC_OK;
}

static void on_open_run(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__OpenRunRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__open_run_request__descriptor);
    if (!r)
        return;
    if (shard->stopping)
        sfc_fail(&err, SFC_EUNAVAILABLE, "this shard is shutting down");
    if (shard->stopping || newer(shard, r->incarnation, &err) != SFC_OK ||
        in_order(shard, r->run_id, r->order, &err) != SFC_OK)
        refuse(shard, call, &err);
    else
        sfc_shard_open_run(shard, call, r);
    sfc_message_free(r);
}

/* Is the run open here that CloseRun means? */
static bool is_here(const struct sfc_shard *shard, const Shardfc__V1__CloseRunRequest *r)
{
    return shard->run && shard->run->id == r->run_id &&
           (r->nonce == 0 || shard->run->nonce == r->nonce);
}

static void on_close_run(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__CloseRunRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__close_run_request__descriptor);
    if (!r)
        return;
    if (newer(shard, r->incarnation, &err) != SFC_OK ||
        in_order(shard, r->run_id, r->order, &err) != SFC_OK) {
        refuse(shard, call, &err);
    } else if (is_here(shard, r) && r->leaves && sfc_pinned_serves(shard->run)) {
        sfc_fail(&err, SFC_EUNAVAILABLE, "a checkpoint of step %" PRIu64 " is read from this shard",
                 shard->run->pinned.step);
        refuse(shard, call, &err);
    } else if (is_here(shard, r)) {
        shard->left = true;
        sfc_shard_close_run(shard, call, true);
    } else {
        Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT; /* gone already */
        bool another = shard->run && shard->run->id == r->run_id;
        if (!another && r->run_id > shard->last_closed)
            shard->last_closed = r->run_id;
        sfc_call_reply(call, &reply);
    }
    sfc_message_free(r);
}

static void on_check_rewind(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__CheckRewindRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__check_rewind_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK)
        sfc_shard_check_rewind(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static int check_plan(const struct sfc_shard_run *run, const Shardfc__V1__PlanRequest *r,
                      struct sfc_error *err)
{
    if (r->n_labels != run->setup.head.batch)
        return sfc_fail(err, SFC_EINVAL, "labels: %zu, the global batch has %u rows", r->n_labels,
                        run->setup.head.batch);
    for (size_t i = 0; i < r->n_labels; i++)
        if (r->labels[i] >= run->setup.head.classes && r->labels[i] != SFC_LABEL_NONE)
            return sfc_fail(err, SFC_EINVAL, "labels[%zu]: %" PRIu64 " is not below %" PRIu64, i,
                            r->labels[i], run->setup.head.classes);
    if (!(r->lr >= 0 && isfinite(r->lr)))
        return sfc_fail(err, SFC_EINVAL, "lr: %g", r->lr);
    return SFC_OK;
}

static void on_plan(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__PlanRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__plan_request__descriptor);
    if (!r)
        return;
    struct sfc_step_event event = {.type = SFC_SE_PLAN,
                                   .run_id = r->run_id,
                                   .incarnation = r->incarnation,
                                   .step = r->step,
                                   .map_version = r->map_version,
                                   .lr = r->lr,
                                   .labels = r->labels,
                                   .count = (uint32_t)r->n_labels};
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK && check_plan(run, r, &err) == SFC_OK &&
        attempt_of(r->round, "round", &event.round, &err) == SFC_OK) {
        /* a late one says nothing about where the run is */
        bool present = sfc_attempt_compare(event.round, run->fsm.round) == 0;
        run->planned = run->planned || present;
        sfc_shard_event(run, call, &event);
        if (present) {
            sfc_durability_planned(run);
            sfc_move_pass(run, r->incarnation);
        }
        if (!run->closed)
            sfc_shard_prefetch(run, r->step);
    } else {
        refuse(shard, call, &err);
    }
    sfc_message_free(r);
}

static int take_prepared(const struct sfc_shard_run *run, const Shardfc__V1__PrepareRequest *r,
                         struct sfc_prepared *out, struct sfc_error *err)
{
    for (size_t i = 0; i < r->n_attempts; i++) {
        const Shardfc__V1__PreparedAttempt *a = r->attempts[i];
        int code = attempt_of(a->attempt, "attempts.attempt", &out[i].attempt, err);
        if (code != SFC_OK)
            return code;
        if (a->micro_batch != i)
            return sfc_fail(err, SFC_EINVAL, "attempts[%zu] is of micro-batch %u", i,
                            a->micro_batch);
        if (a->head_digest.len != sizeof out[i].head_digest.bytes)
            return sfc_fail(err, SFC_EINVAL, "attempts[%zu].head_digest has %zu bytes, not 16", i,
                            a->head_digest.len);
        memcpy(out[i].head_digest.bytes, a->head_digest.data, sizeof out[i].head_digest.bytes);
        if (a->n_dense_digests != run->mirrored.pushed.count)
            return sfc_fail(
                err, SFC_EINVAL,
                "attempts[%zu].dense_digests: %zu, this shard owns or mirrors %zu dense "
                "blocks",
                i, a->n_dense_digests, run->mirrored.pushed.count);
        out[i].dense_digests = a->dense_digests;
    }
    return SFC_OK;
}

static void on_prepare(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__PrepareRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__prepare_request__descriptor);
    if (!r)
        return;
    struct sfc_step_event event = {.type = SFC_SE_PREPARE,
                                   .run_id = r->run_id,
                                   .incarnation = r->incarnation,
                                   .step = r->step,
                                   .provisional = r->provisional};
    struct sfc_prepared *prepared = NULL;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (!run || newer(shard, r->incarnation, &err) != SFC_OK ||
        attempt_of(r->round, "round", &event.round, &err) != SFC_OK)
        goto refused;
    if (r->n_attempts != run->setup.micro_batches) {
        sfc_fail(&err, SFC_EINVAL, "attempts: %zu, a step has %u micro-batches", r->n_attempts,
                 run->setup.micro_batches);
        goto refused;
    }
    prepared = calloc(r->n_attempts, sizeof *prepared);
    if (!prepared) {
        sfc_fail(&err, SFC_ENOMEM, "no memory for the attempts");
        goto refused;
    }
    if (take_prepared(run, r, prepared, &err) != SFC_OK)
        goto refused;
    event.prepared = prepared;
    event.prepared_count = (uint32_t)r->n_attempts;
    sfc_shard_event(run, call, &event);
    goto done;
refused:
    refuse(shard, call, &err);
done:
    free(prepared);
    sfc_message_free(r);
}

static void on_commit(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__CommitRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__commit_request__descriptor);
    if (!r)
        return;
    struct sfc_step_event event = {.type = SFC_SE_COMMIT,
                                   .run_id = r->run_id,
                                   .incarnation = r->incarnation,
                                   .step = r->step,
                                   .clip_scale = r->clip_scale,
                                   .apply = r->apply};
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && !(r->clip_scale >= 0 && r->clip_scale <= 1)) {
        sfc_fail(&err, SFC_EINVAL, "clip_scale: %g is not within 0..1", r->clip_scale);
        run = NULL;
    }
    if (run && newer(shard, r->incarnation, &err) == SFC_OK &&
        attempt_of(r->round, "round", &event.round, &err) == SFC_OK)
        sfc_shard_event(run, call, &event);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_abort(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__AbortRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__abort_request__descriptor);
    if (!r)
        return;
    struct sfc_step_event event = {
        .type = SFC_SE_ABORT, .run_id = r->run_id, .incarnation = r->incarnation, .step = r->step};
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK &&
        attempt_of(r->round, "round", &event.round, &err) == SFC_OK)
        sfc_shard_event(run, call, &event);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_fetch_blocks(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__FetchBlocksRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__fetch_blocks_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK)
        sfc_move_fetch(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_take_blocks(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__TakeBlocksRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__take_blocks_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK)
        sfc_move_take(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_cancel_move(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__CancelMoveRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__cancel_move_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK)
        sfc_move_cancel(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_set_map(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__SetMapRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__set_map_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run && newer(shard, r->incarnation, &err) == SFC_OK)
        sfc_set_map(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

/* ---- the workers' calls */

/* The three calls with a payload have the same first six fields. */
struct payload_call {
    enum sfc_step_event_type type;
    uint64_t run_id, step, map_version, payload_digest;
    uint32_t micro_batch;
    const Shardfc__V1__Attempt *attempt;
    const Shardfc__V1__TensorType *payload_type;
};

static int check_payload(const struct sfc_shard_run *run, const struct payload_call *p,
                         struct sfc_bytes payload, struct sfc_error *err)
{
    uint64_t shape[2] = {run->setup.head.micro_batch, run->setup.head.dim};
    switch (p->type) {
    case SFC_SE_LOGITS:
        return sfc_tensor_check(p->payload_type, payload, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 2,
                                "payload (features)", err);
    case SFC_SE_GRADIENT:
        return sfc_tensor_check(p->payload_type, payload, SHARDFC__V1__DTYPE__DTYPE_F64, shape, 1,
                                "payload (log-sum-exp)", err);
    default:
        shape[0] = run->mirrored.pushed_floats;
        return sfc_tensor_check(p->payload_type, payload, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 1,
                                "payload (dense gradient)", err);
    }
}

static void take_payload(struct sfc_shard *shard, struct sfc_rpc_call *call,
                         const struct payload_call *p)
{
    struct sfc_error err = {0};
    struct sfc_bytes payload = sfc_rpc_call_tensor(call);
    struct sfc_step_event event = {.type = p->type,
                                   .run_id = p->run_id,
                                   .step = p->step,
                                   .map_version = p->map_version,
                                   .j = p->micro_batch};
    struct sfc_shard_run *run = sfc_shard_run_of(shard, p->run_id, &err);
    if (run && p->micro_batch >= run->setup.micro_batches) {
        sfc_fail(&err, SFC_EINVAL, "micro_batch: %u, a step has %u", p->micro_batch,
                 run->setup.micro_batches);
        run = NULL;
    }
    if (run && attempt_of(p->attempt, "attempt", &event.attempt, &err) == SFC_OK &&
        check_payload(run, p, payload, &err) == SFC_OK &&
        payload_digest(payload, p->payload_digest, &event.digest, &err) == SFC_OK)
        sfc_shard_event(run, call, &event);
    else
        refuse(shard, call, &err);
}

#define PAYLOAD_CALL(kind, r)                                                                      \
    &(struct payload_call)                                                                         \
    {                                                                                              \
        .type = kind, .run_id = (r)->run_id, .step = (r)->step, .map_version = (r)->map_version,   \
        .payload_digest = (r)->payload_digest, .micro_batch = (r)->micro_batch,                    \
        .attempt = (r)->attempt, .payload_type = (r)->payload_type                                 \
    }

static void on_logits(struct sfc_rpc_call *call, void *ctx)
{
    Shardfc__V1__LogitsRequest *r =
        sfc_shard_unpack(ctx, call, &shardfc__v1__logits_request__descriptor);
    if (r)
        take_payload(ctx, call, PAYLOAD_CALL(SFC_SE_LOGITS, r));
    sfc_message_free(r);
}

static void on_gradient(struct sfc_rpc_call *call, void *ctx)
{
    Shardfc__V1__GradientRequest *r =
        sfc_shard_unpack(ctx, call, &shardfc__v1__gradient_request__descriptor);
    if (r)
        take_payload(ctx, call, PAYLOAD_CALL(SFC_SE_GRADIENT, r));
    sfc_message_free(r);
}

static void on_push_dense(struct sfc_rpc_call *call, void *ctx)
{
    Shardfc__V1__PushDenseRequest *r =
        sfc_shard_unpack(ctx, call, &shardfc__v1__push_dense_request__descriptor);
    if (r)
        take_payload(ctx, call, PAYLOAD_CALL(SFC_SE_DENSE, r));
    sfc_message_free(r);
}

static void on_pull_dense(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__PullDenseRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__pull_dense_request__descriptor);
    if (!r)
        return;
    struct sfc_step_event event = {
        .type = SFC_SE_PULL, .run_id = r->run_id, .step = r->step, .map_version = r->map_version};
    if (r->attempt)
        event.attempt = (struct sfc_attempt){r->attempt->incarnation, r->attempt->counter};
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run)
        sfc_shard_event(run, call, &event);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

/* ---- blocks, for checkpoints */

struct block_job {
    struct sfc_compute_job compute;
    struct sfc_shard *shard;
    struct sfc_rpc_call *call;
    struct sfc_shared *values; /* READ */
};

static void block_done(struct sfc_compute_job *compute)
{
    struct block_job *job = compute->owner;
    job->shard->blocks_in_flight--;
    if (compute->code != SFC_OK) {
        sfc_shard_refuse(job->shard, job->call, compute->code, compute->error.text);
    } else if (compute->kind == SFC_COMPUTE_WRITE) {
        Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
        sfc_call_reply(job->call, &reply);
    } else {
        struct sfc_tensor_type type;
        Shardfc__V1__ReadBlockReply reply = SHARDFC__V1__READ_BLOCK_REPLY__INIT;
        reply.payload_type =
            sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, &compute->u.block.count, 1);
        sfc_call_reply_tensor(job->call, &reply, sfc_shared_borrow(job->values), sfc_shared_release,
                              job->values);
    }
    sfc_shared_drop(job->values);
    free(job);
}

static bool keeps_history(const struct sfc_shard_run *run)
{
    return run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE;
}

static bool has_part(const struct sfc_shard_run *run, bool last_step, int part)
{
    switch (part) {
    case SHARDFC__V1__BLOCK_PART__LAST_STEP:
        return last_step;
    case SHARDFC__V1__BLOCK_PART__SECOND_MOMENT:
        return run->setup.head.optimizer == SFC_OPTIMIZER_ADAMW;
    default:
        return true;
    }
}

/* Elements of a part of a block whose kind and part are known, after `step`; 0: this run has no
 * such thing. */
static uint64_t part_elements(const struct sfc_shard_run *run, uint64_t step, int kind,
                              uint64_t block, int part)
{
    bool values = part == SHARDFC__V1__BLOCK_PART__VALUES;
    switch (kind) {
    case SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK:
        return has_part(run, false, part) ? sfc_run_dense_length(&run->setup, block) : 0;
    case SHARDFC__V1__BLOCK_KIND__HISTORY:
        return keeps_history(run) && values && block == 0 ? step : 0;
    default: {
        uint64_t rows = sfc_head_block_rows(&run->setup.head, block);
        if (!has_part(run, keeps_history(run), part))
            return 0;
        return part == SHARDFC__V1__BLOCK_PART__LAST_STEP ? rows : rows * run->setup.head.dim;
    }
    }
}

static int check_block(const struct sfc_shard_run *run, uint64_t step, int kind, uint64_t block,
                       int part, uint64_t offset, uint64_t count, struct sfc_error *err)
{
    if (kind < SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK || kind > SHARDFC__V1__BLOCK_KIND__HISTORY)
        return sfc_fail(err, SFC_EINVAL, "kind: %d", kind);
    if (part < SHARDFC__V1__BLOCK_PART__VALUES || part > SHARDFC__V1__BLOCK_PART__SECOND_MOMENT)
        return sfc_fail(err, SFC_EINVAL, "part: %d", part);
    uint64_t blocks = kind == SHARDFC__V1__BLOCK_KIND__DENSE_BLOCK   ? run->setup.dense_blocks
                      : kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK ? run->setup.class_blocks
                                                                     : keeps_history(run);
    if (block >= blocks)
        return sfc_fail(err, SFC_EINVAL, "block: %" PRIu64 ", the run has %" PRIu64, block, blocks);
    uint64_t elements = part_elements(run, step, kind, block, part);
    if (count == 0 || offset > elements || count > elements - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "offset %" PRIu64 ", count %" PRIu64 ": part %d of block %" PRIu64
                        " has %" PRIu64 " elements",
                        offset, count, part, block, elements);
    if (count > MAX_BLOCK_ELEMENTS)
        return sfc_fail(err, SFC_ELIMIT, "count: %" PRIu64 " is over %u", count,
                        MAX_BLOCK_ELEMENTS);
    if (run->shard->blocks_in_flight >= MAX_BLOCK_JOBS)
        return sfc_fail(err, SFC_EUNAVAILABLE, "too many block transfers at a time; try again");
    return SFC_OK;
}

static struct block_job *block_job_new(struct sfc_shard *shard, struct sfc_rpc_call *call,
                                       enum sfc_compute_kind kind)
{
    struct block_job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->shard = shard;
    job->call = call;
    job->compute.kind = kind;
    job->compute.owner = job;
    job->compute.done = block_done;
    return job;
}

static int start_read(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                      const Shardfc__V1__ReadBlockRequest *r, struct sfc_error *err)
{
    int code = check_block(run, sfc_step_applied(&run->fsm), (int)r->kind, r->block, (int)r->part,
                           r->offset, r->count, err);
    if (code != SFC_OK)
        return code;
    if (run->fsm.phase == SFC_STEP_COMMITTING || sfc_step_applied(&run->fsm) != r->step)
        return sfc_fail(err, SFC_ESTALE, "step: the blocks are at step %" PRIu64 "%s, not %" PRIu64,
                        sfc_step_applied(&run->fsm),
                        run->fsm.phase == SFC_STEP_COMMITTING ? " and being updated" : "", r->step);
    const struct sfc_snapshot_block block = {(enum sfc_snapshot_kind)r->kind, r->block};
    if (r->kind != SHARDFC__V1__BLOCK_KIND__HISTORY && !sfc_shard_owns(run, &block))
        return sfc_fail(err, SFC_ENOTFOUND,
                        "block: %" PRIu64 " is not one of this shard's in map version %" PRIu64
                        "; where it has moved the scheduler's map says",
                        r->block, run->map_version);
    struct block_job *job = block_job_new(run->shard, call, SFC_COMPUTE_READ);
    if (job)
        job->values = sfc_shared_new(r->count * sizeof(float));
    if (!job || !job->values) {
        free(job);
        return sfc_fail(err, SFC_ENOMEM, "no memory for the answer");
    }
    job->compute.u.block.kind = (enum sfc_compute_block)r->kind; /* the same numbers */
    job->compute.u.block.block = r->block;
    job->compute.u.block.part = (enum sfc_block_part)r->part;
    job->compute.u.block.offset = r->offset;
    job->compute.u.block.count = r->count;
    job->compute.u.block.out = job->values->data;
    run->shard->blocks_in_flight++;
    sfc_compute_submit(run->shard->compute, &job->compute);
    return SFC_OK;
}

/* Takes the call unless there is an error. */
static int start_pinned_read(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                             const Shardfc__V1__ReadBlockRequest *r, struct sfc_error *err)
{
    int code = sfc_pinned_check(run, r->pin, r->step, err);
    if (code == SFC_OK)
        code = check_block(run, r->step, (int)r->kind, r->block, (int)r->part, r->offset, r->count,
                           err);
    if (code == SFC_OK)
        sfc_pinned_read(run, call, r);
    return code;
}

static void give_pin(struct sfc_shard *shard, struct sfc_rpc_call *call,
                     void (*take)(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                                  const Shardfc__V1__PinStepRequest *request))
{
    struct sfc_error err = {0};
    Shardfc__V1__PinStepRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__pin_step_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (run)
        take(run, call, r);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_pin_step(struct sfc_rpc_call *call, void *ctx)
{
    give_pin(ctx, call, sfc_pinned_pin);
}

static void on_unpin_step(struct sfc_rpc_call *call, void *ctx)
{
    give_pin(ctx, call, sfc_pinned_unpin);
}

static void on_read_block(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__ReadBlockRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__read_block_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    int code = !run     ? err.code
               : r->pin ? start_pinned_read(run, call, r, &err)
                        : start_read(run, call, r, &err);
    if (code != SFC_OK)
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static int check_values(const float *values, uint64_t count, struct sfc_error *err)
{
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return sfc_fail(err, SFC_EINVAL, "payload[%" PRIu64 "] is not finite", i);
    return SFC_OK;
}

static int start_write(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                       const Shardfc__V1__WriteBlockRequest *r, struct sfc_error *err)
{
    struct sfc_bytes payload = sfc_rpc_call_tensor(call);
    uint64_t count = 0;
    const float *values = (const float *)(const void *)payload.data;
    int code = sfc_tensor_check_vector(r->payload_type, payload, SHARDFC__V1__DTYPE__DTYPE_F32,
                                       MAX_BLOCK_ELEMENTS, &count, "payload", err);
    if (code == SFC_OK)
        code = check_block(run, run->start_step, (int)r->kind, r->block, (int)r->part, r->offset,
                           count, err);
    if (code == SFC_OK)
        code = check_values(values, count, err);
    if (code != SFC_OK)
        return code;
    if (!run->load || run->planned || sfc_step_applied(&run->fsm) != run->start_step)
        return sfc_fail(err, SFC_ESTATE, "blocks may be written only while the run is loading");
    struct block_job *job = block_job_new(run->shard, call, SFC_COMPUTE_WRITE);
    if (!job)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the call");
    job->compute.u.block.kind = (enum sfc_compute_block)r->kind; /* the same numbers */
    job->compute.u.block.block = r->block;
    job->compute.u.block.part = (enum sfc_block_part)r->part;
    job->compute.u.block.offset = r->offset;
    job->compute.u.block.count = count;
    job->compute.u.block.values = values;
    for (unsigned i = 0; i < SFC_RUN_PULL_COPIES; i++)
        run->dense.pulls[i]->step = 0; /* a copy taken earlier is old now */
    run->shard->blocks_in_flight++;
    sfc_compute_submit(run->shard->compute, &job->compute);
    return SFC_OK;
}

static void on_write_block(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__WriteBlockRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__write_block_request__descriptor);
    if (!r)
        return;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    if (!run || start_write(run, call, r, &err) != SFC_OK)
        refuse(shard, call, &err);
    sfc_message_free(r);
}

/* What was written is complete; from now on a death of this shard does not undo it. */
static void on_keep_blocks(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    Shardfc__V1__KeepBlocksRequest *r =
        sfc_shard_unpack(shard, call, &shardfc__v1__keep_blocks_request__descriptor);
    if (!r)
        return;
    Shardfc__V1__KeepBlocksReply reply = SHARDFC__V1__KEEP_BLOCKS_REPLY__INIT;
    bool kept = false;
    struct sfc_shard_run *run = sfc_shard_run_of(shard, r->run_id, &err);
    int code = run ? SFC_OK : err.code;
    if (run) {
        run->planned = true;
        code = sfc_durability_keep(run, &kept, &err);
    }
    reply.kept = kept;
    if (code == SFC_OK)
        sfc_call_reply(call, &reply);
    else
        refuse(shard, call, &err);
    sfc_message_free(r);
}

static void on_about(struct sfc_rpc_call *call, void *ctx)
{
    const struct sfc_shard_options *options = ((struct sfc_shard *)ctx)->options;
    sfc_about_answer(call, options->state, options->security.tls);
}

#define PATH(name) "/shardfc.v1.Shard/" name

const struct sfc_rpc_method sfc_shard_methods[] = {
    {PATH("About"), on_about, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("OpenRun"), on_open_run, SFC_LIMIT_HEAD, 16, SFC_ROLE_SCHEDULER},
    {PATH("CloseRun"), on_close_run, SFC_LIMIT_SMALL, 16, SFC_ROLE_SCHEDULER},
    {PATH("CheckRewind"), on_check_rewind, SFC_LIMIT_CONTROL, 16, SFC_ROLE_SCHEDULER},
    {PATH("Plan"), on_plan, SFC_LIMIT_CONTROL, 64, SFC_ROLE_SCHEDULER},
    {PATH("Prepare"), on_prepare, SFC_LIMIT_HEAD, 64, SFC_ROLE_SCHEDULER},
    {PATH("Commit"), on_commit, SFC_LIMIT_SMALL, 64, SFC_ROLE_SCHEDULER},
    {PATH("Abort"), on_abort, SFC_LIMIT_SMALL, 64, SFC_ROLE_SCHEDULER},
    {PATH("Logits"), on_logits, SFC_LIMIT_MESSAGE, 1024, SFC_ROLE_WORKER},
    {PATH("Gradient"), on_gradient, SFC_LIMIT_CONTROL, 1024, SFC_ROLE_WORKER},
    {PATH("PushDense"), on_push_dense, SFC_LIMIT_MESSAGE, 1024, SFC_ROLE_WORKER},
    {PATH("PullDense"), on_pull_dense, SFC_LIMIT_SMALL, 4096, SFC_ROLE_WORKER},
    {PATH("FetchBlocks"), on_fetch_blocks, SFC_LIMIT_CONTROL, 16, SFC_ROLE_SCHEDULER},
    {PATH("TakeBlocks"), on_take_blocks, SFC_LIMIT_SMALL, 16, SFC_ROLE_SCHEDULER},
    {PATH("CancelMove"), on_cancel_move, SFC_LIMIT_SMALL, 16, SFC_ROLE_SCHEDULER},
    {PATH("SetMap"), on_set_map, SFC_LIMIT_CONTROL, 16, SFC_ROLE_SCHEDULER},
    {PATH("BeginCopy"), sfc_shard_begin_copy, SFC_LIMIT_SMALL, 64, SFC_ROLE_SHARD},
    {PATH("ReadCopy"), sfc_shard_read_copy, SFC_LIMIT_SMALL, 64, SFC_ROLE_SHARD},
    {PATH("ReadChanges"), sfc_shard_read_changes, SFC_LIMIT_SMALL, 64, SFC_ROLE_SHARD},
    {PATH("EndCopy"), sfc_shard_end_copy, SFC_LIMIT_SMALL, 64, SFC_ROLE_SHARD},
    {PATH("ReadStep"), sfc_shard_read_step, SFC_LIMIT_SMALL, 64, SFC_ROLE_SHARD},
    {PATH("PinStep"), on_pin_step, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("UnpinStep"), on_unpin_step, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("ReadBlock"), on_read_block, SFC_LIMIT_SMALL, 256, SFC_ROLE_ADMIN},
    {PATH("WriteBlock"), on_write_block, SFC_LIMIT_MESSAGE, 256, SFC_ROLE_ADMIN},
    {PATH("KeepBlocks"), on_keep_blocks, SFC_LIMIT_SMALL, 64, SFC_ROLE_ADMIN},
    {PATH("ReadSpans"), sfc_shard_read_spans, SFC_LIMIT_SMALL, 16, SFC_ROLE_ADMIN},
};
const size_t sfc_shard_method_count = sizeof sfc_shard_methods / sizeof *sfc_shard_methods;

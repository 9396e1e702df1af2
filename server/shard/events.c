/* Drives the step machine of a run: events in, actions out. */
#include <stdlib.h>
#include <string.h>

#include "proto/tensor.h"
#include "server/shard/shard_internal.h"

static void perform(struct sfc_shard_run *run);

/* ---- waiting calls */

static void waiting_remove(struct sfc_waiting_call *w)
{
    if (w->prev)
        w->prev->next = w->next;
    else
        w->run->waiting = w->next;
    if (w->next)
        w->next->prev = w->prev;
    free(w);
}

static struct sfc_waiting_call *waiting_of(uint64_t token)
{
    return (struct sfc_waiting_call *)(uintptr_t)token;
}

static void call_cancelled(void *ctx)
{
    struct sfc_waiting_call *w = ctx;
    struct sfc_shard_run *run = w->run;
    if (run->closed)
        return;
    struct sfc_step_event event = {.type = SFC_SE_CANCEL, .token = (uintptr_t)w};
    sfc_step_step(&run->fsm, &event, &run->actions);
    perform(run);
}

void sfc_shard_event(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                     struct sfc_step_event *event)
{
    struct sfc_waiting_call *w = calloc(1, sizeof *w);
    if (!w) {
        sfc_shard_refuse(run->shard, call, SFC_ENOMEM, "no memory for the call");
        return;
    }
    w->run = run;
    w->call = call;
    w->type = event->type;
    w->step = event->step;
    w->micro_batch = event->j;
    w->tensor = sfc_rpc_call_tensor(call);
    w->next = run->waiting;
    if (w->next)
        w->next->prev = w;
    run->waiting = w;
    sfc_rpc_call_on_cancel(call, call_cancelled, w);
    event->token = (uintptr_t)w;
    sfc_step_step(&run->fsm, event, &run->actions);
    perform(run);
}

void sfc_shard_feed(struct sfc_shard_run *run, const struct sfc_step_event *event)
{
    sfc_step_step(&run->fsm, event, &run->actions);
    perform(run);
}

struct sfc_answer *sfc_shard_answer(const struct sfc_shard_run *run, uint32_t generation,
                                    uint32_t slot)
{
    return &run->answers[(generation & 1) * run->setup.slots + slot];
}

/* ---- rows of the next step */

static void prefetched(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    run->prefetching = false;
}

void sfc_shard_prefetch(struct sfc_shard_run *run, uint64_t step)
{
    const uint64_t *labels = sfc_step_labels(&run->fsm, step);
    bool kept = labels && step == sfc_step_applied(&run->fsm) + 2; /* it waits for a commit */
    if (!run->shard->disk_limit || run->prefetching || !kept)
        return;
    memcpy(run->prefetch_labels, labels, run->setup.head.batch * sizeof *labels);
    run->prefetching = true;
    run->prefetch_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_PREFETCH, .done = prefetched, .owner = run};
    run->prefetch_job.span =
        (struct sfc_span){.phase = SFC_SPAN_PREFETCH, .step = step, .micro_batch = UINT32_MAX};
    run->prefetch_job.u.plan.step = step;
    run->prefetch_job.u.plan.labels = run->prefetch_labels;
    sfc_compute_submit(run->shard->compute, &run->prefetch_job);
}

/* ---- jobs */

static void dense_digests(struct sfc_shard_run *run, struct sfc_bytes slice)
{
    const uint8_t *at = slice.data;
    const struct sfc_dense_set *pushed = &run->mirrored.pushed;
    for (size_t i = 0; i < pushed->count; i++) {
        size_t bytes = (size_t)sfc_run_dense_length(&run->setup, pushed->blocks[i]) * 4;
        run->dense.dense_digests[i] = sfc_digest64(at, bytes);
        at += bytes;
    }
}

static void job_report(struct sfc_run_job *job, struct sfc_step_event *event)
{
    struct sfc_shard_run *run = job->run;
    switch (job->kind) {
    case SFC_JOB_PLAN:
        run->sampled = job->compute.u.plan.sampled;
        run->shard->sampled_rows += run->sampled;
        break;
    case SFC_JOB_LOGITS:
        job->answer->zero_features = job->compute.u.logits.zero_features;
        run->shard->zero_features += job->answer->zero_features;
        break;
    case SFC_JOB_GRADIENT:
        event->head_digest = job->head_digest;
        break;
    case SFC_JOB_DENSE:
        dense_digests(run, job->waiting->tensor);
        event->dense_digests = run->dense.dense_digests;
        break;
    case SFC_JOB_PREPARE:
        for (size_t i = 0; i < run->dense_count; i++)
            run->dense.own_sums[i] = (struct sfc_own_dense_sum){run->dense.sums[i].sum_of_squares,
                                                                run->dense.sums[i].finite};
        event->sums = run->dense.own_sums;
        event->head_finite = job->compute.u.prepare.head_finite;
        break;
    case SFC_JOB_COMMIT:
    case SFC_JOB_PULL:
    case SFC_JOB_MAP:
        break;
    }
}

static void note_time(struct sfc_shard_run *run, uint64_t ns)
{
    run->durability.step_ns += ns;
    run->compute_ns += ns;
}

/* Averages over about so many steps, so that one slow step says little. */
#define AVERAGED_STEPS 20u

static void note_step(struct sfc_shard_run *run)
{
    double ms = 1e-6 * (double)run->compute_ns;
    run->compute_ns = 0;
    run->timed_steps += run->timed_steps < AVERAGED_STEPS;
    run->step_ms += (ms - run->step_ms) / run->timed_steps;
}

double sfc_shard_step_ms(const struct sfc_shard_run *run)
{
    return run->timed_steps == AVERAGED_STEPS ? run->step_ms : 0;
}

static void forget_times(struct sfc_shard_run *run)
{
    run->timed_steps = 0;
    run->step_ms = 0;
}

/* Lists and buffers follow before the machine goes on with them. */
static void map_done(struct sfc_run_job *job, struct sfc_step_event *event, struct sfc_error *error)
{
    event->code = sfc_set_map_done(job->run, event->code, error);
    event->text = error->text;
}

static void job_done(struct sfc_compute_job *compute)
{
    struct sfc_run_job *job = compute->owner;
    struct sfc_shard_run *run = job->run;
    free(job->labels);
    job->labels = NULL;
    if (run->closed)
        return;
    struct sfc_step_event event = {.type = SFC_SE_JOB_DONE, .job = job->id, .code = compute->code};
    if (event.code == SFC_OK)
        event.code = job->refused;
    struct sfc_error error = compute->error;
    if (compute->code == SFC_OK && job->refused != SFC_OK)
        sfc_fail(&error, job->refused, "%s",
                 job->refused == SFC_ENOMEM ? "no memory for the answer"
                                            : "answers of an older step are still on their way");
    event.text = error.text;
    if (job->kind != SFC_JOB_PULL && job->kind != SFC_JOB_DENSE)
        note_time(run, compute->ns);
    if (job->kind == SFC_JOB_MAP)
        map_done(job, &event, &error);
    else if (event.code == SFC_OK)
        job_report(job, &event);
    else if (job->kind == SFC_JOB_PULL && job->waiting->pull)
        job->waiting->pull->step = 0;
    job->next_free = run->free_jobs;
    run->free_jobs = job;
    bool ok = event.code == SFC_OK;
    enum sfc_job_kind kind = job->kind;
    sfc_shard_feed(run, &event); /* may use the job again */
    if (ok && kind == SFC_JOB_COMMIT) {
        note_step(run);
        sfc_service_at(run->id, sfc_step_applied(&run->fsm));
        sfc_durability_applied(run);
    } else if (ok && kind == SFC_JOB_MAP) {
        forget_times(run); /* its blocks are others now */
        sfc_durability_mapped(run);
    }
}

/* The answer's memory, fresh when a reply of an older attempt still borrows it. */
static bool answer_ready(struct sfc_shared **shared)
{
    if ((*shared)->refs == 0)
        return true;
    struct sfc_shared *fresh = sfc_shared_new((*shared)->size);
    if (!fresh)
        return false;
    sfc_shared_drop(*shared);
    *shared = fresh;
    return true;
}

/* A job that can't run still takes its turn in the queue, as one that does nothing. */
static void refuse_job(struct sfc_run_job *job, int code)
{
    job->refused = code;
    job->compute.kind = SFC_COMPUTE_PULL;
    job->compute.u.pull.out = NULL;
}

static void start_plan(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    struct sfc_shard_run *run = job->run;
    size_t bytes = run->setup.head.batch * sizeof(uint64_t);
    const uint64_t *labels = sfc_step_labels(&run->fsm, a->step);
    job->labels = malloc(bytes);
    if (!job->labels || !labels) {
        refuse_job(job, SFC_ENOMEM);
        return;
    }
    memcpy(job->labels, labels, bytes);
    job->compute.kind = SFC_COMPUTE_PLAN;
    job->compute.u.plan.step = a->step;
    job->compute.u.plan.labels = job->labels;
    job->compute.u.plan.sampled = 0;
}

static void start_logits(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    struct sfc_answer *answer = job->answer;
    struct sfc_bytes features = job->waiting->tensor;
    if (!answer_ready(&answer->sums)) {
        refuse_job(job, SFC_ENOMEM);
        return;
    }
    sfc_digest_reset(answer->digest);
    sfc_digest_update(answer->digest, features.data, features.size);
    memcpy(answer->features, features.data, features.size);
    job->compute.kind = SFC_COMPUTE_LOGITS;
    job->compute.u.logits = (struct sfc_head_logits_item){
        .slot = a->slot,
        .micro_batch = a->j,
        .features = (const float *)(const void *)features.data,
        .exp_sum = answer->sums->data,
        .target_logit = answer->target,
        .has_target = answer->has_target,
    };
}

static void start_gradient(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    struct sfc_answer *answer = job->answer;
    struct sfc_bytes lse = job->waiting->tensor;
    if (!answer_ready(&answer->dx)) {
        refuse_job(job, SFC_ENOMEM);
        return;
    }
    sfc_digest_copy(job->run->scratch_digest, answer->digest);
    sfc_digest_update(job->run->scratch_digest, lse.data, lse.size);
    sfc_digest_final(job->run->scratch_digest, job->head_digest.bytes);
    memcpy(answer->lse, lse.data, lse.size);
    job->compute.kind = SFC_COMPUTE_GRADIENT;
    job->compute.u.gradient = (struct sfc_head_gradient_item){
        .slot = a->slot,
        .lse = (const double *)(const void *)lse.data,
        .dx = answer->dx->data,
    };
}

/* One copy of the parameters serves every PullDense of a step. */
static void start_pull(struct sfc_run_job *job)
{
    struct sfc_shard_run *run = job->run;
    struct sfc_shared *free_one = NULL;
    uint64_t mark = sfc_step_applied(&run->fsm) + 1; /* 0: holds nothing */
    job->compute.kind = SFC_COMPUTE_PULL;
    job->compute.u.pull.out = NULL;
    for (unsigned i = 0; i < SFC_RUN_PULL_COPIES; i++) {
        struct sfc_shared *p = run->dense.pulls[i];
        if (p->step == mark) { /* filled, or its job is ahead of this one */
            job->waiting->pull = p;
            p->refs++;
            return;
        }
        if (p->refs == 0)
            free_one = p;
    }
    if (!free_one) {
        refuse_job(job, SFC_EUNAVAILABLE);
        return;
    }
    free_one->step = mark;
    free_one->refs++;
    job->waiting->pull = free_one;
    job->compute.u.pull.out = free_one->data;
}

static void start_prepare(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    struct sfc_shard_run *run = job->run;
    memcpy(run->prepare_slots, a->slots, run->setup.micro_batches * sizeof *a->slots);
    job->compute.kind = SFC_COMPUTE_PREPARE;
    job->compute.u.prepare.slots = run->prepare_slots;
    job->compute.u.prepare.step = a->step;
    job->compute.u.prepare.lr = a->lr;
    job->compute.u.prepare.sums = run->dense.sums;
    job->compute.u.prepare.dense_sums = run->dense.dense_sums;
    job->compute.u.prepare.head_finite = false;
}

static void start_commit(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    struct sfc_shard_run *run = job->run;
    memcpy(run->commit_slots, a->slots, run->setup.micro_batches * sizeof *a->slots);
    job->compute.kind = SFC_COMPUTE_COMMIT;
    job->compute.u.commit.slots = run->commit_slots;
    job->compute.u.commit.clip_scale = a->clip_scale;
    job->compute.u.commit.lr = a->lr;
    job->compute.u.commit.step = a->step;
    job->compute.u.commit.apply = a->apply;
    sfc_durability_commit(run, a);
}

/* What the recorder hears of a job. PullDense names the step before the one that it is for. */
static void describe(struct sfc_run_job *job, const struct sfc_step_action *a)
{
    static const uint8_t phases[] = {
        [SFC_JOB_PLAN] = SFC_SPAN_PLAN,         [SFC_JOB_LOGITS] = SFC_SPAN_LOGITS,
        [SFC_JOB_GRADIENT] = SFC_SPAN_GRADIENT, [SFC_JOB_DENSE] = SFC_SPAN_PUSH,
        [SFC_JOB_PREPARE] = SFC_SPAN_PREPARE,   [SFC_JOB_COMMIT] = SFC_SPAN_COMMIT,
        [SFC_JOB_PULL] = SFC_SPAN_PULL,         [SFC_JOB_MAP] = 0};
    const struct sfc_run_setup *setup = &job->run->setup;
    bool whole = a->kind == SFC_JOB_PLAN || a->kind == SFC_JOB_PREPARE || a->kind == SFC_JOB_COMMIT;
    struct sfc_span *span = &job->compute.span;
    *span = (struct sfc_span){.phase = phases[a->kind],
                              .step = a->step,
                              .rows = whole ? setup->head.batch : setup->head.micro_batch,
                              .micro_batch = UINT32_MAX};
    if (whole || !job->waiting)
        return;
    span->step = job->waiting->step + (a->kind == SFC_JOB_PULL);
    span->bytes = job->waiting->tensor.size;
    if (a->kind == SFC_JOB_PULL)
        span->bytes = job->run->dense_floats * sizeof(float);
    else
        span->micro_batch = job->waiting->micro_batch;
}

static void start(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_run_job *job = run->free_jobs;
    run->free_jobs = job->next_free; /* as many as the machine can have running */
    job->id = a->job;
    job->kind = a->kind;
    job->refused = SFC_OK;
    job->waiting = waiting_of(a->token);
    job->answer = sfc_shard_answer(run, a->generation, a->slot);
    job->compute.done = job_done;
    job->compute.owner = job;
    describe(job, a);
    switch (a->kind) {
    case SFC_JOB_PLAN:
        start_plan(job, a);
        break;
    case SFC_JOB_LOGITS:
        start_logits(job, a);
        break;
    case SFC_JOB_GRADIENT:
        start_gradient(job, a);
        break;
    case SFC_JOB_DENSE:
        job->compute.kind = SFC_COMPUTE_PUSH;
        job->compute.u.push.slot = a->slot;
        job->compute.u.push.slice = (const float *)(const void *)job->waiting->tensor.data;
        break;
    case SFC_JOB_PREPARE:
        start_prepare(job, a);
        break;
    case SFC_JOB_COMMIT:
        start_commit(job, a);
        break;
    case SFC_JOB_PULL:
        start_pull(job);
        break;
    case SFC_JOB_MAP:
        sfc_set_map_start(run, &job->compute);
        break;
    }
    sfc_compute_submit(run->shard->compute, &job->compute);
}

/* ---- answers */

static void reply_logits(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                         struct sfc_answer *answer)
{
    uint64_t shape[2] = {run->setup.head.micro_batch, 4};
    struct sfc_tensor_type type;
    Shardfc__V1__LogitsReply reply = SHARDFC__V1__LOGITS_REPLY__INIT;
    reply.n_target_logit = run->setup.head.micro_batch;
    reply.target_logit = answer->target;
    reply.has_target = (ProtobufCBinaryData){run->setup.head.micro_batch, answer->has_target};
    reply.zero_features = answer->zero_features;
    reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_U64, shape, 2);
    sfc_call_reply_tensor(call, &reply, sfc_shared_borrow(answer->sums), sfc_shared_release,
                          answer->sums);
}

static void reply_gradient(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                           struct sfc_answer *answer)
{
    uint64_t shape[2] = {run->setup.head.micro_batch, run->setup.head.dim};
    struct sfc_tensor_type type;
    Shardfc__V1__GradientReply reply = SHARDFC__V1__GRADIENT_REPLY__INIT;
    reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_I64, shape, 2);
    sfc_call_reply_tensor(call, &reply, sfc_shared_borrow(answer->dx), sfc_shared_release,
                          answer->dx);
}

/* The waiting call's reference to the parameters goes to the reply. */
static void reply_pull(struct sfc_shard_run *run, struct sfc_waiting_call *w, uint64_t step)
{
    uint64_t shape[1] = {run->dense_floats};
    struct sfc_tensor_type type;
    struct sfc_shared *pull = w->pull;
    Shardfc__V1__PullDenseReply reply = SHARDFC__V1__PULL_DENSE_REPLY__INIT;
    reply.step = step;
    reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 1);
    w->pull = NULL;
    sfc_call_reply_tensor(w->call, &reply, (struct sfc_bytes){pull->data, pull->size},
                          sfc_shared_release, pull);
}

static void reply(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_waiting_call *w = waiting_of(a->token);
    struct sfc_answer *answer = sfc_shard_answer(run, a->generation, a->slot);
    switch (w->type) {
    case SFC_SE_LOGITS:
        reply_logits(run, w->call, answer);
        break;
    case SFC_SE_GRADIENT:
        reply_gradient(run, w->call, answer);
        break;
    case SFC_SE_PULL:
        reply_pull(run, w, a->step);
        break;
    case SFC_SE_PLAN: {
        Shardfc__V1__PlanReply m = SHARDFC__V1__PLAN_REPLY__INIT;
        m.sampled = run->sampled;
        sfc_call_reply(w->call, &m);
        break;
    }
    case SFC_SE_COMMIT: {
        Shardfc__V1__CommitReply m = SHARDFC__V1__COMMIT_REPLY__INIT;
        m.step = a->step;
        sfc_call_reply(w->call, &m);
        break;
    }
    case SFC_SE_DENSE: {
        Shardfc__V1__PushDenseReply m = SHARDFC__V1__PUSH_DENSE_REPLY__INIT;
        sfc_call_reply(w->call, &m);
        break;
    }
    default: {
        Shardfc__V1__Empty m = SHARDFC__V1__EMPTY__INIT;
        sfc_call_reply(w->call, &m);
        break;
    }
    }
    waiting_remove(w);
}

static void reply_prepare(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_waiting_call *w = waiting_of(a->token);
    size_t n = a->ready && a->sums ? run->dense_count : 0;
    Shardfc__V1__DenseSum *sums = calloc(n ? n : 1, sizeof *sums);
    Shardfc__V1__DenseSum **list = calloc(n ? n : 1, sizeof(Shardfc__V1__DenseSum *));
    uint32_t *missing = calloc(a->missing_count ? a->missing_count : 1, sizeof *missing);
    if (sums && list && missing) {
        Shardfc__V1__PrepareReply m = SHARDFC__V1__PREPARE_REPLY__INIT;
        for (size_t i = 0; i < n; i++) {
            shardfc__v1__dense_sum__init(&sums[i]);
            sums[i].block = (uint32_t)run->dense_blocks[i];
            sums[i].sum_of_squares = a->sums[i].sum_of_squares;
            sums[i].finite = a->sums[i].finite;
            list[i] = &sums[i];
        }
        if (a->missing_count)
            memcpy(missing, a->missing, a->missing_count * sizeof *missing);
        m.ready = a->ready;
        m.head_finite = a->head_finite;
        m.n_dense = n;
        m.dense = list;
        m.n_missing = a->missing_count;
        m.missing = missing;
        sfc_call_reply(w->call, &m);
    } else {
        sfc_shard_refuse(run->shard, w->call, SFC_EUNAVAILABLE, "no memory for the answer");
    }
    free(sums);
    free(list);
    free(missing);
    waiting_remove(w);
}

static void fail(struct sfc_shard_run *run, const struct sfc_step_action *a)
{
    struct sfc_waiting_call *w = waiting_of(a->token);
    if (w->pull)
        sfc_shared_release(w->pull);
    sfc_shard_refuse(run->shard, w->call, a->code, a->text);
    waiting_remove(w);
}

static void perform(struct sfc_shard_run *run)
{
    const struct sfc_step_action *flush = NULL;
    for (size_t i = 0; i < run->actions.count; i++) {
        const struct sfc_step_action *a = &run->actions.items[i];
        switch (a->type) {
        case SFC_SA_START:
            start(run, a);
            break;
        case SFC_SA_REPLY:
            reply(run, a);
            break;
        case SFC_SA_FLUSH:
            flush = a;
            break;
        case SFC_SA_REPLY_PREPARE:
            reply_prepare(run, a);
            break;
        case SFC_SA_FAIL:
            fail(run, a);
            break;
        }
    }
    if (flush) /* may bring the next event, which empties the actions */
        sfc_durability_flush(run, flush);
}

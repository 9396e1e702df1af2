/* Life of a run on a shard: open within the memory limit, close when nothing uses it any more. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/buffer.h"
#include "proto/base/log.h"
#include "proto/run_config.h"
#include "server/run/growths.h"
#include "server/shard/shard_internal.h"

/* ---- shared memory of replies */

struct sfc_shared *sfc_shared_new(size_t size)
{
    struct sfc_shared *shared = calloc(1, sizeof *shared);
    if (!shared)
        return NULL;
    shared->data = sfc_buffer_new(size);
    if (!shared->data) {
        free(shared);
        return NULL;
    }
    memset(shared->data, 0, size);
    shared->size = size;
    return shared;
}

static void shared_free(struct sfc_shared *shared)
{
    free(shared->data);
    free(shared);
}

void sfc_shared_drop(struct sfc_shared *shared)
{
    if (!shared)
        return;
    shared->orphan = true;
    if (shared->refs == 0)
        shared_free(shared);
}

struct sfc_bytes sfc_shared_borrow(struct sfc_shared *shared)
{
    shared->refs++;
    return (struct sfc_bytes){shared->data, shared->size};
}

void sfc_shared_release(void *ctx)
{
    struct sfc_shared *shared = ctx;
    shared->refs--;
    if (shared->orphan && shared->refs == 0)
        shared_free(shared);
}

/* ---- memory of a run */

static void answers_free(struct sfc_shard_run *run)
{
    for (size_t i = 0; run->answers && i < 2 * (size_t)run->setup.slots; i++) {
        sfc_shared_drop(run->answers[i].sums);
        sfc_shared_drop(run->answers[i].dx);
        free(run->answers[i].target);
        free(run->answers[i].has_target);
        sfc_digest_free(run->answers[i].digest);
        free(run->answers[i].features);
        free(run->answers[i].lse);
    }
    free(run->answers);
}

/* What a shard that ends had to refuse says nothing about the run: its peer asks again later. */
static void refuse_closed(struct sfc_shard *shard, struct sfc_rpc_call *call)
{
    if (shard->stopping)
        sfc_shard_refuse(shard, call, SFC_EUNAVAILABLE, "this shard is shutting down");
    else
        sfc_shard_refuse(shard, call, SFC_ESTALE, "the run was closed");
}

static void run_free(struct sfc_shard_run *run)
{
    if (!run)
        return;
    struct sfc_waiting_call *w = run->waiting;
    while (w) {
        struct sfc_waiting_call *next = w->next;
        if (w->pull)
            sfc_shared_release(w->pull);
        refuse_closed(run->shard, w->call);
        free(w);
        w = next;
    }
    sfc_set_map_free(run);
    sfc_move_free(run);
    sfc_mirror_free(run);
    sfc_history_free(run);
    sfc_copies_free(run);
    sfc_durability_free(run);
    answers_free(run);
    sfc_run_buffers_swap(run, &(struct sfc_run_buffers){0});
    sfc_shard_places_free(run);
    sfc_step_actions_free(&run->actions);
    sfc_step_free(&run->fsm);
    sfc_run_setup_close(&run->setup);
    sfc_digest_free(run->scratch_digest);
    free(run->jobs);
    free(run->prepare_slots);
    free(run->commit_slots);
    free(run->prefetch_labels);
    free(run->class_blocks);
    free(run->dense_blocks);
    sfc_shard_mirrored_free(&run->mirrored);
    free(run);
}

static int answers_new(struct sfc_shard_run *run)
{
    size_t rows = run->setup.head.micro_batch, count = 2 * (size_t)run->setup.slots;
    run->answers = calloc(count, sizeof *run->answers);
    if (!run->answers)
        return SFC_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct sfc_answer *a = &run->answers[i];
        a->sums = sfc_shared_new(rows * 32);
        a->dx = sfc_shared_new(rows * run->setup.head.dim * sizeof(int64_t));
        a->target = calloc(rows, sizeof *a->target);
        a->has_target = calloc(rows, 1);
        a->digest = sfc_digest_new();
        a->features = calloc(rows * run->setup.head.dim, sizeof *a->features);
        a->lse = calloc(rows, sizeof *a->lse);
        if (!a->sums || !a->dx || !a->target || !a->has_target || !a->digest || !a->features ||
            !a->lse)
            return SFC_ENOMEM;
    }
    return SFC_OK;
}

static int jobs_new(struct sfc_shard_run *run)
{
    size_t count = run->fsm.job_capacity;
    run->jobs = calloc(count, sizeof *run->jobs);
    if (!run->jobs)
        return SFC_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        run->jobs[i].run = run;
        run->jobs[i].next_free = run->free_jobs;
        run->free_jobs = &run->jobs[i];
    }
    return SFC_OK;
}

static int buffers_new(struct sfc_shard_run *run, struct sfc_error *err)
{
    size_t micro_batches = run->setup.micro_batches;
    const struct sfc_shard_blocks own = {run->class_blocks, run->dense_blocks, run->class_count,
                                         run->dense_count};
    struct sfc_run_buffers buffers = {0};
    run->prepare_slots = calloc(micro_batches, sizeof *run->prepare_slots);
    run->commit_slots = calloc(micro_batches, sizeof *run->commit_slots);
    run->scratch_digest = sfc_digest_new();
    run->prefetch_labels = calloc(run->setup.head.batch, sizeof *run->prefetch_labels);
    bool dense = sfc_run_buffers_new(run, &own, run->mirrored.pushed, &buffers, err) == SFC_OK;
    if (dense)
        sfc_run_buffers_swap(run, &buffers);
    if (!run->prepare_slots || !run->commit_slots || !run->scratch_digest ||
        !run->prefetch_labels || !dense || answers_new(run) != SFC_OK || jobs_new(run) != SFC_OK)
        return sfc_fail(err, SFC_ENOMEM, "buffers of run %" PRIu64, run->id);
    return SFC_OK;
}

/* ---- open */

static int take_map(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                    struct sfc_error *err)
{
    struct sfc_shard_blocks own = {0};
    int code = sfc_shard_blocks_of(&run->setup, r->map, r->self, &own, err);
    if (code == SFC_OK && own.class_count == 0 && !r->join && !r->recover)
        code = sfc_fail(err, SFC_EINVAL, "the map gives this shard no class block");
    if (code == SFC_OK && own.class_count + own.dense_count > 0 && r->join)
        code = sfc_fail(err, SFC_EINVAL, "join: the map gives this shard blocks already");
    if (code == SFC_OK)
        code = sfc_shard_mirrored_of(run, r->map, r->self, &own, &run->mirrored, err);
    if (code == SFC_OK)
        code = sfc_shard_take_places(run, r->map, err);
    if (code != SFC_OK) {
        sfc_shard_blocks_free(&own);
        return code;
    }
    run->class_blocks = own.class_blocks;
    run->dense_blocks = own.dense_blocks;
    run->class_count = own.class_count;
    run->dense_count = own.dense_count;
    run->dense_floats = sfc_run_dense_floats(&run->setup, run->dense_blocks, run->dense_count);
    run->self = r->self;
    run->map_version = r->map->version;
    return SFC_OK;
}

static int machine_new(struct sfc_shard_run *run, const Shardfc__V1__OpenRunRequest *r,
                       struct sfc_error *err)
{
    struct sfc_step_config c = {
        .run_id = r->run_id,
        .incarnation = r->incarnation,
        .map_version = r->map->version,
        .start_step = run->start_step,
        .joins = r->join,
        .round = r->round ? (struct sfc_attempt){r->round->incarnation, r->round->counter}
                          : (struct sfc_attempt){0, 0},
        .global_batch = run->setup.head.batch,
        .micro_batch = run->setup.head.micro_batch,
        .slots = run->setup.slots,
        .dense_blocks = (uint32_t)run->mirrored.pushed.count,
    };
    int code = sfc_step_init(&run->fsm, &c, err);
    if (code == SFC_OK)
        code = sfc_step_actions_init(&run->actions, &run->fsm, err);
    return code;
}

/* From the seed to the end of the run, and what the last commit did is a possible step. */
static int check_steps(const Shardfc__V1__OpenRunRequest *r, struct sfc_error *err)
{
    const Shardfc__V1__CommitRecord *c = r->recover || r->join ? r->last_commit : NULL;
    if (r->join && (r->recover || r->load))
        return sfc_fail(err, SFC_EINVAL, "join: not with recover or load");
    if (r->start_step > r->config->steps)
        return sfc_fail(err, SFC_EINVAL, "start_step: %" PRIu64 ", the run has %" PRIu64 " steps",
                        r->start_step, r->config->steps);
    if (c && (c->step < r->start_step || c->step > r->config->steps))
        return sfc_fail(err, SFC_EINVAL,
                        "last_commit.step: %" PRIu64 " is not within %" PRIu64 "..%" PRIu64,
                        c->step, r->start_step, r->config->steps);
    if (c && !(c->clip_scale >= 0 && c->clip_scale <= 1))
        return sfc_fail(err, SFC_EINVAL, "last_commit.clip_scale: %g is not within 0..1",
                        c->clip_scale);
    if (c && !(c->lr >= 0 && isfinite(c->lr)))
        return sfc_fail(err, SFC_EINVAL, "last_commit.lr: %g is not a learning rate", c->lr);
    return SFC_OK;
}

/* What can be said of the call without anything allocated. */
static int check_request(const Shardfc__V1__OpenRunRequest *r, struct sfc_error *err)
{
    if (r->run_id == 0 || !r->config || !r->map)
        return sfc_fail(err, SFC_EINVAL, "run_id, config and map must be given");
    int code = sfc_run_config_check(r->config, err);
    struct sfc_lineage returns;
    if (code == SFC_OK)
        code = sfc_durability_take_returns(r, &returns, err);
    return code == SFC_OK ? check_steps(r, err) : code;
}

static int run_new(struct sfc_shard *shard, const Shardfc__V1__OpenRunRequest *r,
                   struct sfc_shard_run **out, struct sfc_error *err)
{
    struct sfc_shard_run *run = calloc(1, sizeof *run);
    if (!run)
        return sfc_fail(err, SFC_ENOMEM, "open run");
    run->shard = shard;
    run->id = r->run_id;
    run->nonce = r->nonce;
    run->load = r->load;
    run->joins = r->join;
    run->start_step =
        (r->recover || r->join) && r->last_commit ? r->last_commit->step : r->start_step;
    int code = sfc_run_setup_init(&run->setup, r->config, err);
    if (code == SFC_OK)
        code = sfc_run_setup_grow(&run->setup, r->map, err);
    if (code == SFC_OK)
        code = sfc_head_check(sfc_compute_backend(shard->compute), &run->setup.head, err);
    if (code == SFC_OK)
        code = take_map(run, r, err);
    if (code == SFC_OK)
        code = sfc_shard_check_memory(run, err);
    if (code == SFC_OK)
        code = machine_new(run, r, err);
    if (code == SFC_OK)
        code = buffers_new(run, err);
    if (code == SFC_OK)
        code = sfc_durability_init(run, r, err);
    if (code == SFC_OK)
        *out = run;
    else
        run_free(run);
    return code;
}

static void reply_open(struct sfc_shard_run *run, struct sfc_rpc_call *call)
{
    Shardfc__V1__OpenRunReply reply = SHARDFC__V1__OPEN_RUN_REPLY__INIT;
    sfc_step_opened(&run->fsm);
    reply.memory_bytes = run->resident;
    reply.step = sfc_step_applied(&run->fsm);
    reply.fetched_steps = run->durability.recovery.fetched;
    reply.damage = run->durability.recovery.damage;
    sfc_call_reply(call, &reply);
    run->durability.recovery.fetched = 0; /* told: OpenRun may come again */
}

/* The blocks are allocated, and what is on disk of them is in place. */
static void ready(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_rpc_call *call = run->open_call;
    run->open_call = NULL;
    if (code != SFC_OK) {
        sfc_error_log("run %" PRIu64 ": %s", run->id, text);
        sfc_shard_refuse(run->shard, call, code, text);
        sfc_shard_close_run(run->shard, NULL, false);
        return;
    }
    run->open = true;
    sfc_info_log("run %" PRIu64 ": blocks are ready at step %" PRIu64, run->id, run->start_step);
    reply_open(run, call);
}

/* A shard that joins has not seen the learning rates of before. */
static void storage_ready(struct sfc_shard_run *run, int code, const char *text)
{
    bool history = run->joins && run->setup.head.momentum_mode == SFC_MOMENTUM_DENSE;
    if (code == SFC_OK && history)
        sfc_history_fetch(run, false, 0, ready);
    else
        ready(run, code, text);
}

static void opened(struct sfc_compute_job *job)
{
    struct sfc_shard_run *run = job->owner;
    if (run->closed) /* its close job follows and frees it */
        return;
    sfc_lap_end(&run->open_lap, SFC_SPAN_OPEN, 0);
    if (job->code != SFC_OK)
        ready(run, job->code, job->error.text);
    else
        sfc_durability_open(run, storage_ready);
}

static void answer_here(struct sfc_shard_run *run, int code, const char *text)
{
    struct sfc_rpc_call *call = run->open_call;
    run->open_call = NULL;
    if (call && code != SFC_OK)
        sfc_shard_refuse(run->shard, call, code, text);
    else if (call)
        reply_open(run, call);
}

/* The run is here already: the scheduler asks again. */
static void open_again(struct sfc_shard_run *run, struct sfc_rpc_call *call)
{
    if (!run->open) {
        sfc_rpc_fail(call, SFC_EUNAVAILABLE, "the run is being opened");
        return;
    }
    if (run->open_call)
        sfc_rpc_fail(run->open_call, SFC_EUNAVAILABLE, "asked again");
    run->open_call = call;
    sfc_durability_make_durable(run, answer_here);
}

static int stale(struct sfc_attempt round, struct sfc_attempt present, struct sfc_error *err)
{
    return sfc_fail(err, SFC_ESTALE,
                    "round: %" PRIu64 ".%" PRIu64 " is over, the present one is %" PRIu64
                    ".%" PRIu64,
                    round.incarnation, round.counter, present.incarnation, present.counter);
}

static struct sfc_attempt round_of(const Shardfc__V1__OpenRunRequest *r)
{
    return r->round ? (struct sfc_attempt){r->round->incarnation, r->round->counter}
                    : (struct sfc_attempt){0, 0};
}

/* A shard that writes nothing has nothing to come back from. That the disk of another leads back
 * CheckRewind has looked at, or it is the last durable step. */
static int check_way_back(const struct sfc_shard_run *run, uint64_t step, struct sfc_error *err)
{
    uint64_t applied = sfc_step_applied(&run->fsm);
    if (!run->durability.on)
        return sfc_durability_may_go_back(run, step, err);
    sfc_info_log("run %" PRIu64 ": goes from step %" PRIu64 " to step %" PRIu64, run->id, applied,
                 step);
    return SFC_OK;
}

/* The run is here. True: the call was answered; false: it is opened anew. */
static bool keep_open(struct sfc_shard *shard, struct sfc_rpc_call *call,
                      const Shardfc__V1__OpenRunRequest *r)
{
    struct sfc_shard_run *run = shard->run;
    struct sfc_error err = {0};
    struct sfc_attempt newest = sfc_step_newest_round(&run->fsm);
    uint64_t step = r->last_commit ? r->last_commit->step : r->start_step;
    uint64_t map_version = r->map ? r->map->version : 0;
    enum sfc_step_open way =
        sfc_step_opens_map(&run->fsm, round_of(r), r->recover, step, map_version);
    int code = SFC_OK;
    if (way == SFC_STEP_OPEN_STALE) {
        code = stale(round_of(r), newest, &err);
    } else if (run->open && way == SFC_STEP_OPEN_ANSWERED) {
        sfc_move_pass(run, r->incarnation);
        reply_open(run, call);
        return true;
    } else if (!run->open || (way == SFC_STEP_OPEN_HERE && !sfc_durability_lost(run))) {
        sfc_move_pass(run, r->incarnation);
        open_again(run, call);
        return true;
    } else {
        code = check_way_back(run, step, &err);
    }
    if (code != SFC_OK)
        sfc_shard_refuse(shard, call, code, err.text);
    return code != SFC_OK;
}

/* What is open here is no part of what the scheduler means: its state is another than the one that
 * this shard's run is of. Nobody but a person knows that it isn't needed any more. */
static int check_ours(const struct sfc_shard *shard, const Shardfc__V1__OpenRunRequest *r,
                      struct sfc_error *err)
{
    const struct sfc_shard_run *run = shard->run;
    if (run && run->id > r->run_id)
        return sfc_fail(err, SFC_ESTALE,
                        "run %" PRIu64 " is open here, a newer one than run %" PRIu64
                        ", or of a scheduler state that is gone: then start this shard again, with "
                        "an empty --state folder",
                        run->id, r->run_id);
    if (run && run->id == r->run_id && run->nonce != r->nonce)
        return sfc_fail(err, SFC_ESTALE,
                        "what is open here belongs to another run %" PRIu64
                        ", of another cluster or of a scheduler state that is gone (nonce "
                        "%016" PRIx64 ", this run has %016" PRIx64
                        "): start this shard again, with an empty --state folder",
                        run->id, run->nonce, r->nonce);
    return SFC_OK;
}

/* Of before the OpenRun that closed the run: it was on its way meanwhile. */
static int check_left(const struct sfc_shard *shard, const Shardfc__V1__OpenRunRequest *r,
                      struct sfc_error *err)
{
    bool late =
        shard->left_run == r->run_id && sfc_attempt_compare(round_of(r), shard->left_round) < 0;
    return late ? stale(round_of(r), shard->left_round, err) : SFC_OK;
}

/* A new run measures what the kernels need, on the threads that the jobs of the old one still use:
 * it waits for their end. */
static int check_closed(const struct sfc_shard *shard, struct sfc_error *err)
{
    return shard->closing == 0 ? SFC_OK
                               : sfc_fail(err, SFC_EUNAVAILABLE,
                                          "this shard is closing what it had open, ask again");
}

void sfc_shard_open_run(struct sfc_shard *shard, struct sfc_rpc_call *call,
                        const Shardfc__V1__OpenRunRequest *request)
{
    struct sfc_error err = {0};
    if (check_ours(shard, request, &err) != SFC_OK) {
        sfc_shard_refuse(shard, call, err.code, err.text);
        return;
    }
    if (shard->run && shard->run->id == request->run_id && keep_open(shard, call, request))
        return;
    struct sfc_shard_run *run = NULL;
    int code = check_request(request, &err);
    if (code == SFC_OK)
        code = check_left(shard, request, &err);
    if (code == SFC_OK && shard->last_closed >= request->run_id)
        shard->last_closed = request->run_id - 1; /* it takes part again */
    if (code == SFC_OK && shard->run) {
        shard->left_run = request->run_id;
        shard->left_round = round_of(request);
        sfc_shard_close_run(shard, NULL, false);
    }
    if (code == SFC_OK)
        code = check_closed(shard, &err);
    if (code == SFC_OK)
        sfc_service_at(request->run_id, request->start_step);
    if (code == SFC_OK)
        code = run_new(shard, request, &run, &err);
    if (code == SFC_EUNAVAILABLE) {
        sfc_shard_refuse(shard, call, code, err.text);
        return;
    }
    if (code != SFC_OK) {
        sfc_error_log("open run %" PRIu64 ": %s", request->run_id, err.text);
        sfc_shard_refuse(shard, call, code, err.text);
        return;
    }
    shard->run = run;
    sfc_spans_forget(shard->spans); /* of another run, or of steps that this one gave up */
    run->open_lap = sfc_shard_lap(run, SFC_THREAD_COMPUTE, run->start_step + 1);
    sfc_rpc_server_set_run(shard->server, request->config->name);
    run->open_call = call;
    run->open_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_OPEN, .done = opened, .owner = run};
    run->open_job.u.open.setup = &run->setup;
    run->open_job.u.open.class_blocks = run->class_blocks;
    run->open_job.u.open.class_count = run->class_count;
    run->open_job.u.open.dense_blocks = run->dense_blocks;
    run->open_job.u.open.dense_count = run->dense_count;
    run->open_job.u.open.mirrored =
        (struct sfc_dense_set){run->mirrored.blocks.dense_blocks, run->mirrored.blocks.dense_count};
    sfc_compute_submit(shard->compute, &run->open_job);
}

static void files_closed(struct sfc_shard_run *run)
{
    if (run->close_call) {
        Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
        sfc_call_reply(run->close_call, &reply);
    }
    sfc_info_log("run %" PRIu64 ": closed", run->id);
    run->shard->closing--;
    run_free(run); /* every earlier job is done: jobs finish in order */
}

static void closed(struct sfc_compute_job *job)
{
    sfc_durability_close(job->owner, files_closed);
}

void sfc_shard_close_run(struct sfc_shard *shard, struct sfc_rpc_call *call, bool remove)
{
    struct sfc_shard_run *run = shard->run;
    if (!run) {
        if (call) {
            Shardfc__V1__Empty reply = SHARDFC__V1__EMPTY__INIT;
            sfc_call_reply(call, &reply);
        }
        return;
    }
    shard->run = NULL;
    sfc_rpc_server_set_run(shard->server, NULL);
    if (remove) /* otherwise it comes back, or a newer one is here */
        shard->last_closed = run->id;
    run->closed = true;
    shard->closing++;
    run->close_call = call;
    run->durability.remove = remove;
    sfc_mirror_abandon(run);
    sfc_durability_abandon(run);
    sfc_move_abandon(run);
    if (run->open_call)
        sfc_shard_refuse(shard, run->open_call, SFC_ECANCELED, "the run was closed");
    run->open_call = NULL;
    run->close_job =
        (struct sfc_compute_job){.kind = SFC_COMPUTE_CLOSE, .done = closed, .owner = run};
    sfc_compute_submit(shard->compute, &run->close_job);
}

/* Answers ReadStep: head inputs of a committed step from this shard's log, for one that lost them.
 * The log thread is not asked: where the record is comes from the log's index under its lock, and
 * the snapshot thread reads it, so no step waits for it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/run/step_inputs.h"
#include "server/shard/shard_internal.h"

#define MAX_READS 8u /* waiting for the thread at a time */

struct step_read {
    struct sfc_task task;
    struct sfc_shard *shard;
    struct sfc_shard_run *run;
    struct sfc_rpc_call *call;
    uint64_t step;
    struct sfc_attempt round;
    bool has_round;
    uint32_t first, rows;
    struct sfc_step_shape shape;
    /* from the thread */
    struct sfc_log_commit commit; /* before: the one that the log may not have yet, if of `step` */
    uint64_t *labels;             /* [rows] */
    double *lse;                  /* [rows] */
    struct sfc_attempt *attempts; /* [micro-batches] */
    struct sfc_shared *features;  /* [rows, dim] */
    uint8_t digest[SFC_DIGEST_SIZE];
};

static void read_free(struct step_read *r)
{
    free(r->labels);
    free(r->lse);
    free(r->attempts);
    sfc_shared_drop(r->features);
    free(r);
}

static struct sfc_step_shape shape_of(const struct sfc_shard_run *run)
{
    const struct sfc_head_config *c = &run->setup.head;
    return (struct sfc_step_shape){c->batch, c->micro_batch, c->dim, c->classes};
}

/* ---- on the snapshot thread */

static int take(struct step_read *r, const struct sfc_log_prepare_view *v, struct sfc_error *err)
{
    struct sfc_step_shape shape = r->shape;
    struct sfc_step_inputs inputs = {v->labels, v->features, v->attempts, v->lse};
    struct sfc_digest *digest = sfc_digest_new();
    if (!digest)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a step of the log");
    sfc_step_inputs_digest(&shape, &inputs, digest, r->digest);
    sfc_digest_free(digest);
    size_t dim = shape.dim;
    memcpy(r->labels, v->labels + r->first, r->rows * sizeof *r->labels);
    memcpy(r->lse, v->lse + r->first, r->rows * sizeof *r->lse);
    memcpy(r->attempts, v->attempts, r->run->setup.micro_batches * sizeof *r->attempts);
    memcpy(r->features->data, v->features + r->first * dim, r->rows * dim * sizeof(float));
    return SFC_OK;
}

static int read_work(struct sfc_task *task, struct sfc_error *err)
{
    struct step_read *r = task->owner;
    struct sfc_storage *s = &r->run->durability.storage;
    struct sfc_log_place_of place;
    struct sfc_log_prepare_view view;
    int code =
        sfc_storage_find_step(s, r->step, r->has_round ? &r->round : NULL, &r->commit, &place, err);
    if (code != SFC_OK || !r->commit.apply)
        return code;
    struct sfc_log_body body = {0};
    code = sfc_step_log_read_at(s->snapshot_folder, &s->shape, &place, &body, &view, err);
    if (code == SFC_OK)
        code = take(r, &view, err);
    sfc_log_body_free(&body);
    return code;
}

/* ---- on the loop thread */

static void reply_step(struct step_read *r)
{
    uint64_t dims[] = {r->rows, r->run->setup.head.dim};
    size_t count = r->commit.apply ? r->run->setup.micro_batches : 0;
    struct sfc_tensor_type type;
    Shardfc__V1__ReadStepReply reply = SHARDFC__V1__READ_STEP_REPLY__INIT;
    Shardfc__V1__Attempt round = SHARDFC__V1__ATTEMPT__INIT;
    Shardfc__V1__Attempt *items = calloc(count ? count : 1, sizeof *items);
    Shardfc__V1__Attempt **list = calloc(count ? count : 1, sizeof *list);
    if (!items || !list) {
        sfc_shard_refuse(r->shard, r->call, SFC_ENOMEM, "no memory for the answer");
        free(items);
        free(list);
        return;
    }
    round.incarnation = r->commit.round.incarnation;
    round.counter = r->commit.round.counter;
    reply.round = &round;
    reply.lr = r->commit.lr;
    reply.clip_scale = r->commit.clip_scale;
    reply.apply = r->commit.apply;
    for (size_t j = 0; j < count; j++) {
        shardfc__v1__attempt__init(&items[j]);
        items[j].incarnation = r->attempts[j].incarnation;
        items[j].counter = r->attempts[j].counter;
        list[j] = &items[j];
    }
    reply.attempts = list;
    reply.n_attempts = count;
    if (r->commit.apply) {
        reply.labels = r->labels;
        reply.lse = r->lse;
        reply.n_labels = reply.n_lse = r->rows;
        reply.digest = (ProtobufCBinaryData){sizeof r->digest, r->digest};
        reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, dims, 2);
        sfc_call_reply_tensor(r->call, &reply, sfc_shared_borrow(r->features), sfc_shared_release,
                              r->features);
    } else {
        sfc_call_reply(r->call, &reply);
    }
    free(items);
    free(list);
}

static void read_done(struct sfc_task *task)
{
    struct step_read *r = task->owner;
    r->shard->steps_in_flight--;
    if (task->code == SFC_OK)
        reply_step(r);
    else
        sfc_shard_refuse(r->shard, r->call, task->code, task->error.text);
    read_free(r);
}

static struct step_read *read_new(struct sfc_shard_run *run,
                                  const Shardfc__V1__ReadStepRequest *request)
{
    struct step_read *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    uint32_t rows = request->rows;
    *r = (struct step_read){.shard = run->shard,
                            .run = run,
                            .shape = shape_of(run),
                            .step = request->step,
                            .has_round = request->round,
                            .first = request->first_row,
                            .rows = rows,
                            .commit = run->durability.newest};
    if (request->round)
        r->round = (struct sfc_attempt){request->round->incarnation, request->round->counter};
    r->labels = calloc(rows, sizeof *r->labels);
    r->lse = calloc(rows, sizeof *r->lse);
    r->attempts = calloc(run->setup.micro_batches, sizeof *r->attempts);
    r->features = sfc_shared_new((size_t)rows * run->setup.head.dim * sizeof(float));
    if (!r->labels || !r->lse || !r->attempts || !r->features) {
        read_free(r);
        return NULL;
    }
    r->task = (struct sfc_task){.work = read_work, .done = read_done, .owner = r};
    return r;
}

/* The step that is committed here for certain. */
static uint64_t committed(const struct sfc_shard_run *run)
{
    const struct sfc_durability *d = &run->durability;
    uint64_t applied = run->open ? sfc_step_applied(&run->fsm) : d->recovery.last.step;
    return d->newest.step > applied ? d->newest.step : applied;
}

static int check(const struct sfc_shard *shard, const Shardfc__V1__ReadStepRequest *r,
                 struct sfc_error *err)
{
    const struct sfc_shard_run *run = shard->run;
    if (!run || run->id != r->run_id || (!run->open && !run->durability.recovers))
        return sfc_fail(err, SFC_EUNAVAILABLE, "run %" PRIu64 " is not open here now", r->run_id);
    if (!run->durability.on)
        return sfc_fail(err, SFC_EUNSUPPORTED, "this shard runs with --durable off");
    struct sfc_step_shape shape = shape_of(run);
    if (r->step == 0)
        return sfc_fail(err, SFC_EINVAL, "step: 0 has no inputs");
    if (r->first_row >= shape.batch || r->rows == 0 || r->rows > shape.batch - r->first_row)
        return sfc_fail(err, SFC_EINVAL, "rows: %u from row %u on, a step has %u", r->rows,
                        r->first_row, shape.batch);
    if (r->rows > sfc_step_piece_rows(&shape))
        return sfc_fail(err, SFC_ELIMIT, "rows: %u; at most %u at a time", r->rows,
                        sfc_step_piece_rows(&shape));
    if (r->step > committed(run))
        return sfc_fail(err, SFC_EUNAVAILABLE, "step %" PRIu64 " is not committed here yet",
                        r->step);
    if (shard->steps_in_flight >= MAX_READS)
        return sfc_fail(err, SFC_EUNAVAILABLE, "too many steps are read at a time; try again");
    return SFC_OK;
}

void sfc_shard_read_step(struct sfc_rpc_call *call, void *ctx)
{
    struct sfc_shard *shard = ctx;
    struct sfc_error err = {0};
    struct step_read *read = NULL;
    Shardfc__V1__ReadStepRequest *request =
        sfc_call_unpack(call, &shardfc__v1__read_step_request__descriptor);
    if (!request) {
        shard->refused[SFC_EINVAL]++;
        return;
    }
    int code = check(shard, request, &err);
    if (code == SFC_OK && !(read = read_new(shard->run, request)))
        code = sfc_fail(&err, SFC_ENOMEM, "no memory for the answer");
    sfc_message_free(request);
    if (code != SFC_OK) {
        sfc_shard_refuse(shard, call, code, err.text);
        return;
    }
    read->call = call;
    shard->steps_in_flight++;
    sfc_tasks_submit(shard->snapshot_thread, &read->task);
}

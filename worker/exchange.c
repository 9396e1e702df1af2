/* The calls of one attempt that carry tensors: head exchange with all shards, dense gradients and
 * parameters. */
#include <stdlib.h>
#include <string.h>

#include "proto/base/digest.h"
#include "proto/tensor.h"
#include "worker/client.h"
#include "worker/head_exchange.h"

#define SHARD          "/shardfc.v1.Shard/"
#define TENSOR_MS      60000u
#define TENSOR_RETRIES 4u

struct sfc_exchange {
    uint32_t rows, dim;
    size_t places;                   /* of a block map, for which there is room */
    double *lse;                     /* [rows] */
    float *target;                   /* [rows] */
    int64_t *dx;                     /* [rows, dim], sum over shards */
    int64_t *dx_part;                /* [rows, dim], a reply that is not aligned */
    struct sfc_sum256 *sums;         /* [places, rows] */
    struct sfc_logits_part *parts;   /* [places]; of the shards that are there, one after another */
    struct sfc_answer *answers;      /* [places] */
    struct sfc_rpc_future **futures; /* [places]; NULL = not started */
    struct sfc_lap *lap;             /* NULL: nothing is recorded */
    size_t dense_room;               /* floats */
    float *dense;                    /* [dense_room], slices ordered by shard */
};

/* A reply's tensor: what is wrong with it is the peer's fault, so SFC_ECORRUPT. columns 0: one
 * dimension. */
static int check_tensor(const Shardfc__V1__TensorType *type, struct sfc_bytes tensor,
                        Shardfc__V1__DType dtype, uint64_t rows, uint64_t columns, const char *what,
                        struct sfc_error *err)
{
    const uint64_t shape[2] = {rows, columns};
    if (sfc_tensor_check(type, tensor, dtype, shape, columns ? 2 : 1, what, err) == SFC_OK)
        return SFC_OK;
    if (err)
        err->code = SFC_ECORRUPT;
    return SFC_ECORRUPT;
}

void sfc_record_exchange(struct sfc_exchange *x, struct sfc_lap *lap)
{
    x->lap = lap;
}

void sfc_exchange_free(struct sfc_exchange *x)
{
    if (!x)
        return;
    free(x->lse);
    free(x->target);
    free(x->dx);
    free(x->dx_part);
    free(x->sums);
    free(x->parts);
    free(x->answers);
    free(x->futures);
    free(x->dense);
    free(x);
}

/* With mirrors slices go to several shards. */
static int fit_dense(struct sfc_exchange *x, const struct sfc_route *route, struct sfc_error *err)
{
    if (x->dense && route->push_floats <= x->dense_room)
        return SFC_OK;
    free(x->dense);
    x->dense = calloc(route->push_floats + 1, sizeof *x->dense);
    x->dense_room = x->dense ? route->push_floats : 0;
    return x->dense ? SFC_OK
                    : sfc_fail(err, SFC_ENOMEM, "out of memory for the gradient of the backbone");
}

/* Room for every place of a route. */
static int fit(struct sfc_exchange *x, const struct sfc_route *route, struct sfc_error *err)
{
    int rc = fit_dense(x, route, err);
    if (rc || route->shards <= x->places)
        return rc;
    free(x->sums);
    free(x->parts);
    free(x->answers);
    free(x->futures);
    x->sums = calloc(route->shards * x->rows, sizeof *x->sums);
    x->parts = calloc(route->shards, sizeof *x->parts);
    x->answers = calloc(route->shards, sizeof *x->answers);
    x->futures = calloc(route->shards, sizeof(*x->futures));
    x->places = x->sums && x->parts && x->answers && x->futures ? route->shards : 0;
    return x->places ? SFC_OK
                     : sfc_fail(err, SFC_ENOMEM, "out of memory for an exchange with %zu shards",
                                route->shards);
}

int sfc_exchange_new(struct sfc_member *member, struct sfc_exchange **out, struct sfc_error *err)
{
    struct sfc_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the head exchange");
    x->rows = member->config->micro_batch;
    x->dim = member->config->dim;
    size_t values = (size_t)x->rows * x->dim;
    x->lse = calloc(x->rows, sizeof *x->lse);
    x->target = calloc(x->rows, sizeof *x->target);
    x->dx = calloc(values, sizeof *x->dx);
    x->dx_part = calloc(values, sizeof *x->dx_part);
    struct sfc_route *route = sfc_route_take(member);
    int rc = x->lse && x->target && x->dx && x->dx_part
                 ? fit(x, route, err)
                 : sfc_fail(err, SFC_ENOMEM, "out of memory for the head exchange");
    sfc_route_release(member, route);
    if (rc) {
        sfc_exchange_free(x);
        return rc;
    }
    *out = x;
    return SFC_OK;
}

static void drop_answers(struct sfc_exchange *x)
{
    for (size_t k = 0; k < x->places; k++)
        sfc_answer_free(&x->answers[k]);
}

/* Waits for all started calls, so that nothing borrows a buffer afterwards; the first failure
 * counts. */
static int finish_all(struct sfc_exchange *x, const struct sfc_route *route,
                      const struct sfc_ask *ask, int rc, struct sfc_error *err)
{
    for (size_t k = 0; k < route->shards; k++) {
        if (!x->futures[k])
            continue;
        struct sfc_error mine = {0};
        int one = sfc_ask_finish(x->futures[k], ask, &x->answers[k], &mine);
        x->futures[k] = NULL;
        if (one && !rc) {
            rc = one;
            sfc_route_prefix(route, k, &mine);
            if (err)
                *err = mine;
        }
    }
    return rc;
}

static int ask_all(struct sfc_exchange *x, struct sfc_member *m, const struct sfc_route *route,
                   const struct sfc_ask *ask, struct sfc_error *err)
{
    drop_answers(x);
    int rc = SFC_OK;
    for (size_t k = 0; k < route->shards && !rc; k++)
        if (route->links[k])
            rc = sfc_member_start(m, route, k, ask, &x->futures[k], err);
    return finish_all(x, route, ask, rc, err);
}

static Shardfc__V1__Attempt wire_attempt(const struct sfc_work *work)
{
    Shardfc__V1__Attempt attempt = SHARDFC__V1__ATTEMPT__INIT;
    attempt.incarnation = work->attempt.incarnation;
    attempt.counter = work->attempt.counter;
    return attempt;
}

/* part: where it goes among those of the shards that are there. */
static int read_logits(struct sfc_exchange *x, size_t k, size_t part, struct sfc_error *err)
{
    const Shardfc__V1__LogitsReply *reply = (const void *)x->answers[k].message;
    struct sfc_bytes tensor = x->answers[k].tensor;
    int rc = check_tensor(reply->payload_type, tensor, SHARDFC__V1__DTYPE__DTYPE_U64, x->rows, 4,
                          "Logits", err);
    if (rc)
        return rc;
    if (reply->n_target_logit != x->rows || reply->has_target.len != x->rows)
        return sfc_fail(err, SFC_ECORRUPT, "Logits: %zu target logits for %u rows",
                        reply->n_target_logit, x->rows);
    struct sfc_sum256 *sums = x->sums + part * x->rows;
    memcpy(sums, tensor.data, tensor.size);
    x->parts[part] = (struct sfc_logits_part){
        .sums = sums, .target = reply->target_logit, .has_target = reply->has_target.data};
    return SFC_OK;
}

static int exchange_logits(struct sfc_exchange *x, struct sfc_member *m,
                           const struct sfc_route *route, const struct sfc_work *work,
                           const float *features, const uint64_t *labels, struct sfc_error *err)
{
    size_t size = (size_t)x->rows * x->dim * sizeof *features;
    uint64_t shape[2] = {x->rows, x->dim};
    Shardfc__V1__Attempt attempt = wire_attempt(work);
    struct sfc_tensor_type type;
    Shardfc__V1__LogitsRequest request = SHARDFC__V1__LOGITS_REQUEST__INIT;
    request.run_id = m->run_id;
    request.step = work->step;
    request.micro_batch = work->micro_batch;
    request.attempt = &attempt;
    request.map_version = route->map->version;
    request.payload_digest = sfc_digest64(features, size);
    request.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 2);
    struct sfc_ask ask = {.method = SHARD "Logits",
                          .message = &request.base,
                          .tensor = {(const uint8_t *)features, size},
                          .deadline_ms = TENSOR_MS,
                          .retries = TENSOR_RETRIES,
                          .reply_type = &shardfc__v1__logits_reply__descriptor};
    int rc = ask_all(x, m, route, &ask, err);
    size_t parts = 0;
    for (size_t k = 0; k < route->shards && !rc; k++)
        if (route->links[k] && (rc = read_logits(x, k, parts++, err)))
            sfc_route_prefix(route, k, err);
    if (!rc)
        rc = sfc_head_merge_logits(x->parts, parts, x->rows, sfc_exp_shift(m->config->scale),
                                   labels, x->lse, x->target, err);
    drop_answers(x);
    return rc;
}

static int read_gradient(struct sfc_exchange *x, size_t k, struct sfc_error *err)
{
    const Shardfc__V1__GradientReply *reply = (const void *)x->answers[k].message;
    struct sfc_bytes tensor = x->answers[k].tensor;
    int rc = check_tensor(reply->payload_type, tensor, SHARDFC__V1__DTYPE__DTYPE_I64, x->rows,
                          x->dim, "Gradient", err);
    if (rc)
        return rc;
    const int64_t *part = (const void *)tensor.data;
    if ((uintptr_t)tensor.data % sizeof *part) {
        memcpy(x->dx_part, tensor.data, tensor.size);
        part = x->dx_part;
    }
    return sfc_head_add_dx(x->dx, part, (size_t)x->rows * x->dim, err);
}

static int exchange_gradient(struct sfc_exchange *x, struct sfc_member *m,
                             const struct sfc_route *route, const struct sfc_work *work,
                             struct sfc_error *err)
{
    size_t size = x->rows * sizeof *x->lse;
    uint64_t shape[1] = {x->rows};
    Shardfc__V1__Attempt attempt = wire_attempt(work);
    struct sfc_tensor_type type;
    Shardfc__V1__GradientRequest request = SHARDFC__V1__GRADIENT_REQUEST__INIT;
    request.run_id = m->run_id;
    request.step = work->step;
    request.micro_batch = work->micro_batch;
    request.attempt = &attempt;
    request.map_version = route->map->version;
    request.payload_digest = sfc_digest64(x->lse, size);
    request.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F64, shape, 1);
    struct sfc_ask ask = {.method = SHARD "Gradient",
                          .message = &request.base,
                          .tensor = {(const uint8_t *)x->lse, size},
                          .deadline_ms = TENSOR_MS,
                          .retries = TENSOR_RETRIES,
                          .reply_type = &shardfc__v1__gradient_reply__descriptor};
    memset(x->dx, 0, (size_t)x->rows * x->dim * sizeof *x->dx);
    int rc = ask_all(x, m, route, &ask, err);
    for (size_t k = 0; k < route->shards && !rc; k++)
        if (route->links[k] && (rc = read_gradient(x, k, err)))
            sfc_route_prefix(route, k, err);
    drop_answers(x);
    return rc;
}

static int exchange_once(struct sfc_exchange *x, struct sfc_member *m, const struct sfc_work *work,
                         const float *features, const uint64_t *labels, uint64_t *version,
                         struct sfc_error *err)
{
    struct sfc_route *route = sfc_route_take(m);
    *version = route->map->version;
    size_t values = (size_t)x->rows * x->dim;
    int rc = fit(x, route, err);
    if (!rc)
        rc = exchange_logits(x, m, route, work, features, labels, err);
    sfc_lap_end(x->lap, SFC_SPAN_ASK_LOGITS, route->shards * values * sizeof *features);
    if (!rc) {
        rc = exchange_gradient(x, m, route, work, err);
        sfc_lap_end(x->lap, SFC_SPAN_ASK_GRADIENT, route->shards * values * sizeof *x->dx);
    }
    sfc_route_release(m, route);
    return rc;
}

/* A session's attempt outlives a change of the block map: with the new one the same calls are made
 * again, to those who have the blocks now. False: it is not that, or nobody says so. */
static bool has_new_map(struct sfc_member *m, uint64_t version)
{
    struct sfc_error unseen = {0};
    return m->session && sfc_member_follow_map(m, 0, &unseen) == SFC_OK &&
           sfc_route_version(m) != version;
}

int sfc_exchange_run(struct sfc_exchange *x, struct sfc_member *member, const struct sfc_work *work,
                     const float *features, const uint64_t *labels, float *dfeatures,
                     struct sfc_exchange_result *result, struct sfc_error *err)
{
    size_t values = (size_t)x->rows * x->dim;
    size_t bad = sfc_head_first_bad(features, values);
    if (bad < values)
        return sfc_fail(err, SFC_EINVAL, "feature %zu of row %zu is not finite", bad % x->dim,
                        bad / x->dim);
    uint64_t version;
    int rc;
    do
        rc = exchange_once(x, member, work, features, labels, &version, err);
    while (rc == SFC_ESTALE && has_new_map(member, version));
    if (rc)
        return sfc_prefix(err, "step %llu, micro-batch %u", (unsigned long long)work->step,
                          work->micro_batch);
    result->zero_features = sfc_head_backward(x->rows, x->dim, features, x->dx, dfeatures);
    result->loss_sum = sfc_head_loss_sum(x->rows, labels, x->lse, x->target);
    sfc_head_digest(x->rows, x->dim, features, x->lse, result->head_digest);
    sfc_lap_end(x->lap, SFC_SPAN_LOSS, 0);
    return SFC_OK;
}

/* ---- dense blocks */

size_t sfc_member_dense_blocks(const struct sfc_member *member)
{
    return (size_t)member->dense_blocks;
}

/* Copies the slices of shard k's blocks between the parameter vector and a packed buffer. */
static void pack_share(const struct sfc_member *m, const struct sfc_dense_share *share,
                       const float *vector, float *packed)
{
    for (size_t i = 0; i < share->count; i++) {
        size_t first, count;
        sfc_dense_block_span(m, share->blocks[i], &first, &count);
        memcpy(packed, vector + first, count * sizeof *packed);
        packed += count;
    }
}

static void unpack_share(const struct sfc_member *m, const struct sfc_dense_share *share,
                         const uint8_t *packed, float *vector)
{
    for (size_t i = 0; i < share->count; i++) {
        size_t first, count;
        sfc_dense_block_span(m, share->blocks[i], &first, &count);
        memcpy(vector + first, packed, count * sizeof *vector);
        packed += count * sizeof *vector;
    }
}

static int start_push(struct sfc_exchange *x, struct sfc_member *m, const struct sfc_route *route,
                      size_t k, const struct sfc_work *work, const float *packed,
                      struct sfc_ask *ask, struct sfc_error *err)
{
    size_t size = route->push[k].floats * sizeof *packed;
    uint64_t shape[1] = {route->push[k].floats};
    Shardfc__V1__Attempt attempt = wire_attempt(work);
    struct sfc_tensor_type type;
    Shardfc__V1__PushDenseRequest request = SHARDFC__V1__PUSH_DENSE_REQUEST__INIT;
    request.run_id = m->run_id;
    request.step = work->step;
    request.micro_batch = work->micro_batch;
    request.attempt = &attempt;
    request.map_version = route->map->version;
    request.payload_digest = sfc_digest64(packed, size);
    request.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 1);
    ask->message = &request.base; /* packed before sfc_member_start returns */
    ask->tensor = (struct sfc_bytes){(const uint8_t *)packed, size};
    int rc = sfc_member_start(m, route, k, ask, &x->futures[k], err);
    ask->message = NULL;
    return rc;
}

int sfc_exchange_push_dense(struct sfc_exchange *x, struct sfc_member *m,
                            const struct sfc_work *work, const float *gradient, uint64_t *digests,
                            struct sfc_error *err)
{
    struct sfc_ask ask = {.method = SHARD "PushDense",
                          .deadline_ms = TENSOR_MS,
                          .retries = TENSOR_RETRIES,
                          .reply_type = &shardfc__v1__push_dense_reply__descriptor};
    for (uint32_t b = 0; b < m->dense_blocks; b++) {
        size_t first, count;
        sfc_dense_block_span(m, b, &first, &count);
        digests[b] = sfc_digest64(gradient + first, count * sizeof *gradient);
    }
    drop_answers(x);
    struct sfc_route *route = sfc_route_take(m);
    int rc = fit(x, route, err);
    float *packed = x->dense;
    for (size_t k = 0; k < route->shards && !rc; k++) {
        if (!route->push[k].count)
            continue;
        pack_share(m, &route->push[k], gradient, packed);
        rc = start_push(x, m, route, k, work, packed, &ask, err);
        packed += route->push[k].floats;
    }
    rc = finish_all(x, route, &ask, rc, err);
    sfc_lap_end(x->lap, SFC_SPAN_ASK_PUSH, (uint64_t)route->push_floats * sizeof *packed);
    sfc_route_release(m, route);
    drop_answers(x);
    return rc ? sfc_prefix(err, "step %llu, micro-batch %u", (unsigned long long)work->step,
                           work->micro_batch)
              : SFC_OK;
}

static int read_pull(const struct sfc_member *m, const struct sfc_dense_share *share, uint64_t step,
                     const struct sfc_answer *answer, float *params, struct sfc_error *err)
{
    const Shardfc__V1__PullDenseReply *reply = (const void *)answer->message;
    int rc = check_tensor(reply->payload_type, answer->tensor, SHARDFC__V1__DTYPE__DTYPE_F32,
                          share->floats, 0, "PullDense", err);
    if (rc)
        return rc;
    if (reply->step != step)
        return sfc_fail(err, SFC_ECORRUPT, "PullDense: parameters of step %llu instead of %llu",
                        (unsigned long long)reply->step, (unsigned long long)step);
    unpack_share(m, share, answer->tensor.data, params);
    return SFC_OK;
}

static int pull(struct sfc_member *m, const struct sfc_route *route, uint64_t step,
                const struct sfc_attempt_id *id, float *params, struct sfc_error *err)
{
    Shardfc__V1__PullDenseRequest request = SHARDFC__V1__PULL_DENSE_REQUEST__INIT;
    request.run_id = m->run_id;
    request.step = step;
    request.map_version = route->map->version;
    struct sfc_work work = {.attempt = id ? *id : (struct sfc_attempt_id){0, 0}};
    Shardfc__V1__Attempt attempt = wire_attempt(&work);
    request.attempt = id ? &attempt : NULL;
    struct sfc_ask ask = {.method = SHARD "PullDense",
                          .message = &request.base,
                          .deadline_ms = TENSOR_MS,
                          .retries = TENSOR_RETRIES,
                          .reply_type = &shardfc__v1__pull_dense_reply__descriptor};
    struct sfc_rpc_future **futures = calloc(route->shards, sizeof(*futures));
    int rc = futures ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "out of memory for the parameters");
    for (size_t k = 0; k < route->shards && !rc; k++)
        if (route->dense[k].count)
            rc = sfc_member_start(m, route, k, &ask, &futures[k], err);
    for (size_t k = 0; futures && k < route->shards; k++) {
        if (!futures[k])
            continue;
        struct sfc_error mine = {0};
        struct sfc_answer answer = {0};
        int one = sfc_ask_finish(futures[k], &ask, &answer, &mine);
        if (!one && !rc)
            one = read_pull(m, &route->dense[k], step, &answer, params, &mine);
        sfc_answer_free(&answer);
        if (one && !rc) {
            rc = one;
            sfc_route_prefix(route, k, &mine);
            if (err)
                *err = mine;
        }
    }
    free(futures);
    return rc;
}

int sfc_member_pull_dense(struct sfc_member *m, uint64_t step, const struct sfc_attempt_id *id,
                          float *params, struct sfc_error *err)
{
    struct sfc_route *route = sfc_route_take(m);
    int rc = pull(m, route, step, id, params, err);
    sfc_route_release(m, route);
    return rc;
}

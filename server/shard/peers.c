#include "server/shard/peers.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/run/messages.h"

enum {
    DEADLINE_MS = 10000, /* of one answer */
    WATCH_MS = 50,       /* how soon a recovery that is abandoned is noticed */
    PAUSE_MS = 200,      /* before a shard that could not answer is asked again */
    PATIENCE_MS = 15000  /* for a step that some shard may have */
};

struct sfc_peers {
    struct sfc_rpc_loop *loop;
    uint64_t run_id;
    struct sfc_step_shape shape;
    const struct sfc_lineage *lineage;
    struct sfc_digest *digest;
    size_t count, best; /* best: gave the last step */
    struct sfc_rpc_client *clients[];
};

void sfc_peers_free(struct sfc_peers *peers)
{
    if (!peers)
        return;
    for (size_t i = 0; i < peers->count; i++)
        sfc_rpc_client_free(peers->clients[i]);
    sfc_digest_free(peers->digest);
    free(peers);
}

int sfc_peers_new(struct sfc_rpc_loop *loop, const Shardfc__V1__BlockMap *map, uint32_t self,
                  uint64_t run_id, const struct sfc_step_shape *shape,
                  const struct sfc_lineage *lineage, struct sfc_peers **out, struct sfc_error *err)
{
    *out = NULL;
    if (map->n_shards < 2)
        return SFC_OK;
    struct sfc_peers *p = calloc(1, sizeof *p + map->n_shards * sizeof(struct sfc_rpc_client *));
    if (!p || !(p->digest = sfc_digest_new())) {
        free(p);
        return sfc_fail(err, SFC_ENOMEM, "no memory for %zu shards", map->n_shards);
    }
    p->loop = loop;
    p->run_id = run_id;
    p->shape = *shape;
    p->lineage = lineage;
    int code = SFC_OK;
    for (size_t i = 0; i < map->n_shards && code == SFC_OK; i++) {
        if (i == self || !map->shards[i]->address[0]) /* that shard has left */
            continue;
        code = sfc_rpc_client_new(loop, map->shards[i]->address, &p->clients[p->count], err);
        p->count += code == SFC_OK;
    }
    if (code == SFC_OK && p->count > 0)
        *out = p;
    else
        sfc_peers_free(p);
    return code;
}

/* ---- one call, on the loop thread, that the asking thread may stop waiting for */

struct question {
    struct sfc_rpc_client *client; /* not used once the asker is gone */
    uint8_t *request;
    size_t size;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done; /* the loop thread is done with it */
    bool gone; /* the asker is */
    struct sfc_error result;
    Shardfc__V1__ReadStepReply *reply;
    uint8_t *tensor;
    size_t tensor_size;
};

static void question_free(struct question *q)
{
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    sfc_message_free(q->reply);
    free(q->tensor);
    free(q->request);
    free(q);
}

/* The last of the two frees. */
static void question_leave(struct question *q, bool *own, const bool *other)
{
    pthread_mutex_lock(&q->lock);
    *own = true;
    bool last = *other;
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->lock);
    if (last)
        question_free(q);
}

static int take_answer(struct question *q, const struct sfc_rpc_reply_view *view)
{
    if (view->code != SFC_OK)
        return sfc_fail(&q->result, view->code, "%s", view->text ? view->text : "");
    int code;
    q->reply = sfc_unpack_reply(view->head, &shardfc__v1__read_step_reply__descriptor, &code);
    q->tensor = malloc(view->tensor.size ? view->tensor.size : 1);
    if (!q->tensor || code == SFC_ENOMEM)
        return sfc_fail(&q->result, SFC_ENOMEM, "no memory for an answer");
    if (!q->reply)
        return sfc_fail(&q->result, SFC_EINVAL, "the answer is malformed");
    if (view->tensor.size)
        memcpy(q->tensor, view->tensor.data, view->tensor.size);
    q->tensor_size = view->tensor.size;
    return SFC_OK;
}

static void answered(const struct sfc_rpc_reply_view *view, void *ctx)
{
    struct question *q = ctx;
    (void)take_answer(q, view);
    question_leave(q, &q->done, &q->gone);
}

static void begin(void *ctx)
{
    struct question *q = ctx;
    struct sfc_rpc_request request = {.method = "/shardfc.v1.Shard/ReadStep",
                                      .head = {q->request, q->size},
                                      .deadline_ms = DEADLINE_MS};
    pthread_mutex_lock(&q->lock);
    bool gone = q->gone;
    pthread_mutex_unlock(&q->lock);
    if (gone || sfc_rpc_client_call(q->client, &request, answered, q, NULL, &q->result) != SFC_OK)
        question_leave(q, &q->done, &q->gone);
}

static void pause_until(pthread_cond_t *changed, pthread_mutex_t *lock, unsigned ms)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += (long)ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(changed, lock, &t);
}

/* False: abandoned. The loop thread may be waiting for this very thread then, and answers nothing.
 */
static bool wait_for(struct question *q, const atomic_bool *abandon)
{
    pthread_mutex_lock(&q->lock);
    while (!q->done && !atomic_load(abandon))
        pause_until(&q->changed, &q->lock, WATCH_MS);
    bool done = q->done;
    pthread_mutex_unlock(&q->lock);
    return done;
}

static struct question *question_new(struct sfc_rpc_client *client,
                                     const Shardfc__V1__ReadStepRequest *request)
{
    struct question *q = calloc(1, sizeof *q);
    if (!q)
        return NULL;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    q->client = client;
    q->request = sfc_message_pack(request, &q->size);
    if (!q->request) {
        question_free(q);
        return NULL;
    }
    return q;
}

/* ---- one step from one shard */

struct reading {
    struct sfc_peers *peers;
    struct sfc_rpc_client *client;
    struct sfc_peers_step *step;
    const atomic_bool *abandon;
    bool has_round;
    uint8_t digest[SFC_DIGEST_SIZE];
};

/* What all answers must say alike. */
static int take_commit(struct reading *r, const Shardfc__V1__ReadStepReply *reply, bool first,
                       struct sfc_error *err)
{
    struct sfc_log_commit *own = &r->step->commit;
    struct sfc_log_commit c = {.step = own->step,
                               .round = {reply->round->incarnation, reply->round->counter},
                               .clip_scale = reply->clip_scale,
                               .lr = reply->lr,
                               .apply = reply->apply};
    if (r->has_round && sfc_attempt_compare(own->round, c.round) != 0)
        return sfc_fail(
            err, SFC_EINVAL,
            "it has round %" PRIu64 ".%" PRIu64 ", round %" PRIu64 ".%" PRIu64 " was committed",
            c.round.incarnation, c.round.counter, own->round.incarnation, own->round.counter);
    const struct sfc_lineage *x = r->peers->lineage;
    if (sfc_lineage_void(x->returns, x->count, c.step, c.round))
        return sfc_fail(err, SFC_EINVAL,
                        "it has round %" PRIu64 ".%" PRIu64 ", which the run gave up when it went "
                        "back",
                        c.round.incarnation, c.round.counter);
    if (!first && (!c.apply || memcmp(r->digest, reply->digest.data, sizeof r->digest) != 0))
        return sfc_fail(err, SFC_EINVAL, "its answers are of different steps");
    *own = c;
    r->has_round = true;
    if (first && c.apply)
        memcpy(r->digest, reply->digest.data, sizeof r->digest);
    return SFC_OK;
}

static void take_rows(const struct reading *r, const struct question *q, uint32_t first,
                      uint32_t rows)
{
    const Shardfc__V1__ReadStepReply *reply = q->reply;
    const struct sfc_peers_step *s = r->step;
    size_t dim = r->peers->shape.dim;
    memcpy(s->labels + first, reply->labels, rows * sizeof *s->labels);
    memcpy(s->lse + first, reply->lse, rows * sizeof *s->lse);
    memcpy(s->features + first * dim, q->tensor, rows * dim * sizeof *s->features);
    for (size_t j = 0; j < reply->n_attempts; j++)
        s->attempts[j] =
            (struct sfc_attempt){reply->attempts[j]->incarnation, reply->attempts[j]->counter};
}

static int take_piece(struct reading *r, const struct question *q, uint32_t first, uint32_t rows,
                      struct sfc_error *err)
{
    struct sfc_bytes tensor = {q->tensor, q->tensor_size};
    int code = sfc_step_reply_check(q->reply, tensor, &r->peers->shape, rows, err);
    if (code == SFC_OK)
        code = take_commit(r, q->reply, first == 0, err);
    if (code == SFC_OK && q->reply->apply)
        take_rows(r, q, first, rows);
    return code;
}

static int read_piece(struct reading *r, uint32_t first, uint32_t rows, struct sfc_error *err)
{
    const struct sfc_log_commit *own = &r->step->commit;
    Shardfc__V1__Attempt round = SHARDFC__V1__ATTEMPT__INIT;
    Shardfc__V1__ReadStepRequest request = SHARDFC__V1__READ_STEP_REQUEST__INIT;
    request.run_id = r->peers->run_id;
    request.step = own->step;
    request.first_row = first;
    request.rows = rows;
    round.incarnation = own->round.incarnation;
    round.counter = own->round.counter;
    request.round = r->has_round ? &round : NULL;
    struct question *q = question_new(r->client, &request);
    if (!q)
        return sfc_fail(err, SFC_ENOMEM, "no memory for a request");
    sfc_rpc_loop_post(r->peers->loop, begin, q);
    int code;
    if (!wait_for(q, r->abandon))
        code = sfc_fail(err, SFC_ECANCELED, "the run was closed");
    else if (q->result.code != SFC_OK)
        code = sfc_fail(err, q->result.code, "%s", q->result.text);
    else
        code = take_piece(r, q, first, rows, err);
    question_leave(q, &q->gone, &q->done);
    return code;
}

static int check_digest(const struct reading *r, struct sfc_error *err)
{
    const struct sfc_peers_step *s = r->step;
    struct sfc_step_inputs inputs = {s->labels, s->features, s->attempts, s->lse};
    uint8_t digest[SFC_DIGEST_SIZE];
    sfc_step_inputs_digest(&r->peers->shape, &inputs, r->peers->digest, digest);
    return memcmp(digest, r->digest, sizeof digest) == 0
               ? SFC_OK
               : sfc_fail(err, SFC_EINVAL, "what arrived has not the digest that it says");
}

static int read_from(struct sfc_peers *peers, struct sfc_rpc_client *client,
                     struct sfc_peers_step *step, bool has_round, const atomic_bool *abandon,
                     struct sfc_error *err)
{
    struct reading r = {
        .peers = peers, .client = client, .step = step, .abandon = abandon, .has_round = has_round};
    struct sfc_log_commit wanted = step->commit;
    uint32_t batch = peers->shape.batch, most = sfc_step_piece_rows(&peers->shape);
    int code = SFC_OK;
    for (uint32_t first = 0; first < batch && code == SFC_OK; first += most) {
        code = read_piece(&r, first, batch - first < most ? batch - first : most, err);
        if (code == SFC_OK && !step->commit.apply)
            return SFC_OK;
    }
    if (code == SFC_OK)
        code = check_digest(&r, err);
    if (code != SFC_OK)
        step->commit = wanted;
    return code;
}

/* ---- whoever has it */

static bool may_pass(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT || code == SFC_ELIMIT ||
           code == SFC_ENOMEM;
}

/* Asks each shard once. Said by those that have not got it: `words`. */
static int ask_all(struct sfc_peers *peers, struct sfc_peers_step *step, bool has_round,
                   const atomic_bool *abandon, struct sfc_error *words)
{
    int result = SFC_ENOTFOUND;
    words->text[0] = '\0';
    for (size_t n = 0; n < peers->count; n++) {
        size_t i = (peers->best + n) % peers->count, used = strlen(words->text);
        struct sfc_rpc_client *client = peers->clients[i];
        struct sfc_error err = {0};
        int code = read_from(peers, client, step, has_round, abandon, &err);
        if (code == SFC_OK) {
            peers->best = i;
            step->from = sfc_rpc_client_address(client);
        }
        if (code == SFC_OK || code == SFC_ECANCELED)
            return code;
        result = may_pass(code) ? SFC_EUNAVAILABLE : result;
        snprintf(words->text + used, sizeof words->text - used, "%sshard %s: %.120s",
                 used ? "; " : "", sfc_rpc_client_address(client), err.text);
    }
    return result;
}

static void pause_some(const atomic_bool *abandon)
{
    struct timespec ms = {.tv_nsec = WATCH_MS * 1000000L};
    for (int waited = 0; waited < PAUSE_MS && !atomic_load(abandon); waited += WATCH_MS)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &ms, NULL);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

int sfc_peers_place(const struct sfc_log_geometry *geometry, struct sfc_log_body *body,
                    struct sfc_peers_step *step, struct sfc_error *err)
{
    struct sfc_log_geometry g = sfc_log_body_geometry(geometry, SFC_LOG_FETCHED);
    struct sfc_log_layout at;
    sfc_log_prepare_layout(&g, &at);
    int code = sfc_log_body_room(body, at.size, err);
    if (code != SFC_OK)
        return code;
    step->labels = (uint64_t *)(void *)(body->data + at.labels);
    step->features = (float *)(void *)(body->data + at.features);
    step->attempts = (struct sfc_attempt *)(void *)(body->data + at.attempts);
    step->lse = (double *)(void *)(body->data + at.lse);
    return SFC_OK;
}

int sfc_peers_read(struct sfc_peers *peers, struct sfc_peers_step *step, bool has_round,
                   const atomic_bool *abandon, struct sfc_error *err)
{
    double end = now_ms() + PATIENCE_MS;
    struct sfc_error words = {0};
    int code;
    while ((code = ask_all(peers, step, has_round, abandon, &words)) == SFC_EUNAVAILABLE &&
           now_ms() < end)
        pause_some(abandon);
    if (code == SFC_ECANCELED)
        return sfc_fail(err, code, "the run was closed");
    return code == SFC_OK ? SFC_OK : sfc_fail(err, code, "%s", words.text);
}

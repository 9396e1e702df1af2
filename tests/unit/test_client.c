/* The client library against scripted peers: what it sends, what it makes of the answers, and that
 * it refuses every answer that breaks the protocol with a message that names the shard. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/digest.h"
#include "proto/rpc_blocking.h"
#include "proto/tensor.h"
#include "worker/client.h"
#include "worker/head_exchange.h"

#define SHARDS      3 /* the map has the first two; the third comes later */
#define FIRST       2
#define ROWS        4u
#define DIM         3u
#define VALUES      (ROWS * DIM)
#define DENSE       10u /* floats of the backbone, */
#define DENSE_BLOCK 4u  /* in blocks of 4, 4, 2: the first and last on shard 1 */

enum fault {
    NO_FAULT,
    WRONG_DTYPE,
    WRONG_SHAPE,
    SHORT_TENSOR,
    NO_TARGET,
    TWO_TARGETS,
    NAN_TARGET,
    ZERO_SUM,
    FEW_TARGETS,
    NO_TYPE,
    STALE,
    WRONG_STEP,
    SILENT,
    OLD_MAP, /* Logits by a version of the map that is over are refused, as shards do */
};

struct peer {
    uint32_t index;
    struct sfc_rpc_server *server;
    int port;
    enum fault fault;
    float pushed[DENSE];
    size_t pushed_count;
    struct sfc_rpc_call *held;
};

static struct world {
    struct sfc_rpc_runner *runner;
    struct peer peers[SHARDS]; /* peer 0 is the scheduler, too */
    struct sfc_client *client;
    struct sfc_member *member;
    struct sfc_attempt_id attempt;
    struct sfc_exchange *exchange;
    bool moved;    /* to version 4: peer 0 has left, peer 2 has come and has everything of it */
    unsigned maps; /* GetMap calls */
} world;

static const uint64_t labels[ROWS] = {0, 1, 1, SFC_CLIENT_NO_LABEL};

/* ---- scripted peers */

static void send_reply(struct sfc_rpc_call *call, const ProtobufCMessage *message, void *tensor,
                       size_t size)
{
    uint8_t head[4096];
    assert_true(protobuf_c_message_get_packed_size(message) <= sizeof head);
    size_t length = protobuf_c_message_pack(message, head);
    sfc_rpc_reply(call, (struct sfc_bytes){head, length}, (struct sfc_bytes){tensor, size}, free,
                  tensor);
}

struct map_message {
    Shardfc__V1__BlockMap map;
    Shardfc__V1__ShardAddress addresses[SHARDS], *shards[SHARDS];
    char text[SHARDS][32];
    uint32_t class_owner[1], dense_owner[3];
};

static Shardfc__V1__BlockMap *make_map(struct map_message *m)
{
    *m = (struct map_message){.class_owner = {0}, .dense_owner = {1, 0, 1}};
    shardfc__v1__block_map__init(&m->map);
    for (int k = 0; k < SHARDS; k++) {
        shardfc__v1__shard_address__init(&m->addresses[k]);
        snprintf(m->text[k], sizeof m->text[k], "127.0.0.1:%d", world.peers[k].port);
        m->addresses[k].shard = 70 + (uint64_t)k;
        m->addresses[k].address = m->text[k];
        m->shards[k] = &m->addresses[k];
    }
    m->map.version = 3;
    m->map.n_shards = FIRST;
    if (world.moved) {
        m->map.version = 4;
        m->map.n_shards = SHARDS;
        m->addresses[0].shard = 0;
        m->addresses[0].address[0] = '\0';
        m->class_owner[0] = 2;
        m->dense_owner[1] = 2;
    }
    m->map.shards = m->shards;
    m->map.n_class_owner = 1;
    m->map.class_owner = m->class_owner;
    m->map.n_dense_owner = 3;
    m->map.dense_owner = m->dense_owner;
    return &m->map;
}

static void on_get_map(struct sfc_rpc_call *call, void *ctx)
{
    (void)ctx;
    struct map_message map;
    struct sfc_bytes head = sfc_rpc_call_head(call);
    Shardfc__V1__GetMapRequest *request =
        shardfc__v1__get_map_request__unpack(NULL, head.size, head.data);
    world.maps++;
    Shardfc__V1__GetMapReply reply = SHARDFC__V1__GET_MAP_REPLY__INIT;
    reply.map = make_map(&map);
    if (request && request->session == 5 && request->run_id == 1 && request->worker == 0)
        send_reply(call, &reply.base, NULL, 0);
    else
        sfc_rpc_fail(call, SFC_EINVAL, "unexpected GetMap");
    shardfc__v1__get_map_request__free_unpacked(request, NULL);
}

static void on_open_session(struct sfc_rpc_call *call, void *ctx)
{
    (void)ctx;
    Shardfc__V1__RunConfig config = SHARDFC__V1__RUN_CONFIG__INIT;
    Shardfc__V1__DataSet data = SHARDFC__V1__DATA_SET__INIT;
    Shardfc__V1__DenseSegment segment = SHARDFC__V1__DENSE_SEGMENT__INIT, *segments[] = {&segment};
    struct map_message map;
    Shardfc__V1__Attempt attempt = SHARDFC__V1__ATTEMPT__INIT;
    Shardfc__V1__OpenSessionReply reply = SHARDFC__V1__OPEN_SESSION_REPLY__INIT;
    uint64_t shape[2] = {5, 2};
    data.kind = SHARDFC__V1__DATA_SET__KIND__SESSION;
    segment.n_shape = 2;
    segment.shape = shape;
    config.classes = 2;
    config.dim = DIM;
    config.global_batch = config.micro_batch = ROWS;
    config.scale = 16;
    config.data = &data;
    config.n_segments = 1;
    config.segments = segments;
    config.dense_block_size = DENSE_BLOCK;
    attempt.incarnation = 2;
    attempt.counter = 9;
    reply.session = 5;
    reply.run_id = 1;
    reply.next_step = 6;
    reply.attempt = &attempt;
    reply.config = &config;
    reply.map = make_map(&map);
    send_reply(call, &reply.base, NULL, 0);
}

/* Where the run has moved on, a call by the old map is refused. */
static bool map_ok(struct sfc_rpc_call *call, const struct peer *peer, uint64_t version)
{
    bool ok = version == (world.moved ? 4 : 3);
    if (!ok && peer->fault == OLD_MAP)
        sfc_rpc_fail(call, SFC_ESTALE, "map version 3, but 4 is the present one");
    return ok || peer->fault != OLD_MAP;
}

/* In the place of peer 0, peer 2 says what peer 0 would. */
static uint32_t role(const struct peer *peer)
{
    return peer->index == 2 ? 0 : peer->index;
}

/* Shard k says exp-sum 2^k for every row, and owns the targets of class k with logit 0.25 + k. */
static void on_logits(struct sfc_rpc_call *call, void *ctx)
{
    struct peer *peer = ctx;
    Shardfc__V1__LogitsReply reply = SHARDFC__V1__LOGITS_REPLY__INIT;
    struct sfc_tensor_type type;
    uint64_t shape[2] = {ROWS, peer->fault == WRONG_SHAPE ? 3 : 4};
    float target[ROWS] = {0};
    uint8_t has[ROWS] = {0};
    if (peer->fault == STALE) {
        sfc_rpc_fail(call, SFC_ESTALE, "attempt 2.9 is void");
        return;
    }
    if (peer->fault == SILENT) {
        peer->held = call;
        return;
    }
    struct sfc_bytes head = sfc_rpc_call_head(call);
    Shardfc__V1__LogitsRequest *request =
        shardfc__v1__logits_request__unpack(NULL, head.size, head.data);
    bool ok = request && map_ok(call, peer, request->map_version);
    shardfc__v1__logits_request__free_unpacked(request, NULL);
    if (!ok)
        return;
    struct sfc_sum256 *sums = calloc(ROWS, sizeof *sums);
    for (uint32_t r = 0; r < ROWS; r++) {
        if (peer->fault != ZERO_SUM)
            sfc_sum256_add_double(&sums[r], 1 << role(peer));
        has[r] = labels[r] == role(peer);
        target[r] = has[r] ? 0.25f + (float)role(peer) : 0;
    }
    if (peer->fault == NO_TARGET)
        has[0] = 0;
    if (peer->fault == TWO_TARGETS)
        has[1] = 1;
    if (peer->fault == NAN_TARGET)
        target[0] = NAN;
    reply.n_target_logit = peer->fault == FEW_TARGETS ? ROWS - 1 : ROWS;
    reply.target_logit = target;
    reply.has_target = (ProtobufCBinaryData){ROWS, has};
    if (peer->fault != NO_TYPE)
        reply.payload_type =
            sfc_tensor_type(&type,
                            peer->fault == WRONG_DTYPE ? SHARDFC__V1__DTYPE__DTYPE_I64
                                                       : SHARDFC__V1__DTYPE__DTYPE_U64,
                            shape, 2);
    send_reply(call, &reply.base, sums,
               ROWS * sizeof *sums - (peer->fault == SHORT_TENSOR ? 8 : 0));
}

static int64_t dx_of(uint32_t shard, uint32_t i)
{
    return sfc_dx_to_fixed(0.01f * (float)(i + 1) * (shard ? -2.0f : 1.0f));
}

static void on_gradient(struct sfc_rpc_call *call, void *ctx)
{
    struct peer *peer = ctx;
    Shardfc__V1__GradientReply reply = SHARDFC__V1__GRADIENT_REPLY__INIT;
    struct sfc_tensor_type type;
    const uint64_t shape[2] = {ROWS, DIM};
    int64_t *dx = malloc(VALUES * sizeof *dx);
    for (uint32_t i = 0; i < VALUES; i++)
        dx[i] = dx_of(role(peer), i);
    reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_I64, shape, 2);
    send_reply(call, &reply.base, dx, VALUES * sizeof *dx);
}

static void on_push(struct sfc_rpc_call *call, void *ctx)
{
    struct peer *peer = ctx;
    struct sfc_bytes head = sfc_rpc_call_head(call), tensor = sfc_rpc_call_tensor(call);
    Shardfc__V1__PushDenseRequest *request =
        shardfc__v1__push_dense_request__unpack(NULL, head.size, head.data);
    bool good = request && request->step == 6 && request->map_version == (world.moved ? 4 : 3) &&
                request->attempt->counter == 9 && tensor.size <= sizeof peer->pushed &&
                request->payload_digest == sfc_digest64(tensor.data, tensor.size);
    if (good) {
        memcpy(peer->pushed, tensor.data, tensor.size);
        peer->pushed_count = tensor.size / sizeof(float);
        Shardfc__V1__PushDenseReply reply = SHARDFC__V1__PUSH_DENSE_REPLY__INIT;
        send_reply(call, &reply.base, NULL, 0);
    } else {
        sfc_rpc_fail(call, SFC_EINVAL, "unexpected PushDense");
    }
    shardfc__v1__push_dense_request__free_unpacked(request, NULL);
}

static void on_pull(struct sfc_rpc_call *call, void *ctx)
{
    struct peer *peer = ctx;
    Shardfc__V1__PullDenseReply reply = SHARDFC__V1__PULL_DENSE_REPLY__INIT;
    struct sfc_tensor_type type;
    const uint64_t shape[1] = {peer->pushed_count};
    float *values = malloc(sizeof peer->pushed);
    memcpy(values, peer->pushed, sizeof peer->pushed);
    reply.step = peer->fault == WRONG_STEP ? 7 : 5;
    reply.payload_type = sfc_tensor_type(&type, SHARDFC__V1__DTYPE__DTYPE_F32, shape, 1);
    send_reply(call, &reply.base, values, peer->pushed_count * sizeof *values);
}

static const struct sfc_rpc_method methods[] = {
    {"/shardfc.v1.Scheduler/OpenSession", on_open_session, 1 << 16, 16, SFC_ROLES_ALL},
    {"/shardfc.v1.Scheduler/GetMap", on_get_map, 1 << 16, 16, SFC_ROLES_ALL},
    {"/shardfc.v1.Shard/Logits", on_logits, 1 << 16, 16, SFC_ROLES_ALL},
    {"/shardfc.v1.Shard/Gradient", on_gradient, 1 << 16, 16, SFC_ROLES_ALL},
    {"/shardfc.v1.Shard/PushDense", on_push, 1 << 16, 16, SFC_ROLES_ALL},
    {"/shardfc.v1.Shard/PullDense", on_pull, 1 << 16, 16, SFC_ROLES_ALL},
};

static void start_peer(void *ctx)
{
    struct peer *peer = ctx;
    struct sfc_error err;
    if (sfc_rpc_server_start(sfc_rpc_runner_loop(world.runner), "127.0.0.1:0", methods,
                             sizeof methods / sizeof *methods, peer, &peer->server, &peer->port,
                             &err))
        fail_msg("%s", err.text);
}

static void post_it(void *ctx)
{
    sem_post(ctx);
}

/* Runs fn(ctx) on the peers' loop and waits for it. */
static void on_loop(void (*fn)(void *ctx), void *ctx)
{
    sem_t done;
    sem_init(&done, 0, 0);
    sfc_rpc_loop_post(sfc_rpc_runner_loop(world.runner), fn, ctx);
    sfc_rpc_loop_post(sfc_rpc_runner_loop(world.runner), post_it, &done);
    while (sem_wait(&done)) {
        /* interrupted */
    }
    sem_destroy(&done);
}

static int set_up(void **state)
{
    (void)state;
    struct sfc_error err;
    char address[32];
    memset(&world, 0, sizeof world);
    assert_int_equal(sfc_rpc_runner_start(NULL, &world.runner, &err), SFC_OK);
    for (uint32_t k = 0; k < SHARDS; k++) {
        world.peers[k].index = k;
        on_loop(start_peer, &world.peers[k]);
    }
    snprintf(address, sizeof address, "127.0.0.1:%d", world.peers[0].port);
    assert_int_equal(sfc_client_new(address, NULL, &world.client, &err), SFC_OK);
    assert_int_equal(
        sfc_client_open_session(world.client, "test", 0, &world.member, &world.attempt, &err),
        SFC_OK);
    assert_int_equal(sfc_exchange_new(world.member, &world.exchange, &err), SFC_OK);
    return 0;
}

static void fail_held(void *ctx)
{
    struct peer *peer = ctx;
    if (peer->held)
        sfc_rpc_fail(peer->held, SFC_ECANCELED, "test is over");
    peer->held = NULL;
}

static int tear_down(void **state)
{
    (void)state;
    sfc_exchange_free(world.exchange);
    sfc_member_free(world.member);
    sfc_client_free(world.client);
    for (int k = 0; k < SHARDS; k++)
        on_loop(fail_held, &world.peers[k]);
    sfc_rpc_runner_stop(world.runner);
    return 0;
}

/* ---- tests */

static struct sfc_work work(void)
{
    return (struct sfc_work){.step = 6, .micro_batch = 0, .attempt = world.attempt};
}

static int run(float *df, struct sfc_exchange_result *result, struct sfc_error *err)
{
    float features[VALUES];
    struct sfc_work w = work();
    for (uint32_t i = 0; i < VALUES; i++)
        features[i] = 0.5f + 0.125f * (float)(i % 5);
    return sfc_exchange_run(world.exchange, world.member, &w, features, labels, df, result, err);
}

static void test_session(void **state)
{
    (void)state;
    struct sfc_run_info info;
    sfc_member_info(world.member, &info);
    assert_true(info.run_id == 1 && info.next_step == 6 && info.shards == FIRST && info.dim == DIM);
    assert_true(info.dense_size == DENSE && info.map_version == 3);
    assert_true(world.attempt.incarnation == 2 && world.attempt.counter == 9);
    assert_int_equal(sfc_member_dense_blocks(world.member), 3);
}

static void test_exchange(void **state)
{
    (void)state;
    float df[VALUES], features[VALUES], expected[VALUES];
    int64_t dx[VALUES];
    double lse[ROWS];
    uint8_t digest[16];
    struct sfc_exchange_result result;
    struct sfc_error err = {0};
    assert_int_equal(run(df, &result, &err), SFC_OK);
    for (uint32_t i = 0; i < VALUES; i++) {
        features[i] = 0.5f + 0.125f * (float)(i % 5);
        dx[i] = dx_of(0, i) + dx_of(1, i);
    }
    assert_int_equal(sfc_head_backward(ROWS, DIM, features, dx, expected), 0);
    assert_memory_equal(df, expected, sizeof df);
    assert_true(fabs(result.loss_sum - (3 * log(3) - 0.25 - 2 * 1.25)) < 1e-12);
    for (uint32_t r = 0; r < ROWS; r++) {
        struct sfc_sum256 sum = {{0}};
        sfc_sum256_add_double(&sum, 3);
        lse[r] = sfc_sum256_log(&sum, 0);
    }
    sfc_head_digest(ROWS, DIM, features, lse, digest);
    assert_memory_equal(digest, result.head_digest, sizeof digest);
}

static void expect(uint32_t shard, enum fault fault, int code, const char *words)
{
    float df[VALUES];
    struct sfc_exchange_result result;
    struct sfc_error err = {0};
    world.peers[shard].fault = fault;
    int rc = run(df, &result, &err);
    world.peers[shard].fault = NO_FAULT;
    if (rc != code || !strstr(err.text, words))
        fail_msg("fault %d: code %d (expected %d), message: %s", (int)fault, rc, code, err.text);
}

static void test_refuses_bad_answers(void **state)
{
    (void)state;
    struct sfc_exchange_result result;
    struct sfc_error err;
    float df[VALUES];
    expect(1, WRONG_DTYPE, SFC_ECORRUPT, "shard 71");
    expect(0, WRONG_SHAPE, SFC_ECORRUPT, "shard 70");
    expect(1, SHORT_TENSOR, SFC_ECORRUPT, "shard 71");
    expect(0, NO_TYPE, SFC_ECORRUPT, "shard 70");
    expect(1, FEW_TARGETS, SFC_ECORRUPT, "shard 71");
    expect(0, NO_TARGET, SFC_ECORRUPT, "row 0: 0 of 2");
    expect(0, TWO_TARGETS, SFC_ECORRUPT, "row 1: 2 of 2");
    expect(0, NAN_TARGET, SFC_ECORRUPT, "row 0");
    expect(1, STALE, SFC_ESTALE, "attempt 2.9 is void");
    assert_int_equal(run(df, &result, &err), SFC_OK); /* none of it sticks */
}

static void test_zero_sum(void **state)
{
    (void)state;
    world.peers[0].fault = ZERO_SUM;
    expect(1, ZERO_SUM, SFC_ECORRUPT, "sum of exponentials");
}

static void test_bad_features(void **state)
{
    (void)state;
    float features[VALUES] = {0}, df[VALUES];
    struct sfc_exchange_result result;
    struct sfc_error err;
    struct sfc_work w = work();
    features[DIM + 1] = INFINITY;
    assert_int_equal(
        sfc_exchange_run(world.exchange, world.member, &w, features, labels, df, &result, &err),
        SFC_EINVAL);
    assert_non_null(strstr(err.text, "feature 1 of row 1"));
}

static void test_dense(void **state)
{
    (void)state;
    float gradient[DENSE], params[DENSE] = {0};
    uint64_t digests[3];
    struct sfc_work w = work();
    struct sfc_error err = {0};
    for (uint32_t i = 0; i < DENSE; i++)
        gradient[i] = (float)i;
    assert_int_equal(
        sfc_exchange_push_dense(world.exchange, world.member, &w, gradient, digests, &err), SFC_OK);
    const float first[4] = {4, 5, 6, 7}, second[6] = {0, 1, 2, 3, 8, 9};
    assert_int_equal(world.peers[0].pushed_count, 4);
    assert_memory_equal(world.peers[0].pushed, first, sizeof first);
    assert_int_equal(world.peers[1].pushed_count, 6);
    assert_memory_equal(world.peers[1].pushed, second, sizeof second);
    for (size_t b = 0; b < 3; b++)
        assert_true(digests[b] == sfc_digest64(gradient + 4 * b, (b < 2 ? 4 : 2) * sizeof(float)));
    assert_int_equal(sfc_member_pull_dense(world.member, 5, &w.attempt, params, &err), SFC_OK);
    assert_memory_equal(params, gradient, sizeof params);
    world.peers[1].fault = WRONG_STEP;
    assert_int_equal(sfc_member_pull_dense(world.member, 5, &w.attempt, params, &err),
                     SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "shard 71"));
}

static void *cancel_soon(void *arg)
{
    struct peer *peer = arg;
    for (;;) { /* until the call has arrived */
        bool held = false;
        sem_t done;
        sem_init(&done, 0, 0);
        on_loop(post_it, &done);
        held = __atomic_load_n(&peer->held, __ATOMIC_ACQUIRE) != NULL;
        sem_destroy(&done);
        if (held)
            break;
    }
    sfc_member_cancel(world.member);
    return NULL;
}

static void test_cancel(void **state)
{
    (void)state;
    float df[VALUES];
    struct sfc_exchange_result result;
    struct sfc_error err = {0};
    pthread_t thread;
    world.peers[1].fault = SILENT;
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &world.peers[1]), 0);
    assert_int_equal(run(df, &result, &err), SFC_ECANCELED);
    pthread_join(thread, NULL);
    assert_int_equal(run(df, &result, &err), SFC_ECANCELED);
}

static void to_the_new_map(void *ctx)
{
    (void)ctx;
    world.moved = true;
}

/* Shards refuse what was sent by the old map; the session asks for the new one and goes on there,
 * its attempt and the answer being the same. */
static void test_follows_the_map(void **state)
{
    (void)state;
    float before[VALUES], after[VALUES], gradient[DENSE], params[DENSE] = {0};
    struct sfc_exchange_result first, second;
    struct sfc_run_info info;
    struct sfc_error err = {0};
    struct sfc_work w = work();
    uint64_t digests[3];
    for (uint32_t k = 0; k < SHARDS; k++)
        world.peers[k].fault = OLD_MAP;
    assert_int_equal(run(before, &first, &err), SFC_OK);
    assert_int_equal(sfc_member_follow_map(world.member, 3, &err), SFC_OK);
    assert_int_equal(world.maps, 0); /* it has that */
    struct sfc_route *old = sfc_route_take(world.member);
    on_loop(to_the_new_map, NULL);
    assert_int_equal(run(after, &second, &err), SFC_OK);
    assert_memory_equal(after, before, sizeof after);
    assert_memory_equal(first.head_digest, second.head_digest, sizeof first.head_digest);
    assert_int_equal(world.maps, 1);
    sfc_member_info(world.member, &info);
    assert_true(info.map_version == 4 && info.shards == 2);
    assert_true(old->map->version == 3 && old->links[0]->client); /* whoever uses it still may */
    sfc_route_release(world.member, old);
    for (uint32_t i = 0; i < DENSE; i++)
        gradient[i] = (float)i;
    assert_int_equal(
        sfc_exchange_push_dense(world.exchange, world.member, &w, gradient, digests, &err), SFC_OK);
    assert_int_equal(world.peers[0].pushed_count, 0);
    assert_int_equal(world.peers[2].pushed_count, 4);
    assert_int_equal(sfc_member_pull_dense(world.member, 5, &w.attempt, params, &err), SFC_OK);
    assert_memory_equal(params, gradient, sizeof params);
    assert_int_equal(sfc_member_follow_map(world.member, 0, &err), SFC_OK); /* nothing new */
    assert_int_equal(world.maps, 2);
}

/* A map that can't be right changes nothing. */
static void test_refuses_a_bad_map(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct map_message m;
    make_map(&m)->version = 9;
    m.dense_owner[2] = FIRST;
    assert_int_equal(sfc_route_change(world.member, (struct sfc_answer){0}, &m.map, &err),
                     SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "dense block 2 is on shard 2 of 2"));
    m.dense_owner[2] = 0;
    m.addresses[0].address = (char *)(uintptr_t) "";
    assert_int_equal(sfc_route_change(world.member, (struct sfc_answer){0}, &m.map, &err),
                     SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "a shard that left"));
    m.map.n_dense_owner = 2;
    assert_int_equal(sfc_route_change(world.member, (struct sfc_answer){0}, &m.map, &err),
                     SFC_ECORRUPT);
    assert_int_equal(sfc_route_change(world.member, (struct sfc_answer){0}, NULL, &err),
                     SFC_ECORRUPT);
    assert_int_equal(sfc_route_version(world.member), 3);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_session),  TEST(test_exchange),        TEST(test_refuses_bad_answers),
        TEST(test_zero_sum), TEST(test_bad_features),    TEST(test_dense),
        TEST(test_cancel),   TEST(test_follows_the_map), TEST(test_refuses_a_bad_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

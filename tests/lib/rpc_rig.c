#include "tests/lib/rpc_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

/* ---- a libuv loop with an RPC loop on a thread */

static void *side_run(void *arg)
{
    struct side *side = arg;
    uv_run(&side->uv, UV_RUN_DEFAULT);
    return NULL;
}

void side_start(struct side *side, const struct sfc_security *security)
{
    struct sfc_error err = {0};
    memset(side, 0, sizeof *side);
    assert_int_equal(uv_loop_init(&side->uv), 0);
    assert_int_equal(sfc_rpc_loop_start(&side->uv, security, &side->rpc, &err), SFC_OK);
    sem_init(&side->stopped, 0, 0);
    assert_int_equal(pthread_create(&side->thread, NULL, side_run, side), 0);
}

static void side_stopped(void *ctx)
{
    struct side *side = ctx;
    sem_post(&side->stopped);
}

static void side_stop_now(void *ctx)
{
    struct side *side = ctx;
    sfc_rpc_loop_stop(side->rpc, side_stopped, side);
}

void side_stop(struct side *side)
{
    sfc_rpc_loop_post(side->rpc, side_stop_now, side);
    sem_wait(&side->stopped);
    pthread_join(side->thread, NULL);
    assert_int_equal(uv_loop_close(&side->uv), 0);
    sem_destroy(&side->stopped);
}

/* Runs fn on the loop thread and waits for it. */
struct errand {
    void (*fn)(void *ctx);
    void *ctx;
    sem_t over;
};

static void errand_run(void *arg)
{
    struct errand *errand = arg;
    errand->fn(errand->ctx);
    sem_post(&errand->over);
}

void side_do(struct side *side, void (*fn)(void *ctx), void *ctx)
{
    struct errand errand = {.fn = fn, .ctx = ctx};
    sem_init(&errand.over, 0, 0);
    sfc_rpc_loop_post(side->rpc, errand_run, &errand);
    sem_wait(&errand.over);
    sem_destroy(&errand.over);
}

/* ---- the server under test */

static void handle_echo(struct sfc_rpc_call *call, void *ctx)
{
    (void)ctx;
    struct sfc_bytes head = sfc_rpc_call_head(call), tensor = sfc_rpc_call_tensor(call);
    assert_true((uintptr_t)tensor.data % 8 == 0);
    uint8_t *copy = malloc(tensor.size + 1);
    if (tensor.size > 0) {
        memcpy(copy, tensor.data, tensor.size);
    }
    sfc_rpc_reply(call, head, (struct sfc_bytes){copy, tensor.size}, free, copy);
}

static void held_cancelled(void *ctx)
{
    struct service *service = ctx;
    sem_post(&service->cancelled);
}

static void handle_hold(struct sfc_rpc_call *call, void *ctx)
{
    struct service *service = ctx;
    assert_true(service->held_count < HELD_MAX);
    service->held[service->held_count++] = call;
    sfc_rpc_call_on_cancel(call, held_cancelled, service);
    sem_post(&service->arrived);
}

static void handle_refuse(struct sfc_rpc_call *call, void *ctx)
{
    (void)ctx;
    sfc_rpc_fail(call, SFC_ECONFLICT, "another digest");
}

static void handle_flaky(struct sfc_rpc_call *call, void *ctx)
{
    struct service *service = ctx;
    service->flaky_seen++;
    if (service->flaky_left > 0) {
        service->flaky_left--;
        sfc_rpc_fail(call, SFC_EUNAVAILABLE, "not yet");
        return;
    }
    handle_echo(call, ctx);
}

static void handle_late(struct sfc_rpc_call *call, void *ctx)
{
    (void)ctx;
    /* An answer over the limit of a message is refused before it reaches the transport. */
    static const uint8_t one;
    sfc_rpc_reply(call, (struct sfc_bytes){&one, 0}, (struct sfc_bytes){&one, SIZE_MAX / 2}, NULL,
                  NULL);
}

const struct sfc_rpc_method rig_methods[] = {
    {"/test.v1.Test/Echo", handle_echo, ECHO_MAX, 256, SFC_ROLES_ALL},
    {"/test.v1.Test/Hold", handle_hold, 1024, 3, SFC_ROLES_ALL},
    {"/test.v1.Test/Refuse", handle_refuse, 1024, 16, SFC_ROLES_ALL},
    {"/test.v1.Test/Flaky", handle_flaky, 1024, 16, SFC_ROLES_ALL},
    {"/test.v1.Test/Huge", handle_late, 1024, 16, SFC_ROLES_ALL},
    {"/test.v1.Test/Admin", handle_echo, 1024, 16, SFC_ROLE_ADMIN},
};

static void service_listen(void *ctx)
{
    struct service *service = ctx;
    struct sfc_error err = {0};
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", service->port);
    if (service->limits != NULL) {
        sfc_rpc_loop_limit(service->side.rpc, service->limits);
    }
    int code = sfc_rpc_server_start(service->side.rpc, address, rig_methods,
                                    sizeof rig_methods / sizeof *rig_methods, service,
                                    &service->server, &service->port, &err);
    if (code != SFC_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    sfc_rpc_server_set_ready(service->server, service->ready);
}

void service_start(struct service *service, int port)
{
    service_start_with(service, port, NULL);
}

static void service_begin(struct service *service, int port, const struct sfc_security *security,
                          const struct sfc_peer_limits *limits)
{
    memset(service, 0, sizeof *service);
    service->port = port;
    service->ready = true;
    sem_init(&service->arrived, 0, 0);
    sem_init(&service->cancelled, 0, 0);
    side_start(&service->side, security);
    service->limits = limits;
    side_do(&service->side, service_listen, service);
    assert_true(service->port > 0);
}

void service_start_with(struct service *service, int port, const struct sfc_security *security)
{
    service_begin(service, port, security, NULL);
}

void service_start_limited(struct service *service, const struct sfc_peer_limits *limits)
{
    service_begin(service, 0, NULL, limits);
}

void service_end_held(void *ctx)
{
    struct service *service = ctx;
    for (unsigned i = 0; i < service->held_count; i++) {
        sfc_rpc_fail(service->held[i], SFC_ESTATE, "ended by the test");
    }
    service->held_count = 0;
}

void service_answer_held(void *ctx)
{
    struct service *service = ctx;
    for (unsigned i = 0; i < service->held_count; i++) {
        sfc_rpc_reply(service->held[i], SMALL, NOTHING, NULL, NULL);
    }
    service->held_count = 0;
}

void service_stop(struct service *service)
{
    side_do(&service->side, service_end_held, service);
    side_stop(&service->side);
    sem_destroy(&service->arrived);
    sem_destroy(&service->cancelled);
}

/* ---- the client side */

static void peer_connect(void *ctx)
{
    struct peer *peer = ctx;
    struct sfc_error err = {0};
    assert_int_equal(sfc_rpc_client_new(peer->side.rpc, peer->address, &peer->client, &err),
                     SFC_OK);
}

void peer_start(struct peer *peer, int port)
{
    peer_start_with(peer, port, NULL);
    peer_meet(peer);
}

void peer_start_with(struct peer *peer, int port, const struct sfc_security *security)
{
    memset(peer, 0, sizeof *peer);
    snprintf(peer->address, sizeof peer->address, "127.0.0.1:%d", port);
    side_start(&peer->side, security);
    side_do(&peer->side, peer_connect, peer);
}

void peer_stop(struct peer *peer)
{
    side_stop(&peer->side);
}

int blocking(struct peer *peer, const char *method, struct sfc_bytes head, struct sfc_bytes tensor,
             unsigned deadline_ms, unsigned retries, struct sfc_rpc_owned *reply,
             struct sfc_error *err)
{
    struct sfc_rpc_request request = {.method = method,
                                      .head = head,
                                      .tensor = tensor,
                                      .deadline_ms = deadline_ms,
                                      .retries = retries};
    struct sfc_rpc_future *future;
    int code = sfc_rpc_start(peer->client, &request, &future, err);
    return code != SFC_OK ? code : sfc_rpc_wait(future, reply, err);
}

const uint8_t rig_head[2] = {1 << 3, 42};

/* A connection that isn't made within a second, of a machine that stands still, is given up. */
void peer_meet(struct peer *peer)
{
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    int code = blocking(peer, "/test.v1.Test/Echo", SMALL, NOTHING, 20000, 100, &reply, &err);
    if (code != SFC_OK) {
        fail_msg("the first call: %s", err.text);
    }
    sfc_rpc_owned_free(&reply);
}

void expect_echo(struct peer *peer, size_t size, unsigned seed)
{
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    uint8_t *data = malloc(size + 1);
    for (size_t i = 0; i < size; i++) {
        data[i] = (uint8_t)(i * 131 + seed + (i >> 9));
    }
    int code = blocking(peer, "/test.v1.Test/Echo", SMALL, (struct sfc_bytes){data, size}, 30000, 0,
                        &reply, &err);
    if (code != SFC_OK) {
        fail_msg("echo of %zu bytes: %s", size, err.text);
    }
    assert_int_equal(reply.head.size, sizeof rig_head);
    assert_memory_equal(reply.head.data, rig_head, sizeof rig_head);
    assert_int_equal(reply.tensor.size, size);
    if (size > 0) {
        assert_memory_equal(reply.tensor.data, data, size);
        assert_int_equal((uintptr_t)reply.tensor.data % 8, 0);
    }
    sfc_rpc_owned_free(&reply);
    free(data);
}

static void outcome_done(const struct sfc_rpc_reply_view *reply, void *ctx)
{
    struct outcome *outcome = ctx;
    outcome->code = reply->code;
    outcome->count++;
    sem_post(&outcome->over);
}

static void outcome_hold(void *ctx)
{
    struct outcome *outcome = ctx;
    struct sfc_error err = {0};
    struct sfc_rpc_request request = {
        .method = "/test.v1.Test/Hold", .head = SMALL, .deadline_ms = 60000, .retries = 100};
    assert_int_equal(sfc_rpc_client_call(outcome->peer->client, &request, outcome_done, outcome,
                                         &outcome->handle, &err),
                     SFC_OK);
}

void outcome_cancel(void *ctx)
{
    struct outcome *outcome = ctx;
    sfc_rpc_client_cancel(outcome->peer->client, outcome->handle);
}

void outcome_start(struct outcome *outcome, struct peer *peer)
{
    *outcome = (struct outcome){.peer = peer, .code = -1};
    sem_init(&outcome->over, 0, 0);
    side_do(&peer->side, outcome_hold, outcome);
}

void outcome_start_when_room(struct outcome *outcome, struct peer *peer, struct service *service)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    const time_t end = time(NULL) + 60;
    outcome_start(outcome, peer);
    while (sem_trywait(&service->arrived) != 0) {
        nanosleep(&pause, NULL);
        if (sem_trywait(&outcome->over) == 0) {
            assert_int_equal(outcome->code, SFC_ELIMIT);
            assert_true(time(NULL) < end);
            outcome_start(outcome, peer);
        }
    }
}

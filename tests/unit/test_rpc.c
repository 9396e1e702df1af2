/* A real server and real clients on loopback: one process, one libuv loop each for server and
 * client side, each on its own thread, so that either side can be killed while the other lives. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "proto/limits.h"
#include "proto/rpc.h"

/* ---- a libuv loop with an RPC loop on a thread */

struct side {
    uv_loop_t uv;
    struct sfc_rpc_loop *rpc;
    pthread_t thread;
    sem_t stopped;
};

static void *side_run(void *arg)
{
    struct side *side = arg;
    uv_run(&side->uv, UV_RUN_DEFAULT);
    return NULL;
}

static void side_start(struct side *side)
{
    struct sfc_error err = {0};
    memset(side, 0, sizeof *side);
    assert_int_equal(uv_loop_init(&side->uv), 0);
    assert_int_equal(sfc_rpc_loop_start(&side->uv, &side->rpc, &err), SFC_OK);
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

static void side_stop(struct side *side)
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

static void side_do(struct side *side, void (*fn)(void *ctx), void *ctx)
{
    struct errand errand = {.fn = fn, .ctx = ctx};
    sem_init(&errand.over, 0, 0);
    sfc_rpc_loop_post(side->rpc, errand_run, &errand);
    sem_wait(&errand.over);
    sem_destroy(&errand.over);
}

/* ---- the server under test */

enum { ECHO_MAX = (8 << 20) + (64 << 10), HELD_MAX = 16 };

struct service {
    struct side side;
    struct sfc_rpc_server *server;
    int port;
    bool ready;
    sem_t arrived, cancelled; /* of held calls */
    struct sfc_rpc_call *held[HELD_MAX];
    unsigned held_count;
    unsigned flaky_left; /* failures that Flaky still gives */
    unsigned flaky_seen;
};

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

static const struct sfc_rpc_method methods[] = {
    {"/test.v1.Test/Echo", handle_echo, ECHO_MAX, 256},
    {"/test.v1.Test/Hold", handle_hold, 1024, 3},
    {"/test.v1.Test/Refuse", handle_refuse, 1024, 16},
    {"/test.v1.Test/Flaky", handle_flaky, 1024, 16},
    {"/test.v1.Test/Huge", handle_late, 1024, 16},
};

static void service_listen(void *ctx)
{
    struct service *service = ctx;
    struct sfc_error err = {0};
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%d", service->port);
    int code =
        sfc_rpc_server_start(service->side.rpc, address, methods, sizeof methods / sizeof *methods,
                             service, &service->server, &service->port, &err);
    if (code != SFC_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    sfc_rpc_server_set_ready(service->server, service->ready);
}

static void service_start(struct service *service, int port)
{
    memset(service, 0, sizeof *service);
    service->port = port;
    service->ready = true;
    sem_init(&service->arrived, 0, 0);
    sem_init(&service->cancelled, 0, 0);
    side_start(&service->side);
    side_do(&service->side, service_listen, service);
    assert_true(service->port > 0);
}

static void service_end_held(void *ctx)
{
    struct service *service = ctx;
    for (unsigned i = 0; i < service->held_count; i++) {
        sfc_rpc_fail(service->held[i], SFC_ESTATE, "ended by the test");
    }
    service->held_count = 0;
}

static void service_stop(struct service *service)
{
    side_do(&service->side, service_end_held, service);
    side_stop(&service->side);
    sem_destroy(&service->arrived);
    sem_destroy(&service->cancelled);
}

/* ---- the client side */

struct peer {
    struct side side;
    struct sfc_rpc_client *client;
    char address[64];
};

static void peer_connect(void *ctx)
{
    struct peer *peer = ctx;
    struct sfc_error err = {0};
    assert_int_equal(sfc_rpc_client_new(peer->side.rpc, peer->address, &peer->client, &err),
                     SFC_OK);
}

static void peer_start(struct peer *peer, int port)
{
    memset(peer, 0, sizeof *peer);
    snprintf(peer->address, sizeof peer->address, "127.0.0.1:%d", port);
    side_start(&peer->side);
    side_do(&peer->side, peer_connect, peer);
}

static void peer_stop(struct peer *peer)
{
    side_stop(&peer->side);
}

static int blocking(struct peer *peer, const char *method, struct sfc_bytes head,
                    struct sfc_bytes tensor, unsigned deadline_ms, unsigned retries,
                    struct sfc_rpc_owned *reply, struct sfc_error *err)
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

static const uint8_t small_head[] = {1 << 3, 42}; /* field 1, varint */
#define SMALL   ((struct sfc_bytes){small_head, sizeof small_head})
#define NOTHING ((struct sfc_bytes){NULL, 0})

static void expect_echo(struct peer *peer, size_t size, unsigned seed)
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
    assert_int_equal(reply.head.size, sizeof small_head);
    assert_memory_equal(reply.head.data, small_head, sizeof small_head);
    assert_int_equal(reply.tensor.size, size);
    if (size > 0) {
        assert_memory_equal(reply.tensor.data, data, size);
        assert_int_equal((uintptr_t)reply.tensor.data % 8, 0);
    }
    sfc_rpc_owned_free(&reply);
    free(data);
}

static void test_echo_sizes(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    service_start(&service, 0);
    peer_start(&peer, service.port);
    static const size_t sizes[] = {0, 1, 7, 64, 4095, 4096, 65536, 1000003, 8 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        expect_echo(&peer, sizes[i], (unsigned)i);
    }
    peer_stop(&peer);
    service_stop(&service);
}

static void test_errors(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Refuse", SMALL, NOTHING, 5000, 0, &reply, &err),
                     SFC_ECONFLICT);
    assert_string_equal(err.text, "another digest");
    assert_int_equal(blocking(&peer, "/test.v1.Test/None", SMALL, NOTHING, 5000, 0, &reply, &err),
                     SFC_EUNSUPPORTED);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Huge", SMALL, NOTHING, 5000, 0, &reply, &err),
                     SFC_ELIMIT);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 0, 0, &reply, &err),
                     SFC_EINVAL);
    static const uint8_t cut[] = {1 << 3 | 2, 100, 1};
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", (struct sfc_bytes){cut, sizeof cut},
                              NOTHING, 5000, 0, &reply, &err),
                     SFC_ECORRUPT);
    expect_echo(&peer, 100, 1); /* and the server lives on */
    peer_stop(&peer);
    service_stop(&service);
}

static void test_oversized_requests(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    uint8_t *data = calloc(1, 16 << 20);
    /* over the bound of this method, under that of the server */
    assert_int_equal(blocking(&peer, "/test.v1.Test/Refuse", SMALL,
                              (struct sfc_bytes){data, 1 << 20}, 5000, 0, &reply, &err),
                     SFC_ELIMIT);
    /* over the bound of every method: gRPC itself refuses */
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", SMALL,
                              (struct sfc_bytes){data, 16 << 20}, 5000, 0, &reply, &err),
                     SFC_ELIMIT);
    expect_echo(&peer, 1 << 20, 3);
    free(data);
    peer_stop(&peer);
    service_stop(&service);
}

static void test_deadline_and_cancel_seen_by_server(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Hold", SMALL, NOTHING, 200, 0, &reply, &err),
                     SFC_ETIMEOUT);
    sem_wait(&service.cancelled);
    peer_stop(&peer);
    service_stop(&service);
}

/* ---- callbacks, cancel */

struct outcome {
    struct peer *peer;
    uint64_t handle;
    int code;
    sem_t over;
    unsigned count;
};

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
        .method = "/test.v1.Test/Hold", .head = SMALL, .deadline_ms = 60000, .retries = 5};
    assert_int_equal(sfc_rpc_client_call(outcome->peer->client, &request, outcome_done, outcome,
                                         &outcome->handle, &err),
                     SFC_OK);
}

static void outcome_cancel(void *ctx)
{
    struct outcome *outcome = ctx;
    sfc_rpc_client_cancel(outcome->peer->client, outcome->handle);
}

static void outcome_start(struct outcome *outcome, struct peer *peer)
{
    *outcome = (struct outcome){.peer = peer, .code = -1};
    sem_init(&outcome->over, 0, 0);
    side_do(&peer->side, outcome_hold, outcome);
}

static void test_cancel(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct outcome outcome;
    service_start(&service, 0);
    peer_start(&peer, service.port);
    outcome_start(&outcome, &peer);
    sem_wait(&service.arrived);
    side_do(&peer.side, outcome_cancel, &outcome);
    sem_wait(&outcome.over);
    assert_int_equal(outcome.code, SFC_ECANCELED);
    sem_wait(&service.cancelled);
    side_do(&peer.side, outcome_cancel, &outcome); /* of a call that is over: nothing */
    peer_stop(&peer);
    assert_int_equal(outcome.count, 1);
    service_stop(&service);
}

static void test_too_many_pending(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct outcome outcomes[3];
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    for (unsigned i = 0; i < 3; i++) {
        outcome_start(&outcomes[i], &peer);
        sem_wait(&service.arrived);
    }
    assert_int_equal(blocking(&peer, "/test.v1.Test/Hold", SMALL, NOTHING, 5000, 0, &reply, &err),
                     SFC_ELIMIT);
    expect_echo(&peer, 10, 1); /* other methods are not touched */
    side_do(&service.side, service_end_held, &service);
    for (unsigned i = 0; i < 3; i++) {
        sem_wait(&outcomes[i].over);
        assert_int_equal(outcomes[i].code, SFC_ESTATE);
    }
    /* room again */
    outcome_start(&outcomes[0], &peer);
    sem_wait(&service.arrived);
    peer_stop(&peer);
    assert_int_equal(outcomes[0].code, SFC_ECANCELED);
    service_stop(&service);
}

static void test_retries(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    service.flaky_left = 3;
    peer_start(&peer, service.port);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Flaky", SMALL, NOTHING, 5000, 2, &reply, &err),
                     SFC_EUNAVAILABLE);
    assert_int_equal(service.flaky_seen, 3);
    uint8_t tensor[100];
    memset(tensor, 7, sizeof tensor);
    service.flaky_left = 2; /* the server is idle: nobody else reads it now */
    assert_int_equal(blocking(&peer, "/test.v1.Test/Flaky", SMALL,
                              (struct sfc_bytes){tensor, sizeof tensor}, 5000, 2, &reply, &err),
                     SFC_OK);
    assert_int_equal(reply.tensor.size, sizeof tensor);
    assert_memory_equal(reply.tensor.data, tensor, sizeof tensor);
    sfc_rpc_owned_free(&reply);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Refuse", SMALL, NOTHING, 5000, 3, &reply, &err),
                     SFC_ECONFLICT); /* not repeated */
    peer_stop(&peer);
    service_stop(&service);
}

/* ---- death of a server */

static void test_shutdown_with_pending_calls(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct outcome outcome;
    service_start(&service, 0);
    peer_start(&peer, service.port);
    outcome_start(&outcome, &peer);
    sem_wait(&service.arrived);
    /* The server goes while its handler still holds the call. */
    side_stop(&service.side);
    assert_int_equal(sem_trywait(&service.cancelled), 0);
    sfc_rpc_fail(service.held[0], SFC_ESTATE, "too late"); /* must still end it */
    /* The client tries again and again until its side stops too. */
    peer_stop(&peer);
    assert_int_equal(outcome.code, SFC_ECANCELED);
    assert_int_equal(outcome.count, 1);
}

static void test_unreachable_then_there(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    int port = service.port;
    service_stop(&service);
    peer_start(&peer, port);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 5000, 0, &reply, &err),
                     SFC_EUNAVAILABLE);
    struct sfc_rpc_request request = {
        .method = "/test.v1.Test/Echo", .head = SMALL, .deadline_ms = 5000, .retries = 100};
    struct sfc_rpc_future *future;
    assert_int_equal(sfc_rpc_start(peer.client, &request, &future, &err), SFC_OK);
    service_start(&service, port);
    assert_int_equal(sfc_rpc_wait(future, &reply, &err), SFC_OK);
    sfc_rpc_owned_free(&reply);
    peer_stop(&peer);
    service_stop(&service);
}

/* Services in child processes, forked before gRPC has run in this one (it doesn't survive a fork).
 */
struct child {
    pid_t pid;
    int port;
    int control; /* the child ends when this closes */
};
static struct child children[2];

static void child_run(int report, int control)
{
    static struct service service;
    char byte;
    service_start(&service, 0);
    bool told = write(report, &service.port, sizeof service.port) == sizeof service.port;
    bool over = told && read(control, &byte, 1) == 0;
    _exit(over ? 0 : 1);
}

static void child_start(struct child *child)
{
    int report[2], control[2];
    if (pipe2(report, O_CLOEXEC) != 0 || pipe2(control, O_CLOEXEC) != 0 ||
        (child->pid = fork()) < 0) {
        perror("child");
        exit(1);
    }
    if (child->pid == 0) {
        close(control[1]);
        child_run(report[1], control[0]);
    }
    close(report[1]);
    close(control[0]);
    if (read(report[0], &child->port, sizeof child->port) != sizeof child->port) {
        exit(1);
    }
    close(report[0]);
    child->control = control[1];
}

static void child_kill(struct child *child)
{
    kill(child->pid, SIGKILL);
    waitpid(child->pid, NULL, 0);
    close(child->control);
}

static void test_server_killed(void **state)
{
    (void)state;
    struct child *child = &children[0];
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    peer_start(&peer, child->port);
    expect_echo(&peer, 4096, 9);
    uint8_t *data = calloc(1, 8 << 20);
    struct sfc_rpc_request hold = {
        .method = "/test.v1.Test/Hold", .head = SMALL, .deadline_ms = 60000};
    struct sfc_rpc_request echo = {.method = "/test.v1.Test/Echo",
                                   .head = SMALL,
                                   .tensor = {data, 8 << 20},
                                   .deadline_ms = 60000};
    struct sfc_rpc_future *futures[2];
    assert_int_equal(sfc_rpc_start(peer.client, &hold, &futures[0], &err), SFC_OK);
    kill(child->pid, SIGSTOP); /* the second request gets stuck half way */
    assert_int_equal(sfc_rpc_start(peer.client, &echo, &futures[1], &err), SFC_OK);
    child_kill(child);
    assert_int_equal(sfc_rpc_wait(futures[0], &reply, &err), SFC_EUNAVAILABLE);
    assert_int_equal(sfc_rpc_wait(futures[1], &reply, &err), SFC_EUNAVAILABLE);
    free(data);
    peer_stop(&peer);
}

/* A peer that stops reading can't keep the client from stopping, nor its tensor from coming back.
 */
static void test_frozen_server(void **state)
{
    (void)state;
    struct child *child = &children[1];
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    peer_start(&peer, child->port);
    expect_echo(&peer, 4096, 9);
    kill(child->pid, SIGSTOP);
    uint8_t *data = calloc(1, 8 << 20);
    struct sfc_rpc_request echo = {.method = "/test.v1.Test/Echo",
                                   .head = SMALL,
                                   .tensor = {data, 8 << 20},
                                   .deadline_ms = 60000};
    struct sfc_rpc_future *future;
    assert_int_equal(sfc_rpc_start(peer.client, &echo, &future, &err), SFC_OK);
    peer_stop(&peer);
    assert_int_equal(sfc_rpc_wait(future, &reply, &err), SFC_ECANCELED);
    free(data);
    child_kill(child);
}

/* ---- many */

enum { THREADS = 4, CALLS = 60 };

static void *hammer(void *arg)
{
    struct peer *peer = arg;
    for (unsigned i = 0; i < CALLS; i++) {
        expect_echo(peer, (i * 7919u) % 70000u, i);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    pthread_t threads[THREADS];
    service_start(&service, 0);
    peer_start(&peer, service.port);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, &peer), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    peer_stop(&peer);
    service_stop(&service);
}

static void test_many_in_flight(void **state)
{
    (void)state;
    enum { MANY = 200 };
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_future *futures[MANY];
    static uint8_t data[MANY];
    service_start(&service, 0);
    peer_start(&peer, service.port);
    for (unsigned i = 0; i < MANY; i++) {
        data[i] = (uint8_t)i;
        struct sfc_rpc_request request = {.method = "/test.v1.Test/Echo",
                                          .head = SMALL,
                                          .tensor = {&data[i], 1},
                                          .deadline_ms = 30000};
        assert_int_equal(sfc_rpc_start(peer.client, &request, &futures[i], &err), SFC_OK);
    }
    for (unsigned i = 0; i < MANY; i++) {
        struct sfc_rpc_owned reply = {0};
        assert_int_equal(sfc_rpc_wait(futures[i], &reply, &err), SFC_OK);
        assert_int_equal(reply.tensor.data[0], (uint8_t)i);
        sfc_rpc_owned_free(&reply);
    }
    peer_stop(&peer);
    service_stop(&service);
}

/* ---- health, addresses, garbage */

static int health(struct peer *peer, const char *service, uint8_t *status)
{
    uint8_t head[64] = {1 << 3 | 2, (uint8_t)strlen(service)};
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    memcpy(head + 2, service, strlen(service));
    int code =
        blocking(peer, "/grpc.health.v1.Health/Check",
                 (struct sfc_bytes){head, 2 + strlen(service)}, NOTHING, 5000, 0, &reply, &err);
    if (code == SFC_OK) {
        assert_int_equal(reply.head.size, 2);
        *status = reply.head.data[1];
        sfc_rpc_owned_free(&reply);
    }
    return code;
}

static void make_unready(void *ctx)
{
    sfc_rpc_server_set_ready(((struct service *)ctx)->server, false);
}

static void test_health(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    uint8_t status = 0;
    service_start(&service, 0);
    peer_start(&peer, service.port);
    assert_int_equal(health(&peer, "", &status), SFC_OK);
    assert_int_equal(status, 1);
    assert_int_equal(health(&peer, "test.v1.Test", &status), SFC_OK);
    assert_int_equal(health(&peer, "test.v1.Tes", &status), SFC_ENOTFOUND);
    assert_int_equal(health(&peer, "other.Service", &status), SFC_ENOTFOUND);
    side_do(&service.side, make_unready, &service);
    assert_int_equal(health(&peer, "test.v1.Test", &status), SFC_OK);
    assert_int_equal(status, 2);
    peer_stop(&peer);
    service_stop(&service);
}

static void try_addresses(void *ctx)
{
    struct service *service = ctx;
    struct sfc_rpc_server *server;
    struct sfc_error err = {0};
    int port;
    char taken[64];
    snprintf(taken, sizeof taken, "127.0.0.1:%d", service->port);
    assert_int_equal(
        sfc_rpc_server_start(service->side.rpc, taken, methods, 1, service, &server, &port, &err),
        SFC_EUNAVAILABLE);
    static const char *const bad[] = {"",           "localhost",       ":1",
                                      "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(sfc_rpc_server_start(service->side.rpc, bad[i], methods, 1, service,
                                              &server, &port, &err),
                         SFC_EINVAL);
    }
    struct sfc_rpc_client *client;
    assert_int_equal(sfc_rpc_client_new(service->side.rpc, "nowhere", &client, &err), SFC_EINVAL);
}

static void test_addresses(void **state)
{
    (void)state;
    struct service service;
    service_start(&service, 0);
    side_do(&service.side, try_addresses, &service);
    service_stop(&service);
}

/* Bytes that are no HTTP/2 at all: the server drops the connection and lives on. */
static void test_garbage(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    service_start(&service, 0);
    for (unsigned seed = 1; seed <= 20; seed++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)service.port)};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
        uint8_t junk[512];
        uint32_t x = seed;
        for (size_t i = 0; i < sizeof junk; i++) {
            x = x * 1664525u + 1013904223u;
            junk[i] = (uint8_t)(x >> 24);
        }
        if (seed % 2 == 0) { /* a good preface first */
            memcpy(junk, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
        }
        (void)send(fd, junk, sizeof junk, MSG_NOSIGNAL);
        close(fd);
    }
    peer_start(&peer, service.port);
    expect_echo(&peer, 1000, 5);
    peer_stop(&peer);
    service_stop(&service);
}

/* A tensor in the middle of the message: joined and found all the same. */
static void test_tensor_not_last(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    static const uint8_t body[] = {1 << 3, 5, 15 << 3 | 2, 3, 'a', 'b', 'c', 2 << 3, 6};
    static const uint8_t head[] = {1 << 3, 5, 2 << 3, 6};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", (struct sfc_bytes){body, sizeof body},
                              NOTHING, 5000, 0, &reply, &err),
                     SFC_OK);
    assert_int_equal(reply.head.size, sizeof head);
    assert_memory_equal(reply.head.data, head, sizeof head);
    assert_int_equal(reply.tensor.size, 3);
    assert_memory_equal(reply.tensor.data, "abc", 3);
    sfc_rpc_owned_free(&reply);
    peer_stop(&peer);
    service_stop(&service);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    child_start(&children[0]);
    child_start(&children[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_server_killed),
        cmocka_unit_test(test_frozen_server),
        cmocka_unit_test(test_echo_sizes),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_oversized_requests),
        cmocka_unit_test(test_deadline_and_cancel_seen_by_server),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_too_many_pending),
        cmocka_unit_test(test_retries),
        cmocka_unit_test(test_shutdown_with_pending_calls),
        cmocka_unit_test(test_unreachable_then_there),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_many_in_flight),
        cmocka_unit_test(test_health),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_tensor_not_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

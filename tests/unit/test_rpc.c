/* Calls of every kind between a real server and real clients on loopback, and bytes that are no
 * calls. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "proto/limits.h"
#include "tests/lib/rpc_rig.h"

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

/* The tensor goes where the caller wants it, if it has the size that was said. */
static void test_into(void **state)
{
    (void)state;
    enum { SIZE = 3 << 20 };
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    uint8_t *data = malloc(SIZE), *place = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++) {
        data[i] = (uint8_t)(i * 131 + (i >> 9));
    }
    service_start(&service, 0);
    peer_start(&peer, service.port);
    for (size_t more = 0; more < 2; more++) {
        struct sfc_rpc_request request = {.method = "/test.v1.Test/Echo",
                                          .tensor = {data, SIZE - more},
                                          .deadline_ms = 30000,
                                          .into = place,
                                          .into_size = SIZE};
        struct sfc_rpc_future *future;
        struct sfc_rpc_owned reply = {0};
        memset(place, 0, SIZE);
        assert_int_equal(sfc_rpc_start(peer.client, &request, &future, &err), SFC_OK);
        assert_int_equal(sfc_rpc_wait(future, &reply, &err), SFC_OK);
        assert_int_equal(reply.tensor.size, SIZE - more);
        assert_memory_equal(reply.tensor.data, data, SIZE - more);
        assert_int_equal(reply.tensor.data == place, more == 0);
        assert_int_equal(place[1], more == 0 ? data[1] : 0);
        sfc_rpc_owned_free(&reply);
    }
    peer_stop(&peer);
    service_stop(&service);
    free(place);
    free(data);
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
    expect_echo(&peer, 10, 1); /* there is a connection */
    unsigned deadline_ms = 100;
    do { /* longer each time: a try may be over before the server sees it */
        deadline_ms *= 2;
        assert_true(deadline_ms < 60000);
        assert_int_equal(
            blocking(&peer, "/test.v1.Test/Hold", SMALL, NOTHING, deadline_ms, 0, &reply, &err),
            SFC_ETIMEOUT);
    } while (sem_trywait(&service.arrived) != 0);
    sem_wait(&service.cancelled);
    peer_stop(&peer);
    service_stop(&service);
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
    outcome_start_when_room(&outcomes[0], &peer, &service); /* room again */
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

/* A held call is not over, however often one looks; when it ends the look ends too. */
static void test_wait_for(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    struct sfc_rpc_future *future;
    service_start(&service, 0);
    peer_start(&peer, service.port);
    struct sfc_rpc_request hold = {
        .method = "/test.v1.Test/Hold", .head = SMALL, .deadline_ms = 60000};
    assert_int_equal(sfc_rpc_start(peer.client, &hold, &future, &err), SFC_OK);
    while (sem_wait(&service.arrived) != 0) {
        /* interrupted by a signal */
    }
    assert_false(sfc_rpc_wait_for(future, 0));
    assert_false(sfc_rpc_wait_for(future, 999));
    side_do(&service.side, service_end_held, &service);
    assert_true(sfc_rpc_wait_for(future, 60000));
    assert_true(sfc_rpc_wait_for(future, 0));
    assert_int_not_equal(sfc_rpc_wait(future, &reply, &err), SFC_OK);
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

/* ---- one of several servers is the one to ask */

static void become_standby(void *ctx)
{
    sfc_rpc_server_refuse(((struct service *)ctx)->server, SFC_EUNAVAILABLE, "a standby");
}

static void become_leader(void *ctx)
{
    sfc_rpc_server_refuse(((struct service *)ctx)->server, SFC_OK, "");
}

struct connecting {
    struct peer *peer;
    char list[200];
};

static void connect_list(void *ctx)
{
    struct connecting *c = ctx;
    struct sfc_error err = {0};
    sfc_rpc_client_free(c->peer->client);
    assert_int_equal(sfc_rpc_client_new(c->peer->side.rpc, c->list, &c->peer->client, &err),
                     SFC_OK);
}

static void connect_like(void *ctx)
{
    struct peer *peer = ctx;
    struct sfc_rpc_client *other = peer->client;
    struct sfc_error err = {0};
    assert_int_equal(sfc_rpc_client_addresses(other), 3);
    assert_int_equal(sfc_rpc_client_like(other, &peer->client, &err), SFC_OK);
    sfc_rpc_client_free(other);
}

static int ask(struct peer *peer, unsigned retries, struct sfc_error *err)
{
    struct sfc_rpc_owned reply = {0};
    int code = blocking(peer, "/test.v1.Test/Echo", SMALL, NOTHING, 5000, retries, &reply, err);
    sfc_rpc_owned_free(&reply);
    return code;
}

static void test_one_of_several(void **state)
{
    (void)state;
    struct service a, b;
    struct peer peer;
    struct sfc_error err = {0};
    uint8_t status = 0;
    service_start(&a, 0);
    service_start(&b, 0);
    peer_start(&peer, a.port);
    side_do(&a.side, become_standby, &a);
    assert_int_equal(health(&peer, "test.v1.Test", &status), SFC_OK); /* is never refused */
    struct connecting connecting = {.peer = &peer};
    snprintf(connecting.list, sizeof connecting.list, "127.0.0.1:%d,127.0.0.1:1,127.0.0.1:%d",
             a.port, b.port);
    side_do(&peer.side, connect_list, &connecting);
    assert_int_equal(ask(&peer, 0, &err), SFC_EUNAVAILABLE);
    assert_string_equal(err.text, "a standby");
    assert_int_equal(ask(&peer, 0, &err), SFC_EUNAVAILABLE); /* nobody is at the second address */
    assert_int_equal(ask(&peer, 0, &err), SFC_OK);
    assert_int_equal(ask(&peer, 0, &err), SFC_OK); /* stays */
    side_do(&peer.side, connect_like, &peer);
    assert_int_equal(ask(&peer, 0, &err), SFC_OK);
    side_do(&a.side, become_leader, &a);
    side_do(&b.side, become_standby, &b);
    assert_int_equal(ask(&peer, 1, &err), SFC_OK); /* one call goes on elsewhere by itself */
    peer_stop(&peer);
    service_stop(&a);
    service_stop(&b);
}

static void try_addresses(void *ctx)
{
    struct service *service = ctx;
    struct sfc_rpc_server *server;
    struct sfc_error err = {0};
    int port;
    char taken[64];
    snprintf(taken, sizeof taken, "127.0.0.1:%d", service->port);
    assert_int_equal(sfc_rpc_server_start(service->side.rpc, taken, rig_methods, 1, service,
                                          &server, &port, &err),
                     SFC_EUNAVAILABLE);
    static const char *const bad[] = {"",           "localhost",       ":1",
                                      "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x"};
    static const char *const bad_lists[] = {"a:1,", ",a:1", "a:1,,b:2", "a:1,b",
                                            "a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,"
                                            "a:1,a:1,a:1,a:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(sfc_rpc_server_start(service->side.rpc, bad[i], rig_methods, 1, service,
                                              &server, &port, &err),
                         SFC_EINVAL);
    }
    struct sfc_rpc_client *client;
    assert_int_equal(sfc_rpc_client_new(service->side.rpc, "nowhere", &client, &err), SFC_EINVAL);
    for (size_t i = 0; i < sizeof bad_lists / sizeof *bad_lists; i++) {
        assert_int_equal(sfc_rpc_client_new(service->side.rpc, bad_lists[i], &client, &err),
                         SFC_EINVAL);
    }
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo_sizes),
        cmocka_unit_test(test_into),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_oversized_requests),
        cmocka_unit_test(test_deadline_and_cancel_seen_by_server),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_too_many_pending),
        cmocka_unit_test(test_retries),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_many_in_flight),
        cmocka_unit_test(test_wait_for),
        cmocka_unit_test(test_health),
        cmocka_unit_test(test_one_of_several),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_tensor_not_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

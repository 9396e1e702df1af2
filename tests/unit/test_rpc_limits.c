/* What one peer may have of a server: pure accounts, and real connections that are too many, too
 * slow or idle. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "proto/rpc_peers.h"
#include "tests/lib/rpc_rig.h"

/* ---- accounts */

static void test_names(void **state)
{
    (void)state;
    char name[SFC_RPC_PEER_NAME];
    sfc_rpc_peer_name("ipv4:10.0.0.1:5000", NULL, name);
    assert_string_equal(name, "10.0.0.1");
    sfc_rpc_peer_name("ipv6:%5Bfe80::1%5D:5000", NULL, name);
    assert_string_equal(name, "fe80::1");
    sfc_rpc_peer_name("ipv4:10.0.0.1:5000", "trainer-7", name);
    assert_string_equal(name, "trainer-7 at 10.0.0.1");
    sfc_rpc_peer_name("unix:", NULL, name);
    sfc_rpc_peer_name("", NULL, name);
    assert_string_equal(name, "");
}

static void test_calls_and_rate(void **state)
{
    (void)state;
    struct sfc_rpc_peers *peers = sfc_rpc_peers_new();
    struct sfc_peer_limits limits = {.calls = 2, .rate = 4};
    struct sfc_rpc_peer *a, *b;
    struct sfc_error err = {0};
    assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1000, &a, &err), SFC_OK);
    assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1000, &a, &err), SFC_OK);
    assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1000, &a, &err), SFC_ELIMIT);
    assert_string_equal(err.text, "a has 2 calls that are not yet answered, limit --peer-calls 2: "
                                  "try later");
    assert_int_equal(sfc_rpc_peers_enter(peers, "b", &limits, 1000, &b, &err), SFC_OK);
    sfc_rpc_peers_leave(peers, b);
    sfc_rpc_peers_leave(peers, a);
    sfc_rpc_peers_leave(peers, a);
    for (int i = 0; i < 2; i++) { /* two of four are left at once */
        assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1000, &a, &err), SFC_OK);
        sfc_rpc_peers_leave(peers, a);
    }
    assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1249, &a, &err), SFC_ELIMIT);
    assert_string_equal(err.text,
                        "a calls more often than --peer-rate 4 times per second: try later");
    assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1250, &a, &err), SFC_OK);
    sfc_rpc_peers_leave(peers, a);
    limits.rate = 0;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(sfc_rpc_peers_enter(peers, "a", &limits, 1250, &a, &err), SFC_OK);
        sfc_rpc_peers_leave(peers, a);
    }
    sfc_rpc_peers_free(peers);
}

static void test_many_names(void **state)
{
    (void)state;
    struct sfc_rpc_peers *peers = sfc_rpc_peers_new();
    const struct sfc_peer_limits limits = {.calls = 2, .rate = 4};
    struct sfc_rpc_peer *stays, *one;
    struct sfc_error err = {0};
    assert_int_equal(sfc_rpc_peers_enter(peers, "stays", &limits, 0, &stays, &err), SFC_OK);
    for (int i = 0; i < 20000; i++) {
        char name[32];
        snprintf(name, sizeof name, "peer %d", i);
        assert_int_equal(sfc_rpc_peers_enter(peers, name, &limits, 0, &one, &err), SFC_OK);
        sfc_rpc_peers_leave(peers, one);
        assert_true(sfc_rpc_peers_count(peers) <= 4097);
    }
    assert_int_equal(sfc_rpc_peers_enter(peers, "stays", &limits, 0, &one, &err), SFC_OK);
    assert_ptr_equal(one, stays);
    sfc_rpc_peers_leave(peers, stays);
    sfc_rpc_peers_leave(peers, stays);
    sfc_rpc_peers_free(peers);
}

/* ---- calls */

static atomic_int heard_count;
static char heard[512];

static void hear(const char *text)
{
    if (heard_count == 0) {
        snprintf(heard, sizeof heard, "%s", text);
    }
    heard_count++;
}

struct limited {
    struct service *service;
    struct sfc_peer_limits limits;
};

static void limit(void *ctx)
{
    struct limited *limited = ctx;
    sfc_rpc_loop_limit(limited->service->side.rpc, &limited->limits);
}

static void test_too_many_calls(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct outcome outcomes[2];
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    service_start(&service, 0);
    peer_start(&peer, service.port);
    expect_echo(&peer, 10, 1);
    struct limited limited = {&service, sfc_peer_limits_usual};
    limited.limits.calls = 2;
    side_do(&service.side, limit, &limited);
    for (unsigned i = 0; i < 2; i++) {
        outcome_start_when_room(&outcomes[i], &peer, &service);
    }
    heard_count = 0;
    do { /* it is told once in a second */
        assert_int_equal(
            blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 20000, 0, &reply, &err),
            SFC_ELIMIT);
        assert_non_null(strstr(err.text, "127.0.0.1 has 2 calls that are not yet answered, limit "
                                         "--peer-calls 2: try later"));
    } while (heard_count == 0);
    assert_non_null(strstr(heard, "refused ipv4:127.0.0.1:"));
    assert_non_null(strstr(heard, "limit --peer-calls 2"));
    side_do(&service.side, service_end_held, &service);
    for (unsigned i = 0; i < 2; i++) {
        sem_wait(&outcomes[i].over);
    }
    const time_t end = time(NULL) + 60;
    int code;
    do { /* the server counts a call out only after its client has the answer */
        code = blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 20000, 0, &reply, &err);
    } while (code == SFC_ELIMIT && time(NULL) < end);
    assert_int_equal(code, SFC_OK);
    sfc_rpc_owned_free(&reply);
    peer_stop(&peer);
    service_stop(&service);
}

static void test_too_many_bytes(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    uint8_t *data = calloc(1, 2 << 20);
    service_start(&service, 0);
    peer_start(&peer, service.port);
    struct limited limited = {&service, sfc_peer_limits_usual};
    limited.limits.peer_memory = 1 << 20;
    side_do(&service.side, limit, &limited);
    assert_int_equal(blocking(&peer, "/test.v1.Test/Echo", SMALL, (struct sfc_bytes){data, 2 << 20},
                              20000, 0, &reply, &err),
                     SFC_ELIMIT);
    assert_non_null(strstr(err.text, "requests of 127.0.0.1 hold 0 bytes, limit --peer-memory "
                                     "1048576: try later"));
    for (unsigned i = 0; i < 20; i++) { /* nothing stays on its account */
        expect_echo(&peer, 100000 + i, i);
    }
    free(data);
    peer_stop(&peer);
    service_stop(&service);
}

/* ---- connections */

static int connect_raw(int port)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval patience = {.tv_sec = 120};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    return fd;
}

/* Reads to the end; whether the server has closed it. All that came goes to seen. */
static bool ends(int fd, uint8_t *seen, size_t room)
{
    size_t size = 0;
    for (;;) {
        uint8_t piece[4096];
        ssize_t got = recv(fd, piece, sizeof piece, 0);
        if (got <= 0) {
            return got == 0 || errno == ECONNRESET;
        }
        for (ssize_t i = 0; i < got && size < room; i++) {
            seen[size++] = piece[i];
        }
    }
}

enum { AT_ONCE = 40, ALLOWED = 4 };

/* Of those that came at once all but some are shut, and these serve. */
static void test_too_many_connections(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    service_start(&service, 0);
    struct limited limited = {&service, sfc_peer_limits_usual};
    limited.limits.of_one_address = ALLOWED;
    side_do(&service.side, limit, &limited);
    heard_count = 0;
    int fds[AT_ONCE], open = AT_ONCE;
    for (int i = 0; i < AT_ONCE; i++) {
        fds[i] = connect_raw(service.port);
    }
    for (int turn = 0; open > ALLOWED; turn = (turn + 1) % AT_ONCE) {
        uint8_t settings[4096];
        if (fds[turn] >= 0 && recv(fds[turn], settings, sizeof settings, MSG_DONTWAIT) == 0) {
            close(fds[turn]);
            fds[turn] = -1;
            open--;
        }
    }
    assert_true(heard_count >= 1);
    assert_string_equal(heard, "refused 127.0.0.1: a connection: there are 4 of this address "
                               "(--peer-connections)");
    for (int i = 0; i < AT_ONCE; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    peer_start(&peer, service.port); /* room again */
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    assert_int_equal(
        blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 20000, 100, &reply, &err), SFC_OK);
    sfc_rpc_owned_free(&reply);
    peer_stop(&peer);
    service_stop(&service);
}

static const uint8_t preface[] =
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0"; /* and SETTINGS */

/* Who says nothing, or stops in the middle of its handshake. */
static void test_half_open(void **state)
{
    (void)state;
    struct service service;
    struct sfc_peer_limits limits = sfc_peer_limits_usual;
    limits.handshake_ms = 500;
    service_start_limited(&service, &limits);
    int silent = connect_raw(service.port), stops = connect_raw(service.port);
    assert_int_equal(send(stops, preface, 20, 0), 20);
    assert_true(ends(silent, NULL, 0));
    assert_true(ends(stops, NULL, 0));
    close(silent);
    close(stops);
    service_stop(&service);
}

/* A connection without calls gets a GOAWAY, and a peer that wants more connects again. */
static void test_idle(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_peer_limits limits = sfc_peer_limits_usual;
    uint8_t seen[4096] = {0};
    bool told = false;
    limits.idle_ms = 1000;
    service_start_limited(&service, &limits);
    peer_start(&peer, service.port);
    expect_echo(&peer, 10, 1);
    int idle = connect_raw(service.port);
    assert_int_equal(send(idle, preface, sizeof preface, 0), sizeof preface);
    assert_true(ends(idle, seen, sizeof seen));
    for (size_t at = 0; at + 9 <= sizeof seen && !told;) { /* frames: length, type, ... */
        told = seen[at + 3] == 7;
        at += 9u + ((size_t)seen[at] << 16 | (size_t)seen[at + 1] << 8 | seen[at + 2]);
    }
    assert_true(told);
    close(idle);
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    /* the first try may still meet the connection that is being closed */
    assert_int_equal(
        blocking(&peer, "/test.v1.Test/Echo", SMALL, NOTHING, 20000, 100, &reply, &err), SFC_OK);
    sfc_rpc_owned_free(&reply);
    peer_stop(&peer);
    service_stop(&service);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    sfc_rpc_on_refused(hear);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_calls_and_rate),
        cmocka_unit_test(test_many_names),     cmocka_unit_test(test_too_many_connections),
        cmocka_unit_test(test_too_many_calls), cmocka_unit_test(test_too_many_bytes),
        cmocka_unit_test(test_half_open),      cmocka_unit_test(test_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

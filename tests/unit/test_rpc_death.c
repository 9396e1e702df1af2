/* A server that goes, dies, freezes or is not there yet, and a client that gives its call up. */
#include <fcntl.h>
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
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <cmocka.h>

#include "tests/lib/rpc_rig.h"

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

/* A port where nobody listens, and that nobody gets who asks for any; a server that asks for this
 * one does. */
static int keep_port(int *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    const int yes = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static void test_unreachable_then_there(void **state)
{
    (void)state;
    struct service service;
    struct peer peer;
    struct sfc_error err = {0};
    struct sfc_rpc_owned reply = {0};
    int port, keeper = keep_port(&port);
    peer_start_with(&peer, port, NULL);
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
    close(keeper);
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

/* ---- an answer that nobody wants any more */

/* A call of Hold by hand: HTTP/2 whose peer may send no DATA (SETTINGS_INITIAL_WINDOW_SIZE 0). */
static const uint8_t windowless[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                                    "\0\0\6\4\0\0\0\0\0" /* SETTINGS */
                                    "\0\4\0\0\0\0";
static const uint8_t fields[] = {0x83, 0x86, 0x01, 1, 'h', 0x04, 18}; /* :method, :scheme, ... */
static const char path[] = "/test.v1.Test/Hold";
static const uint8_t more_fields[] = {0x00, 2,   't',  'e',  8,   't', 'r', 'a', 'i', 'l', 'e',
                                      'r',  's', 0x0f, 0x10, 16,  'a', 'p', 'p', 'l', 'i', 'c',
                                      'a',  't', 'i',  'o',  'n', '/', 'g', 'r', 'p', 'c'};
static const uint8_t message[] = {0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, 8, 1}; /* END_STREAM */
static const uint8_t reset[] = {0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8};            /* CANCEL */

static void put(int fd, const void *data, size_t size)
{
    assert_int_equal(send(fd, data, size, 0), (ssize_t)size);
}

static int call_by_hand(int port)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const size_t size = sizeof fields + sizeof path - 1 + sizeof more_fields;
    const uint8_t headers[] = {0, 0, (uint8_t)size, 1, 4, 0, 0, 0, 1}; /* END_HEADERS, stream 1 */
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    put(fd, windowless, sizeof windowless - 1);
    put(fd, headers, sizeof headers);
    put(fd, fields, sizeof fields);
    put(fd, path, sizeof path - 1);
    put(fd, more_fields, sizeof more_fields);
    put(fd, message, sizeof message);
    return fd;
}

/* Until a frame of HEADERS has come. */
static void read_headers(int fd)
{
    uint8_t head[9], body[16384];
    do {
        assert_int_equal(recv(fd, head, sizeof head, MSG_WAITALL), sizeof head);
        size_t size = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
        assert_true(size <= sizeof body);
        if (size > 0) {
            assert_int_equal(recv(fd, body, size, MSG_WAITALL), size);
        }
    } while (head[3] != 1);
}

struct lent {
    struct service *service;
    uint8_t tensor[4096];
    sem_t back;
};

static void came_back(void *ctx)
{
    sem_post(&((struct lent *)ctx)->back);
}

static void lend(void *ctx)
{
    struct lent *lent = ctx;
    lent->service->held_count = 0;
    sfc_rpc_reply(lent->service->held[0], SMALL, (struct sfc_bytes){lent->tensor, 4096}, came_back,
                  lent);
}

/* What was lent for an answer comes back when the caller gives up while it waits for room, though
 * the connection stays: gRPC keeps it as long as we keep the call. */
static void test_answer_given_up(void **state)
{
    (void)state;
    struct service service;
    struct lent lent = {.service = &service};
    struct timespec until;
    sem_init(&lent.back, 0, 0);
    service_start(&service, 0);
    int fd = call_by_hand(service.port);
    sem_wait(&service.arrived);
    side_do(&service.side, lend, &lent);
    read_headers(fd);
    assert_int_equal(sem_trywait(&lent.back), -1);
    put(fd, reset, sizeof reset);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    assert_int_equal(sem_timedwait(&lent.back, &until), 0);
    service_stop(&service);
    close(fd);
    sem_destroy(&lent.back);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    child_start(&children[0]);
    child_start(&children[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_server_killed),
        cmocka_unit_test(test_frozen_server),
        cmocka_unit_test(test_shutdown_with_pending_calls),
        cmocka_unit_test(test_unreachable_then_there),
        cmocka_unit_test(test_answer_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

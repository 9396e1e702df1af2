#include "server/ctl/bench_peer.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "proto/rpc.h"

enum { VARINT_TAG = 0x08 /* field 1, a varint */, PENDING = 4096 };

struct sfc_bytes sfc_bench_head_pack(uint32_t down, uint8_t out[SFC_BENCH_HEAD_MAX])
{
    size_t n = 0;
    out[n++] = VARINT_TAG;
    for (; down > 0x7f; down >>= 7) {
        out[n++] = (uint8_t)(down | 0x80);
    }
    out[n++] = (uint8_t)down;
    return (struct sfc_bytes){out, n};
}

static bool head_unpack(struct sfc_bytes head, uint32_t *down)
{
    const uint8_t *bytes = head.data;
    uint64_t value = 0;
    if (head.size < 2 || head.size > SFC_BENCH_HEAD_MAX || bytes[0] != VARINT_TAG) {
        return false;
    }
    for (size_t i = 1; i < head.size; i++) {
        value |= (uint64_t)(bytes[i] & 0x7f) << (7 * (i - 1));
    }
    *down = (uint32_t)value;
    return value <= SFC_BENCH_MAX_BODY;
}

int sfc_bench_send(int socket, const void *data, size_t size, struct sfc_error *err)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(socket, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (n < 0) {
            return sfc_fail_errno(err, "plain TCP: send");
        }
        at += (size_t)n;
    }
    return SFC_OK;
}

int sfc_bench_receive(int socket, void *data, size_t size, struct sfc_error *err)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = recv(socket, (char *)data + at, size - at, 0);
        if (n < 0) {
            return sfc_fail_errno(err, "plain TCP: receive");
        }
        if (n == 0) {
            return sfc_fail(err, SFC_EUNAVAILABLE, "plain TCP: the other end has closed");
        }
        at += (size_t)n;
    }
    return SFC_OK;
}

/* ---- in the other process */

struct peer {
    uint8_t *answer; /* [SFC_BENCH_MAX_BODY], of every exchange */
    uint8_t *body;   /* [SFC_BENCH_MAX_BODY], of the TCP exchange at hand */
    int listener;
};

static void keep(void *ctx)
{
    (void)ctx; /* the answer's memory is always the same */
}

static void handle_exchange(struct sfc_rpc_call *call, void *ctx)
{
    const struct peer *peer = ctx;
    uint32_t down;
    if (!head_unpack(sfc_rpc_call_head(call), &down)) {
        sfc_rpc_fail(call, SFC_EINVAL, "no size of the answer, or one over the limit");
        return;
    }
    sfc_rpc_reply(call, (struct sfc_bytes){0}, (struct sfc_bytes){peer->answer, down}, keep, NULL);
}

static void serve_connection(const struct peer *peer, int socket)
{
    struct sfc_bench_frame frame;
    struct sfc_error ended;
    while (sfc_bench_receive(socket, &frame, sizeof frame, &ended) == SFC_OK &&
           frame.up <= SFC_BENCH_MAX_BODY && frame.down <= SFC_BENCH_MAX_BODY &&
           sfc_bench_receive(socket, peer->body, frame.up, &ended) == SFC_OK &&
           sfc_bench_send(socket, peer->answer, frame.down, &ended) == SFC_OK) {
    }
}

static void *serve_tcp(void *ctx)
{
    const struct peer *peer = ctx;
    int one = 1;
    for (int socket; (socket = accept(peer->listener, NULL, NULL)) >= 0;) {
        setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        serve_connection(peer, socket);
        close(socket);
    }
    return NULL;
}

static int listen_tcp(int *listener, int *port, struct sfc_error *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        return sfc_fail_errno(err, "plain TCP: listen on 127.0.0.1");
    }
    *listener = fd;
    *port = ntohs(address.sin_port);
    return SFC_OK;
}

/* What the other process first says. */
struct hello {
    struct sfc_error err;
    int rpc_port, tcp_port;
};

static void open_up(struct peer *peer, uv_loop_t *uv, struct hello *hello)
{
    struct sfc_rpc_method method = {
        .path = SFC_BENCH_METHOD,
        .handler = handle_exchange,
        .max_request = SFC_BENCH_MAX_BODY + 64,
        .max_pending = PENDING,
        .roles = SFC_ROLES_ALL,
    };
    struct sfc_rpc_loop *loop;
    struct sfc_rpc_server *server;
    pthread_t thread;
    peer->answer = calloc(1, SFC_BENCH_MAX_BODY);
    peer->body = calloc(1, SFC_BENCH_MAX_BODY);
    if (peer->answer == NULL || peer->body == NULL || uv_loop_init(uv) != 0) {
        sfc_fail(&hello->err, SFC_ENOMEM, "the other end: out of memory");
        return;
    }
    int code = listen_tcp(&peer->listener, &hello->tcp_port, &hello->err);
    if (code == SFC_OK) {
        code = sfc_rpc_loop_start(uv, NULL, &loop, &hello->err);
    }
    if (code == SFC_OK) {
        code = sfc_rpc_server_start(loop, "127.0.0.1:0", &method, 1, peer, &server,
                                    &hello->rpc_port, &hello->err);
    }
    if (code == SFC_OK && pthread_create(&thread, NULL, serve_tcp, peer) != 0) {
        sfc_fail(&hello->err, SFC_EUNAVAILABLE, "the other end: no thread");
    }
}

/* Serves until it is killed; it has nothing to lose. */
static _Noreturn void live(int out)
{
    struct peer peer = {0};
    struct hello hello = {0};
    uv_loop_t uv;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_up(&peer, &uv, &hello);
    bool said = write(out, &hello, sizeof hello) == (ssize_t)sizeof hello;
    close(out);
    if (said && hello.err.code == SFC_OK) {
        uv_run(&uv, UV_RUN_DEFAULT);
    }
    _exit(1);
}

/* ---- in this process */

int sfc_bench_peer_start(struct sfc_bench_peer *out, struct sfc_error *err)
{
    struct hello hello;
    int pipes[2];
    if (pipe(pipes) != 0) {
        return sfc_fail_errno(err, "the other end: pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(pipes[0]);
        live(pipes[1]);
    }
    close(pipes[1]);
    if (pid < 0) {
        close(pipes[0]);
        return sfc_fail_errno(err, "the other end: fork");
    }
    ssize_t n = read(pipes[0], &hello, sizeof hello);
    close(pipes[0]);
    if (n != (ssize_t)sizeof hello) {
        sfc_fail(&hello.err, SFC_EUNAVAILABLE, "the other end has ended");
    }
    *out = (struct sfc_bench_peer){pid, hello.rpc_port, hello.tcp_port};
    if (hello.err.code == SFC_OK) {
        return SFC_OK;
    }
    sfc_bench_peer_stop(out);
    return sfc_fail(err, hello.err.code, "%s", hello.err.text);
}

void sfc_bench_peer_stop(const struct sfc_bench_peer *peer)
{
    kill(peer->pid, SIGKILL);
    waitpid(peer->pid, NULL, 0);
}

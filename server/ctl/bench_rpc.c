/* shardfc bench rpc: what the project's RPC layer costs on this machine, beside plain TCP. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/limits.h"
#include "server/ctl/bench.h"
#include "server/ctl/bench_peer.h"
#include "server/ctl/command.h"

enum {
    PING_BYTES = 64,
    WARM_PINGS = 200,
    WARM_CALLS = 4, /* times those outstanding */
    DEADLINE_MS = 60000,
    MAX_OUTSTANDING = 1024,
    MAX_SIZES = 3,
    MAX_CALLS = 1000000,
};

struct rpc_options {
    uint64_t pings, outstanding, volume, body;
    bool json;
};

#define AT(field) offsetof(struct rpc_options, field)
static const struct sfc_option table[] = {
    {.name = "pings",
     .type = SFC_OPTION_U64,
     .offset = AT(pings),
     .min = 10,
     .max = 10000000,
     .fallback = "20000",
     .help = "round trips of 64 bytes, one after another"},
    {.name = "outstanding",
     .type = SFC_OPTION_U64,
     .offset = AT(outstanding),
     .min = 1,
     .max = MAX_OUTSTANDING,
     .fallback = "4",
     .help = "calls on their way at a time where bodies are sent"},
    {.name = "body",
     .type = SFC_OPTION_SIZE,
     .offset = AT(body),
     .max = SFC_BENCH_MAX_BODY,
     .fallback = "0",
     .help = "size of the bodies; 0: 64K, 1M and 16M"},
    {.name = "volume",
     .type = SFC_OPTION_SIZE,
     .offset = AT(volume),
     .min = 1 << 20,
     .max = (uint64_t)1 << 40,
     .fallback = "512M",
     .help = "bytes sent for each size and direction"},
    SFC_COMMAND_JSON(AT(json)),
};
static const struct sfc_program program = {
    .name = "shardfc bench rpc",
    .summary = "Measures the RPC layer between two processes on loopback: round trips of 64 bytes "
               "and the throughput of tensor bodies in both directions, each beside plain TCP with "
               "the same exchange just after.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

/* One kind of exchange, `calls` times with `outstanding` of them at a time. */
struct exchange {
    uint32_t up, down;
    size_t calls, outstanding;
};

struct ends {
    struct sfc_rpc_runner *runner;
    struct sfc_rpc_client *client;
    int socket;
    uint8_t *body, *answer; /* [SFC_BENCH_MAX_BODY] */
};

/* ---- RPC */

struct flight;
struct call {
    struct flight *flight;
    double began;
};
struct flight {
    struct sfc_rpc_client *client;
    struct sfc_rpc_request request;
    struct exchange exchange;
    size_t started, ended;
    double *seconds; /* of each call, or NULL */
    struct call calls[MAX_OUTSTANDING];
    sem_t over;
    struct sfc_error err; /* the first */
};

static void flight_advance(struct flight *flight, struct call *call);

static void call_done(const struct sfc_rpc_reply_view *reply, void *ctx)
{
    struct call *call = ctx;
    struct flight *flight = call->flight;
    if (flight->err.code == SFC_OK && reply->code != SFC_OK) {
        sfc_fail(&flight->err, reply->code, "call %zu: %s", flight->ended + 1, reply->text);
    } else if (flight->err.code == SFC_OK && reply->tensor.size != flight->exchange.down) {
        sfc_fail(&flight->err, SFC_EINTERNAL, "call %zu: an answer of %zu bytes instead of %u",
                 flight->ended + 1, reply->tensor.size, flight->exchange.down);
    }
    if (flight->seconds != NULL) {
        flight->seconds[flight->ended] = sfc_command_clock() - call->began;
    }
    flight->ended++;
    flight_advance(flight, call);
}

/* Uses a call that is free for the next exchange, or ends the flight. */
static void flight_advance(struct flight *flight, struct call *call)
{
    if (flight->err.code == SFC_OK && flight->started < flight->exchange.calls) {
        call->began = sfc_command_clock();
        if (sfc_rpc_client_call(flight->client, &flight->request, call_done, call, NULL,
                                &flight->err) == SFC_OK) {
            flight->started++;
        }
    }
    if (flight->started == flight->ended &&
        (flight->err.code != SFC_OK || flight->ended == flight->exchange.calls)) {
        sem_post(&flight->over);
    }
}

static void flight_start(void *ctx)
{
    struct flight *flight = ctx;
    size_t n = flight->exchange.outstanding;
    for (size_t i = 0; i < n && i < flight->exchange.calls && flight->err.code == SFC_OK; i++) {
        flight->calls[i].flight = flight;
        flight_advance(flight, &flight->calls[i]);
    }
}

static int rpc_exchange(const struct ends *ends, const struct exchange *exchange, double *seconds,
                        struct sfc_error *err)
{
    uint8_t head[SFC_BENCH_HEAD_MAX];
    struct flight *flight = calloc(1, sizeof *flight);
    if (flight == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the calls");
    }
    flight->client = ends->client;
    flight->exchange = *exchange;
    flight->seconds = seconds;
    flight->request = (struct sfc_rpc_request){
        .method = SFC_BENCH_METHOD,
        .head = sfc_bench_head_pack(exchange->down, head),
        .tensor = {ends->body, exchange->up},
        .deadline_ms = DEADLINE_MS,
        .max_reply = SFC_BENCH_MAX_BODY + 64,
    };
    sem_init(&flight->over, 0, 0);
    sfc_rpc_loop_post(sfc_rpc_runner_loop(ends->runner), flight_start, flight);
    sem_wait(&flight->over);
    sem_destroy(&flight->over);
    int code = flight->err.code;
    if (code != SFC_OK) {
        sfc_fail(err, code, "%s", flight->err.text);
    }
    free(flight);
    return code;
}

/* ---- plain TCP */

struct writer {
    const struct ends *ends;
    struct exchange exchange;
    sem_t window; /* exchanges that may be sent */
    double began; /* of the last one */
    struct sfc_error err;
};

static void *write_all(void *ctx)
{
    struct writer *w = ctx;
    struct sfc_bench_frame frame = {w->exchange.up, w->exchange.down};
    int code = SFC_OK;
    for (size_t i = 0; i < w->exchange.calls && code == SFC_OK; i++) {
        sem_wait(&w->window);
        code = sfc_bench_send(w->ends->socket, &frame, sizeof frame, &w->err);
        if (code == SFC_OK) {
            code = sfc_bench_send(w->ends->socket, w->ends->body, frame.up, &w->err);
        }
    }
    return NULL;
}

/* An exchange without an answer would have no end: it gets one byte. */
static int tcp_many(const struct ends *ends, const struct exchange *exchange, struct sfc_error *err)
{
    struct writer writer = {.ends = ends, .exchange = *exchange};
    pthread_t thread;
    int code = SFC_OK;
    writer.exchange.down = exchange->down > 0 ? exchange->down : 1;
    sem_init(&writer.window, 0, (unsigned)exchange->outstanding);
    if (pthread_create(&thread, NULL, write_all, &writer) != 0) {
        return sfc_fail(err, SFC_EUNAVAILABLE, "no thread");
    }
    for (size_t i = 0; i < exchange->calls && code == SFC_OK; i++) {
        code = sfc_bench_receive(ends->socket, ends->answer, writer.exchange.down, err);
        sem_post(&writer.window);
    }
    if (code != SFC_OK) {
        shutdown(ends->socket, SHUT_RDWR); /* frees the writer where it waits for the socket ... */
        for (size_t i = 0; i < exchange->calls; i++) {
            sem_post(&writer.window); /* ... or for its turn */
        }
    }
    pthread_join(thread, NULL);
    sem_destroy(&writer.window);
    return code;
}

static int tcp_pings(const struct ends *ends, const struct exchange *exchange, double *seconds,
                     struct sfc_error *err)
{
    uint8_t request[sizeof(struct sfc_bench_frame) + PING_BYTES] = {0};
    struct sfc_bench_frame frame = {exchange->up, exchange->down};
    memcpy(request, &frame, sizeof frame);
    int code = SFC_OK;
    for (size_t i = 0; i < exchange->calls && code == SFC_OK; i++) {
        double began = sfc_command_clock();
        code = sfc_bench_send(ends->socket, request, sizeof request, err);
        if (code == SFC_OK) {
            code = sfc_bench_receive(ends->socket, ends->answer, exchange->down, err);
        }
        if (seconds != NULL) {
            seconds[i] = sfc_command_clock() - began;
        }
    }
    return code;
}

/* ---- measurements */

struct ping_result {
    double p50, p99; /* microseconds */
};
struct body_result {
    uint32_t bytes;
    double up[2], down[2]; /* GB/s by RPC and by plain TCP */
};
struct rpc_result {
    struct ping_result ping[2]; /* RPC, plain TCP */
    struct body_result bodies[MAX_SIZES];
    size_t count;
};

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static struct ping_result percentiles(double *seconds, size_t n)
{
    qsort(seconds, n, sizeof *seconds, ascending);
    return (struct ping_result){seconds[n / 2] * 1e6, seconds[n * 99 / 100] * 1e6};
}

typedef int (*ping_fn)(const struct ends *, const struct exchange *, double *, struct sfc_error *);

static int measure_pings(const struct ends *ends, size_t pings, struct ping_result out[2],
                         struct sfc_error *err)
{
    const ping_fn ways[2] = {rpc_exchange, tcp_pings};
    struct exchange warm = {PING_BYTES, PING_BYTES, WARM_PINGS, 1}, timed = warm;
    double *seconds = calloc(pings, sizeof *seconds);
    if (seconds == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for %zu times", pings);
    }
    timed.calls = pings;
    int code = SFC_OK;
    for (int way = 0; way < 2 && code == SFC_OK; way++) {
        code = ways[way](ends, &warm, NULL, err);
        if (code == SFC_OK) {
            code = ways[way](ends, &timed, seconds, err);
        }
        if (code == SFC_OK) {
            out[way] = percentiles(seconds, pings);
        }
    }
    free(seconds);
    return code;
}

static int many(const struct ends *ends, int way, const struct exchange *exchange,
                struct sfc_error *err)
{
    return way == 0 ? rpc_exchange(ends, exchange, NULL, err) : tcp_many(ends, exchange, err);
}

/* GB/s of one direction, by RPC and by plain TCP. */
static int measure_body(const struct ends *ends, const struct rpc_options *o, uint32_t up,
                        uint32_t down, double out[2], struct sfc_error *err)
{
    uint64_t bytes = (uint64_t)up + down;
    struct exchange timed = {up, down, (size_t)((o->volume + bytes - 1) / bytes), o->outstanding};
    struct exchange warm = timed;
    warm.calls = WARM_CALLS * o->outstanding;
    for (int way = 0; way < 2; way++) {
        int code = many(ends, way, &warm, err);
        double began = sfc_command_clock();
        if (code == SFC_OK) {
            code = many(ends, way, &timed, err);
        }
        if (code != SFC_OK) {
            return code;
        }
        out[way] = (double)(bytes * timed.calls) * 1e-9 / (sfc_command_clock() - began);
    }
    return SFC_OK;
}

static int measure(const struct ends *ends, const struct rpc_options *o, struct rpc_result *r,
                   struct sfc_error *err)
{
    static const uint32_t sizes[MAX_SIZES] = {64 << 10, 1 << 20, 16 << 20};
    int code = measure_pings(ends, o->pings, r->ping, err);
    r->count = o->body > 0 ? 1 : MAX_SIZES;
    for (size_t i = 0; i < r->count && code == SFC_OK; i++) {
        struct body_result *body = &r->bodies[i];
        body->bytes = o->body > 0 ? (uint32_t)o->body : sizes[i];
        code = measure_body(ends, o, body->bytes, 0, body->up, err);
        if (code == SFC_OK) {
            code = measure_body(ends, o, 0, body->bytes, body->down, err);
        }
    }
    return code;
}

/* ---- this end */

static int connect_tcp(int port, int *out, struct sfc_error *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *out = fd;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
        return sfc_fail_errno(err, "plain TCP: connect to 127.0.0.1:%d", port);
    }
    return SFC_OK;
}

static int ends_open(struct ends *ends, const struct sfc_bench_peer *peer, struct sfc_error *err)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", peer->rpc_port);
    ends->body = calloc(1, SFC_BENCH_MAX_BODY);
    ends->answer = calloc(1, SFC_BENCH_MAX_BODY);
    if (ends->body == NULL || ends->answer == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for bodies");
    }
    int code = connect_tcp(peer->tcp_port, &ends->socket, err);
    if (code == SFC_OK) {
        code = sfc_rpc_runner_start(NULL, &ends->runner, err);
    }
    return code == SFC_OK ? sfc_rpc_runner_connect(ends->runner, address, &ends->client, err)
                          : code;
}

static void ends_close(struct ends *ends)
{
    if (ends->client != NULL) {
        sfc_rpc_runner_disconnect(ends->runner, ends->client);
    }
    sfc_rpc_runner_stop(ends->runner);
    if (ends->socket >= 0) {
        close(ends->socket);
    }
    free(ends->body);
    free(ends->answer);
}

/* ---- report */

static json_t *ping_json(const struct ping_result *ping)
{
    return json_pack("{s:f, s:f}", "p50", ping->p50, "p99", ping->p99);
}

static void print_json(const struct rpc_options *o, const struct rpc_result *r)
{
    json_t *bodies = json_array();
    for (size_t i = 0; i < r->count; i++) {
        const struct body_result *b = &r->bodies[i];
        json_array_append_new(bodies, json_pack("{s:I, s:{s:f, s:f}, s:{s:f, s:f}}", "bytes",
                                                (json_int_t)b->bytes, "rpc_gb_s", "to_server",
                                                b->up[0], "from_server", b->down[0], "tcp_gb_s",
                                                "to_server", b->up[1], "from_server", b->down[1]));
    }
    sfc_command_json(json_pack("{s:i, s:I, s:{s:o, s:o}, s:I, s:I, s:o}", "ping_bytes", PING_BYTES,
                               "pings", (json_int_t)o->pings, "round_trip_us", "rpc",
                               ping_json(&r->ping[0]), "tcp", ping_json(&r->ping[1]), "outstanding",
                               (json_int_t)o->outstanding, "volume_bytes", (json_int_t)o->volume,
                               "bodies", bodies));
}

static void print_table(const struct rpc_options *o, const struct rpc_result *r)
{
    printf("round trips of %d bytes, one after another (%llu)\n", PING_BYTES,
           (unsigned long long)o->pings);
    printf("  %-10s %8.1f us median %8.1f us of 99 %%\n", "rpc", r->ping[0].p50, r->ping[0].p99);
    printf("  %-10s %8.1f us median %8.1f us of 99 %%\n", "plain TCP", r->ping[1].p50,
           r->ping[1].p99);
    printf("bodies, GB/s with %llu calls on their way\n", (unsigned long long)o->outstanding);
    printf("  %10s %17s %17s %19s %17s\n", "bytes", "rpc to server", "plain TCP", "rpc from server",
           "plain TCP");
    for (size_t i = 0; i < r->count; i++) {
        const struct body_result *b = &r->bodies[i];
        printf("  %10u %17.2f %17.2f %19.2f %17.2f\n", b->bytes, b->up[0], b->up[1], b->down[0],
               b->down[1]);
    }
}

static int run(const struct rpc_options *o, struct sfc_error *err)
{
    struct sfc_bench_peer peer;
    struct ends ends = {.socket = -1};
    struct rpc_result result = {0};
    uint64_t largest = o->body > 0 ? o->body : 16 << 20;
    if (o->outstanding * largest > SFC_LIMIT_SERVER_BYTES) {
        return sfc_fail(err, SFC_EINVAL,
                        "--outstanding %llu bodies of %llu bytes are more than a server holds "
                        "(%llu bytes)",
                        (unsigned long long)o->outstanding, (unsigned long long)largest,
                        (unsigned long long)SFC_LIMIT_SERVER_BYTES);
    }
    if (o->body > 0 && o->volume / o->body > MAX_CALLS) {
        return sfc_fail(err, SFC_EINVAL, "--volume is more than %d bodies of %llu bytes", MAX_CALLS,
                        (unsigned long long)o->body);
    }
    int code = sfc_bench_peer_start(&peer, err);
    if (code != SFC_OK) {
        return code;
    }
    code = ends_open(&ends, &peer, err);
    if (code == SFC_OK) {
        code = measure(&ends, o, &result, err);
    }
    ends_close(&ends);
    sfc_bench_peer_stop(&peer);
    if (code == SFC_OK) {
        (o->json ? print_json : print_table)(o, &result);
    }
    return code;
}

int sfc_bench_rpc_main(int argc, char **argv)
{
    struct rpc_options o;
    struct sfc_options *parsed;
    int exit_code = sfc_options_main(&program, argc, argv, &o, &parsed);
    if (exit_code >= 0) {
        return exit_code;
    }
    struct sfc_error err;
    int code = run(&o, &err);
    sfc_options_free(parsed);
    return code == SFC_OK ? 0 : sfc_command_failed("bench rpc", &err);
}

/* A real server and real clients on loopback: one process, one libuv loop each for server and
 * client side, each on its own thread, so that either side can be killed while the other lives.
 * Failures end the test. */
#ifndef SFC_TESTS_RPC_RIG_H
#define SFC_TESTS_RPC_RIG_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/rpc.h"

/* ---- a libuv loop with an RPC loop on a thread */

struct side {
    uv_loop_t uv;
    struct sfc_rpc_loop *rpc;
    pthread_t thread;
    sem_t stopped;
};
void side_start(struct side *side, const struct sfc_security *security);
void side_stop(struct side *side);
/* Runs fn on the loop thread and waits for it. */
void side_do(struct side *side, void (*fn)(void *ctx), void *ctx);

/* ---- the server under test: /test.v1.Test/Echo|Hold|Refuse|Flaky|Huge|Admin */

enum { ECHO_MAX = (8 << 20) + (64 << 10), HELD_MAX = 16 };

struct service {
    struct side side;
    struct sfc_rpc_server *server;
    int port;
    bool ready;
    const struct sfc_peer_limits *limits; /* NULL: the usual ones */
    sem_t arrived, cancelled;             /* of held calls */
    struct sfc_rpc_call *held[HELD_MAX];
    unsigned held_count;
    unsigned flaky_left; /* failures that Flaky still gives */
    unsigned flaky_seen;
};
extern const struct sfc_rpc_method rig_methods[];

void service_start(struct service *service, int port); /* port 0: the kernel chooses */
void service_start_with(struct service *service, int port, const struct sfc_security *security);
void service_start_limited(struct service *service, const struct sfc_peer_limits *limits);
void service_stop(struct service *service);
void service_end_held(void *service);    /* fails the held calls; for side_do */
void service_answer_held(void *service); /* answers them */

/* ---- the client side */

struct peer {
    struct side side;
    struct sfc_rpc_client *client;
    char address[64];
};
void peer_start(struct peer *peer, int port);
/* Not connected yet. */
void peer_start_with(struct peer *peer, int port, const struct sfc_security *security);
void peer_meet(struct peer *peer); /* makes the connection, in as many tries as that takes */
void peer_stop(struct peer *peer);

extern const uint8_t rig_head[2]; /* field 1, varint */
#define SMALL   ((struct sfc_bytes){rig_head, sizeof rig_head})
#define NOTHING ((struct sfc_bytes){NULL, 0})

int blocking(struct peer *peer, const char *method, struct sfc_bytes head, struct sfc_bytes tensor,
             unsigned deadline_ms, unsigned retries, struct sfc_rpc_owned *reply,
             struct sfc_error *err);
void expect_echo(struct peer *peer, size_t size, unsigned seed);

/* A call of Hold and how it ended. */
struct outcome {
    struct peer *peer;
    uint64_t handle;
    int code;
    sem_t over;
    unsigned count;
};
void outcome_start(struct outcome *outcome, struct peer *peer);
/* Until it has arrived: a server counts calls out only after their clients have the answers, and
 * may find too many for a while. */
void outcome_start_when_room(struct outcome *outcome, struct peer *peer, struct service *service);
void outcome_cancel(void *outcome); /* for side_do */

#endif

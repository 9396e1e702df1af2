/* RPC over gRPC C core on a libuv loop.
 *
 * One sfc_rpc_loop per process: a thread polls gRPC's completion queue, hands finished operations
 * to the libuv loop (one uv_async; the whole queue is drained each time), and every callback below
 * runs on the loop thread, never on the poller. Server and clients share the loop.
 *
 * Messages with a tensor: `head` is the packed protobuf-c message without field 15, `tensor` the
 * raw bytes of field 15; they go to gRPC as two slices. On receipt the tensor is found without a
 * copy when field 15 comes last (any sane encoder) and the rest is what protobuf-c unpacks. */
#ifndef SFC_PROTO_RPC_H
#define SFC_PROTO_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"
#include "proto/peer_limits.h"
#include "proto/security.h"

struct sfc_rpc_loop;
struct sfc_rpc_server;
struct sfc_rpc_client;
struct sfc_rpc_call; /* server side: one request in progress */

/* ---- loop */

/* Starts the poller. uv must outlive the loop object. security: of all servers and clients of this
 * loop, read in here only; NULL: plaintext on loopback. */
int sfc_rpc_loop_start(uv_loop_t *uv, const struct sfc_security *security,
                       struct sfc_rpc_loop **out, struct sfc_error *err);
/* Clients that are made from now on call servers that are not of ShardFC (etcd): no role is asked
 * of those. */
void sfc_rpc_loop_call_foreign(struct sfc_rpc_loop *loop);
/* What servers of this loop let one peer have, from now on; timeouts and the memory of messages
 * only those that are started from now on. Loop thread. Not said: sfc_peer_limits_usual. */
void sfc_rpc_loop_limit(struct sfc_rpc_loop *loop, const struct sfc_peer_limits *limits);
/* told hears of every connection or call that a server of this process refuses, and why; from any
 * thread, at most one of a kind in a second (those between are counted in the text). Before loops
 * are started. */
void sfc_rpc_on_refused(void (*told)(const char *text));
/* Loop thread. Shuts down servers and clients (pending calls end with SFC_ECANCELED), drains the
 * queue, joins the poller and calls done(ctx) (unless NULL) on the loop thread; the object is gone
 * then. */
void sfc_rpc_loop_stop(struct sfc_rpc_loop *loop, void (*done)(void *ctx), void *ctx);
/* Runs fn(ctx) on the loop thread soon; from any thread. Order is kept. */
void sfc_rpc_loop_post(struct sfc_rpc_loop *loop, void (*fn)(void *ctx), void *ctx);

/* Since the start of the loop: bytes of messages, and tries of calls after the first. Any thread.
 */
struct sfc_rpc_traffic {
    uint64_t received, sent, retries;
};
struct sfc_rpc_traffic sfc_rpc_loop_traffic(const struct sfc_rpc_loop *loop);

/* ---- server */

/* Called on the loop thread when a request is complete and within its bound. The handler (or
 * somebody later, on the loop thread) must end the call exactly once with sfc_rpc_reply or
 * sfc_rpc_fail. */
typedef void (*sfc_rpc_handler)(struct sfc_rpc_call *call, void *ctx);

struct sfc_rpc_method {
    const char *path; /* "/shardfc.v1.Shard/Logits" */
    sfc_rpc_handler handler;
    size_t max_request;   /* bytes; larger: SFC_ELIMIT without calling the handler */
    unsigned max_pending; /* calls of this method waiting for an answer; more: SFC_ELIMIT (retry) */
    unsigned roles; /* of peers that may call it: bits of enum sfc_role; others: SFC_EDENIED */
};

/* listen: "HOST:PORT", port 0 = chosen by the kernel. *port: the bound port. methods is copied; ctx
 * is passed to handlers. Answers grpc.health.v1.Health/Check by itself (SERVING when ready was
 * set). */
int sfc_rpc_server_start(struct sfc_rpc_loop *loop, const char *listen,
                         const struct sfc_rpc_method *methods, size_t count, void *ctx,
                         struct sfc_rpc_server **out, int *port, struct sfc_error *err);
void sfc_rpc_server_set_ready(struct sfc_rpc_server *server, bool ready);
/* From now on calls end with this failure, health checks aside, and no handler sees them. SFC_OK:
 * not any more. */
void sfc_rpc_server_refuse(struct sfc_rpc_server *server, int code, const char *text);
/* What is served belongs to this run from now on (NULL: to none): a peer whose certificate is for
 * another one gets SFC_EDENIED, for calls that come and for answers to those that wait. */
void sfc_rpc_server_set_run(struct sfc_rpc_server *server, const char *run);

/* Requests of a run take so many bytes at a time (0: no run): where the limits say nothing about
 * the memory of messages, it follows from this. */
void sfc_rpc_server_expect(struct sfc_rpc_server *server, uint64_t bytes);
/* How much messages may take of a server then: what is on its way, held, and kept to be used again.
 * For memory plans. */
uint64_t sfc_rpc_message_memory(const struct sfc_peer_limits *limits, uint64_t bytes);

struct sfc_bytes sfc_rpc_call_head(const struct sfc_rpc_call *call); /* protobuf bytes without 15 */
struct sfc_bytes
sfc_rpc_call_tensor(const struct sfc_rpc_call *call); /* field 15, 8-byte aligned */
/* cancelled(ctx) is called at most once, on the loop thread, if the peer gives up, dies or its
 * deadline passes before the answer; the call must still be ended. */
void sfc_rpc_call_on_cancel(struct sfc_rpc_call *call, void (*cancelled)(void *ctx), void *ctx);
const char *sfc_rpc_call_peer(const struct sfc_rpc_call *call);
/* Its roles, bits of enum sfc_role; without TLS all of them. */
unsigned sfc_rpc_call_roles(const struct sfc_rpc_call *call);

/* head: copied. tensor: borrowed until release(release_ctx), called exactly once on the loop thread
 * (release may be NULL when tensor.size is 0); before this returns when the peer is gone already. A
 * call must be ended even after the loop stopped (its peer is gone by then). */
void sfc_rpc_reply(struct sfc_rpc_call *call, struct sfc_bytes head, struct sfc_bytes tensor,
                   void (*release)(void *ctx), void *release_ctx);
/* The peer sees a gRPC status, its message text, and the sfc_status number in trailing metadata
 * "sfc-status". */
void sfc_rpc_fail(struct sfc_rpc_call *call, int code, const char *text);

/* ---- client */

enum { SFC_RPC_ADDRESSES = 16 };

/* A lazily connected channel; reconnects by itself with backoff and jitter. address: "HOST:PORT",
 * or several of them with commas between, of which one is the one to ask: a try that ends with
 * SFC_EUNAVAILABLE or SFC_ETIMEOUT makes the next one, of this call or another, go to the next
 * address. */
int sfc_rpc_client_new(struct sfc_rpc_loop *loop, const char *address, struct sfc_rpc_client **out,
                       struct sfc_error *err);
/* Another one with the same addresses, which begins with the one that `other` asks now. Loop
 * thread. */
int sfc_rpc_client_like(const struct sfc_rpc_client *other, struct sfc_rpc_client **out,
                        struct sfc_error *err);
unsigned sfc_rpc_client_addresses(const struct sfc_rpc_client *client); /* how many */
/* Loop thread; NULL is fine. Pending calls end with SFC_ECANCELED, later, not from in here; every
 * future of sfc_rpc_start must have been waited for. */
void sfc_rpc_client_free(struct sfc_rpc_client *client);
/* Loop thread. The peer is known to be there: a connection that waits before it is tried again is
 * tried now. */
void sfc_rpc_client_reconnect(struct sfc_rpc_client *client);
const char *sfc_rpc_client_address(const struct sfc_rpc_client *client);

struct sfc_rpc_request {
    const char *method;      /* "/shardfc.v1.Scheduler/Ticket" */
    struct sfc_bytes head;   /* copied */
    struct sfc_bytes tensor; /* borrowed until the reply callback; size 0 = none */
    unsigned deadline_ms;    /* for one try */
    unsigned retries; /* further tries after SFC_EUNAVAILABLE or SFC_ETIMEOUT with backoff; only
                         for calls that the protocol allows to repeat */
    size_t max_reply; /* bytes; 0 = the limit of proto/limits.h */
    /* Where the tensor of the answer goes when it has exactly into_size bytes: the layer's own
     * memory is not needed then. Written just before the reply callback, and never once the call
     * was cancelled or its client freed. */
    void *into;
    size_t into_size; /* 0 = nowhere */
};
struct sfc_rpc_reply_view {
    int code;              /* SFC_OK or why not */
    const char *text;      /* message of a failure */
    struct sfc_bytes head; /* valid during the callback */
    struct sfc_bytes tensor;
};
typedef void (*sfc_rpc_done)(const struct sfc_rpc_reply_view *reply, void *ctx);

/* From the loop thread only. If this fails, done is never called; otherwise exactly once,
 * never from in here. If a peer stops reading while a tensor is on its way, done comes up to 20 s
 * after the deadline: the transport lets go of the memory only then. *handle (may be NULL) serves
 * sfc_rpc_client_cancel until then. */
int sfc_rpc_client_call(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                        sfc_rpc_done done, void *ctx, uint64_t *handle, struct sfc_error *err);
void sfc_rpc_client_cancel(struct sfc_rpc_client *client, uint64_t handle);

/* Blocking form for compute threads and command-line tools: from any thread except the loop thread,
 * while the loop runs elsewhere. The reply is owned by the caller (sfc_rpc_owned_free). Returns the
 * call's status. Many may be in flight: sfc_rpc_start returns at once, sfc_rpc_wait blocks. */
struct sfc_rpc_owned {
    struct sfc_bytes head;
    struct sfc_bytes tensor;
    void *memory;
    bool answered; /* the status is the peer's own, not of the way to it; also on failure */
};
struct sfc_rpc_future;
int sfc_rpc_start(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                  struct sfc_rpc_future **out, struct sfc_error *err);
int sfc_rpc_wait(struct sfc_rpc_future *future, struct sfc_rpc_owned *out, struct sfc_error *err);
/* Waits at most so long for the end of the call; true: sfc_rpc_wait will not block. */
bool sfc_rpc_wait_for(struct sfc_rpc_future *future, unsigned ms);
void sfc_rpc_owned_free(struct sfc_rpc_owned *reply);

#endif

/* Private to proto/rpc_*.c: tags of gRPC operations, timers, receive buffers, status mapping.
 *
 * Life of an operation: sfc_rpc_op_begin on the loop thread -> gRPC -> poller or another gRPC
 * thread calls sfc_rpc_enqueue -> the loop thread drains the queue and calls tag->fire. loop->ops
 * counts what is on its way, so the loop can only be torn down when nothing will come any more.
 * Only the queue (under its lock) and the buffer pool are touched by more than one thread. */
#ifndef SFC_PROTO_RPC_INTERNAL_H
#define SFC_PROTO_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "proto/limits.h"
#include "proto/rpc.h"
#include "proto/wire.h"

#define SFC_CONTAINER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

enum {
    SFC_RPC_KEEPALIVE_MS = 10000,        /* a silent peer is asked after this time */
    SFC_RPC_KEEPALIVE_TIMEOUT_MS = 10000 /* and given up after this */
};

/* ---- doubly linked list with a head node */

struct sfc_rpc_link {
    struct sfc_rpc_link *prev, *next;
};

static inline void sfc_rpc_list_init(struct sfc_rpc_link *head)
{
    head->prev = head->next = head;
}

static inline bool sfc_rpc_list_empty(const struct sfc_rpc_link *head)
{
    return head->next == head;
}

static inline void sfc_rpc_list_insert_before(struct sfc_rpc_link *at, struct sfc_rpc_link *item)
{
    item->prev = at->prev;
    item->next = at;
    at->prev->next = item;
    at->prev = item;
}

static inline void sfc_rpc_list_remove(struct sfc_rpc_link *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    sfc_rpc_list_init(item);
}

/* ---- loop */

struct sfc_rpc_tag {
    void (*fire)(struct sfc_rpc_tag *tag, bool ok); /* on the loop thread */
    struct sfc_rpc_tag *next;
    bool ok;
    bool counted;
};

struct sfc_rpc_timer {
    struct sfc_rpc_link link; /* in loop->timers by due time; alone when not armed */
    uint64_t due;             /* uv_now */
    void (*fire)(struct sfc_rpc_timer *timer);
};

struct sfc_rpc_pool;
struct sfc_rpc_trust;

struct sfc_rpc_loop {
    uv_loop_t *uv;
    struct sfc_rpc_trust *trust;
    struct sfc_peer_limits limits;
    uv_async_t wake;
    uv_timer_t timer;
    unsigned open_handles;
    grpc_completion_queue *queue;
    pthread_t poller;
    pthread_mutex_t lock; /* guards first and last */
    struct sfc_rpc_tag *first, *last;
    struct sfc_rpc_tag poller_gone;
    size_t ops;
    struct sfc_rpc_pool *pool;
    struct sfc_rpc_link timers;
    struct sfc_rpc_link servers; /* struct sfc_rpc_server.link */
    struct sfc_rpc_link clients; /* struct sfc_rpc_client.link */
    uint64_t random;             /* state of the jitter generator */
    uint64_t next_handle;
    _Atomic uint64_t received, sent, retries; /* bytes of messages; tries after the first */
    bool stopping;
    bool draining; /* completion queue is shutting down */
    void (*done)(void *ctx);
    void *done_ctx;
};

/* Marks the tag as on its way; loop thread. Every begin is followed by exactly one enqueue. */
void sfc_rpc_op_begin(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag,
                      void (*fire)(struct sfc_rpc_tag *tag, bool ok));
/* Takes back a begin whose start failed; loop thread. */
void sfc_rpc_op_abandon(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag);
/* Any thread. */
void sfc_rpc_enqueue(struct sfc_rpc_loop *loop, struct sfc_rpc_tag *tag, bool ok);

void sfc_rpc_timer_init(struct sfc_rpc_timer *timer, void (*fire)(struct sfc_rpc_timer *timer));
void sfc_rpc_timer_start(struct sfc_rpc_loop *loop, struct sfc_rpc_timer *timer, uint64_t ms);
void sfc_rpc_timer_stop(struct sfc_rpc_timer *timer);

uint64_t sfc_rpc_random(struct sfc_rpc_loop *loop);

/* The limits of the loop are others now. */
void sfc_rpc_server_limit(struct sfc_rpc_server *server);
/* Shutdown, called by the loop (server, client) and repeatedly until true (gone). */
void sfc_rpc_server_stop(struct sfc_rpc_server *server);
bool sfc_rpc_server_gone(const struct sfc_rpc_server *server);
void sfc_rpc_server_destroy(struct sfc_rpc_server *server);
struct sfc_rpc_server *sfc_rpc_server_of_link(struct sfc_rpc_link *link);
struct sfc_rpc_client *sfc_rpc_client_of_link(struct sfc_rpc_link *link);

/* ---- receive buffers: a few size classes on free lists */

struct sfc_rpc_buffer; /* memory of one message, aligned to 64 bytes */

struct sfc_rpc_pool *sfc_rpc_pool_new(void);
/* The loop gives up its part; the pool goes when its last buffer came back. */
void sfc_rpc_pool_release(struct sfc_rpc_pool *pool);
/* Most bytes that stay in the pool, unused. */
#define SFC_RPC_POOL_KEEPS ((size_t)256 << 20)
struct sfc_rpc_buffer *sfc_rpc_buffer_get(struct sfc_rpc_pool *pool, size_t size);
uint8_t *sfc_rpc_buffer_data(struct sfc_rpc_buffer *buffer);
void sfc_rpc_buffer_put(struct sfc_rpc_buffer *buffer); /* any thread; NULL is fine */

struct sfc_rpc_body {
    struct sfc_rpc_buffer *buffer;
    struct sfc_bytes head, tensor;
    size_t size;   /* as received */
    bool answered; /* the status is the peer's own, not of the way to it */
};

/* Checks size and structure and copies the slices once, head and tensor apart, a tensor of
 * into_size bytes to `into`. Doesn't destroy `from`. */
int sfc_rpc_receive(struct sfc_rpc_pool *pool, grpc_byte_buffer *from, size_t max, void *into,
                    size_t into_size, struct sfc_rpc_body *out, struct sfc_error *err);

/* ---- sending */

/* A tensor lent to gRPC: `tag` comes back when gRPC let go of the memory. */
struct sfc_rpc_loan {
    struct sfc_rpc_loop *loop;
    struct sfc_rpc_tag tag;
};

/* Copies of head and the tensor's tag and length in one slice. */
grpc_slice sfc_rpc_head_slice(struct sfc_bytes head, size_t tensor_size);
/* head: referenced. With a tensor, begins loan->tag with `returned`. */
grpc_byte_buffer *sfc_rpc_message(struct sfc_rpc_loop *loop, grpc_slice head,
                                  struct sfc_bytes tensor, struct sfc_rpc_loan *loan,
                                  void (*returned)(struct sfc_rpc_tag *tag, bool ok));

/* Counts a message for sfc_rpc_loop_traffic; NULL is none. */
static inline void sfc_rpc_count(_Atomic uint64_t *counter, grpc_byte_buffer *message)
{
    if (message != NULL) {
        atomic_fetch_add_explicit(counter, grpc_byte_buffer_length(message), memory_order_relaxed);
    }
}

/* ---- status */

#define SFC_RPC_STATUS_KEY "sfc-status"

grpc_status_code sfc_rpc_status_to_grpc(int code);
/* Code of a failed call from what the peer sent; metadata may name the exact one. */
int sfc_rpc_status_from_grpc(grpc_status_code status, const grpc_metadata_array *trailing);
/* Whether a peer of ours gave the status. */
bool sfc_rpc_status_is_named(const grpc_metadata_array *trailing);

#endif

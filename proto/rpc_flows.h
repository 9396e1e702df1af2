/* Private to proto/rpc_*.c: how many bytes of requests that are not complete yet each connection,
 * each peer and all of them have at a server. One thread.
 *
 * gRPC tells neither the length that a message announces nor how much of it is there, nor does it
 * refuse a message for its length before the last byte has come. What is known: how many bytes came
 * over a connection (the kernel counts them), which calls of it wait for their message, and how
 * long messages were that came to their end. Bytes that came since the oldest of the waiting calls
 * began, less those of messages that are complete, are what it has of messages on their way.
 * Waiting calls are in two generations: when all of the older one are over, what came before the
 * younger one counts no more (with it what is known from no message: headers, and calls that were
 * given up). gRPC keeps what it has read at once as a whole as long as any piece of it is of a
 * message on its way, so a message that comes in tiny pieces among others holds all of these:
 * beside one that takes long nothing is subtracted.
 *
 * The kernel's counts may be older than what is known of messages: never may they be taken for less
 * than those have. */
#ifndef SFC_PROTO_RPC_FLOWS_H
#define SFC_PROTO_RPC_FLOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/rpc_peers.h"
#include "proto/rpc_place.h"

struct sfc_rpc_flows;
struct sfc_rpc_flow; /* one connection */

/* A call whose message is on its way. */
struct sfc_rpc_incoming {
    struct sfc_rpc_flow *flow; /* NULL: not counted */
    unsigned generation;
};

struct sfc_rpc_flows *sfc_rpc_flows_new(void); /* NULL: no memory */
/* Before the peers go. */
void sfc_rpc_flows_free(struct sfc_rpc_flows *flows);
size_t sfc_rpc_flows_count(const struct sfc_rpc_flows *flows);

/* A message begins to come over the connection from place, over which so many bytes came before, as
 * far as is known (0: it is new); without memory it isn't counted. */
void sfc_rpc_flows_begin(struct sfc_rpc_flows *flows, const struct sfc_rpc_place *place,
                         uint64_t came, struct sfc_rpc_peer *peer, struct sfc_rpc_incoming *out);
/* It is complete, with so many bytes, or given up, with 0. */
void sfc_rpc_flows_end(struct sfc_rpc_incoming *incoming, uint64_t bytes);

/* received(ctx, place, &bytes): how many came over that connection since it was made, now or a
 * moment ago, or false when it is gone or was not seen yet. To be called now and then while there
 * are any; now: in ms, any origin. */
void sfc_rpc_flows_look(struct sfc_rpc_flows *flows, uint64_t now,
                        bool (*received)(void *ctx, const struct sfc_rpc_place *place,
                                         uint64_t *bytes),
                        void *ctx);
/* As of that look. Where a peer has more than of_peer, or all together more than of_all: the
 * largest connection of the peer with most, which then counts no more (it has to be closed).
 * false: nobody has too much. */
struct sfc_rpc_excess {
    struct sfc_rpc_place place;
    struct sfc_rpc_peer *peer;
    uint64_t bytes; /* of the peer */
    uint64_t limit; /* that it is over; 0: all together are over theirs */
};
bool sfc_rpc_flows_excess(struct sfc_rpc_flows *flows, uint64_t of_peer, uint64_t of_all,
                          struct sfc_rpc_excess *out);

#endif

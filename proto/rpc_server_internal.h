/* Private to proto/rpc_server.c (calls) and proto/rpc_listen.c (start and stop). */
#ifndef SFC_PROTO_RPC_SERVER_INTERNAL_H
#define SFC_PROTO_RPC_SERVER_INTERNAL_H

#include "proto/rpc_flows.h"
#include "proto/rpc_guard.h"
#include "proto/rpc_internal.h"
#include "proto/rpc_peers.h"

struct sfc_rpc_served {
    struct sfc_rpc_method spec; /* path is a copy */
    unsigned pending;
};

struct sfc_rpc_server {
    struct sfc_rpc_link link;
    struct sfc_rpc_loop *loop;
    grpc_server *grpc;
    grpc_resource_quota *quota; /* of messages on their way in */
    struct sfc_rpc_guard *guard;
    struct sfc_rpc_peers *peers;
    struct sfc_rpc_flows *flows;
    struct sfc_rpc_timer look; /* at the flows; runs while there are any */
    bool looking;
    struct sfc_rpc_tag shutdown;
    struct sfc_rpc_served *methods;
    size_t method_count;
    void *ctx;
    unsigned accepts;         /* calls asked for now */
    uint64_t bytes;           /* of requests held */
    uint64_t most;            /* of these */
    size_t users;             /* the loop and every call; the last one frees */
    struct sfc_error refusal; /* of every call; SFC_OK: none */
    char run[64];             /* whose data is served; "": no run's */
    bool ready;
    bool stopping;
    bool down; /* shutdown is over */
};

/* Tops up the calls that the server asks gRPC for. */
void sfc_rpc_server_accept(struct sfc_rpc_server *server);
void sfc_rpc_server_unref(struct sfc_rpc_server *server);

/* The most that one peer may have of what is held, and of what is on its way in. */
uint64_t sfc_rpc_server_of_peer(const struct sfc_rpc_server *server);

/* ---- proto/rpc_inflow.c: who fills the memory of requests that are on their way in */

void sfc_rpc_inflow_init(struct sfc_rpc_server *server);
void sfc_rpc_inflow_stop(struct sfc_rpc_server *server);
void sfc_rpc_inflow_begin(struct sfc_rpc_server *server, const char *address,
                          struct sfc_rpc_peer *peer, struct sfc_rpc_incoming *out);

#endif

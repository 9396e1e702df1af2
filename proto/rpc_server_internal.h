/* Private to proto/rpc_server.c (calls) and proto/rpc_listen.c (start and stop). */
#ifndef SFC_PROTO_RPC_SERVER_INTERNAL_H
#define SFC_PROTO_RPC_SERVER_INTERNAL_H

#include "proto/rpc_internal.h"

struct sfc_rpc_served {
    struct sfc_rpc_method spec; /* path is a copy */
    unsigned pending;
};

struct sfc_rpc_server {
    struct sfc_rpc_link link;
    struct sfc_rpc_loop *loop;
    grpc_server *grpc;
    struct sfc_rpc_tag shutdown;
    struct sfc_rpc_served *methods;
    size_t method_count;
    void *ctx;
    unsigned accepts; /* calls asked for now */
    uint64_t bytes;   /* of requests held */
    size_t users;     /* the loop and every call; the last one frees */
    struct sfc_error refusal; /* of every call; SFC_OK: none */
    bool ready;
    bool stopping;
    bool down; /* shutdown is over */
};

/* Tops up the calls that the server asks gRPC for. */
void sfc_rpc_server_accept(struct sfc_rpc_server *server);
void sfc_rpc_server_unref(struct sfc_rpc_server *server);

#endif

#include "proto/rpc_server_internal.h"

#include <stdlib.h>
#include <string.h>

#include "proto/rpc_trust.h"

static grpc_arg int_arg(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value = {.integer = value}};
}

static grpc_arg quota_arg(grpc_resource_quota *quota)
{
    return (grpc_arg){
        .type = GRPC_ARG_POINTER,
        .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
        .value = {.pointer = {.p = quota, .vtable = grpc_resource_quota_arg_vtable()}}};
}

static grpc_server *make_server(const struct sfc_rpc_server *server, size_t max_request)
{
    const struct sfc_peer_limits *limits = &server->loop->limits;
    if (max_request > server->most) {
        max_request = (size_t)server->most;
    }
    grpc_arg args[] = {
        quota_arg(server->quota),
        int_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, (int)limits->handshake_ms),
        int_arg(GRPC_ARG_MAX_CONNECTION_IDLE_MS, (int)limits->idle_ms),
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)max_request),
        int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, SFC_LIMIT_STREAMS),
        int_arg(GRPC_ARG_MAX_METADATA_SIZE, SFC_LIMIT_METADATA),
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),         /* a second server on a port must fail */
        int_arg("grpc.per_message_decompression", 0), /* bounds hold for what is unpacked */
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, SFC_RPC_KEEPALIVE_MS),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, SFC_RPC_KEEPALIVE_TIMEOUT_MS),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, SFC_RPC_KEEPALIVE_MS / 2),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args list = {sizeof args / sizeof *args, args};
    return grpc_server_create(&list, NULL);
}

static int copy_methods(struct sfc_rpc_server *server, const struct sfc_rpc_method *methods,
                        size_t count, size_t *max_request, struct sfc_error *err)
{
    server->methods = calloc(count > 0 ? count : 1, sizeof *server->methods);
    if (server->methods == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for the method table");
    }
    *max_request = SFC_LIMIT_SMALL;
    for (size_t i = 0; i < count; i++) {
        if (methods[i].path[0] != '/' || methods[i].max_request == 0 ||
            methods[i].max_request > SFC_LIMIT_MESSAGE || methods[i].max_pending == 0 ||
            methods[i].roles == 0) {
            return sfc_fail(err, SFC_EINVAL,
                            "method %s: bounds must be positive, requests <= %u, and some role "
                            "must be allowed",
                            methods[i].path, SFC_LIMIT_MESSAGE);
        }
        server->methods[i].spec = methods[i];
        server->methods[i].spec.path = strdup(methods[i].path);
        if (server->methods[i].spec.path == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "no memory for the method table");
        }
        server->method_count++;
        if (methods[i].max_request > *max_request) {
            *max_request = methods[i].max_request;
        }
    }
    return SFC_OK;
}

static int bind_server(struct sfc_rpc_server *server, const char *listen, int *port,
                       struct sfc_error *err)
{
    grpc_server_credentials *credentials = NULL;
    int code = sfc_rpc_trust_serve(server->loop->trust, listen, &credentials, err);
    if (code != SFC_OK) {
        return code;
    }
    *port = grpc_server_add_http2_port(server->grpc, listen, credentials);
    grpc_server_credentials_release(credentials);
    if (*port <= 0) {
        return sfc_fail(err, SFC_EUNAVAILABLE,
                        "cannot listen on %s: the port is taken or the address is not ours",
                        listen);
    }
    return SFC_OK;
}

static void on_shutdown(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    SFC_CONTAINER(tag, struct sfc_rpc_server, shutdown)->down = true;
}

static void forget_failed(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_server *server = SFC_CONTAINER(tag, struct sfc_rpc_server, shutdown);
    sfc_rpc_server_destroy(server);
}

/* ---- limits */

/* Half of the memory of messages is for what is on its way in, half for what is held. */
static uint64_t half_of(const struct sfc_peer_limits *limits, uint64_t bytes)
{
    uint64_t most = SFC_LIMIT_MESSAGE + 2 * bytes;
    if (limits->message_memory > 0) {
        return limits->message_memory / 2;
    }
    return most < SFC_LIMIT_SERVER_BYTES ? most : SFC_LIMIT_SERVER_BYTES;
}

void sfc_rpc_server_expect(struct sfc_rpc_server *server, uint64_t bytes)
{
    server->most = half_of(&server->loop->limits, bytes);
    grpc_resource_quota_resize(server->quota, (size_t)server->most);
}

uint64_t sfc_rpc_message_memory(const struct sfc_peer_limits *limits, uint64_t bytes)
{
    uint64_t half = half_of(limits, bytes);
    return half + half / 4 * 5 + SFC_RPC_POOL_KEEPS; /* buffers are up to a quarter too large */
}

void sfc_rpc_server_limit(struct sfc_rpc_server *server)
{
    const struct sfc_peer_limits *limits = &server->loop->limits;
    if (server->guard != NULL) {
        sfc_rpc_guard_set(server->guard, limits->connections, limits->of_one_address);
    }
}

/* "HOST:PORT" with a port of 0..65535; [::1]:0 too. */
static bool listen_valid(const char *listen)
{
    const char *colon = strrchr(listen, ':');
    if (colon == NULL || colon == listen || strlen(listen) > SFC_LIMIT_ADDRESS) {
        return false;
    }
    size_t digits = strspn(colon + 1, "0123456789");
    return digits > 0 && digits <= 5 && colon[1 + digits] == '\0' && atoi(colon + 1) <= 65535;
}

int sfc_rpc_server_start(struct sfc_rpc_loop *loop, const char *listen,
                         const struct sfc_rpc_method *methods, size_t count, void *ctx,
                         struct sfc_rpc_server **out, int *port, struct sfc_error *err)
{
    size_t max_request = 0;
    int bound = 0;
    if (loop->stopping) {
        return sfc_fail(err, SFC_ESTATE, "the RPC loop is stopping");
    }
    if (!listen_valid(listen)) {
        return sfc_fail(err, SFC_EINVAL, "%s is not HOST:PORT with a port of 0 to 65535", listen);
    }
    struct sfc_rpc_server *server = calloc(1, sizeof *server);
    if (server == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a server");
    }
    server->loop = loop;
    server->ctx = ctx;
    server->users = 1;
    server->quota = grpc_resource_quota_create("requests");
    sfc_rpc_server_expect(server, 0);
    server->peers = sfc_rpc_peers_new();
    server->flows = sfc_rpc_flows_new();
    sfc_rpc_inflow_init(server);
    int code = server->peers != NULL && server->flows != NULL
                   ? SFC_OK
                   : sfc_fail(err, SFC_ENOMEM, "no memory for a server");
    if (code == SFC_OK) {
        code = copy_methods(server, methods, count, &max_request, err);
    }
    if (code != SFC_OK) {
        sfc_rpc_server_unref(server);
        return code;
    }
    server->grpc = make_server(server, max_request);
    sfc_rpc_list_insert_before(&loop->servers, &server->link);
    grpc_server_register_completion_queue(server->grpc, loop->queue, NULL);
    code = bind_server(server, listen, &bound, err);
    if (code == SFC_OK) {
        code = sfc_rpc_guard_start(bound, loop->limits.connections, loop->limits.of_one_address,
                                   &server->guard, err);
    }
    if (code != SFC_OK) {
        server->stopping = true;
        sfc_rpc_op_begin(loop, &server->shutdown, forget_failed);
        grpc_server_shutdown_and_notify(server->grpc, loop->queue, &server->shutdown);
        return code;
    }
    grpc_server_start(server->grpc);
    sfc_rpc_server_accept(server);
    *out = server;
    *port = bound;
    return SFC_OK;
}

void sfc_rpc_server_stop(struct sfc_rpc_server *server)
{
    if (server->stopping) {
        return;
    }
    server->stopping = true;
    sfc_rpc_inflow_stop(server);
    sfc_rpc_guard_stop(server->guard);
    server->guard = NULL;
    sfc_rpc_op_begin(server->loop, &server->shutdown, on_shutdown);
    grpc_server_shutdown_and_notify(server->grpc, server->loop->queue, &server->shutdown);
    grpc_server_cancel_all_calls(server->grpc);
}

bool sfc_rpc_server_gone(const struct sfc_rpc_server *server)
{
    return server->down;
}

void sfc_rpc_server_destroy(struct sfc_rpc_server *server)
{
    sfc_rpc_list_remove(&server->link);
    grpc_server_destroy(server->grpc);
    server->grpc = NULL;
    sfc_rpc_server_unref(server);
}

struct sfc_rpc_server *sfc_rpc_server_of_link(struct sfc_rpc_link *link)
{
    return SFC_CONTAINER(link, struct sfc_rpc_server, link);
}

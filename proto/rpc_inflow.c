#include <inttypes.h>
#include <stdio.h>

#include "proto/rpc_server_internal.h"
#include "proto/rpc_trust.h"

enum {
    LOOK_MS = 100,
    REFUSED_MS = 10000, /* calls of who had too much */
    EIGHTHS = 7         /* of the memory may be used; gRPC ends calls when all of it is */
};

static bool received(void *ctx, const struct sfc_rpc_place *place, uint64_t *bytes)
{
    const struct sfc_rpc_server *server = ctx;
    return sfc_rpc_guard_received(server->guard, place, bytes);
}

/* Who is over its limit is told apart by the name in its certificate and refused for a while, for
 * it would begin anew at once. In plaintext that would hit whoever has the same address. */
static void send_away(struct sfc_rpc_server *server, const struct sfc_rpc_excess *excess)
{
    char why[160], text[320];
    bool secure = sfc_rpc_trust_secure(server->loop->trust);
    if (excess->limit > 0) {
        snprintf(why, sizeof why, "limit %" PRIu64 " (--peer-memory)", excess->limit);
    } else {
        snprintf(why, sizeof why, "the most of all, who fill half of --message-memory");
    }
    snprintf(text, sizeof text,
             "its requests that are not complete have %" PRIu64
             " bytes, %s: its connection is closed%s",
             excess->bytes, why, secure ? ", its calls are refused for 10 s" : "");
    sfc_rpc_trust_tell_limit(sfc_rpc_peer_called(excess->peer), text);
    sfc_rpc_guard_close(server->guard, &excess->place);
    if (secure) {
        sfc_rpc_peer_refuse(excess->peer, uv_now(server->loop->uv) + REFUSED_MS);
    }
}

/* --peer-memory is for what is held, too, and may be less than one message: that is then refused
 * when it is complete, with a reason. */
static uint64_t of_peer(const struct sfc_rpc_server *server)
{
    uint64_t limit = sfc_rpc_server_of_peer(server), least = server->most / 8;
    return limit > least ? limit : least;
}

static void look(struct sfc_rpc_timer *timer)
{
    struct sfc_rpc_server *server = SFC_CONTAINER(timer, struct sfc_rpc_server, look);
    struct sfc_rpc_excess excess;
    sfc_rpc_flows_look(server->flows, uv_now(server->loop->uv), received, server);
    while (
        sfc_rpc_flows_excess(server->flows, of_peer(server), server->most / 8 * EIGHTHS, &excess)) {
        send_away(server, &excess);
    }
    server->looking = sfc_rpc_flows_count(server->flows) > 0;
    if (server->looking) {
        sfc_rpc_timer_start(server->loop, timer, LOOK_MS);
    }
}

void sfc_rpc_inflow_init(struct sfc_rpc_server *server)
{
    sfc_rpc_timer_init(&server->look, look);
}

void sfc_rpc_inflow_stop(struct sfc_rpc_server *server)
{
    sfc_rpc_timer_stop(&server->look);
    server->looking = true; /* never again */
}

void sfc_rpc_inflow_begin(struct sfc_rpc_server *server, const char *address,
                          struct sfc_rpc_peer *peer, struct sfc_rpc_incoming *out)
{
    struct sfc_rpc_place place;
    uint64_t came = 0;
    if (server->guard == NULL || !sfc_rpc_place_read(address, &place)) {
        return; /* it stops, or has no address */
    }
    (void)received(server, &place, &came);
    sfc_rpc_flows_begin(server->flows, &place, came, peer, out);
    if (!server->looking) {
        server->looking = true;
        sfc_rpc_timer_start(server->loop, &server->look, LOOK_MS);
    }
}

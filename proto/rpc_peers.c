#include "proto/rpc_peers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHAINS = 256, KEPT = 4096 }; /* peers without calls are remembered up to that many peers */

struct sfc_rpc_peer {
    struct sfc_rpc_peer *next; /* of its chain */
    uint64_t calls, bytes;
    double tokens; /* calls that may come at once */
    uint64_t seen; /* when the tokens were so many */
    uint64_t connections, incoming, refused_until;
    char name[SFC_RPC_PEER_NAME];
};

struct sfc_rpc_peers {
    struct sfc_rpc_peer *chains[CHAINS];
    size_t count;
};

const struct sfc_peer_limits sfc_peer_limits_usual = {.connections = 4096,
                                                      .of_one_address = 1024,
                                                      .calls = 8192,
                                                      .rate = 20000,
                                                      .handshake_ms = 20000,
                                                      .idle_ms = 600000};

struct sfc_rpc_peers *sfc_rpc_peers_new(void)
{
    return calloc(1, sizeof(struct sfc_rpc_peers));
}

void sfc_rpc_peers_free(struct sfc_rpc_peers *peers)
{
    for (size_t i = 0; peers != NULL && i < CHAINS; i++) {
        while (peers->chains[i] != NULL) {
            struct sfc_rpc_peer *peer = peers->chains[i];
            peers->chains[i] = peer->next;
            free(peer);
        }
    }
    free(peers);
}

size_t sfc_rpc_peers_count(const struct sfc_rpc_peers *peers)
{
    return peers->count;
}

void sfc_rpc_peer_name(const char *address, const char *certificate, char name[SFC_RPC_PEER_NAME])
{
    char host[128];
    const char *from = strchr(address, ':'), *to = strrchr(address, ':');
    if (from == NULL || from == to) { /* not one of an address and a port */
        from = address - 1;
        to = address + strlen(address);
    }
    snprintf(host, sizeof host, "%.*s", (int)(to - from - 1), from + 1);
    size_t size = strlen(host);
    if (size > 6 && strncmp(host, "%5B", 3) == 0 && strcmp(host + size - 3, "%5D") == 0) {
        memmove(host, host + 3, size - 6);
        host[size - 6] = '\0';
    }
    if (certificate != NULL) {
        snprintf(name, SFC_RPC_PEER_NAME, "%.60s at %s", certificate, host);
    } else {
        snprintf(name, SFC_RPC_PEER_NAME, "%s", host);
    }
}

static size_t chain_of(const char *name)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *name != '\0'; name++) {
        hash = (hash ^ (uint8_t)*name) * 16777619u;
    }
    return hash % CHAINS;
}

/* Who has neither calls nor connections is forgotten. */
static void forget_idle(struct sfc_rpc_peers *peers)
{
    for (size_t i = 0; i < CHAINS; i++) {
        struct sfc_rpc_peer **at = &peers->chains[i];
        while (*at != NULL) {
            struct sfc_rpc_peer *peer = *at;
            if (peer->calls > 0 || peer->connections > 0) {
                at = &peer->next;
                continue;
            }
            *at = peer->next;
            peers->count--;
            free(peer);
        }
    }
}

static struct sfc_rpc_peer *find(struct sfc_rpc_peers *peers, const char *name, uint64_t rate,
                                 uint64_t now)
{
    size_t chain = chain_of(name);
    for (struct sfc_rpc_peer *peer = peers->chains[chain]; peer != NULL; peer = peer->next) {
        if (strcmp(peer->name, name) == 0) {
            return peer;
        }
    }
    if (peers->count >= KEPT) {
        forget_idle(peers);
    }
    struct sfc_rpc_peer *peer = calloc(1, sizeof *peer);
    if (peer != NULL) {
        snprintf(peer->name, sizeof peer->name, "%s", name);
        peer->tokens = (double)rate;
        peer->seen = now;
        peer->next = peers->chains[chain];
        peers->chains[chain] = peer;
        peers->count++;
    }
    return peer;
}

static void refill(struct sfc_rpc_peer *peer, uint64_t rate, uint64_t now)
{
    peer->tokens += (double)(now - peer->seen) * (double)rate / 1000;
    peer->seen = now;
    if (peer->tokens > (double)rate) {
        peer->tokens = (double)rate;
    }
}

int sfc_rpc_peers_enter(struct sfc_rpc_peers *peers, const char *name,
                        const struct sfc_peer_limits *limits, uint64_t now,
                        struct sfc_rpc_peer **out, struct sfc_error *err)
{
    struct sfc_rpc_peer *peer = find(peers, name, limits->rate, now);
    if (peer == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a peer");
    }
    if (now < peer->refused_until) {
        return sfc_fail(err, SFC_ELIMIT,
                        "%.120s has sent too much of requests that it did not complete "
                        "(--peer-memory): try again in %" PRIu64 " s",
                        name, (peer->refused_until - now + 999) / 1000);
    }
    if (peer->calls >= limits->calls) {
        return sfc_fail(err, SFC_ELIMIT,
                        "%.120s has %" PRIu64 " calls that are not yet answered, limit "
                        "--peer-calls %" PRIu64 ": try later",
                        name, peer->calls, limits->calls);
    }
    refill(peer, limits->rate, now);
    if (limits->rate > 0 && peer->tokens < 1) {
        return sfc_fail(err, SFC_ELIMIT,
                        "%.120s calls more often than --peer-rate %" PRIu64
                        " times per second: try later",
                        name, limits->rate);
    }
    peer->tokens -= limits->rate > 0;
    peer->calls++;
    *out = peer;
    return SFC_OK;
}

void sfc_rpc_peers_leave(struct sfc_rpc_peers *peers, struct sfc_rpc_peer *peer)
{
    peer->calls--;
    if (peer->calls == 0 && peers->count > KEPT) {
        forget_idle(peers);
    }
}

int sfc_rpc_peer_hold(struct sfc_rpc_peer *peer, uint64_t bytes, uint64_t most,
                      struct sfc_error *err)
{
    if (peer->bytes + bytes > most) {
        return sfc_fail(err, SFC_ELIMIT,
                        "requests of %.120s hold %" PRIu64 " bytes, limit --peer-memory %" PRIu64
                        ": try later",
                        peer->name, peer->bytes, most);
    }
    peer->bytes += bytes;
    return SFC_OK;
}

void sfc_rpc_peer_drop(struct sfc_rpc_peer *peer, uint64_t bytes)
{
    peer->bytes -= bytes;
}

void sfc_rpc_peer_refuse(struct sfc_rpc_peer *peer, uint64_t until)
{
    peer->refused_until = until;
}

const char *sfc_rpc_peer_called(const struct sfc_rpc_peer *peer)
{
    return peer->name;
}

void sfc_rpc_peer_keep(struct sfc_rpc_peer *peer)
{
    peer->connections++;
}

void sfc_rpc_peer_unkeep(struct sfc_rpc_peer *peer)
{
    peer->connections--;
}

uint64_t *sfc_rpc_peer_incoming(struct sfc_rpc_peer *peer)
{
    return &peer->incoming;
}

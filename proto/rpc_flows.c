#include "proto/rpc_flows.h"

#include <stdlib.h>
#include <string.h>

enum { CHAINS = 256, LONG_MS = 5000, UNSEEN_MS = 60000 };

struct generation {
    unsigned waiting; /* calls */
    uint64_t done;    /* bytes of messages of it that are complete */
};

struct sfc_rpc_flow {
    struct sfc_rpc_flow *next; /* of its chain */
    struct sfc_rpc_place place;
    struct sfc_rpc_peer *peer;
    struct generation of[2];
    unsigned younger;    /* index of the generation that calls belong to now */
    uint64_t base, mark; /* bytes that had come when the older, the younger one began */
    uint64_t base_at, mark_at;
    bool looked, seen;    /* at all; when it was there */
    uint64_t last, bytes; /* at the last look: came, and of these are not of complete messages */
};

struct sfc_rpc_flows {
    struct sfc_rpc_flow *chains[CHAINS];
    size_t count;
};

struct sfc_rpc_flows *sfc_rpc_flows_new(void)
{
    return calloc(1, sizeof(struct sfc_rpc_flows));
}

static void forget(struct sfc_rpc_flows *flows, struct sfc_rpc_flow **at)
{
    struct sfc_rpc_flow *flow = *at;
    sfc_rpc_peer_unkeep(flow->peer);
    *at = flow->next;
    flows->count--;
    free(flow);
}

void sfc_rpc_flows_free(struct sfc_rpc_flows *flows)
{
    for (size_t i = 0; flows != NULL && i < CHAINS; i++) {
        while (flows->chains[i] != NULL) {
            forget(flows, &flows->chains[i]);
        }
    }
    free(flows);
}

size_t sfc_rpc_flows_count(const struct sfc_rpc_flows *flows)
{
    return flows->count;
}

static size_t chain_of(const struct sfc_rpc_place *place)
{
    uint32_t hash = 2166136261u ^ place->port; /* FNV-1a */
    for (size_t i = 0; i < sizeof place->address; i++) {
        hash = (hash ^ place->address[i]) * 16777619u;
    }
    return hash % CHAINS;
}

static struct sfc_rpc_flow *find(struct sfc_rpc_flows *flows, const struct sfc_rpc_place *place,
                                 uint64_t came, struct sfc_rpc_peer *peer)
{
    size_t chain = chain_of(place);
    for (struct sfc_rpc_flow *flow = flows->chains[chain]; flow != NULL; flow = flow->next) {
        if (flow->peer == peer && sfc_rpc_place_compare(&flow->place, place) == 0) {
            return flow;
        }
    }
    struct sfc_rpc_flow *flow = calloc(1, sizeof *flow);
    if (flow != NULL) {
        flow->place = *place;
        flow->peer = peer;
        flow->base = flow->mark = flow->last = came;
        flow->next = flows->chains[chain];
        flows->chains[chain] = flow;
        flows->count++;
        sfc_rpc_peer_keep(peer);
    }
    return flow;
}

void sfc_rpc_flows_begin(struct sfc_rpc_flows *flows, const struct sfc_rpc_place *place,
                         uint64_t came, struct sfc_rpc_peer *peer, struct sfc_rpc_incoming *out)
{
    out->flow = find(flows, place, came, peer);
    if (out->flow != NULL) {
        out->generation = out->flow->younger;
        out->flow->of[out->generation].waiting++;
    }
}

void sfc_rpc_flows_end(struct sfc_rpc_incoming *incoming, uint64_t bytes)
{
    if (incoming->flow != NULL) {
        struct generation *of = &incoming->flow->of[incoming->generation];
        of->waiting--;
        of->done += bytes;
        incoming->flow = NULL;
    }
}

/* The older generation is over. Of its messages at least so much came after the mark as they had
 * more bytes than came before it. */
static void next_generation(struct sfc_rpc_flow *flow, uint64_t came, uint64_t now)
{
    struct generation *older = &flow->of[!flow->younger];
    uint64_t until_mark = flow->mark - flow->base;
    flow->base = flow->mark + (older->done > until_mark ? older->done - until_mark : 0);
    *older = (struct generation){0};
    flow->younger = !flow->younger;
    flow->mark = came > flow->base ? came : flow->base;
    flow->base_at = flow->mark_at;
    flow->mark_at = now;
}

static void look_at(struct sfc_rpc_flow *flow, uint64_t came, uint64_t now)
{
    if (came < flow->last) { /* another connection has this place now */
        flow->base = flow->mark = flow->of[0].done = flow->of[1].done = 0;
        flow->seen = false;
    }
    if (!flow->seen) {
        flow->base_at = flow->mark_at = now;
        flow->seen = true;
    }
    bool behind = came < flow->base + flow->of[0].done + flow->of[1].done;
    struct generation *older = &flow->of[!flow->younger], *younger = &flow->of[flow->younger];
    if (older->waiting + younger->waiting == 0 && !behind) {
        *older = *younger = (struct generation){0};
        flow->base = flow->mark = came;
        flow->base_at = flow->mark_at = now;
    } else if (older->waiting == 0) {
        next_generation(flow, came, now);
    }
    bool takes_long = now - flow->base_at > LONG_MS;
    uint64_t done = takes_long ? 0 : flow->of[0].done + flow->of[1].done;
    flow->last = came;
    flow->bytes = came > flow->base + done ? came - flow->base - done : 0;
}

/* A connection that nobody has seen yet: it is new, what is known of its messages must stay. */
static bool awaited(struct sfc_rpc_flow *flow, uint64_t now)
{
    if (!flow->looked) {
        flow->looked = true;
        flow->base_at = now;
    }
    return !flow->seen && now - flow->base_at < UNSEEN_MS;
}

void sfc_rpc_flows_look(struct sfc_rpc_flows *flows, uint64_t now,
                        bool (*received)(void *ctx, const struct sfc_rpc_place *place,
                                         uint64_t *bytes),
                        void *ctx)
{
    for (size_t i = 0; i < CHAINS; i++) {
        struct sfc_rpc_flow **at = &flows->chains[i];
        while (*at != NULL) {
            struct sfc_rpc_flow *flow = *at;
            uint64_t came = 0;
            bool there = received(ctx, &flow->place, &came);
            bool waits = flow->of[0].waiting + flow->of[1].waiting > 0;
            if (there) {
                look_at(flow, came, now);
            } else {
                flow->bytes = 0;
            }
            if (!there && !waits && !awaited(flow, now)) {
                forget(flows, at);
            } else {
                at = &flow->next;
            }
        }
    }
}

/* ---- too much */

static void add_up(struct sfc_rpc_flows *flows, uint64_t *all)
{
    *all = 0;
    for (size_t i = 0; i < CHAINS; i++) {
        for (struct sfc_rpc_flow *flow = flows->chains[i]; flow != NULL; flow = flow->next) {
            *sfc_rpc_peer_incoming(flow->peer) = 0;
        }
    }
    for (size_t i = 0; i < CHAINS; i++) {
        for (struct sfc_rpc_flow *flow = flows->chains[i]; flow != NULL; flow = flow->next) {
            *sfc_rpc_peer_incoming(flow->peer) += flow->bytes;
            *all += flow->bytes;
        }
    }
}

/* The largest connection of the peer that has most. */
static struct sfc_rpc_flow *largest(struct sfc_rpc_flows *flows)
{
    struct sfc_rpc_flow *found = NULL;
    for (size_t i = 0; i < CHAINS; i++) {
        for (struct sfc_rpc_flow *flow = flows->chains[i]; flow != NULL; flow = flow->next) {
            uint64_t most = found != NULL ? *sfc_rpc_peer_incoming(found->peer) : 0;
            uint64_t has = *sfc_rpc_peer_incoming(flow->peer);
            if (found == NULL || has > most ||
                (flow->peer == found->peer && flow->bytes > found->bytes)) {
                found = flow;
            }
        }
    }
    return found;
}

bool sfc_rpc_flows_excess(struct sfc_rpc_flows *flows, uint64_t of_peer, uint64_t of_all,
                          struct sfc_rpc_excess *out)
{
    uint64_t all;
    add_up(flows, &all);
    struct sfc_rpc_flow *flow = largest(flows);
    if (flow == NULL || flow->bytes == 0) {
        return false;
    }
    uint64_t has = *sfc_rpc_peer_incoming(flow->peer);
    if (has <= of_peer && all <= of_all) {
        return false;
    }
    *out = (struct sfc_rpc_excess){.place = flow->place,
                                   .peer = flow->peer,
                                   .bytes = has,
                                   .limit = has > of_peer ? of_peer : 0};
    flow->bytes = 0;
    return true;
}

/* How much one peer, and all of them together, may take of a server: what its options say. Peers
 * are told apart by their address, and with TLS by the name in their certificate as well; so all
 * workers on one host, or behind one translated address, are one peer in plaintext. */
#ifndef SFC_PROTO_PEER_LIMITS_H
#define SFC_PROTO_PEER_LIMITS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/options.h"

/* What the options below say, and nothing else. */
struct sfc_peer_limits {
    uint64_t connections;    /* at a time, of all peers */
    uint64_t of_one_address; /* at a time, of one address */
    uint64_t calls;          /* in flight, of one peer */
    uint64_t rate;           /* calls per second of one peer; 0: as many as come */
    uint64_t peer_memory;    /* bytes of requests held for one peer; 0: a share of those for all */
    uint64_t message_memory; /* bytes of requests on their way and held; 0: by what a run needs */
    uint64_t handshake_ms;   /* from a connection to the end of its handshake */
    uint64_t idle_ms;        /* of a connection without calls */
};

/* What a server goes by that was told nothing. */
extern const struct sfc_peer_limits sfc_peer_limits_usual;

/* Entries for the option table of a daemon. at: offset of its struct sfc_peer_limits; messages:
 * .fallback and .help of --message-memory. All but the timeouts can be reloaded. */
#define SFC_PEER_OPTIONS(at, messages_fallback, messages_help)                                     \
    {                                                                                              \
        .name = "connections",                                                                     \
        .type = SFC_OPTION_U64,                                                                    \
        .min = 16,                                                                                 \
        .max = 1000000,                                                                            \
        .fallback = "4096",                                                                        \
        .flags = SFC_OPTION_RELOAD,                                                                \
        .offset = (at) + offsetof(struct sfc_peer_limits, connections),                            \
        .help = "most connections at a time; never more than half of the open files that the "     \
                "system allows",                                                                   \
    },                                                                                             \
        {                                                                                          \
            .name = "peer-connections",                                                            \
            .type = SFC_OPTION_U64,                                                                \
            .min = 4,                                                                              \
            .max = 1000000,                                                                        \
            .fallback = "1024",                                                                    \
            .flags = SFC_OPTION_RELOAD,                                                            \
            .offset = (at) + offsetof(struct sfc_peer_limits, of_one_address),                     \
            .help = "most connections of one address at a time; a worker has two to a server, "    \
                    "and all "                                                                     \
                    "workers of one host have one address",                                        \
        },                                                                                         \
        {                                                                                          \
            .name = "peer-calls",                                                                  \
            .type = SFC_OPTION_U64,                                                                \
            .min = 16,                                                                             \
            .max = 1000000,                                                                        \
            .fallback = "8192",                                                                    \
            .flags = SFC_OPTION_RELOAD,                                                            \
            .offset = (at) + offsetof(struct sfc_peer_limits, calls),                              \
            .help =                                                                                \
                "most calls of one peer that are not yet answered (a peer is an address, with "    \
                "--tls together with the name in its certificate)",                                \
        },                                                                                         \
        {                                                                                          \
            .name = "peer-rate",                                                                   \
            .type = SFC_OPTION_U64,                                                                \
            .max = 10000000,                                                                       \
            .fallback = "20000",                                                                   \
            .flags = SFC_OPTION_RELOAD,                                                            \
            .offset = (at) + offsetof(struct sfc_peer_limits, rate),                               \
            .unit = "calls per second",                                                            \
            .help = "most calls of one peer per second, of which as many may come at once; 0: no " \
                    "limit",                                                                       \
        },                                                                                         \
        {                                                                                          \
            .name = "peer-memory",                                                                 \
            .type = SFC_OPTION_SIZE,                                                               \
            .flags = SFC_OPTION_RELOAD,                                                            \
            .offset = (at) + offsetof(struct sfc_peer_limits, peer_memory),                        \
            .help = "most bytes of requests that are held for one peer, and of those that are on " \
                    "their way in (default: three quarters of those for all, each half of "        \
                    "--message-memory)",                                                           \
        },                                                                                         \
        {                                                                                          \
            .name = "message-memory",                                                              \
            .type = SFC_OPTION_SIZE,                                                               \
            .min = 1 << 20,                                                                        \
            .fallback = messages_fallback,                                                         \
            .offset = (at) + offsetof(struct sfc_peer_limits, message_memory),                     \
            .help = messages_help,                                                                 \
        },                                                                                         \
        {                                                                                          \
            .name = "handshake-timeout",                                                           \
            .type = SFC_OPTION_DURATION,                                                           \
            .min = 100,                                                                            \
            .max = 3600000,                                                                        \
            .fallback = "20s",                                                                     \
            .offset = (at) + offsetof(struct sfc_peer_limits, handshake_ms),                       \
            .help = "a connection that has not finished its handshake by then is closed",          \
        },                                                                                         \
    {                                                                                              \
        .name = "idle-timeout", .type = SFC_OPTION_DURATION, .min = 1000,                          \
        .max = UINT64_C(86400000), .fallback = "10m",                                              \
        .offset = (at) + offsetof(struct sfc_peer_limits, idle_ms),                                \
        .help = "a connection without calls for this long is closed; peers connect again when "    \
                "they call",                                                                       \
    }

#endif

/* Private to proto/rpc_*.c: who calls a server, and how much of it each one has now. One thread. */
#ifndef SFC_PROTO_RPC_PEERS_H
#define SFC_PROTO_RPC_PEERS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "proto/peer_limits.h"

struct sfc_rpc_peers;
struct sfc_rpc_peer;

enum { SFC_RPC_PEER_NAME = 192 };

struct sfc_rpc_peers *sfc_rpc_peers_new(void); /* NULL: no memory */
void sfc_rpc_peers_free(struct sfc_rpc_peers *peers);
size_t sfc_rpc_peers_count(const struct sfc_rpc_peers *peers);

/* "ipv4:10.0.0.1:5000" or "ipv6:%5Bfe80::1%5D:5000" as gRPC has it -> "10.0.0.1", "fe80::1"; with a
 * certificate's name before it, "trainer at 10.0.0.1", unless that is NULL. */
void sfc_rpc_peer_name(const char *address, const char *certificate, char name[SFC_RPC_PEER_NAME]);

/* A call of this peer begins; now: in ms, any origin. SFC_ELIMIT: it has too many, or too many in
 * this second, or is refused; err says why. Every success is followed by one leave. */
int sfc_rpc_peers_enter(struct sfc_rpc_peers *peers, const char *name,
                        const struct sfc_peer_limits *limits, uint64_t now,
                        struct sfc_rpc_peer **out, struct sfc_error *err);
void sfc_rpc_peers_leave(struct sfc_rpc_peers *peers, struct sfc_rpc_peer *peer);

/* A request of this peer is held from now on. SFC_ELIMIT: with it, it would have more than `most`.
 */
int sfc_rpc_peer_hold(struct sfc_rpc_peer *peer, uint64_t bytes, uint64_t most,
                      struct sfc_error *err);
void sfc_rpc_peer_drop(struct sfc_rpc_peer *peer, uint64_t bytes);

/* Its calls are refused until then (as `now` of enter). */
void sfc_rpc_peer_refuse(struct sfc_rpc_peer *peer, uint64_t until);
const char *sfc_rpc_peer_called(const struct sfc_rpc_peer *peer);

/* For proto/rpc_flows.c: a peer that has a connection is not forgotten; and a place for the bytes
 * of its requests that are on their way in. */
void sfc_rpc_peer_keep(struct sfc_rpc_peer *peer);
void sfc_rpc_peer_unkeep(struct sfc_rpc_peer *peer);
uint64_t *sfc_rpc_peer_incoming(struct sfc_rpc_peer *peer);

#endif

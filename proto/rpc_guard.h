/* Private to proto/rpc_*.c: how many connections a server has, and of whom.
 *
 * gRPC neither says that a connection has come nor lets a server refuse one, and when the process
 * has no file descriptor left for the next one it stops listening for ever. So a thread looks
 * through the process's sockets a few times a second, counts those of the server's port by the
 * address at their other end, and shuts down what came since the last look and is too much. */
#ifndef SFC_PROTO_RPC_GUARD_H
#define SFC_PROTO_RPC_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "proto/rpc_place.h"

struct sfc_rpc_guard;

/* port: of the server. most, of_one_address: connections at a time; `most` is lowered to half of
 * the open files that the process may have. */
int sfc_rpc_guard_start(int port, uint64_t most, uint64_t of_one_address,
                        struct sfc_rpc_guard **out, struct sfc_error *err);
void sfc_rpc_guard_set(struct sfc_rpc_guard *guard, uint64_t most, uint64_t of_one_address);
/* Bytes that had come over that connection at the last look, TLS's own among them; false: it was
 * not there then. */
bool sfc_rpc_guard_received(struct sfc_rpc_guard *guard, const struct sfc_rpc_place *place,
                            uint64_t *bytes);
/* Shuts that connection down, if it is still there. */
void sfc_rpc_guard_close(struct sfc_rpc_guard *guard, const struct sfc_rpc_place *place);
/* Who has connected to a server of this process within the last moments, "10.0.0.7 or 10.0.0.9",
 * for what gRPC tells of nobody: failed handshakes. "?": nobody is new. Any thread. */
void sfc_rpc_guard_newest(char *text, size_t size);
void sfc_rpc_guard_stop(struct sfc_rpc_guard *guard); /* NULL is fine */

#endif

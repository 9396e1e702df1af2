/* Private to proto/rpc_*.c: credentials of connections, and who is at the other end of a call. */
#ifndef SFC_PROTO_RPC_TRUST_H
#define SFC_PROTO_RPC_TRUST_H

#include <grpc/grpc_security.h>

#include "proto/certificate.h"
#include "proto/rpc.h"

struct sfc_rpc_trust;

/* security NULL: plaintext on loopback. With a folder its files are checked, and read again every
 * few seconds from then on; a change that doesn't fit together leaves the old ones in use. */
int sfc_rpc_trust_new(const struct sfc_security *security, struct sfc_rpc_trust **out,
                      struct sfc_error *err);
void sfc_rpc_trust_free(struct sfc_rpc_trust *trust); /* NULL is fine */

/* See sfc_rpc_loop_call_foreign. */
void sfc_rpc_trust_call_foreign(struct sfc_rpc_trust *trust);

/* Credentials to release; SFC_EDENIED: plaintext beyond loopback. */
int sfc_rpc_trust_call(const struct sfc_rpc_trust *trust, const char *address,
                       grpc_channel_credentials **out, struct sfc_error *err);
int sfc_rpc_trust_serve(const struct sfc_rpc_trust *trust, const char *listen,
                        grpc_server_credentials **out, struct sfc_error *err);

bool sfc_rpc_trust_secure(const struct sfc_rpc_trust *trust); /* peers have certificates */

/* The peer of a call that arrived. In plaintext it has every role. */
void sfc_rpc_trust_peer(const struct sfc_rpc_trust *trust, grpc_call *call,
                        struct sfc_certificate *out);

/* Passes on that something was refused (sfc_rpc_on_refused). */
void sfc_rpc_trust_tell(const char *peer, const char *what);
/* The same, of somebody who wants too much. */
void sfc_rpc_trust_tell_limit(const char *peer, const char *what);
/* For gRPC's log: the same for failed handshakes, and when no connection can be accepted. */
void sfc_rpc_trust_log(const char *message);

#endif

/* Private to proto/rpc_client.c and proto/rpc_sync.c. */
#ifndef SFC_PROTO_RPC_CLIENT_INTERNAL_H
#define SFC_PROTO_RPC_CLIENT_INTERNAL_H

#include "proto/rpc_internal.h"

/* Called once on the loop thread. The receiver may keep the body by setting body->buffer to NULL.
 */
typedef void (*sfc_rpc_deliver)(int code, const char *text, struct sfc_rpc_body *body, void *ctx);

/* sfc_rpc_client_call with a result that may be kept. */
int sfc_rpc_client_begin(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                         sfc_rpc_deliver deliver, void *ctx, uint64_t *handle,
                         struct sfc_error *err);
struct sfc_rpc_loop *sfc_rpc_client_loop(const struct sfc_rpc_client *client);

#endif

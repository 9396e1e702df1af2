/* Between protocol messages and RPC calls: unpack with bounds, pack, reply. */
#ifndef SFC_RUN_MESSAGES_H
#define SFC_RUN_MESSAGES_H

#include <protobuf-c/protobuf-c.h>

#include "proto/rpc.h"
#include "proto/shardfc.pb-c.h"
#include "proto/unpack.h"

/* The request of a call as a message of `type`, or NULL after the call was ended: with SFC_EINVAL
 * (malformed, or a text in it is not UTF-8 or has control characters) or SFC_EUNAVAILABLE (no
 * memory now). In reasons and errors, which peers pass on, control characters have become question
 * marks. Release with protobuf_c_message_free_unpacked(message, NULL). */
void *sfc_call_unpack(struct sfc_rpc_call *call, const ProtobufCMessageDescriptor *type);
void sfc_message_free(void *message); /* NULL is fine */

/* Packed message in memory that the caller frees; NULL without memory. */
uint8_t *sfc_message_pack(const void *message, size_t *size);
/* A deep copy; NULL without memory. */
void *sfc_message_copy(const void *message);

/* End the call with this message (packed here; tensor as in sfc_rpc_reply). Without memory the call
 * fails with SFC_ENOMEM and release is called. */
void sfc_call_reply(struct sfc_rpc_call *call, const void *message);
void sfc_call_reply_tensor(struct sfc_rpc_call *call, const void *message, struct sfc_bytes tensor,
                           void (*release)(void *ctx), void *ctx);
void sfc_call_fail(struct sfc_rpc_call *call, const struct sfc_error *error);

#endif

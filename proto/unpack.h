/* Messages from bytes, with what protobuf-c does not say: whether the bytes or the memory failed.
 */
#ifndef SFC_PROTO_UNPACK_H
#define SFC_PROTO_UNPACK_H

#include <protobuf-c/protobuf-c.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

/* The message, or NULL. *code (may be NULL): SFC_OK, SFC_ECORRUPT (malformed) or SFC_ENOMEM.
 * Release with protobuf_c_message_free_unpacked(message, NULL). */
void *sfc_unpack(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type, int *code);

#endif

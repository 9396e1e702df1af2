/* Messages from bytes, with what protobuf-c does not say: whether the bytes or the memory failed,
 * and whether a text is one. */
#ifndef SFC_PROTO_UNPACK_H
#define SFC_PROTO_UNPACK_H

#include <stdbool.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

/* The message, or NULL. *code (may be NULL): SFC_OK, SFC_ECORRUPT (malformed) or SFC_ENOMEM.
 * Release with protobuf_c_message_free_unpacked(message, NULL). */
void *sfc_unpack(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type, int *code);

/* The same of an answer, whose texts end on terminals, in logs and in JSON: they are UTF-8 without
 * control characters then, question marks stand for what was none. Only an `explanation` has
 * lines. */
void *sfc_unpack_reply(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type, int *code);

/* Calls visit(ctx, field, text) for each text in a message and in those inside it, until one is
 * false; false then. The schema has no message inside itself, so this ends. */
typedef bool (*sfc_visit_text)(void *ctx, const char *field, char *text);
bool sfc_visit_texts(const ProtobufCMessage *message, sfc_visit_text visit, void *ctx);

#endif

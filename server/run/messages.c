#include "server/run/messages.h"

#include <stdlib.h>

void *sfc_bytes_unpack(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type)
{
    static const uint8_t nothing[1];
    return protobuf_c_message_unpack(type, NULL, bytes.size, bytes.size ? bytes.data : nothing);
}

void *sfc_call_unpack(struct sfc_rpc_call *call, const ProtobufCMessageDescriptor *type)
{
    void *message = sfc_bytes_unpack(sfc_rpc_call_head(call), type);
    if (!message) {
        struct sfc_error err;
        sfc_fail(&err, SFC_EINVAL, "the request is not a %s", type->name);
        sfc_call_fail(call, &err);
    }
    return message;
}

void sfc_message_free(void *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

uint8_t *sfc_message_pack(const void *message, size_t *size)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(n ? n : 1);
    if (bytes)
        *size = protobuf_c_message_pack(message, bytes);
    return bytes;
}

void *sfc_message_copy(const void *message)
{
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(message, &size);
    if (!bytes)
        return NULL;
    const ProtobufCMessage *base = message;
    void *copy = sfc_bytes_unpack((struct sfc_bytes){bytes, size}, base->descriptor);
    free(bytes);
    return copy;
}

void sfc_call_reply_tensor(struct sfc_rpc_call *call, const void *message, struct sfc_bytes tensor,
                           void (*release)(void *ctx), void *ctx)
{
    size_t size = 0;
    uint8_t *bytes = sfc_message_pack(message, &size);
    if (bytes) {
        sfc_rpc_reply(call, (struct sfc_bytes){bytes, size}, tensor, release, ctx);
        free(bytes);
        return;
    }
    sfc_rpc_fail(call, SFC_ENOMEM, "no memory for the answer");
    if (release)
        release(ctx);
}

void sfc_call_reply(struct sfc_rpc_call *call, const void *message)
{
    sfc_call_reply_tensor(call, message, (struct sfc_bytes){NULL, 0}, NULL, NULL);
}

void sfc_call_fail(struct sfc_rpc_call *call, const struct sfc_error *error)
{
    sfc_rpc_fail(call, error->code, error->text);
}

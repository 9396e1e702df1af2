#include "server/run/messages.h"

#include <stdlib.h>
#include <string.h>

#include "proto/base/text.h"

/* ---- text: protobuf-c does not check that strings are UTF-8, other implementations refuse a whole
 * message for one that isn't. And what a peer says gets onto people's terminals and into logs,
 * where control characters move the cursor, forge lines or do worse. */

/* Fields with words that somebody else said first (a library, a disk, another server): no fault of
 * who passes them on. */
static bool is_relayed(const char *field)
{
    static const char *const fields[] = {"reason", "error", "broken_reason"};
    bool found = false;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        found |= strcmp(field, fields[i]) == 0;
    return found;
}

struct bad_text {
    const char *field, *why; /* why = NULL: all is well */
};

/* In relayed words control characters become question marks. */
static bool check_text(void *ctx, const char *field, char *text)
{
    struct bad_text *bad = ctx;
    bool relayed = is_relayed(field);
    unsigned char *at = (unsigned char *)text;
    for (size_t n; !bad->why && *at; at += n) {
        if ((n = sfc_utf8_length(at)) == 0)
            *bad = (struct bad_text){field, "not UTF-8"};
        else if (sfc_is_control(at) && !relayed)
            *bad = (struct bad_text){field, "control characters"};
        else if (sfc_is_control(at))
            memset(at, '?', n);
    }
    return !bad->why;
}

void *sfc_call_unpack(struct sfc_rpc_call *call, const ProtobufCMessageDescriptor *type)
{
    int code;
    void *message = sfc_unpack(sfc_rpc_call_head(call), type, &code);
    struct bad_text bad = {NULL, NULL};
    struct sfc_error err;
    if (message)
        sfc_visit_texts(message, check_text, &bad);
    if (message && !bad.why)
        return message;
    if (bad.why)
        sfc_fail(&err, SFC_EINVAL, "%s: %s", bad.field, bad.why);
    else if (code == SFC_ENOMEM)
        sfc_fail(&err, SFC_EUNAVAILABLE, "no memory for the request: try again");
    else
        sfc_fail(&err, SFC_EINVAL, "the request is not a %s", type->name);
    sfc_message_free(message);
    sfc_call_fail(call, &err);
    return NULL;
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
    void *copy = sfc_unpack((struct sfc_bytes){bytes, size}, base->descriptor, NULL);
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

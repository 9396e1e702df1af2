#include "server/run/messages.h"

#include <stdlib.h>
#include <string.h>

/* ---- text: protobuf-c does not check that strings are UTF-8, other implementations refuse a whole
 * message for one that isn't */

/* Bytes of the UTF-8 sequence at text (1..4), 0: malformed, overlong, a surrogate or too large. */
static size_t utf8_length(const unsigned char *text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = text[0] < 0x80             ? 1
               : (text[0] & 0xe0) == 0xc0 ? 2
               : (text[0] & 0xf0) == 0xe0 ? 3
               : (text[0] & 0xf8) == 0xf0 ? 4
                                          : 0;
    uint32_t value = n > 1 ? text[0] & (0x7fu >> n) : text[0];
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (text[i] & 0x3f);
    }
    if (n == 0 || value < least[n] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return 0;
    return n;
}

static bool utf8_ok(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    for (size_t n; at && *at; at += n)
        if ((n = utf8_length(at)) == 0)
            return false;
    return true;
}

static const char *bad_text(const ProtobufCMessage *message);

static const char *bad_value(const ProtobufCFieldDescriptor *field, const void *value)
{
    if (field->type == PROTOBUF_C_TYPE_STRING)
        return utf8_ok(*(char *const *)value) ? NULL : field->name;
    const ProtobufCMessage *inner = *(ProtobufCMessage *const *)value;
    return inner ? bad_text(inner) : NULL;
}

/* Name of the first field with text that is not UTF-8; NULL: all is well. The schema has no message
 * inside itself, so this ends. */
static const char *bad_text(const ProtobufCMessage *message)
{
    const char *bad = NULL;
    for (unsigned i = 0; !bad && i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const uint8_t *at = (const uint8_t *)message + field->offset;
        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            bad = bad_value(field, at);
            continue;
        }
        size_t count;
        memcpy(&count, (const uint8_t *)message + field->quantifier_offset, sizeof count);
        for (size_t k = 0; !bad && k < count; k++)
            bad = bad_value(field, *(const uint8_t *const *)(const void *)at + k * sizeof(void *));
    }
    return bad;
}

void *sfc_call_unpack(struct sfc_rpc_call *call, const ProtobufCMessageDescriptor *type)
{
    int code;
    void *message = sfc_unpack(sfc_rpc_call_head(call), type, &code);
    const char *bad = message ? bad_text(message) : NULL;
    struct sfc_error err;
    if (message && !bad)
        return message;
    if (bad)
        sfc_fail(&err, SFC_EINVAL, "%s: not UTF-8", bad);
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

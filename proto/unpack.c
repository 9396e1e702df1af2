#include "proto/unpack.h"

#include <stdlib.h>
#include <string.h>

#include "proto/base/text.h"

static void *unpack_alloc(void *data, size_t size)
{
    bool *failed = data;
    void *memory = malloc(size);
    *failed = *failed || memory == NULL;
    return memory;
}

static void unpack_free(void *data, void *memory)
{
    (void)data;
    free(memory);
}

void *sfc_unpack(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type, int *code)
{
    static const uint8_t nothing[1];
    bool failed = false;
    ProtobufCAllocator heap = {
        .alloc = unpack_alloc, .free = unpack_free, .allocator_data = &failed};
    void *message =
        protobuf_c_message_unpack(type, &heap, bytes.size, bytes.size > 0 ? bytes.data : nothing);
    if (code != NULL) {
        *code = message != NULL ? SFC_OK : failed ? SFC_ENOMEM : SFC_ECORRUPT;
    }
    return message;
}

/* ---- texts */

static bool visit_value(const ProtobufCFieldDescriptor *field, const void *value,
                        sfc_visit_text visit, void *ctx)
{
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        char *text = *(char *const *)value;
        return text == NULL || visit(ctx, field->name, text);
    }
    const ProtobufCMessage *inner = *(ProtobufCMessage *const *)value;
    return inner == NULL || sfc_visit_texts(inner, visit, ctx);
}

bool sfc_visit_texts(const ProtobufCMessage *message, sfc_visit_text visit, void *ctx)
{
    bool on = true;
    for (unsigned i = 0; on && i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const uint8_t *at = (const uint8_t *)message + field->offset;
        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE) {
            continue;
        }
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            on = visit_value(field, at, visit, ctx);
            continue;
        }
        size_t count;
        memcpy(&count, (const uint8_t *)message + field->quantifier_offset, sizeof count);
        for (size_t k = 0; on && k < count; k++) {
            on = visit_value(field, *(const uint8_t *const *)(const void *)at + k * sizeof(void *),
                             visit, ctx);
        }
    }
    return on;
}

static bool clean(void *ctx, const char *field, char *text)
{
    (void)ctx;
    if (text[0] != '\0') { /* a field that was not sent has a constant */
        sfc_clean_text(text, strcmp(field, "explanation") == 0);
    }
    return true;
}

void *sfc_unpack_reply(struct sfc_bytes bytes, const ProtobufCMessageDescriptor *type, int *code)
{
    void *message = sfc_unpack(bytes, type, code);
    if (message != NULL) {
        sfc_visit_texts(message, clean, NULL);
    }
    return message;
}

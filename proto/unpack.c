#include "proto/unpack.h"

#include <stdbool.h>
#include <stdlib.h>

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

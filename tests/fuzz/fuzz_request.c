/* Any bytes as the request of any method of both services, from the wire to what is checked of it
 * without a run: the scan for its tensor, the real decoder of all handlers, and the checks of
 * configurations, data sets and tensors. The first byte chooses the method (SFC_FUZZ_METHOD, as
 * Scheduler.Trace: always that one), the second one where the transport cuts the body in two. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/run_config.h"
#include "proto/span_list.h"
#include "proto/tensor.h"
#include "proto/wire.h"
#include "server/run/messages.h"
#include "server/run/run_setup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a handler has of a call. */
struct sfc_rpc_call {
    struct sfc_bytes head;
    int failed;
};
struct sfc_bytes __wrap_sfc_rpc_call_head(const struct sfc_rpc_call *call);
void __wrap_sfc_rpc_fail(struct sfc_rpc_call *call, int code, const char *text);

struct sfc_bytes __wrap_sfc_rpc_call_head(const struct sfc_rpc_call *call)
{
    return call->head;
}

static void must(bool condition)
{
    if (!condition) {
        abort();
    }
}

void __wrap_sfc_rpc_fail(struct sfc_rpc_call *call, int code, const char *text)
{
    must(call->failed == 0 && code != SFC_OK && text[0] != '\0');
    call->failed = code;
}

static const ProtobufCMessageDescriptor *request_of(unsigned n)
{
    const ProtobufCServiceDescriptor *services[2] = {&shardfc__v1__scheduler__descriptor,
                                                     &shardfc__v1__shard__descriptor};
    const char *only = getenv("SFC_FUZZ_METHOD");
    unsigned all = services[0]->n_methods + services[1]->n_methods;
    for (unsigned i = only == NULL ? n % all : 0; i < all; i++) {
        bool second = i >= services[0]->n_methods;
        const ProtobufCServiceDescriptor *s = services[second];
        const ProtobufCMethodDescriptor *m = &s->methods[second ? i - services[0]->n_methods : i];
        char name[128];
        snprintf(name, sizeof name, "%s.%s", s->short_name, m->name);
        if (only == NULL || strcmp(name, only) == 0) {
            return m->input;
        }
    }
    abort(); /* there is no such method */
}

/* ---- parts of messages */

static void check_config(const Shardfc__V1__RunConfig *config)
{
    struct sfc_error err = {0};
    struct sfc_run_setup setup;
    if (sfc_run_config_check(config, &err) != SFC_OK) {
        must(err.text[0] != '\0');
        return;
    }
    must(sfc_run_dense_size(config) <= SFC_LIMIT_DENSE_SIZE);
    if (sfc_run_setup_init(&setup, config, &err) == SFC_OK) {
        must(setup.class_blocks > 0 && setup.class_blocks <= SFC_LIMIT_BLOCKS);
        must(setup.micro_batches > 0 && setup.micro_batches <= SFC_LIMIT_MICRO_BATCHES);
        sfc_run_setup_close(&setup);
    }
}

/* What is accepted as a tensor of its own shape has exactly the bytes of it. */
static void check_tensor(const Shardfc__V1__TensorType *type, struct sfc_bytes payload)
{
    uint64_t shape[SFC_LIMIT_RANK] = {0}, count = 0;
    size_t rank = type != NULL && type->n_shape < SFC_LIMIT_RANK ? type->n_shape : 2;
    for (size_t i = 0; type != NULL && i < rank && i < type->n_shape; i++) {
        shape[i] = type->shape[i];
    }
    const Shardfc__V1__DType dtype = SHARDFC__V1__DTYPE__DTYPE_F32;
    if (sfc_tensor_check(type, payload, dtype, shape, rank, "payload", NULL) == SFC_OK) {
        unsigned __int128 bytes = sfc_tensor_element_size(dtype);
        for (size_t i = 0; i < rank; i++) {
            bytes *= shape[i]; /* at most once beyond what payloads have, or zero */
            must(bytes <= payload.size || payload.size == 0);
        }
        must(bytes == payload.size);
    }
    if (sfc_tensor_check_vector(type, payload, dtype, 100, &count, "payload", NULL) == SFC_OK) {
        must(count <= 100 && payload.size == count * sizeof(float));
    }
}

/* What is taken as a span can be shown: its phase and thread have names, and it has a length. */
static void check_span(const Shardfc__V1__Span *message)
{
    struct sfc_span span;
    if (sfc_span_of_message(message, &span)) {
        must(sfc_phase_name(span.phase) != NULL && sfc_phase_help(span.phase) != NULL);
        must(sfc_thread_name(span.thread) != NULL && span.end_ns >= span.begin_ns);
        must(span.end_ns <= INT64_MAX);
    }
}

static void check_parts(const ProtobufCMessage *message, struct sfc_bytes payload);

static void check_part(const ProtobufCFieldDescriptor *field, const ProtobufCMessage *part,
                       struct sfc_bytes payload)
{
    if (part != NULL && part->descriptor == &shardfc__v1__run_config__descriptor) {
        check_config((const Shardfc__V1__RunConfig *)part);
    } else if (part != NULL && part->descriptor == &shardfc__v1__data_set__descriptor) {
        (void)sfc_run_data_check((const Shardfc__V1__DataSet *)part, NULL);
    } else if (part != NULL && part->descriptor == &shardfc__v1__span__descriptor) {
        check_span((const Shardfc__V1__Span *)part);
    } else if (field->descriptor == &shardfc__v1__tensor_type__descriptor) {
        check_tensor((const Shardfc__V1__TensorType *)part, payload);
    }
    if (part != NULL) {
        check_parts(part, payload);
    }
}

static void check_parts(const ProtobufCMessage *message, struct sfc_bytes payload)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const uint8_t *at = (const uint8_t *)message + field->offset;
        if (field->type != PROTOBUF_C_TYPE_MESSAGE) {
            continue;
        }
        ProtobufCMessage *const *parts = (ProtobufCMessage *const *)(const void *)at;
        size_t count = 1;
        if (field->label == PROTOBUF_C_LABEL_REPEATED) {
            memcpy(&count, (const uint8_t *)message + field->quantifier_offset, sizeof count);
            parts = *(ProtobufCMessage *const *const *)(const void *)at;
        }
        for (size_t k = 0; k < count; k++) {
            check_part(field, parts[k], payload);
        }
    }
}

/* Packed and read again, it is the same (protobuf-c does not read again what it has packed of an
 * unknown field with the number 0). */
static void check_again(const void *message, const ProtobufCMessageDescriptor *type)
{
    size_t size = 0, again_size = 0;
    uint8_t *packed = sfc_message_pack(message, &size);
    must(packed != NULL);
    void *again = sfc_unpack((struct sfc_bytes){packed, size}, type, NULL);
    uint8_t *repacked = again != NULL ? sfc_message_pack(again, &again_size) : NULL;
    must(again == NULL || (repacked != NULL && again_size == size));
    must(again == NULL || memcmp(packed, repacked, size) == 0);
    free(packed);
    free(repacked);
    sfc_message_free(again);
}

static void handle(const ProtobufCMessageDescriptor *type, struct sfc_bytes head,
                   struct sfc_bytes payload)
{
    struct sfc_rpc_call call = {.head = head};
    void *message = sfc_call_unpack(&call, type);
    must((message == NULL) == (call.failed != 0));
    if (message == NULL) {
        return;
    }
    check_parts(message, payload);
    check_again(message, type);
    sfc_message_free(message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sfc_wire_layout layout;
    struct sfc_error err = {0};
    if (size < 2) {
        return 0;
    }
    size_t body = size - 2, cut = body > 0 ? data[1] % body : 0;
    const struct sfc_bytes pieces[2] = {{data + 2, cut}, {data + 2 + cut, body - cut}};
    if (sfc_wire_scan(pieces, 2, &layout, &err) != SFC_OK) {
        must(err.code == SFC_ECORRUPT && err.text[0] != '\0');
        return 0;
    }
    size_t head = layout.prefix_size + layout.suffix_size;
    uint8_t *copy = malloc(head + layout.tensor_size + 1);
    must(copy != NULL && head + layout.tensor_size <= body);
    sfc_wire_copy(pieces, 2, 0, layout.prefix_size, copy);
    sfc_wire_copy(pieces, 2, layout.suffix_at, layout.suffix_size, copy + layout.prefix_size);
    sfc_wire_copy(pieces, 2, layout.tensor_at, layout.tensor_size, copy + head);
    handle(request_of(data[0]), (struct sfc_bytes){copy, head},
           (struct sfc_bytes){copy + head, layout.tensor_size});
    free(copy);
    return 0;
}

#include "proto/rpc_internal.h"

#include <stdlib.h>
#include <string.h>

/* Size classes are 4 KiB to 512 MiB, four to a doubling: a tensor of 2^n bytes with its head would
 * fill half of a power of two. Small ones are cheap to keep, large ones are what matters; together
 * at most SFC_RPC_POOL_KEEPS bytes stay on the free lists. */
enum { SHIFT_MIN = 12, PARTS = 4, CLASSES = 17 * PARTS + 1, BUFFER_ALIGN = 64 };

struct sfc_rpc_pool {
    pthread_mutex_t lock;
    struct sfc_rpc_buffer *free[CLASSES];
    size_t kept;  /* bytes on the free lists */
    size_t users; /* the loop and every buffer outside */
};

struct sfc_rpc_buffer {
    struct sfc_rpc_pool *pool;
    struct sfc_rpc_buffer *next;
    size_t capacity;
    unsigned size_class;
    _Alignas(BUFFER_ALIGN) uint8_t data[];
};

struct sfc_rpc_pool *sfc_rpc_pool_new(void)
{
    struct sfc_rpc_pool *pool = calloc(1, sizeof *pool);
    if (pool != NULL && pthread_mutex_init(&pool->lock, NULL) != 0) {
        free(pool);
        return NULL;
    }
    if (pool != NULL) {
        pool->users = 1;
    }
    return pool;
}

static void pool_free(struct sfc_rpc_pool *pool)
{
    for (unsigned i = 0; i < CLASSES; i++) {
        while (pool->free[i] != NULL) {
            struct sfc_rpc_buffer *buffer = pool->free[i];
            pool->free[i] = buffer->next;
            free(buffer);
        }
    }
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void sfc_rpc_pool_release(struct sfc_rpc_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    bool last = --pool->users == 0;
    pthread_mutex_unlock(&pool->lock);
    if (last) {
        pool_free(pool);
    }
}

static size_t class_bytes(unsigned size_class)
{
    return (size_t)(PARTS + size_class % PARTS) << (SHIFT_MIN - 2 + size_class / PARTS);
}

static unsigned class_of(size_t size)
{
    unsigned size_class = 0;
    while (size_class < CLASSES && class_bytes(size_class) < size) {
        size_class++;
    }
    return size_class;
}

static struct sfc_rpc_buffer *pool_take(struct sfc_rpc_pool *pool, unsigned size_class)
{
    pthread_mutex_lock(&pool->lock);
    struct sfc_rpc_buffer *buffer = pool->free[size_class];
    if (buffer != NULL) {
        pool->free[size_class] = buffer->next;
        pool->kept -= buffer->capacity;
        pool->users++;
    }
    pthread_mutex_unlock(&pool->lock);
    return buffer;
}

struct sfc_rpc_buffer *sfc_rpc_buffer_get(struct sfc_rpc_pool *pool, size_t size)
{
    unsigned size_class = class_of(size);
    if (size_class == CLASSES) {
        return NULL;
    }
    struct sfc_rpc_buffer *buffer = pool_take(pool, size_class);
    if (buffer != NULL) {
        return buffer;
    }
    size_t capacity = class_bytes(size_class);
    buffer = aligned_alloc(BUFFER_ALIGN, sizeof *buffer + capacity);
    if (buffer == NULL) {
        return NULL;
    }
    buffer->pool = pool;
    buffer->size_class = size_class;
    buffer->capacity = capacity;
    pthread_mutex_lock(&pool->lock);
    pool->users++;
    pthread_mutex_unlock(&pool->lock);
    return buffer;
}

uint8_t *sfc_rpc_buffer_data(struct sfc_rpc_buffer *buffer)
{
    return buffer->data;
}

void sfc_rpc_buffer_put(struct sfc_rpc_buffer *buffer)
{
    if (buffer == NULL) {
        return;
    }
    struct sfc_rpc_pool *pool = buffer->pool;
    pthread_mutex_lock(&pool->lock);
    bool keep = pool->kept + buffer->capacity <= SFC_RPC_POOL_KEEPS;
    if (keep) {
        buffer->next = pool->free[buffer->size_class];
        pool->free[buffer->size_class] = buffer;
        pool->kept += buffer->capacity;
    }
    bool last = --pool->users == 0;
    pthread_mutex_unlock(&pool->lock);
    if (!keep) {
        free(buffer);
    }
    if (last) {
        pool_free(pool);
    }
}

/* ---- receiving */

enum { PIECES_ON_STACK = 64 };

static int copy_body(struct sfc_rpc_pool *pool, const struct sfc_bytes *pieces, size_t n,
                     size_t size, void *into, size_t into_size, struct sfc_rpc_body *out,
                     struct sfc_error *err)
{
    struct sfc_wire_layout layout;
    int code = sfc_wire_scan(pieces, n, &layout, err);
    if (code != SFC_OK) {
        return code;
    }
    size_t head = layout.prefix_size + layout.suffix_size;
    if (head > SFC_LIMIT_HEAD) {
        return sfc_fail(err, SFC_ELIMIT, "message without its tensor has %zu bytes, limit %u", head,
                        SFC_LIMIT_HEAD);
    }
    size_t tensor_at = (head + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
    bool elsewhere = layout.tensor_size > 0 && layout.tensor_size == into_size;
    struct sfc_rpc_buffer *buffer =
        sfc_rpc_buffer_get(pool, tensor_at + (elsewhere ? 0 : layout.tensor_size));
    if (buffer == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for a message of %zu bytes", size);
    }
    uint8_t *data = buffer->data;
    sfc_wire_copy(pieces, n, 0, layout.prefix_size, data);
    sfc_wire_copy(pieces, n, layout.suffix_at, layout.suffix_size, data + layout.prefix_size);
    uint8_t *tensor = elsewhere ? into : data + tensor_at;
    sfc_wire_copy(pieces, n, layout.tensor_at, layout.tensor_size, tensor);
    out->buffer = buffer;
    out->head = (struct sfc_bytes){data, head};
    out->tensor = (struct sfc_bytes){tensor, layout.tensor_size};
    out->size = size;
    return SFC_OK;
}

int sfc_rpc_receive(struct sfc_rpc_pool *pool, grpc_byte_buffer *from, size_t max, void *into,
                    size_t into_size, struct sfc_rpc_body *out, struct sfc_error *err)
{
    if (from->type != GRPC_BB_RAW || from->data.raw.compression != GRPC_COMPRESS_NONE) {
        return sfc_fail(err, SFC_EUNSUPPORTED, "compressed messages are not accepted");
    }
    size_t size = grpc_byte_buffer_length(from);
    if (size > max) {
        return sfc_fail(err, SFC_ELIMIT, "message has %zu bytes, limit %zu", size, max);
    }
    struct sfc_bytes few[PIECES_ON_STACK], *pieces = few;
    grpc_slice_buffer *slices = &from->data.raw.slice_buffer;
    if (slices->count > PIECES_ON_STACK) {
        pieces = malloc(slices->count * sizeof *pieces);
        if (pieces == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "no memory for a message of %zu bytes", size);
        }
    }
    for (size_t i = 0; i < slices->count; i++) {
        pieces[i] = (struct sfc_bytes){GRPC_SLICE_START_PTR(slices->slices[i]),
                                       GRPC_SLICE_LENGTH(slices->slices[i])};
    }
    int code = copy_body(pool, pieces, slices->count, size, into, into_size, out, err);
    if (pieces != few) {
        free(pieces);
    }
    return code;
}

/* ---- sending */

grpc_slice sfc_rpc_head_slice(struct sfc_bytes head, size_t tensor_size)
{
    uint8_t prefix[SFC_WIRE_PREFIX_MAX];
    size_t more = tensor_size > 0 ? sfc_wire_tensor_prefix(tensor_size, prefix) : 0;
    grpc_slice slice = grpc_slice_malloc(head.size + more);
    uint8_t *to = GRPC_SLICE_START_PTR(slice);
    if (head.size > 0) {
        memcpy(to, head.data, head.size);
    }
    memcpy(to + head.size, prefix, more);
    return slice;
}

static void loan_returned(void *arg)
{
    struct sfc_rpc_loan *loan = arg;
    sfc_rpc_enqueue(loan->loop, &loan->tag, true);
}

grpc_byte_buffer *sfc_rpc_message(struct sfc_rpc_loop *loop, grpc_slice head,
                                  struct sfc_bytes tensor, struct sfc_rpc_loan *loan,
                                  void (*returned)(struct sfc_rpc_tag *tag, bool ok))
{
    grpc_slice slices[2] = {head};
    size_t count = 1;
    if (tensor.size > 0) {
        loan->loop = loop;
        sfc_rpc_op_begin(loop, &loan->tag, returned);
        /* gRPC only reads it. */
        slices[count++] = grpc_slice_new_with_user_data((void *)(uintptr_t)tensor.data, tensor.size,
                                                        loan_returned, loan);
    }
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(slices, count);
    if (count == 2) {
        grpc_slice_unref(slices[1]); /* the buffer has its own reference */
    }
    return buffer;
}

/* ---- status */

static const struct {
    int code;
    grpc_status_code grpc;
} status_map[] = {
    {SFC_OK, GRPC_STATUS_OK},
    {SFC_EINVAL, GRPC_STATUS_INVALID_ARGUMENT},
    {SFC_ENOMEM, GRPC_STATUS_RESOURCE_EXHAUSTED},
    {SFC_ENOTFOUND, GRPC_STATUS_NOT_FOUND},
    {SFC_EEXIST, GRPC_STATUS_ALREADY_EXISTS},
    {SFC_ESTATE, GRPC_STATUS_FAILED_PRECONDITION},
    {SFC_ESTALE, GRPC_STATUS_ABORTED},
    {SFC_ECONFLICT, GRPC_STATUS_ALREADY_EXISTS},
    {SFC_EUNAVAILABLE, GRPC_STATUS_UNAVAILABLE},
    {SFC_ETIMEOUT, GRPC_STATUS_DEADLINE_EXCEEDED},
    {SFC_ECANCELED, GRPC_STATUS_CANCELLED},
    {SFC_ELIMIT, GRPC_STATUS_RESOURCE_EXHAUSTED},
    {SFC_ECORRUPT, GRPC_STATUS_DATA_LOSS},
    {SFC_EIO, GRPC_STATUS_INTERNAL},
    {SFC_EUNSUPPORTED, GRPC_STATUS_UNIMPLEMENTED},
    {SFC_EDEVICE, GRPC_STATUS_INTERNAL},
    {SFC_EDENIED, GRPC_STATUS_PERMISSION_DENIED},
    {SFC_EINTERNAL, GRPC_STATUS_INTERNAL},
};
enum { STATUS_COUNT = sizeof status_map / sizeof *status_map };

grpc_status_code sfc_rpc_status_to_grpc(int code)
{
    for (size_t i = 0; i < STATUS_COUNT; i++) {
        if (status_map[i].code == code) {
            return status_map[i].grpc;
        }
    }
    return GRPC_STATUS_INTERNAL;
}

/* The number in "sfc-status", 0 when it is missing or none of ours. */
static int named_status(const grpc_metadata_array *trailing)
{
    for (size_t i = 0; i < trailing->count; i++) {
        const grpc_metadata *m = &trailing->metadata[i];
        size_t size = GRPC_SLICE_LENGTH(m->value);
        if (grpc_slice_str_cmp(m->key, SFC_RPC_STATUS_KEY) != 0 || size == 0 || size > 3) {
            continue;
        }
        int number = 0;
        const uint8_t *digits = GRPC_SLICE_START_PTR(m->value);
        for (size_t k = 0; k < size; k++) {
            if (digits[k] < '0' || digits[k] > '9') {
                return 0;
            }
            number = number * 10 + (digits[k] - '0');
        }
        return number <= SFC_EINTERNAL ? number : 0;
    }
    return 0;
}

bool sfc_rpc_status_is_named(const grpc_metadata_array *trailing)
{
    return named_status(trailing) != 0;
}

int sfc_rpc_status_from_grpc(grpc_status_code status, const grpc_metadata_array *trailing)
{
    int named = named_status(trailing);
    if (named != 0) {
        return named;
    }
    switch (status) {
    case GRPC_STATUS_CANCELLED: /* not by us: the server went away or gave the call up */
    case GRPC_STATUS_UNKNOWN:   /* "Stream removed": the connection broke under the call */
        return SFC_EUNAVAILABLE;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return SFC_ELIMIT;
    case GRPC_STATUS_ALREADY_EXISTS:
        return SFC_EEXIST;
    case GRPC_STATUS_OUT_OF_RANGE:
        return SFC_EINVAL;
    case GRPC_STATUS_UNAUTHENTICATED:
        return SFC_EDENIED;
    case GRPC_STATUS_INTERNAL:
        return SFC_EINTERNAL;
    default:
        break;
    }
    for (size_t i = 1; i < STATUS_COUNT; i++) {
        if (status_map[i].grpc == status) {
            return status_map[i].code;
        }
    }
    return SFC_EINTERNAL;
}

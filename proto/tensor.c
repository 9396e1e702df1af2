#include "proto/tensor.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

size_t sfc_tensor_element_size(int dtype)
{
    switch (dtype) {
    case SHARDFC__V1__DTYPE__DTYPE_F32:
        return 4;
    case SHARDFC__V1__DTYPE__DTYPE_F64:
    case SHARDFC__V1__DTYPE__DTYPE_I64:
    case SHARDFC__V1__DTYPE__DTYPE_U64:
        return 8;
    default:
        return 0;
    }
}

static const char *dtype_name(int dtype)
{
    switch (dtype) {
    case SHARDFC__V1__DTYPE__DTYPE_F32:
        return "f32";
    case SHARDFC__V1__DTYPE__DTYPE_F64:
        return "f64";
    case SHARDFC__V1__DTYPE__DTYPE_I64:
        return "i64";
    case SHARDFC__V1__DTYPE__DTYPE_U64:
        return "u64";
    default:
        return "no type";
    }
}

static int check_type(const Shardfc__V1__TensorType *type, Shardfc__V1__DType dtype, size_t rank,
                      const char *what, struct sfc_error *err)
{
    if (type == NULL) {
        return sfc_fail(err, SFC_EINVAL, "%s: the tensor's type (field 14) is missing", what);
    }
    if (type->dtype != dtype) {
        return sfc_fail(err, SFC_EINVAL, "%s: element type %s (%d), wanted %s", what,
                        dtype_name((int)type->dtype), (int)type->dtype, dtype_name((int)dtype));
    }
    if (type->n_shape != rank) {
        return sfc_fail(err, SFC_EINVAL, "%s: %zu dimensions, wanted %zu", what, type->n_shape,
                        rank);
    }
    return SFC_OK;
}

/* The payload must have exactly the bytes of the (checked) shape. */
static int check_length(const Shardfc__V1__TensorType *type, struct sfc_bytes payload,
                        const char *what, struct sfc_error *err)
{
    uint64_t bytes = sfc_tensor_element_size((int)type->dtype);
    for (size_t i = 0; i < type->n_shape; i++) {
        if (!sfc_u64_mul(bytes, type->shape[i], &bytes)) {
            return sfc_fail(err, SFC_EINVAL, "%s: the shape's size overflows", what);
        }
    }
    if (payload.size != bytes) {
        return sfc_fail(err, SFC_EINVAL, "%s: %zu bytes, wanted %" PRIu64, what, payload.size,
                        bytes);
    }
    return SFC_OK;
}

int sfc_tensor_check(const Shardfc__V1__TensorType *type, struct sfc_bytes payload,
                     Shardfc__V1__DType dtype, const uint64_t *shape, size_t rank, const char *what,
                     struct sfc_error *err)
{
    int code = check_type(type, dtype, rank, what, err);
    if (code != SFC_OK) {
        return code;
    }
    for (size_t i = 0; i < rank; i++) {
        if (type->shape[i] != shape[i]) {
            return sfc_fail(err, SFC_EINVAL, "%s: dimension %zu is %" PRIu64 ", wanted %" PRIu64,
                            what, i, type->shape[i], shape[i]);
        }
    }
    return check_length(type, payload, what, err);
}

int sfc_tensor_check_vector(const Shardfc__V1__TensorType *type, struct sfc_bytes payload,
                            Shardfc__V1__DType dtype, uint64_t max_count, uint64_t *count,
                            const char *what, struct sfc_error *err)
{
    int code = check_type(type, dtype, 1, what, err);
    if (code != SFC_OK) {
        return code;
    }
    if (type->shape[0] > max_count) {
        return sfc_fail(err, SFC_EINVAL, "%s: %" PRIu64 " elements, at most %" PRIu64, what,
                        type->shape[0], max_count);
    }
    code = check_length(type, payload, what, err);
    if (code == SFC_OK) {
        *count = type->shape[0];
    }
    return code;
}

Shardfc__V1__TensorType *sfc_tensor_type(struct sfc_tensor_type *holder, Shardfc__V1__DType dtype,
                                         const uint64_t *shape, size_t rank)
{
    assert(rank <= SFC_LIMIT_RANK);
    holder->message = (Shardfc__V1__TensorType)SHARDFC__V1__TENSOR_TYPE__INIT;
    holder->message.dtype = dtype;
    holder->message.n_shape = rank;
    holder->message.shape = holder->shape;
    if (rank > 0) {
        memcpy(holder->shape, shape, rank * sizeof *shape);
    }
    return &holder->message;
}

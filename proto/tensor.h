/* Type and shape of the tensor of a message (fields 14 and 15), checked before any use. */
#ifndef SFC_PROTO_TENSOR_H
#define SFC_PROTO_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"
#include "proto/limits.h"
#include "proto/shardfc.pb-c.h"

/* Bytes of one element; 0 for DTYPE_NONE and unknown numbers. */
size_t sfc_tensor_element_size(int dtype);

/* SFC_OK when `type` says exactly dtype and shape[rank] and the payload has exactly the bytes of
 * it; SFC_EINVAL names the difference (missing type, dtype, rank, dimension, length). `what` names
 * the tensor in messages. rank 0 is a scalar; a dimension may be 0. */
int sfc_tensor_check(const Shardfc__V1__TensorType *type, struct sfc_bytes payload,
                     Shardfc__V1__DType dtype, const uint64_t *shape, size_t rank, const char *what,
                     struct sfc_error *err);
/* The same with one dimension, whatever its length; *count receives it. */
int sfc_tensor_check_vector(const Shardfc__V1__TensorType *type, struct sfc_bytes payload,
                            Shardfc__V1__DType dtype, uint64_t max_count, uint64_t *count,
                            const char *what, struct sfc_error *err);

/* A TensorType for field 14 of a message to be packed; keeps its own shape. rank <= SFC_LIMIT_RANK.
 * Use: struct sfc_tensor_type t; request.payload_type = sfc_tensor_type(&t,
 * SHARDFC__V1__DTYPE__DTYPE_F32, shape, 2); */
struct sfc_tensor_type {
    Shardfc__V1__TensorType message;
    uint64_t shape[SFC_LIMIT_RANK];
};
Shardfc__V1__TensorType *sfc_tensor_type(struct sfc_tensor_type *holder, Shardfc__V1__DType dtype,
                                         const uint64_t *shape, size_t rank);

#endif

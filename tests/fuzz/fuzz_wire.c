/* Any bytes as a message: the scan must agree with itself however the bytes are cut into pieces,
 * and what it accepts must go through protobuf-c and the tensor checks without harm. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/run_config.h"
#include "proto/tensor.h"
#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void unpack_all(struct sfc_bytes head, struct sfc_bytes tensor)
{
    Shardfc__V1__LogitsRequest *logits =
        shardfc__v1__logits_request__unpack(NULL, head.size, head.data);
    if (logits != NULL) {
        static const uint64_t shape[] = {2, 3};
        struct sfc_error err;
        uint64_t count;
        (void)sfc_tensor_check(logits->payload_type, tensor, SHARDFC__V1__DTYPE__DTYPE_F32, shape,
                               2, "fuzz", &err);
        if (sfc_tensor_check_vector(logits->payload_type, tensor, SHARDFC__V1__DTYPE__DTYPE_F64,
                                    UINT64_MAX, &count, "fuzz", &err) == SFC_OK &&
            count * 8 != tensor.size) {
            abort();
        }
        shardfc__v1__logits_request__free_unpacked(logits, NULL);
    }
    Shardfc__V1__CreateRunRequest *create =
        shardfc__v1__create_run_request__unpack(NULL, head.size, head.data);
    if (create != NULL) {
        struct sfc_error err;
        if (sfc_run_config_check(create->config, &err) == SFC_OK &&
            sfc_run_dense_size(create->config) > SFC_LIMIT_DENSE_SIZE) {
            abort();
        }
        shardfc__v1__create_run_request__free_unpacked(create, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    size_t cut = data[0] < size ? data[0] : size - 1;
    data++;
    size--;
    struct sfc_bytes one = {data, size}, two[] = {{data, cut}, {data + cut, size - cut}};
    struct sfc_wire_layout a, b;
    struct sfc_error err;
    int code = sfc_wire_scan(&one, 1, &a, &err);
    if (code != sfc_wire_scan(two, 2, &b, &err)) {
        abort();
    }
    if (code != SFC_OK) {
        return 0;
    }
    if (memcmp(&a, &b, sizeof a) != 0 || a.suffix_at + a.suffix_size > size ||
        a.tensor_at + a.tensor_size > size) {
        abort();
    }
    struct sfc_bytes head, tensor;
    if (sfc_wire_split(one, &head, &tensor, &err) == SFC_OK) {
        unpack_all(head, tensor);
    }
    return 0;
}

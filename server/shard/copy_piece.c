#include "server/shard/copy_piece.h"

#include "proto/base/digest.h"
#include "proto/tensor.h"
#include "server/run/messages.h"

int sfc_copy_payload(const struct sfc_rpc_reply_view *view, const Shardfc__V1__TensorType *type,
                     uint64_t digest, uint64_t bytes, struct sfc_error *err)
{
    uint64_t words = bytes / 8;
    int code = sfc_tensor_check(type, view->tensor, SHARDFC__V1__DTYPE__DTYPE_U64, &words, 1,
                                "payload of a block", err);
    if (code == SFC_OK && sfc_digest64(view->tensor.data, view->tensor.size) != digest)
        code = sfc_fail(err, SFC_ECORRUPT, "a piece of a block has not the digest that it says");
    return code;
}

int sfc_copy_piece(const struct sfc_rpc_reply_view *view, uint64_t bytes, struct sfc_error *err)
{
    if (view->code != SFC_OK)
        return sfc_fail(err, view->code, "%s", view->text);
    Shardfc__V1__ReadCopyReply *r =
        sfc_unpack_reply(view->head, &shardfc__v1__read_copy_reply__descriptor, NULL);
    if (!r)
        return sfc_fail(err, SFC_EUNAVAILABLE, "its answer is malformed, or memory is short");
    int code = sfc_copy_payload(view, r->payload_type, r->payload_digest, bytes, err);
    sfc_message_free(r);
    return code;
}

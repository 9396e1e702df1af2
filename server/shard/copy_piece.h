/* What the answers of copy_source.h bring, for those who read a block from another shard: moves,
 * mirrors, the history. */
#ifndef SFC_SHARD_COPY_PIECE_H
#define SFC_SHARD_COPY_PIECE_H

#include "proto/rpc.h"
#include "proto/shardfc.pb-c.h"

/* The payload of an answer: u64 words of so many bytes, with this digest. SFC_EINVAL, SFC_ECORRUPT.
 */
int sfc_copy_payload(const struct sfc_rpc_reply_view *view, const Shardfc__V1__TensorType *type,
                     uint64_t digest, uint64_t bytes, struct sfc_error *err);
/* An answer to ReadCopy: its tensor is the piece of so many bytes that was asked for. What the
 * owner refused fails with the owner's code and words. */
int sfc_copy_piece(const struct sfc_rpc_reply_view *view, uint64_t bytes, struct sfc_error *err);

#endif

/* Splits a serialized message into its head and its tensor (field 15) without unpacking it, and
 * writes the few bytes that join them again. Rules in proto/shardfc.proto. */
#ifndef SFC_PROTO_WIRE_H
#define SFC_PROTO_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/bytes.h"
#include "proto/base/status.h"

enum { SFC_WIRE_TENSOR_FIELD = 15, SFC_WIRE_PREFIX_MAX = 11 };

/* Where things lie in a body of prefix_size + tag and length + tensor_size + suffix_size bytes. The
 * head is prefix and suffix together; the suffix is empty when field 15 comes last. Without field
 * 15 the tensor is empty and the prefix is everything. */
struct sfc_wire_layout {
    size_t prefix_size;
    size_t tensor_at;
    size_t tensor_size;
    size_t suffix_at;
    size_t suffix_size;
};

/* Scans the top level of a body that lies in n pieces one after another. Any malformed input (cut
 * fields, field number 0, groups, field 15 twice or not of type bytes) is SFC_ECORRUPT, with the
 * byte where it happened. */
int sfc_wire_scan(const struct sfc_bytes *pieces, size_t n, struct sfc_wire_layout *out,
                  struct sfc_error *err);

/* Copies bytes [at, at + size) of the pieces; the range must lie inside. */
void sfc_wire_copy(const struct sfc_bytes *pieces, size_t n, size_t at, size_t size, void *out);

/* Scan of one contiguous body whose tensor comes last or is missing, without a copy: head and
 * tensor point into body. SFC_EINVAL when something follows the tensor (then the caller has to
 * join). */
int sfc_wire_split(struct sfc_bytes body, struct sfc_bytes *head, struct sfc_bytes *tensor,
                   struct sfc_error *err);

/* Tag and length of field 15 for a tensor of this size; returns their number of bytes. */
size_t sfc_wire_tensor_prefix(size_t tensor_size, uint8_t out[SFC_WIRE_PREFIX_MAX]);

/* SFC_OK when `text` is usable as a name or sentence of at most `max` bytes: no control characters;
 * not empty if `required`. Otherwise SFC_EINVAL with `what` in the message. */
int sfc_wire_check_text(const char *text, size_t max, int required, const char *what,
                        struct sfc_error *err);

#endif

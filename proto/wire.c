#include "proto/wire.h"

#include <stdbool.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum { FIELD_MAX = (1 << 29) - 1 };

/* A position in a body that lies in pieces. */
struct cursor {
    const struct sfc_bytes *pieces;
    size_t count;
    size_t piece, offset; /* next byte */
    size_t at, size;      /* in the whole body */
};

static bool cursor_init(struct cursor *c, const struct sfc_bytes *pieces, size_t n)
{
    *c = (struct cursor){.pieces = pieces, .count = n};
    for (size_t i = 0; i < n; i++) {
        if (!sfc_size_add(c->size, pieces[i].size, &c->size)) {
            return false;
        }
    }
    return true;
}

/* Moves over size bytes, which must be there. */
static void cursor_move(struct cursor *c, size_t size)
{
    c->at += size;
    while (size > 0) {
        size_t left = c->pieces[c->piece].size - c->offset;
        if (size < left) {
            c->offset += size;
            return;
        }
        size -= left;
        c->piece++;
        c->offset = 0;
    }
}

static bool cursor_byte(struct cursor *c, uint8_t *out)
{
    if (c->at == c->size) {
        return false;
    }
    while (c->pieces[c->piece].size == c->offset) {
        c->piece++;
        c->offset = 0;
    }
    *out = c->pieces[c->piece].data[c->offset];
    c->offset++;
    c->at++;
    return true;
}

static bool cursor_varint(struct cursor *c, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte;
        if (!cursor_byte(c, &byte) || (shift == 63 && byte > 1)) {
            return false;
        }
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

/* Reads what stands between a tag and the next one; *payload: start of a byte field. */
static bool skip_value(struct cursor *c, unsigned type, size_t *payload)
{
    uint64_t size;
    switch (type) {
    case WIRE_VARINT:
        return cursor_varint(c, &size);
    case WIRE_FIXED64:
        size = 8;
        break;
    case WIRE_FIXED32:
        size = 4;
        break;
    case WIRE_BYTES:
        if (!cursor_varint(c, &size)) {
            return false;
        }
        break;
    default:
        return false; /* groups are not used by proto3 */
    }
    if (size > c->size - c->at) {
        return false;
    }
    *payload = c->at;
    cursor_move(c, (size_t)size);
    return true;
}

static int malformed(size_t at, struct sfc_error *err)
{
    return sfc_fail(err, SFC_ECORRUPT, "message is malformed at byte %zu", at);
}

int sfc_wire_scan(const struct sfc_bytes *pieces, size_t n, struct sfc_wire_layout *out,
                  struct sfc_error *err)
{
    struct cursor c;
    if (!cursor_init(&c, pieces, n)) {
        return sfc_fail(err, SFC_ECORRUPT, "message size overflows");
    }
    struct sfc_wire_layout layout = {.prefix_size = c.size, .suffix_at = c.size};
    bool found = false;
    while (c.at < c.size) {
        size_t start = c.at, payload = 0;
        uint64_t tag;
        if (!cursor_varint(&c, &tag) || tag >> 3 == 0 || tag >> 3 > FIELD_MAX ||
            !skip_value(&c, (unsigned)(tag & 7), &payload)) {
            return malformed(start, err);
        }
        if (tag >> 3 != SFC_WIRE_TENSOR_FIELD) {
            continue;
        }
        if (found || (tag & 7) != WIRE_BYTES) {
            return malformed(start, err);
        }
        found = true;
        layout.prefix_size = start;
        layout.tensor_at = payload;
        layout.tensor_size = c.at - payload;
        layout.suffix_at = c.at;
        layout.suffix_size = c.size - c.at;
    }
    *out = layout;
    return SFC_OK;
}

void sfc_wire_copy(const struct sfc_bytes *pieces, size_t n, size_t at, size_t size, void *out)
{
    uint8_t *to = out;
    for (size_t i = 0; i < n && size > 0; i++) {
        if (at >= pieces[i].size) {
            at -= pieces[i].size;
            continue;
        }
        size_t part = pieces[i].size - at;
        part = part < size ? part : size;
        memcpy(to, pieces[i].data + at, part);
        to += part;
        size -= part;
        at = 0;
    }
}

int sfc_wire_split(struct sfc_bytes body, struct sfc_bytes *head, struct sfc_bytes *tensor,
                   struct sfc_error *err)
{
    struct sfc_wire_layout layout;
    int code = sfc_wire_scan(&body, 1, &layout, err);
    if (code != SFC_OK) {
        return code;
    }
    if (layout.suffix_size > 0) {
        return sfc_fail(err, SFC_EINVAL, "the tensor is not the last field");
    }
    *head = (struct sfc_bytes){body.data, layout.prefix_size};
    *tensor = (struct sfc_bytes){NULL, layout.tensor_size};
    if (layout.tensor_size > 0) {
        tensor->data = body.data + layout.tensor_at;
    }
    return SFC_OK;
}

size_t sfc_wire_tensor_prefix(size_t tensor_size, uint8_t out[SFC_WIRE_PREFIX_MAX])
{
    struct sfc_writer writer;
    sfc_writer_init(&writer, out, SFC_WIRE_PREFIX_MAX);
    sfc_write_varint(&writer, SFC_WIRE_TENSOR_FIELD << 3 | WIRE_BYTES);
    sfc_write_varint(&writer, tensor_size);
    return writer.at;
}

int sfc_wire_check_text(const char *text, size_t max, int required, const char *what,
                        struct sfc_error *err)
{
    size_t size = text != NULL ? strnlen(text, max + 1) : 0;
    if (size == 0 && required) {
        return sfc_fail(err, SFC_EINVAL, "%s is empty", what);
    }
    if (size > max) {
        return sfc_fail(err, SFC_EINVAL, "%s is longer than %zu bytes", what, max);
    }
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f) {
            return sfc_fail(err, SFC_EINVAL, "%s has a control character at byte %zu", what, i);
        }
    }
    return SFC_OK;
}

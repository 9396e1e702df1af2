#include "worker/data/recordio.h"

#include <math.h>
#include <string.h>

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

static float getf(const uint8_t *p)
{
    uint32_t bits = get32(p);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static void putf(uint8_t *p, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put32(p, bits);
}

static size_t padded(size_t length)
{
    return (length + 3) & ~(size_t)3;
}

int sfc_record_part_header(const uint8_t *data, size_t length, enum sfc_record_part *part,
                           uint32_t *part_length, struct sfc_error *err)
{
    if (length < SFC_RECORD_HEADER)
        return sfc_fail(err, SFC_ECORRUPT, "record cut short: %zu of 8 header bytes", length);
    if (get32(data) != SFC_RECORD_MAGIC)
        return sfc_fail(err, SFC_ECORRUPT, "record starts with 0x%08x instead of the magic 0x%08x",
                        get32(data), SFC_RECORD_MAGIC);
    uint32_t word = get32(data + 4);
    if (word >> 29 > SFC_PART_LAST)
        return sfc_fail(err, SFC_ECORRUPT, "record part has unknown flag %u", word >> 29);
    *part = (enum sfc_record_part)(word >> 29);
    *part_length = word & SFC_RECORD_MAX_PART;
    return SFC_OK;
}

int sfc_record_decode(const uint8_t *data, size_t length, uint8_t *payload, size_t *payload_length,
                      size_t *span, struct sfc_error *err)
{
    size_t at = 0, out = 0;
    for (unsigned n = 0;; n++) {
        enum sfc_record_part part = SFC_PART_WHOLE;
        uint32_t bytes = 0;
        int rc = sfc_record_part_header(data + at, length - at, &part, &bytes, err);
        if (rc != SFC_OK)
            return n == 0 ? rc : sfc_prefix(err, "part %u", n);
        bool first = part == SFC_PART_WHOLE || part == SFC_PART_FIRST;
        if (first != (n == 0))
            return sfc_fail(err, SFC_ECORRUPT, "record part %u has flag %u out of order", n,
                            (unsigned)part);
        at += SFC_RECORD_HEADER;
        if (bytes > length - at)
            return sfc_fail(err, SFC_ECORRUPT, "record cut short: part of %u bytes, %zu left",
                            bytes, length - at);
        if (out + bytes + 4 > SFC_RECORD_MAX)
            return sfc_fail(err, SFC_ECORRUPT, "record is larger than %u bytes", SFC_RECORD_MAX);
        if (n > 0) { /* the magic that the writer left out */
            put32(payload + out, SFC_RECORD_MAGIC);
            out += 4;
        }
        memmove(payload + out, data + at, bytes);
        out += bytes;
        at += padded(bytes) < length - at ? padded(bytes) : length - at;
        if (part == SFC_PART_WHOLE || part == SFC_PART_LAST)
            break;
    }
    *payload_length = out;
    *span = at;
    return SFC_OK;
}

size_t sfc_record_bound(size_t length)
{
    /* Each split replaces 4 bytes of magic by 8 of header: at most twice the length in all. */
    return 2 * length + 2 * SFC_RECORD_HEADER;
}

static size_t put_part(uint8_t *out, uint32_t flag, const uint8_t *data, size_t length)
{
    put32(out, SFC_RECORD_MAGIC);
    put32(out + 4, flag << 29 | (uint32_t)length);
    if (length > 0)
        memcpy(out + 8, data, length);
    memset(out + 8 + length, 0, padded(length) - length);
    return 8 + padded(length);
}

size_t sfc_record_encode(const uint8_t *payload, size_t length, uint8_t *out)
{
    size_t from = 0, written = 0;
    for (size_t i = 0; i + 4 <= length; i += 4) {
        if (get32(payload + i) != SFC_RECORD_MAGIC)
            continue;
        uint32_t flag = from == 0 ? SFC_PART_FIRST : SFC_PART_MIDDLE;
        written += put_part(out + written, flag, payload + from, i - from);
        from = i + 4;
    }
    uint32_t flag = from == 0 ? SFC_PART_WHOLE : SFC_PART_LAST;
    return written + put_part(out + written, flag, payload + from, length - from);
}

int sfc_image_header_decode(const uint8_t *payload, size_t length, struct sfc_image_header *out,
                            struct sfc_error *err)
{
    if (length < SFC_IMAGE_HEADER)
        return sfc_fail(err, SFC_ECORRUPT, "image header cut short: %zu of %d bytes", length,
                        SFC_IMAGE_HEADER);
    uint32_t flag = get32(payload);
    if (flag > (length - SFC_IMAGE_HEADER) / 4)
        return sfc_fail(err, SFC_ECORRUPT, "image header names %u labels, %zu bytes left", flag,
                        length - SFC_IMAGE_HEADER);
    out->flag = flag;
    out->label = getf(payload + 4);
    out->id = get64(payload + 8);
    out->id2 = get64(payload + 16);
    out->label_count = flag;
    out->labels = payload + SFC_IMAGE_HEADER;
    out->image = payload + SFC_IMAGE_HEADER + 4 * (size_t)flag;
    out->image_length = length - SFC_IMAGE_HEADER - 4 * (size_t)flag;
    return SFC_OK;
}

float sfc_image_header_label(const struct sfc_image_header *header, uint32_t i)
{
    return getf(header->labels + 4 * (size_t)i);
}

/* The integer behind an f32, with the exact number beside it if `tagged` holds one. */
static int exact_label(float value, uint64_t exact, bool tagged, uint64_t *out,
                       struct sfc_error *err)
{
    if (!(value >= 0.0F) || !isfinite(value) || value != floorf(value))
        return sfc_fail(err, SFC_ECORRUPT, "label %g is not a class number", (double)value);
    if (tagged) {
        if ((float)exact != value)
            return sfc_fail(err, SFC_ECORRUPT, "label %.0f in the record, %llu beside it",
                            (double)value, (unsigned long long)exact);
        *out = exact;
        return SFC_OK;
    }
    if (value > (float)SFC_LABEL_EXACT)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "label %.0f is ambiguous: f32 is exact up to 16777216 only, and the record "
                        "has no exact label in id2 (`shardfc data pack` writes one)",
                        (double)value);
    *out = (uint64_t)value;
    return SFC_OK;
}

static bool is_tagged(uint64_t id2)
{
    return (id2 & ~(SFC_LABEL_LIMIT - 1)) == SFC_LABEL_TAG;
}

int sfc_image_label(const struct sfc_image_header *header, uint64_t *label, struct sfc_error *err)
{
    float value = header->label_count > 0 ? sfc_image_header_label(header, 0) : header->label;
    return exact_label(value, header->id2 & (SFC_LABEL_LIMIT - 1), is_tagged(header->id2), label,
                       err);
}

void sfc_image_header_encode(uint64_t label, uint64_t id, uint8_t out[SFC_IMAGE_HEADER])
{
    put32(out, 0);
    putf(out + 4, (float)label);
    put64(out + 8, id);
    put64(out + 16, SFC_LABEL_TAG | label);
}

void sfc_range_header_encode(uint64_t first, uint64_t second, uint8_t out[SFC_RANGE_HEADER])
{
    put32(out, 2);
    putf(out + 4, 0.0F);
    put64(out + 8, first);
    put64(out + 16, SFC_LABEL_TAG | second);
    putf(out + 24, (float)first);
    putf(out + 28, (float)second);
}

int sfc_range_header_values(const struct sfc_image_header *header, uint64_t *first,
                            uint64_t *second, struct sfc_error *err)
{
    if (header->label_count < 2)
        return sfc_fail(err, SFC_ECORRUPT, "range record with %u labels instead of 2",
                        header->label_count);
    bool tagged = is_tagged(header->id2);
    uint64_t a = 0, b = 0;
    int rc = exact_label(sfc_image_header_label(header, 0), header->id, tagged, &a, err);
    if (rc == SFC_OK)
        rc = exact_label(sfc_image_header_label(header, 1), header->id2 & (SFC_LABEL_LIMIT - 1),
                         tagged, &b, err);
    if (rc != SFC_OK)
        return rc;
    *first = a;
    *second = b;
    return SFC_OK;
}

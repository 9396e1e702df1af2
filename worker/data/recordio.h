/* MXNet RecordIO and the insightface records in it: pure codecs over bytes (docs/FORMATS.md).
 *
 * A record is one or more parts, each u32 magic, u32 (flag << 29 | length), data, zero padding
 * to 4. Flag 0 whole, 1 first, 2 middle, 3 last: where the payload itself holds the magic at a
 * multiple of 4 the writer splits there and leaves the magic out; the reader puts it back. */
#ifndef SFC_WORKER_DATA_RECORDIO_H
#define SFC_WORKER_DATA_RECORDIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_RECORD_MAGIC    0xced7230aU
#define SFC_RECORD_MAX_PART ((1U << 29) - 1)
/* Bound of a record with all its parts: an image of a training set, not a film. */
#define SFC_RECORD_MAX    (64U << 20)
#define SFC_RECORD_HEADER 8  /* bytes before the data of a part */
#define SFC_IMAGE_HEADER  24 /* bytes of IfQQ */

enum sfc_record_part { SFC_PART_WHOLE, SFC_PART_FIRST, SFC_PART_MIDDLE, SFC_PART_LAST };

/* The 8 bytes before a part's data. SFC_ECORRUPT: fewer than 8 bytes, wrong magic. */
int sfc_record_part_header(const uint8_t *data, size_t length, enum sfc_record_part *part,
                           uint32_t *part_length, struct sfc_error *err);

/* The record that starts at data: *span = bytes that it occupies with padding. The payload is
 * written to payload (capacity: at least length bytes; may equal data, a record is then joined in
 * place). SFC_ECORRUPT: cut short, wrong magic, parts out of order, over SFC_RECORD_MAX. */
int sfc_record_decode(const uint8_t *data, size_t length, uint8_t *payload, size_t *payload_length,
                      size_t *span, struct sfc_error *err);

/* Bytes that a payload occupies at most, and the record itself (out: that many bytes). Returns the
 * number written. length <= SFC_RECORD_MAX. */
size_t sfc_record_bound(size_t length);
size_t sfc_record_encode(const uint8_t *payload, size_t length, uint8_t *out);

/* The image header at the start of a payload: flag, f32 label, id, id2; flag > 0: flag f32 labels
 * follow. */
struct sfc_image_header {
    uint32_t flag;
    float label;
    uint64_t id, id2;
    uint32_t label_count;  /* flag, 0 when the label is in the header */
    const uint8_t *labels; /* label_count f32, little endian, unaligned */
    const uint8_t *image;  /* the rest of the payload */
    size_t image_length;
};
int sfc_image_header_decode(const uint8_t *payload, size_t length, struct sfc_image_header *out,
                            struct sfc_error *err);
/* Label i of the list (i < label_count). */
float sfc_image_header_label(const struct sfc_image_header *header, uint32_t i);

/* f32 holds each integer only up to 2^24. Our own files carry the label again in id2, as
 * SFC_LABEL_TAG | label, which must round to the f32 label. */
#define SFC_LABEL_EXACT (1U << 24)
#define SFC_LABEL_TAG   0x5346000000000000U /* "SF" above 48 bits of label */
#define SFC_LABEL_LIMIT (1ULL << 48)

/* The class of an image record. SFC_ECORRUPT: not a non-negative integer, or id2 disagrees;
 * SFC_EUNSUPPORTED: above 2^24 without id2 (f32 is ambiguous there). */
int sfc_image_label(const struct sfc_image_header *header, uint64_t *label, struct sfc_error *err);
/* Writes the 24-byte header of an image of class `label` (< SFC_LABEL_LIMIT) with number id. */
void sfc_image_header_encode(uint64_t label, uint64_t id, uint8_t out[SFC_IMAGE_HEADER]);
/* The header of record 0 and of identity records: flag 2 and two f32 labels. f32 is not exact above
 * 2^24, so our own files carry both again: id = first number, id2 = SFC_LABEL_TAG | second.
 * Record 0: (end of image keys, end of identity keys); identity record: images [first, end). */
#define SFC_RANGE_HEADER (SFC_IMAGE_HEADER + 8)
void sfc_range_header_encode(uint64_t first, uint64_t second, uint8_t out[SFC_RANGE_HEADER]);
/* SFC_ECORRUPT: fewer than two labels, not integers; SFC_EUNSUPPORTED: ambiguous. */
int sfc_range_header_values(const struct sfc_image_header *header, uint64_t *first,
                            uint64_t *second, struct sfc_error *err);

/* .idx: lines "key<TAB>offset". Entries in the order of the file. Keys must be distinct, offsets
 * below file_size and multiples of 4. Messages name the line. */
struct sfc_index_entry {
    uint64_t key, offset;
};
/* *entries is malloc'ed, freed by the caller. */
int sfc_index_parse(const char *text, size_t length, uint64_t file_size,
                    struct sfc_index_entry **entries, size_t *count, struct sfc_error *err);

#endif

/* Bounded little-endian reader and writer, and sizes that can't overflow. */
#ifndef SFC_BASE_BYTES_H
#define SFC_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Memory that somebody else owns. */
struct sfc_bytes {
    const uint8_t *data;
    size_t size;
};

/* True and *out = a op b, or false when it doesn't fit. */
static inline bool sfc_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool sfc_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool sfc_u64_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool sfc_u64_add(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Reads from memory that somebody else owns. The first read past the end sets `failed` and returns
 * 0; so does every later one: check once, after a group of reads. */
struct sfc_reader {
    const uint8_t *data;
    size_t size;
    size_t at;
    bool failed;
};

void sfc_reader_init(struct sfc_reader *reader, const void *data, size_t size);
size_t sfc_reader_left(const struct sfc_reader *reader);
uint8_t sfc_read_u8(struct sfc_reader *reader);
uint16_t sfc_read_u16(struct sfc_reader *reader);
uint32_t sfc_read_u32(struct sfc_reader *reader);
uint64_t sfc_read_u64(struct sfc_reader *reader);
double sfc_read_f64(struct sfc_reader *reader);
/* Pointer to `size` bytes inside the data, NULL (and failed) when there are fewer. */
const uint8_t *sfc_read_bytes(struct sfc_reader *reader, size_t size);
/* Base-128 integer of protobuf; more than 10 bytes or 64 bits is a failure. */
uint64_t sfc_read_varint(struct sfc_reader *reader);

/* Writes into memory that somebody else owns; what doesn't fit isn't written and sets `failed`. */
struct sfc_writer {
    uint8_t *data;
    size_t size;
    size_t at;
    bool failed;
};

void sfc_writer_init(struct sfc_writer *writer, void *data, size_t size);
void sfc_write_u8(struct sfc_writer *writer, uint8_t value);
void sfc_write_u16(struct sfc_writer *writer, uint16_t value);
void sfc_write_u32(struct sfc_writer *writer, uint32_t value);
void sfc_write_u64(struct sfc_writer *writer, uint64_t value);
void sfc_write_f64(struct sfc_writer *writer, double value);
void sfc_write_bytes(struct sfc_writer *writer, const void *data, size_t size);
void sfc_write_varint(struct sfc_writer *writer, uint64_t value);

#endif

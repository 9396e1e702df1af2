#include "proto/base/bytes.h"

#include <string.h>

void sfc_reader_init(struct sfc_reader *reader, const void *data, size_t size)
{
    *reader = (struct sfc_reader){.data = data, .size = size};
}

size_t sfc_reader_left(const struct sfc_reader *reader)
{
    return reader->failed ? 0 : reader->size - reader->at;
}

const uint8_t *sfc_read_bytes(struct sfc_reader *reader, size_t size)
{
    static const uint8_t nothing[1];
    if (reader->failed || size > reader->size - reader->at) {
        reader->failed = true;
        return NULL;
    }
    if (size == 0) {
        return nothing;
    }
    const uint8_t *bytes = reader->data + reader->at;
    reader->at += size;
    return bytes;
}

static uint64_t read_little_endian(struct sfc_reader *reader, size_t size)
{
    const uint8_t *bytes = sfc_read_bytes(reader, size);
    uint64_t value = 0;
    if (bytes != NULL) {
        for (size_t i = size; i-- > 0;) {
            value = value << 8 | bytes[i];
        }
    }
    return value;
}

uint8_t sfc_read_u8(struct sfc_reader *reader)
{
    return (uint8_t)read_little_endian(reader, 1);
}

uint16_t sfc_read_u16(struct sfc_reader *reader)
{
    return (uint16_t)read_little_endian(reader, 2);
}

uint32_t sfc_read_u32(struct sfc_reader *reader)
{
    return (uint32_t)read_little_endian(reader, 4);
}

uint64_t sfc_read_u64(struct sfc_reader *reader)
{
    return read_little_endian(reader, 8);
}

double sfc_read_f64(struct sfc_reader *reader)
{
    uint64_t bits = sfc_read_u64(reader);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint64_t sfc_read_varint(struct sfc_reader *reader)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte = sfc_read_u8(reader);
        if (reader->failed) {
            return 0;
        }
        if (shift == 63 && byte > 1) {
            break;
        }
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return value;
        }
    }
    reader->failed = true;
    return 0;
}

void sfc_writer_init(struct sfc_writer *writer, void *data, size_t size)
{
    *writer = (struct sfc_writer){.data = data, .size = size};
}

void sfc_write_bytes(struct sfc_writer *writer, const void *data, size_t size)
{
    if (writer->failed || size > writer->size - writer->at) {
        writer->failed = true;
        return;
    }
    if (size > 0) {
        memcpy(writer->data + writer->at, data, size);
        writer->at += size;
    }
}

static void write_little_endian(struct sfc_writer *writer, uint64_t value, size_t size)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    sfc_write_bytes(writer, bytes, size);
}

void sfc_write_u8(struct sfc_writer *writer, uint8_t value)
{
    write_little_endian(writer, value, 1);
}

void sfc_write_u16(struct sfc_writer *writer, uint16_t value)
{
    write_little_endian(writer, value, 2);
}

void sfc_write_u32(struct sfc_writer *writer, uint32_t value)
{
    write_little_endian(writer, value, 4);
}

void sfc_write_u64(struct sfc_writer *writer, uint64_t value)
{
    write_little_endian(writer, value, 8);
}

void sfc_write_f64(struct sfc_writer *writer, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    sfc_write_u64(writer, bits);
}

void sfc_write_varint(struct sfc_writer *writer, uint64_t value)
{
    uint8_t bytes[10];
    size_t size = 0;
    do {
        bytes[size++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value > 0);
    sfc_write_bytes(writer, bytes, size);
}

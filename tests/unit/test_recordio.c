/* Record, image header and index codecs on whole, cut and damaged bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/data/recordio.h"

static const uint8_t magic[4] = {0x0a, 0x23, 0xd7, 0xce};

/* Encodes, decodes in place and compares; every shorter input is refused. */
static void round_trip(const uint8_t *payload, size_t length, size_t expected_bytes)
{
    struct sfc_error err = {0};
    uint8_t *record = malloc(sfc_record_bound(length)), *out = malloc(sfc_record_bound(length));
    size_t bytes = sfc_record_encode(payload, length, record), got = 0, span = 0;
    assert_true(bytes <= sfc_record_bound(length));
    assert_int_equal(bytes, expected_bytes);
    assert_int_equal(bytes % 4, 0);
    size_t padding = (4 - length % 4) % 4;
    for (size_t cut = 0; cut < bytes - padding; cut++)
        assert_int_equal(sfc_record_decode(record, cut, out, &got, &span, &err), SFC_ECORRUPT);
    assert_int_equal(sfc_record_decode(record, bytes, record, &got, &span, &err), SFC_OK);
    assert_int_equal(got, length);
    assert_int_equal(span, bytes);
    assert_memory_equal(record, payload, length);
    free(record);
    free(out);
}

static void test_round_trips(void **state)
{
    (void)state;
    uint8_t payload[64];
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 7);
    for (size_t length = 0; length <= sizeof payload; length++)
        round_trip(payload, length, 8 + (length + 3) / 4 * 4);
    memcpy(payload + 5, magic, 4); /* not at a multiple of 4: no split */
    round_trip(payload, 40, 48);
    memcpy(payload + 8, magic, 4);
    round_trip(payload, 40, 8 + 8 + 8 + 28);
    memcpy(payload, magic, 4); /* first, adjacent and last */
    memcpy(payload + 12, magic, 4);
    memcpy(payload + 36, magic, 4);
    round_trip(payload, 40, 40 + 8 + 4 * 4);
    for (size_t i = 0; i < sizeof payload; i += 4)
        memcpy(payload + i, magic, 4);
    round_trip(payload, sizeof payload, 17 * 8);
}

/* Bytes as MXNet's own writer makes them: payload "abcd" magic "ef". */
static void test_known_bytes(void **state)
{
    (void)state;
    static const uint8_t payload[] = {'a', 'b', 'c', 'd', 0x0a, 0x23, 0xd7, 0xce, 'e', 'f'};
    static const uint8_t expected[] = {0x0a, 0x23, 0xd7, 0xce, 4, 0, 0, 0x20, 'a', 'b', 'c', 'd',
                                       0x0a, 0x23, 0xd7, 0xce, 2, 0, 0, 0x60, 'e', 'f', 0,   0};
    uint8_t record[64];
    assert_int_equal(sfc_record_encode(payload, sizeof payload, record), sizeof expected);
    assert_memory_equal(record, expected, sizeof expected);
}

static void expect_decode(uint8_t *record, size_t length, const char *message)
{
    struct sfc_error err = {0};
    uint8_t out[128];
    size_t got = 0, span = 0;
    assert_int_equal(sfc_record_decode(record, length, out, &got, &span, &err), SFC_ECORRUPT);
    if (strstr(err.text, message) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, message);
}

static void test_damaged_records(void **state)
{
    (void)state;
    uint8_t payload[40] = {0}, record[128];
    memcpy(payload + 8, magic, 4);
    size_t bytes = sfc_record_encode(payload, sizeof payload, record);
    record[16] ^= 1;
    expect_decode(record, bytes, "part 1: record starts with");
    record[16] ^= 1;
    record[7] = 0x60; /* a last part alone */
    expect_decode(record, bytes, "part 0 has flag 3 out of order");
    record[7] = 0xe0;
    expect_decode(record, bytes, "unknown flag 7");
    record[7] = 0x20;
    record[23] = 0x20; /* first again where middle or last belongs */
    expect_decode(record, bytes, "part 1 has flag 1 out of order");
    record[23] = 0x60;
    record[22] = 0xff;
    expect_decode(record, bytes, "cut short");
}

static int label_of(float label, uint64_t id2, uint64_t *out, struct sfc_error *err)
{
    struct sfc_image_header header = {.label = label, .id2 = id2};
    return sfc_image_label(&header, out, err);
}

static void test_labels(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    uint64_t label = 0;
    assert_int_equal(label_of(16777216.0F, 0, &label, &err), SFC_OK);
    assert_int_equal(label, 16777216);
    assert_int_equal(label_of(16777218.0F, 0, &label, &err), SFC_EUNSUPPORTED);
    assert_int_equal(label_of(16777216.0F, SFC_LABEL_TAG | 16777217, &label, &err), SFC_OK);
    assert_int_equal(label, 16777217);
    assert_int_equal(label_of(16777216.0F, SFC_LABEL_TAG | 99, &label, &err), SFC_ECORRUPT);
    static const float wrong[] = {-1.0F, 0.5F, 1.0F / 0.0F, -0.0F / 0.0F};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(label_of(wrong[i], 0, &label, &err), SFC_ECORRUPT);
    uint8_t bytes[SFC_IMAGE_HEADER];
    struct sfc_image_header header;
    for (uint64_t value = 1; value < SFC_LABEL_LIMIT; value = value * 3 + 1) {
        sfc_image_header_encode(value, 5, bytes);
        assert_int_equal(sfc_image_header_decode(bytes, sizeof bytes, &header, &err), SFC_OK);
        assert_int_equal(sfc_image_label(&header, &label, &err), SFC_OK);
        assert_true(label == value && header.id == 5 && header.image_length == 0);
    }
}

static void test_image_headers(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_image_header header;
    uint64_t first = 0, second = 0;
    uint8_t bytes[SFC_RANGE_HEADER + 3] = {0};
    sfc_range_header_encode(16777219, 30000001, bytes);
    for (size_t cut = 0; cut < SFC_RANGE_HEADER; cut++)
        assert_int_equal(sfc_image_header_decode(bytes, cut, &header, &err), SFC_ECORRUPT);
    assert_int_equal(sfc_image_header_decode(bytes, sizeof bytes, &header, &err), SFC_OK);
    assert_int_equal(header.label_count, 2);
    assert_int_equal(header.image_length, 3);
    assert_int_equal(sfc_range_header_values(&header, &first, &second, &err), SFC_OK);
    assert_true(first == 16777219 && second == 30000001);
    header.id2 = 0; /* as another program would write it */
    assert_int_equal(sfc_range_header_values(&header, &first, &second, &err), SFC_EUNSUPPORTED);
    bytes[3] = 0xff; /* billions of labels */
    assert_int_equal(sfc_image_header_decode(bytes, sizeof bytes, &header, &err), SFC_ECORRUPT);
}

static int parse_index(const char *text, size_t *count, struct sfc_error *err)
{
    struct sfc_index_entry *entries = NULL;
    int rc = sfc_index_parse(text, strlen(text), 1000, &entries, count, err);
    free(entries);
    return rc;
}

static void test_index(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    size_t count = 0;
    assert_int_equal(parse_index("0\t0\n1\t40\n2\t996\n", &count, &err), SFC_OK);
    assert_int_equal(count, 3);
    assert_int_equal(parse_index("5\t0\r\n1\t40\r\n2\t80", &count, &err), SFC_OK);
    assert_int_equal(count, 3);
    static const struct {
        const char *text, *message;
    } wrong[] = {
        {"", "empty"},
        {"0\t0\n1 40\n", "line 2"},
        {"0\t0\nx\t4\n", "line 2"},
        {"0\t0\n1\t", "line 2"},
        {"0\t0\n1\t40 \n", "line 2"},
        {"0\t1000\n", "line 1: offset 1000"},
        {"0\t42\n", "line 1"},
        {"0\t0\n\n1\t4\n", "line 2"},
        {"7\t0\n9\t4\n7\t8\n", "key 7 stands twice"},
        {"0\t-4\n", "line 1"},
        {"99999999999999999999\t0\n", "line 1"},
        {"3\t0\n3\t4\n", "key 3 stands twice"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(parse_index(wrong[i].text, &count, &err), SFC_ECORRUPT);
        if (strstr(err.text, wrong[i].message) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.text, wrong[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),     cmocka_unit_test(test_known_bytes),
        cmocka_unit_test(test_damaged_records), cmocka_unit_test(test_labels),
        cmocka_unit_test(test_image_headers),   cmocka_unit_test(test_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

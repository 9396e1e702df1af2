#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "proto/base/bytes.h"

static void test_round_trip(void **state)
{
    (void)state;
    uint8_t memory[64];
    struct sfc_writer w;
    struct sfc_reader r;
    sfc_writer_init(&w, memory, sizeof memory);
    sfc_write_u8(&w, 0xab);
    sfc_write_u16(&w, 0x1234);
    sfc_write_u32(&w, 0xdeadbeef);
    sfc_write_u64(&w, 0x0102030405060708u);
    sfc_write_f64(&w, -0.15625);
    sfc_write_bytes(&w, "xyz", 3);
    sfc_write_varint(&w, UINT64_MAX);
    sfc_write_varint(&w, 300);
    assert_false(w.failed);
    assert_int_equal(memory[1], 0x34); /* little-endian */
    sfc_reader_init(&r, memory, w.at);
    assert_int_equal(sfc_read_u8(&r), 0xab);
    assert_int_equal(sfc_read_u16(&r), 0x1234);
    assert_int_equal(sfc_read_u32(&r), 0xdeadbeef);
    assert_true(sfc_read_u64(&r) == 0x0102030405060708u);
    assert_true(sfc_read_f64(&r) == -0.15625);
    assert_memory_equal(sfc_read_bytes(&r, 3), "xyz", 3);
    assert_true(sfc_read_varint(&r) == UINT64_MAX);
    assert_int_equal(sfc_read_varint(&r), 300);
    assert_false(r.failed);
    assert_int_equal(sfc_reader_left(&r), 0);
}

static void test_past_the_end(void **state)
{
    (void)state;
    static const uint8_t memory[5] = {1, 2, 3, 4, 5};
    struct sfc_reader r;
    sfc_reader_init(&r, memory, sizeof memory);
    assert_int_equal(sfc_read_u32(&r), 0x04030201);
    assert_int_equal(sfc_read_u16(&r), 0);
    assert_true(r.failed);
    assert_int_equal(sfc_read_u8(&r), 0); /* stays failed */
    assert_int_equal(sfc_reader_left(&r), 0);
    sfc_reader_init(&r, memory, sizeof memory);
    assert_null(sfc_read_bytes(&r, SIZE_MAX));
    assert_true(r.failed);
    uint8_t room[3];
    struct sfc_writer w;
    sfc_writer_init(&w, room, sizeof room);
    sfc_write_u16(&w, 7);
    sfc_write_u16(&w, 7);
    assert_true(w.failed);
    assert_int_equal(w.at, 2);
    sfc_write_u8(&w, 7); /* would fit, but comes after a failure */
    assert_int_equal(w.at, 2);
}

static void test_bad_varints(void **state)
{
    (void)state;
    static const uint8_t endless[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                      0xff, 0xff, 0xff, 0xff, 1};
    static const uint8_t over[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2};
    static const uint8_t cut[] = {0x80};
    const struct sfc_bytes bad[] = {{endless, sizeof endless}, {over, sizeof over}, {cut, 1}};
    for (size_t i = 0; i < 3; i++) {
        struct sfc_reader r;
        sfc_reader_init(&r, bad[i].data, bad[i].size);
        assert_int_equal(sfc_read_varint(&r), 0);
        assert_true(r.failed);
    }
}

static void test_sizes(void **state)
{
    (void)state;
    size_t n = 5;
    assert_true(sfc_size_mul(SIZE_MAX / 2, 2, &n));
    assert_false(sfc_size_mul(SIZE_MAX / 2 + 1, 2, &n));
    assert_false(sfc_size_add(SIZE_MAX, 1, &n));
    uint64_t u;
    assert_false(sfc_u64_mul(1ull << 32, 1ull << 32, &u));
    assert_true(sfc_u64_add(1, 2, &u));
    assert_int_equal(u, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_past_the_end),
        cmocka_unit_test(test_bad_varints),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

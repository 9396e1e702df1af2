#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/limits.h"
#include "proto/shardfc.pb-c.h"
#include "proto/wire.h"

/* A packed request with a payload, as any encoder writes it. */
static size_t packed(uint8_t **out, size_t payload_size)
{
    Shardfc__V1__LogitsRequest request = SHARDFC__V1__LOGITS_REQUEST__INIT;
    uint8_t *payload = malloc(payload_size + 1);
    for (size_t i = 0; i < payload_size; i++) {
        payload[i] = (uint8_t)i;
    }
    request.run_id = 77;
    request.payload_digest = 0x1122334455667788u;
    request.payload.data = payload;
    request.payload.len = payload_size;
    *out = malloc(shardfc__v1__logits_request__get_packed_size(&request) + 1);
    size_t size = shardfc__v1__logits_request__pack(&request, *out);
    free(payload);
    return size;
}

static void test_split(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 100, 127, 128, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *body;
        struct sfc_bytes head, tensor;
        size_t size = packed(&body, sizes[i]);
        assert_int_equal(sfc_wire_split((struct sfc_bytes){body, size}, &head, &tensor, NULL),
                         SFC_OK);
        assert_int_equal(tensor.size, sizes[i]);
        assert_int_equal(tensor.data[sizes[i] - 1], (uint8_t)(sizes[i] - 1));
        Shardfc__V1__LogitsRequest *request =
            shardfc__v1__logits_request__unpack(NULL, head.size, head.data);
        assert_non_null(request);
        assert_int_equal(request->run_id, 77);
        assert_true(request->payload_digest == 0x1122334455667788u);
        assert_int_equal(request->payload.len, 0);
        shardfc__v1__logits_request__free_unpacked(request, NULL);
        /* head + prefix + tensor are the same bytes again */
        uint8_t prefix[SFC_WIRE_PREFIX_MAX];
        size_t n = sfc_wire_tensor_prefix(tensor.size, prefix);
        assert_int_equal(head.size + n + tensor.size, size);
        assert_memory_equal(body + head.size, prefix, n);
        free(body);
    }
}

static void test_pieces(void **state)
{
    (void)state;
    uint8_t *body;
    size_t size = packed(&body, 300);
    struct sfc_wire_layout whole, cut;
    struct sfc_bytes one = {body, size};
    assert_int_equal(sfc_wire_scan(&one, 1, &whole, NULL), SFC_OK);
    for (size_t at = 0; at <= size; at++) { /* every place to cut, with an empty piece between */
        struct sfc_bytes pieces[] = {{body, at}, {NULL, 0}, {body + at, size - at}, {NULL, 0}};
        assert_int_equal(sfc_wire_scan(pieces, 4, &cut, NULL), SFC_OK);
        assert_memory_equal(&cut, &whole, sizeof whole);
        uint8_t copy[300];
        sfc_wire_copy(pieces, 4, cut.tensor_at, cut.tensor_size, copy);
        assert_memory_equal(copy, body + whole.tensor_at, sizeof copy);
    }
    free(body);
}

static void test_every_cut_is_noticed(void **state)
{
    (void)state;
    uint8_t *body;
    size_t size = packed(&body, 50);
    struct sfc_bytes one = {body, size};
    struct sfc_wire_layout layout;
    assert_int_equal(sfc_wire_scan(&one, 1, &layout, NULL), SFC_OK);
    for (size_t n = layout.prefix_size + 1; n < size; n++) {
        uint8_t *exact = malloc(n); /* so that a read past the end shows under ASan */
        memcpy(exact, body, n);
        struct sfc_bytes part = {exact, n};
        struct sfc_error err = {0};
        assert_int_equal(sfc_wire_scan(&part, 1, &layout, &err), SFC_ECORRUPT);
        assert_non_null(strstr(err.text, "malformed at byte"));
        free(exact);
    }
    free(body);
}

static void test_malformed(void **state)
{
    (void)state;
    static const uint8_t zero_field[] = {0, 1};
    static const uint8_t group[] = {1 << 3 | 3, 1 << 3 | 4};
    static const uint8_t twice[] = {0x7a, 1, 'a', 0x7a, 1, 'b'};
    static const uint8_t not_bytes[] = {15 << 3, 1};
    static const uint8_t long_field[] = {1 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff,
                                         0xff,       0xff, 0xff, 0xff, 1};
    static const uint8_t huge_number[] = {0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1};
    static const uint8_t cut_fixed[] = {1 << 3 | 1, 1, 2, 3};
    static const uint8_t cut_tag[] = {0x80};
    static const uint8_t type7[] = {1 << 3 | 7};
    const struct sfc_bytes bad[] = {
        {zero_field, sizeof zero_field}, {group, sizeof group},
        {twice, sizeof twice},           {not_bytes, sizeof not_bytes},
        {long_field, sizeof long_field}, {huge_number, sizeof huge_number},
        {cut_fixed, sizeof cut_fixed},   {cut_tag, sizeof cut_tag},
        {type7, sizeof type7},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sfc_wire_layout layout;
        assert_int_equal(sfc_wire_scan(&bad[i], 1, &layout, NULL), SFC_ECORRUPT);
    }
}

static void test_suffix(void **state)
{
    (void)state;
    static const uint8_t body[] = {1 << 3, 5, 0x7a, 2, 'a', 'b', 2 << 3, 6};
    struct sfc_bytes one = {body, sizeof body}, head, tensor;
    struct sfc_wire_layout layout;
    assert_int_equal(sfc_wire_scan(&one, 1, &layout, NULL), SFC_OK);
    assert_int_equal(layout.prefix_size, 2);
    assert_int_equal(layout.tensor_at, 4);
    assert_int_equal(layout.tensor_size, 2);
    assert_int_equal(layout.suffix_at, 6);
    assert_int_equal(layout.suffix_size, 2);
    assert_int_equal(sfc_wire_split(one, &head, &tensor, NULL), SFC_EINVAL);
    struct sfc_bytes nothing = {NULL, 0};
    assert_int_equal(sfc_wire_split(nothing, &head, &tensor, NULL), SFC_OK);
    assert_int_equal(head.size + tensor.size, 0);
}

static void test_text(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    assert_int_equal(sfc_wire_check_text("name", 4, 1, "x", &err), SFC_OK);
    assert_int_equal(sfc_wire_check_text("names", 4, 1, "x", &err), SFC_EINVAL);
    assert_int_equal(sfc_wire_check_text("", 4, 1, "x", &err), SFC_EINVAL);
    assert_int_equal(sfc_wire_check_text(NULL, 4, 0, "x", &err), SFC_OK);
    assert_int_equal(sfc_wire_check_text("a\nb", 4, 1, "x", &err), SFC_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_every_cut_is_noticed),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_suffix),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Lists: head, the items after a number, tail; each text is whole whatever the number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/http_list.h"

static void is_since(const struct sfc_http_list *list, uint64_t since, const char *expected)
{
    char *text = NULL;
    size_t size = 0;
    assert_int_equal(sfc_http_list_since(list, since, &text, &size), SFC_OK);
    assert_string_equal(text, expected);
    assert_int_equal(size, strlen(expected));
    free(text);
}

static void test_items_after_a_number(void **state)
{
    (void)state;
    struct sfc_http_list list = {0};
    sfc_http_list_head(&list, "{\"a\":1,\"items\":[");
    sfc_http_list_item(&list, 3, "\"three\"");
    sfc_http_list_item(&list, 7, "\"seven\"");
    sfc_http_list_item(&list, UINT64_MAX, "\"last\"");
    sfc_http_list_tail(&list, "]}");
    assert_false(list.failed);
    is_since(&list, 0, "{\"a\":1,\"items\":[\"three\",\"seven\",\"last\"]}");
    is_since(&list, 2, "{\"a\":1,\"items\":[\"three\",\"seven\",\"last\"]}");
    is_since(&list, 3, "{\"a\":1,\"items\":[\"seven\",\"last\"]}");
    is_since(&list, 6, "{\"a\":1,\"items\":[\"seven\",\"last\"]}");
    is_since(&list, 7, "{\"a\":1,\"items\":[\"last\"]}");
    is_since(&list, UINT64_MAX, "{\"a\":1,\"items\":[]}");
    sfc_http_list_free(&list);
    is_since(&list, 0, "");
}

static void test_no_items(void **state)
{
    (void)state;
    struct sfc_http_list list = {0};
    sfc_http_list_head(&list, "[");
    sfc_http_list_tail(&list, "]");
    is_since(&list, 0, "[]");
    is_since(&list, 5, "[]");
    sfc_http_list_free(&list);
}

static void test_many(void **state)
{
    (void)state;
    enum { MANY = 5000 };
    struct sfc_http_list list = {0};
    sfc_http_list_head(&list, "[");
    for (uint64_t i = 0; i < MANY; i++) {
        char text[24];
        snprintf(text, sizeof text, "%d", (int)(10 * i));
        sfc_http_list_item(&list, 10 * i, text);
    }
    sfc_http_list_tail(&list, "]");
    for (uint64_t since = 0; since < 10 * MANY; since += 7) {
        char expected[24], *text = NULL;
        size_t size = 0;
        uint64_t next = (since / 10 + 1) * 10;
        if (next < 10 * MANY)
            snprintf(expected, sizeof expected, "[%d%c", (int)next,
                     next + 10 < 10 * MANY ? ',' : ']');
        else
            snprintf(expected, sizeof expected, "[]");
        assert_int_equal(sfc_http_list_since(&list, since, &text, &size), SFC_OK);
        assert_memory_equal(text, expected, strlen(expected));
        assert_int_equal(text[size - 1], ']');
        free(text);
    }
    sfc_http_list_free(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_items_after_a_number),
        cmocka_unit_test(test_no_items),
        cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

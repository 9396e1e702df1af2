#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "proto/base/text.h"

static void check(const char *text, bool lines, const char *right)
{
    char copy[100];
    snprintf(copy, sizeof copy, "%s", text);
    sfc_clean_text(copy, lines);
    assert_string_equal(copy, right);
}

static void test_clean(void **state)
{
    (void)state;
    check("", false, "");
    check("plain", false, "plain");
    check("\x1b[31mred\x7f\a", false, "?[31mred??");
    check("a\nb\tc\r", false, "a?b?c?");
    check("a\nb\tc\r", true, "a\nb?c?");
    check("\xc2\x9b\x33\x31m \xc2\xa0", false, "??31m \xc2\xa0"); /* C1, and what comes after it */
    check("gr\xc3\xbc\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x99\x82", false,
          "gr\xc3\xbc\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x99\x82");
}

static void test_malformed(void **state)
{
    (void)state;
    check("\x9b\x33\x31m", false, "?31m"); /* C1 of a terminal without UTF-8 */
    check("\xc3", false, "?");
    check("\xe2\x82", true, "??");
    check("\xe2\x1b[m", false, "??[m");
    check("\xc0\xaf", false, "??");
    check("\xed\xa0\x80", false, "???");
    check("\xf4\x90\x80\x80", false, "????");
    check("\xc3\n", true, "?\n");
}

/* Every text of three bytes of which the first two are any: what is left has no control character
 * and is UTF-8. */
static void test_any(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        char text[4] = {(char)(i & 255), (char)(i >> 8), '\x90'};
        size_t size = strlen(text);
        sfc_clean_text(text, false);
        assert_int_equal(strlen(text), size);
        for (const unsigned char *at = (unsigned char *)text; *at; at += sfc_utf8_length(at)) {
            assert_int_not_equal(sfc_utf8_length(at), 0);
            assert_false(sfc_is_control(at));
        }
    }
}

static void check_cut(const char *text, const char *right)
{
    char copy[10] = "";
    size_t size = strlen(text);
    memcpy(copy, text, size < sizeof copy ? size : sizeof copy - 1);
    sfc_mark_cut(copy, sizeof copy, (int)size);
    assert_string_equal(copy, right);
}

static void test_cut(void **state)
{
    (void)state;
    check_cut("123456789", "123456789");
    check_cut("1234567890", "123456...");
    check_cut("12345\xe2\x82\xac\x38\x39", "12345..."); /* no half of a character */
    check_cut("123\xf0\x9f\x99\x82\x38\x39\x30", "123...");
    check_cut("1234\xc3\xbc\x37\x38\x39\x30", "1234\xc3\xbc...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_any),
        cmocka_unit_test(test_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

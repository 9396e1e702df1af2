/* Lines of the log: whatever a message holds, a line is one line, and as JSON a valid object. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

#include "proto/base/log.h"

static char said[8192];

/* What one message writes. */
static size_t say(const char *text)
{
    int ends[2], old = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    sfc_log(SFC_LOG_WARNING, "%s", text);
    dup2(old, STDERR_FILENO);
    close(ends[1]);
    close(old);
    ssize_t size = read(ends[0], said, sizeof said - 1);
    close(ends[0]);
    assert_true(size > 0);
    said[size] = '\0';
    assert_ptr_equal(strchr(said, '\n'), said + size - 1); /* one line */
    return (size_t)size;
}

static json_t *say_json(const char *text)
{
    json_error_t err;
    json_t *object = json_loadb(said, say(text), JSON_REJECT_DUPLICATES, &err);
    if (!object)
        fail_msg("%s: %s", err.text, said);
    assert_string_equal(json_string_value(json_object_get(object, "level")), "warning");
    assert_string_equal(json_string_value(json_object_get(object, "program")), "test");
    assert_int_equal(json_integer_value(json_object_get(object, "pid")), getpid());
    assert_int_equal(strlen(json_string_value(json_object_get(object, "time"))), 24);
    return object;
}

static void check_message(const char *text, const char *right)
{
    json_t *object = say_json(text);
    assert_string_equal(json_string_value(json_object_get(object, "message")), right);
    json_decref(object);
}

static void test_text(void **state)
{
    (void)state;
    sfc_log_format(SFC_LOG_TEXT);
    say("a\nb\x1b[31m");
    assert_non_null(strstr(said, "Z warning test: a?b?[31m\n"));
    say("\xc2\x9b\x33\x31m gr\xc3\xbc");
    assert_non_null(strstr(said, "Z warning test: ??31m gr\xc3\xbc\n"));
}

static void test_json(void **state)
{
    (void)state;
    sfc_log_format(SFC_LOG_JSON);
    check_message("plain", "plain");
    check_message("", "");
    check_message("\"}\n{\"level\":\"error\"}\\", "\"}?{\"level\":\"error\"}\\");
    check_message("gr\xc3\xbc\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x99\x82",
                  "gr\xc3\xbc\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x99\x82");
#define BAD "\xef\xbf\xbd"
    check_message("\xff\xfe", BAD BAD);
    check_message("\xc3", BAD);                 /* cut */
    check_message("\xc0\xaf", BAD BAD);         /* too long */
    check_message("\xed\xa0\x80", BAD BAD BAD); /* a surrogate */
    check_message("\xf4\x90\x80\x80", BAD BAD BAD BAD);
    check_message("\xe2\x82", BAD BAD);
    check_message("\x80x", BAD "x");
}

/* The longest message, of characters that grow most, and of some that the end cuts. */
static void test_long(void **state)
{
    (void)state;
    static const char *const pieces[] = {"\"", "\xff", "\xf0\x9f\x99\x82", "a\xe2\x82\xac"};
    sfc_log_format(SFC_LOG_JSON);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char text[4000] = "";
        while (strlen(text) < 3900)
            strcat(text, pieces[i]);
        json_t *object = say_json(text);
        const char *message = json_string_value(json_object_get(object, "message"));
        assert_true(strlen(message) > 900);
        assert_string_equal(message + strlen(message) - 3, "...");
        json_decref(object);
    }
}

static void test_where(void **state)
{
    (void)state;
    sfc_log_format(SFC_LOG_JSON);
    json_t *object = say_json("x");
    assert_null(json_object_get(object, "run"));
    json_decref(object);
    sfc_log_at(3, 0);
    object = say_json("x");
    assert_int_equal(json_integer_value(json_object_get(object, "run")), 3);
    assert_int_equal(json_integer_value(json_object_get(object, "step")), 0);
    json_decref(object);
    sfc_log_at(0, 0);
}

/* Every text of two and a sample of those of more bytes. */
static void test_any_bytes(void **state)
{
    (void)state;
    uint64_t random = 1;
    sfc_log_format(SFC_LOG_JSON);
    for (unsigned i = 0; i < 65536; i += 7) {
        char text[12] = {(char)(i & 255), (char)(i >> 8)};
        for (size_t k = 2; k < 11; k++)
            text[k] = (char)((random = random * 6364136223846793005u + 1442695040888963407u) >> 56);
        json_decref(say_json(text));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),  cmocka_unit_test(test_json),      cmocka_unit_test(test_long),
        cmocka_unit_test(test_where), cmocka_unit_test(test_any_bytes),
    };
    sfc_log_init("test", SFC_LOG_INFO);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

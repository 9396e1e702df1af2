#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "proto/base/digest.h"
#include "proto/base/digest_level.h"
#include "proto/base/log.h"
#include "proto/base/status.h"

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(sfc_status_name(SFC_ESTALE), "SFC_ESTALE");
    assert_string_equal(sfc_status_text(SFC_ENOTFOUND), "not found");
    assert_string_equal(sfc_status_text(99), "unknown status");
    assert_string_equal(sfc_status_name(-1), "SFC_UNKNOWN");
    assert_int_equal(SFC_EINTERNAL, 17); /* numbers travel on the wire */
}

static void test_messages(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    assert_int_equal(sfc_fail(&err, SFC_ELIMIT, "%d of %d", 3, 2), SFC_ELIMIT);
    assert_int_equal(sfc_prefix(&err, "file %s", "a"), SFC_ELIMIT);
    assert_string_equal(err.text, "file a: 3 of 2");
    assert_int_equal(err.code, SFC_ELIMIT);
    assert_int_equal(sfc_fail(NULL, SFC_EIO, "x"), SFC_EIO);
    assert_int_equal(sfc_prefix(NULL, "x"), SFC_EINTERNAL);
    errno = EACCES;
    assert_int_equal(sfc_fail_errno(&err, "open %s", "b"), SFC_EDENIED);
    assert_string_equal(err.text, "open b: Permission denied");
    errno = ENOSPC;
    assert_int_equal(sfc_fail_errno(&err, "write"), SFC_EIO);
}

static void test_long_messages_are_marked(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    char text[2 * sizeof err.text];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    sfc_fail(&err, SFC_EINVAL, "%s", text);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_string_equal(err.text + sizeof err.text - 4, "...");
    text[sizeof err.text - 1] = '\0'; /* fits exactly */
    sfc_fail(&err, SFC_EINVAL, "%s", text);
    assert_string_equal(err.text, text);
}

#ifdef __x86_64__
struct level {
    uint64_t (*digest64)(const void *data, size_t size);
    void (*update)(void *state, const void *data, size_t size);
};

/* In one piece, and in pieces of a size that no block of XXH3 has. */
static void check_level(const struct level *level, const uint8_t *data, size_t size)
{
    XXH3_state_t *state = XXH3_createState();
    assert_non_null(state);
    XXH3_128bits_reset(state);
    for (size_t at = 0; at < size; at += 77) {
        level->update(state, data + at, size - at < 77 ? size - at : 77);
    }
    assert_true(XXH3_64bits_digest(state) == XXH3_64bits(data, size));
    assert_true(level->digest64(data, size) == XXH3_64bits(data, size));
    XXH3_freeState(state);
}

static void test_digest_levels(void **state)
{
    (void)state;
    const struct level avx2 = {sfc_digest64_avx2, sfc_digest_update_avx2};
    const struct level avx512 = {sfc_digest64_avx512, sfc_digest_update_avx512};
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(i * 7);
    }
    assert_true(sfc_digest64(data, 240) == 0x4917a75c0ef8eed7u);
    assert_true(sfc_digest64(data, sizeof data) == 0x6abe8be5abcb2760u);
    for (size_t size = 0; size <= sizeof data; size += size < 1100 ? 1 : 433) {
        if (__builtin_cpu_supports("avx2")) {
            check_level(&avx2, data, size);
        }
        if (__builtin_cpu_supports("avx512f")) {
            check_level(&avx512, data, size);
        }
    }
}
#endif

static void test_digests(void **state)
{
    (void)state;
    uint8_t whole[SFC_DIGEST_SIZE], parts[SFC_DIGEST_SIZE], data[5000];
    char text[2 * SFC_DIGEST_SIZE + 1];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(i * 7);
    }
    sfc_digest128(data, 0, whole); /* known answer of XXH3-128 of nothing, big-endian */
    sfc_hex(whole, sizeof whole, text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f");
    assert_true(sfc_digest64(data, 0) == 0x2d06800538d394c2u);
    struct sfc_digest *digest = sfc_digest_new();
    assert_non_null(digest);
    for (size_t at = 0; at < sizeof data; at += 250) {
        sfc_digest_update(digest, data + at, 250);
    }
    sfc_digest_final(digest, parts);
    sfc_digest128(data, sizeof data, whole);
    assert_memory_equal(parts, whole, sizeof whole);
    sfc_digest_reset(digest);
    sfc_digest_update(digest, NULL, 0);
    sfc_digest_final(digest, parts);
    sfc_digest128(data, 0, whole);
    assert_memory_equal(parts, whole, sizeof whole);
    sfc_digest_free(digest);
    sfc_digest_free(NULL);
}

/* stderr goes into a pipe while fn logs. */
static size_t captured(void (*fn)(void), char *out, size_t size)
{
    int ends[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    fn();
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    ssize_t n = read(ends[0], out, size - 1);
    close(ends[0]);
    assert_true(n >= 0);
    out[n] = '\0';
    return (size_t)n;
}

static void log_some(void)
{
    char longer[3000];
    memset(longer, 'y', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    sfc_log_init("tester", SFC_LOG_INFO);
    sfc_info_log("one\nforged %d\x1b", 2);
    sfc_debug_log("not shown");
    sfc_warning_log("%s", longer);
}

static void test_log(void **state)
{
    (void)state;
    char text[4096];
    size_t size = captured(log_some, text, sizeof text);
    assert_non_null(strstr(text, "Z info tester: one?forged 2?\n"));
    assert_null(strstr(text, "not shown"));
    assert_non_null(strstr(text, "Z warning tester: yyy"));
    assert_true(size < 1200);
    assert_string_equal(text + size - 4, "...\n");
    assert_true(sfc_log_on(SFC_LOG_INFO));
    assert_false(sfc_log_on(SFC_LOG_DEBUG));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_long_messages_are_marked),
        cmocka_unit_test(test_digests),
#ifdef __x86_64__
        cmocka_unit_test(test_digest_levels),
#endif
        cmocka_unit_test(test_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The real plugin on this machine: it loads, and opens a device or says why there is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"

static void has(const struct sfc_error *err, const char *words)
{
    if (!strstr(err->text, words)) {
        fail_msg("no '%s' in '%s'", words, err->text);
    }
}

static void test_it_loads_and_says_what_it_found(void **state)
{
    (void)state;
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    int rc = sfc_backend_open("cuda", 1, &backend, &err);
    if (rc != SFC_OK) {
        print_message("%s\n", err.text);
        assert_int_equal(rc, SFC_EUNSUPPORTED);
        assert_null(backend);
        has(&err, "no usable GPU: ");
        has(&err, "(error ");
        has(&err, "nvidia-smi");
        return;
    }
    struct sfc_device_memory memory;
    print_message("%s\n", sfc_backend_numerics(backend));
    assert_string_equal(sfc_backend_name(backend), "cuda");
    assert_int_equal(strncmp(sfc_backend_numerics(backend), "cuda sm_", 8), 0);
    assert_int_equal(sfc_backend_device_memory(backend, &memory, &err), SFC_OK);
    assert_true(memory.total_bytes > (uint64_t)1 << 30);
    assert_true(memory.free_bytes <= memory.total_bytes);
    sfc_backend_close(backend);
}

static void test_a_device_that_nobody_has(void **state)
{
    (void)state;
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    assert_int_equal(sfc_backend_open("cuda:1000", 1, &backend, &err), SFC_EUNSUPPORTED);
    assert_null(backend);
    has(&err, "no usable GPU");
    has(&err, "1000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_loads_and_says_what_it_found),
        cmocka_unit_test(test_a_device_that_nobody_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Pauses double, stay within their half, and differ between callers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proto/base/backoff.h"

static void test_bounds(void **state)
{
    static const unsigned most[] = {50, 100, 200, 400, 800, 1600, 2000, 2000};
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct sfc_backoff b = sfc_backoff(50, 2000, seed);
        for (unsigned i = 0; i < sizeof most / sizeof *most; i++)
            assert_in_range(sfc_backoff_next(&b), most[i] / 2, most[i]);
        sfc_backoff_reset(&b);
        assert_in_range(sfc_backoff_next(&b), 25, 50);
    }
}

static void test_spread(void **state)
{
    bool seen[2001] = {false};
    unsigned distinct = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct sfc_backoff b = sfc_backoff(2000, 2000, seed);
        unsigned ms = sfc_backoff_next(&b);
        distinct += !seen[ms];
        seen[ms] = true;
    }
    assert_true(distinct > 80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_spread)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What may be deleted of the step log: the least of all shards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/core/log_floor.h"

static void test_the_least_of_all(void **state)
{
    struct sfc_log_floor f;
    uint64_t least = 77;
    (void)state;
    assert_int_equal(sfc_log_floor_init(&f, 3, NULL), SFC_OK);
    sfc_log_floor_note(&f, 0, 12);
    sfc_log_floor_note(&f, 2, 5);
    assert_false(sfc_log_floor_least(&f, &least)); /* one has said nothing */
    assert_int_equal(least, 77);
    sfc_log_floor_note(&f, 1, 0);
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 0);
    sfc_log_floor_note(&f, 1, 9);
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 5);
    sfc_log_floor_note(&f, 2, 3); /* a damaged snapshot: an older one counts */
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 3);
    sfc_log_floor_note(&f, 3, 1);          /* no such shard */
    sfc_log_floor_note(&f, 2, UINT64_MAX); /* no such step */
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 3);
    sfc_log_floor_free(&f);
    assert_false(sfc_log_floor_least(&f, &least));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_least_of_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

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

static void test_members_only(void **state)
{
    struct sfc_log_floor f;
    uint64_t least = 77;
    (void)state;
    assert_int_equal(sfc_log_floor_init(&f, 3, NULL), SFC_OK);
    sfc_log_floor_set_member(&f, 2, false);
    sfc_log_floor_note(&f, 0, 12);
    sfc_log_floor_note(&f, 1, 8);
    sfc_log_floor_note(&f, 2, 1);
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 8);
    sfc_log_floor_set_member(&f, 2, true); /* it joined: nobody knows what it needs */
    assert_false(sfc_log_floor_least(&f, &least));
    sfc_log_floor_note(&f, 2, 10);
    sfc_log_floor_set_member(&f, 1, false);
    assert_true(sfc_log_floor_least(&f, &least));
    assert_int_equal(least, 10);
    sfc_log_floor_set_member(&f, 0, false);
    sfc_log_floor_set_member(&f, 2, false);
    assert_false(sfc_log_floor_least(&f, &least));
    sfc_log_floor_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_least_of_all),
                                       cmocka_unit_test(test_members_only)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

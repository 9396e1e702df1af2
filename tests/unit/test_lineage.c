/* What a run gave up by going back is void, and nothing else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "server/durable/lineage.h"

static struct sfc_attempt at(uint64_t incarnation, uint64_t counter)
{
    return (struct sfc_attempt){incarnation, counter};
}

static bool is_void(const struct sfc_lineage *x, uint64_t step, struct sfc_attempt round)
{
    return sfc_lineage_void(x->returns, x->count, step, round);
}

static void later_steps_of_older_rounds_are_void(void **state)
{
    struct sfc_lineage x = {0};
    (void)state;
    assert_false(is_void(&x, 41, at(1, 1)));
    sfc_lineage_add(&x, 40, at(1, 7));
    assert_false(is_void(&x, 40, at(1, 7)));
    assert_true(is_void(&x, 41, at(1, 7)));
    assert_true(is_void(&x, 99, at(1, 1)));
    assert_false(is_void(&x, 41, at(1, 8)));
    assert_false(is_void(&x, 41, at(2, 0)));
    assert_true(is_void(&x, 41, at(0, UINT64_MAX)));
    sfc_lineage_add(&x, 60, at(2, 3));
    assert_false(is_void(&x, 50, at(1, 8)));
    assert_true(is_void(&x, 61, at(1, 8)));
    assert_true(is_void(&x, 41, at(1, 7)));
    assert_int_equal(x.count, 2);
    sfc_lineage_add(&x, 50, at(2, 5)); /* contains the one to 60 */
    assert_int_equal(x.count, 2);
    sfc_lineage_add(&x, 40, at(2, 6)); /* contains all */
    assert_int_equal(x.count, 1);
    assert_true(is_void(&x, 41, at(2, 6)));
    assert_int_equal(sfc_lineage_check(x.returns, x.count, NULL), SFC_OK);
}

/* Against the rule itself, by all returns that there ever were. */
static void agrees_with_every_return(void **state)
{
    struct sfc_return all[200];
    struct sfc_lineage x = {0};
    (void)state;
    srand(1);
    for (size_t n = 0; n < 200; n++) {
        all[n] = (struct sfc_return){(uint64_t)(rand() % 100), at(1 + n / 50, n % 50)};
        sfc_lineage_add(&x, all[n].step, all[n].last);
        assert_int_equal(sfc_lineage_check(x.returns, x.count, NULL), SFC_OK);
        for (int i = 0; i < 200; i++) {
            uint64_t step = (uint64_t)(rand() % 110);
            struct sfc_attempt round = at((uint64_t)(rand() % 6), (uint64_t)(rand() % 50));
            assert_int_equal(is_void(&x, step, round), sfc_lineage_void(all, n + 1, step, round));
        }
    }
}

static void without_room_more_is_void_and_never_less(void **state)
{
    struct sfc_lineage x = {0};
    (void)state;
    for (uint64_t n = 1; n <= SFC_LINEAGE_MAX + 3; n++) {
        sfc_lineage_add(&x, 10 * n, at(1, n));
    }
    assert_int_equal(x.count, SFC_LINEAGE_MAX);
    assert_int_equal(sfc_lineage_check(x.returns, x.count, NULL), SFC_OK);
    for (uint64_t n = 1; n <= SFC_LINEAGE_MAX + 3; n++) {
        assert_true(is_void(&x, 10 * n + 1, at(1, n)));
    }
    assert_false(is_void(&x, 10, at(1, 1)));
    assert_true(is_void(&x, 20, at(1, 2))); /* one too many */
    assert_false(is_void(&x, 50, at(1, 5)));
}

static void what_does_not_ascend_is_refused(void **state)
{
    struct sfc_return same[] = {{4, {1, 1}}, {4, {1, 2}}}, older[] = {{4, {1, 2}}, {5, {1, 1}}};
    struct sfc_return many[SFC_LINEAGE_MAX + 1];
    (void)state;
    assert_int_equal(sfc_lineage_check(same, 2, NULL), SFC_EINVAL);
    assert_int_equal(sfc_lineage_check(older, 2, NULL), SFC_EINVAL);
    for (size_t i = 0; i <= SFC_LINEAGE_MAX; i++) {
        many[i] = (struct sfc_return){i, at(1, i)};
    }
    assert_int_equal(sfc_lineage_check(many, SFC_LINEAGE_MAX, NULL), SFC_OK);
    assert_int_equal(sfc_lineage_check(many, SFC_LINEAGE_MAX + 1, NULL), SFC_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_steps_of_older_rounds_are_void),
        cmocka_unit_test(agrees_with_every_return),
        cmocka_unit_test(without_room_more_is_void_and_never_less),
        cmocka_unit_test(what_does_not_ascend_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

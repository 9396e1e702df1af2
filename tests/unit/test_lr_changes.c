#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "server/core/lr_changes.h"

static const struct sfc_schedule schedule = {
    .lr = 0.1, .warmup_steps = 100, .power = 1.5, .end = 0.02, .steps = 1700};

static struct sfc_lr_changes begin(const struct sfc_lr_change *items, size_t count)
{
    struct sfc_lr_changes changes;
    struct sfc_error err;
    assert_int_equal(sfc_lr_changes_init(&changes, items, count, &schedule, &err), SFC_OK);
    return changes;
}

static void is_rate(const struct sfc_lr_changes *changes, uint64_t step, double lr)
{
    struct sfc_schedule with = schedule;
    with.lr = lr;
    assert_true(sfc_lr_of_step(changes, &schedule, step) == sfc_schedule_lr(&with, step));
}

static void test_none_is_the_schedule(void **state)
{
    (void)state;
    struct sfc_lr_changes changes = begin(NULL, 0);
    for (uint64_t t = 1; t <= 1800; t++)
        is_rate(&changes, t, 0.1);
    sfc_lr_changes_free(&changes);
    sfc_lr_changes_free(&changes);
}

static void test_from_its_step_to_the_next(void **state)
{
    (void)state;
    static const struct sfc_lr_change items[] = {{50, 0.5}, {900, 0.01}, {1200, 0}};
    struct sfc_lr_changes changes = begin(items, 3);
    for (uint64_t t = 1; t <= 1800; t++)
        is_rate(&changes, t, t < 50 ? 0.1 : t < 900 ? 0.5 : t < 1200 ? 0.01 : 0.1);
    sfc_lr_changes_free(&changes);
}

static void test_set_takes_the_place_of_later_ones(void **state)
{
    (void)state;
    static const struct sfc_lr_change items[] = {{50, 0.5}, {900, 0.01}, {1200, 0}};
    struct sfc_lr_changes changes = begin(items, 3);
    sfc_lr_changes_set(&changes, &(struct sfc_lr_change){901, 0.3});
    assert_int_equal(changes.count, 3);
    sfc_lr_changes_set(&changes, &(struct sfc_lr_change){900, 0.2});
    assert_int_equal(changes.count, 2);
    is_rate(&changes, 899, 0.5);
    is_rate(&changes, 900, 0.2);
    is_rate(&changes, 1700, 0.2);
    sfc_lr_changes_set(&changes, &(struct sfc_lr_change){1, 0.7});
    assert_int_equal(changes.count, 1);
    is_rate(&changes, 1, 0.7);
    sfc_lr_changes_free(&changes);
}

static void test_cut(void **state)
{
    (void)state;
    static const struct sfc_lr_change items[] = {{50, 0.5}, {900, 0.01}};
    struct sfc_lr_changes changes = begin(items, 2);
    sfc_lr_changes_cut(&changes, 900);
    assert_int_equal(changes.count, 2);
    sfc_lr_changes_cut(&changes, 899);
    assert_int_equal(changes.count, 1);
    is_rate(&changes, 1000, 0.5);
    sfc_lr_changes_cut(&changes, 0);
    assert_int_equal(changes.count, 0);
    is_rate(&changes, 1000, 0.1);
    sfc_lr_changes_free(&changes);
}

static bool has(const struct sfc_lr_changes *changes, uint64_t from, double lr)
{
    return sfc_lr_changes_has(changes, &(struct sfc_lr_change){from, lr});
}

static void test_has(void **state)
{
    (void)state;
    static const struct sfc_lr_change items[] = {{50, 0.5}, {900, 0.01}};
    struct sfc_lr_changes none = begin(NULL, 0), changes = begin(items, 2);
    assert_true(has(&none, 7, 0));
    assert_false(has(&none, 7, 0.1)); /* the schedule's number, but not what it follows */
    assert_true(has(&changes, 900, 0.01));
    assert_true(has(&changes, 1000, 0.01));
    assert_false(has(&changes, 899, 0.01));
    assert_false(has(&changes, 60, 0.5)); /* until 900 only */
    assert_false(has(&changes, 1000, 0));
    sfc_lr_changes_free(&none);
    sfc_lr_changes_free(&changes);
}

static void refused(const struct sfc_lr_change *items, size_t count)
{
    struct sfc_lr_changes changes;
    struct sfc_error err;
    assert_int_equal(sfc_lr_changes_init(&changes, items, count, &schedule, &err), SFC_EINVAL);
    assert_true(err.text[0] != '\0');
}

static void test_check(void **state)
{
    (void)state;
    static const struct sfc_lr_change order[] = {{50, 0.5}, {50, 0.01}};
    static const double wrong[] = {-0.1, INFINITY, NAN, 2e6};
    refused(order, 2);
    refused(&(struct sfc_lr_change){0, 0.5}, 1);
    refused(&(struct sfc_lr_change){1701, 0.5}, 1);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        refused(&(struct sfc_lr_change){5, wrong[i]}, 1);
    assert_int_equal(sfc_lr_change_check(&(struct sfc_lr_change){1700, 1e6}, &schedule, NULL),
                     SFC_OK);
}

static void test_limit(void **state)
{
    (void)state;
    static struct sfc_lr_change items[SFC_CORE_LR_CHANGES + 1];
    struct sfc_error err;
    for (uint64_t i = 0; i <= SFC_CORE_LR_CHANGES; i++)
        items[i] = (struct sfc_lr_change){i + 1, 0.5};
    refused(items, SFC_CORE_LR_CHANGES + 1);
    struct sfc_lr_changes changes = begin(items, SFC_CORE_LR_CHANGES);
    const struct sfc_lr_change more = {SFC_CORE_LR_CHANGES + 1, 0.5},
                               last = {SFC_CORE_LR_CHANGES, 0.6};
    assert_int_equal(sfc_lr_changes_room(&changes, &more, &err), SFC_ELIMIT);
    assert_int_equal(sfc_lr_changes_room(&changes, &last, &err), SFC_OK);
    sfc_lr_changes_set(&changes, &last);
    assert_int_equal(changes.count, SFC_CORE_LR_CHANGES);
    is_rate(&changes, 1600, 0.6);
    sfc_lr_changes_free(&changes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_none_is_the_schedule),
        cmocka_unit_test(test_from_its_step_to_the_next),
        cmocka_unit_test(test_set_takes_the_place_of_later_ones),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_has),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

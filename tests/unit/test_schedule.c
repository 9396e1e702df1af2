#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "server/core/schedule.h"

static const struct sfc_schedule good = {
    .lr = 0.1, .warmup_steps = 100, .power = 1.5, .end = 0.02, .steps = 1700};

static void test_warm_up_is_linear(void **state)
{
    (void)state;
    assert_true(sfc_schedule_lr(&good, 1) == 0.1 * 1 / 100);
    assert_true(sfc_schedule_lr(&good, 50) == 0.1 * 50 / 100);
    assert_true(sfc_schedule_lr(&good, 100) == 0.1);
}

static void test_decay_ends_at_end(void **state)
{
    (void)state;
    double middle = sfc_schedule_lr(&good, 900), last = sfc_schedule_lr(&good, 1700);
    assert_true(fabs(middle - 0.1 * (0.02 + 0.98 * pow(0.5, 1.5))) < 1e-15);
    assert_true(fabs(last - 0.002) < 1e-15);
    assert_true(sfc_schedule_lr(&good, 5000) == last);
    for (uint64_t t = 101; t < 1700; t++)
        assert_true(sfc_schedule_lr(&good, t) > sfc_schedule_lr(&good, t + 1));
}

static void test_no_warm_up_and_all_warm_up(void **state)
{
    (void)state;
    struct sfc_schedule s = good;
    s.warmup_steps = 0;
    assert_true(sfc_schedule_lr(&s, 1) < 0.1);
    s.power = 0;
    assert_true(sfc_schedule_lr(&s, 1) == 0.1);
    s.warmup_steps = s.steps;
    assert_true(sfc_schedule_lr(&s, s.steps) == 0.1);
}

static void refused(struct sfc_schedule s)
{
    struct sfc_error err;
    assert_int_equal(sfc_schedule_check(&s, &err), SFC_EINVAL);
}

static void test_check(void **state)
{
    (void)state;
    struct sfc_schedule s = good;
    assert_int_equal(sfc_schedule_check(&s, NULL), SFC_OK);
    s.lr = 0, refused(s);
    s = good, s.lr = NAN, refused(s);
    s = good, s.lr = INFINITY, refused(s);
    s = good, s.warmup_steps = 1701, refused(s);
    s = good, s.power = -1, refused(s);
    s = good, s.end = 1.5, refused(s);
    s = good, s.end = NAN, refused(s);
    s = good, s.steps = 0, s.warmup_steps = 0, refused(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_warm_up_is_linear),
        cmocka_unit_test(test_decay_ends_at_end),
        cmocka_unit_test(test_no_warm_up_and_all_warm_up),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

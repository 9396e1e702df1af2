#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "server/core/step_cost.h"

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-9 * (1 + fabs(b));
}

static void test_line(void **state)
{
    (void)state;
    struct sfc_step_cost s[] = {{100, 30, 0}, {200, 40, 0}, {0, 0, 9}, {400, 60, 0}};
    assert_true(near(sfc_step_cost_fit(s, 4), 200)); /* 20 + 0.1 * load */
    assert_true(near(s[0].slow, 1) && near(s[1].slow, 1) && near(s[3].slow, 1));
    assert_true(s[2].slow == 0);
}

static void test_alike(void **state)
{
    (void)state;
    struct sfc_step_cost s[] = {{100, 30, 0}, {105, 60, 0}};
    assert_true(sfc_step_cost_fit(s, 2) == 0);
    assert_true(s[1].slow > 1.8 * s[0].slow);
}

/* Less work takes longer: that is a slower shard, and no line. */
static void test_other_speeds(void **state)
{
    (void)state;
    struct sfc_step_cost s[] = {{100, 60, 0}, {200, 40, 0}};
    assert_true(sfc_step_cost_fit(s, 2) == 0);
    assert_true(near(s[0].slow, 1.8) && near(s[1].slow, 0.6));
    /* more than in proportion: nothing is left for a base */
    struct sfc_step_cost t[] = {{100, 10, 0}, {200, 40, 0}};
    assert_true(sfc_step_cost_fit(t, 2) == 0);
}

static void test_nothing_known(void **state)
{
    (void)state;
    struct sfc_step_cost s[] = {{100, 0, 5}, {0, 0, 5}};
    assert_true(sfc_step_cost_fit(s, 2) == 0 && s[0].slow == 0 && s[1].slow == 0);
    assert_true(sfc_step_cost_fit(NULL, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_alike),
        cmocka_unit_test(test_other_speeds),
        cmocka_unit_test(test_nothing_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

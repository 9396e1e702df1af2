#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "server/core/tickets.h"

static int set_up(void **state)
{
    static struct sfc_tickets t;
    const struct sfc_tickets_config config = {.classes = 100,
                                              .micro_batches = 2,
                                              .micro_batch = 2,
                                              .lead_steps = 1,
                                              .last_step = 4,
                                              .data_timeout_ms = 100,
                                              .grant_timeout_ms = 1000};
    assert_int_equal(sfc_tickets_init(&t, &config, 3, 1, NULL), SFC_OK);
    *state = &t;
    return 0;
}

static int tear_down(void **state)
{
    sfc_tickets_free(*state);
    return 0;
}

static const uint64_t labels[2] = {5, SFC_CORE_LABEL_NONE};

static void announce(struct sfc_tickets *t, uint64_t worker, uint64_t step, uint32_t j)
{
    bool complete;
    assert_int_equal(sfc_tickets_announce(t, worker, 0, step, j, labels, 2, &complete, NULL),
                     SFC_OK);
}

static bool grant(struct sfc_tickets *t, uint64_t worker, uint32_t *j, struct sfc_attempt *a)
{
    uint64_t step;
    bool given = sfc_tickets_give_grant(t, worker, 0, &step, j, a);
    if (given)
        assert_int_equal(step, t->open_step);
    return given;
}

static void test_data_runs_ahead_by_a_bound(void **state)
{
    struct sfc_tickets *t = *state;
    uint64_t step;
    uint32_t j, n = 0;
    while (sfc_tickets_give_data(t, 1, 0, &step, &j)) {
        assert_int_equal(step, 1 + n / 2);
        assert_int_equal(j, n % 2);
        n++;
    }
    assert_int_equal(n, 4);
    sfc_tickets_tick(t, 101);
    assert_true(sfc_tickets_give_data(t, 2, 101, &step, &j));
    sfc_tickets_worker_died(t, 2);
    assert_true(sfc_tickets_give_data(t, 3, 101, &step, &j));
    assert_int_equal(step, 1);
}

static void test_announce(void **state)
{
    struct sfc_tickets *t = *state;
    const uint64_t bad[2] = {5, 100}, other[2] = {6, 7};
    bool complete;
    struct sfc_error err;
    assert_int_equal(sfc_tickets_announce(t, 1, 0, 1, 0, bad, 2, &complete, NULL), SFC_EINVAL);
    assert_int_equal(sfc_tickets_announce(t, 1, 0, 1, 2, labels, 2, &complete, NULL), SFC_EINVAL);
    assert_int_equal(sfc_tickets_announce(t, 1, 0, 1, 0, labels, 1, &complete, NULL), SFC_EINVAL);
    assert_int_equal(sfc_tickets_announce(t, 1, 0, 3, 0, labels, 2, &complete, NULL), SFC_ESTATE);
    announce(t, 1, 1, 0);
    announce(t, 2, 1, 0); /* again: a fact stays a fact */
    assert_false(sfc_tickets_complete(t, 1));
    assert_int_equal(sfc_tickets_announce(t, 2, 0, 1, 0, other, 2, &complete, &err), SFC_ECONFLICT);
    assert_non_null(strstr(err.text, "row 0: label 6, but 5"));
    assert_int_equal(sfc_tickets_announce(t, 1, 0, 1, 1, labels, 2, &complete, NULL), SFC_OK);
    assert_true(complete);
}

static void test_grants(void **state)
{
    struct sfc_tickets *t = *state;
    uint32_t j;
    struct sfc_attempt a, b;
    announce(t, 1, 1, 0);
    assert_false(grant(t, 1, &j, &a)); /* labels of the step aren't complete */
    announce(t, 2, 1, 1);
    assert_true(grant(t, 2, &j, &a));
    assert_int_equal(j, 1); /* the announcer is preferred */
    assert_true(grant(t, 2, &j, &b));
    assert_int_equal(j, 0);
    assert_true(sfc_attempt_compare(a, b) < 0);
    assert_false(grant(t, 3, &j, &a)); /* at most one grant of (t, j) is out */
    assert_int_equal(sfc_tickets_held(t, 2), 2);
    sfc_tickets_worker_died(t, 2);
    assert_false(sfc_tickets_done(t, 0, 0, b)); /* its attempt doesn't count any more */
    assert_true(grant(t, 3, &j, &a));
    assert_int_equal(j, 1); /* its announcer died: no cache to respect */
    assert_true(sfc_tickets_done(t, 0, j, a));
    assert_false(sfc_tickets_done(t, 0, j, a));
}

static void test_three_failures(void **state)
{
    struct sfc_tickets *t = *state;
    uint32_t j;
    struct sfc_attempt a;
    announce(t, 1, 1, 0);
    announce(t, 1, 1, 1);
    for (int i = 0; i < 5; i++) {
        assert_true(grant(t, 1, &j, &a));
        assert_false(sfc_tickets_return_grant(t, 1, 0, a, false)); /* connection trouble */
    }
    for (int i = 0; i < 3; i++) {
        assert_true(grant(t, 1, &j, &a));
        assert_int_equal(sfc_tickets_return_grant(t, 1, 0, a, true), i == 2);
        assert_false(sfc_tickets_return_grant(t, 1, 0, a, true)); /* it isn't out any more */
    }
    sfc_tickets_drop(t, 1, 0);
    assert_true(sfc_tickets_step(t, 1)->labels[0] == SFC_CORE_LABEL_NONE);
    assert_true(sfc_tickets_step(t, 1)->micro_batches[0].dropped);
    assert_true(sfc_tickets_complete(t, 1));
}

static void test_round_and_advance(void **state)
{
    struct sfc_tickets *t = *state;
    uint32_t j;
    struct sfc_attempt a, round;
    announce(t, 1, 1, 0);
    announce(t, 1, 1, 1);
    announce(t, 1, 2, 0);
    assert_true(grant(t, 1, &j, &a));
    round = sfc_tickets_new_round(t);
    assert_true(sfc_attempt_compare(a, round) < 0);
    assert_false(sfc_tickets_done(t, 0, j, a));
    assert_true(grant(t, 1, &j, &a));
    assert_true(sfc_attempt_compare(a, round) > 0);
    sfc_tickets_advance(t);
    assert_null(sfc_tickets_step(t, 1));
    assert_int_equal(sfc_tickets_step(t, 2)->announced, 1);
    assert_int_equal(sfc_tickets_step(t, 3)->announced, 0);
    assert_false(grant(t, 1, &j, &a));
}

static void test_grant_timeout(void **state)
{
    struct sfc_tickets *t = *state;
    uint32_t j;
    struct sfc_attempt a, b;
    announce(t, 1, 1, 0);
    announce(t, 1, 1, 1);
    assert_true(grant(t, 1, &j, &a));
    sfc_tickets_tick(t, 1000);
    assert_int_equal(sfc_tickets_held(t, 1), 1);
    sfc_tickets_tick(t, 1001);
    assert_int_equal(sfc_tickets_held(t, 1), 0);
    assert_true(grant(t, 2, &j, &b));
    assert_false(sfc_tickets_done(t, 0, 0, a));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_data_runs_ahead_by_a_bound),
        TEST(test_announce),
        TEST(test_grants),
        TEST(test_three_failures),
        TEST(test_round_and_advance),
        TEST(test_grant_timeout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

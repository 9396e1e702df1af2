/* Sweep: order, pace by recovery target and by log budget, urgency, rate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/durable/sweep.h"

enum { BLOCKS = 10 };

static void start(struct sfc_sweep *sweep, struct sfc_sweep_config config)
{
    uint64_t bytes[BLOCKS];
    for (uint64_t i = 0; i < BLOCKS; i++) {
        bytes[i] = 100 + i;
    }
    assert_int_equal(sfc_sweep_init(sweep, &config, bytes, BLOCKS, NULL), SFC_OK);
}

/* Copies what is due at once; returns how many blocks. */
static unsigned copy_due(struct sfc_sweep *sweep)
{
    unsigned n = 0;
    size_t index;
    while (sfc_sweep_next(sweep, &index)) {
        sfc_sweep_stamped(sweep, index, sweep->step);
        n++;
    }
    return n;
}

static void a_round_follows_from_target_and_budget(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    start(&sweep, (struct sfc_sweep_config){.recovery_target_ms = 10000, .log_limit = 1000000});
    sfc_sweep_applied(&sweep, 1, 100, 1000, 0);
    assert_int_equal(sfc_sweep_round_steps(&sweep), 80); /* 0.8 * 10000 / 100 */
    sfc_sweep_applied(&sweep, 2, 10, 1000, 0);
    assert_int_equal(sfc_sweep_round_steps(&sweep), 375); /* 0.75 * 1000 / 2 */
    sfc_sweep_applied(&sweep, 3, 100000, 1000, 0);
    assert_int_equal(sfc_sweep_round_steps(&sweep), 1);
    sfc_sweep_close(&sweep);
}

/* After the first round no block is older than a round, and the log never needs more than two. */
static void every_block_is_copied_once_a_round(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    uint64_t newest[BLOCKS] = {0}, second[BLOCKS] = {0}, copies = 0;
    start(&sweep, (struct sfc_sweep_config){.recovery_target_ms = 10000});
    for (uint64_t step = 1; step <= 2000; step++) {
        size_t index;
        sfc_sweep_applied(&sweep, step, 100, 1000, 0);
        while (sfc_sweep_next(&sweep, &index)) {
            sfc_sweep_stamped(&sweep, index, step);
            second[index] = newest[index];
            newest[index] = step;
            copies++;
        }
        for (size_t i = 0; i < BLOCKS && step > 200; i++) {
            assert_true(step - newest[i] <= 82);
            assert_true(step - second[i] <= 164);
        }
        assert_true(step < 100 || sfc_sweep_lag(&sweep) <= 82);
        assert_true(sfc_sweep_recovery_ms(&sweep) == (double)sfc_sweep_lag(&sweep) * 100);
    }
    assert_in_range(copies, BLOCKS * 2000 / 80 - BLOCKS, BLOCKS * 2000 / 80 + BLOCKS);
    sfc_sweep_close(&sweep);
}

static void the_oldest_block_is_next(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    size_t index;
    start(&sweep, (struct sfc_sweep_config){.recovery_target_ms = 1000, .start_step = 3});
    for (size_t i = 0; i < BLOCKS; i++) {
        sfc_sweep_stamped(&sweep, i, i == 6 ? 4 : 5 + i);
    }
    assert_true(sfc_sweep_complete(&sweep));
    sfc_sweep_applied(&sweep, 30, 10000, 1, 0);
    assert_true(sfc_sweep_next(&sweep, &index));
    assert_int_equal(index, 6);
    sfc_sweep_stamped(&sweep, 6, 30);
    assert_true(sfc_sweep_next(&sweep, &index));
    assert_int_equal(index, 0);
    sfc_sweep_close(&sweep);
}

static void pressure_copies_everything_once(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    start(&sweep, (struct sfc_sweep_config){.log_limit = 1000000});
    sfc_sweep_applied(&sweep, 1, 1, 1, 100);
    assert_int_equal(copy_due(&sweep), 0);
    sfc_sweep_applied(&sweep, 2, 1, 1, 800000);
    assert_int_equal(copy_due(&sweep), BLOCKS);
    assert_int_equal(copy_due(&sweep), 0); /* nothing newer to copy */
    sfc_sweep_close(&sweep);
}

static void a_base_is_urgent(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    start(&sweep, (struct sfc_sweep_config){.recovery_target_ms = 1000, .start_step = 70});
    assert_int_equal(copy_due(&sweep), 0); /* began from the seed: no base is needed */
    assert_false(sfc_sweep_complete(&sweep));
    sfc_sweep_urgent(&sweep, true);
    assert_int_equal(copy_due(&sweep), BLOCKS);
    assert_true(sfc_sweep_complete(&sweep));
    assert_int_equal(sfc_sweep_lag(&sweep), 0);
    sfc_sweep_close(&sweep);
}

static void the_rate_is_kept_unless_urgent(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    start(&sweep, (struct sfc_sweep_config){.rate = 1000});
    uint64_t written = 0;
    for (uint64_t now = 1; now <= 10000; now += 7) {
        uint64_t n = sfc_sweep_allowance(&sweep, now);
        sfc_sweep_wrote(&sweep, n);
        written += n;
    }
    assert_in_range(written, 9000, 10001);
    assert_int_equal(sfc_sweep_allowance(&sweep, 100000), 1000); /* no burst after a rest */
    sfc_sweep_urgent(&sweep, true);
    assert_true(sfc_sweep_allowance(&sweep, 100000) == UINT64_MAX);
    sfc_sweep_close(&sweep);
}

static void nothing_to_do_is_fine(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    struct sfc_sweep_config config = {.recovery_target_ms = 1};
    size_t index;
    assert_int_equal(sfc_sweep_init(&sweep, &config, NULL, 0, NULL), SFC_OK);
    sfc_sweep_applied(&sweep, 9, 1, 1, 1);
    assert_false(sfc_sweep_next(&sweep, &index));
    assert_int_equal(sfc_sweep_lag(&sweep), 0);
    sfc_sweep_close(&sweep);
}

/* Two blocks leave and one comes: the others keep what they had, and the new one is first. */
static void blocks_come_and_go(void **state)
{
    (void)state;
    struct sfc_sweep sweep;
    const uint64_t bytes[] = {100, 500, 102, 103};
    const size_t was[] = {0, SIZE_MAX, 2, 3};
    size_t index = 0;
    start(&sweep, (struct sfc_sweep_config){.recovery_target_ms = 10000});
    sfc_sweep_applied(&sweep, 7, 100, 1000, 0);
    for (size_t i = 0; i < BLOCKS; i++) {
        sfc_sweep_stamped(&sweep, i, 3 + i % 4);
    }
    assert_int_equal(sfc_sweep_change(&sweep, bytes, was, 4, NULL), SFC_OK);
    assert_int_equal(sweep.count, 4);
    assert_int_equal(sweep.total_bytes, 805);
    assert_false(sfc_sweep_complete(&sweep));
    sfc_sweep_urgent(&sweep, true);
    assert_true(sfc_sweep_next(&sweep, &index));
    assert_int_equal(index, 1);
    sfc_sweep_stamped(&sweep, 1, 7);
    assert_true(sfc_sweep_complete(&sweep));
    assert_true(sfc_sweep_next(&sweep, &index));
    assert_int_equal(index, 0); /* the oldest: of step 3 */
    assert_int_equal(sfc_sweep_lag(&sweep), 4);
    assert_int_equal(sfc_sweep_change(&sweep, NULL, NULL, 0, NULL), SFC_OK);
    assert_false(sfc_sweep_next(&sweep, &index));
    sfc_sweep_close(&sweep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_round_follows_from_target_and_budget),
        cmocka_unit_test(every_block_is_copied_once_a_round),
        cmocka_unit_test(blocks_come_and_go),
        cmocka_unit_test(the_oldest_block_is_next),
        cmocka_unit_test(pressure_copies_everything_once),
        cmocka_unit_test(a_base_is_urgent),
        cmocka_unit_test(the_rate_is_kept_unless_urgent),
        cmocka_unit_test(nothing_to_do_is_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

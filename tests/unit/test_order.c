/* The sample order of a set that grows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "kernels/rng/order.h"
#include "kernels/rng/permutation.h"

#define SEED 42

static struct sfc_order_part next(const struct sfc_order_part *last, uint64_t position,
                                  uint64_t samples)
{
    struct sfc_order_part out;
    assert_true(sfc_order_next(last, position, samples, &out));
    return out;
}

static void test_one_part_is_the_permutation(void **state)
{
    (void)state;
    const struct sfc_order_part part = {.samples = 37};
    for (uint64_t p = 0; p < 500; p++) {
        assert_int_equal(sfc_order_sample(&part, 1, SEED, p), sfc_sample_at(SEED, 37, p));
        assert_int_equal(sfc_order_epoch(&part, 1, p), sfc_epoch_at(37, p));
    }
}

static void test_next_begins_with_an_epoch(void **state)
{
    (void)state;
    const struct sfc_order_part first = {.samples = 37};
    struct sfc_order_part part = next(&first, 0, 50);
    assert_true(part.first_position == 0 && part.first_epoch == 0 && part.samples == 50);
    part = next(&first, 1, 50);
    assert_true(part.first_position == 37 && part.first_epoch == 1);
    part = next(&first, 74, 50); /* exactly an end */
    assert_true(part.first_position == 74 && part.first_epoch == 2);
    part = next(&part, 75, 60);
    assert_true(part.first_position == 124 && part.first_epoch == 3);
    assert_false(sfc_order_next(&(struct sfc_order_part){.samples = UINT64_MAX / 2}, UINT64_MAX,
                                UINT64_MAX / 2, &part));
}

/* I4: in every epoch each sample that there is comes exactly once, and the old ones keep the bits
 * of before until the new ones come. */
static void test_each_sample_once_per_epoch(void **state)
{
    (void)state;
    struct sfc_order_part parts[3] = {{.samples = 37}};
    parts[1] = next(&parts[0], 80, 50);
    parts[2] = next(&parts[1], 300, 53);
    uint64_t position = 0;
    for (uint64_t epoch = 0; epoch < 12; epoch++) {
        uint8_t seen[64] = {0};
        uint64_t samples = sfc_order_part_at(parts, 3, position)->samples;
        assert_int_equal(samples, epoch < 3 ? 37 : epoch < 7 ? 50 : 53);
        for (uint64_t i = 0; i < samples; i++, position++) {
            uint64_t sample = sfc_order_sample(parts, 3, SEED, position);
            assert_int_equal(sfc_order_epoch(parts, 3, position), epoch);
            assert_true(sample < samples && !seen[sample]);
            assert_true(position >= parts[1].first_position ||
                        sample == sfc_sample_at(SEED, 37, position));
            seen[sample] = 1;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_part_is_the_permutation),
        cmocka_unit_test(test_next_begins_with_an_epoch),
        cmocka_unit_test(test_each_sample_once_per_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

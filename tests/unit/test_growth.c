#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/sample.h"
#include "server/core/growth.h"

#define BLOCK 100
#define PPM   100000

static struct sfc_growths begin(uint64_t classes, uint64_t samples)
{
    return (struct sfc_growths){.start = {.from_step = 1, .classes = classes, .samples = samples}};
}

static void add(struct sfc_growths *g, uint64_t step, uint64_t classes, uint64_t samples)
{
    const struct sfc_growth growth = {step, classes, samples, step};
    struct sfc_error err;
    assert_int_equal(sfc_growths_check(g, &growth, &err), SFC_OK);
    sfc_growths_add(g, &growth);
}

static void test_classes_of_a_step(void **state)
{
    (void)state;
    struct sfc_growths g = begin(250, 1000);
    for (uint64_t t = 0; t < 30; t++)
        assert_int_equal(sfc_growths_classes(&g, t), 250);
    add(&g, 10, 260, 1000);
    add(&g, 20, 600, 2000);
    for (uint64_t t = 0; t < 30; t++)
        assert_int_equal(sfc_growths_classes(&g, t), t < 10 ? 250 : t < 20 ? 260 : 600);
    sfc_growths_cut(&g, 20);
    assert_int_equal(sfc_growths_classes(&g, 25), 600);
    sfc_growths_cut(&g, 19);
    assert_int_equal(sfc_growths_classes(&g, 25), 260);
    sfc_growths_cut(&g, 0);
    assert_int_equal(sfc_growths_classes(&g, 25), 250);
}

/* All rows of a step are in exactly one block, and a block only ever gets more. */
static void test_rows_of_blocks(void **state)
{
    (void)state;
    struct sfc_growths g = begin(250, 0);
    add(&g, 10, 260, 0);
    add(&g, 20, 600, 0);
    for (uint64_t t = 1; t < 30; t++) {
        uint64_t sum = 0;
        for (uint64_t b = 0; b < 8; b++) {
            uint32_t rows = sfc_growths_rows(&g, BLOCK, t, b);
            assert_true(rows <= BLOCK && rows >= sfc_growths_rows(&g, BLOCK, t - 1, b));
            sum += rows;
        }
        assert_int_equal(sum, sfc_growths_classes(&g, t));
    }
    assert_int_equal(sfc_growths_rows(&g, BLOCK, 9, 2), 50);
    assert_int_equal(sfc_growths_rows(&g, BLOCK, 10, 2), 60);
    assert_int_equal(sfc_growths_rows(&g, BLOCK, 20, 2), 100);
    assert_int_equal(sfc_growths_rows(&g, BLOCK, 20, 6), 0);
}

static void blocks_are(const struct sfc_growths *g, uint64_t step, bool fills, uint64_t first,
                       uint64_t count)
{
    struct sfc_growth_blocks b = sfc_growths_blocks(g, BLOCK, step);
    assert_int_equal(b.fills, fills);
    assert_int_equal(b.count, count);
    assert_true(count == 0 || b.first == first);
}

static void test_blocks_that_change(void **state)
{
    (void)state;
    struct sfc_growths g = begin(250, 0);
    add(&g, 10, 260, 0); /* fills only */
    add(&g, 20, 600, 0); /* fills to its end, and three more */
    add(&g, 30, 601, 0); /* the last one was full */
    blocks_are(&g, 1, false, 0, 0);
    blocks_are(&g, 9, false, 0, 0);
    blocks_are(&g, 10, true, 0, 0);
    blocks_are(&g, 11, false, 0, 0);
    blocks_are(&g, 20, true, 3, 3);
    blocks_are(&g, 30, false, 6, 1);
    assert_int_equal(sfc_growths_next(&g, 0, 9), 0);
    assert_int_equal(sfc_growths_next(&g, 0, 10), 10);
    assert_int_equal(sfc_growths_next(&g, 9, 40), 10);
    assert_int_equal(sfc_growths_next(&g, 10, 40), 20); /* the state after 10 has them */
    assert_int_equal(sfc_growths_next(&g, 30, 40), 0);
}

static uint32_t draw(const struct sfc_growths *g, uint64_t step, uint32_t block, uint32_t *out)
{
    static const uint32_t positives[] = {1, 17};
    uint32_t rows = sfc_growths_rows(g, BLOCK, step, block);
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(BLOCK) + 63) / 64 * 64);
    assert_non_null(scratch);
    uint32_t n = sfc_sample_block(7, step, block, rows, PPM, positives, 2, out, scratch);
    free(scratch);
    return n;
}

/* I1 over a growth: blocks that don't grow sample what they would have; the one that fills up does
 * until the step of the growth, and from then on its quota is that of all of its rows. */
static void test_samples(void **state)
{
    (void)state;
    uint32_t a[BLOCK], b[BLOCK];
    struct sfc_growths still = begin(250, 0), g = begin(250, 0), whole = begin(280, 0);
    bool new_rows = false;
    add(&g, 10, 280, 0);
    for (uint64_t t = 1; t < 40; t++)
        for (uint32_t block = 0; block < 3; block++) {
            bool grown = block == 2 && t >= 10;
            uint32_t n = draw(&g, t, block, a), m = draw(grown ? &whole : &still, t, block, b);
            assert_int_equal(n, m);
            assert_memory_equal(a, b, n * sizeof(*a));
            assert_int_equal(n, grown ? 8 : block == 2 ? 5 : 10);
            new_rows = new_rows || (grown && a[n - 1] >= 50);
        }
    assert_true(new_rows);
}

static void test_order(void **state)
{
    (void)state;
    struct sfc_order_part parts[SFC_CORE_GROWTHS + 1];
    struct sfc_growths g = begin(250, 100);
    assert_int_equal(sfc_growths_order(&g, 32, parts), 1);
    add(&g, 5, 260, 130);  /* position 128: the next epoch begins at 200 */
    add(&g, 6, 270, 150);  /* position 160: before that, so the part of 130 never comes */
    add(&g, 8, 280, 150);  /* the same samples */
    add(&g, 30, 290, 160); /* position 928: 200 + 5 * 150 */
    assert_int_equal(sfc_growths_order(&g, 32, parts), 3);
    assert_true(parts[1].first_position == 200 && parts[1].first_epoch == 2 &&
                parts[1].samples == 150);
    assert_true(parts[2].first_position == 950 && parts[2].first_epoch == 7 &&
                parts[2].samples == 160);
    for (uint64_t p = 0; p < 2000; p++) /* a label is never of a class that is not there yet */
        assert_true(sfc_order_sample(parts, 3, 1, p) < (p < 128   ? 100u
                                                        : p < 160 ? 130u
                                                        : p < 928 ? 150u
                                                                  : 160u));
    struct sfc_growths none = begin(250, 0);
    assert_int_equal(sfc_growths_order(&none, 32, parts), 0);
}

static void refused(const struct sfc_growths *g, uint64_t step, uint64_t classes, uint64_t samples,
                    int code)
{
    const struct sfc_growth growth = {step, classes, samples, step};
    struct sfc_error err;
    assert_int_equal(sfc_growths_check(g, &growth, &err), code);
}

static void test_check(void **state)
{
    (void)state;
    struct sfc_growths g = begin(250, 100), session = begin(250, 0);
    refused(&g, 1, 300, 100, SFC_EINVAL);
    refused(&g, 5, 250, 100, SFC_EINVAL);
    refused(&g, 5, 300, 99, SFC_EINVAL);
    refused(&session, 5, 300, 1, SFC_EINVAL);
    add(&g, 5, 300, 100);
    refused(&g, 5, 400, 100, SFC_EINVAL);
    refused(&g, 6, 300, 100, SFC_EINVAL);
    for (uint64_t i = 1; i < SFC_CORE_GROWTHS; i++)
        add(&g, 5 + i, 300 + i, 100);
    refused(&g, 1000, 1000, 100, SFC_ELIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes_of_a_step),
        cmocka_unit_test(test_rows_of_blocks),
        cmocka_unit_test(test_blocks_that_change),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "server/core/block_load.h"

static const struct sfc_block_load_config config = {
    .classes = 2500, .block_size = 1000, .sample_ppm = 100000, .batch = 600};

static void test_begins_with_the_quota(void **state)
{
    (void)state;
    struct sfc_block_load l;
    assert_int_equal(sfc_block_load_init(&l, &config, NULL), SFC_OK);
    assert_int_equal(l.blocks, 3);
    assert_true(l.rows[0] == 100 && l.rows[1] == 100 && l.rows[2] == 50);
    sfc_block_load_free(&l);
}

static void test_counts_distinct_positives(void **state)
{
    (void)state;
    struct sfc_block_load l;
    uint64_t labels[600];
    uint32_t n = 0;
    for (uint64_t i = 0; i < 150; i++) { /* 150 different ones of block 0, each twice */
        labels[n++] = i;
        labels[n++] = i;
    }
    for (uint64_t i = 0; i < 20; i++) /* few of block 1, out of order */
        labels[n++] = 1999 - i;
    labels[n++] = SFC_CORE_LABEL_NONE;
    labels[n++] = 2500; /* no class */
    assert_int_equal(sfc_block_load_init(&l, &config, NULL), SFC_OK);
    sfc_block_load_note(&l, labels, n);
    assert_true(l.steps == 1);
    assert_true(l.rows[0] == 150 && l.rows[1] == 100 && l.rows[2] == 50);
    sfc_block_load_note(&l, labels, 0);
    assert_true(l.rows[0] == 125);
    sfc_block_load_free(&l);
}

/* What changed long ago counts little: after 4 windows of another load, less than 2 %. */
static void test_forgets(void **state)
{
    (void)state;
    struct sfc_block_load l;
    uint64_t labels[600];
    for (uint64_t i = 0; i < 600; i++)
        labels[i] = i;
    assert_int_equal(sfc_block_load_init(&l, &config, NULL), SFC_OK);
    for (int i = 0; i < 1000; i++)
        sfc_block_load_note(&l, labels, 600);
    assert_true(fabs(l.rows[0] - 600) < 1e-6);
    for (unsigned i = 0; i < 4 * SFC_BLOCK_LOAD_STEPS; i++)
        sfc_block_load_note(&l, NULL, 0);
    assert_true(fabs(l.rows[0] - 100) < 0.02 * 500);
    sfc_block_load_free(&l);
}

/* More labels than a batch can have are not looked at. */
static void test_bounded(void **state)
{
    (void)state;
    struct sfc_block_load l;
    struct sfc_block_load_config small = config;
    const uint64_t labels[4] = {0, 1, 1001, 1002};
    small.batch = 2;
    small.sample_ppm = 1;
    assert_int_equal(sfc_block_load_init(&l, &small, NULL), SFC_OK);
    sfc_block_load_note(&l, labels, 4);
    assert_true(l.rows[0] == 2 && l.rows[1] == 1);
    sfc_block_load_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_begins_with_the_quota),
        cmocka_unit_test(test_counts_distinct_positives),
        cmocka_unit_test(test_forgets),
        cmocka_unit_test(test_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

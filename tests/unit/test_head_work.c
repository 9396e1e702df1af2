#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/backend.h"

#define CPU  "cpu avx512_core"
#define CUDA "cuda sm_90"

/* 20 rows of 4096 are the quota; the last block has 404 rows, 2 of them its quota. */
static const struct sfc_head_config config = {.classes = 4500,
                                              .dim = 64,
                                              .block_size = 4096,
                                              .sample_ppm = 4880,
                                              .batch = 512,
                                              .micro_batch = 128,
                                              .slots = 6};

static void test_grows_with_rows(void **state)
{
    (void)state;
    double last = 0;
    for (double rows = 20; rows < 600; rows += 0.5) {
        double work = sfc_head_work(&config, CPU, 0, rows);
        assert_true(work >= last && work > rows);
        last = work;
    }
    assert_true(sfc_head_work(&config, CPU, 0, 500) < 2 * sfc_head_work(&config, CPU, 0, 250));
}

/* Two rows take as long as a tile, and a block costs something by itself. */
static void test_small_samples(void **state)
{
    (void)state;
    double least = sfc_head_work(&config, CPU, 1, 2);
    assert_true(least == sfc_head_work(&config, CPU, 1, 2.5));
    assert_true(least > 16 && least < 48);
    assert_true(least == sfc_head_work(&config, CPU, 0, 20)); /* one tile as well */
}

/* A device's tile is a block's quota, up to a limit: what is above takes another one. */
static void test_device(void **state)
{
    (void)state;
    assert_true(sfc_head_work(&config, CUDA, 0, 20) == 32);
    assert_true(sfc_head_work(&config, CUDA, 1, 2) == 32);
    assert_true(sfc_head_work(&config, CUDA, 0, 100) == 116);
    struct sfc_head_config large = config;
    large.dim = 512;
    large.classes = 81920;
    large.block_size = 8192;
    large.sample_ppm = 100000;
    assert_true(sfc_head_work(&large, CUDA, 0, 820) == 832);
    assert_true(sfc_head_work(&large, CUDA, 0, 900) == 1316);
    assert_true(sfc_head_work(&large, CPU, 0, 900) < 1100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grows_with_rows),
        cmocka_unit_test(test_small_samples),
        cmocka_unit_test(test_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "server/core/block_map.h"

static struct sfc_placement placement(void)
{
    return (struct sfc_placement){.classes = 10000,
                                  .block_size = 1024,
                                  .dense_size = 5000,
                                  .dense_block_size = 1000,
                                  .class_bytes = 4096,
                                  .dense_bytes = 8,
                                  .fixed_bytes = 100000};
}

static void test_default_block_size(void **state)
{
    (void)state;
    assert_int_equal(sfc_default_block_size(1), 1024);
    assert_int_equal(sfc_default_block_size(131071), 1024);
    assert_int_equal(sfc_default_block_size(131072), 2048);
    assert_int_equal(sfc_default_block_size(524288), 8192);
    assert_int_equal(sfc_default_block_size(UINT64_MAX), 8192);
    assert_int_equal(sfc_block_count(0, 10), 0);
    assert_int_equal(sfc_block_count(10, 10), 1);
    assert_int_equal(sfc_block_count(11, 10), 2);
}

static void test_balanced_and_complete(void **state)
{
    (void)state;
    const struct sfc_placement p = placement();
    for (uint32_t shards = 1; shards <= 6; shards++) {
        struct sfc_placement_shard s[6];
        struct sfc_block_map map, again;
        uint32_t class_blocks = 0, dense_blocks = 0;
        uint64_t low = UINT64_MAX, high = 0;
        for (uint32_t k = 0; k < shards; k++)
            s[k] = (struct sfc_placement_shard){.id = k + 1, .memory_limit = 1u << 30};
        assert_int_equal(sfc_block_map_place(&p, s, shards, &map, NULL), SFC_OK);
        assert_int_equal(sfc_block_map_place(&p, s, shards, &again, NULL), SFC_OK);
        assert_memory_equal(map.class_owner, again.class_owner, 10 * sizeof(uint32_t));
        for (uint32_t k = 0; k < shards; k++) {
            class_blocks += sfc_block_map_count(&map, k, false);
            dense_blocks += sfc_block_map_count(&map, k, true);
            low = map.bytes[k] < low ? map.bytes[k] : low;
            high = map.bytes[k] > high ? map.bytes[k] : high;
        }
        assert_int_equal(class_blocks, 10);
        assert_int_equal(dense_blocks, 5);
        assert_true(high - low <= 1024u * 4096);
        sfc_block_map_free(&map);
        sfc_block_map_free(&again);
    }
}

static void test_memory_limit_binds(void **state)
{
    (void)state;
    struct sfc_placement p = placement();
    p.dense_size = 0;
    /* Room for exactly two blocks on shard 0, the rest on shard 1. */
    const struct sfc_placement_shard s[] = {{1, 100000 + 2 * 1024 * 4096}, {2, 1u << 30}};
    struct sfc_block_map map;
    assert_int_equal(sfc_block_map_place(&p, s, 2, &map, NULL), SFC_OK);
    assert_int_equal(sfc_block_map_count(&map, 0, false), 2);
    assert_true(map.bytes[0] <= s[0].memory_limit);
    sfc_block_map_free(&map);
}

static void test_refusal_has_the_numbers(void **state)
{
    (void)state;
    const struct sfc_placement p = placement();
    const struct sfc_placement_shard s[] = {{7, 5000000}, {9, 6000000}};
    struct sfc_block_map map;
    struct sfc_error err;
    assert_int_equal(sfc_block_map_place(&p, s, 2, &map, &err), SFC_ENOMEM);
    assert_non_null(strstr(err.text, "39.1 MiB for its blocks")); /* 10000*4096 + 5000*8 */
    assert_non_null(strstr(err.text, "shard 7: 4.8 MiB"));
    assert_non_null(strstr(err.text, "shard 9: 5.7 MiB"));
}

static void test_owner(void **state)
{
    (void)state;
    const struct sfc_placement p = placement();
    const struct sfc_placement_shard s[] = {{1, 1u << 30}, {2, 1u << 30}};
    struct sfc_block_map map;
    uint64_t blocks[10];
    assert_int_equal(sfc_block_map_place(&p, s, 2, &map, NULL), SFC_OK);
    uint32_t n = sfc_block_map_blocks(&map, 1, false, blocks);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(sfc_block_map_owner(&map, 1024, blocks[i] * 1024), 1);
        assert_true(i == 0 || blocks[i - 1] < blocks[i]);
    }
    assert_int_equal(sfc_block_map_owner(&map, 1024, 10240), UINT32_MAX);
    sfc_block_map_free(&map);
}

static void test_impossible_numbers(void **state)
{
    (void)state;
    const struct sfc_placement_shard s[] = {{1, UINT64_MAX}};
    struct sfc_block_map map;
    struct sfc_placement p = placement();
    p.classes = 0;
    assert_int_equal(sfc_block_map_place(&p, s, 1, &map, NULL), SFC_EINVAL);
    p = placement(), p.block_size = 0;
    assert_int_equal(sfc_block_map_place(&p, s, 1, &map, NULL), SFC_EINVAL);
    p = placement(), p.class_bytes = UINT64_MAX;
    assert_int_equal(sfc_block_map_place(&p, s, 1, &map, NULL), SFC_EINVAL);
    p = placement(), p.classes = UINT64_MAX, p.block_size = 1;
    assert_int_equal(sfc_block_map_place(&p, s, 1, &map, NULL), SFC_ELIMIT);
    p = placement();
    assert_int_equal(sfc_block_map_place(&p, s, 0, &map, NULL), SFC_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_block_size),
        cmocka_unit_test(test_balanced_and_complete),
        cmocka_unit_test(test_memory_limit_binds),
        cmocka_unit_test(test_refusal_has_the_numbers),
        cmocka_unit_test(test_owner),
        cmocka_unit_test(test_impossible_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

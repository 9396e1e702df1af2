/* Sums of some dense blocks out of those of others: every pair of sets, in f32 and with bf16 sums.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/shard/dense_sums.h"

enum { BLOCKS = 5, BLOCK = 7, SIZE = 33 }; /* the last one is shorter */

static const struct sfc_dense_segment segments[] = {
    {0, 10, SFC_DENSE_WEIGHT, 0, 1},
    {10, 3, SFC_DENSE_STATISTIC, 0, 0},
    {13, 15, SFC_DENSE_WEIGHT_NO_DECAY, 0, 1},
    {28, 5, SFC_DENSE_STATISTIC, 0, 0},
};

static struct sfc_dense_config config_of(enum sfc_dtype dtype)
{
    return (struct sfc_dense_config){.size = SIZE,
                                     .block_size = BLOCK,
                                     .segments = segments,
                                     .segment_count = 4,
                                     .sum_dtype = dtype};
}

static bool is_statistic(uint64_t i)
{
    return (i >= 10 && i < 13) || i >= 28;
}

/* Number i of the vector is i + 1, in the order in which the kernels pack them. */
static void pack(const struct sfc_dense_config *c, struct sfc_dense_set set, void *out)
{
    struct sfc_dense_packing p = sfc_dense_packing_of(c, set.blocks, set.count);
    uint16_t *half = out;
    memset(out, 0, sfc_dense_packed_bytes(&p));
    float *wide = (void *)((char *)out + sfc_dense_packed_bytes(&p) - p.floats * sizeof(float));
    for (size_t b = 0; b < set.count; b++)
        for (uint64_t i = set.blocks[b] * BLOCK; i < (set.blocks[b] + 1) * BLOCK && i < SIZE; i++)
            if (c->sum_dtype == SFC_DTYPE_BF16 && !is_statistic(i))
                *half++ = (uint16_t)(i + 1);
            else
                *wide++ = (float)(i + 1);
}

static struct sfc_dense_set set_of(unsigned bits, uint64_t *room)
{
    struct sfc_dense_set set = {room, 0};
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (bits & 1u << b)
            room[set.count++] = b;
    return set;
}

static void check_pair(const struct sfc_dense_config *c, unsigned from_bits, unsigned to_bits)
{
    uint64_t from_room[BLOCKS], to_room[BLOCKS], old[BLOCKS] = {0};
    uint64_t in[64], out[64], expected[64];
    struct sfc_dense_set from = set_of(from_bits, from_room), to = set_of(to_bits, to_room);
    pack(c, from, in);
    pack(c, to, expected);
    memset(out, 0xff, sizeof out);
    size_t missed = sfc_dense_sums_cut(c, from, in, to, old, 9, out);
    if ((to_bits & ~from_bits) == 0) {
        struct sfc_dense_packing p = sfc_dense_packing_of(c, to.blocks, to.count);
        assert_int_equal(missed, to.count);
        assert_memory_equal(out, expected, sfc_dense_packed_bytes(&p));
        return;
    }
    assert_true(missed < to.count && !(from_bits & 1u << to.blocks[missed]));
    for (size_t i = 0; i < missed; i++)
        assert_true(from_bits & 1u << to.blocks[i]);
}

static void every_pair_of_sets(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 2; dtype++) {
        struct sfc_dense_config c = config_of(dtype ? SFC_DTYPE_BF16 : SFC_DTYPE_F32);
        for (unsigned from = 0; from < 1u << BLOCKS; from++)
            for (unsigned to = 0; to < 1u << BLOCKS; to++)
                check_pair(&c, from, to);
    }
}

/* A block whose state has the step in it already is not missed: its sums are zeros. */
static void a_block_that_is_ahead_is_not_missed(void **state)
{
    (void)state;
    struct sfc_dense_config c = config_of(SFC_DTYPE_F32);
    const uint64_t from_blocks[] = {1}, to_blocks[] = {0, 1}, stamps[] = {9, 3};
    struct sfc_dense_set from = {from_blocks, 1}, to = {to_blocks, 2};
    float in[BLOCK], out[2 * BLOCK];
    pack(&c, from, in);
    assert_int_equal(sfc_dense_sums_cut(&c, from, in, to, stamps, 9, out), 2);
    for (int i = 0; i < 2 * BLOCK; i++)
        assert_true(out[i] == (i < BLOCK ? 0 : (float)(i + 1)));
    assert_int_equal(sfc_dense_sums_cut(&c, from, in, to, stamps, 10, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_of_sets),
        cmocka_unit_test(a_block_that_is_ahead_is_not_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

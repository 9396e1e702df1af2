/* A shard that mirrors dense blocks of others logs the sums that one shard with all of them would
 * log, bit for bit, and those of its own are as without a mirror. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/rng/philox.h"
#include "server/shard/dense_mirror.h"

enum { SIZE = 1000, BLOCK = 150, BLOCKS = 7, MICRO = 3, SLOTS = 5 };

static const struct sfc_dense_segment segments[] = {
    {0, 301, SFC_DENSE_WEIGHT, 0, 0.05}, /* an odd number of halves */
    {301, 19, SFC_DENSE_WEIGHT_NO_DECAY, 0.25, 0}, {320, 128, SFC_DENSE_STATISTIC, 1, 0},
    {448, 500, SFC_DENSE_WEIGHT, 0, 0.1},          {948, 52, SFC_DENSE_STATISTIC, 0, 0},
};

static struct sfc_run_setup setup_of(enum sfc_dtype sums)
{
    return (struct sfc_run_setup){.dense = {.seed = 5,
                                            .size = SIZE,
                                            .block_size = BLOCK,
                                            .slots = SLOTS,
                                            .micro_batches = MICRO,
                                            .segments = segments,
                                            .segment_count = sizeof segments / sizeof *segments,
                                            .optimizer = SFC_OPTIMIZER_SGD,
                                            .momentum = 0.9,
                                            .statistic_momentum = 0.1,
                                            .sum_dtype = sums},
                                  .dense_blocks = BLOCKS};
}

static void must(int rc, const struct sfc_error *err)
{
    if (rc != SFC_OK)
        fail_msg("%s (%d)", err->text, rc);
}

static uint64_t floats_of(struct sfc_dense_set set)
{
    uint64_t floats = 0;
    for (size_t i = 0; i < set.count; i++)
        floats += set.blocks[i] == BLOCKS - 1 ? SIZE % BLOCK : BLOCK;
    return floats;
}

static struct sfc_dense_set set_of(unsigned bits, uint64_t *room)
{
    struct sfc_dense_set set = {room, 0};
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (bits & 1u << b)
            room[set.count++] = b;
    return set;
}

static const uint32_t slots[MICRO] = {3, 0, 2};

/* The gradient of an attempt: those of a set of blocks out of it. */
static void slice_of(uint32_t slot, struct sfc_dense_set set, float *out)
{
    float whole[SIZE];
    sfc_random_normals(9, SFC_STREAM_DENSE_INIT, 0, 1000ull * slot, SIZE, whole);
    for (size_t i = 0; i < set.count; i++) {
        uint64_t n = floats_of((struct sfc_dense_set){&set.blocks[i], 1});
        memcpy(out, whole + set.blocks[i] * BLOCK, n * sizeof *out);
        out += n;
    }
}

struct result {
    uint64_t packed[SIZE];
    struct sfc_dense_sum sums[BLOCKS];
};

static void alone(struct sfc_backend *backend, const struct sfc_dense_config *c,
                  struct sfc_dense_set set, struct result *out)
{
    struct sfc_error err = {0};
    struct sfc_dense *dense = NULL;
    float slice[SIZE];
    must(sfc_dense_new(backend, c, set.blocks, set.count, &dense, &err), &err);
    for (size_t j = 0; j < MICRO; j++) {
        slice_of(slots[j], set, slice);
        must(sfc_dense_push(dense, slots[j], slice, &err), &err);
    }
    must(sfc_dense_prepare(dense, 4, 0.1, slots, out->sums, &err), &err);
    must(sfc_dense_sums(dense, out->packed, &err), &err);
    sfc_dense_free(dense);
}

static void mirrored(struct sfc_backend *backend, const struct sfc_run_setup *setup,
                     struct sfc_dense_set own, struct sfc_dense_set other, struct sfc_dense_set all,
                     struct result *out)
{
    struct sfc_error err = {0};
    struct sfc_dense *dense = NULL;
    struct sfc_dense_mirror *mirror = NULL;
    float slice[SIZE];
    if (own.count)
        must(sfc_dense_new(backend, &setup->dense, own.blocks, own.count, &dense, &err), &err);
    must(sfc_dense_mirror_new(backend, setup, own, other, &mirror, &err), &err);
    for (size_t j = 0; j < MICRO; j++) {
        slice_of(slots[j], all, slice);
        must(sfc_dense_mirror_push(mirror, dense, slots[j], slice, &err), &err);
    }
    if (dense)
        must(sfc_dense_prepare(dense, 4, 0.1, slots, out->sums, &err), &err);
    memset(out->packed, 0xff, sizeof out->packed);
    must(sfc_dense_mirror_prepare(mirror, dense, 4, 0.1, slots, NULL, &err), &err);
    must(sfc_dense_mirror_prepare(mirror, dense, 4, 0.1, slots, out->packed, &err), &err);
    sfc_dense_mirror_free(mirror);
    sfc_dense_free(dense);
}

static void check_sets(struct sfc_backend *backend, const struct sfc_run_setup *setup,
                       unsigned own_bits, unsigned other_bits)
{
    uint64_t own_room[BLOCKS], other_room[BLOCKS], all_room[BLOCKS];
    struct sfc_dense_set own = set_of(own_bits, own_room), other = set_of(other_bits, other_room);
    struct sfc_dense_set all = set_of(own_bits | other_bits, all_room);
    struct result expected = {0}, got = {0}, own_alone = {0};
    struct sfc_dense_packing p = sfc_dense_packing_of(&setup->dense, all.blocks, all.count);
    alone(backend, &setup->dense, all, &expected);
    if (own.count)
        alone(backend, &setup->dense, own, &own_alone);
    mirrored(backend, setup, own, other, all, &got);
    assert_memory_equal(got.packed, expected.packed, sfc_dense_packed_bytes(&p));
    assert_memory_equal(got.sums, own_alone.sums, own.count * sizeof *got.sums);
}

static void sums_are_those_of_one_shard(void **state)
{
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    (void)state;
    must(sfc_backend_open("cpu", 2, &backend, &err), &err);
    for (int dtype = 0; dtype < 2; dtype++) {
        struct sfc_run_setup setup = setup_of(dtype ? SFC_DTYPE_BF16 : SFC_DTYPE_F32);
        for (unsigned own = 0; own < 1u << BLOCKS; own += 3)
            for (unsigned other = 1; other < 1u << BLOCKS; other++)
                if ((own & other) == 0)
                    check_sets(backend, &setup, own, other);
    }
    sfc_backend_close(backend);
}

/* More than the plan says is never allocated: the parts are its sum. */
static void memory_is_planned(void **state)
{
    struct sfc_run_setup setup = setup_of(SFC_DTYPE_F32);
    struct sfc_run_mirror_memory with, without;
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    const uint64_t own[] = {0, 1}, other[] = {2, 3, 5};
    (void)state;
    setup.head.block_size = 1;
    setup.head.classes = 1;
    setup.head.dim = 1;
    must(sfc_backend_open("cpu", 1, &backend, &err), &err);
    struct sfc_run_mirror mirror = {own, other, 2, 3, true, true};
    must(sfc_run_mirror_memory(&setup, backend, &mirror, &with, &err), &err);
    mirror.mirrored_count = 0;
    must(sfc_run_mirror_memory(&setup, backend, &mirror, &without, &err), &err);
    assert_int_equal(without.host, 2 * sfc_run_largest_block(&setup));
    assert_int_equal(with.host - without.host,
                     3 * BLOCK * sizeof(float) + 2 * 3 * BLOCK * sizeof(float));
    assert_true(with.dense.step_bytes >= (SLOTS + 1) * 3 * BLOCK * sizeof(float));
    assert_int_equal(without.dense.step_bytes, 0);
    sfc_backend_close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_those_of_one_shard),
        cmocka_unit_test(memory_is_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

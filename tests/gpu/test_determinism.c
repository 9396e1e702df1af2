/* The same bits on one device: twice, over two placements of the blocks, over groupings and orders
 * of the micro-batches, in shapes like those of real runs. Arguments: none, all shapes; "short",
 * small ones alone (for sanitizers); "probe", nothing but whether there is a device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

enum { STEPS = 3 };

struct shape {
    uint64_t classes;
    uint32_t dim, block_size, batch, micro_batch;
};

static const struct shape small_shapes[] = {
    {700, 40, 64, 24, 6},
    {3000, 128, 1024, 32, 32},
};
static const struct shape real_shapes[] = {
    {60000, 512, 8192, 256, 64},
    {20000, 512, 4096, 1024, 1024},
};
static const struct {
    enum sfc_dtype dtype, gemm;
    enum sfc_optimizer optimizer;
    enum sfc_momentum_mode mode;
} kinds[] = {
    {SFC_DTYPE_BF16, SFC_DTYPE_BF16, SFC_OPTIMIZER_SGD, SFC_MOMENTUM_DENSE},
    {SFC_DTYPE_F32, SFC_DTYPE_F32, SFC_OPTIMIZER_SGD, SFC_MOMENTUM_SAMPLED},
    {SFC_DTYPE_F32, SFC_DTYPE_BF16, SFC_OPTIMIZER_ADAMW, SFC_MOMENTUM_SAMPLED},
};

static void mix(uint64_t *digest, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof word);
        *digest = (*digest ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        *digest ^= *digest >> 29;
    }
    for (size_t i = size / 8 * 8; i < size; i++) {
        *digest = (*digest ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
}

/* Of everything that the steps answered, and of the state after them. */
static uint64_t digest_of(struct rig_setup setup, const struct sfc_head_config *c, const float *w0)
{
    uint64_t digest = 1;
    size_t size = (size_t)c->classes * c->dim, rows = (size_t)c->batch * c->dim;
    struct rig rig;
    struct rig_step step;
    float *state = calloc(size, sizeof *state), *x = calloc(rows, sizeof *x);
    uint64_t *labels = calloc(c->batch, sizeof *labels);
    assert_true(state && x && labels);
    rig_open(&rig, setup, c);
    rig_step_init(&step, c);
    for (uint64_t t = 1; t <= STEPS; t++) {
        rig_labels(t, t % 2 ? RIG_UNIFORM : RIG_DUPLICATES, c, labels);
        rig_features(t, c, labels, w0, x);
        rig_forward(&rig, t, labels, x, &step);
        mix(&digest, &step.sampled, sizeof step.sampled);
        mix(&digest, step.lse, c->batch * sizeof *step.lse);
        mix(&digest, step.target, c->batch * sizeof *step.target);
        mix(&digest, step.dx, rows * sizeof *step.dx);
        rig_commit(&rig, 1e-3);
    }
    rig_read(&rig, SFC_PART_VALUES, state);
    mix(&digest, state, size * sizeof *state);
    rig_read(&rig, SFC_PART_MOMENTUM, state);
    mix(&digest, state, size * sizeof *state);
    rig_step_free(&step);
    rig_close(&rig);
    free(state), free(x), free(labels);
    return digest;
}

static float *initial(const struct sfc_head_config *c)
{
    float *w = calloc((size_t)c->classes * c->dim, sizeof *w);
    struct rig rig;
    assert_non_null(w);
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, c);
    rig_read(&rig, SFC_PART_VALUES, w);
    rig_close(&rig);
    return w;
}

static void same_in_every_way(const struct shape *s, size_t kind)
{
    struct sfc_head_config c =
        rig_config(s->classes, s->dim, s->block_size, s->batch, s->micro_batch);
    c.dtype = kinds[kind].dtype;
    c.gemm = kinds[kind].gemm;
    c.optimizer = kinds[kind].optimizer;
    c.momentum_mode = kinds[kind].mode;
    uint32_t all = s->batch / s->micro_batch;
    const struct rig_setup ways[] = {
        {TESTED, 1, 1, all, false}, /* what the others must equal */
        {TESTED, 1, 1, all, false},
        {TESTED, 2, 2, 1, true},
        {TESTED, 1, 3, all, false},
    };
    float *w = initial(&c);
    uint64_t first = digest_of(ways[0], &c, w);
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        uint64_t other = digest_of(ways[i], &c, w);
        if (other != first) {
            fail_msg("%llu classes, dim %u, batch %u, kind %zu: heads %zu group %u reversed %d "
                     "differ",
                     (unsigned long long)s->classes, s->dim, s->batch, kind, ways[i].heads,
                     ways[i].group, ways[i].reversed);
        }
    }
    print_message("%llu classes, dim %u, batch %u, kind %zu: digest %016llx\n",
                  (unsigned long long)s->classes, s->dim, s->batch, kind,
                  (unsigned long long)first);
    free(w);
}

static void test_small_shapes(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof small_shapes / sizeof *small_shapes; s++) {
        for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            same_in_every_way(&small_shapes[s], kind);
        }
    }
}

static void test_real_shapes(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof real_shapes / sizeof *real_shapes; s++) {
        for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            same_in_every_way(&real_shapes[s], kind);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest short_tests[] = {cmocka_unit_test(test_small_shapes)};
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small_shapes),
                                       cmocka_unit_test(test_real_shapes)};
    const char *how = argc > 1 ? argv[1] : "";
    if (argc > 2 || (*how && strcmp(how, "short") != 0 && strcmp(how, "probe") != 0)) {
        fprintf(stderr, "usage: %s [short|probe]\n", argv[0]);
        return 2;
    }
    if (tested_backend_missing()) {
        return TESTED_SKIPPED;
    }
    if (!strcmp(how, "probe")) {
        return 0;
    }
    return *how ? cmocka_run_group_tests(short_tests, NULL, NULL)
                : cmocka_run_group_tests(tests, NULL, NULL);
}

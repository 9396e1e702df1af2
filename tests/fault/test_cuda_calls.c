/* Every call of CUDA and cuBLASLt fails once, and then all from there on, in two steps of a shard
 * on an emulated device (tests/lib/cuda_host): what failed is reported and says where, nothing is
 * left behind, and what went on in spite of it has the right bits. Also: a device that is too
 * small, and memory of the device that only the device may touch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/exact_sum.h"
#include "tests/lib/cuda_host/cuda_host.h"

enum { CLASSES = 70, DIM = 20, BLOCK = 32, BLOCKS = 3, BATCH = 8, MICRO = 4, SLOTS = 3, STEPS = 2 };

struct outcome {
    uint64_t sampled;
    uint64_t sums[BATCH][4];
    int64_t dx[BATCH * DIM];
    float w[CLASSES * DIM];
};

static struct sfc_head_config config_of(int kind)
{
    return (struct sfc_head_config){
        .seed = 5,
        .classes = CLASSES,
        .dim = DIM,
        .block_size = BLOCK,
        .sample_ppm = 300000,
        .batch = BATCH,
        .micro_batch = MICRO,
        .slots = SLOTS,
        .margin_m1 = 1,
        .margin_m3 = 0.4,
        .scale = 32,
        .optimizer = kind == 2 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD,
        .momentum_mode = kind == 1 ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.99,
        .epsilon = 1e-8,
        .weight_decay = 1e-3,
        .init_std = 0.05,
        .dtype = kind == 0 ? SFC_DTYPE_F32 : SFC_DTYPE_BF16,
        .gemm = kind == 0 ? SFC_DTYPE_F32 : SFC_DTYPE_BF16,
        .steps = 20,
    };
}

static void inputs(uint64_t step, uint64_t *labels, float *x)
{
    for (uint64_t r = 0; r < BATCH; r++) {
        labels[r] = (r * 17 + step * 5) % CLASSES;
        for (uint64_t k = 0; k < DIM; k++)
            x[r * DIM + k] = (float)((r * 31 + k * 7 + step * 3) % 23) - 11;
    }
}

static int pass_1(struct sfc_head *head, const float *x, struct outcome *out, double *lse,
                  struct sfc_error *err)
{
    struct sfc_head_logits_item items[BATCH / MICRO];
    float target[BATCH];
    uint8_t has[BATCH];
    for (uint32_t j = 0; j < BATCH / MICRO; j++)
        items[j] = (struct sfc_head_logits_item){.slot = j,
                                                 .micro_batch = j,
                                                 .features = x + (size_t)j * MICRO * DIM,
                                                 .exp_sum = out->sums[j * MICRO],
                                                 .target_logit = target + (size_t)j * MICRO,
                                                 .has_target = has + (size_t)j * MICRO};
    int rc = sfc_head_logits(head, items, BATCH / MICRO, err);
    for (uint32_t r = 0; rc == SFC_OK && r < BATCH; r++) {
        struct sfc_sum256 sum;
        memcpy(sum.word, out->sums[r], sizeof sum.word);
        lse[r] = sfc_sum256_log(&sum, sfc_exp_shift(32));
    }
    return rc;
}

static int step(struct sfc_head *head, uint64_t t, struct outcome *out, struct sfc_error *err)
{
    uint64_t labels[BATCH];
    float x[BATCH * DIM];
    double lse[BATCH];
    const uint32_t slots[BATCH / MICRO] = {0, 1};
    struct sfc_head_gradient_item items[BATCH / MICRO];
    inputs(t, labels, x);
    int rc = sfc_head_plan(head, t, labels, &out->sampled, err);
    if (rc == SFC_OK)
        rc = pass_1(head, x, out, lse, err);
    for (uint32_t j = 0; j < BATCH / MICRO; j++)
        items[j] = (struct sfc_head_gradient_item){j, lse + (size_t)j * MICRO,
                                                   out->dx + (size_t)j * MICRO * DIM};
    if (rc == SFC_OK)
        rc = sfc_head_gradient(head, items, BATCH / MICRO, err);
    if (rc == SFC_OK && !sfc_head_finite(head, slots, 1e-2)) /* it has no status; a no is no harm */
        rc = sfc_fail(err, SFC_EDEVICE, "cuda: not finite");
    return rc == SFC_OK ? sfc_head_commit(head, slots, 1e-2, err) : rc;
}

static int read_blocks(struct sfc_head *head, struct outcome *out, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (uint64_t b = 0; rc == SFC_OK && b < BLOCKS; b++) {
        uint64_t rows = b + 1 < BLOCKS ? BLOCK : CLASSES - (BLOCKS - 1) * BLOCK;
        rc = sfc_head_read(head, b, SFC_PART_VALUES, 0, rows * DIM, out->w + b * BLOCK * DIM, err);
    }
    return rc;
}

/* The first error of a whole life; one block comes later than the others, and goes first. Where the
 * others' part can't take it, it is a part of its own. */
static int live(const struct sfc_head_config *config, struct outcome *out, struct sfc_error *err)
{
    static const uint64_t blocks[BLOCKS - 1] = {0, 2}, later = 1;
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL;
    memset(out, 0, sizeof *out);
    int rc = sfc_backend_open("cuda", 1, &backend, err);
    if (rc == SFC_OK)
        rc = sfc_head_new(backend, config, blocks, BLOCKS - 1, &head, err);
    if (rc == SFC_OK)
        rc = sfc_head_add(head, &later, 1, false, err);
    for (uint64_t t = 1; rc == SFC_OK && t <= STEPS; t++)
        rc = step(head, t, out, err);
    if (rc == SFC_OK)
        rc = read_blocks(head, out, err);
    if (rc == SFC_OK)
        rc = sfc_head_remove(head, &later, 1, err);
    sfc_head_free(head);
    sfc_backend_close(backend);
    return rc;
}

static void nothing_left(uint64_t n)
{
    struct sfc_cuda_host_use use = sfc_cuda_host_use();
    if (use.allocations + use.streams + use.events + use.handles)
        fail_msg("call %llu: %zu allocations, %zu streams, %zu events, %zu handles are left",
                 (unsigned long long)n, use.allocations, use.streams, use.events, use.handles);
}

/* Returns the calls of a life. */
static uint64_t fail_each(const struct sfc_head_config *config, bool onwards)
{
    struct outcome want, got;
    struct sfc_error err;
    uint64_t n = 0;
    assert_int_equal(live(config, &want, &err), SFC_OK);
    for (bool hit = true; hit;) {
        err = (struct sfc_error){0};
        sfc_cuda_host_fail(++n, onwards);
        int rc = live(config, &got, &err);
        hit = sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        nothing_left(n);
        if (rc == SFC_OK && memcmp(&want, &got, sizeof want) != 0)
            fail_msg("call %llu failed, nothing was said and the bits are others",
                     (unsigned long long)n);
        if (rc != SFC_OK && (!hit || !strstr(err.text, "cuda") ||
                             (rc != SFC_EDEVICE && rc != SFC_ENOMEM && rc != SFC_EUNSUPPORTED)))
            fail_msg("call %llu: %s (%d)", (unsigned long long)n, err.text, rc);
    }
    return n - 1;
}

static void test_every_call_fails(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct sfc_head_config c = config_of(kind);
        uint64_t once = fail_each(&c, false), onwards = fail_each(&c, true);
        assert_int_equal(once, onwards);
        assert_true(once > 100);
        print_message("kind %d: %llu calls\n", kind, (unsigned long long)once);
    }
}

/* Every size that is too small is refused before the first step, with nothing left behind. */
static void test_a_small_device_is_found_out_at_once(void **state)
{
    (void)state;
    static const uint64_t blocks[BLOCKS] = {0, 1, 2};
    struct sfc_head_config c = config_of(1);
    struct sfc_backend *backend = NULL;
    struct sfc_head *head = NULL;
    struct sfc_memory m;
    struct sfc_error err = {0};
    assert_int_equal(sfc_backend_open("cuda", 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_head_memory(backend, &c, blocks, BLOCKS, &m, &err), SFC_OK);
    assert_int_equal(sfc_head_new(backend, &c, blocks, BLOCKS, &head, &err), SFC_OK);
    size_t need = sfc_cuda_host_use().device_bytes;
    assert_true(need <=
                m.state_bytes + m.step_bytes + m.scratch_bytes); /* the rest is of the host */
    sfc_head_free(head);
    for (int part = 0; part < 8; part++) {
        sfc_cuda_host_memory(part ? need - need / ((size_t)1 << part) : need - 1);
        int rc = sfc_head_new(backend, &c, blocks, BLOCKS, &head, &err);
        if (rc != SFC_ENOMEM || !strstr(err.text, "MiB"))
            fail_msg("part %d: %s (%d)", part, err.text, rc);
        assert_int_equal(sfc_cuda_host_use().allocations, 0);
    }
    sfc_cuda_host_memory(need);
    assert_int_equal(sfc_head_new(backend, &c, blocks, BLOCKS, &head, &err), SFC_OK);
    sfc_head_free(head);
    sfc_cuda_host_memory(0);
    sfc_backend_close(backend);
    nothing_left(0);
}

/* The host's side touches none of the device's memory: it would be a signal here. */
static void test_the_host_keeps_out_of_the_device(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct sfc_head_config c = config_of(kind);
        struct outcome want, got;
        struct sfc_error err;
        assert_int_equal(live(&c, &want, &err), SFC_OK);
        sfc_cuda_host_guard(true);
        assert_int_equal(live(&c, &got, &err), SFC_OK);
        sfc_cuda_host_guard(false);
        assert_memory_equal(&want, &got, sizeof want);
    }
}

/* No result depends on the order in which streams, blocks and threads have their turn. */
static void test_no_order_shows(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct sfc_head_config c = config_of(kind);
        struct outcome want, got;
        struct sfc_error err;
        sfc_cuda_host_seed(0);
        assert_int_equal(live(&c, &want, &err), SFC_OK);
        for (uint64_t seed = 1; seed <= 20; seed++) {
            sfc_cuda_host_seed(seed);
            assert_int_equal(live(&c, &got, &err), SFC_OK);
            if (memcmp(&want, &got, sizeof want) != 0)
                fail_msg("kind %d: seed %llu gives other bits", kind, (unsigned long long)seed);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_order_shows),
        cmocka_unit_test(test_the_host_keeps_out_of_the_device),
        cmocka_unit_test(test_a_small_device_is_found_out_at_once),
        cmocka_unit_test(test_every_call_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

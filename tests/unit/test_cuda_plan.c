/* Plans of the CUDA backend on the emulator: samples are those of sfc_sample_block, and everything
 * that a pass reads of them lies where it should. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/head.h"
#include "kernels/cuda/plan.h"
#include "kernels/hd/layout.h"
#include "kernels/head_internal.h"
#include "kernels/lag.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/sample.h"
#include "tests/lib/cuda_host/cuda_host.h"

#define MAX_HELD 16

struct fixture {
    struct sfc_backend *backend;
    struct sfc_head *head;
    struct sfc_head_config config;
    uint64_t blocks[MAX_HELD], *labels;
    size_t count;
};

static uint64_t draw(uint64_t what, uint64_t i)
{
    struct sfc_philox w = sfc_random(30, SFC_STREAM_SYNTHETIC, what, i);
    return (uint64_t)w.v[1] << 32 | w.v[0];
}

static void must(int rc, const struct sfc_error *err)
{
    if (rc)
        fail_msg("%s", err->text);
}

static struct sfc_head_config config_of(uint64_t classes, uint32_t block_size, uint32_t ppm,
                                        uint32_t batch)
{
    return (struct sfc_head_config){
        .seed = 17,
        .classes = classes,
        .dim = 3,
        .block_size = block_size,
        .sample_ppm = ppm,
        .batch = batch,
        .micro_batch = batch,
        .slots = 1,
        .margin_m1 = 1,
        .margin_m2 = 0.5,
        .scale = 64,
        .momentum = 0.9,
        .weight_decay = 1e-4,
        .init_std = 0.01,
    };
}

/* Holds every block whose number leaves no rest by `every`, at most MAX_HELD. */
static void open_head(struct fixture *f, const struct sfc_head_config *config, uint64_t every)
{
    struct sfc_error err;
    memset(f, 0, sizeof *f);
    f->config = *config;
    f->labels = malloc(config->batch * sizeof *f->labels);
    assert_non_null(f->labels);
    for (uint64_t b = 0; b < sfc_head_block_count(config) && f->count < MAX_HELD; b += every)
        f->blocks[f->count++] = b;
    must(sfc_backend_open("cuda", 1, &f->backend, &err), &err);
    must(sfc_head_new(f->backend, config, f->blocks, f->count, &f->head, &err), &err);
}

static void close_head(struct fixture *f)
{
    sfc_head_free(f->head);
    sfc_backend_close(f->backend);
    free(f->labels);
    assert_int_equal(sfc_cuda_host_use().allocations, 0);
    assert_int_equal(sfc_cuda_host_use().events, 0);
}

static uint64_t plan(struct fixture *f, uint64_t step)
{
    struct sfc_error err;
    uint64_t sampled = 0;
    must(sfc_head_plan(f->head, step, f->labels, &sampled, &err), &err);
    cudaDeviceSynchronize();
    return sampled;
}

/* The distinct labels of a block as rows, ascending. */
static uint32_t positives_of(const struct fixture *f, uint64_t block, uint32_t rows, uint32_t *out)
{
    uint32_t n = 0;
    uint8_t *is = calloc(rows, 1);
    assert_non_null(is);
    for (uint32_t i = 0; i < f->config.batch; i++)
        if (f->labels[i] != SFC_LABEL_NONE && f->labels[i] / f->config.block_size == block)
            is[f->labels[i] % f->config.block_size] = 1;
    for (uint32_t row = 0; row < rows; row++)
        if (is[row])
            out[n++] = row;
    free(is);
    return n;
}

static void check_padding(const struct sfc_cuda_head *head, size_t from, size_t to)
{
    for (size_t p = from; p < to; p++) {
        assert_int_equal(head->rows[p], SFC_CUDA_PADDING);
        assert_true(isinf(head->add[p]) && head->add[p] < 0);
    }
}

/* What is added to z of the block's sample, as the CPU backend has it. */
static void check_add(const struct sfc_cuda_head *head, const struct sfc_cuda_block *block,
                      const uint32_t *rows, const uint32_t *positive, uint32_t positives)
{
    const float *add = head->add + block->first_chunk * head->sizes.chunk;
    double drawn = 0;
    if (head->config.correction == SFC_CORRECTION_LOGQ && block->count > positives)
        drawn = -log((double)(block->count - positives) / (double)(block->rows - positives));
    for (uint32_t i = 0, p = 0; i < block->count; i++) {
        bool is_positive = p < positives && positive[p] == rows[i];
        p += is_positive;
        assert_true(add[i] == (float)(head->exp_base + (is_positive ? 0 : drawn)));
    }
}

/* One block of the present plan; returns its rows. */
static uint32_t check_block(const struct fixture *f, size_t index, uint64_t step, size_t chunk_at)
{
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f->head->parts;
    const struct sfc_cuda_block *block = &head->blocks[index];
    const struct sfc_head_config *c = &f->config;
    struct sfc_error err;
    uint32_t *positive = malloc(2 * block->rows * sizeof *positive), *want = positive + block->rows;
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(block->rows) + 63) / 64 * 64);
    assert_non_null(positive);
    assert_non_null(scratch);
    uint32_t positives = positives_of(f, f->blocks[index], block->rows, positive);
    uint32_t count = sfc_sample_block(c->seed, step, (uint32_t)f->blocks[index], block->rows,
                                      c->sample_ppm, positive, positives, want, scratch);
    const uint32_t *rows = NULL;
    uint32_t n = 0;
    must(sfc_head_sample(f->head, f->blocks[index], &rows, &n, &err), &err);
    assert_int_equal(n, count);
    assert_memory_equal(rows, want, count * sizeof *rows);
    size_t chunk = head->sizes.chunk, first = chunk_at * chunk;
    assert_int_equal(block->first_chunk, chunk_at);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(head->rows[first + i], block->store + want[i]);
    check_add(head, block, want, positive, positives);
    check_padding(head, first + count, (chunk_at + block->chunks) * chunk);
    for (size_t k = 0; k < block->chunks; k++)
        assert_int_equal(head->chunk_block[chunk_at + k], index);
    free(positive);
    free(scratch);
    return count;
}

static void check_target(const struct fixture *f, uint32_t i)
{
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f->head->parts;
    size_t index = f->labels[i] == SFC_LABEL_NONE
                       ? f->count
                       : sfc_block_index(f->blocks, f->count, f->labels[i] / f->config.block_size);
    if (index == f->count || head->blocks[index].count == 0) {
        assert_int_equal(head->target[i], -1);
        return;
    }
    assert_true(head->target[i] >= 0 && (size_t)head->target[i] < head->sizes.positions);
    assert_int_equal(head->chunk_block[(size_t)head->target[i] / head->sizes.chunk], index);
    assert_int_equal(head->rows[head->target[i]],
                     head->blocks[index].store + f->labels[i] % f->config.block_size);
}

static void check_plan(const struct fixture *f, uint64_t step, uint64_t sampled)
{
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f->head->parts;
    size_t chunks = 0;
    uint64_t total = 0;
    for (size_t i = 0; i < f->count; i++) {
        total += check_block(f, i, step, chunks);
        chunks += head->blocks[i].chunks;
    }
    assert_int_equal(total, sampled);
    assert_int_equal(head->chunks, chunks);
    assert_int_equal(head->tiles, (chunks + head->sizes.group - 1) / head->sizes.group);
    size_t end = head->tiles * head->sizes.group;
    assert_true(end <= head->sizes.max_chunks);
    check_padding(head, chunks * head->sizes.chunk, end * head->sizes.chunk);
    for (size_t k = chunks; k < end; k++)
        assert_true(head->chunk_block[k] < f->count);
    for (uint32_t i = 0; i < f->config.batch; i++)
        check_target(f, i);
}

/* Labels in the first `width` classes, some twice, one in `none` without. */
static void set_labels(struct fixture *f, uint64_t what, uint64_t width, uint64_t none)
{
    for (uint32_t i = 0; i < f->config.batch; i++) {
        uint64_t r = draw(what, i);
        f->labels[i] = (r >> 40) % none == 0 ? SFC_LABEL_NONE : r % width;
        if (i > 0 && (r >> 50) % 5 == 0)
            f->labels[i] = f->labels[i - 1];
    }
}

static void test_many_shapes(void **state)
{
    (void)state;
    static const uint32_t rates[] = {1, 1000, 30000, 100000, 500000, 999999, 1000000};
    for (uint64_t i = 0; i < 150; i++) {
        uint64_t r = draw(1, i);
        sfc_cuda_host_seed(i % 4 ? i : 0);
        uint32_t size = 1 + (uint32_t)(r % (i % 6 ? 400 : 9000));
        uint32_t batch = 1 + (uint32_t)(r >> 16) % 200;
        uint64_t classes = 1 + (r >> 24) % (5 * (uint64_t)size);
        struct sfc_head_config config = config_of(classes, size, rates[(r >> 40) % 7], batch);
        config.correction = i % 2 ? SFC_CORRECTION_LOGQ : SFC_CORRECTION_NONE;
        struct fixture f;
        if (config.classes == 1 || config.sample_ppm < 1000)
            config.scale = 10; /* a sample of one class takes no more */
        open_head(&f, &config, 1 + (r >> 45) % 2);
        for (uint64_t step = 1; step <= 3; step++) { /* everywhere, close together, none */
            uint64_t width = step == 1 ? classes : 1 + classes / 7;
            set_labels(&f, 2 + 3 * i + step, width, step == 3 ? 1 : 9);
            check_plan(&f, step, plan(&f, step));
        }
        close_head(&f);
    }
}

/* On the device, filled with `bytes` of `from`. */
static void *on_device(const void *from, size_t bytes)
{
    void *out = NULL;
    assert_int_equal(cudaMalloc(&out, bytes), cudaSuccess);
    if (from)
        assert_int_equal(cudaMemcpy(out, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return out;
}

/* A block with more keys in a bin than can be ranked, without a head that holds it. */
static void check_large(uint32_t rows, uint32_t ppm, const uint32_t *positive, uint32_t positives)
{
    const struct sfc_cuda_plan_label label = {0, rows - 1};
    struct sfc_cuda_plan_block block = {.store = 5, .id = 3, .rows = rows, .positives = positives};
    block.count = sfc_sample_quota(rows, ppm, positives);
    block.chunks = (uint32_t)sfc_hd_chunks(block.count, 1024);
    size_t places = (size_t)block.chunks * 1024;
    struct sfc_cuda_plan_call call = {
        .key = sfc_hd_stream_key(17, SFC_STREAM_SAMPLE),
        .step = UINT64_C(1) << 33,
        .blocks = 1,
        .batch = 1,
        .chunk = 1024,
        .chunks = block.chunks,
        .all_chunks = block.chunks,
        .block = on_device(&block, sizeof block),
        .label = on_device(&label, sizeof label),
        .positive = on_device(positive, positives * sizeof *positive),
        .rows = on_device(NULL, places * sizeof(uint32_t)),
        .add = on_device(NULL, places * sizeof(float)),
        .chunk_block = on_device(NULL, block.chunks * sizeof(uint32_t)),
        .target = on_device(NULL, sizeof(int32_t)),
    };
    assert_int_equal(sfc_cuda_draw_plan(&call, NULL), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    uint32_t *want = malloc(rows * sizeof *want);
    void *scratch = aligned_alloc(64, (sfc_sample_scratch(rows) + 63) / 64 * 64);
    assert_non_null(want);
    assert_non_null(scratch);
    uint32_t n = sfc_sample_block(17, call.step, 3, rows, ppm, positive, positives, want, scratch);
    assert_int_equal(n, block.count);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(call.rows[i], 5 + want[i]);
    assert_int_equal(call.rows[*call.target], 5 + rows - 1);
    free(want);
    free(scratch);
    const void *all[] = {call.block, call.label,       call.positive, call.rows,
                         call.add,   call.chunk_block, call.target};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cudaFree((void *)(uintptr_t)all[i]);
}

static void test_largest_blocks(void **state)
{
    (void)state;
    enum { ROWS = 1 << 20 };
    static uint32_t positive[ROWS];
    uint32_t n = 0;
    for (uint32_t row = 0; row < ROWS; row++)
        if (draw(3, row) % 50 == 0 || row == ROWS - 1)
            positive[n++] = row;
    check_large(ROWS, 100000, positive, n);
    positive[0] = ROWS - 1;
    check_large(ROWS, 700000, positive, 1);
}

/* More positives than the quota: the block grows beyond its chunks, up to the bound. */
static void test_bound_is_reached(void **state)
{
    (void)state;
    for (uint32_t batch = 1; batch <= 400; batch += 57) {
        struct sfc_head_config config = config_of(1000, 300, 100000, batch);
        struct fixture f;
        open_head(&f, &config, 1);
        const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f.head->parts;
        for (uint32_t i = 0; i < batch; i++)
            f.labels[i] = 300 + i % 300;
        check_plan(&f, 1, plan(&f, 1));
        size_t base = 3 * sfc_hd_chunks(30, 32) + sfc_hd_chunks(10, 32);
        size_t more = sfc_hd_chunks(batch < 300 ? batch : 300, 32);
        assert_int_equal(head->sizes.chunk, 32);
        assert_int_equal(head->chunks, more > 1 ? base - 1 + more : base);
        close_head(&f);
    }
}

/* Neither the device's order nor a plan before it that is still under way changes a plan. */
static void test_same_bits_in_any_order(void **state)
{
    (void)state;
    struct sfc_head_config config = config_of(5000, 1700, 90000, 64);
    uint64_t first = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct fixture f;
        sfc_cuda_host_seed(seed);
        open_head(&f, &config, 1);
        set_labels(&f, 500 + seed, 5000, 4);
        struct sfc_error err;
        must(sfc_head_plan(f.head, 5, f.labels, NULL, &err), &err);
        set_labels(&f, 499, 5000, 4);
        uint64_t sampled = plan(&f, 5);
        check_plan(&f, 5, sampled);
        assert_true(seed == 0 || sampled == first);
        first = sampled;
        close_head(&f);
    }
}

/* Where the host has no access to the device's memory. */
static void test_host_keeps_off_the_device(void **state)
{
    (void)state;
    struct fixture f;
    struct sfc_error err;
    const struct sfc_head_config config = config_of(5000, 1700, 90000, 64);
    sfc_cuda_host_guard(true);
    open_head(&f, &config, 1);
    for (uint64_t step = 1; step <= 3; step++) {
        set_labels(&f, 650 + step, 5000, 4);
        uint64_t sampled = plan(&f, step), total = 0;
        for (uint64_t b = 0; b < f.count; b++) {
            const uint32_t *rows = NULL;
            uint32_t n = 0;
            must(sfc_head_sample(f.head, b, &rows, &n, &err), &err);
            assert_true(n > 0 && rows[n - 1] < sfc_head_block_rows(&config, b));
            total += n;
        }
        assert_int_equal(total, sampled);
    }
    close_head(&f);
    sfc_cuda_host_guard(false);
}

static void test_blocks_ahead_are_left_out(void **state)
{
    (void)state;
    struct sfc_head_config config = config_of(900, 300, 100000, 30);
    struct sfc_error err;
    struct fixture f;
    open_head(&f, &config, 1);
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f.head->parts;
    set_labels(&f, 600, 900, 9);
    must(sfc_head_set_block_step(f.head, 1, 2, &err), &err);
    uint64_t sampled = plan(&f, 2);
    assert_int_equal(sampled, head->blocks[0].count + head->blocks[2].count);
    assert_int_equal(head->blocks[1].count, 0);
    assert_int_equal(head->blocks[1].chunks, 0);
    for (uint32_t i = 0; i < 30; i++)
        check_target(&f, i);
    for (size_t k = 0; k < head->chunks; k++)
        assert_int_not_equal(head->chunk_block[k], 1);
    const uint32_t *rows;
    uint32_t count = 1;
    must(sfc_head_sample(f.head, 1, &rows, &count, &err), &err);
    assert_int_equal(count, 0);
    for (uint64_t b = 0; b < 3; b++)
        must(sfc_head_set_block_step(f.head, b, 9, &err), &err);
    assert_int_equal(plan(&f, 9), 0);
    assert_int_equal(head->chunks + head->tiles, 0);
    check_plan(&f, 10, plan(&f, 10));
    close_head(&f);
}

/* ---- mode dense */

static void open_dense(struct fixture *f, uint64_t steps)
{
    struct sfc_head_config config = config_of(1000, 400, 50000, 20);
    config.momentum_mode = SFC_MOMENTUM_DENSE;
    config.steps = steps;
    open_head(f, &config, 1);
}

/* Last steps 2 .. 2 + spread - 1 everywhere, but for one row. */
static void write_last(struct fixture *f, uint64_t block, uint32_t spread)
{
    float last[400];
    struct sfc_error err;
    uint32_t rows = (uint32_t)sfc_head_block_rows(&f->config, block);
    for (uint32_t i = 0; i < rows; i++)
        last[i] = 2 + (float)(draw(700 + block, i) % spread);
    must(sfc_head_write(f->head, block, SFC_PART_LAST_STEP, 0, rows, last, &err), &err);
}

static void test_missed_steps(void **state)
{
    (void)state;
    struct fixture f;
    struct sfc_error err;
    float rates[20];
    for (uint32_t i = 0; i < 20; i++)
        rates[i] = i % 6 == 5 ? SFC_RATE_SKIPPED : 0.1f + 0.01f * (float)i;
    open_dense(&f, 30);
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)f.head->parts;
    must(sfc_head_write_rates(f.head, 0, 20, rates, &err), &err);
    for (uint64_t b = 0; b < 3; b++)
        write_last(&f, b, 17);
    set_labels(&f, 710, 1000, 9);
    check_plan(&f, 21, plan(&f, 21));
    struct sfc_lag want[31];
    uint32_t oldest = 20, newest = 0;
    for (size_t p = 0; p < head->chunks * head->sizes.chunk; p++)
        if (head->rows[p] != SFC_CUDA_PADDING) {
            uint32_t step = head->last[head->rows[p]];
            oldest = step < oldest ? step : oldest;
            newest = step > newest ? step : newest;
        }
    assert_true(oldest >= 2 && newest <= 18 && oldest < newest);
    sfc_lag_table(rates, 0.9, 1e-4, oldest, 20, want);
    assert_memory_equal(head->lag + oldest, want + oldest, (21 - oldest) * sizeof *want);
    close_head(&f);
}

static void test_rows_ahead_of_the_run(void **state)
{
    (void)state;
    struct fixture f;
    struct sfc_error err;
    const float rates[4] = {0.1f, 0.1f, 0.1f, 0.1f};
    open_dense(&f, 30);
    must(sfc_head_write_rates(f.head, 0, 4, rates, &err), &err);
    write_last(&f, 1, 20);
    set_labels(&f, 720, 1000, 9);
    assert_int_equal(sfc_head_plan(f.head, 5, f.labels, NULL, &err), SFC_ESTATE);
    assert_non_null(strstr(err.text, "block 1 has rows of step"));
    must(sfc_head_set_block_step(f.head, 1, 5, &err), &err); /* left out, it is in nobody's way */
    plan(&f, 5);
    close_head(&f);
}

/* ---- failures */

/* Every call of CUDA that a plan makes, failing in turn: an error that says what, and afterwards
 * the same plan as ever. */
static void test_failing_calls(void **state)
{
    (void)state;
    struct fixture f;
    struct sfc_error err;
    bool failed = true;
    for (uint64_t n = 1; failed; n++) {
        open_dense(&f, 30);
        set_labels(&f, 730, 1000, 9);
        sfc_cuda_host_fail(n, false);
        int rc = sfc_head_plan(f.head, 1, f.labels, NULL, &err);
        failed = sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        assert_int_equal(rc != SFC_OK, failed);
        assert_true(!failed || strstr(err.text, "cuda:0"));
        check_plan(&f, 1, plan(&f, 1));
        close_head(&f);
        assert_true(n < 30 && (failed || n > 5));
    }
}

/* Samples have no way to report an error: they are empty, and the next plan says why. */
static void test_failing_sample(void **state)
{
    (void)state;
    struct fixture f;
    struct sfc_error err;
    struct sfc_head_config config = config_of(900, 300, 100000, 30);
    const uint32_t *rows;
    uint32_t count = 1;
    open_head(&f, &config, 1);
    set_labels(&f, 740, 900, 9);
    plan(&f, 1);
    sfc_cuda_host_fail(1, true);
    must(sfc_head_sample(f.head, 0, &rows, &count, &err), &err);
    sfc_cuda_host_fail(0, false);
    assert_int_equal(count, 0);
    assert_int_equal(sfc_head_plan(f.head, 2, f.labels, NULL, &err), SFC_EDEVICE);
    check_plan(&f, 2, plan(&f, 2));
    close_head(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_shapes),
        cmocka_unit_test(test_largest_blocks),
        cmocka_unit_test(test_bound_is_reached),
        cmocka_unit_test(test_same_bits_in_any_order),
        cmocka_unit_test(test_host_keeps_off_the_device),
        cmocka_unit_test(test_blocks_ahead_are_left_out),
        cmocka_unit_test(test_missed_steps),
        cmocka_unit_test(test_rows_ahead_of_the_run),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_failing_sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

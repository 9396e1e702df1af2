/* State on emulated devices (tests/lib/cuda_host): class centres and backbone blocks have the CPU
 * backend's bits when they are made, copied in any pieces and rounded; what is in the padding; and
 * every call of CUDA that fails. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend_impl.h"
#include "kernels/cuda/head.h"
#include "kernels/dense_internal.h"
#include "kernels/head_internal.h"
#include "kernels/rng/philox.h"
#include "tests/lib/cuda_host/cuda_host.h"

enum { CPU, CUDA, BACKENDS };

static struct sfc_backend *backend[BACKENDS];

static int open_backends(void **state)
{
    (void)state;
    assert_int_equal(sfc_backend_open("cpu", 1, &backend[CPU], NULL), SFC_OK);
    assert_int_equal(sfc_backend_open("cuda", 1, &backend[CUDA], NULL), SFC_OK);
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    sfc_backend_close(backend[CPU]);
    sfc_backend_close(backend[CUDA]);
    struct sfc_cuda_host_use use = sfc_cuda_host_use();
    assert_int_equal(use.allocations + use.streams + use.events + use.handles, 0);
    return 0;
}

static uint64_t word(uint64_t a, uint64_t b)
{
    struct sfc_philox p = sfc_random(11, SFC_STREAM_SYNTHETIC, a, b);
    return (uint64_t)p.v[0] << 32 | p.v[1];
}

/* Numbers of many sizes, exact zeros and halves of bf16's last place among them. */
static void numbers(uint64_t seed, size_t n, bool positive, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t w = word(seed, i);
        float v = ldexpf((float)(w % 1024) / 512, (int)(w >> 40) % 20 - 10);
        out[i] = positive || w >> 63 ? v : -v;
    }
}

/* ---- class centres */

static const struct {
    enum sfc_dtype dtype, gemm;
    enum sfc_cuda_format format;
} formats[] = {{SFC_DTYPE_F32, SFC_DTYPE_F32, SFC_CUDA_F32},
               {SFC_DTYPE_BF16, SFC_DTYPE_BF16, SFC_CUDA_BF16},
               {SFC_DTYPE_F32, SFC_DTYPE_BF16, SFC_CUDA_SPLIT}};

enum { SAMPLED, DENSE, ADAMW, MODES, FORMATS = sizeof formats / sizeof *formats };

struct heads {
    struct sfc_head_config config;
    struct sfc_head *head[BACKENDS];
    const uint64_t *blocks;
    size_t count;
};

static const uint64_t some_blocks[] = {0, 2, 3, 6};

static struct sfc_head_config head_config(uint64_t classes, uint32_t block_size, uint32_t dim,
                                          int format, int mode)
{
    return (struct sfc_head_config){
        .seed = 0x1234567890abcdef,
        .classes = classes,
        .dim = dim,
        .block_size = block_size,
        .sample_ppm = 100000,
        .batch = 4,
        .micro_batch = 2,
        .slots = 2,
        .margin_m1 = 1,
        .scale = 32,
        .optimizer = mode == ADAMW ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD,
        .momentum_mode = mode == DENSE ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.99,
        .epsilon = 1e-8,
        .weight_decay = 1e-3,
        .init_std = 0.01,
        .dtype = formats[format].dtype,
        .gemm = formats[format].gemm,
        .steps = 20,
    };
}

static void open_heads(struct heads *h, struct sfc_head_config config, const uint64_t *blocks,
                       size_t count)
{
    *h = (struct heads){.config = config, .blocks = blocks, .count = count};
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_head_new(backend[b], &config, blocks, count, &h->head[b], NULL),
                         SFC_OK);
    assert_int_equal(((struct sfc_cuda_head *)h->head[CUDA]->parts)->format,
                     config.dtype == SFC_DTYPE_BF16  ? SFC_CUDA_BF16
                     : config.gemm == SFC_DTYPE_BF16 ? SFC_CUDA_SPLIT
                                                     : SFC_CUDA_F32);
}

static void close_heads(struct heads *h)
{
    for (int b = 0; b < BACKENDS; b++)
        sfc_head_free(h->head[b]);
}

static bool has_part(const struct heads *h, enum sfc_block_part part)
{
    return sfc_has_part(h->config.optimizer, h->config.momentum_mode == SFC_MOMENTUM_DENSE, part);
}

static size_t part_size(const struct heads *h, size_t index, enum sfc_block_part part)
{
    size_t rows = (size_t)sfc_head_block_rows(&h->config, h->blocks[index]);
    return part == SFC_PART_LAST_STEP ? rows : rows * h->config.dim;
}

static void compare_range(const struct heads *h, size_t index, enum sfc_block_part part,
                          uint64_t offset, uint64_t count)
{
    float *a = calloc(count + 2, sizeof *a), *b = calloc(count + 2, sizeof *b);
    a[count] = b[count] = 42;
    assert_int_equal(sfc_head_read(h->head[CPU], h->blocks[index], part, offset, count, a, NULL),
                     SFC_OK);
    assert_int_equal(sfc_head_read(h->head[CUDA], h->blocks[index], part, offset, count, b, NULL),
                     SFC_OK);
    assert_memory_equal(a, b, (count + 2) * sizeof *a);
    free(a);
    free(b);
}

static void compare_heads(const struct heads *h)
{
    for (size_t i = 0; i < h->count; i++)
        for (enum sfc_block_part part = 0; part <= SFC_PART_SECOND_MOMENT; part++)
            if (has_part(h, part))
                compare_range(h, i, part, 0, part_size(h, i, part));
}

static void write_range(struct heads *h, size_t index, enum sfc_block_part part, uint64_t offset,
                        uint64_t count, uint64_t seed)
{
    float *v = calloc(count + 1, sizeof *v);
    numbers(seed, count, part == SFC_PART_SECOND_MOMENT, v);
    for (uint64_t i = 0; part == SFC_PART_LAST_STEP && i < count; i++)
        v[i] = (float)(word(seed, i) % 5);
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_head_write(h->head[b], h->blocks[index], part, offset, count, v, NULL),
                         SFC_OK);
    free(v);
}

/* Columns beyond dim are zeros: read behind the backend's back, the emulator's device being this
 * process. */
static void check_padding(const struct heads *h)
{
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)h->head[CUDA]->parts;
    size_t pitch = head->sizes.pitch, dim = h->config.dim;
    size_t width = head->format == SFC_CUDA_BF16 ? sizeof(uint16_t) : sizeof(float);
    static const char zeros[16 * sizeof(float)];
    for (size_t i = 0; i < head->block_count; i++)
        for (size_t at = 0; at < head->blocks[i].rows * head->sizes.tensors; at++) {
            size_t row = at / head->sizes.tensors, t = at % head->sizes.tensors;
            const char *record = head->blocks[i].records + row * head->sizes.record;
            const char *tensor = record + t * pitch * width;
            if (head->format == SFC_CUDA_SPLIT && t == 0) {
                assert_memory_equal(tensor + 2 * dim, zeros, 2 * (pitch - dim));
                assert_memory_equal(tensor + 2 * (pitch + dim), zeros, 2 * (pitch - dim));
            } else {
                assert_memory_equal(tensor + width * dim, zeros, width * (pitch - dim));
            }
        }
}

static const uint32_t dims[] = {1, 7, 16, 30, 64, 130, 512};
enum { DIMS = sizeof dims / sizeof *dims, CLASSES = 77, BLOCK = 12 };

static void test_first_values_have_the_cpus_bits(void **state)
{
    (void)state;
    for (int format = 0; format < FORMATS; format++)
        for (int mode = 0; mode < MODES; mode++)
            for (size_t d = 0; d < DIMS; d++) {
                struct heads h;
                open_heads(&h, head_config(CLASSES, BLOCK, dims[d], format, mode), some_blocks, 4);
                compare_heads(&h);
                check_padding(&h);
                close_heads(&h);
            }
}

/* Nothing is lost between blocks: 2 KB for a class of 512 columns in bf16, and four bytes. */
static void test_ten_million_classes_take_two_kilobytes_each(void **state)
{
    (void)state;
    struct sfc_head_config c = head_config(10000000, 8192, 512, 1, DENSE);
    size_t count = (size_t)sfc_head_block_count(&c);
    uint64_t *blocks = calloc(count, sizeof *blocks);
    struct sfc_memory m;
    struct sfc_error err;
    c.batch = c.micro_batch = 1024;
    c.slots = 1;
    for (size_t i = 0; i < count; i++)
        blocks[i] = i;
    assert_int_equal(sfc_head_memory(backend[CUDA], &c, blocks, count, &m, &err), SFC_OK);
    double each = (double)m.state_bytes / (double)c.classes;
    double all = (double)(m.state_bytes + m.step_bytes + m.scratch_bytes);
    print_message("%.1f bytes of state each, %.2f GB in all\n", each, 1e-9 * all);
    assert_true(each >= 2048 && each < 2049);
    assert_true(all < 24e9);
    free(blocks);
}

static void any_ranges(int format, int mode, uint32_t dim)
{
    struct heads h;
    open_heads(&h, head_config(CLASSES, BLOCK, dim, format, mode), some_blocks, 4);
    for (uint64_t i = 0; i < 24; i++) {
        size_t index = word(i, 1) % 4;
        enum sfc_block_part part = (enum sfc_block_part)(word(i, 2) % 4);
        if (!has_part(&h, part))
            continue;
        size_t size = part_size(&h, index, part);
        uint64_t offset = word(i, 3) % (size + 1), count = word(i, 4) % (size - offset + 1);
        write_range(&h, index, part, offset, count, i);
        compare_range(&h, index, part, offset, count);
        compare_range(&h, index, part, offset / 2, size - offset / 2);
    }
    compare_heads(&h); /* and no other number has changed */
    check_padding(&h);
    close_heads(&h);
}

static void test_any_range_is_read_and_written(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 2; seed++) {
        sfc_cuda_host_seed(seed);
        for (int format = 0; format < FORMATS; format++)
            for (int mode = 0; mode < MODES; mode++)
                for (size_t d = 0; d < DIMS; d++)
                    any_ranges(format, mode, dims[d]);
    }
    sfc_cuda_host_seed(1);
}

/* Ranges that take five pieces, the last one short. */
static void test_long_ranges_go_in_pieces(void **state)
{
    (void)state;
    enum { DIM = 99, ROWS = 13000 };
    static const uint64_t block[] = {0};
    struct heads h;
    open_heads(&h, head_config(ROWS, ROWS, DIM, 1, SAMPLED), block, 1);
    write_range(&h, 0, SFC_PART_VALUES, 12345, (uint64_t)ROWS * DIM - 12345 - 678, 1);
    compare_range(&h, 0, SFC_PART_VALUES, 77, (uint64_t)ROWS * DIM - 77);
    write_range(&h, 0, SFC_PART_MOMENTUM, 0, (uint64_t)2 << 18, 2); /* two whole pieces */
    compare_range(&h, 0, SFC_PART_MOMENTUM, 1, (uint64_t)2 << 18);
    close_heads(&h);
}

static void write_all(struct heads *h, uint64_t seed)
{
    for (size_t i = 0; i < h->count; i++)
        for (enum sfc_block_part part = 0; part <= SFC_PART_SECOND_MOMENT; part++)
            if (has_part(h, part))
                write_range(h, i, part, 0, part_size(h, i, part), seed + i * 4 + part);
}

static void plan_next(struct heads *h, uint64_t step)
{
    const uint64_t labels[] = {SFC_LABEL_NONE, SFC_LABEL_NONE, SFC_LABEL_NONE, SFC_LABEL_NONE};
    float rates[20];
    for (int i = 0; i < 20; i++)
        rates[i] = i % 4 == 3 ? -1.0f : 0.1f; /* some were skipped */
    for (int b = 0; b < BACKENDS; b++) {
        if (h->config.momentum_mode == SFC_MOMENTUM_DENSE)
            assert_int_equal(sfc_head_write_rates(h->head[b], 0, step - 1, rates, NULL), SFC_OK);
        assert_int_equal(sfc_head_plan(h->head[b], step, labels, NULL, NULL), SFC_OK);
    }
}

static void assert_close(double a, double b)
{
    assert_true(fabs(a - b) <= 1e-6 * fabs(a)); /* the CPU fuses */
}

static void compare_extents(int format, int mode, uint32_t dim)
{
    struct heads h;
    struct sfc_extent a[4], b[4];
    for (int i = 0; i < 4; i++)
        a[i] = b[i] = (struct sfc_extent){INFINITY, INFINITY, INFINITY};
    open_heads(&h, head_config(CLASSES, BLOCK, dim, format, mode), some_blocks, 4);
    write_all(&h, dim);
    plan_next(&h, 6);
    backend[CPU]->ops->head_extents(h.head[CPU]->parts, a);
    backend[CUDA]->ops->head_extents(h.head[CUDA]->parts, b);
    for (int i = 0; i < 4; i++) {
        assert_true(a[i].w > 0 && a[i].m > 0 && (a[i].ratio > 0) == (mode == ADAMW));
        assert_close(a[i].w, b[i].w);
        assert_close(a[i].m, b[i].m);
        assert_close(a[i].ratio, b[i].ratio);
    }
    close_heads(&h);
}

static void test_extents_are_those_of_caught_up_rows(void **state)
{
    (void)state;
    for (int format = 0; format < FORMATS; format++)
        for (int mode = 0; mode < MODES; mode++)
            for (size_t d = 0; d < DIMS; d++)
                compare_extents(format, mode, dims[d]);
}

/* ---- class centres, and a device that fails */

enum { MAX_CALLS = 200 };

static void test_every_failed_copy_is_reported(void **state)
{
    (void)state;
    for (int onwards = 0; onwards < 2; onwards++) {
        bool done = false;
        for (uint64_t n = 1; !done; n++) {
            struct heads h;
            float v[BLOCK * 30];
            struct sfc_error err = {0};
            assert_in_range(n, 1, MAX_CALLS);
            open_heads(&h, head_config(CLASSES, BLOCK, 30, 0, SAMPLED), some_blocks, 4);
            numbers(n, BLOCK * 30, false, v);
            sfc_cuda_host_fail(n, onwards);
            int rc = n % 2
                         ? sfc_head_read(h.head[CUDA], 2, SFC_PART_VALUES, 0, BLOCK * 30, v, &err)
                         : sfc_head_write(h.head[CUDA], 2, SFC_PART_VALUES, 0, BLOCK * 30, v, &err);
            done = !sfc_cuda_host_failed();
            sfc_cuda_host_fail(0, false);
            assert_int_equal(rc == SFC_OK, done);
            assert_true(done || strstr(err.text, "cuda:0"));
            write_range(&h, 1, SFC_PART_VALUES, 0, BLOCK * 30, n); /* goes on */
            compare_range(&h, 1, SFC_PART_VALUES, 0, BLOCK * 30);
            close_heads(&h);
        }
    }
}

static bool extents_are_infinite(const struct sfc_extent *e, int n)
{
    int infinite = 0;
    for (int i = 0; i < n; i++)
        infinite += isinf(e[i].w) && isinf(e[i].m) && isinf(e[i].ratio);
    assert_true(infinite == 0 || infinite == n);
    return infinite == n;
}

/* They fit nowhere then, and the next call says why. */
static void test_failed_extents_are_infinite_and_reported_later(void **state)
{
    (void)state;
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        struct heads h;
        struct sfc_extent e[4];
        double norms[4];
        float v;
        struct sfc_error err = {0};
        assert_in_range(n, 1, MAX_CALLS);
        open_heads(&h, head_config(CLASSES, BLOCK, 30, 0, DENSE), some_blocks, 4);
        plan_next(&h, 6);
        sfc_cuda_host_fail(n, false);
        backend[CUDA]->ops->head_extents(h.head[CUDA]->parts, e);
        done = !sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        assert_int_equal(extents_are_infinite(e, 4), !done);
        int rc = sfc_head_read(h.head[CUDA], 0, SFC_PART_VALUES, 0, 1, &v, &err);
        assert_int_equal(rc == SFC_OK, done);
        sfc_cuda_host_fail(1, false);
        backend[CUDA]->ops->head_inverse_norms(h.head[CUDA]->parts, norms);
        sfc_cuda_host_fail(0, false);
        assert_true(isinf(norms[0]) && isinf(norms[3]));
        assert_int_not_equal(sfc_head_read(h.head[CUDA], 0, SFC_PART_VALUES, 0, 1, &v, &err),
                             SFC_OK);
        assert_int_equal(sfc_head_read(h.head[CUDA], 0, SFC_PART_VALUES, 0, 1, &v, &err), SFC_OK);
        close_heads(&h);
    }
}

/* ---- backbone blocks: longer than a piece, so that many tiles and pieces take part */

enum { MICRO = 3, SLOTS = 4 };

struct denses {
    struct sfc_dense *dense[BACKENDS];
    uint64_t length;
    float *a, *b;
};

static void open_denses(struct denses *d, uint64_t size, enum sfc_optimizer optimizer,
                        enum sfc_dtype sum_dtype)
{
    const struct sfc_dense_segment segments[] = {
        {0, size / 2, SFC_DENSE_WEIGHT, 0, 0.05},
        {size / 2, 37, SFC_DENSE_WEIGHT_NO_DECAY, 1, 0},
        {size / 2 + 37, 5001, SFC_DENSE_STATISTIC, 1, 0.5},
        {size / 2 + 5038, size - size / 2 - 5038, SFC_DENSE_WEIGHT, 0.25, 0.1},
    };
    const struct sfc_dense_config config = {
        .seed = 77,
        .size = size,
        .block_size = 100003,
        .slots = SLOTS,
        .micro_batches = MICRO,
        .segments = segments,
        .segment_count = 4,
        .optimizer = optimizer,
        .momentum = 0.9,
        .beta1 = 0.9,
        .beta2 = 0.99,
        .epsilon = 1e-8,
        .weight_decay = 0.01,
        .statistic_momentum = 0.1,
        .sum_dtype = sum_dtype,
    };
    uint64_t blocks[64];
    size_t count = 0;
    for (uint64_t block = 1; block < sfc_dense_block_count(&config); block++) /* not the first */
        blocks[count++] = block;
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_dense_new(backend[b], &config, blocks, count, &d->dense[b], NULL),
                         SFC_OK);
    d->length = sfc_dense_length(d->dense[CUDA]);
    d->a = calloc(d->length + 2, sizeof *d->a);
    d->b = calloc(d->length + 2, sizeof *d->b);
}

static void close_denses(struct denses *d)
{
    for (int b = 0; b < BACKENDS; b++)
        sfc_dense_free(d->dense[b]);
    free(d->a);
    free(d->b);
}

static void compare_values(struct denses *d)
{
    assert_int_equal(sfc_dense_pull(d->dense[CPU], d->a, NULL), SFC_OK);
    assert_int_equal(sfc_dense_pull(d->dense[CUDA], d->b, NULL), SFC_OK);
    assert_memory_equal(d->a, d->b, d->length * sizeof *d->a);
}

static void push_all(struct denses *d, uint64_t seed)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        numbers(seed + slot, d->length, false, d->a);
        for (int b = 0; b < BACKENDS; b++)
            assert_int_equal(sfc_dense_push(d->dense[b], slot, d->a, NULL), SFC_OK);
    }
}

static void prepare_both(struct denses *d, uint64_t step)
{
    static const uint32_t slots[MICRO] = {2, 0, 3};
    struct sfc_dense_sum sums[BACKENDS][64];
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_dense_prepare(d->dense[b], step, 0.1, slots, sums[b], NULL), SFC_OK);
    for (size_t i = 0; i < d->dense[CUDA]->count; i++) {
        double a = sums[CPU][i].sum_of_squares, b = sums[CUDA][i].sum_of_squares;
        assert_int_equal(sums[CPU][i].block, sums[CUDA][i].block);
        assert_true(sums[CUDA][i].finite && fabs(a - b) <= 1e-12 * a);
    }
    memset(d->a, 0xff, d->length * sizeof *d->a);
    assert_int_equal(sfc_dense_sums(d->dense[CPU], d->a, NULL), SFC_OK);
    assert_int_equal(sfc_dense_sums(d->dense[CUDA], d->b, NULL), SFC_OK);
    assert_memory_equal(d->a, d->b, sfc_dense_packed_bytes(&d->dense[CPU]->packing));
}

static void long_vectors(enum sfc_optimizer optimizer, enum sfc_dtype sum_dtype)
{
    struct denses d;
    open_denses(&d, 750000, optimizer, sum_dtype); /* three pieces */
    compare_values(&d);
    push_all(&d, 5);
    prepare_both(&d, 1);
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_dense_commit(d.dense[b], 0.5, 0.1, NULL), SFC_OK);
    compare_values(&d);
    numbers(9, d.length, false, d.a);
    memcpy(d.b, d.a, d.length * sizeof *d.a); /* as sums they are as good as any */
    for (int b = 0; b < BACKENDS; b++)
        assert_int_equal(sfc_dense_load(d.dense[b], 2, d.a, NULL), SFC_OK);
    memset(d.b, 0xff, d.length * sizeof *d.b);
    assert_int_equal(sfc_dense_sums(d.dense[CPU], d.a, NULL), SFC_OK);
    assert_int_equal(sfc_dense_sums(d.dense[CUDA], d.b, NULL), SFC_OK);
    assert_memory_equal(d.a, d.b, sfc_dense_packed_bytes(&d.dense[CPU]->packing));
    close_denses(&d);
}

static void test_long_vectors_go_in_pieces(void **state)
{
    (void)state;
    long_vectors(SFC_OPTIMIZER_SGD, SFC_DTYPE_BF16);
    long_vectors(SFC_OPTIMIZER_ADAMW, SFC_DTYPE_F32);
}

/* ---- backbone blocks, and a device that fails */

enum { SMALL = 30000, OPERATIONS = 8 };

static int operation(struct denses *d, int which, struct sfc_error *err)
{
    static const uint32_t slots[MICRO] = {2, 0, 3};
    struct sfc_dense_sum sums[64];
    struct sfc_dense *dense = d->dense[CUDA];
    switch (which) {
    case 0:
        return sfc_dense_pull(dense, d->b, err);
    case 1:
        return sfc_dense_push(dense, 1, d->a, err);
    case 2:
        return sfc_dense_read(dense, 1, SFC_PART_MOMENTUM, 0, 10, d->b, err);
    case 3:
        return sfc_dense_write(dense, 1, SFC_PART_VALUES, 0, 10, d->a, err);
    case 4:
        return sfc_dense_prepare(dense, 1, 0.1, slots, sums, err);
    case 5:
        return sfc_dense_sums(dense, d->b, err);
    case 6:
        return sfc_dense_load(dense, 1, d->a, err);
    default:
        return sfc_dense_commit(dense, 1, 0.1, err);
    }
}

static void fail_operation(int which)
{
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        struct denses d;
        struct sfc_error err = {0};
        assert_in_range(n, 1, MAX_CALLS);
        open_denses(&d, 200006, SFC_OPTIMIZER_SGD, SFC_DTYPE_F32);
        push_all(&d, n);
        assert_int_equal(operation(&d, 4, &err), SFC_OK);
        sfc_cuda_host_fail(n, n % 3 == 0);
        int rc = operation(&d, which, &err);
        done = !sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        assert_int_equal(rc == SFC_OK, done);
        assert_true(done || strstr(err.text, "cuda:0"));
        if (which < 6) { /* nothing of the state is lost */
            push_all(&d, n);
            prepare_both(&d, 1);
        }
        close_denses(&d);
    }
}

static void test_every_failed_operation_is_reported(void **state)
{
    (void)state;
    for (int which = 0; which < OPERATIONS; which++)
        fail_operation(which);
}

static void test_failed_dense_extents_are_infinite_and_reported_later(void **state)
{
    (void)state;
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        struct denses d;
        struct sfc_extent e[BACKENDS][8];
        assert_in_range(n, 1, MAX_CALLS);
        open_denses(&d, 200006, SFC_OPTIMIZER_ADAMW, SFC_DTYPE_F32);
        int count = (int)d.dense[CUDA]->count;
        backend[CPU]->ops->dense_extents(d.dense[CPU]->parts, e[CPU]);
        sfc_cuda_host_fail(n, false);
        backend[CUDA]->ops->dense_extents(d.dense[CUDA]->parts, e[CUDA]);
        done = !sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        assert_int_equal(extents_are_infinite(e[CUDA], count), !done);
        for (int i = 0; done && i < count; i++)
            assert_true(e[CPU][i].w == e[CUDA][i].w && e[CUDA][i].w > 0);
        assert_int_equal(sfc_dense_pull(d.dense[CUDA], d.b, NULL) == SFC_OK, done);
        assert_int_equal(sfc_dense_pull(d.dense[CUDA], d.b, NULL), SFC_OK);
        close_denses(&d);
    }
}

static void test_a_failed_new_leaves_nothing(void **state)
{
    (void)state;
    const struct sfc_dense_segment segment = {0, 100, SFC_DENSE_WEIGHT, 0, 1};
    const struct sfc_dense_config config = {.seed = 1,
                                            .size = 100,
                                            .block_size = 50,
                                            .slots = 1,
                                            .micro_batches = 1,
                                            .segments = &segment,
                                            .segment_count = 1};
    const uint64_t blocks[] = {0, 1};
    struct sfc_cuda_host_use before = sfc_cuda_host_use();
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        struct sfc_dense *dense = NULL;
        struct sfc_error err = {0};
        assert_in_range(n, 1, MAX_CALLS);
        sfc_cuda_host_fail(n, n % 2 == 0);
        int rc = sfc_dense_new(backend[CUDA], &config, blocks, 2, &dense, &err);
        done = !sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        assert_int_equal(rc == SFC_OK, done);
        if (done)
            sfc_dense_free(dense);
        struct sfc_cuda_host_use after = sfc_cuda_host_use();
        assert_int_equal(after.allocations, before.allocations);
        assert_int_equal(after.events, before.events);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_values_have_the_cpus_bits),
        cmocka_unit_test(test_ten_million_classes_take_two_kilobytes_each),
        cmocka_unit_test(test_any_range_is_read_and_written),
        cmocka_unit_test(test_long_ranges_go_in_pieces),
        cmocka_unit_test(test_extents_are_those_of_caught_up_rows),
        cmocka_unit_test(test_every_failed_copy_is_reported),
        cmocka_unit_test(test_failed_extents_are_infinite_and_reported_later),
        cmocka_unit_test(test_long_vectors_go_in_pieces),
        cmocka_unit_test(test_every_failed_operation_is_reported),
        cmocka_unit_test(test_failed_dense_extents_are_infinite_and_reported_later),
        cmocka_unit_test(test_a_failed_new_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, open_backends, close_backends);
}

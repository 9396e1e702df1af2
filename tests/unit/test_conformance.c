/* One suite for every backend: each is compared with the double-precision reference (tolerances per
 * result), and each must keep its own bits over placement, threads, grouping and arrival (I8). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/products.h"
#include "kernels/exact_sum.h"
#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

static const char *const backends[] = {"reference", TESTED};
#define BACKENDS (sizeof backends / sizeof *backends)

struct shape {
    uint64_t classes;
    uint32_t dim, block_size, batch, micro_batch, ppm;
    enum rig_labels labels;
};

static const struct shape shapes[] = {
    {3, 1, 1, 1, 1, 1000000, RIG_UNIFORM},
    {2, 3, 1, 2, 1, 1, RIG_UNIFORM},
    {100, 16, 32, 8, 4, 100000, RIG_UNIFORM},   /* a short last block */
    {257, 37, 64, 12, 3, 100000, RIG_UNIFORM},  /* odd dim, last block of one class */
    {200, 20, 64, 1, 1, 100000, RIG_UNIFORM},   /* batch 1 */
    {300, 33, 64, 40, 5, 50000, RIG_ONE_BLOCK}, /* more positives than quota */
    {150, 24, 50, 16, 8, 200000, RIG_DUPLICATES},
    {150, 24, 50, 16, 2, 200000, RIG_WITH_NONE},
    {128, 64, 64, 32, 16, 1000000, RIG_UNIFORM}, /* every class */
    {1500, 48, 1024, 24, 6, 300000, RIG_UNIFORM},
    {2500, 512, 1024, 32, 16, 125000, RIG_UNIFORM}, /* sizes as in earnest */
    {600, 260, 256, 48, 24, 250000, RIG_UNIFORM},
};

struct loss_kind {
    double m1, m2, m3, scale;
    enum sfc_margin_grad grad;
    bool has_filter;
    double filter;
    enum sfc_correction correction;
};

static const struct loss_kind kinds[] = {
    {1, 0, 0.4, 64, SFC_MARGIN_GRAD_EXACT, false, 0, SFC_CORRECTION_NONE}, /* CosFace */
    {1, 0.5, 0, 64, SFC_MARGIN_GRAD_EXACT, false, 0, SFC_CORRECTION_NONE}, /* ArcFace */
    {1, 0.5, 0, 64, SFC_MARGIN_GRAD_IDENTITY, false, 0, SFC_CORRECTION_NONE},
    {2, 0.3, 0.2, 30, SFC_MARGIN_GRAD_EXACT, false, 0, SFC_CORRECTION_NONE}, /* combined */
    {1, 0, 0, 1, SFC_MARGIN_GRAD_EXACT, false, 0, SFC_CORRECTION_NONE},
    {1, 0, 0.4, 64, SFC_MARGIN_GRAD_EXACT, true, 0.1, SFC_CORRECTION_NONE},
    {1, 0, 0.4, 64, SFC_MARGIN_GRAD_EXACT, false, 0, SFC_CORRECTION_LOGQ},
    {1, 0.5, 0, 100, SFC_MARGIN_GRAD_EXACT, true, 0.2, SFC_CORRECTION_LOGQ}, /* shifted sums */
};

static struct sfc_head_config config_of(const struct shape *s, const struct loss_kind *k)
{
    struct sfc_head_config c =
        rig_config(s->classes, s->dim, s->block_size, s->batch, s->micro_batch);
    c.sample_ppm = s->ppm;
    c.margin_m1 = k->m1;
    c.margin_m2 = k->m2;
    c.margin_m3 = k->m3;
    c.scale = k->scale;
    /* with one dimension every cosine is 1 or -1, on a pole of f' */
    c.margin_grad = s->dim == 1 ? SFC_MARGIN_GRAD_IDENTITY : k->grad;
    c.has_filter = k->has_filter;
    c.filter = k->filter;
    c.correction = k->correction;
    return c;
}

/* ---- against the reference */

/* How far a row may be from the reference: log-sum-exp and target over the scale, dx over its
 * length plus a part of the largest that it could be (scale / batch). */
struct distance {
    double lse, target, dx, dx_least;
};

/* Cosines are good to a few units in 2^-24; the margin can stretch that near its poles. */
static const struct distance close = {2e-6, 5e-6, 1e-4, 1e-6};

/* The reference rounds what the formats round. But where f32 and double lie on two sides of the
 * middle, one of them goes up and the other down: a rare row is then further away, by a bf16 of W
 * or a unit of a cosine, and a rare element of the state by a bf16. */
struct format {
    enum sfc_dtype dtype, gemm;
    struct distance rare;
    double momentum, w; /* of the vectors, over their length */
};

static const struct format formats[] = {
    {SFC_DTYPE_F32, SFC_DTYPE_F32, {2e-6, 5e-6, 1e-4, 1e-6}, 1e-4, 1e-4},
    {SFC_DTYPE_F32, SFC_DTYPE_BF16, {1e-4, 1e-4, 5e-3, 1e-6}, 2e-4, 1e-4},
    {SFC_DTYPE_BF16, SFC_DTYPE_BF16, {1e-4, 1e-4, 5e-3, 1e-6}, 5e-4, 2e-4},
    {SFC_DTYPE_BF16, SFC_DTYPE_F32, {2e-6, 5e-6, 1e-4, 1e-6}, 5e-4, 2e-4},
};
#define FORMATS (sizeof formats / sizeof *formats)

/* Products of bf16 on a device, or on a CPU that has them. */
static bool multiplies_natively(const char *backend, const struct format *f)
{
    bool cpu = !strcmp(backend, "cpu") &&
               sfc_cpu_products_of(sfc_cpu_features()) == SFC_CPU_PRODUCTS_NATIVE;
    return (cpu || !strncmp(backend, "cuda", 4)) && f->gemm == SFC_DTYPE_BF16;
}

/* Native products read p / |w| in bf16, which neither the f32 arithmetic nor the reference does. */
static const struct distance native_close = {2e-6, 5e-6, 6e-3, 2e-3};
static const struct distance native_rare = {1e-4, 1e-4, 1e-2, 2e-3};

struct way {
    const char *backend;
    const struct format *format;
    struct distance usual, rare;
    uint64_t rows, rare_rows; /* compared; of them beyond the usual */
};

static struct way way_of(const char *backend, const struct format *f)
{
    bool native = !strcmp(backend, RIG_CPU_NATIVE) || multiplies_natively(backend, f);
    return (struct way){backend, f, native ? native_close : close, native ? native_rare : f->rare,
                        0,       0};
}

/* |a - b| over |b|, as vectors. */
static double vector_distance(const double *a, const double *b, size_t n, double *norm)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += (a[i] - b[i]) * (a[i] - b[i]);
        s += b[i] * b[i];
    }
    *norm = sqrt(s);
    return sqrt(d);
}

static void compare_floats(const char *what, const float *a, const float *b, size_t n,
                           double tolerance, double least)
{
    double *wide = malloc(2 * n * sizeof *wide), norm;
    assert_non_null(wide);
    for (size_t i = 0; i < n; i++) {
        wide[i] = a[i];
        wide[n + i] = b[i];
    }
    double d = vector_distance(wide, wide + n, n, &norm);
    free(wide);
    if (!(d <= tolerance * norm + least)) {
        fail_msg("%s differs by %g of %g", what, d, norm);
    }
}

static double cosine(const struct sfc_head_config *c, const float *x, const float *w)
{
    bool rounds = c->gemm == SFC_DTYPE_BF16;
    double xx = 0, ww = 0, xw = 0;
    for (uint32_t k = 0; k < c->dim; k++) {
        xx += (double)x[k] * (double)x[k];
    }
    for (uint32_t k = 0; k < c->dim; k++) {
        double a = (double)x[k] / sqrt(xx), b = w[k];
        a = rounds ? sfc_bf16_nearest((float)a) : a;
        b = rounds ? sfc_bf16_nearest((float)b) : b;
        xw += a * b, ww += b * b;
    }
    return xw / sqrt(ww);
}

/* Negatives closer to the filter than f32 can tell would make the comparison meaningless. */
static bool near_filter(const struct sfc_head_config *c, const float *w, const uint8_t *in,
                        const float *x)
{
    for (uint64_t i = 0; c->has_filter && i < c->classes; i++) {
        for (uint32_t r = 0; in[i] && r < c->batch; r++) {
            double cos = cosine(c, x + (size_t)r * c->dim, w + i * c->dim);
            if (fabs(cos - c->filter) < 1e-5) {
                return true;
            }
        }
    }
    return false;
}

/* length: of the dx of b. */
static struct distance distance_of(const struct sfc_head_config *c, const struct rig_step *a,
                                   const struct rig_step *b, uint32_t r, double *length)
{
    double *x = calloc((size_t)2 * c->dim, sizeof *x);
    assert_non_null(x);
    for (uint32_t k = 0; k < c->dim; k++) {
        x[k] = (double)a->dx[(size_t)r * c->dim + k] * 0x1p-44;
        x[c->dim + k] = (double)b->dx[(size_t)r * c->dim + k] * 0x1p-44;
    }
    struct distance d = {
        .lse = fmax(0, fabs(a->lse[r] - b->lse[r]) - 1e-6) / c->scale,
        .target = fabs((double)a->target[r] - (double)b->target[r]) / c->scale,
    };
    d.dx = vector_distance(x, x + c->dim, c->dim, length);
    free(x);
    return d;
}

static bool within(const struct sfc_head_config *c, struct distance d, double length,
                   struct distance limit)
{
    return d.lse <= limit.lse && d.target <= limit.target &&
           d.dx <= limit.dx * length + limit.dx_least * c->scale / c->batch;
}

static void compare_steps(const struct sfc_head_config *c, struct way *way,
                          const struct rig_step *a, const struct rig_step *b,
                          const uint64_t *labels)
{
    assert_int_equal(a->sampled, b->sampled);
    assert_int_equal(a->zero_features, b->zero_features);
    for (uint32_t r = 0; r < c->batch; r++) {
        if (labels[r] == SFC_LABEL_NONE) {
            for (uint32_t k = 0; k < c->dim; k++) {
                assert_int_equal(a->dx[(size_t)r * c->dim + k], 0);
            }
            continue;
        }
        double length;
        struct distance d = distance_of(c, a, b, r, &length);
        way->rows++;
        way->rare_rows += !within(c, d, length, way->usual);
        if (!within(c, d, length, way->rare)) {
            fail_msg("row %u: lse %.9g and %.9g, target %.9g and %.9g, dx %g of %g away", r,
                     a->lse[r], b->lse[r], (double)a->target[r], (double)b->target[r], d.dx,
                     length);
        }
    }
}

/* As a dense optimiser has them, where the mode is dense. */
static void read_both(struct rig *rig, uint64_t t, float *w, float *m)
{
    if (rig->config.momentum_mode == SFC_MOMENTUM_DENSE) {
        rig_read_now(rig, t, w, m);
    } else {
        rig_read(rig, SFC_PART_VALUES, w);
        rig_read(rig, SFC_PART_MOMENTUM, m);
    }
}

static void write_last(struct rig *rig, uint64_t t)
{
    size_t n = (size_t)rig->config.classes;
    float *last = calloc(n, sizeof *last);
    assert_non_null(last);
    for (size_t i = 0; i < n; i++) {
        last[i] = (float)t;
    }
    if (rig->config.momentum_mode == SFC_MOMENTUM_DENSE) {
        rig_write(rig, SFC_PART_LAST_STEP, last);
    }
    free(last);
}

/* AdamW: compares the second moments and gives both the reference's. */
static void meet_in_second(const struct way *way, struct rig *ref, struct rig *rig, bool comparable)
{
    size_t size = (size_t)rig->config.classes * rig->config.dim;
    float *v = calloc(size, sizeof *v), *v2 = calloc(size, sizeof *v2);
    assert_true(v && v2);
    rig_read(ref, SFC_PART_SECOND_MOMENT, v);
    rig_read(rig, SFC_PART_SECOND_MOMENT, v2);
    if (comparable) {
        compare_floats("second moment", v2, v, size, 2 * way->format->momentum, 1e-9);
    }
    rig_write(ref, SFC_PART_SECOND_MOMENT, v);
    rig_write(rig, SFC_PART_SECOND_MOMENT, v);
    free(v), free(v2);
}

/* Three steps; each backend starts each from the reference's state. */
static void conform(struct way *way, const struct sfc_head_config *c, enum rig_labels kind,
                    uint64_t seed)
{
    struct rig ref, rig;
    struct rig_step a, b;
    size_t size = (size_t)c->classes * c->dim;
    float *w = calloc(size, sizeof *w), *m = calloc(size, sizeof *m);
    float *w2 = calloc(size, sizeof *w2), *m2 = calloc(size, sizeof *m2);
    float *x = calloc((size_t)c->batch * c->dim, sizeof *x), *raw = calloc(size, sizeof *raw);
    uint64_t *labels = calloc(c->batch, sizeof *labels);
    uint8_t *in = calloc(c->classes, 1), *in2 = calloc(c->classes, 1);
    assert_true(w && m && w2 && m2 && x && raw && labels && in && in2);
    rig_open(&ref, (struct rig_setup){"reference", 1, 1, 1, false}, c);
    rig_open(&rig, (struct rig_setup){way->backend, 2, 1, 2, false}, c);
    rig_step_init(&a, c);
    rig_step_init(&b, c);
    /* what rounding leaves of gradients of scale / |w| that cancel, as all do with one dimension */
    double least = (c->dim == 1 ? 1e-5 : 1e-6) * c->scale / c->init_std;
    rig_read(&ref, SFC_PART_VALUES, w);
    rig_read(&rig, SFC_PART_VALUES, w2);
    assert_memory_equal(w, w2, size * sizeof *w); /* the initial state has the same bits */
    for (uint64_t t = 1; t <= 3; t++) {
        rig_labels(seed + t, kind, c, labels);
        rig_features(seed + t, c, labels, w, x);
        rig_read(&rig, SFC_PART_VALUES, raw);
        rig_forward(&ref, t, labels, x, &b);
        rig_forward(&rig, t, labels, x, &a);
        assert_int_equal(rig_sample(&ref, in), b.sampled);
        assert_int_equal(rig_sample(&rig, in2), a.sampled);
        assert_memory_equal(in, in2, c->classes);
        bool comparable = !near_filter(c, w, in, x);
        if (comparable) {
            compare_steps(c, way, &a, &b, labels);
        }
        rig_read(&rig, SFC_PART_VALUES, w2);
        assert_memory_equal(raw, w2, size * sizeof *w); /* nothing changes before the commit */
        rig_commit(&ref, 1e-3);
        rig_commit(&rig, 1e-3);
        read_both(&ref, t, w, m);
        read_both(&rig, t, w2, m2);
        if (comparable) {
            compare_floats("momentum", m2, m, size, way->format->momentum, least);
            compare_floats("W", w2, w, size, way->format->w, 1e-3 * least);
        }
        if (t % 2 || c->momentum_mode == SFC_MOMENTUM_SAMPLED) { /* else rows stay behind */
            rig_write(&ref, SFC_PART_VALUES, w); /* rounds the reference to f32 too */
            rig_write(&ref, SFC_PART_MOMENTUM, m);
            rig_write(&rig, SFC_PART_VALUES, w);
            rig_write(&rig, SFC_PART_MOMENTUM, m);
            write_last(&rig, t);
        }
        if (c->optimizer == SFC_OPTIMIZER_ADAMW) {
            meet_in_second(way, &ref, &rig, comparable);
        }
    }
    rig_step_free(&a);
    rig_step_free(&b);
    rig_close(&ref);
    rig_close(&rig);
    free(w), free(m), free(w2), free(m2), free(x), free(raw), free(labels), free(in), free(in2);
}

/* An emulated device takes minutes for shapes as in earnest, and so do sanitizers. */
#ifdef SFC_TEST_SMALL
#define SMALL_ONLY true
#else
#define SMALL_ONLY false
#endif

static bool in_earnest(const struct shape *s)
{
    return s->classes * s->dim > 1000000;
}

/* Every shape with every loss; a third of them, in turn, for formats with bf16. */
static void conform_everywhere(struct way *way)
{
    size_t f = (size_t)(way->format - formats);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            if (shapes[s].dim == 1 && (kinds[k].m1 > 1 || kinds[k].m2 > 0)) {
                continue; /* cosines of 1 and -1: angles are at their worst */
            }
            if ((!strcmp(way->backend, "reference") && shapes[s].classes > 2000) ||
                (f && (s + k) % 3 != f % 3) || (in_earnest(&shapes[s]) && k % 4 && SMALL_ONLY)) {
                continue;
            }
            struct sfc_head_config c = config_of(&shapes[s], &kinds[k]);
            uint64_t seed = 1000 * s + 10 * k;
            c.dtype = way->format->dtype;
            c.gemm = way->format->gemm;
            c.rounding = s / 2 % 2 ? SFC_ROUNDING_NEAREST : SFC_ROUNDING_STOCHASTIC;
            c.momentum_mode = (s + k) % 2 ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
            bool adamw = (s + k) % 4 == 2 && c.dim > 1; /* with one dimension g is noise */
            c.optimizer = adamw ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
            c.epsilon = 1e-3; /* so that elements that are all noise count for little */
            print_message("backend %s format %zu shape %zu loss %zu seed %llu\n", way->backend, f,
                          s, k, (unsigned long long)seed);
            conform(way, &c, shapes[s].labels, seed);
        }
    }
    print_message("%llu rows, %llu of them further away by a rounding\n",
                  (unsigned long long)way->rows, (unsigned long long)way->rare_rows);
    assert_true(way->rare_rows * 20 <= way->rows);
}

static void test_every_shape_and_loss_agrees_with_the_reference(void **state)
{
    (void)state;
#ifdef TESTED_IS_CPU /* once is enough */
    struct way reference = way_of("reference", &formats[0]);
    conform_everywhere(&reference);
#endif
    for (size_t f = 0; f < FORMATS; f++) {
        struct way tested = way_of(TESTED, &formats[f]);
        conform_everywhere(&tested);
    }
}

/* What the CPU's rule may not have chosen. */
static void test_native_products_agree_with_the_reference(void **state)
{
    (void)state;
    if (!rig_has_native()) {
        skip();
    }
    for (size_t f = 0; f < FORMATS; f++) {
        struct way native = way_of(RIG_CPU_NATIVE, &formats[f]);
        if (formats[f].gemm == SFC_DTYPE_BF16) {
            conform_everywhere(&native);
        }
    }
}

/* ---- the same bits for every way of working (I8) */

struct trace {
    uint8_t *bytes;
    size_t size, used;
};

static void record(struct trace *t, const void *from, size_t size)
{
    assert_true(t->used + size <= t->size);
    memcpy(t->bytes + t->used, from, size);
    t->used += size;
}

static struct trace run_bits(struct rig_setup setup, const struct sfc_head_config *c,
                             enum rig_labels kind, uint64_t seed)
{
    enum { STEPS = 4 };
    size_t size = (size_t)c->classes * c->dim, rows = (size_t)c->batch * c->dim;
    struct trace trace = {.size = STEPS * (c->batch * 16 + 5 * c->classes + rows * sizeof(int64_t) +
                                           3 * size * sizeof(float))};
    struct rig rig;
    struct rig_step step;
    float *w = calloc(size, sizeof *w), *x = calloc(rows, sizeof *x);
    uint64_t *labels = calloc(c->batch, sizeof *labels);
    uint8_t *in = calloc(c->classes, 1);
    trace.bytes = calloc(trace.size, 1);
    assert_true(w && x && labels && in && trace.bytes);
    rig_open(&rig, setup, c);
    rig_step_init(&step, c);
    for (uint64_t t = 1; t <= STEPS; t++) {
        rig_read(&rig, SFC_PART_VALUES, w);
        rig_labels(seed + t, kind, c, labels);
        rig_features(seed + t, c, labels, w, x);
        rig_forward(&rig, t, labels, x, &step);
        rig_sample(&rig, in);
        record(&trace, in, c->classes);
        for (uint32_t r = 0; r < c->batch; r++) {
            if (labels[r] != SFC_LABEL_NONE) {
                record(&trace, &step.lse[r], sizeof step.lse[r]);
                record(&trace, &step.target[r], sizeof step.target[r]);
            }
        }
        record(&trace, step.dx, rows * sizeof *step.dx);
        if (t == 3) {
            rig_skip(&rig, t);
        } else {
            rig_commit(&rig, 2e-3);
        }
        if (c->momentum_mode == SFC_MOMENTUM_DENSE) {
            rig_read(&rig, SFC_PART_LAST_STEP, w);
            record(&trace, w, c->classes * sizeof *w);
        }
        rig_read(&rig, SFC_PART_VALUES, w);
        record(&trace, w, size * sizeof *w);
        rig_read(&rig, SFC_PART_MOMENTUM, w);
        record(&trace, w, size * sizeof *w);
        if (c->optimizer == SFC_OPTIMIZER_ADAMW) {
            rig_read(&rig, SFC_PART_SECOND_MOMENT, w);
            record(&trace, w, size * sizeof *w);
        }
    }
    rig_step_free(&step);
    rig_close(&rig);
    free(w), free(x), free(labels), free(in);
    return trace;
}

static void test_bits_never_depend_on_the_way_of_working(void **state)
{
    (void)state;
    static const struct shape cases[] = {
        {1000, 40, 64, 24, 3, 200000, RIG_UNIFORM},
        {333, 128, 48, 64, 16, 1000000, RIG_WITH_NONE},
        {5000, 17, 1024, 20, 5, 100000, RIG_DUPLICATES},
        {700, 33, 100, 16, 2, 50000, RIG_ONE_BLOCK},
        {5000, 512, 1024, 128, 32, 100000, RIG_UNIFORM},
        {1500, 128, 300, 64, 8, 1000000, RIG_UNIFORM},
    };
    const char *native = rig_has_native() ? RIG_CPU_NATIVE : TESTED;
    const struct {
        const char *backend;
        const struct format *format;
    } runs[] = {
#ifdef TESTED_IS_CPU
        {"reference", &formats[0]}, {"reference", &formats[2]},
#endif
        {TESTED, &formats[0]},      {TESTED, &formats[1]},      {TESTED, &formats[2]},
        {TESTED, &formats[3]},      {native, &formats[1]},      {native, &formats[2]},
    };
    size_t count = sizeof runs / sizeof *runs - (strcmp(native, TESTED) ? 0 : 2);
    for (size_t b = 0; b < count; b++) {
        const char *backend = runs[b].backend;
        for (size_t s = 0; s < sizeof cases / sizeof *cases; s++) {
            struct sfc_head_config c = config_of(&cases[s], &kinds[s % 2 ? 1 : 5]);
            c.momentum_mode = s % 3 ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
            c.optimizer = s == 3 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
            c.dtype = runs[b].format->dtype;
            c.gemm = runs[b].format->gemm;
            size_t blocks = sfc_head_block_count(&c);
            size_t alone = blocks < RIG_MAX_HEADS ? blocks : RIG_MAX_HEADS;
            size_t five = blocks < 5 ? blocks : 5;
            if (!strcmp(backend, "reference") && c.classes * c.batch > 100000) {
                continue; /* minutes in double precision */
            }
            if (SMALL_ONLY && c.classes * c.dim * c.batch > 5000000) {
                continue; /* the last two: nine ways of four steps in four formats */
            }
            const struct rig_setup ways[] = {
                {backend, 1, 1, 1, false}, /* what the others must equal */
                {backend, 2, 1, 1, false},     {backend, 3, 1, 2, false},
                {backend, 1, 1, 4, false},     {backend, 2, 1, 8, true},
                {backend, 1, 2, 1, true},      {backend, 2, five, 3, false},
                {backend, 1, alone, 2, false}, {backend, 3, alone, 1, true},
            };
            struct trace first = run_bits(ways[0], &c, cases[s].labels, 7 + s);
            for (size_t w = 1; w < sizeof ways / sizeof *ways; w++) {
                struct trace other = run_bits(ways[w], &c, cases[s].labels, 7 + s);
                assert_int_equal(first.used, other.used);
                if (memcmp(first.bytes, other.bytes, first.used) != 0) {
                    fail_msg("%s dtype %d gemm %d: shape %zu: threads %u heads %zu group %u "
                             "reversed %d differ",
                             backend, (int)c.dtype, (int)c.gemm, s, ways[w].threads, ways[w].heads,
                             ways[w].group, ways[w].reversed);
                }
                free(other.bytes);
            }
            free(first.bytes);
        }
    }
}

/* A second attempt of a micro-batch with other features leaves no trace when it is not committed.
 */
static void test_attempts_are_kept_apart(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct sfc_head_config c = config_of(&shapes[3], &kinds[0]);
        size_t size = (size_t)c.classes * c.dim, rows = (size_t)c.batch * c.dim;
        float *w = calloc(size, sizeof *w), *want = calloc(size, sizeof *want);
        float *x = calloc(rows, sizeof *x), *y = calloc(rows, sizeof *y);
        uint64_t *labels = calloc(c.batch, sizeof *labels);
        assert_true(w && want && x && y && labels);
        for (int extra = 0; extra < 2; extra++) {
            struct rig rig;
            struct rig_step step;
            struct sfc_error err = {0};
            rig_open(&rig, (struct rig_setup){backends[b], 1, 1, 1, false}, &c);
            rig_step_init(&step, &c);
            rig_read(&rig, SFC_PART_VALUES, w);
            rig_labels(1, RIG_UNIFORM, &c, labels);
            rig_features(1, &c, labels, w, x);
            rig_features(2, &c, labels, w, y);
            rig_forward(&rig, 1, labels, x, &step);
            if (extra) {
                uint64_t sums[4 * 3];
                float target[3];
                uint8_t has[3];
                double lse[3] = {500, 500, 500};
                int64_t *dx = calloc((size_t)c.micro_batch * c.dim, sizeof *dx);
                struct sfc_head_logits_item item = {.slot = c.slots - 1,
                                                    .micro_batch = 0,
                                                    .features = y,
                                                    .exp_sum = sums,
                                                    .target_logit = target,
                                                    .has_target = has};
                struct sfc_head_gradient_item gradient = {c.slots - 1, lse, dx};
                assert_int_equal(sfc_head_logits(rig.head[0], &item, 1, &err), SFC_OK);
                assert_int_equal(sfc_head_gradient(rig.head[0], &gradient, 1, &err), SFC_OK);
                free(dx);
            }
            rig_commit(&rig, 1e-3);
            rig_read(&rig, SFC_PART_VALUES, extra ? w : want);
            rig_step_free(&step);
            rig_close(&rig);
        }
        assert_memory_equal(w, want, size * sizeof *w);
        free(w), free(want), free(x), free(y), free(labels);
    }
}

/* ---- particular rows */

static void test_zero_features_have_no_gradient(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct sfc_head_config c = config_of(&shapes[2], &kinds[1]);
        struct rig rig;
        struct rig_step step;
        size_t rows = (size_t)c.batch * c.dim;
        float *w = calloc((size_t)c.classes * c.dim, sizeof *w), *x = calloc(rows, sizeof *x);
        uint64_t labels[8];
        assert_true(w && x);
        rig_open(&rig, (struct rig_setup){backends[b], 1, 2, 1, false}, &c);
        rig_step_init(&step, &c);
        rig_read(&rig, SFC_PART_VALUES, w);
        rig_labels(3, RIG_UNIFORM, &c, labels);
        rig_features(3, &c, labels, w, x);
        memset(x + (size_t)2 * c.dim, 0, c.dim * sizeof *x);
        for (uint32_t k = 0; k < c.dim; k++) {
            x[(size_t)5 * c.dim + k] = 1e-20f;
        }
        rig_forward(&rig, 1, labels, x, &step);
        assert_int_equal(step.zero_features, 2);
        /* every cosine is 0: the log of the number of negatives and the target */
        double f = cos(acos(0) + 0.5) * 64;
        double want = log((double)step.sampled - 1 + exp(f));
        assert_true(fabs(step.lse[2] - want) < 1e-5);
        assert_true(fabs(step.lse[5] - want) < 1e-5);
        assert_true(fabs((double)step.target[2] - f) < 1e-4);
        for (uint32_t k = 0; k < c.dim; k++) {
            assert_int_equal(step.dx[(size_t)2 * c.dim + k], 0);
            assert_int_equal(step.dx[(size_t)5 * c.dim + k], 0);
        }
        rig_commit(&rig, 1e-3);
        rig_step_free(&step);
        rig_close(&rig);
        free(w), free(x);
    }
}

/* Rows that are not sampled keep their bits, momentum included. */
static void test_rows_not_sampled_are_untouched(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct sfc_head_config c = config_of(&shapes[9], &kinds[0]);
        size_t size = (size_t)c.classes * c.dim;
        struct rig rig;
        struct rig_step step;
        float *w = calloc(size, sizeof *w), *w2 = calloc(size, sizeof *w2);
        float *m = calloc(size, sizeof *m), *m2 = calloc(size, sizeof *m2);
        float *x = calloc((size_t)c.batch * c.dim, sizeof *x);
        uint64_t labels[24];
        uint8_t *in = calloc(c.classes, 1);
        assert_true(w && w2 && m && m2 && x && in);
        sfc_random_normals(1, SFC_STREAM_SYNTHETIC, 1, 0, size, m);
        rig_open(&rig, (struct rig_setup){backends[b], 1, 1, 1, false}, &c);
        rig_step_init(&step, &c);
        rig_read(&rig, SFC_PART_VALUES, w);
        rig_write(&rig, SFC_PART_MOMENTUM, m);
        rig_labels(4, RIG_UNIFORM, &c, labels);
        rig_features(4, &c, labels, w, x);
        rig_forward(&rig, 9, labels, x, &step);
        uint64_t sampled = rig_sample(&rig, in);
        assert_true(sampled > 0 && sampled < c.classes);
        rig_commit(&rig, 1e-3);
        rig_read(&rig, SFC_PART_VALUES, w2);
        rig_read(&rig, SFC_PART_MOMENTUM, m2);
        for (uint64_t i = 0; i < c.classes; i++) {
            size_t at = i * c.dim, bytes = c.dim * sizeof *w;
            assert_true((memcmp(w + at, w2 + at, bytes) == 0) == !in[i]);
            assert_true((memcmp(m + at, m2 + at, bytes) == 0) == !in[i]);
        }
        rig_step_free(&step);
        rig_close(&rig);
        free(w), free(w2), free(m), free(m2), free(x), free(in);
    }
}

static void test_bad_calls_are_refused(void **state)
{
    (void)state;
    for (size_t b = 0; b < BACKENDS; b++) {
        struct sfc_head_config c = config_of(&shapes[2], &kinds[0]);
        struct rig rig;
        struct sfc_error err = {0};
        uint64_t labels[8] = {0}, sums[16];
        float x[4 * 16], target[4];
        uint8_t has[4];
        int64_t dx[4 * 16];
        double lse[4] = {-100, -100, -100, -100};
        uint32_t slots[2] = {0, 1};
        for (size_t k = 0; k < 64; k++) {
            x[k] = 1;
        }
        struct sfc_head_logits_item item = {0, 0, x, sums, target, has, 0};
        struct sfc_head_gradient_item gradient = {0, lse, dx};
        rig_open(&rig, (struct rig_setup){backends[b], 1, 1, 1, false}, &c);
        struct sfc_head *head = rig.head[0];
        assert_int_equal(sfc_head_logits(head, &item, 1, &err), SFC_ESTATE);
        labels[3] = c.classes;
        assert_int_equal(sfc_head_plan(head, 1, labels, NULL, &err), SFC_EINVAL);
        labels[3] = 5;
        assert_int_equal(sfc_head_plan(head, 1, labels, NULL, &err), SFC_OK);
        assert_int_equal(sfc_head_gradient(head, &gradient, 1, &err), SFC_ESTATE);
        x[37] = (float)NAN;
        assert_int_equal(sfc_head_logits(head, &item, 1, &err), SFC_EINVAL);
        x[37] = (float)INFINITY;
        assert_int_equal(sfc_head_logits(head, &item, 1, &err), SFC_EINVAL);
        x[37] = 3e38f; /* large but finite: the norm must not overflow */
        assert_int_equal(sfc_head_logits(head, &item, 1, &err), SFC_OK);
        assert_int_equal(item.zero_features, 0);
        assert_int_equal(sfc_head_gradient(head, &gradient, 1, &err), SFC_EINVAL);
        lse[0] = lse[1] = lse[2] = lse[3] = 100;
        lse[2] = (double)NAN;
        assert_int_equal(sfc_head_gradient(head, &gradient, 1, &err), SFC_EINVAL);
        lse[2] = 100;
        assert_int_equal(sfc_head_gradient(head, &gradient, 1, &err), SFC_OK);
        assert_int_equal(sfc_head_gradient(head, &gradient, 1, &err), SFC_ESTATE);
        assert_int_equal(sfc_head_commit(head, slots, 0.1, &err), SFC_ESTATE);
        x[0] = (float)NAN;
        assert_int_equal(sfc_head_write(head, 0, SFC_PART_VALUES, 0, 1, x, &err), SFC_EINVAL);
        assert_int_equal(sfc_head_read(head, 77, SFC_PART_VALUES, 0, 1, x, &err), SFC_ENOTFOUND);
        assert_int_equal(sfc_head_read(head, 0, SFC_PART_VALUES, 500, 64, x, &err), SFC_EINVAL);
        rig_close(&rig);
    }
}

int main(void)
{
    if (tested_backend_missing()) {
        return TESTED_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_shape_and_loss_agrees_with_the_reference),
        cmocka_unit_test(test_native_products_agree_with_the_reference),
        cmocka_unit_test(test_bits_never_depend_on_the_way_of_working),
        cmocka_unit_test(test_attempts_are_kept_apart),
        cmocka_unit_test(test_zero_features_have_no_gradient),
        cmocka_unit_test(test_rows_not_sampled_are_untouched),
        cmocka_unit_test(test_bad_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

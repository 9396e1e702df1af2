/* dX and dW of every backend against central differences of an independent loss in long double:
 * relative error at most 1e-6 for the reference and 1e-5 for f32 backends, on random shapes. Shapes
 * that come within 1e-3 of a kink or pole (cosine +-1, a border of phi, the filter) are drawn
 * again. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/rng/philox.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

typedef long double real;

static const real pi = 3.14159265358979323846264338327950288L;

struct problem {
    struct sfc_head_config c;
    uint64_t *labels;
    uint8_t *sampled;    /* [classes] */
    real *x, *w;         /* [batch, dim], [classes, dim] raw */
    real *z;             /* [batch, classes] scratch: logits */
    real *offset;        /* [classes] logq correction */
    real least_distance; /* to the next kink or pole */
};

static real clearance(const struct problem *p, real cosine, bool target)
{
    real d = 1 - fabsl(cosine);
    if (target) {
        real phi = (real)p->c.margin_m1 * acosl(cosine) + (real)p->c.margin_m2;
        real turn = phi / pi;
        real border = fabsl(turn - roundl(turn)) * pi;
        d = p->c.margin_m2 > 0 || p->c.margin_m1 > 1 ? fminl(d, border) : d;
    } else if (p->c.has_filter) {
        d = fminl(d, fabsl(cosine - (real)p->c.filter));
    }
    return d;
}

/* The target's logit with the margin, through the recurrence psi of SphereFace: mirrored cosines.
 */
static real margin_logit(const struct problem *p, real cosine)
{
    real phi = (real)p->c.margin_m1 * acosl(cosine) + (real)p->c.margin_m2;
    int k = 0;
    while (phi >= (real)(k + 1) * pi) {
        k++;
    }
    real f = (k % 2 ? -cosl(phi) : cosl(phi)) - (real)(2 * k) - (real)p->c.margin_m3;
    return (real)p->c.scale * f;
}

static real logit(struct problem *p, uint32_t r, uint64_t class)
{
    const real *x = p->x + (size_t)r * p->c.dim, *w = p->w + class * p->c.dim;
    real xw = 0, xx = 0, ww = 0;
    for (uint32_t k = 0; k < p->c.dim; k++) {
        xw += x[k] * w[k], xx += x[k] * x[k], ww += w[k] * w[k];
    }
    real cosine = xw / sqrtl(xx * ww);
    bool target = p->labels[r] == class;
    p->least_distance = fminl(p->least_distance, clearance(p, cosine, target));
    if (target) {
        return margin_logit(p, cosine);
    }
    bool filtered = p->c.has_filter && cosine > (real)p->c.filter;
    return (filtered ? 0 : (real)p->c.scale * cosine) + p->offset[class];
}

/* Loss of one row from its logits. */
static real row_loss(const struct problem *p, uint32_t r)
{
    const real *z = p->z + r * p->c.classes;
    if (p->labels[r] == SFC_LABEL_NONE) {
        return 0;
    }
    real top = -INFINITY, sum = 0;
    for (uint64_t i = 0; i < p->c.classes; i++) {
        top = p->sampled[i] && z[i] > top ? z[i] : top;
    }
    for (uint64_t i = 0; i < p->c.classes; i++) {
        sum += p->sampled[i] ? expl(z[i] - top) : 0;
    }
    return (top + logl(sum) - z[p->labels[r]]) / (real)p->c.batch;
}

static void row_logits(struct problem *p, uint32_t r)
{
    for (uint64_t i = 0; i < p->c.classes; i++) {
        if (p->sampled[i] && p->labels[r] != SFC_LABEL_NONE) {
            p->z[r * p->c.classes + i] = logit(p, r, i);
        }
    }
}

static real loss_of_row_with(struct problem *p, uint32_t r, uint32_t k, real value)
{
    real *x = &p->x[(size_t)r * p->c.dim + k], kept = *x;
    *x = value;
    row_logits(p, r);
    real loss = row_loss(p, r);
    *x = kept;
    return loss;
}

static real loss_of_class_with(struct problem *p, uint64_t class, uint32_t k, real value)
{
    real *w = &p->w[class * p->c.dim + k], kept = *w, loss = 0;
    *w = value;
    for (uint32_t r = 0; r < p->c.batch; r++) {
        if (p->labels[r] != SFC_LABEL_NONE) {
            real *z = &p->z[r * p->c.classes + class], before = *z;
            *z = logit(p, r, class);
            loss += row_loss(p, r);
            *z = before;
        }
    }
    *w = kept;
    return loss;
}

/* Richardson's central difference: an error of order h^4. */
#define DIFFERENCE(f, at, h)                                                                       \
    ((8 * ((f)(p, i, k, (at) + (h)) - (f)(p, i, k, (at) - (h))) -                                  \
      ((f)(p, i, k, (at) + 2 * (h)) - (f)(p, i, k, (at)-2 * (h)))) /                               \
     (12 * (h)))

static real norm_of(const real *v, uint32_t dim)
{
    real s = 0;
    for (uint32_t k = 0; k < dim; k++) {
        s += v[k] * v[k];
    }
    return sqrtl(s);
}

static void numeric_dx(struct problem *p, double *out)
{
    for (uint32_t i = 0; i < p->c.batch; i++) {
        real h = 1e-5L * norm_of(p->x + (size_t)i * p->c.dim, p->c.dim);
        for (uint32_t k = 0; k < p->c.dim; k++) {
            real at = p->x[(size_t)i * p->c.dim + k];
            out[(size_t)i * p->c.dim + k] = (double)DIFFERENCE(loss_of_row_with, at, h);
        }
        row_logits(p, i);
    }
}

static void numeric_dw(struct problem *p, double *out)
{
    memset(out, 0, p->c.classes * p->c.dim * sizeof *out);
    for (uint64_t i = 0; i < p->c.classes; i++) {
        real h = 1e-5L * norm_of(p->w + i * p->c.dim, p->c.dim);
        for (uint32_t k = 0; k < p->c.dim && p->sampled[i]; k++) {
            real at = p->w[i * p->c.dim + k];
            out[i * p->c.dim + k] = (double)DIFFERENCE(loss_of_class_with, at, h);
        }
    }
}

/* What a worker does: from the gradient of the unit feature to that of the raw feature. */
static void raw_feature_gradient(const struct problem *p, const int64_t *dx, double *out)
{
    uint32_t dim = p->c.dim;
    for (uint32_t r = 0; r < p->c.batch; r++) {
        const real *x = p->x + (size_t)r * dim;
        real norm = norm_of(x, dim), along = 0;
        for (uint32_t k = 0; k < dim; k++) {
            along += x[k] / norm * (real)dx[(size_t)r * dim + k] * 0x1p-44L;
        }
        for (uint32_t k = 0; k < dim; k++) {
            real g = (real)dx[(size_t)r * dim + k] * 0x1p-44L;
            out[(size_t)r * dim + k] = (double)((g - x[k] / norm * along) / norm);
        }
    }
}

/* |a - b| / |b| over the whole tensor. */
static double relative_error(const double *a, const double *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += (a[i] - b[i]) * (a[i] - b[i]);
        s += b[i] * b[i];
    }
    return sqrt(d) / (sqrt(s) + 1e-30);
}

/* -log of the probability of being drawn, from the sample itself: positives are certain. */
static void set_offsets(struct problem *p)
{
    for (uint64_t first = 0; first < p->c.classes; first += p->c.block_size) {
        uint64_t rows = sfc_head_block_rows(&p->c, first / p->c.block_size);
        real drawn = 0, open = 0;
        for (int pass = 0; pass < 2; pass++) {
            for (uint64_t i = first; i < first + rows; i++) {
                bool positive = false;
                for (uint32_t r = 0; r < p->c.batch; r++) {
                    positive = positive || p->labels[r] == i;
                }
                if (pass == 0) {
                    open += !positive;
                    drawn += !positive && p->sampled[i];
                } else {
                    bool corrected = p->c.correction == SFC_CORRECTION_LOGQ && !positive;
                    p->offset[i] = corrected && drawn > 0 ? -logl(drawn / open) : 0;
                }
            }
        }
    }
}

struct shape {
    uint64_t classes;
    uint32_t dim, block_size, batch, micro_batch, ppm;
    enum rig_labels labels;
};

static const struct shape shapes[] = {
    {40, 8, 16, 4, 2, 400000, RIG_UNIFORM},    {33, 11, 16, 1, 1, 300000, RIG_UNIFORM},
    {30, 5, 8, 12, 3, 100000, RIG_ONE_BLOCK},  {24, 17, 12, 6, 2, 1000000, RIG_DUPLICATES},
    {65, 16, 32, 8, 4, 250000, RIG_WITH_NONE}, {17, 33, 16, 9, 3, 500000, RIG_UNIFORM},
};

static const struct {
    double m1, m2, m3, scale;
    bool has_filter;
    double filter;
    enum sfc_correction correction;
} kinds[] = {
    {1, 0, 0.4, 16, false, 0, SFC_CORRECTION_NONE},
    {1, 0.5, 0, 16, false, 0, SFC_CORRECTION_NONE},
    {2, 0.3, 0.1, 8, false, 0, SFC_CORRECTION_NONE},
    {1, 0.5, 0, 16, true, 0.15, SFC_CORRECTION_NONE},
    {1, 0, 0.4, 16, true, 0.1, SFC_CORRECTION_LOGQ},
    {1, 0, 0.4, 64, false, 0, SFC_CORRECTION_NONE},
    {1, 0.5, 0, 64, false, 0, SFC_CORRECTION_LOGQ},
};

static void *zeroed(size_t count, size_t size)
{
    void *p = calloc(count, size);
    assert_non_null(p);
    return p;
}

struct result {
    double dx, dw, loss; /* relative errors */
    double clearance;
};

static struct result check(const char *backend, const struct sfc_head_config *c,
                           enum rig_labels kind, uint64_t seed)
{
    size_t rows = (size_t)c->batch * c->dim, size = (size_t)c->classes * c->dim;
    struct problem p = {.c = *c, .least_distance = 1};
    struct rig rig;
    struct rig_step step;
    float *w = zeroed(size, sizeof *w), *x = zeroed(rows, sizeof *x);
    double *a = zeroed(size + rows, sizeof *a), *b = zeroed(size + rows, sizeof *b);
    p.labels = zeroed(c->batch, sizeof *p.labels);
    p.sampled = zeroed(c->classes, 1);
    p.x = zeroed(rows, sizeof *p.x);
    p.w = zeroed(size, sizeof *p.w);
    p.z = zeroed((size_t)c->batch * c->classes, sizeof *p.z);
    p.offset = zeroed(c->classes, sizeof *p.offset);
    rig_open(&rig, (struct rig_setup){backend, 1, 2, 2, false}, c);
    rig_step_init(&step, c);
    rig_read(&rig, SFC_PART_VALUES, w);
    rig_labels(seed, kind, c, p.labels);
    rig_features(seed, c, p.labels, w, x);
    for (size_t i = 0; i < rows; i++) {
        p.x[i] = x[i];
    }
    for (size_t i = 0; i < size; i++) {
        p.w[i] = w[i];
    }
    rig_forward(&rig, seed + 1, p.labels, x, &step);
    rig_sample(&rig, p.sampled);
    set_offsets(&p);
    real loss = 0;
    for (uint32_t r = 0; r < c->batch; r++) {
        row_logits(&p, r);
        loss += row_loss(&p, r);
    }
    struct result result = {.clearance = (double)p.least_distance};
    if (result.clearance >= 1e-3) {
        raw_feature_gradient(&p, step.dx, a);
        numeric_dx(&p, b);
        result.dx = relative_error(a, b, rows);
        numeric_dw(&p, b);
        rig_commit(&rig, 0); /* momentum 0, no decay: what is kept is dW */
        rig_read(&rig, SFC_PART_MOMENTUM, w);
        for (size_t i = 0; i < size; i++) {
            a[i] = w[i];
        }
        result.dw = relative_error(a, b, size);
        result.loss = fabs(step.loss - (double)loss) / (1 + fabs((double)loss));
    }
    rig_step_free(&step);
    rig_close(&rig);
    free(w), free(x), free(a), free(b), free(p.labels), free(p.sampled);
    free(p.x), free(p.w), free(p.z), free(p.offset);
    return result;
}

static void check_all(const char *backend, double limit)
{
    double worst = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            struct sfc_head_config c =
                rig_config(shapes[s].classes, shapes[s].dim, shapes[s].block_size, shapes[s].batch,
                           shapes[s].micro_batch);
            c.sample_ppm = shapes[s].ppm;
            c.margin_m1 = kinds[k].m1;
            c.margin_m2 = kinds[k].m2;
            c.margin_m3 = kinds[k].m3;
            c.scale = kinds[k].scale;
            c.has_filter = kinds[k].has_filter;
            c.filter = kinds[k].filter;
            c.correction = kinds[k].correction;
            c.momentum = 0;
            c.weight_decay = 0;
            struct result r = {0};
            uint64_t seed = 100 * s + 10000 * k;
            for (int tries = 0; tries < 200 && r.clearance < 1e-3; tries++) {
                r = check(backend, &c, shapes[s].labels, seed++);
            }
            assert_true(r.clearance >= 1e-3);
            worst = fmax(worst, fmax(r.dx, r.dw));
            if (!(r.dx <= limit && r.dw <= limit && r.loss <= 1e-5)) {
                fail_msg("%s shape %zu loss %zu seed %llu: dX %g dW %g loss %g", backend, s, k,
                         (unsigned long long)seed - 1, r.dx, r.dw, r.loss);
            }
        }
    }
    print_message("%s: worst relative error %.2g\n", backend, worst);
}

static void test_reference(void **state)
{
    (void)state;
    check_all("reference", 1e-6);
}

static void test_backend(void **state)
{
    (void)state;
    check_all(TESTED, 1e-5);
}

int main(void)
{
    if (tested_backend_missing()) {
        return TESTED_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_backend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

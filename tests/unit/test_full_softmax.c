/* Invariant I6: at sample rate 1 the head is a plain full softmax. 200 steps on fixed synthetic
 * features; at every step the loss equals that of one independent implementation in double (whole
 * matrices, one update per step, no blocks, no micro-batches) within 1e-4 relative. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/rng/permutation.h"
#include "kernels/rng/philox.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

enum { CLASSES = 150, DIM = 20, SAMPLES = 400, BATCH = 32, MICRO = 8, STEPS = 200 };

struct data {
    float features[SAMPLES][DIM];
    uint64_t labels[SAMPLES];
};

/* Rows of a class lean the same way, with noise: learnable, but not in 200 steps. */
static void make_data(struct data *d)
{
    for (uint32_t s = 0; s < SAMPLES; s++) {
        float centre[DIM];
        d->labels[s] = sfc_random(1, SFC_STREAM_SYNTHETIC, 0, s).v[0] % CLASSES;
        sfc_random_normals(1, SFC_STREAM_SYNTHETIC, 1 + d->labels[s], 0, DIM, centre);
        sfc_random_normals(1, SFC_STREAM_SYNTHETIC, 1000 + s, 0, DIM, d->features[s]);
        for (uint32_t k = 0; k < DIM; k++) {
            d->features[s][k] = 3 * (d->features[s][k] + 0.7f * centre[k]);
        }
    }
}

/* ---- the independent implementation */

struct plain {
    double w[CLASSES][DIM], velocity[CLASSES][DIM];
    double x[BATCH][DIM];           /* unit rows */
    double direction[CLASSES][DIM]; /* w / |w| */
    double size[CLASSES];           /* |w| */
    double cosine[BATCH][CLASSES];
    double slope[BATCH];          /* d(target logit) / d(cosine) */
    double delta[BATCH][CLASSES]; /* d(loss) / d(cosine) */
};

static double length_of(const double *v)
{
    double s = 0;
    for (int k = 0; k < DIM; k++) {
        s += v[k] * v[k];
    }
    return sqrt(s);
}

static void plain_cosines(struct plain *p, const float (*x)[DIM])
{
    for (int i = 0; i < CLASSES; i++) {
        p->size[i] = length_of(p->w[i]);
        for (int k = 0; k < DIM; k++) {
            p->direction[i][k] = p->w[i][k] / p->size[i];
        }
    }
    for (int r = 0; r < BATCH; r++) {
        double raw[DIM];
        for (int k = 0; k < DIM; k++) {
            raw[k] = x[r][k];
        }
        for (int k = 0; k < DIM; k++) {
            p->x[r][k] = raw[k] / length_of(raw);
        }
        for (int i = 0; i < CLASSES; i++) {
            p->cosine[r][i] = 0;
            for (int k = 0; k < DIM; k++) {
                p->cosine[r][i] += p->x[r][k] * p->direction[i][k];
            }
        }
    }
}

/* The target's logit: CosFace, or ArcFace by the addition theorem (valid up to theta + m < pi;
 * beyond, the test's data would have to be worse than opposite). */
static double plain_target(const struct sfc_head_config *c, double cosine, double *slope)
{
    double m = c->margin_m2;
    if (m == 0) {
        *slope = c->scale;
        return c->scale * (cosine - c->margin_m3);
    }
    double sine = sqrt(1 - cosine * cosine);
    assert_true(cosine > -cos(m));
    *slope = c->scale * (cos(m) + sin(m) * cosine / sine);
    return c->scale * (cosine * cos(m) - sine * sin(m));
}

/* Softmax of every row; returns the mean loss. */
static double plain_softmax(struct plain *p, const struct sfc_head_config *c,
                            const uint64_t *labels)
{
    double loss = 0;
    for (int r = 0; r < BATCH; r++) {
        double z[CLASSES], top = -INFINITY, sum = 0;
        for (int i = 0; i < CLASSES; i++) {
            z[i] = c->scale * p->cosine[r][i];
            if ((uint64_t)i == labels[r]) {
                z[i] = plain_target(c, p->cosine[r][i], &p->slope[r]);
            }
            top = fmax(top, z[i]);
        }
        for (int i = 0; i < CLASSES; i++) {
            sum += exp(z[i] - top);
        }
        for (int i = 0; i < CLASSES; i++) {
            double share = exp(z[i] - top) / sum;
            p->delta[r][i] = (uint64_t)i == labels[r] ? (share - 1) * p->slope[r] / BATCH
                                                      : share * c->scale / BATCH;
        }
        loss -= (z[labels[r]] - top - log(sum)) / BATCH;
    }
    return loss;
}

static void plain_update(struct plain *p, const struct sfc_head_config *c, double lr)
{
    for (int i = 0; i < CLASSES; i++) {
        double gradient[DIM] = {0};
        for (int r = 0; r < BATCH; r++) {
            for (int k = 0; k < DIM; k++) { /* d cosine / d w */
                gradient[k] += p->delta[r][i] *
                               (p->x[r][k] - p->cosine[r][i] * p->direction[i][k]) / p->size[i];
            }
        }
        for (int k = 0; k < DIM; k++) {
            p->velocity[i][k] =
                c->momentum * p->velocity[i][k] + gradient[k] + c->weight_decay * p->w[i][k];
            p->w[i][k] -= lr * p->velocity[i][k];
        }
    }
}

/* ---- the comparison */

static void plain_start(struct plain *p, struct rig *rig)
{
    static float w[CLASSES][DIM];
    rig_read(rig, SFC_PART_VALUES, w[0]);
    for (int i = 0; i < CLASSES; i++) {
        for (int k = 0; k < DIM; k++) {
            p->w[i][k] = w[i][k];
            p->velocity[i][k] = 0;
        }
    }
}

static void compare(struct rig_setup setup, const struct sfc_head_config *c, const struct data *d)
{
    static struct plain plain;
    struct rig rig;
    struct rig_step step;
    float x[BATCH][DIM];
    uint64_t labels[BATCH];
    double first = 0, worst = 0, loss = 0;
    rig_open(&rig, setup, c);
    rig_step_init(&step, c);
    plain_start(&plain, &rig);
    for (uint64_t t = 1; t <= STEPS; t++) {
        for (uint32_t r = 0; r < BATCH; r++) {
            uint64_t s = sfc_sample_at(c->seed, SAMPLES, (t - 1) * BATCH + r);
            memcpy(x[r], d->features[s], sizeof x[r]);
            labels[r] = d->labels[s];
        }
        double lr = 0.02 * fmin(1, (double)t / 20);
        rig_forward(&rig, t, labels, x[0], &step);
        assert_int_equal(step.sampled, CLASSES);
        rig_commit(&rig, lr);
        plain_cosines(&plain, (const float(*)[DIM])x);
        loss = plain_softmax(&plain, c, labels);
        plain_update(&plain, c, lr);
        double error = fabs(step.loss - loss) / loss;
        if (!(error <= 1e-4)) {
            fail_msg("%s: loss of step %llu is %.9g, plain softmax has %.9g", setup.backend,
                     (unsigned long long)t, step.loss, loss);
        }
        worst = fmax(worst, error);
        first = t == 1 ? loss : first;
    }
    print_message("%s, %zu heads: loss %.3f -> %.3f, worst relative error %.2g\n", setup.backend,
                  setup.heads, first, loss, worst);
    assert_true(loss < 0.8 * first); /* it has learnt: the comparison is not of a standstill */
    rig_step_free(&step);
    rig_close(&rig);
}

static void run(const char *backend)
{
    static struct data data;
    make_data(&data);
    struct sfc_head_config c = rig_config(CLASSES, DIM, 32, BATCH, MICRO);
    c.sample_ppm = 1000000;
    c.scale = 16;
    compare((struct rig_setup){backend, 1, 1, 4, false}, &c, &data);
    c.margin_m2 = 0.3;
    c.margin_m3 = 0;
    compare((struct rig_setup){backend, 2, 3, 1, true}, &c, &data);
}

static void test_reference(void **state)
{
    (void)state;
    run("reference");
}

static void test_backend(void **state)
{
    (void)state;
    run(TESTED);
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

/* Steps that would overflow are found before anything changes: the bounds hold, a diverging run is
 * skipped step by step and stays readable, and the decision follows from state and inputs alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/extent.h"
#include "kernels/rng/philox.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

/* ---- the bounds */

enum { N = 64, STEPS = 200 };

struct element {
    double w, m, v;
};

static void step_of(const struct sfc_extent_rule *r, struct element *x, double g, double lr,
                    uint64_t t)
{
    if (r->optimizer == SFC_OPTIMIZER_SGD) {
        x->m = r->momentum * x->m + g + r->weight_decay * x->w;
        x->w -= lr * x->m;
        return;
    }
    x->m = r->beta1 * x->m + (1 - r->beta1) * g;
    x->v = r->beta2 * x->v + (1 - r->beta2) * g * g;
    double first = x->m / (1 - pow(r->beta1, (double)t));
    double second = x->v / (1 - pow(r->beta2, (double)t));
    x->w -= lr * (first / (sqrt(second) + r->epsilon) + r->weight_decay * x->w);
}

/* Gradients of many sizes, the largest often on the same side, elements left alone at times. */
static void walk(const struct sfc_extent_rule *rule, uint64_t seed, double lr)
{
    struct element x[N] = {{0}};
    struct sfc_extents e;
    assert_int_equal(sfc_extents_init(&e, rule, 1, 0, NULL), SFC_OK);
    for (uint64_t t = 1; t <= STEPS; t++) {
        double bound = ldexp(1, (int)(sfc_random(seed, SFC_STREAM_SYNTHETIC, t, N).v[0] % 30) - 20);
        e.gradient[0] = bound;
        assert_true(sfc_extents_fit(&e, lr, t));
        for (uint64_t i = 0; i < N; i++) {
            const struct sfc_philox p = sfc_random(seed, SFC_STREAM_SYNTHETIC, t, i);
            double g = p.v[0] % 2 ? bound : bound * (2 * (double)sfc_uniform(p.v[1]) - 1);
            if (p.v[2] % 3)
                step_of(rule, &x[i], g, lr, t);
        }
        sfc_extents_commit(&e);
        for (size_t i = 0; i < N; i++) {
            assert_true(fabs(x[i].w) <= e.now[0].w && fabs(x[i].m) <= e.now[0].m);
            if (rule->optimizer == SFC_OPTIMIZER_ADAMW)
                assert_true(fabs(x[i].m) / (sqrt(x[i].v) + rule->epsilon) <= e.now[0].ratio);
        }
    }
    sfc_extents_free(&e);
}

static void bounds_hold(void **state)
{
    (void)state;
    struct sfc_extent_rule rule = {.momentum = 0.9,
                                   .epsilon = 1e-8,
                                   .weight_decay = 0.01,
                                   .slack = 1 + 0x1p-22,
                                   .limit = INFINITY,
                                   .gradient = INFINITY};
    static const double betas[][2] = {
        {0.9, 0.999}, {0, 0.9}, {0.99, 0.5}, {0.9, 0}, {0.999, 0.9999}};
    for (uint64_t seed = 1; seed <= 20; seed++) {
        rule.optimizer = SFC_OPTIMIZER_SGD;
        walk(&rule, seed, 0.1);
        walk(&rule, seed, 30);
        rule.optimizer = SFC_OPTIMIZER_ADAMW;
        for (size_t b = 0; b < sizeof betas / sizeof *betas; b++) {
            rule.beta1 = betas[b][0];
            rule.beta2 = betas[b][1];
            walk(&rule, seed, 0.1);
        }
    }
}

/* In a run like any other the bounds alone say that steps fit, but for once in a while. */
static void sane_runs_are_hardly_looked_at(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) { /* SGD and AdamW, f32 and bf16 */
        struct sfc_extent_rule rule = {
            .optimizer = kind % 2 ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD,
            .momentum = 0.9,
            .beta1 = 0.9,
            .beta2 = 0.999,
            .epsilon = 1e-8,
            .weight_decay = kind % 2 ? 0.1 : 5e-4,
            .slack = kind / 2 ? 1 + 0x1p-7 : 1 + 0x1p-22,
            .limit = 1e17,
            .gradient = 1e17,
        };
        struct sfc_extents e;
        unsigned looks = 0;
        assert_int_equal(sfc_extents_init(&e, &rule, 1, 0.08, NULL), SFC_OK);
        e.gradient[0] = 2 * 64 * 1e4 / 0.1; /* ArcFace's worst slope, short rows */
        for (uint64_t t = 1; t <= 100000; t++) {
            if (!sfc_extents_fit(&e, kind % 2 ? 1e-3 : 0.1, t)) {
                e.now[0] = (struct sfc_extent){1, 1, 4};
                looks++;
                assert_true(sfc_extents_fit(&e, kind % 2 ? 1e-3 : 0.1, t));
            }
            sfc_extents_commit(&e);
        }
        print_message("%s %s: %u looks in 100000 steps\n", kind % 2 ? "AdamW" : "SGD",
                      kind / 2 ? "bf16" : "f32", looks);
        assert_true(looks <= (kind / 2 ? 50 : 5));
        sfc_extents_free(&e);
    }
}

/* ---- runs that diverge */

enum mode { SAMPLED, DENSE, ADAMW, MODES };

static struct sfc_head_config wild(int format, enum mode mode)
{
    struct sfc_head_config c = rig_config(300, 24, 64, 16, 4);
    c.dtype = format % 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.gemm = format / 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.momentum_mode = mode == DENSE ? SFC_MOMENTUM_DENSE : SFC_MOMENTUM_SAMPLED;
    c.optimizer = mode == ADAMW ? SFC_OPTIMIZER_ADAMW : SFC_OPTIMIZER_SGD;
    c.weight_decay = 0.05;
    c.sample_ppm = 600000;
    return c;
}

/* Grows a hundredfold a step for a while; in between and afterwards it is sane. */
static double wild_rate(uint64_t t)
{
    return t < 4 || t > 24 ? 1e-3 : 3000;
}

enum { LAST = 32, PARTS = 4 };

struct outcome {
    bool applied[LAST + 1];
    float *part[PARTS]; /* by enum sfc_block_part */
};

static bool has_part(const struct sfc_head_config *c, int part)
{
    if (part == SFC_PART_LAST_STEP)
        return c->momentum_mode == SFC_MOMENTUM_DENSE;
    return part != SFC_PART_SECOND_MOMENT || c->optimizer == SFC_OPTIMIZER_ADAMW;
}

static void read_all(struct rig *rig, struct outcome *out)
{
    size_t size = (size_t)rig->config.classes * rig->config.dim;
    for (int p = 0; p < PARTS; p++) {
        if (!has_part(&rig->config, p))
            continue;
        rig_read(rig, (enum sfc_block_part)p, out->part[p]);
        for (size_t i = 0; i < size; i++)
            assert_true(isfinite(out->part[p][i]));
    }
}

/* The state goes to heads that know nothing. */
static void move(struct rig *rig, uint64_t t, const struct outcome *out)
{
    struct sfc_head_config c = rig->config;
    struct rig_setup setup = rig->setup;
    float rates[LAST + 1];
    if (c.momentum_mode == SFC_MOMENTUM_DENSE)
        rig_read_rates(rig, t, rates);
    rig_close(rig);
    rig_open(rig, setup, &c);
    if (c.momentum_mode == SFC_MOMENTUM_DENSE)
        rig_write_rates(rig, t, rates);
    for (int p = 0; p < PARTS; p++)
        if (has_part(&c, p))
            rig_write(rig, (enum sfc_block_part)p, out->part[p]);
}

/* moves: the state moves after each of so many steps; 0: never. */
static void diverge(struct rig_setup setup, const struct sfc_head_config *c, uint64_t moves,
                    struct outcome *out)
{
    struct rig rig;
    struct rig_step step;
    size_t size = (size_t)c->classes * c->dim;
    float *centres = calloc(size, sizeof *centres);
    float *x = calloc((size_t)c->batch * c->dim, sizeof *x);
    uint64_t labels[16];
    *out = (struct outcome){{false}, {NULL}};
    for (int p = 0; p < PARTS; p++) {
        out->part[p] = calloc(size, sizeof(float));
        assert_non_null(out->part[p]);
    }
    assert_true(centres && x);
    rig_open(&rig, setup, c);
    rig_step_init(&step, c);
    rig_read(&rig, SFC_PART_VALUES, centres);
    for (uint64_t t = 1; t <= LAST; t++) {
        rig_labels(t, RIG_UNIFORM, c, labels);
        rig_features(t, c, labels, centres, x);
        rig_forward(&rig, t, labels, x, &step);
        out->applied[t] = rig_finite(&rig, wild_rate(t));
        if (out->applied[t])
            rig_commit(&rig, wild_rate(t));
        else
            rig_skip(&rig, t);
        read_all(&rig, out);
        if (moves && t % moves == 0)
            move(&rig, t, out);
    }
    rig_step_free(&step);
    rig_close(&rig);
    free(centres), free(x);
}

static void outcome_free(struct outcome *out)
{
    for (int p = 0; p < PARTS; p++)
        free(out->part[p]);
}

/* An emulated device takes ten seconds for a case: one of the two ways each, in turn. */
#ifdef SFC_TEST_SMALL
#define IN_TURN true
#else
#define IN_TURN false
#endif

/* Wild steps are applied at first and skipped later, sane ones never skipped; other heads, and
 * heads that know nothing, decide alike. */
static void diverge_alike(const struct sfc_head_config *c, int turn)
{
    static const struct rig_setup setup = {TESTED, 2, 1, 2, false};
    size_t bytes = (size_t)c->classes * c->dim * sizeof(float);
    struct outcome alone, other;
    unsigned applied = 0, skipped = 0;
    diverge(setup, c, 0, &alone);
    for (uint64_t t = 1; t <= LAST; t++) {
        bool wild_step = t >= 4 && t <= 24;
        applied += wild_step && alone.applied[t];
        skipped += wild_step && !alone.applied[t];
        assert_true(wild_step || alone.applied[t]);
    }
    assert_true(applied >= 5 && skipped >= 5);
    for (int way = 0; way < 2; way++) {
        if (IN_TURN && way != turn % 2)
            continue;
        diverge(way ? setup : (struct rig_setup){TESTED, 1, 5, 4, true}, c, way ? 3 : 0, &other);
        assert_memory_equal(alone.applied, other.applied, sizeof alone.applied);
        for (int p = 0; p < PARTS; p++)
            assert_memory_equal(alone.part[p], other.part[p], bytes);
        outcome_free(&other);
    }
    outcome_free(&alone);
}

static void diverging_steps_are_skipped(void **state)
{
    (void)state;
    for (int format = 0; format < 4; format++)
        for (int mode = 0; mode < MODES; mode++) {
            struct sfc_head_config c = wild(format, (enum mode)mode);
            diverge_alike(&c, format + mode);
        }
}

static void the_reference_skips_too(void **state)
{
    (void)state;
    struct sfc_head_config c = wild(0, SAMPLED);
    struct outcome out;
    diverge((struct rig_setup){"reference", 1, 2, 4, false}, &c, 0, &out);
    assert_true(out.applied[3] && !out.applied[24] && out.applied[32]);
    outcome_free(&out);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_hold),
        cmocka_unit_test(sane_runs_are_hardly_looked_at),
        cmocka_unit_test(diverging_steps_are_skipped),
        cmocka_unit_test(the_reference_skips_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

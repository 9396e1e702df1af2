/* Momentum mode dense: equal to a dense SGD in double that is written here, the same bits however
 * often the state is read or moved to other heads, and a history that can't be skipped over. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/lag.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"

static struct sfc_head_config dense_config(void)
{
    struct sfc_head_config c = rig_config(300, 24, 64, 16, 4);
    c.momentum_mode = SFC_MOMENTUM_DENSE;
    c.steps = 600;
    return c;
}

/* Steps of one long run, and between two moves; an emulated device takes a minute for as many as in
 * earnest. */
#ifdef SFC_TEST_SMALL
enum { LONG = 300, MOVE = 8 };
#else
enum { LONG = 500, MOVE = 15 };
#endif

static double rate_of(uint64_t t)
{
    return 0.02 * (1 + cos(0.02 * (double)t)); /* changes in every step */
}

static bool skipped(uint64_t t)
{
    return t % 37 == 5 || (t >= 200 && t < 204);
}

/* Labels of few classes, so that some are positives often; the sample does the rest. */
static void inputs_of(const struct sfc_head_config *c, uint64_t t, const float *w, uint64_t *labels,
                      float *x)
{
    rig_labels(t, RIG_UNIFORM, c, labels);
    for (uint32_t r = 0; r < c->batch; r++)
        labels[r] = labels[r] % 64 * 4;
    rig_features(t, c, labels, w, x);
}

/* ---- a dense SGD in double */

struct plain {
    const struct sfc_head_config *c;
    double *w, *m, *g; /* [classes, dim] */
};

static double norm_of(const double *v, uint32_t dim)
{
    double s = 0;
    for (uint32_t k = 0; k < dim; k++)
        s += v[k] * v[k];
    return sqrt(s);
}

/* One row of the batch: adds d loss / d (unit class) of the sampled classes to g; CosFace. */
static void plain_row(struct plain *p, const float *x, uint64_t label, const uint8_t *in)
{
    const struct sfc_head_config *c = p->c;
    uint32_t dim = c->dim;
    double unit[64], z[512], sum = 0, square = 0;
    for (uint32_t k = 0; k < dim; k++)
        square += (double)x[k] * x[k];
    for (uint32_t k = 0; k < dim; k++)
        unit[k] = x[k] / sqrt(square);
    for (uint64_t i = 0; i < c->classes; i++) {
        double dot = 0;
        for (uint32_t k = 0; k < dim; k++)
            dot += unit[k] * p->w[i * dim + k];
        z[i] = c->scale * (dot / norm_of(p->w + i * dim, dim) - (i == label ? c->margin_m3 : 0));
        sum += in[i] ? exp(z[i]) : 0;
    }
    for (uint64_t i = 0; i < c->classes; i++)
        for (uint32_t k = 0; in[i] && k < dim; k++)
            p->g[i * dim + k] += c->scale * (exp(z[i]) / sum - (i == label)) / c->batch * unit[k];
}

static void plain_step(struct plain *p, const float *x, const uint64_t *labels, const uint8_t *in,
                       double rate)
{
    const struct sfc_head_config *c = p->c;
    uint32_t dim = c->dim;
    memset(p->g, 0, c->classes * dim * sizeof *p->g);
    for (uint32_t r = 0; r < c->batch; r++)
        plain_row(p, x + (size_t)r * dim, labels[r], in);
    for (uint64_t i = 0; i < c->classes; i++) {
        double *w = p->w + i * dim, *m = p->m + i * dim, *g = p->g + i * dim;
        double norm = norm_of(w, dim), along = 0;
        for (uint32_t k = 0; k < dim; k++)
            along += w[k] / norm * g[k];
        for (uint32_t k = 0; k < dim; k++)
            g[k] = (g[k] - w[k] / norm * along) / norm + c->weight_decay * w[k];
        for (uint32_t k = 0; k < dim; k++) {
            m[k] = c->momentum * m[k] + g[k];
            w[k] -= rate * m[k];
        }
    }
}

static double row_distance(const float *a, const double *b, uint32_t dim)
{
    double d = 0, s = 0;
    for (uint32_t k = 0; k < dim; k++) {
        d += (a[k] - b[k]) * (a[k] - b[k]);
        s += b[k] * b[k];
    }
    return sqrt(d / (s + 1e-30));
}

static void equals_a_dense_sgd(void **state)
{
    (void)state;
    struct sfc_head_config c = dense_config();
    c.sample_ppm = 20000; /* most rows wait for many steps, some for ever */
    c.scale = 4;          /* so that rounding is not blown up by the dynamics */
    size_t size = (size_t)c.classes * c.dim;
    struct rig rig;
    struct rig_step step;
    struct plain p = {&c, calloc(size, sizeof(double)), calloc(size, sizeof(double)),
                      calloc(size, sizeof(double))};
    float *w = calloc(size, sizeof *w), *m = calloc(size, sizeof *m);
    float *x = calloc((size_t)c.batch * c.dim, sizeof *x);
    uint32_t *seen = calloc(c.classes, sizeof *seen);
    uint8_t *in = calloc(c.classes, 1);
    uint64_t labels[16];
    assert_true(p.w && p.m && p.g && w && m && x && seen && in);
    rig_open(&rig, (struct rig_setup){TESTED, 2, 2, 2, false}, &c);
    rig_step_init(&step, &c);
    rig_read(&rig, SFC_PART_VALUES, w);
    for (size_t i = 0; i < size; i++)
        p.w[i] = w[i];
    for (uint64_t t = 1; t <= LONG; t++) {
        inputs_of(&c, t, w, labels, x);
        rig_forward(&rig, t, labels, x, &step);
        rig_sample(&rig, in);
        if (skipped(t)) {
            rig_skip(&rig, t);
            continue;
        }
        rig_commit(&rig, rate_of(t));
        plain_step(&p, x, labels, in, rate_of(t));
        for (uint64_t i = 0; i < c.classes; i++)
            seen[i] += in[i];
    }
    rig_read_now(&rig, LONG, w, m);
    double worst_w = 0, worst_m = 0;
    uint64_t never = 0, rarely = 0, often = 0;
    for (uint64_t i = 0; i < c.classes; i++) {
        double dw = row_distance(w + i * c.dim, p.w + i * c.dim, c.dim);
        double dm = row_distance(m + i * c.dim, p.m + i * c.dim, c.dim);
        worst_w = dw > worst_w ? dw : worst_w;
        worst_m = dm > worst_m ? dm : worst_m;
        never += seen[i] == 0;
        rarely += seen[i] == 1;
        often += seen[i] > 50;
    }
    print_message("worst row: W %.2g, momentum %.2g; %u never, %u once, %u often\n", worst_w,
                  worst_m, (unsigned)never, (unsigned)rarely, (unsigned)often);
    assert_true(never && rarely && often);
    assert_true(worst_w < 1e-5 && worst_m < 1e-5);
    rig_step_free(&step);
    rig_close(&rig);
    free(p.w), free(p.m), free(p.g), free(w), free(m), free(x), free(seen), free(in);
}

/* ---- the state can be read and moved */

struct state {
    float *w, *m, *last, rates[64];
    uint64_t done;
};

static struct state state_new(const struct sfc_head_config *c)
{
    size_t size = (size_t)c->classes * c->dim;
    struct state s = {calloc(size, sizeof(float)),
                      calloc(size, sizeof(float)),
                      calloc(c->classes, sizeof(float)),
                      {0},
                      0};
    assert_true(s.w && s.m && s.last);
    return s;
}

static void state_free(struct state *s)
{
    free(s->w), free(s->m), free(s->last);
}

static void save(struct rig *rig, uint64_t done, struct state *s)
{
    rig_read(rig, SFC_PART_VALUES, s->w);
    rig_read(rig, SFC_PART_MOMENTUM, s->m);
    rig_read(rig, SFC_PART_LAST_STEP, s->last);
    rig_read_rates(rig, done, s->rates);
    s->done = done;
}

static void load(struct rig *rig, const struct state *s)
{
    rig_write_rates(rig, s->done, s->rates);
    rig_write(rig, SFC_PART_VALUES, s->w);
    rig_write(rig, SFC_PART_MOMENTUM, s->m);
    rig_write(rig, SFC_PART_LAST_STEP, s->last);
}

/* Steps from the one after s->done to `to`; inputs come from fixed centres. */
static void go_on(struct rig *rig, const float *centres, uint64_t to, bool read_often,
                  struct state *s)
{
    const struct sfc_head_config *c = &rig->config;
    struct rig_step step;
    float *x = calloc((size_t)c->batch * c->dim, sizeof *x);
    uint64_t labels[16];
    assert_non_null(x);
    rig_step_init(&step, c);
    for (uint64_t t = s->done + 1; t <= to; t++) {
        if (read_often) { /* an aborted plan with other labels leaves no trace either */
            inputs_of(c, 1000 + t, centres, labels, x);
            rig_forward(rig, t, labels, x, &step);
            save(rig, t - 1, s);
        }
        inputs_of(c, t, centres, labels, x);
        rig_forward(rig, t, labels, x, &step);
        if (skipped(t))
            rig_skip(rig, t);
        else
            rig_commit(rig, rate_of(t));
    }
    save(rig, to, s);
    rig_step_free(&step);
    free(x);
}

static void assert_same(const struct sfc_head_config *c, const struct state *a,
                        const struct state *b)
{
    size_t size = (size_t)c->classes * c->dim;
    assert_int_equal(a->done, b->done);
    assert_memory_equal(a->w, b->w, size * sizeof *a->w);
    assert_memory_equal(a->m, b->m, size * sizeof *a->m);
    assert_memory_equal(a->last, b->last, c->classes * sizeof *a->last);
    assert_memory_equal(a->rates, b->rates, a->done * sizeof *a->rates);
}

static void read_and_move(const struct sfc_head_config *c)
{
    static const struct rig_setup setups[] = {
        {TESTED, 1, 1, 4, false}, {TESTED, 2, 3, 1, false}, {TESTED, 3, 5, 2, true}};
    struct state undisturbed = state_new(c), other = state_new(c), start = state_new(c);
    struct rig rig;
    rig_open(&rig, setups[0], c);
    save(&rig, 0, &start);
    size_t bytes = (size_t)c->classes * c->dim * sizeof(float);
    float *centres = malloc(bytes);
    assert_non_null(centres);
    memcpy(centres, start.w, bytes);
    go_on(&rig, centres, (uint64_t)3 * MOVE, false, &undisturbed);
    rig_close(&rig);
    for (size_t i = 0; i < 3; i++) { /* read in every step */
        other.done = 0;
        rig_open(&rig, setups[i], c);
        go_on(&rig, centres, (uint64_t)3 * MOVE, true, &other);
        rig_close(&rig);
        assert_same(c, &undisturbed, &other);
    }
    state_free(&other);
    other = start; /* and from heads to other heads */
    for (size_t i = 0; i < 3; i++) {
        rig_open(&rig, setups[i], c);
        load(&rig, &other);
        go_on(&rig, centres, MOVE * (i + 1), false, &other);
        rig_close(&rig);
    }
    assert_same(c, &undisturbed, &other);
    state_free(&undisturbed), state_free(&other);
    free(centres);
}

static void reading_and_moving_keep_bits(void **unused)
{
    (void)unused;
    for (int format = 0; format < 4; format++) {
        struct sfc_head_config c = dense_config();
        c.dtype = format % 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
        c.gemm = format / 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
        read_and_move(&c);
    }
}

/* ---- bad calls */

static void history_has_no_gaps(void **unused)
{
    (void)unused;
    struct sfc_head_config c = dense_config();
    struct rig rig;
    struct sfc_error err = {0};
    uint64_t labels[16] = {0};
    float value = 3, rates[3] = {0.1f, SFC_RATE_SKIPPED, (float)NAN}, many[1000] = {0};
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, &c);
    struct sfc_head *head = rig.head[0];
    assert_int_equal(sfc_head_plan(head, 2, labels, NULL, &err), SFC_ESTATE);
    assert_int_equal(sfc_head_skip(head, 2, &err), SFC_ESTATE);
    assert_int_equal(sfc_head_write_rates(head, 1, 1, rates, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_write_rates(head, 0, 3, rates, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_write_rates(head, 0, c.steps + 1, many, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_write_rates(head, 0, 2, rates, &err), SFC_OK);
    assert_int_equal(sfc_head_read_rates(head, 1, 2, many, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_plan(head, 1, labels, NULL, &err), SFC_ESTATE);
    assert_int_equal(sfc_head_plan(head, 3, labels, NULL, &err), SFC_OK);
    assert_int_equal(sfc_head_write(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_OK);
    assert_int_equal(sfc_head_plan(head, 3, labels, NULL, &err), SFC_ESTATE); /* from the future */
    assert_non_null(strstr(err.text, "block 0"));
    value = 0.5f;
    assert_int_equal(sfc_head_write(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_EINVAL);
    value = 601;
    assert_int_equal(sfc_head_write(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_EINVAL);
    value = -1;
    assert_int_equal(sfc_head_write(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_read(head, 0, SFC_PART_LAST_STEP, 64, 1, &value, &err), SFC_EINVAL);
    rig_close(&rig);
    c.momentum_mode = SFC_MOMENTUM_SAMPLED;
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, &c);
    head = rig.head[0];
    assert_int_equal(sfc_head_read(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_EINVAL);
    assert_int_equal(sfc_head_read_rates(head, 0, 0, many, &err), SFC_EINVAL);
    rig_close(&rig);
}

static void costs_four_bytes_a_row(void **unused)
{
    (void)unused;
    struct sfc_head_config c = rig_config(1 << 16, 512, 1024, 16, 4);
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    struct sfc_memory sampled, dense;
    uint64_t blocks[64];
    for (uint64_t b = 0; b < 64; b++)
        blocks[b] = b;
    assert_int_equal(sfc_backend_open(TESTED, 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_head_memory(backend, &c, blocks, 64, &sampled, &err), SFC_OK);
    c.momentum_mode = SFC_MOMENTUM_DENSE;
    assert_int_equal(sfc_head_memory(backend, &c, blocks, 64, &dense, &err), SFC_OK);
    assert_true(dense.state_bytes <= sampled.state_bytes + 4 * c.classes + ((uint64_t)2 << 20));
    assert_true(dense.step_bytes <=
                sampled.step_bytes + 20 * (c.steps + 1) + 64 + ((uint64_t)2 << 20));
    sfc_backend_close(backend);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_a_dense_sgd),
        cmocka_unit_test(reading_and_moving_keep_bits),
        cmocka_unit_test(history_has_no_gaps),
        cmocka_unit_test(costs_four_bytes_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

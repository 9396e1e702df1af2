/* AdamW of the class layer: equal to one in double that is written here, over many steps; the
 * loops of every instruction level; rounding of second moments; the same bits however often the
 * state is read or moved; its size. (The backbone's is in test_dense.c.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"
#include "tests/lib/head_rig.h"
#include "tests/lib/tested_backend.h"
#ifdef TESTED_IS_CPU
#include "kernels/cpu/simd.h"
#endif

static struct sfc_head_config adamw_config(int format)
{
    struct sfc_head_config c = rig_config(300, 24, 64, 16, 4);
    c.optimizer = SFC_OPTIMIZER_ADAMW;
    c.beta2 = 0.99;
    c.weight_decay = 0.1;
    c.dtype = format % 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    c.gemm = format / 2 ? SFC_DTYPE_BF16 : SFC_DTYPE_F32;
    return c;
}

/* Steps between two moves. */
#ifdef SFC_TEST_SMALL
enum { MOVE = 8 };
#else
enum { MOVE = 15 };
#endif

static double rate_of(uint64_t t)
{
    return 1e-3 * (1 + cos(0.02 * (double)t)); /* changes in every step */
}

static bool skipped(uint64_t t)
{
    return t % 37 == 5 || (t >= 200 && t < 204);
}

static void inputs_of(const struct sfc_head_config *c, uint64_t t, const float *w, uint64_t *labels,
                      float *x)
{
    rig_labels(t, RIG_UNIFORM, c, labels);
    for (uint32_t r = 0; r < c->batch; r++)
        labels[r] = labels[r] % 64 * 4;
    rig_features(t, c, labels, w, x);
}

/* ---- in double */

struct plain {
    const struct sfc_head_config *c;
    double *w, *m, *v, *g; /* [classes, dim] */
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
                       double rate, uint64_t t)
{
    const struct sfc_head_config *c = p->c;
    uint32_t dim = c->dim;
    memset(p->g, 0, c->classes * dim * sizeof *p->g);
    for (uint32_t r = 0; r < c->batch; r++)
        plain_row(p, x + (size_t)r * dim, labels[r], in);
    for (uint64_t i = 0; i < c->classes; i++) {
        double *w = p->w + i * dim, *m = p->m + i * dim, *v = p->v + i * dim, *g = p->g + i * dim;
        double norm = norm_of(w, dim), along = 0;
        for (uint32_t k = 0; k < dim; k++)
            along += w[k] / norm * g[k];
        for (uint32_t k = 0; k < dim; k++)
            g[k] = (g[k] - w[k] / norm * along) / norm;
        for (uint32_t k = 0; in[i] && k < dim; k++) {
            m[k] = c->beta1 * m[k] + (1 - c->beta1) * g[k];
            v[k] = c->beta2 * v[k] + (1 - c->beta2) * g[k] * g[k];
            double first = m[k] / (1 - pow(c->beta1, (double)t));
            double second = v[k] / (1 - pow(c->beta2, (double)t));
            w[k] -= rate * (first / (sqrt(second) + c->epsilon) + c->weight_decay * w[k]);
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

static double worst_row(const struct sfc_head_config *c, const float *a, const double *b)
{
    double worst = 0;
    for (uint64_t i = 0; i < c->classes; i++)
        worst = fmax(worst, row_distance(a + i * c->dim, b + i * c->dim, c->dim));
    return worst;
}

static void equals_one_in_double(void **state)
{
    (void)state;
    static const char *const backends[] = {"reference", TESTED};
    for (size_t b = 0; b < 2; b++) {
        struct sfc_head_config c = adamw_config(0);
        c.scale = 4;      /* so that rounding is not blown up by the dynamics */
        c.epsilon = 1e-4; /* nor by elements whose gradient is nothing but rounding */
        size_t size = (size_t)c.classes * c.dim;
        struct rig rig;
        struct rig_step step;
        struct plain p = {&c, calloc(size, sizeof(double)), calloc(size, sizeof(double)),
                          calloc(size, sizeof(double)), calloc(size, sizeof(double))};
        float *w = calloc(size, sizeof *w), *now = calloc(size, sizeof *now);
        float *x = calloc((size_t)c.batch * c.dim, sizeof *x);
        uint8_t *in = calloc(c.classes, 1);
        uint64_t labels[16];
        assert_true(p.w && p.m && p.v && p.g && w && now && x && in);
        rig_open(&rig, (struct rig_setup){backends[b], 2, 2, 2, false}, &c);
        rig_step_init(&step, &c);
        rig_read(&rig, SFC_PART_VALUES, w);
        for (size_t i = 0; i < size; i++)
            p.w[i] = w[i];
        for (uint64_t t = 1; t <= 500; t++) {
            inputs_of(&c, t, w, labels, x);
            rig_forward(&rig, t, labels, x, &step);
            rig_sample(&rig, in);
            if (skipped(t)) {
                rig_skip(&rig, t);
                continue;
            }
            rig_commit(&rig, rate_of(t));
            plain_step(&p, x, labels, in, rate_of(t), t);
        }
        rig_read(&rig, SFC_PART_VALUES, now);
        double of_w = worst_row(&c, now, p.w);
        assert_true(row_distance(w, p.w, c.dim) > 0.1); /* it went somewhere */
        rig_read(&rig, SFC_PART_MOMENTUM, now);
        double of_m = worst_row(&c, now, p.m);
        rig_read(&rig, SFC_PART_SECOND_MOMENT, now);
        double of_v = worst_row(&c, now, p.v);
        print_message("%s, worst row: W %.2g, first %.2g, second %.2g\n", backends[b], of_w, of_m,
                      of_v);
        assert_true(of_w < 1e-5 && of_m < 1e-4 && of_v < 1e-5);
        rig_step_free(&step);
        rig_close(&rig);
        free(p.w), free(p.m), free(p.v), free(p.g), free(w), free(now), free(x), free(in);
    }
}

#ifdef TESTED_IS_CPU
/* ---- the loops */

#define LEVELS 3

static const struct sfc_simd *level(size_t i)
{
    static const char *const names[LEVELS] = {"base", "avx2", "avx512"};
    setenv("SFC_CPU_LEVEL", names[i], 1);
    const struct sfc_simd *simd = sfc_simd_select();
    unsetenv("SFC_CPU_LEVEL");
    return simd;
}

enum { ROWS = 5, MAX_DIM = 64 };

struct rows {
    char records[ROWS * 3 * MAX_DIM * sizeof(float)];
    float scratch[2 * MAX_DIM], dw[ROWS * MAX_DIM], inverse[ROWS];
    double w[ROWS][MAX_DIM], m[ROWS][MAX_DIM], v[ROWS][MAX_DIM];
    struct sfc_store store;
};

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * 0x1p-23f - 1.0f;
}

static void put_tensor(struct rows *r, size_t row, size_t tensor, size_t dim, const float *values)
{
    void *at = sfc_store_at(&r->store, row, tensor, dim);
    if (r->store.format == SFC_STORE_F32 || (r->store.format == SFC_STORE_SPLIT && tensor))
        memcpy(at, values, dim * sizeof *values);
    else
        level(0)->half->pack(values, dim, r->store.format, at, (uint16_t *)at + dim);
}

static void get_tensor(const struct rows *r, size_t row, size_t tensor, size_t dim, float *values)
{
    void *at = sfc_store_at(&r->store, row, tensor, dim);
    if (r->store.format == SFC_STORE_F32 || (r->store.format == SFC_STORE_SPLIT && tensor))
        memcpy(values, at, dim * sizeof *values);
    else
        level(0)->half->unpack(at, (uint16_t *)at + dim, dim, r->store.format, values);
}

static struct rows *rows_new(enum sfc_store_format format, size_t dim, size_t pitch)
{
    struct rows *r = aligned_alloc(64, (sizeof *r + 63) / 64 * 64);
    float values[MAX_DIM];
    uint32_t seed = 9;
    assert_non_null(r);
    memset(r, 0, sizeof *r);
    r->store = (struct sfc_store){.format = format,
                                  .records = r->records,
                                  .tensors = 3,
                                  .now = 7,
                                  .nearest = true,
                                  .scratch = r->scratch};
    for (size_t row = 0; row < ROWS; row++) {
        double *parts[] = {r->w[row], r->m[row], r->v[row]}, square = 0;
        for (size_t tensor = 0; tensor < 3; tensor++) {
            for (size_t k = 0; k < dim; k++)
                values[k] = tensor == 2 ? fabsf(noise(&seed)) : noise(&seed);
            put_tensor(r, row, tensor, dim, values);
            get_tensor(r, row, tensor, dim, values); /* as far as the format has it */
            for (size_t k = 0; k < dim; k++)
                parts[tensor][k] = values[k];
        }
        for (size_t k = 0; k < dim; k++)
            square += r->w[row][k] * r->w[row][k];
        r->inverse[row] = (float)(1 / sqrt(square));
        for (size_t k = 0; k < dim; k++)
            r->dw[row * pitch + k] = noise(&seed);
    }
    return r;
}

static void loops_follow_the_equations(void **state)
{
    (void)state;
    static const size_t dims[] = {1, 15, 33, 64};
    static const uint32_t chosen[] = {1, 2, 4};
    const struct sfc_update u = {.gradient_scale = 0.5f,
                                 .adamw = sfc_adamw_at(0.9, 0.99, 1e-3, 0.1, 0.05, 7)};
    for (size_t l = 0; l < LEVELS; l++)
        for (int format = SFC_STORE_F32; format <= SFC_STORE_SPLIT; format++)
            for (size_t d = 0; d < 4; d++) {
                size_t dim = dims[d], pitch = (dim + 15) / 16 * 16;
                struct rows *r = rows_new((enum sfc_store_format)format, dim, pitch);
                float dw[3 * MAX_DIM], inverse[3], got[MAX_DIM];
                for (size_t i = 0; i < 3; i++) {
                    memcpy(dw + i * pitch, r->dw + chosen[i] * pitch, pitch * sizeof *dw);
                    inverse[i] = r->inverse[chosen[i]];
                }
                (format == SFC_STORE_F32 ? level(l)->adamw : level(l)->half->adamw)(
                    &r->store, chosen, 3, dim, pitch, dw, inverse, &u);
                for (size_t row = 0, i = 0; row < ROWS; row++) {
                    bool touched = i < 3 && chosen[i] == row;
                    double along = 0, inv = r->inverse[row];
                    for (size_t k = 0; k < dim; k++)
                        along += r->w[row][k] * inv * r->dw[row * pitch + k];
                    for (size_t k = 0; touched && k < dim; k++) {
                        double *w = &r->w[row][k], *m = &r->m[row][k], *v = &r->v[row][k];
                        double g = 0.5 * inv * (r->dw[row * pitch + k] - *w * inv * along);
                        *m = 0.9 * *m + 0.1 * g;
                        *v = 0.99 * *v + 0.01 * g * g;
                        *w -= 0.05 *
                              (*m / (1 - pow(0.9, 7)) / (sqrt(*v / (1 - pow(0.99, 7))) + 1e-3) +
                               0.1 * *w);
                    }
                    double off = touched && format == SFC_STORE_BF16 ? 0x1p-8 : 1e-6;
                    double *parts[] = {r->w[row], r->m[row], r->v[row]};
                    for (size_t tensor = 0; tensor < 3; tensor++) {
                        get_tensor(r, row, tensor, dim, got);
                        for (size_t k = 0; k < dim; k++)
                            assert_true(fabs(got[k] - parts[tensor][k]) <=
                                        off * (fabs(parts[tensor][k]) + (touched ? 1 : 0)) +
                                            1e-6 * inv);
                    }
                    i += touched;
                }
                free(r);
            }
}

/* v without gradients: times 0.9, between two bf16. Its mean comes out, it never falls below 0, and
 * its rounding is that of kernels/rng/rounding.h. */
static void second_moments_round_stochastically(void **state)
{
    (void)state;
    const size_t dim = 64;
    static const uint32_t all[ROWS] = {0, 1, 2, 3, 4};
    const struct sfc_update u = {.adamw = sfc_adamw_at(0.9, 0.9, 1e-3, 0, 0, 7)};
    const double v0 = 0.25, v1 = (double)0.9f * v0;
    for (size_t l = 0; l < LEVELS; l++) {
        double sum = 0, n = 0;
        for (uint32_t step = 1; step <= 400; step++) {
            struct rows *r = rows_new(SFC_STORE_BF16, dim, dim);
            float values[MAX_DIM], tiny[MAX_DIM];
            r->store.nearest = false;
            r->store.now = step;
            r->store.seed = 11;
            r->store.first_class = 1000;
            memset(r->dw, 0, sizeof r->dw);
            for (size_t k = 0; k < dim; k++) {
                values[k] = (float)v0;
                tiny[k] = k % 2 ? 0 : 1e-38f;
            }
            for (size_t row = 0; row < ROWS; row++)
                put_tensor(r, row, 2, dim, row ? values : tiny);
            level(l)->half->adamw(&r->store, all, ROWS, dim, dim, r->dw, r->inverse, &u);
            for (size_t row = 0; row < ROWS; row++) {
                struct sfc_rounding_key key = sfc_rounding_second_key(11, step, 1000 + row);
                get_tensor(r, row, 2, dim, values);
                for (uint32_t k = 0; k < dim; k++) {
                    uint16_t random = (uint16_t)sfc_rounding_word(key, k);
                    assert_true(values[k] >= 0 && !signbit(values[k]));
                    if (row == 0)
                        continue;
                    assert_true(values[k] == sfc_bf16_stochastic((float)v1, random));
                    sum += values[k];
                    n++;
                }
            }
            free(r);
        }
        assert_true(fabs(sum / n - v1) < 5 * 0x1p-11 / sqrt(n)); /* five standard deviations */
    }
}

#endif

/* ---- the state can be read and moved */

enum { PARTS = 3 };
static const enum sfc_block_part parts[PARTS] = {SFC_PART_VALUES, SFC_PART_MOMENTUM,
                                                 SFC_PART_SECOND_MOMENT};

struct state {
    float *part[PARTS];
    uint64_t done;
};

static struct state state_new(const struct sfc_head_config *c)
{
    struct state s = {.done = 0};
    for (size_t p = 0; p < PARTS; p++) {
        s.part[p] = calloc((size_t)c->classes * c->dim, sizeof(float));
        assert_non_null(s.part[p]);
    }
    return s;
}

static void state_free(struct state *s)
{
    for (size_t p = 0; p < PARTS; p++)
        free(s->part[p]);
}

static void save(struct rig *rig, uint64_t done, struct state *s)
{
    for (size_t p = 0; p < PARTS; p++)
        rig_read(rig, parts[p], s->part[p]);
    s->done = done;
}

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
    for (size_t p = 0; p < PARTS; p++)
        assert_memory_equal(a->part[p], b->part[p], (size_t)c->classes * c->dim * sizeof(float));
}

static void reading_and_moving_keep_bits(void **unused)
{
    (void)unused;
    static const struct rig_setup setups[] = {
        {TESTED, 1, 1, 4, false}, {TESTED, 2, 3, 1, false}, {TESTED, 3, 5, 2, true}};
    for (int format = 0; format < 4; format++) {
        struct sfc_head_config c = adamw_config(format);
        struct state undisturbed = state_new(&c), other = state_new(&c), start = state_new(&c);
        struct rig rig;
        rig_open(&rig, setups[0], &c);
        save(&rig, 0, &start);
        go_on(&rig, start.part[0], (uint64_t)3 * MOVE, false, &undisturbed);
        rig_close(&rig);
        for (size_t i = 0; i < 3; i++) { /* read in every step */
            other.done = 0;
            rig_open(&rig, setups[i], &c);
            go_on(&rig, start.part[0], (uint64_t)3 * MOVE, true, &other);
            rig_close(&rig);
            assert_same(&c, &undisturbed, &other);
        }
        for (size_t i = 0; i < 3; i++) { /* and from heads to other heads */
            rig_open(&rig, setups[i], &c);
            if (i)
                for (size_t p = 0; p < PARTS; p++)
                    rig_write(&rig, parts[p], other.part[p]);
            other.done = MOVE * i;
            go_on(&rig, start.part[0], MOVE * (i + 1), false, &other);
            rig_close(&rig);
        }
        assert_same(&c, &undisturbed, &other);
        state_free(&undisturbed), state_free(&other), state_free(&start);
    }
}

static void state_is_three_numbers_a_weight(void **unused)
{
    (void)unused;
    struct sfc_backend *backend = NULL;
    struct sfc_error err = {0};
    uint64_t blocks[32];
    for (uint64_t b = 0; b < 32; b++)
        blocks[b] = b;
    assert_int_equal(sfc_backend_open(TESTED, 1, &backend, &err), SFC_OK);
    for (int format = 0; format < 4; format++) {
        struct sfc_head_config c = adamw_config(format);
        struct sfc_memory memory;
        c.classes = 1 << 17;
        c.dim = 512;
        c.block_size = 4096;
        assert_int_equal(sfc_head_memory(backend, &c, blocks, 32, &memory, &err), SFC_OK);
        double bytes = c.dtype == SFC_DTYPE_BF16 ? 6 : 12;
        double share = (double)memory.state_bytes / (bytes * (double)c.classes * c.dim);
        assert_true(share >= 1 && share < 1.01);
    }
    sfc_backend_close(backend);
}

static void wrong_parts_and_values_are_refused(void **unused)
{
    (void)unused;
    struct sfc_head_config c = adamw_config(0);
    struct sfc_error err = {0};
    struct rig rig;
    float value = -1e-20f;
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, &c);
    struct sfc_head *head = rig.head[0];
    assert_int_equal(sfc_head_write(head, 1, SFC_PART_SECOND_MOMENT, 0, 1, &value, &err),
                     SFC_EINVAL);
    assert_int_equal(sfc_head_read(head, 0, SFC_PART_LAST_STEP, 0, 1, &value, &err), SFC_EINVAL);
    rig_close(&rig);
    c.optimizer = SFC_OPTIMIZER_SGD;
    rig_open(&rig, (struct rig_setup){TESTED, 1, 1, 1, false}, &c);
    assert_int_equal(sfc_head_read(rig.head[0], 0, SFC_PART_SECOND_MOMENT, 0, 1, &value, &err),
                     SFC_EINVAL);
    rig_close(&rig);
}

int main(void)
{
    if (tested_backend_missing())
        return TESTED_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_one_in_double),
#ifdef TESTED_IS_CPU
        cmocka_unit_test(loops_follow_the_equations),
        cmocka_unit_test(second_moments_round_stochastically),
#endif
        cmocka_unit_test(reading_and_moving_keep_bits),
        cmocka_unit_test(state_is_three_numbers_a_weight),
        cmocka_unit_test(wrong_parts_and_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

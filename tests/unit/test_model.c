/* Backbones: values and gradients against a double-precision reference, bits against themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/openmp.h"
#include "tests/unit/model_reference.h"

static double uniform(uint64_t *state) /* (-1, 1) */
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(int64_t)*state / 9223372036854775808.0;
}

static float *random_floats(size_t count, double scale, uint64_t seed)
{
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)(scale * uniform(&seed));
    }
    return x;
}

/* Initial values with all constants disturbed, so that no gamma is 1 and no beta 0. */
static float *random_params(const struct sfc_model *model, uint64_t seed)
{
    float *params = malloc(model->size * sizeof *params);
    assert_non_null(params);
    for (size_t i = 0; i < model->param_count; i++) {
        const struct sfc_param *p = &model->params[i];
        double std = p->init_std > 0 ? p->init_std * sqrt(3.0) : 0.2;
        for (uint64_t k = 0; k < p->length; k++) {
            params[p->offset + k] = (float)(p->init_mean + std * uniform(&seed));
        }
    }
    return params;
}

static double *to_double(const float *x, size_t count)
{
    double *y = malloc(count * sizeof *y);
    assert_non_null(y);
    for (size_t i = 0; i < count; i++) {
        y[i] = (double)x[i];
    }
    return y;
}

/* One model with inputs, the lane's answers and the reference. */
struct setup {
    struct sfc_model *model;
    struct sfc_lane *lane;
    struct reference reference;
    uint32_t batch;
    size_t feature_count;
    float *params, *images, *features, *dfeatures, *gradient;
    double *exact_params;
};

static void setup_model(struct setup *s, struct sfc_model *model, uint32_t batch, uint64_t seed)
{
    struct sfc_error err = {0};
    struct sfc_model_input in = model->input;
    size_t image = (size_t)in.width * in.height * in.channels;
    *s = (struct setup){.model = model, .batch = batch, .feature_count = batch * model->dim};
    s->params = random_params(model, seed);
    s->exact_params = to_double(s->params, model->size);
    s->images = random_floats(batch * image, 1.0, seed + 1);
    s->dfeatures = random_floats(s->feature_count, 1.0, seed + 2);
    s->features = malloc(s->feature_count * sizeof *s->features);
    s->gradient = malloc(model->size * sizeof *s->gradient);
    assert_non_null(s->features);
    assert_non_null(s->gradient);
    for (uint64_t i = 0; i < model->size; i++) {
        s->gradient[i] = NAN; /* every place must be written */
    }
    reference_init(&s->reference, model, batch);
    if (sfc_lane_new(sfc_lane_device_cpu(), model, batch, &s->lane, &err) != SFC_OK) {
        fail_msg("%s", err.text);
    }
}

static void train(struct setup *s)
{
    struct sfc_error err = {0};
    if (sfc_lane_forward(s->lane, s->params, s->images, s->features, &err) != SFC_OK ||
        sfc_lane_backward(s->lane, s->dfeatures, s->gradient, &err) != SFC_OK) {
        fail_msg("%s", err.text);
    }
}

static void teardown(struct setup *s)
{
    sfc_lane_free(s->lane);
    reference_close(&s->reference);
    sfc_model_free(s->model);
    free(s->params);
    free(s->exact_params);
    free(s->images);
    free(s->features);
    free(s->dfeatures);
    free(s->gradient);
}

static void check_features(const struct setup *s, const double *exact, double tolerance)
{
    double worst = 0, scale = 0;
    for (size_t i = 0; i < s->feature_count; i++) {
        worst = fmax(worst, fabs((double)s->features[i] - exact[i]));
        assert_true(isfinite(s->features[i]));
        scale = fmax(scale, fabs(exact[i]));
    }
    if (!(worst <= tolerance * scale)) {
        fail_msg("features differ by %g of %g", worst, scale);
    }
}

static double loss(struct setup *s)
{
    const double *y = reference_forward(&s->reference, s->exact_params, s->images, true);
    double sum = 0;
    for (size_t i = 0; i < s->feature_count; i++) {
        sum += y[i] * (double)s->dfeatures[i];
    }
    return sum;
}

static double slope_at(struct setup *s, uint64_t index)
{
    const double step = 1e-6;
    double keep = s->exact_params[index];
    s->exact_params[index] = keep + step;
    double above = loss(s);
    s->exact_params[index] = keep - step;
    double below = loss(s);
    s->exact_params[index] = keep;
    return (above - below) / (2 * step);
}

/* Statistics stand in the gradient vector as what the micro-batch measured. */
static void check_statistics(const struct setup *s)
{
    for (size_t i = 0; i < s->model->param_count; i++) {
        const struct sfc_param *p = &s->model->params[i];
        for (uint64_t k = p->offset; p->role == SFC_PARAM_STATISTIC && k < p->offset + p->length;
             k++) {
            double exact = s->reference.statistics[k];
            if (!(fabs((double)s->gradient[k] - exact) <= 2e-5 * fmax(1.0, fabs(exact)))) {
                fail_msg("%s[%llu]: %g, not %g", p->name, (unsigned long long)(k - p->offset),
                         (double)s->gradient[k], exact);
            }
        }
    }
}

/* At most `most` evenly spread parameters of each segment against finite differences. */
static void check_gradient(struct setup *s, uint64_t most, double tolerance)
{
    for (size_t i = 0; i < s->model->param_count; i++) {
        const struct sfc_param *p = &s->model->params[i];
        if (p->role == SFC_PARAM_STATISTIC) {
            continue;
        }
        double scale = 0;
        for (uint64_t k = 0; k < p->length; k++) {
            scale = fmax(scale, fabs((double)s->gradient[p->offset + k]));
        }
        uint64_t count = p->length < most ? p->length : most;
        for (uint64_t n = 0; n < count; n++) {
            uint64_t k = p->offset + n * p->length / count;
            double exact = slope_at(s, k), got = (double)s->gradient[k];
            if (!(fabs(got - exact) <= tolerance * fmax(scale, fabs(exact)) + 1e-5)) {
                fail_msg("%s[%llu]: gradient %.9g, not %.9g (largest %g)", p->name,
                         (unsigned long long)(k - p->offset), got, exact, scale);
            }
        }
    }
}

/* Along the gradient, each segment scaled to length 1: catches a wrong part anywhere. */
static void check_directions(struct setup *s, double tolerance)
{
    const struct sfc_model *m = s->model;
    const double step = 1e-5;
    double *base = s->exact_params, expected = 0, value[2];
    double *direction = calloc(m->size, sizeof *direction);
    double *moved = calloc(m->size, sizeof *moved);
    assert_non_null(direction);
    assert_non_null(moved);
    for (size_t i = 0; i < m->param_count; i++) {
        const struct sfc_param *p = &m->params[i];
        double square = 0;
        for (uint64_t k = p->offset; k < p->offset + p->length; k++) {
            square += (double)s->gradient[k] * (double)s->gradient[k];
        }
        for (uint64_t k = p->offset; p->role != SFC_PARAM_STATISTIC && k < p->offset + p->length;
             k++) {
            direction[k] = (double)s->gradient[k] / sqrt(square);
            expected += direction[k] * (double)s->gradient[k];
        }
    }
    for (int side = 0; side < 2; side++) {
        for (uint64_t k = 0; k < m->size; k++) {
            moved[k] = base[k] + (side == 0 ? step : -step) * direction[k];
        }
        s->exact_params = moved;
        value[side] = loss(s);
    }
    s->exact_params = base;
    double got = (value[0] - value[1]) / (2 * step);
    free(direction);
    free(moved);
    if (!(fabs(got - expected) <= tolerance * fabs(expected))) {
        fail_msg("directional derivative %.9g, lane says %.9g", got, expected);
    }
}

static struct sfc_model *build(const struct sfc_row *rows, size_t count,
                               struct sfc_model_input input, uint32_t dim)
{
    struct sfc_backbone backbone = {"test", input, rows, count};
    struct sfc_model *model = NULL;
    struct sfc_error err = {0};
    if (sfc_model_build(&backbone, dim, &model, &err) != SFC_OK) {
        fail_msg("%s", err.text);
    }
    return model;
}

static void check_small(const struct sfc_row *rows, size_t count, struct sfc_model_input input)
{
    for (uint32_t batch = 3; batch <= 17; batch += 14) {
        struct setup s;
        setup_model(&s, build(rows, count, input, 6), batch, batch);
        train(&s);
        check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 2e-5);
        check_statistics(&s);
        check_gradient(&s, batch == 3 ? UINT64_MAX : 8, 2e-4);
        teardown(&s);
    }
}

#define ROWS(rows) rows, sizeof rows / sizeof rows[0]

static void test_conv(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_CONV, .name = "a", .channels = 8, .kernel = 5, .stride = 2, .pad = 2},
        {.kind = SFC_ROW_CONV,
         .name = "b",
         .channels = 12,
         .kernel = 3,
         .stride = 1,
         .pad = 1,
         .groups = 4},
        {.kind = SFC_ROW_CONV,
         .name = "c",
         .channels = 5,
         .kernel = 1,
         .stride = 1,
         .linear = true},
        {.kind = SFC_ROW_CONV, .name = "d", .channels = 17, .kernel = 3, .stride = 2, .pad = 0},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
        {.kind = SFC_ROW_NORM, .name = "head", .linear = true},
    };
    check_small(ROWS(rows), (struct sfc_model_input){11, 9, 3});
    check_small(ROWS(rows), (struct sfc_model_input){8, 12, 1});
}

static void test_depthwise(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_DEPTHWISE, .name = "image", .kernel = 3, .stride = 1, .pad = 1},
        {.kind = SFC_ROW_CONV, .name = "wide", .channels = 20, .kernel = 1, .stride = 1},
        {.kind = SFC_ROW_DEPTHWISE, .name = "same", .kernel = 3, .stride = 1, .pad = 1},
        {.kind = SFC_ROW_DEPTHWISE, .name = "half", .kernel = 3, .stride = 2, .pad = 1},
        {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd"},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    check_small(ROWS(rows), (struct sfc_model_input){7, 9, 2});
}

static void test_global_on_image(void **state)
{
    (void)state;
    const struct sfc_row weighted[] = {
        {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd", .linear = true},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    const struct sfc_row mean[] = {
        {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
        {.kind = SFC_ROW_NORM, .name = "norm"},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    check_small(ROWS(weighted), (struct sfc_model_input){3, 4, 5});
    check_small(ROWS(mean), (struct sfc_model_input){3, 4, 5});
}

static void test_residual(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        /* the first sum adds the image itself */
        {.kind = SFC_ROW_BOTTLENECK,
         .name = "s0",
         .expand = 2,
         .channels = 3,
         .repeat = 2,
         .stride = 1},
        {.kind = SFC_ROW_BOTTLENECK,
         .name = "s1",
         .expand = 2,
         .channels = 5,
         .repeat = 3,
         .stride = 2},
        {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    check_small(ROWS(rows), (struct sfc_model_input){6, 5, 3});
}

static void test_norm_first(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_NORM, .name = "image"},
        {.kind = SFC_ROW_CONV, .name = "a", .channels = 4, .kernel = 3, .stride = 1, .pad = 1},
        {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    check_small(ROWS(rows), (struct sfc_model_input){5, 5, 3});
}

/* Deviations of 1 around 100: sums of squares would lose them. */
static void test_norm_far_from_zero(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_NORM, .name = "image", .linear = true},
        {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd", .linear = true},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    struct setup s;
    setup_model(&s,
                build(rows, sizeof rows / sizeof rows[0], (struct sfc_model_input){9, 13, 2}, 5), 9,
                21);
    for (size_t i = 0; i < 9 * 9 * 13 * 2; i++) {
        s.images[i] += 100.0f;
    }
    train(&s);
    check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-3);
    check_statistics(&s);
    teardown(&s);
}

static struct sfc_model *known(const char *name, uint32_t dim)
{
    struct sfc_model_input input = {32, 32, 1};
    if (strcmp(name, "mbf") == 0) {
        input = (struct sfc_model_input){112, 112, 3};
    }
    struct sfc_model *model = NULL;
    struct sfc_error err = {0};
    if (sfc_model_new(name, input, dim, &model, &err) != SFC_OK) {
        fail_msg("%s", err.text);
    }
    return model;
}

static void test_tiny(void **state)
{
    (void)state;
    struct setup s;
    setup_model(&s, known("tiny", 32), 5, 77);
    train(&s);
    check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-4);
    check_statistics(&s);
    check_gradient(&s, 2, 1e-3);
    check_directions(&s, 1e-3);
    teardown(&s);
}

static void test_mbf(void **state)
{
    (void)state;
    struct setup s;
    setup_model(&s, known("mbf", 24), 3, 5);
    train(&s);
    check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-3);
    check_directions(&s, 5e-3);
    teardown(&s);
}

static void test_embed(void **state)
{
    (void)state;
    struct setup s;
    struct sfc_error err = {0};
    setup_model(&s, known("tiny", 16), 4, 9);
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, false), 2e-5);

    /* a row's embedding does not depend on the other rows */
    float *first = malloc(s.feature_count * sizeof *first);
    assert_non_null(first);
    memcpy(first, s.features, s.feature_count * sizeof *first);
    for (size_t i = 1024; i < 4096; i++) {
        s.images[i] = -s.images[i];
    }
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    assert_memory_equal(first, s.features, 16 * sizeof *first);
    assert_memory_not_equal(first + 16, s.features + 16, 48 * sizeof *first);
    free(first);
    teardown(&s);
}

/* A job of a thread: its own lane, its own history, buffers at odd addresses. */
struct bits {
    const struct setup *s;
    int history;
    float *features, *gradient; /* out */
    int rc;
};

static void *compute_bits(void *arg)
{
    struct bits *job = arg;
    const struct setup *s = job->s;
    struct sfc_error err;
    struct sfc_lane *lane = NULL;
    omp_set_num_threads(2 + job->history); /* the lane must not care */
    float *other = calloc(s->batch * 1024u + 1, sizeof *other);
    job->rc = other == NULL ? SFC_ENOMEM
                            : sfc_lane_new(sfc_lane_device_cpu(), s->model, s->batch, &lane, &err);
    for (int i = 0; i < job->history && job->rc == SFC_OK; i++) {
        other[i] = NAN; /* poison of an earlier micro-batch */
        job->rc = sfc_lane_forward(lane, s->params, other, job->features, &err);
        if (job->rc == SFC_OK) {
            job->rc = sfc_lane_backward(lane, s->dfeatures, job->gradient, &err);
        }
    }
    omp_set_num_threads(3);
    if (job->rc == SFC_OK) {
        memcpy(other + 1, s->images, s->batch * 1024u * sizeof *other);
        job->rc = sfc_lane_forward(lane, s->params, other + 1, job->features, &err);
    }
    if (job->rc == SFC_OK) {
        job->rc = sfc_lane_backward(lane, s->dfeatures, job->gradient, &err);
    }
    sfc_lane_free(lane);
    free(other);
    return NULL;
}

static void test_bits(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    struct setup s;
    struct bits jobs[THREADS];
    pthread_t threads[THREADS];
    setup_model(&s, known("tiny", 32), 16, 3);
    train(&s);
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct bits){.s = &s, .history = i};
        jobs[i].features = malloc(s.feature_count * sizeof(float));
        jobs[i].gradient = malloc((s.model->size + 1) * sizeof(float));
        assert_non_null(jobs[i].features);
        assert_non_null(jobs[i].gradient);
        assert_int_equal(pthread_create(&threads[i], NULL, compute_bits, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(jobs[i].rc, SFC_OK);
        assert_memory_equal(jobs[i].features, s.features, s.feature_count * sizeof(float));
        assert_memory_equal(jobs[i].gradient, s.gradient, s.model->size * sizeof(float));
        free(jobs[i].features);
        free(jobs[i].gradient);
    }
    teardown(&s);
}

static void check_layout(const char *name)
{
    struct sfc_model *model = known(name, 128);
    size_t count;
    const struct sfc_param *p = sfc_model_params(model, &count);
    uint64_t end = 0, roles[3] = {0};
    for (size_t i = 0; i < count; i++) {
        uint64_t product = 1;
        for (uint32_t k = 0; k < p[i].rank; k++) {
            product *= p[i].shape[k];
        }
        assert_int_equal(p[i].offset, end);
        assert_int_equal(p[i].length, product);
        assert_true(p[i].length > 0);
        assert_true(p[i].init_std >= 0);
        end += p[i].length;
        roles[p[i].role] += p[i].length;
        for (size_t k = 0; k < i; k++) {
            assert_string_not_equal(p[i].name, p[k].name);
        }
    }
    assert_int_equal(end, sfc_model_size(model));
    assert_true(roles[SFC_PARAM_WEIGHT] > roles[SFC_PARAM_WEIGHT_NO_DECAY]);
    assert_true(roles[SFC_PARAM_STATISTIC] > 0);
    sfc_model_free(model);
}

static void test_layout(void **state)
{
    (void)state;
    check_layout("tiny");
    check_layout("mbf");
    struct sfc_model *model = known("tiny", 128);
    size_t count;
    const struct sfc_param *p = sfc_model_params(model, &count);
    assert_string_equal(p[0].name, "conv1.weight");
    /* 600 + 13824 + 36864 + 73728 + 262144 weights; 5 and 2 x 2 numbers per channel of the norms */
    assert_int_equal(sfc_model_size(model), 387160 + 5 * (24 + 64 + 64 + 128) + 4 * 128);
    sfc_model_free(model);
}

static void test_errors(void **state)
{
    (void)state;
    struct sfc_model *model = NULL;
    struct sfc_lane *lane = NULL;
    struct sfc_error err = {0};
    struct sfc_model_input right = {32, 32, 1}, wrong = {112, 112, 3};
    assert_int_equal(sfc_model_new("resnet", right, 8, &model, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "'resnet'"));
    assert_non_null(strstr(err.text, "tiny, mbf"));
    assert_int_equal(sfc_model_new("tiny", wrong, 8, &model, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "32 x 32 x 1"));
    assert_non_null(strstr(err.text, "112 x 112 x 3"));
    assert_int_equal(sfc_model_new("tiny", right, 0, &model, &err), SFC_EINVAL);
    assert_int_equal(sfc_model_new("tiny", right, UINT32_MAX, &model, NULL), SFC_EINVAL);
    assert_null(model);
    const struct sfc_row large[] = {
        {.kind = SFC_ROW_CONV, .name = "big", .channels = 4, .kernel = 7, .stride = 1}};
    struct sfc_backbone backbone = {"test", {5, 5, 1}, large, 1};
    assert_int_equal(sfc_model_build(&backbone, 4, &model, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "big"));
    backbone.input = (struct sfc_model_input){9, 9, 1};
    assert_int_equal(sfc_model_build(&backbone, 4, &model, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "3 x 3 x 4"));

    model = known("tiny", 8);
    assert_int_equal(sfc_lane_new(sfc_lane_device_cpu(), model, 0, &lane, &err), SFC_EINVAL);
    assert_int_equal(sfc_lane_new(sfc_lane_device_cpu(), model, UINT32_MAX, &lane, &err),
                     SFC_EINVAL);
    assert_null(lane);
    sfc_lane_free(NULL);
    sfc_model_free(NULL);
    sfc_model_free(model);
}

static void test_order_of_calls(void **state)
{
    (void)state;
    struct setup s;
    struct sfc_error err = {0};
    setup_model(&s, known("tiny", 8), 1, 4);
    assert_true(sfc_lane_memory(s.lane) > 0);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_ESTATE);
    assert_int_equal(sfc_lane_forward(s.lane, s.params, s.images, s.features, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "head"));
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    teardown(&s);
    setup_model(&s, known("tiny", 8), 2, 4);
    train(&s);
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_ESTATE);
    teardown(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_conv),
        cmocka_unit_test(test_depthwise),
        cmocka_unit_test(test_residual),
        cmocka_unit_test(test_global_on_image),
        cmocka_unit_test(test_norm_first),
        cmocka_unit_test(test_norm_far_from_zero),
        cmocka_unit_test(test_order_of_calls),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_tiny),
        cmocka_unit_test(test_mbf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/lib/model_rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Beside normed inputs, of standard deviation 1. */
#define SIGNS_APART  6.0f
#define SIGNS_MARGIN 0.1 /* what bf16 rounds of numbers below 16, several times */

static const struct sfc_row conv_rows[] = {
    {.kind = SFC_ROW_CONV, .name = "a", .channels = 8, .kernel = 5, .stride = 2, .pad = 2},
    {.kind = SFC_ROW_CONV,
     .name = "b",
     .channels = 12,
     .kernel = 3,
     .stride = 1,
     .pad = 1,
     .groups = 4},
    {.kind = SFC_ROW_CONV, .name = "c", .channels = 5, .kernel = 1, .stride = 1, .linear = true},
    {.kind = SFC_ROW_CONV, .name = "d", .channels = 17, .kernel = 3, .stride = 2, .pad = 0},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
    {.kind = SFC_ROW_NORM, .name = "head", .linear = true},
};

static const struct sfc_row depthwise_rows[] = {
    {.kind = SFC_ROW_DEPTHWISE, .name = "image", .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_CONV, .name = "wide", .channels = 20, .kernel = 1, .stride = 1},
    {.kind = SFC_ROW_DEPTHWISE, .name = "same", .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_DEPTHWISE, .name = "half", .kernel = 3, .stride = 2, .pad = 1},
    {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd"},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
};

static const struct sfc_row weighted_rows[] = {
    {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd", .linear = true},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
};

static const struct sfc_row mean_rows[] = {
    {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
    {.kind = SFC_ROW_NORM, .name = "norm"},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
};

static const struct sfc_row residual_rows[] = {
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

static const struct sfc_row norm_rows[] = {
    {.kind = SFC_ROW_NORM, .name = "image"},
    {.kind = SFC_ROW_CONV, .name = "a", .channels = 4, .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
};

/* Channels in eights, as the kernels of devices like them best. */
static const struct sfc_row eights_rows[] = {
    {.kind = SFC_ROW_CONV, .name = "a", .channels = 16, .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "s",
     .expand = 2,
     .channels = 16,
     .repeat = 2,
     .stride = 1},
    {.kind = SFC_ROW_DEPTHWISE, .name = "half", .kernel = 3, .stride = 2, .pad = 1},
    {.kind = SFC_ROW_DEPTHWISE, .name = "five", .kernel = 5, .stride = 1, .pad = 2},
    {.kind = SFC_ROW_CONV, .name = "g", .channels = 32, .kernel = 3, .stride = 1, .groups = 2},
    {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gd"},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
};

#define ROWS(rows) rows, sizeof rows / sizeof rows[0]

const struct rig_case rig_cases[] = {
    {"conv", ROWS(conv_rows), {11, 9, 3}},
    {"conv on 8 x 12", ROWS(conv_rows), {8, 12, 1}},
    {"depthwise", ROWS(depthwise_rows), {7, 9, 2}},
    {"global depthwise on the image", ROWS(weighted_rows), {3, 4, 5}},
    {"mean of the image", ROWS(mean_rows), {3, 4, 5}},
    {"residual", ROWS(residual_rows), {6, 5, 3}},
    {"norm first", ROWS(norm_rows), {5, 5, 3}},
    {"eights", ROWS(eights_rows), {9, 8, 3}},
};
const size_t rig_case_count = sizeof rig_cases / sizeof rig_cases[0];

static void must(const void *block)
{
    if (block == NULL) {
        rig_fail("out of memory");
    }
}

static double uniform(uint64_t *state) /* (-1, 1) */
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(int64_t)*state / 9223372036854775808.0;
}

static float *random_floats(size_t count, double scale, uint64_t seed)
{
    float *x = malloc(count * sizeof *x);
    must(x);
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)(scale * uniform(&seed));
    }
    return x;
}

/* Initial values with all constants disturbed, so that no gamma is 1 and no beta 0. */
static float *random_params(const struct sfc_model *model, uint64_t seed)
{
    float *params = malloc(model->size * sizeof *params);
    must(params);
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
    must(y);
    for (size_t i = 0; i < count; i++) {
        y[i] = (double)x[i];
    }
    return y;
}

void rig_init(struct rig *s, const struct sfc_lane_device *device, struct sfc_model *model,
              uint32_t batch, uint64_t seed)
{
    struct sfc_error err = {0};
    struct sfc_model_input in = model->input;
    size_t image = (size_t)in.width * in.height * in.channels;
    *s = (struct rig){.model = model, .batch = batch, .feature_count = batch * model->dim};
    s->params = random_params(model, seed);
    s->exact_params = to_double(s->params, model->size);
    s->images = random_floats(batch * image, 1.0, seed + 1);
    s->dfeatures = random_floats(s->feature_count, 1.0, seed + 2);
    s->features = malloc(s->feature_count * sizeof *s->features);
    s->gradient = malloc(model->size * sizeof *s->gradient);
    must(s->features);
    must(s->gradient);
    for (uint64_t i = 0; i < model->size; i++) {
        s->gradient[i] = NAN; /* every place must be written */
    }
    reference_init(&s->reference, model, batch);
    if (sfc_lane_new(device, model, batch, &s->lane, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
}

/* The least distance from 0 of what a PReLU got in the reference's last forward. */
static double margin(const struct rig *s, const struct sfc_layer *layer, const double *y)
{
    const struct sfc_shape out = layer->out;
    const double *slope = s->exact_params + s->model->params[layer->params.slope].offset;
    size_t pixels = (size_t)out.height * out.width;
    double least = INFINITY;
    for (size_t i = 0; i < s->batch * sfc_shape_floats(out); i++) {
        least = fmin(least, y[i] > 0 ? y[i] : fabs(y[i] / slope[i / pixels % out.channels]));
    }
    return least;
}

/* Inputs of all PReLUs away from 0, those of one channel above, of the next one below. */
static void part_signs(struct rig *s)
{
    const struct sfc_model *m = s->model;
    for (size_t i = 0; i < m->layer_count; i++) {
        const struct sfc_layer *l = &m->layers[i];
        const struct sfc_param *beta = &m->params[l->params.beta];
        for (uint64_t c = 0; l->kind == SFC_LAYER_NORM && l->prelu && c < beta->length; c++) {
            s->params[beta->offset + c] += c % 2 == 0 ? SIGNS_APART : -SIGNS_APART;
            s->exact_params[beta->offset + c] = (double)s->params[beta->offset + c];
        }
    }
    reference_forward(&s->reference, s->exact_params, s->images, true);
    for (size_t i = 0; i < m->layer_count; i++) {
        const struct sfc_layer *l = &m->layers[i];
        if (l->kind == SFC_LAYER_NORM && l->prelu &&
            margin(s, l, s->reference.tensors[i + 1]) < SIGNS_MARGIN) {
            rig_fail("%s: a PReLU's input is %g from 0", l->name,
                     margin(s, l, s->reference.tensors[i + 1]));
        }
    }
}

/* Slopes of 1: a changed sign changes nothing. */
static void straighten(struct rig *s)
{
    const struct sfc_model *m = s->model;
    for (size_t i = 0; i < m->layer_count; i++) {
        const struct sfc_layer *l = &m->layers[i];
        const struct sfc_param *slope = &m->params[l->params.slope];
        for (uint64_t c = 0; l->kind == SFC_LAYER_NORM && l->prelu && c < slope->length; c++) {
            s->params[slope->offset + c] = 1;
            s->exact_params[slope->offset + c] = 1;
        }
    }
}

void rig_train(struct rig *s)
{
    struct sfc_error err = {0};
    if (sfc_lane_forward(s->lane, s->params, s->images, s->features, &err) != SFC_OK ||
        sfc_lane_backward(s->lane, s->dfeatures, s->gradient, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
}

void rig_close(struct rig *s)
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

void rig_check_features(const struct rig *s, const double *exact, double tolerance)
{
    double worst = 0, scale = 0;
    bool finite = true;
    for (size_t i = 0; i < s->feature_count; i++) {
        worst = fmax(worst, fabs((double)s->features[i] - exact[i]));
        finite = finite && isfinite(s->features[i]);
        scale = fmax(scale, fabs(exact[i]));
    }
    if (!finite || !(worst <= tolerance * scale)) {
        rig_fail("features differ by %g of %g", worst, scale);
    }
}

static double loss(struct rig *s)
{
    const double *y = reference_forward(&s->reference, s->exact_params, s->images, true);
    double sum = 0;
    for (size_t i = 0; i < s->feature_count; i++) {
        sum += y[i] * (double)s->dfeatures[i];
    }
    return sum;
}

static double slope_at(struct rig *s, uint64_t index)
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
void rig_check_statistics(const struct rig *s, double tolerance)
{
    for (size_t i = 0; i < s->model->param_count; i++) {
        const struct sfc_param *p = &s->model->params[i];
        for (uint64_t k = p->offset; p->role == SFC_PARAM_STATISTIC && k < p->offset + p->length;
             k++) {
            double exact = s->reference.statistics[k];
            if (!(fabs((double)s->gradient[k] - exact) <= tolerance * fmax(1.0, fabs(exact)))) {
                rig_fail("%s[%llu]: %g, not %g", p->name, (unsigned long long)(k - p->offset),
                         (double)s->gradient[k], exact);
            }
        }
    }
}

/* At most `most` evenly spread parameters of each segment against finite differences. */
void rig_check_gradient(struct rig *s, uint64_t most, double tolerance)
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
                rig_fail("%s[%llu]: gradient %.9g, not %.9g (largest %g)", p->name,
                         (unsigned long long)(k - p->offset), got, exact, scale);
            }
        }
    }
}

/* Along the gradient, each segment scaled to length 1: catches a wrong part anywhere. */
void rig_check_directions(struct rig *s, double tolerance)
{
    const struct sfc_model *m = s->model;
    const double step = 1e-5;
    double *base = s->exact_params, expected = 0, value[2];
    double *direction = calloc(m->size, sizeof *direction);
    double *moved = calloc(m->size, sizeof *moved);
    must(direction);
    must(moved);
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
        rig_fail("directional derivative %.9g, lane says %.9g", got, expected);
    }
}

/* |a - b| / |b|; NaN where something is not finite. */
static double distance(const float *a, const float *b, size_t count)
{
    double difference = 0, square = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        square += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / square);
}

static double weights_distance(const struct rig *s, const struct rig *exact)
{
    double worst = 0;
    for (size_t i = 0; i < s->model->layer_count; i++) {
        const struct sfc_layer *l = &s->model->layers[i];
        const struct sfc_param *p = &s->model->params[l->params.weight];
        if (l->kind == SFC_LAYER_CONV || l->kind == SFC_LAYER_DENSE ||
            l->kind == SFC_LAYER_GLOBAL_DEPTHWISE) {
            double d = distance(s->gradient + p->offset, exact->gradient + p->offset, p->length);
            worst = fmax(worst, isfinite(d) ? d : INFINITY);
        }
    }
    return worst;
}

const struct rig_nearness rig_nearness[] = {
    {"f32", SFC_PRECISION_F32, NULL, 0, 0, 0},
    {"bf16", SFC_PRECISION_BF16, NULL, 0.03, 0.25, 1},
    {"bf16, signs apart", SFC_PRECISION_BF16, part_signs, 0.07, 0.05, 1},
    {"bf16, slopes of 1", SFC_PRECISION_BF16, straighten, 0.02, 0.016, 0.05},
    {"fp16", SFC_PRECISION_F16, NULL, 0.004, 0.25, 1},
    {"fp16, signs apart", SFC_PRECISION_F16, part_signs, 0.01, 0.008, 0.1},
    {"fp16, slopes of 1", SFC_PRECISION_F16, straighten, 0.0025, 0.002, 0.005},
};
const size_t rig_nearness_count = sizeof rig_nearness / sizeof rig_nearness[0];

void rig_check_near(const struct rig *s, const struct rig *exact, const struct rig_nearness *want)
{
    double features = distance(s->features, exact->features, s->feature_count);
    double gradient = distance(s->gradient, exact->gradient, s->model->size);
    double weights = weights_distance(s, exact);
    printf("  from f32: features %.4f, gradient %.4f, one product's %.4f\n", features, gradient,
           weights);
    if (!(features <= want->features) || !(gradient <= want->gradient) ||
        !(weights <= want->weights)) {
        rig_fail("too far from f32: %g, %g and %g are allowed", want->features, want->gradient,
                 want->weights);
    }
}

struct sfc_model *rig_build(const struct rig_case *of, uint32_t dim)
{
    struct sfc_backbone backbone = {"test", of->input, of->rows, of->count};
    struct sfc_model *model = NULL;
    struct sfc_error err = {0};
    if (sfc_model_build(&backbone, dim, &model, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
    return model;
}

struct sfc_model *rig_known(const char *name, uint32_t dim)
{
    struct sfc_model_input input = {32, 32, 1};
    if (strcmp(name, "mbf") == 0) {
        input = (struct sfc_model_input){112, 112, 3};
    }
    struct sfc_model *model = NULL;
    struct sfc_error err = {0};
    if (sfc_model_new(name, input, dim, &model, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
    return model;
}

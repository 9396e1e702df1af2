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
#include <unistd.h>

#include "proto/base/openmp.h"
#include "tests/lib/model_rig.h"

void rig_fail(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fail_msg("%s", text);
    abort(); /* fail_msg does not come back */
}

static void test_small(void **state)
{
    (void)state;
    for (size_t i = 0; i < rig_case_count; i++) {
        for (uint32_t batch = 3; batch <= 17; batch += 14) {
            struct rig s;
            rig_init(&s, sfc_lane_device_cpu(), rig_build(&rig_cases[i], 6), batch, batch);
            rig_train(&s);
            rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true),
                               2e-5);
            rig_check_statistics(&s, 2e-5);
            bool all = batch == 3 && s.model->size < 4000;
            rig_check_gradient(&s, all ? UINT64_MAX : 8, 2e-4);
            rig_close(&s);
        }
    }
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
    struct rig s;
    const struct rig_case far = {"far", rows, sizeof rows / sizeof rows[0], {9, 13, 2}};
    rig_init(&s, sfc_lane_device_cpu(), rig_build(&far, 5), 9, 21);
    for (size_t i = 0; i < 9 * 9 * 13 * 2; i++) {
        s.images[i] += 100.0f;
    }
    rig_train(&s);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-3);
    rig_check_statistics(&s, 2e-5);
    rig_close(&s);
}

static void test_tiny(void **state)
{
    (void)state;
    struct rig s;
    rig_init(&s, sfc_lane_device_cpu(), rig_known("tiny", 32), 5, 77);
    rig_train(&s);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-4);
    rig_check_statistics(&s, 2e-5);
    rig_check_gradient(&s, 2, 1e-3);
    rig_check_directions(&s, 1e-3);
    rig_close(&s);
}

static void test_mbf(void **state)
{
    (void)state;
    struct rig s;
    rig_init(&s, sfc_lane_device_cpu(), rig_known("mbf", 24), 3, 5);
    rig_train(&s);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-3);
    rig_check_directions(&s, 5e-3);
    rig_close(&s);
}

static void test_embed(void **state)
{
    (void)state;
    struct rig s;
    struct sfc_error err = {0};
    rig_init(&s, sfc_lane_device_cpu(), rig_known("tiny", 16), 4, 9);
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, false), 2e-5);

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
    rig_close(&s);
}

/* A job of a thread: its own lane, its own history, buffers at odd addresses. */
struct bits {
    const struct rig *s;
    int history;
    float *features, *gradient; /* out */
    int rc;
};

static void *compute_bits(void *arg)
{
    struct bits *job = arg;
    const struct rig *s = job->s;
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
    struct rig s;
    struct bits jobs[THREADS];
    pthread_t threads[THREADS];
    rig_init(&s, sfc_lane_device_cpu(), rig_known("tiny", 32), 16, 3);
    rig_train(&s);
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
    rig_close(&s);
}

static void check_layout(const char *name)
{
    struct sfc_model *model = rig_known(name, 128);
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
    struct sfc_model *model = rig_known("tiny", 128);
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

    model = rig_known("tiny", 8);
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
    struct rig s;
    struct sfc_error err = {0};
    rig_init(&s, sfc_lane_device_cpu(), rig_known("tiny", 8), 1, 4);
    assert_true(sfc_lane_memory(s.lane) > 0);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_ESTATE);
    assert_int_equal(sfc_lane_forward(s.lane, s.params, s.images, s.features, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "head"));
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    rig_close(&s);
    rig_init(&s, sfc_lane_device_cpu(), rig_known("tiny", 8), 2, 4);
    rig_train(&s);
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_ESTATE);
    rig_close(&s);
}

static void test_devices(void **state)
{
    (void)state;
    static const char *const wrong[] = {"gpu",   "cuda:",   "cuda:x", "cuda:1024",
                                        "cudax", "cuda:1x", ""};
    const struct sfc_lane_device *device = NULL;
    enum sfc_precision precision;
    struct sfc_error err = {0};
    char dir[] = "/tmp/sfc_devices_XXXXXX";
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(sfc_lane_device_open(wrong[i], SFC_PRECISION_F32, &device, &err),
                         SFC_EINVAL);
        assert_non_null(strstr(err.text, "cuda:N"));
    }
    assert_int_equal(sfc_precision_parse("f16", &precision, &err), SFC_EINVAL);
    assert_int_equal(sfc_precision_parse("fp16", &precision, &err), SFC_OK);
    assert_int_equal(precision, SFC_PRECISION_F16);
    assert_int_equal(sfc_lane_device_open("cpu", precision, &device, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "--precision f32"));
    assert_non_null(mkdtemp(dir));
    setenv("SFC_PLUGIN_DIR", dir, 1);
    assert_int_equal(sfc_lane_device_open("cuda:7", precision, &device, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "device 'cuda:7'"));
    assert_non_null(strstr(err.text, "libshardfc-cudnn.so"));
    rmdir(dir);
    assert_null(device);
    assert_int_equal(sfc_lane_device_open("cpu", SFC_PRECISION_F32, &device, &err), SFC_OK);
    assert_ptr_equal(device, sfc_lane_device_cpu());
    sfc_lane_device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_norm_far_from_zero),
        cmocka_unit_test(test_order_of_calls),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_tiny),
        cmocka_unit_test(test_mbf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

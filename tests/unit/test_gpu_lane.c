/* Lanes of a CUDA device on the emulator: everything but cuDNN and cuBLASLt, which plain loops
 * stand in for (tests/lib/plain_products.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/cuda_host/cuda_host.h"
#include "tests/lib/model_rig.h"
#include "worker/model/cuda/gpu.h"

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

static const struct sfc_lane_device *device(enum sfc_precision precision)
{
    const struct sfc_lane_device *made = NULL;
    struct sfc_error err = {0};
    if (sfc_gpu_open(0, precision, &made, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
    return made;
}

static void test_small(void **state)
{
    (void)state;
    const struct sfc_lane_device *f32 = device(SFC_PRECISION_F32);
    for (size_t i = 0; i < rig_case_count; i++) {
        for (uint32_t batch = 3; batch <= 17; batch += 14) {
            struct rig s;
            print_message("%s, batch %u\n", rig_cases[i].name, batch);
            rig_init(&s, f32, rig_build(&rig_cases[i], 6), batch, batch);
            rig_train(&s);
            rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true),
                               2e-5);
            rig_check_statistics(&s, 2e-5);
            rig_check_gradient(&s, batch == 3 ? 6 : 2, 2e-4);
            rig_close(&s);
        }
    }
    sfc_lane_device_close(f32);
}

static void check_near(const struct rig_nearness *want)
{
    const struct sfc_lane_device *f32 = device(SFC_PRECISION_F32), *half = device(want->precision);
    for (size_t i = 0; i < rig_case_count; i++) {
        struct rig s, t;
        rig_init(&s, f32, rig_build(&rig_cases[i], 6), 17, 1);
        rig_init(&t, half, rig_build(&rig_cases[i], 6), 17, 1);
        if (want->prepare != NULL) {
            want->prepare(&s);
            want->prepare(&t);
        }
        rig_train(&s);
        rig_train(&t);
        print_message("%s in %s\n", rig_cases[i].name, want->name);
        rig_check_near(&t, &s, want);
        bool same = memcmp(t.features, s.features, s.feature_count * sizeof(float)) == 0;
        assert_true(same == (want->precision == SFC_PRECISION_F32));
        rig_close(&s);
        rig_close(&t);
    }
    sfc_lane_device_close(f32);
    sfc_lane_device_close(half);
}

static void test_nearness(void **state)
{
    (void)state;
    for (size_t i = 0; i < rig_nearness_count; i++) {
        check_near(&rig_nearness[i]);
    }
}

static bool statistic_at(const struct sfc_model *model, uint64_t at)
{
    for (size_t i = 0; i < model->param_count; i++) {
        const struct sfc_param *p = &model->params[i];
        if (at >= p->offset && at < p->offset + p->length) {
            return p->role == SFC_PARAM_STATISTIC;
        }
    }
    return false;
}

/* Gradients of any size: f16 without scaling would lose the small ones and overflow with the large
 * ones. Powers of two go through exactly. */
static void test_scale_of_f16(void **state)
{
    (void)state;
    const struct sfc_lane_device *f16 = device(SFC_PRECISION_F16);
    struct sfc_error err = {0};
    struct rig s;
    rig_init(&s, f16, rig_build(&rig_cases[0], 6), 5, 3);
    rig_train(&s);
    float *first = malloc(s.model->size * sizeof *first);
    assert_non_null(first);
    memcpy(first, s.gradient, s.model->size * sizeof *first);
    for (int power = -60; power <= 60; power += 40) {
        float *scaled = malloc(s.feature_count * sizeof *scaled);
        assert_non_null(scaled);
        for (size_t i = 0; i < s.feature_count; i++) {
            scaled[i] = ldexpf(s.dfeatures[i], power);
        }
        assert_int_equal(sfc_lane_backward(s.lane, scaled, s.gradient, &err), SFC_OK);
        for (uint64_t i = 0; i < s.model->size; i++) {
            float expected = statistic_at(s.model, i) ? first[i] : ldexpf(first[i], power);
            assert_true(s.gradient[i] == expected);
        }
        free(scaled);
    }
    free(first);
    rig_close(&s);
    sfc_lane_device_close(f16);
}

/* An overflow on the way back makes the scale smaller; one that no scale mends is told. */
static void test_overflow_of_f16(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_DENSE, .name = "wide", .channels = 8},
        {.kind = SFC_ROW_DENSE, .name = "steep"},
    };
    const struct rig_case steep = {"steep", rows, 2, {2, 2, 1}};
    const struct sfc_lane_device *f16 = device(SFC_PRECISION_F16);
    struct sfc_error err = {0};
    struct rig s;
    rig_init(&s, f16, rig_build(&steep, 8), 4, 3);
    for (uint64_t i = 32; i < s.model->size; i++) {
        s.params[i] = 30000; /* 8 sums of 64 * 30000 are too much for f16 */
    }
    for (size_t i = 0; i < s.feature_count; i++) {
        s.dfeatures[i] = 1;
    }
    assert_int_equal(sfc_lane_forward(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_OK);
    float image = 0, largest = 0;
    for (size_t b = 0; b < 4; b++) {
        image += s.images[4 * b];
    }
    largest = s.gradient[0];
    assert_true(isfinite(largest));
    assert_true(fabsf(largest - 240000.0f * image) <= 0.01f * fabsf(largest));
    s.dfeatures[1] = INFINITY;
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_OK);
    bool finite = true;
    for (uint64_t i = 0; i < s.model->size; i++) {
        finite = finite && isfinite(s.gradient[i]);
    }
    assert_false(finite);
    rig_close(&s);
    sfc_lane_device_close(f16);
}

/* The same bits whatever the order of blocks, threads and streams, and whatever the lane computed
 * before. */
static void test_bits(void **state)
{
    (void)state;
    for (enum sfc_precision p = SFC_PRECISION_F32; p <= SFC_PRECISION_F16; p++) {
        const struct sfc_lane_device *on = device(p);
        struct rig s, t;
        sfc_cuda_host_seed(0);
        rig_init(&s, on, rig_build(&rig_cases[rig_case_count - 1], 16), 6, 5);
        rig_train(&s);
        sfc_cuda_host_seed(77 + p);
        rig_init(&t, on, rig_build(&rig_cases[rig_case_count - 1], 16), 6, 5);
        float image = t.images[3];
        t.images[3] = NAN; /* poison of an earlier micro-batch */
        rig_train(&t);
        t.images[3] = image;
        rig_train(&t);
        assert_memory_equal(s.features, t.features, s.feature_count * sizeof(float));
        assert_memory_equal(s.gradient, t.gradient, s.model->size * sizeof(float));
        rig_close(&s);
        rig_close(&t);
        sfc_lane_device_close(on);
    }
}

static void test_embed(void **state)
{
    (void)state;
    const struct sfc_lane_device *f32 = device(SFC_PRECISION_F32);
    struct sfc_error err = {0};
    struct rig s;
    rig_init(&s, f32, rig_build(&rig_cases[2], 8), 4, 9);
    assert_int_equal(sfc_lane_embed(s.lane, s.params, s.images, s.features, &err), SFC_OK);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, false), 2e-5);
    assert_int_equal(sfc_lane_backward(s.lane, s.dfeatures, s.gradient, &err), SFC_ESTATE);
    rig_close(&s);
    sfc_lane_device_close(f32);
}

static void test_single_row(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {{.kind = SFC_ROW_DENSE, .name = "fc"},
                                   {.kind = SFC_ROW_NORM, .name = "head"}};
    const struct rig_case single = {"single", rows, 2, {2, 2, 1}};
    const struct sfc_lane_device *f32 = device(SFC_PRECISION_F32);
    struct sfc_error err = {0};
    struct rig s;
    rig_init(&s, f32, rig_build(&single, 4), 1, 9);
    assert_int_equal(sfc_lane_forward(s.lane, s.params, s.images, s.features, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "head"));
    rig_close(&s);
    sfc_lane_device_close(f32);
}

/* Whatever call fails: a status with the device in it, and nothing stays behind. */
static void test_failures(void **state)
{
    (void)state;
    const struct sfc_row rows[] = {
        {.kind = SFC_ROW_BOTTLENECK,
         .name = "s",
         .expand = 1,
         .channels = 1,
         .repeat = 1,
         .stride = 1},
        {.kind = SFC_ROW_GLOBAL_POOL, .name = "pool"},
        {.kind = SFC_ROW_DENSE, .name = "fc"},
    };
    const struct rig_case every = {"every kind", rows, 3, {2, 2, 1}};
    const struct sfc_lane_device *on = device(SFC_PRECISION_BF16);
    struct sfc_cuda_host_use before = sfc_cuda_host_use();
    struct rig s;
    rig_init(&s, on, rig_build(&every, 2), 2, 3);
    struct sfc_model *model = rig_build(&every, 2);
    uint64_t failures = 0;
    for (uint64_t n = 1;; n++) {
        struct sfc_lane *lane = NULL;
        struct sfc_error err = {0};
        sfc_cuda_host_fail(n, false);
        int rc = sfc_lane_new(on, model, 2, &lane, &err);
        if (rc == SFC_OK) {
            rc = sfc_lane_forward(lane, s.params, s.images, s.features, &err);
        }
        if (rc == SFC_OK) {
            rc = sfc_lane_backward(lane, s.dfeatures, s.gradient, &err);
        }
        bool failed = sfc_cuda_host_failed();
        sfc_cuda_host_fail(0, false);
        sfc_lane_free(lane);
        if (!failed) {
            assert_int_equal(rc, SFC_OK);
            break;
        }
        failures++;
        assert_true(rc == SFC_EDEVICE || rc == SFC_ENOMEM);
        assert_non_null(strstr(err.text, "cuda:0"));
    }
    assert_true(failures > 50);
    sfc_model_free(model);
    rig_close(&s);
    struct sfc_cuda_host_use after = sfc_cuda_host_use();
    assert_int_equal(after.allocations, before.allocations);
    assert_int_equal(after.streams, before.streams);
    sfc_lane_device_close(on);
}

static void test_too_small_a_device(void **state)
{
    (void)state;
    const struct sfc_lane_device *on = device(SFC_PRECISION_BF16);
    struct sfc_model *model = rig_build(&rig_cases[0], 6);
    struct sfc_lane *lane = NULL;
    struct sfc_error err = {0};
    sfc_cuda_host_memory(65536);
    assert_int_equal(sfc_lane_new(on, model, 64, &lane, &err), SFC_ENOMEM);
    assert_non_null(strstr(err.text, "64 rows"));
    assert_non_null(strstr(err.text, "--threads"));
    sfc_cuda_host_memory(0);
    assert_int_equal(sfc_lane_new(on, model, 64, &lane, &err), SFC_OK);
    sfc_lane_free(lane);
    sfc_model_free(model);
    model = rig_known("mbf", 512);
    assert_int_equal(sfc_lane_new(on, model, 65536, &lane, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "smaller"));
    sfc_model_free(model);
    sfc_lane_device_close(on);
}

static void test_device(void **state)
{
    (void)state;
    const struct sfc_lane_device *made = NULL;
    struct sfc_error err = {0};
    char name[128];
    assert_int_equal(sfc_gpu_open(1, SFC_PRECISION_F32, &made, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "cuda:1"));
    assert_non_null(strstr(err.text, "1 devices"));
    sfc_cuda_host_fail(1, false);
    assert_int_equal(sfc_gpu_open(0, SFC_PRECISION_F32, &made, &err), SFC_EUNSUPPORTED);
    sfc_cuda_host_fail(0, false);
    made = device(SFC_PRECISION_BF16);
    sfc_lane_device_numerics(made, name, sizeof name);
    assert_string_equal(name, "cuda sm_90 Emulated-GPU plain bf16 g1");
    sfc_lane_device_close(made);
}

static void test_tiny(void **state)
{
    (void)state;
    const struct sfc_lane_device *f32 = device(SFC_PRECISION_F32);
    struct rig s;
    rig_init(&s, f32, rig_known("tiny", 16), 3, 77);
    rig_train(&s);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true), 1e-4);
    rig_check_statistics(&s, 2e-5);
    rig_check_directions(&s, 1e-3);
    rig_close(&s);
    sfc_lane_device_close(f32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_nearness),
        cmocka_unit_test(test_scale_of_f16),
        cmocka_unit_test(test_overflow_of_f16),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_single_row),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_too_small_a_device),
        cmocka_unit_test(test_tiny),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

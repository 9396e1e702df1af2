/* Backbones on a CUDA device, from the plugin: every kind of layer and both known backbones against
 * the reference in double, 16 bits against f32, bits against themselves, and images per second.
 * Needs no other library than the plugin's. One check that fails doesn't keep the others from being
 * made.
 *
 *   gpu_backbone [cuda device]
 *
 * Exit status: 0 all well, 1 something is wrong, 77 no GPU. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/model_rig.h"
#include "worker/model/lane_impl.h"

#define SPEED_BATCH   128
#define SPEED_SECONDS 2.0

static jmp_buf next_check;
static unsigned failures;
static const struct sfc_lane_device *devices[3]; /* by precision; NULL: the device has it not */

void rig_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("FAILED: ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
    failures++;
    longjmp(next_check, 1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What a check leaks when it fails lives until the end. */
static void check(const char *name, void (*body)(const void *arg), const void *arg)
{
    double begin = now();
    printf("%s\n", name);
    fflush(stdout);
    if (setjmp(next_check) == 0) {
        body(arg);
    }
    printf("  %.2f s\n", now() - begin);
    fflush(stdout);
}

static void check_case(const void *arg)
{
    const struct rig_case *of = arg;
    for (uint32_t batch = 3; batch <= 17; batch += 14) {
        struct rig s;
        char lane[1024];
        rig_init(&s, devices[SFC_PRECISION_F32], rig_build(of, 6), batch, batch);
        sfc_lane_describe(s.lane, lane, sizeof lane);
        printf("  %s\n", lane);
        rig_train(&s);
        rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true),
                           2e-5);
        rig_check_statistics(&s, 2e-5);
        rig_check_gradient(&s, batch == 3 ? 64 : 8, 2e-4);
        rig_close(&s);
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

struct half_check {
    const struct rig_case *of; /* NULL: a known backbone */
    const char *known;
    enum sfc_precision precision;
    uint32_t batch;
    double features, gradient; /* largest distances from f32 */
};

static struct sfc_model *model_of(const struct half_check *c)
{
    return c->of != NULL ? rig_build(c->of, 6) : rig_known(c->known, 64);
}

/* Twice the same bits, from lanes of their own and again from the same lane. */
static void check_half(const void *arg)
{
    const struct half_check *c = arg;
    struct rig exact, first, second;
    const struct sfc_lane_device *on = devices[c->precision];
    if (on == NULL) {
        printf("  not on this device\n");
        return;
    }
    rig_init(&exact, devices[SFC_PRECISION_F32], model_of(c), c->batch, 1);
    rig_init(&first, on, model_of(c), c->batch, 1);
    rig_init(&second, on, model_of(c), c->batch, 1);
    rig_train(&exact);
    rig_train(&first);
    rig_train(&second);
    rig_train(&second);
    double features = distance(first.features, exact.features, exact.feature_count);
    double gradient = distance(first.gradient, exact.gradient, exact.model->size);
    printf("  from f32: features %.4f, gradient %.4f\n", features, gradient);
    if (memcmp(first.features, second.features, first.feature_count * sizeof(float)) != 0 ||
        memcmp(first.gradient, second.gradient, first.model->size * sizeof(float)) != 0) {
        rig_fail("two lanes give other bits");
    }
    if (!(features <= c->features) || !(gradient <= c->gradient)) {
        rig_fail("too far from f32: %g and %g are allowed", c->features, c->gradient);
    }
    rig_close(&exact);
    rig_close(&first);
    rig_close(&second);
}

static void check_known(const void *arg)
{
    const char *name = arg;
    bool mbf = strcmp(name, "mbf") == 0;
    struct rig s;
    rig_init(&s, devices[SFC_PRECISION_F32], rig_known(name, mbf ? 24 : 32), mbf ? 3 : 5, 5);
    rig_train(&s);
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, true),
                       mbf ? 1e-3 : 1e-4);
    rig_check_statistics(&s, mbf ? 2e-4 : 2e-5);
    rig_check_directions(&s, mbf ? 5e-3 : 1e-3);
    rig_close(&s);
}

static void check_embed(const void *arg)
{
    struct rig s;
    struct sfc_error err = {0};
    (void)arg;
    rig_init(&s, devices[SFC_PRECISION_F32], rig_known("tiny", 16), 4, 9);
    if (sfc_lane_embed(s.lane, s.params, s.images, s.features, &err) != SFC_OK) {
        rig_fail("%s", err.text);
    }
    rig_check_features(&s, reference_forward(&s.reference, s.exact_params, s.images, false), 2e-5);
    rig_close(&s);
}

struct speed {
    double forward, backward; /* seconds */
    unsigned rounds;
};

static struct speed measure(struct rig *s)
{
    struct speed speed = {0};
    struct sfc_error err = {0};
    double begin = now();
    while (now() - begin < SPEED_SECONDS) {
        double start = now();
        if (sfc_lane_forward(s->lane, s->params, s->images, s->features, &err) != SFC_OK) {
            rig_fail("%s", err.text);
        }
        double middle = now();
        if (sfc_lane_backward(s->lane, s->dfeatures, s->gradient, &err) != SFC_OK) {
            rig_fail("%s", err.text);
        }
        speed.forward += middle - start;
        speed.backward += now() - middle;
        speed.rounds++;
    }
    return speed;
}

static void check_speed(const void *arg)
{
    const enum sfc_precision *precision = arg;
    struct rig s;
    char lane[4096];
    if (devices[*precision] == NULL) {
        printf("  not on this device\n");
        return;
    }
    rig_init(&s, devices[*precision], rig_known("mbf", 512), SPEED_BATCH, 7);
    sfc_lane_describe(s.lane, lane, sizeof lane);
    printf("  %s\n", lane);
    rig_train(&s);
    rig_train(&s);
    struct speed speed = measure(&s);
    double images = (double)SPEED_BATCH * speed.rounds;
    printf("  mbf %s, batch %d, one lane, copies from and to the host included: %.0f images/s "
           "(forward %.2f ms, backward %.2f ms)\n",
           sfc_precision_name(*precision), SPEED_BATCH, images / (speed.forward + speed.backward),
           1e3 * speed.forward / speed.rounds, 1e3 * speed.backward / speed.rounds);
    rig_close(&s);
}

static void open_devices(unsigned number)
{
    struct sfc_error err = {0};
    char numerics[160];
    for (int p = SFC_PRECISION_F32; p <= SFC_PRECISION_F16; p++) {
        if (sfc_lane_device_load(number, (enum sfc_precision)p, &devices[p], &err) == SFC_OK) {
            sfc_lane_device_numerics(devices[p], numerics, sizeof numerics);
            printf("numerics class: %s\n", numerics);
        } else if (p == SFC_PRECISION_F32) {
            printf("skipped: no GPU (%s)\n", err.text);
            exit(77);
        } else {
            printf("%s\n", err.text);
        }
    }
}

static void check_precision(enum sfc_precision precision, double features, double gradient)
{
    char name[96];
    struct half_check c = {.precision = precision, .batch = 17, features, gradient};
    for (size_t i = 0; i < rig_case_count; i++) {
        c.of = &rig_cases[i];
        snprintf(name, sizeof name, "%s in %s", c.of->name, sfc_precision_name(precision));
        check(name, check_half, &c);
    }
}

int main(int argc, char **argv)
{
    static const char *const known[] = {"tiny", "mbf"};
    static const enum sfc_precision speeds[] = {SFC_PRECISION_BF16, SFC_PRECISION_F16,
                                                SFC_PRECISION_F32};
    double begin = now();
    open_devices(argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0);
    for (size_t i = 0; i < 3; i++) {
        check("speed", check_speed, &speeds[i]);
    }
    for (size_t i = 0; i < rig_case_count; i++) {
        check(rig_cases[i].name, check_case, &rig_cases[i]);
    }
    check("inference", check_embed, NULL);
    check_precision(SFC_PRECISION_F32, 0, 0);
    check_precision(SFC_PRECISION_BF16, 0.03, 0.25);
    check_precision(SFC_PRECISION_F16, 0.004, 0.03);
    for (size_t i = 0; i < 2; i++) {
        struct half_check c = {.known = known[i], .precision = SFC_PRECISION_F32, .batch = 32};
        check(known[i], check_known, known[i]);
        check("the same bits in f32", check_half, &c);
        c = (struct half_check){.known = known[i],
                                .precision = SFC_PRECISION_BF16,
                                .batch = 32,
                                .features = 0.1,
                                .gradient = 0.5};
        check("bf16 and its bits", check_half, &c);
        c.precision = SFC_PRECISION_F16;
        c.features = 0.02;
        c.gradient = 0.1;
        check("fp16 and its bits", check_half, &c);
    }
    printf("%s: %u failed, %.1f s\n", failures ? "FAILED" : "passed", failures, now() - begin);
    return failures ? 1 : 0;
}

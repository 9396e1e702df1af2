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

struct half_check {
    const struct rig_case *of; /* NULL: a known backbone */
    const char *known;
    uint32_t batch;
    const struct rig_nearness *want;
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
    const struct sfc_lane_device *on = devices[c->want->precision];
    if (on == NULL) {
        printf("  not on this device\n");
        return;
    }
    rig_init(&exact, devices[SFC_PRECISION_F32], model_of(c), c->batch, 1);
    rig_init(&first, on, model_of(c), c->batch, 1);
    rig_init(&second, on, model_of(c), c->batch, 1);
    if (c->want->prepare != NULL) {
        c->want->prepare(&exact);
        c->want->prepare(&first);
        c->want->prepare(&second);
    }
    rig_train(&exact);
    rig_train(&first);
    rig_train(&second);
    rig_train(&second);
    if (memcmp(first.features, second.features, first.feature_count * sizeof(float)) != 0 ||
        memcmp(first.gradient, second.gradient, first.model->size * sizeof(float)) != 0) {
        rig_fail("two lanes give other bits");
    }
    rig_check_near(&first, &exact, c->want);
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

static void check_nearness(const struct rig_nearness *want)
{
    char name[96];
    struct half_check c = {.batch = 17, .want = want};
    for (size_t i = 0; i < rig_case_count; i++) {
        c.of = &rig_cases[i];
        snprintf(name, sizeof name, "%s in %s", c.of->name, want->name);
        check(name, check_half, &c);
    }
}

static const struct rig_nearness known_nearness[] = {
    {"the same bits in f32", SFC_PRECISION_F32, NULL, 0, 0, 0},
    {"bf16 and its bits", SFC_PRECISION_BF16, NULL, 0.1, 0.5, 1},
    {"fp16 and its bits", SFC_PRECISION_F16, NULL, 0.02, 0.1, 1},
};

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
    for (size_t i = 0; i < rig_nearness_count; i++) {
        check_nearness(&rig_nearness[i]);
    }
    for (size_t i = 0; i < 2; i++) {
        check(known[i], check_known, known[i]);
        for (size_t k = 0; k < 3; k++) {
            struct half_check c = {.known = known[i], .batch = 32, .want = &known_nearness[k]};
            check(known_nearness[k].name, check_half, &c);
        }
    }
    printf("%s: %u failed, %.1f s\n", failures ? "FAILED" : "passed", failures, now() - begin);
    return failures ? 1 : 0;
}

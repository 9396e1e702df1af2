/* Augmentation: a pure function of (seed, epoch, sample), each part by itself, and its statistics.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "worker/data/augment.h"

#define SIDE   32
#define PIXELS (SIDE * SIDE)

static const struct sfc_image_shape grey = {SIDE, SIDE, 1};
static float scratch[PIXELS];

static void picture(float *image)
{
    for (int i = 0; i < PIXELS; i++)
        image[i] = (i % SIDE > 8 && i % SIDE < 20 && i / SIDE > 5 && i / SIDE < 27) ? 2.0F : 0.0F;
}

static void apply(struct sfc_augment a, uint64_t seed, uint64_t epoch, uint64_t sample,
                  float *image)
{
    picture(image);
    sfc_augment_image(&a, seed, epoch, sample, grey, image, scratch);
}

static void test_pure(void **state)
{
    (void)state;
    const struct sfc_augment a = {.affine = 0.12, .blur = 0.5, .noise = 0.08};
    float x[PIXELS], y[PIXELS];
    apply(a, 1, 2, 3, x);
    memset(scratch, 0xff, sizeof scratch); /* what scratch held does not matter */
    apply(a, 1, 2, 3, y);
    assert_memory_equal(x, y, sizeof x);
    apply(a, 2, 2, 3, y);
    assert_memory_not_equal(x, y, sizeof x);
    apply(a, 1, 3, 3, y);
    assert_memory_not_equal(x, y, sizeof x);
    apply(a, 1, 2, 4, y);
    assert_memory_not_equal(x, y, sizeof x);
}

static void test_off(void **state)
{
    (void)state;
    float x[PIXELS], y[PIXELS];
    picture(x);
    apply((struct sfc_augment){0}, 1, 2, 3, y);
    assert_memory_equal(x, y, sizeof x);
    apply((struct sfc_augment){.affine = 1e-9}, 1, 2, 3, y); /* identity up to rounding */
    for (int i = 0; i < PIXELS; i++)
        assert_true(fabsf(x[i] - y[i]) < 1e-4F);
}

static void test_flip(void **state)
{
    (void)state;
    float x[PIXELS], y[PIXELS];
    int flipped = 0;
    picture(x);
    for (uint64_t sample = 0; sample < 1000; sample++) {
        apply((struct sfc_augment){.flip = true}, 1, 0, sample, y);
        if (memcmp(x, y, sizeof x) == 0)
            continue;
        flipped++;
        for (int i = 0; i < PIXELS; i++)
            assert_true(y[i] == x[i / SIDE * SIDE + SIDE - 1 - i % SIDE]);
    }
    assert_true(flipped > 420 && flipped < 580);
}

static void test_affine_range(void **state)
{
    (void)state;
    float y[PIXELS];
    double least_x = 1e9, most_x = -1e9, mass = 0;
    for (uint64_t sample = 0; sample < 500; sample++) {
        double sum = 0, at = 0;
        apply((struct sfc_augment){.affine = 0.12}, 5, 1, sample, y);
        for (int i = 0; i < PIXELS; i++) {
            assert_true(y[i] >= 0 && y[i] <= 2.0001F);
            sum += (double)y[i];
            at += (double)y[i] * (i % SIDE);
        }
        mass += sum / 500;
        least_x = fmin(least_x, at / sum);
        most_x = fmax(most_x, at / sum);
    }
    /* The box's centre is at 14; shifts reach 0.12 half widths, rotation and shear add little. */
    assert_true(least_x > 11 && least_x < 13 && most_x > 15 && most_x < 17);
    assert_true(mass > 0.9 * 11 * 21 * 2 && mass < 1.1 * 11 * 21 * 2);
}

static void test_noise(void **state)
{
    (void)state;
    float x[PIXELS], y[PIXELS];
    double sum = 0, square = 0, pair = 0, n = 0;
    picture(x);
    for (uint64_t sample = 0; sample < 200; sample++) {
        apply((struct sfc_augment){.noise = 0.08}, 5, 1, sample, y);
        for (int i = 0; i < PIXELS; i++, n++) {
            double d = (double)(y[i] - x[i]);
            sum += d;
            square += d * d;
            pair += i > 0 ? d * (double)(y[i - 1] - x[i - 1]) : 0;
        }
    }
    assert_true(fabs(sum / n) < 0.001);
    assert_true(fabs(sqrt(square / n) - 0.08) < 0.001);
    assert_true(fabs(pair / square) < 0.02); /* neighbours are independent */
}

static void test_blur(void **state)
{
    (void)state;
    float y[PIXELS];
    for (uint64_t sample = 0; sample < 100; sample++) {
        double sum = 0;
        apply((struct sfc_augment){.blur = 0.5}, 5, 1, sample, y);
        for (int i = 0; i < PIXELS; i++)
            sum += (double)y[i];
        assert_true(fabs(sum - 11 * 21 * 2) < 1e-2); /* weight moves, none is lost */
        float corner = y[6 * SIDE + 9];              /* 7/16 of it can go, times up to a half */
        assert_true(corner <= 2.0F && corner > 2.0F - 2.0F * 0.5F * 7 / 16 - 1e-4F);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pure),  cmocka_unit_test(test_off),
        cmocka_unit_test(test_flip),  cmocka_unit_test(test_affine_range),
        cmocka_unit_test(test_noise), cmocka_unit_test(test_blur),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

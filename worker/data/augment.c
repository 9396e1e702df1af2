#include "worker/data/augment.h"

#include <string.h>

#include "kernels/rng/philox.h"

/* Draws of one image: 0 and 1 are parameters, the noise starts at 2. */
enum { DRAW_SHAPE, DRAW_SHIFT, DRAW_NOISE };

struct affine {
    float xx, xy, yx, yy, x0, y0; /* source = M * destination + (x0, y0) */
};

static struct sfc_philox draw(uint64_t seed, uint64_t epoch, uint64_t sample, uint32_t n)
{
    return sfc_random(seed, SFC_STREAM_AUGMENT, epoch << 32 | n, sample);
}

static double symmetric(uint32_t word, double strength)
{
    return (2.0 * (double)sfc_uniform(word) - 1.0) * strength;
}

/* Series instead of libm: equal bits everywhere. Good to 1e-9 for |x| <= 1. */
static double sine(double x)
{
    double y = x * x;
    return x * (1 - y / 6 * (1 - y / 20 * (1 - y / 42 * (1 - y / 72 * (1 - y / 110)))));
}

static double cosine(double x)
{
    double y = x * x;
    return 1 - y / 2 * (1 - y / 12 * (1 - y / 30 * (1 - y / 56 * (1 - y / 90 * (1 - y / 132)))));
}

static double exponential(double x)
{
    double sum = 1.0;
    for (int i = 14; i > 0; i--)
        sum = 1.0 + x / i * sum;
    return sum;
}

static void flip(struct sfc_image_shape shape, float *image)
{
    size_t rows = (size_t)shape.channels * shape.height;
    for (size_t r = 0; r < rows; r++) {
        float *row = image + r * shape.width;
        for (uint32_t a = 0, b = shape.width - 1; a < b; a++, b--) {
            float kept = row[a];
            row[a] = row[b];
            row[b] = kept;
        }
    }
}

static struct affine affine_of(struct sfc_philox shape_words, struct sfc_philox shift_words,
                               double strength, struct sfc_image_shape shape)
{
    double angle = symmetric(shape_words.v[1], strength);
    double scale = exponential(symmetric(shape_words.v[2], strength));
    double shear = symmetric(shape_words.v[3], strength);
    double c = cosine(angle) * scale, s = sine(angle) * scale;
    double cx = (shape.width - 1) / 2.0, cy = (shape.height - 1) / 2.0;
    double dx = symmetric(shift_words.v[0], strength) * shape.width / 2.0;
    double dy = symmetric(shift_words.v[1], strength) * shape.height / 2.0;
    double xx = c, xy = c * shear - s, yx = s, yy = s * shear + c;
    return (struct affine){(float)xx,
                           (float)xy,
                           (float)yx,
                           (float)yy,
                           (float)(cx - xx * cx - xy * cy + dx),
                           (float)(cy - yx * cx - yy * cy + dy)};
}

static float pixel(const float *plane, struct sfc_image_shape shape, int x, int y)
{
    if (x < 0 || y < 0 || x >= (int)shape.width || y >= (int)shape.height)
        return 0.0F;
    return plane[(size_t)y * shape.width + (size_t)x];
}

static float bilinear(const float *plane, struct sfc_image_shape shape, float x, float y)
{
    if (!(x > -1.0F && y > -1.0F && x < (float)shape.width && y < (float)shape.height))
        return 0.0F;
    int ix = (int)(x + 1.0F) - 1, iy = (int)(y + 1.0F) - 1; /* floor: x, y > -1 */
    float fx = x - (float)ix, fy = y - (float)iy;
    float top, bottom;
    if (ix >= 0 && iy >= 0 && ix + 1 < (int)shape.width && iy + 1 < (int)shape.height) {
        const float *p = plane + (size_t)iy * shape.width + (size_t)ix;
        const float *q = p + shape.width;
        top = p[0] + fx * (p[1] - p[0]);
        bottom = q[0] + fx * (q[1] - q[0]);
    } else {
        float a = pixel(plane, shape, ix, iy), b = pixel(plane, shape, ix + 1, iy);
        float c = pixel(plane, shape, ix, iy + 1), d = pixel(plane, shape, ix + 1, iy + 1);
        top = a + fx * (b - a);
        bottom = c + fx * (d - c);
    }
    return top + fy * (bottom - top);
}

static void warp(const struct affine *m, struct sfc_image_shape shape, const float *in, float *out)
{
    size_t plane = (size_t)shape.width * shape.height;
    for (uint32_t c = 0; c < shape.channels; c++, in += plane)
        for (uint32_t y = 0; y < shape.height; y++)
            for (uint32_t x = 0; x < shape.width; x++, out++)
                *out = bilinear(in, shape, m->xx * (float)x + m->xy * (float)y + m->x0,
                                m->yx * (float)x + m->yy * (float)y + m->y0);
}

/* Rows [1 2 1] / 4 of `in`, edges repeated. */
static void blur_rows(struct sfc_image_shape shape, const float *in, float *out)
{
    size_t rows = (size_t)shape.channels * shape.height, last = shape.width - 1;
    for (size_t r = 0; r < rows; r++, in += shape.width, out += shape.width)
        for (size_t x = 0; x <= last; x++)
            out[x] =
                0.25F * in[x > 0 ? x - 1 : 0] + 0.5F * in[x] + 0.25F * in[x < last ? x + 1 : last];
}

/* image += weight * (column blur of rows - image) */
static void blur_mix(struct sfc_image_shape shape, const float *rows, float weight, float *image)
{
    size_t w = shape.width, last = shape.height - 1, plane = w * shape.height;
    for (uint32_t c = 0; c < shape.channels; c++, rows += plane, image += plane)
        for (size_t y = 0; y <= last; y++) {
            const float *up = rows + (y > 0 ? y - 1 : 0) * w, *mid = rows + y * w;
            const float *down = rows + (y < last ? y + 1 : last) * w;
            float *to = image + y * w;
            for (size_t x = 0; x < w; x++)
                to[x] += weight * (0.25F * up[x] + 0.5F * mid[x] + 0.25F * down[x] - to[x]);
        }
}

static void add_noise(uint64_t seed, uint64_t epoch, uint64_t sample, float sigma, size_t pixels,
                      float *image)
{
    /* Four bytes: mean 510, variance 4 * (256^2 - 1) / 12 = 147.801^2. */
    float unit = sigma / 147.801F;
    for (size_t i = 0; i < pixels; i += 4) {
        struct sfc_philox words = draw(seed, epoch, sample, DRAW_NOISE + (uint32_t)(i / 4));
        size_t n = pixels - i < 4 ? pixels - i : 4;
        for (size_t k = 0; k < n; k++) {
            uint32_t v = words.v[k];
            int sum = (int)((v & 255) + (v >> 8 & 255) + (v >> 16 & 255) + (v >> 24)) - 510;
            image[i + k] += unit * (float)sum;
        }
    }
}

void sfc_augment_image(const struct sfc_augment *augment, uint64_t seed, uint64_t epoch,
                       uint64_t sample, struct sfc_image_shape shape, float *image, float *scratch)
{
    size_t pixels = (size_t)shape.width * shape.height * shape.channels;
    struct sfc_philox words = draw(seed, epoch, sample, DRAW_SHAPE);
    struct sfc_philox shifts = draw(seed, epoch, sample, DRAW_SHIFT);
    if (augment->flip && words.v[0] >> 31 != 0)
        flip(shape, image);
    if (augment->affine > 0) {
        struct affine m = affine_of(words, shifts, augment->affine, shape);
        warp(&m, shape, image, scratch);
        memcpy(image, scratch, pixels * sizeof *image);
    }
    if (augment->blur > 0) {
        blur_rows(shape, image, scratch);
        blur_mix(shape, scratch, (float)((double)sfc_uniform(shifts.v[2]) * augment->blur), image);
    }
    if (augment->noise > 0)
        add_noise(seed, epoch, sample, (float)augment->noise, pixels, image);
}

/* make_images DIR CLASSES PER_CLASS SEED [BROKEN]: a small data set of 32 x 32 grey JPEG images in
 * the layout of `shardfc data`, for tests that need no fonts: an identity is a pattern of blobs, a
 * sample adds a shift and noise. BROKEN (a sample number): that sample's JPEG is cut in half. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/rng/philox.h"
#include "worker/data/jpeg.h"
#include "worker/data/meta.h"
#include "worker/data/set_writer.h"

#define SIDE  32
#define BLOBS 5

static float uniform(uint64_t seed, uint64_t what, uint64_t index)
{
    return sfc_uniform(sfc_random(seed, SFC_STREAM_SYNTHETIC, index, what).v[0]);
}

static void draw(uint64_t seed, uint64_t label, uint64_t sample, uint8_t pixels[SIDE * SIDE])
{
    float dx = 4 * uniform(seed, 100, sample) - 2, dy = 4 * uniform(seed, 101, sample) - 2;
    for (int y = 0; y < SIDE; y++) {
        for (int x = 0; x < SIDE; x++) {
            float v = 20 * uniform(seed, 200 + (uint64_t)(y * SIDE + x), sample);
            for (uint64_t b = 0; b < BLOBS; b++) {
                float cx = 4 + 24 * uniform(seed, 3 * b, label) + dx;
                float cy = 4 + 24 * uniform(seed, 3 * b + 1, label) + dy;
                float width = 4 + 16 * uniform(seed, 3 * b + 2, label);
                float square =
                    ((float)x - cx) * ((float)x - cx) + ((float)y - cy) * ((float)y - cy);
                v += 120 * expf(-square / width);
            }
            pixels[y * SIDE + x] = (uint8_t)(v > 255 ? 255 : v);
        }
    }
}

static int add_image(struct sfc_set_writer *writer, struct sfc_jpeg *jpeg, uint64_t seed,
                     uint64_t label, uint64_t sample, bool broken, struct sfc_error *err)
{
    uint8_t pixels[SIDE * SIDE];
    const uint8_t *bytes;
    size_t size;
    draw(seed, label, sample, pixels);
    int rc = sfc_jpeg_encode_grey(jpeg, pixels, SIDE, SIDE, 90, &bytes, &size, err);
    return rc ? rc : sfc_set_writer_add(writer, label, bytes, broken ? size / 2 : size, err);
}

static int make(const char *dir, uint64_t classes, uint64_t per_class, uint64_t seed,
                uint64_t broken, struct sfc_error *err)
{
    struct sfc_set_writer *writer = NULL;
    struct sfc_jpeg *jpeg = NULL;
    struct sfc_meta meta = {
        .width = SIDE, .height = SIDE, .channels = 1, .file_count = 1, .seed = seed};
    char path[4096];
    strcpy(meta.origin, "test");
    int rc = sfc_jpeg_new(&jpeg, err);
    if (!rc)
        rc = sfc_set_writer_new(dir, "train", &writer, err);
    for (uint64_t i = 0; i < classes * per_class && !rc; i++)
        rc = add_image(writer, jpeg, seed, i / per_class, i, i == broken, err);
    if (!rc)
        rc = sfc_set_writer_finish(writer, &meta.files[0], err);
    snprintf(path, sizeof path, "%s/meta.json", dir);
    if (!rc)
        rc = sfc_meta_write(path, &meta, err);
    sfc_set_writer_free(writer);
    sfc_jpeg_free(jpeg);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: make_images DIR CLASSES PER_CLASS SEED [BROKEN]\n");
        return 2;
    }
    struct sfc_error err = {0};
    mkdir(argv[1], 0777); /* what is wrong with it shows when the first file is made */
    if (make(argv[1], strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10),
             strtoull(argv[4], NULL, 10), argc == 6 ? strtoull(argv[5], NULL, 10) : UINT64_MAX,
             &err)) {
        fprintf(stderr, "make_images: %s\n", err.text);
        return 1;
    }
    return 0;
}

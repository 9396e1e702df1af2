/* Reading speed of a data set on one thread: bench_data DIR [SECONDS]. Prints images per second as
 * stored and augmented as in the `tiny` recipe. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/rng/permutation.h"
#include "worker/data/dataset.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int measure(const struct sfc_dataset *set, const struct sfc_augment *augment, double seconds,
                   const char *name, struct sfc_error *err)
{
    const struct sfc_dataset_info *info = sfc_dataset_info(set);
    struct sfc_decoder *decoder = NULL;
    float *image = malloc((size_t)info->width * info->height * info->channels * sizeof *image);
    if (image == NULL)
        return sfc_fail(err, SFC_ENOMEM, "no memory for an image");
    int rc = sfc_decoder_new(set, &decoder, err);
    uint64_t n = 0;
    double start = now();
    while (rc == SFC_OK && (n % 64 != 0 || now() - start < seconds)) {
        rc = sfc_decoder_read(decoder, sfc_sample_at(1, info->samples, n), augment, 1,
                              sfc_epoch_at(info->samples, n), image, err);
        n++;
    }
    if (rc == SFC_OK)
        printf("%-10s %9.0f images/s on one thread\n", name, (double)n / (now() - start));
    sfc_decoder_free(decoder);
    free(image);
    return rc;
}

int main(int argc, char **argv)
{
    static const struct sfc_augment augment = {.affine = 0.12, .blur = 0.5, .noise = 0.08};
    struct sfc_dataset *set = NULL;
    struct sfc_error err = {0};
    double seconds = argc > 2 ? atof(argv[2]) : 2.0;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_data DIR [SECONDS]\n");
        return 2;
    }
    double start = now();
    int rc = sfc_dataset_open(argv[1], &set, &err);
    if (rc == SFC_OK)
        printf("open       %9llu images in %.2f s\n",
               (unsigned long long)sfc_dataset_info(set)->samples, now() - start);
    if (rc == SFC_OK)
        rc = measure(set, NULL, seconds, "stored", &err);
    if (rc == SFC_OK)
        rc = measure(set, &augment, seconds, "augmented", &err);
    sfc_dataset_close(set);
    if (rc != SFC_OK)
        fprintf(stderr, "%s\n", err.text);
    return rc == SFC_OK ? 0 : 1;
}

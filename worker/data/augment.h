/* Light augmentation: a pure function of (seed, epoch, sample), never of time or threads.
 *
 * In this order: horizontal flip; one affine map about the centre with rotation [rad], log scale,
 * shear and both shifts [half widths] each uniform in +-affine, sampled bilinearly, 0 outside; a 3
 * x 3 binomial blur mixed in with a weight uniform in 0..blur; noise of sigma `noise` on pixels
 * whose range is 2 wide (the sum of four uniform bytes, close to normal, at most 3.45 sigma). Only
 * integers and basic float operations: equal bits on every machine. */
#ifndef SFC_WORKER_DATA_AUGMENT_H
#define SFC_WORKER_DATA_AUGMENT_H

#include <stdint.h>

#include "worker/data/dataset.h"

struct sfc_image_shape {
    uint32_t width, height, channels;
};

/* image: planar floats, changed in place; scratch: as large. epoch < 2^32. */
void sfc_augment_image(const struct sfc_augment *augment, uint64_t seed, uint64_t epoch,
                       uint64_t sample, struct sfc_image_shape shape, float *image, float *scratch);

#endif

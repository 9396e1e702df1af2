/* Synthetic data: labels and features as pure functions of (run seed, sample id), so that every
 * worker makes the same ones. Class k has a hidden direction; a sample is that direction plus
 * noise, scaled to a length near sqrt(dim). Every class below min(classes, samples) has samples. */
#ifndef SFC_WORKER_SYNTHETIC_H
#define SFC_WORKER_SYNTHETIC_H

#include <stdint.h>

/* Standard deviation of the noise relative to the direction's elements: cosine near 0.7 to the
 * hidden direction. */
#define SFC_SYNTHETIC_NOISE 1.0f

uint64_t sfc_synthetic_label(uint64_t seed, uint64_t classes, uint64_t sample);
void sfc_synthetic_feature(uint64_t seed, uint64_t classes, uint32_t dim, uint64_t sample,
                           float *out);

#endif

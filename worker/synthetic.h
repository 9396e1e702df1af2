/* Synthetic data: labels and features as pure functions of (run seed, sample id), so that every
 * worker makes the same ones. Class k has a hidden direction; a sample is that direction plus
 * noise, scaled to a length near sqrt(dim).
 *
 * Labels: without hot classes sample s is of class s mod classes, so that every class below
 * min(classes, samples) has samples. With N hot classes it is of hot class s mod N; the ids are cut
 * into N equal stretches, and hot class i is one id of stretch i, drawn from the seed. All others
 * are only ever negatives. Of a run that has grown (which has no hot classes), the samples that a
 * growth brought are of the classes that it brought, in turn, and older samples are what they were.
 */
#ifndef SFC_WORKER_SYNTHETIC_H
#define SFC_WORKER_SYNTHETIC_H

#include <stddef.h>
#include <stdint.h>

/* Standard deviation of the noise relative to the direction's elements: cosine near 0.7 to the
 * hidden direction. */
#define SFC_SYNTHETIC_NOISE 1.0f

struct sfc_synthetic_growth {
    uint64_t classes, samples; /* of the run since then */
};

struct sfc_synthetic {
    uint64_t seed, classes; /* as the run began */
    uint64_t hot_classes;   /* at most classes and SFC_LIMIT_HOT_CLASSES; 0: all are alike */
    uint32_t dim;
    uint64_t samples;                           /* as the run began; counts with growths only */
    const struct sfc_synthetic_growth *growths; /* [growth_count] borrowed */
    size_t growth_count;
};

/* Id of hot class i < hot_classes; ascending in i. */
uint64_t sfc_synthetic_hot_class(const struct sfc_synthetic *set, uint64_t i);
uint64_t sfc_synthetic_label(const struct sfc_synthetic *set, uint64_t sample);
/* Feature of a sample [dim]. */
void sfc_synthetic_feature(const struct sfc_synthetic *set, uint64_t sample, float *out);
/* Hidden direction of a class [dim], elements of standard deviation 1. */
void sfc_synthetic_direction(const struct sfc_synthetic *set, uint64_t label, float *out);

#endif

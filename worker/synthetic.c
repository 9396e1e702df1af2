#include "worker/synthetic.h"

#include "kernels/rng/philox.h"

enum { DIRECTION = 1, NOISE = 2, HOT = 3 };

static void normals(uint64_t seed, uint64_t what, uint64_t index, uint32_t group, float out[4])
{
    sfc_normal4(sfc_random(seed, SFC_STREAM_SYNTHETIC, index, what << 32 | group), out);
}

/* First id of stretch i. The product fits: SFC_LIMIT_HOT_CLASSES times SFC_LIMIT_CLASSES is 2^60.
 */
static uint64_t stretch(const struct sfc_synthetic *set, uint64_t i)
{
    return i * set->classes / set->hot_classes;
}

uint64_t sfc_synthetic_hot_class(const struct sfc_synthetic *set, uint64_t i)
{
    uint64_t first = stretch(set, i), length = stretch(set, i + 1) - first;
    struct sfc_philox w = sfc_random(set->seed, SFC_STREAM_SYNTHETIC, i, (uint64_t)HOT << 32);
    return first + ((uint64_t)w.v[0] << 32 | w.v[1]) % length;
}

uint64_t sfc_synthetic_label(const struct sfc_synthetic *set, uint64_t sample)
{
    uint64_t classes = set->classes, samples = set->samples;
    for (size_t i = 0; i < set->growth_count && sample >= samples; i++) {
        const struct sfc_synthetic_growth *g = &set->growths[i];
        if (sample < g->samples && g->classes > classes)
            return classes + (sample - samples) % (g->classes - classes);
        classes = g->classes;
        samples = g->samples > samples ? g->samples : samples;
    }
    return set->hot_classes ? sfc_synthetic_hot_class(set, sample % set->hot_classes)
                            : sample % set->classes;
}

void sfc_synthetic_feature(const struct sfc_synthetic *set, uint64_t sample, float *out)
{
    uint64_t label = sfc_synthetic_label(set, sample);
    for (uint32_t i = 0; i < set->dim; i += 4) {
        float direction[4], noise[4];
        normals(set->seed, DIRECTION, label, i / 4, direction);
        normals(set->seed, NOISE, sample, i / 4, noise);
        for (uint32_t c = 0; c < 4 && i + c < set->dim; c++)
            out[i + c] = (direction[c] + SFC_SYNTHETIC_NOISE * noise[c]) * 0.70710678f;
    }
}

void sfc_synthetic_direction(const struct sfc_synthetic *set, uint64_t label, float *out)
{
    for (uint32_t i = 0; i < set->dim; i += 4) {
        float direction[4];
        normals(set->seed, DIRECTION, label, i / 4, direction);
        for (uint32_t c = 0; c < 4 && i + c < set->dim; c++)
            out[i + c] = direction[c];
    }
}

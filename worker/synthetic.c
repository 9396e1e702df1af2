#include "worker/synthetic.h"

#include "kernels/rng/philox.h"

enum { DIRECTION = 1, NOISE = 2 };

static void normals(uint64_t seed, uint64_t what, uint64_t index, uint32_t group, float out[4])
{
    sfc_normal4(sfc_random(seed, SFC_STREAM_SYNTHETIC, index, what << 32 | group), out);
}

uint64_t sfc_synthetic_label(uint64_t seed, uint64_t classes, uint64_t sample)
{
    (void)seed;
    return sample % classes;
}

void sfc_synthetic_feature(uint64_t seed, uint64_t classes, uint32_t dim, uint64_t sample,
                           float *out)
{
    uint64_t label = sfc_synthetic_label(seed, classes, sample);
    for (uint32_t i = 0; i < dim; i += 4) {
        float direction[4], noise[4];
        normals(seed, DIRECTION, label, i / 4, direction);
        normals(seed, NOISE, sample, i / 4, noise);
        for (uint32_t c = 0; c < 4 && i + c < dim; c++)
            out[i + c] = (direction[c] + SFC_SYNTHETIC_NOISE * noise[c]) * 0.70710678f;
    }
}

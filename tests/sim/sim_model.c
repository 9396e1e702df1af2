/* The arithmetic of the model: hashes in the place of sums and products. */
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/permutation.h"
#include "kernels/rng/sample.h"
#include "tests/sim/sim.h"

uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u + (a << 6) + (a >> 2));
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t model_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* Samples that came with a growth are of the identities that came with it. */
uint64_t model_label(const struct sim *s, uint64_t sample)
{
    const struct map *m = &s->store.map;
    uint64_t samples = SAMPLES, first = 0, classes = s->classes;
    for (uint32_t i = 0; i < m->growth_count && sample >= samples; i++) {
        first = classes;
        classes = m->growths[i].classes;
        samples = m->growths[i].samples;
    }
    return first + mix(3, sample) % (classes - first);
}

uint64_t model_seeded(uint32_t block, uint32_t rows)
{
    return rows ? mix(mix(101, block), rows) : 0;
}

uint64_t model_grown(uint64_t state, uint32_t block, uint32_t rows_before, uint32_t rows)
{
    return rows_before == 0 ? model_seeded(block, rows) : mix(mix(state, rows_before), rows);
}

uint64_t model_salt(uint64_t salt, struct sfc_attempt attempt)
{
    return mix(mix(salt, attempt.incarnation), attempt.counter);
}

uint64_t model_session_label(const struct sim *s, uint64_t salt, uint64_t step, uint32_t j,
                             uint32_t row)
{
    return mix(salt, (step * s->j + j) * ROWS + row) % s->classes;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

uint64_t model_sample(const struct sim *s, uint64_t step, uint32_t block, uint32_t rows,
                      const uint64_t *labels)
{
    uint32_t positives[MAX_B], out[BLOCK_SIZE], n = 0, distinct = 0;
    _Alignas(64) unsigned char scratch[16384];
    if (rows == 0)
        return 0;
    for (uint32_t i = 0; i < s->j * ROWS; i++)
        if (labels[i] / BLOCK_SIZE == block && labels[i] % BLOCK_SIZE < rows)
            positives[n++] = (uint32_t)(labels[i] % BLOCK_SIZE);
    qsort(positives, n, sizeof(*positives), by_value);
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || positives[i] != positives[i - 1])
            positives[distinct++] = positives[i];
    if (sfc_sample_scratch(BLOCK_SIZE) > sizeof(scratch))
        abort();
    uint32_t count =
        sfc_sample_block(5, step, block, rows, SAMPLE_PPM, positives, distinct, out, scratch);
    uint64_t h = mix(step, block);
    for (uint32_t i = 0; i < count; i++)
        h = mix(h, out[i]);
    return h;
}

uint64_t model_features(const struct sim *s, uint64_t step, uint32_t j, uint64_t salt,
                        const uint64_t *dense)
{
    uint64_t h = mix(mix(step, j), salt);
    for (uint32_t d = 0; d < s->d; d++)
        h = mix(h, dense[d]);
    return h;
}

uint64_t model_logits(uint64_t state, uint64_t sample, uint64_t features)
{
    return mix(mix(state, sample), features);
}

uint64_t model_lse(uint64_t logits)
{
    return mix(logits, 11);
}

uint64_t model_gradient(uint64_t state, uint64_t sample, uint64_t features, uint64_t lse)
{
    return mix(mix(mix(state, sample), features), lse);
}

uint64_t model_slice(uint64_t dx, uint64_t features, uint32_t block)
{
    return mix(mix(dx, features), block);
}

uint64_t model_class_update(uint64_t state, uint64_t sample, uint64_t inputs, double lr)
{
    return mix(mix(mix(state, sample), inputs), model_double(lr));
}

uint64_t model_dense_update(uint64_t state, uint64_t sum, double clip_scale, double lr)
{
    return mix(mix(mix(state, sum), model_double(clip_scale)), model_double(lr));
}

double model_square(uint64_t sum)
{
    return (double)(sum % 1000) / 8.0;
}

bool model_finite(const struct sim *s, uint64_t step, uint32_t block)
{
    return !s->not_finite || mix(mix(s->seed, step), block) % 23 != 0;
}

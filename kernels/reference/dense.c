#include "kernels/reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"

struct ref_dense {
    struct sfc_dense_part base;
    uint64_t length;
    double *value, *momentum, *sum; /* [length] */
    double *second;                 /* [length] AdamW: second moments; else NULL */
    float *slices;                  /* [slots, length] */
};

static uint64_t local_length(const struct sfc_dense_config *config, const uint64_t *blocks,
                             size_t count)
{
    uint64_t length = 0;
    for (size_t i = 0; i < count; i++) {
        length += sfc_dense_block_length(config, blocks[i]);
    }
    return length;
}

static const struct sfc_dense_segment *segment_of(const struct sfc_dense_config *config,
                                                  uint64_t global)
{
    size_t s = 0;
    while (global >= config->segments[s].offset + config->segments[s].length) {
        s++;
    }
    return &config->segments[s];
}

static bool is_adamw(const struct sfc_dense_config *config)
{
    return config->optimizer == SFC_OPTIMIZER_ADAMW;
}

int sfc_ref_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err)
{
    (void)backend;
    (void)err;
    uint64_t length = local_length(config, blocks, count);
    *out = (struct sfc_memory){
        .state_bytes = (is_adamw(config) ? 3 : 2) * length * sizeof(double),
        .step_bytes = length * sizeof(double) + config->slots * length * sizeof(float),
        .scratch_bytes = sizeof(struct ref_dense),
    };
    return SFC_OK;
}

static void free_all(struct ref_dense *d)
{
    free(d->value);
    free(d->momentum);
    free(d->second);
    free(d->sum);
    free(d->slices);
    free(d);
}

static void init_values(struct ref_dense *d, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count)
{
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t first = blocks[i] * config->block_size;
        for (uint64_t k = 0; k < sfc_dense_block_length(config, blocks[i]); k++, at++) {
            const struct sfc_dense_segment *s = segment_of(config, first + k);
            float normal[4];
            sfc_normal4(sfc_random(config->seed, SFC_STREAM_DENSE_INIT, 0, (first + k) / 4),
                        normal);
            /* in f32: the initial state is the same for every backend */
            d->value[at] = (float)s->init_mean + (float)s->init_std * normal[(first + k) % 4];
        }
    }
}

int sfc_ref_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_dense_part **out,
                      struct sfc_error *err)
{
    (void)backend;
    uint64_t length = local_length(config, blocks, count);
    struct ref_dense *d = calloc(1, sizeof *d);
    if (!d) {
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory");
    }
    d->length = length;
    d->value = calloc(length, sizeof *d->value);
    d->momentum = calloc(length, sizeof *d->momentum);
    d->sum = calloc(length, sizeof *d->sum);
    d->slices = calloc(config->slots * length, sizeof *d->slices);
    if (is_adamw(config)) {
        d->second = calloc(length, sizeof *d->second);
    }
    if ((is_adamw(config) && !d->second) || !d->value || !d->momentum || !d->sum || !d->slices) {
        free_all(d);
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %llu floats and %u slots",
                        (unsigned long long)length, config->slots);
    }
    if (!blank) {
        init_values(d, config, blocks, count);
    }
    *out = &d->base;
    return SFC_OK;
}

void sfc_ref_dense_free(struct sfc_dense_part *dense)
{
    free_all((struct ref_dense *)dense);
}

static double *part_of(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part)
{
    struct ref_dense *d = (struct ref_dense *)dense;
    uint64_t at = local_length(&dense->config, dense->blocks, index);
    return (part == SFC_PART_VALUES          ? d->value
            : part == SFC_PART_SECOND_MOMENT ? d->second
                                             : d->momentum) +
           at;
}

int sfc_ref_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    (void)err;
    const double *from = part_of(dense, index, part) + offset;
    for (uint64_t k = 0; k < count; k++) {
        out[k] = (float)from[k];
    }
    return SFC_OK;
}

int sfc_ref_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    (void)err;
    double *to = part_of(dense, index, part) + offset;
    for (uint64_t k = 0; k < count; k++) {
        to[k] = values[k];
    }
    return SFC_OK;
}

int sfc_ref_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                       struct sfc_error *err)
{
    (void)err;
    struct ref_dense *d = (struct ref_dense *)dense;
    memcpy(d->slices + slot * d->length, slice, d->length * sizeof *slice);
    return SFC_OK;
}

int sfc_ref_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err)
{
    (void)err;
    struct ref_dense *d = (struct ref_dense *)dense;
    for (uint64_t k = 0; k < d->length; k++) {
        out[k] = (float)d->value[k];
    }
    return SFC_OK;
}

int sfc_ref_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                          struct sfc_dense_sum *out, struct sfc_error *err)
{
    (void)err;
    struct ref_dense *d = (struct ref_dense *)dense;
    const struct sfc_dense_config *c = &dense->config;
    uint64_t at = 0;
    for (size_t i = 0; i < dense->block_count; i++) {
        struct sfc_dense_sum result = {dense->blocks[i], 0, true};
        uint64_t first = dense->blocks[i] * c->block_size;
        for (uint64_t k = 0; k < sfc_dense_block_length(c, dense->blocks[i]); k++, at++) {
            double sum = 0;
            for (uint32_t j = 0; j < c->micro_batches; j++) {
                sum += (double)d->slices[slots[j] * d->length + at];
            }
            if (segment_of(c, first + k)->role == SFC_DENSE_STATISTIC) {
                sum /= c->micro_batches;
            } else {
                if (c->sum_dtype == SFC_DTYPE_BF16 && isfinite((float)sum)) {
                    sum = sfc_bf16_nearest((float)sum);
                }
                result.sum_of_squares += sum * sum;
            }
            d->sum[at] = sum;
            result.finite = result.finite && isfinite((float)sum);
        }
        out[i] = result;
    }
    return SFC_OK;
}

/* Calls fn for every sum with its place in the packed ones. */
static void each_packed(struct ref_dense *d, void *packed,
                        void (*fn)(double *sum, bool half, void *at))
{
    const struct sfc_dense_config *c = &d->base.config;
    char *halves = packed, *floats = halves + sfc_dense_packed_floats(&d->base.packing);
    uint64_t at = 0;
    for (size_t i = 0; i < d->base.block_count; i++) {
        uint64_t first = d->base.blocks[i] * c->block_size;
        for (uint64_t k = 0; k < sfc_dense_block_length(c, d->base.blocks[i]); k++, at++) {
            bool half = sfc_dense_is_half(c, segment_of(c, first + k)->role);
            fn(&d->sum[at], half, half ? halves : floats);
            halves += half ? sizeof(uint16_t) : 0;
            floats += half ? 0 : sizeof(float);
        }
    }
}

static void pack(double *sum, bool half, void *at)
{
    float value = (float)*sum;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t high = (uint16_t)(bits >> 16);
    memcpy(at, half ? (const void *)&high : (const void *)&value,
           half ? sizeof high : sizeof value);
}

static void unpack(double *sum, bool half, void *at)
{
    uint16_t high = 0;
    uint32_t bits = 0;
    float value;
    memcpy(half ? (void *)&high : (void *)&bits, at, half ? sizeof high : sizeof bits);
    bits |= (uint32_t)high << 16;
    memcpy(&value, &bits, sizeof value);
    *sum = value;
}

int sfc_ref_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err)
{
    (void)err;
    memset(out, 0, sfc_dense_packed_floats(&dense->packing));
    each_packed((struct ref_dense *)dense, out, pack);
    return SFC_OK;
}

int sfc_ref_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err)
{
    (void)err;
    each_packed((struct ref_dense *)dense, (void *)(uintptr_t)sums, unpack);
    return SFC_OK;
}

void sfc_ref_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out)
{
    const struct ref_dense *d = (const struct ref_dense *)dense;
    const struct sfc_dense_config *c = &dense->config;
    uint64_t at = 0;
    for (size_t i = 0; i < dense->block_count; i++) {
        uint64_t first = dense->blocks[i] * c->block_size;
        out[i] = (struct sfc_extent){0};
        for (uint64_t k = 0; k < sfc_dense_block_length(c, dense->blocks[i]); k++, at++) {
            if (segment_of(c, first + k)->role == SFC_DENSE_STATISTIC) {
                continue;
            }
            out[i].w = fmax(out[i].w, fabs(d->value[at]));
            out[i].m = fmax(out[i].m, fabs(d->momentum[at]));
            if (d->second) {
                out[i].ratio =
                    fmax(out[i].ratio, fabs(d->momentum[at]) / (sqrt(d->second[at]) + c->epsilon));
            }
        }
    }
}

static void update(struct ref_dense *d, uint64_t at, enum sfc_dense_role role, double clip,
                   double lr)
{
    const struct sfc_dense_config *c = &d->base.config;
    double *w = &d->value[at], *m = &d->momentum[at];
    if (role == SFC_DENSE_STATISTIC) {
        *w = (1 - c->statistic_momentum) * *w + c->statistic_momentum * d->sum[at];
        return;
    }
    double decay = role == SFC_DENSE_WEIGHT ? c->weight_decay : 0;
    if (is_adamw(c)) {
        double t = (double)d->base.step, g = clip * d->sum[at], *v = &d->second[at];
        *m = c->beta1 * *m + (1 - c->beta1) * g;
        *v = c->beta2 * *v + (1 - c->beta2) * g * g;
        double first = *m / (1 - pow(c->beta1, t)), second = *v / (1 - pow(c->beta2, t));
        *w -= lr * (first / (sqrt(second) + c->epsilon) + decay * *w);
        return;
    }
    *m = c->momentum * *m + clip * d->sum[at] + decay * *w;
    *w -= lr * *m;
}

int sfc_ref_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                         struct sfc_error *err)
{
    (void)err;
    struct ref_dense *d = (struct ref_dense *)dense;
    const struct sfc_dense_config *c = &dense->config;
    uint64_t at = 0;
    for (size_t i = 0; i < dense->block_count; i++) {
        uint64_t first = dense->blocks[i] * c->block_size;
        for (uint64_t k = 0; k < sfc_dense_block_length(c, dense->blocks[i]); k++, at++) {
            if (!sfc_dense_left_out(dense, i)) {
                update(d, at, segment_of(c, first + k)->role, clip_scale, lr);
            }
        }
    }
    return SFC_OK;
}

/* Backbone blocks on the CPU: elementwise passes over contiguous f32 vectors. Every float has its
 * own arithmetic and the sum of squares of a block has a fixed order, so blocks never influence one
 * another; they are worked on in parallel. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/adamw.h"
#include "kernels/cpu/pool.h"
#include "kernels/rng/philox.h"

/* Partial sums of the sum of squares: element i of a piece goes to sum i % SQUARE_LANES. */
#define SQUARE_LANES 16

/* A run of floats of one block and one role. */
struct piece {
    uint64_t at; /* in the local vectors */
    uint64_t length;
    enum sfc_dense_role role;
    uint64_t packed; /* in the halves or in the floats of packed sums, as the role says */
};

struct cpu_dense {
    struct sfc_dense_part base;
    uint64_t length;     /* floats of all blocks */
    uint64_t *block_at;  /* [blocks + 1] first float of a block in the local vectors */
    size_t *first_piece; /* [blocks + 1] */
    struct piece *pieces;
    float *values;   /* [length] */
    float *momentum; /* [length] */
    float *second;   /* [length] AdamW: second moments; else NULL */
    float *sum;      /* [length] of the last prepare: gradients added, statistics averaged */
    float *slices;   /* [slots, length] */
};

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Cuts the blocks at the borders of the segments. pieces NULL: only counts. */
static size_t cut_pieces(const struct sfc_dense_config *config, const uint64_t *blocks,
                         size_t count, struct piece *pieces, size_t *first_piece)
{
    size_t n = 0, s = 0;
    uint64_t at = 0, packed[2] = {0}; /* floats, halves */
    for (size_t i = 0; i < count; i++) {
        uint64_t from = blocks[i] * config->block_size;
        uint64_t end = from + sfc_dense_block_length(config, blocks[i]);
        if (first_piece) {
            first_piece[i] = n;
        }
        while (from < end) {
            while (config->segments[s].offset + config->segments[s].length <= from) {
                s++;
            }
            uint64_t stop = smaller(end, config->segments[s].offset + config->segments[s].length);
            bool half = sfc_dense_is_half(config, config->segments[s].role);
            if (pieces) {
                pieces[n] = (struct piece){at, stop - from, config->segments[s].role, packed[half]};
            }
            packed[half] += stop - from;
            n++;
            at += stop - from;
            from = stop;
        }
    }
    if (first_piece) {
        first_piece[count] = n;
    }
    return n;
}

static uint64_t total_length(const struct sfc_dense_config *config, const uint64_t *blocks,
                             size_t count)
{
    uint64_t length = 0;
    for (size_t i = 0; i < count; i++) {
        length += sfc_dense_block_length(config, blocks[i]);
    }
    return length;
}

static bool is_adamw(const struct sfc_dense_config *config)
{
    return config->optimizer == SFC_OPTIMIZER_ADAMW;
}

int sfc_cpu_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err)
{
    (void)backend;
    (void)err;
    uint64_t length = total_length(config, blocks, count);
    size_t pieces = cut_pieces(config, blocks, count, NULL, NULL);
    *out = (struct sfc_memory){
        .state_bytes = (is_adamw(config) ? 3 : 2) * length * sizeof(float),
        .step_bytes = ((uint64_t)config->slots + 1) * length * sizeof(float),
        .scratch_bytes = sizeof(struct cpu_dense) + pieces * sizeof(struct piece) +
                         (count + 1) * (sizeof(uint64_t) + sizeof(size_t)),
    };
    return SFC_OK;
}

/* w = init_mean + init_std * normal; the normal is keyed by the position in the whole vector. */
static void init_values(struct cpu_dense *d, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t global = blocks[i] * config->block_size;
        sfc_random_normals(config->seed, SFC_STREAM_DENSE_INIT, 0, global,
                           (size_t)(d->block_at[i + 1] - d->block_at[i]),
                           d->values + d->block_at[i]);
        size_t s = 0;
        for (size_t p = d->first_piece[i]; p < d->first_piece[i + 1]; p++) {
            uint64_t first = global + d->pieces[p].at - d->block_at[i];
            while (config->segments[s].offset + config->segments[s].length <= first) {
                s++;
            }
            float mean = (float)config->segments[s].init_mean;
            float std = (float)config->segments[s].init_std;
            float *w = d->values + d->pieces[p].at;
            for (uint64_t k = 0; k < d->pieces[p].length; k++) {
                w[k] = mean + std * w[k];
            }
        }
    }
}

static void free_vectors(struct cpu_dense *d)
{
    free(d->block_at);
    free(d->first_piece);
    free(d->pieces);
    free(d->values);
    free(d->momentum);
    free(d->second);
    free(d->sum);
    free(d->slices);
    free(d);
}

int sfc_cpu_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_dense_part **out,
                      struct sfc_error *err)
{
    (void)backend;
    uint64_t length = total_length(config, blocks, count);
    size_t pieces = cut_pieces(config, blocks, count, NULL, NULL);
    struct cpu_dense *d = calloc(1, sizeof *d);
    if (!d) {
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory");
    }
    d->length = length;
    d->block_at = calloc(count + 1, sizeof *d->block_at);
    d->first_piece = calloc(count + 1, sizeof *d->first_piece);
    d->pieces = calloc(pieces, sizeof *d->pieces);
    d->values = calloc(length, sizeof *d->values);
    d->momentum = calloc(length, sizeof *d->momentum);
    if (is_adamw(config)) {
        d->second = calloc(length, sizeof *d->second);
    }
    d->sum = calloc(length, sizeof *d->sum);
    d->slices = calloc((size_t)config->slots * length, sizeof *d->slices);
    if ((is_adamw(config) && !d->second) || !d->block_at || !d->first_piece || !d->pieces ||
        !d->values || !d->momentum || !d->sum || !d->slices) {
        free_vectors(d);
        return sfc_fail(err, SFC_ENOMEM, "dense: out of memory for %llu floats and %u slots",
                        (unsigned long long)length, config->slots);
    }
    cut_pieces(config, blocks, count, d->pieces, d->first_piece);
    for (size_t i = 0; i < count; i++) {
        d->block_at[i + 1] = d->block_at[i] + sfc_dense_block_length(config, blocks[i]);
    }
    if (!blank)
        init_values(d, config, blocks, count);
    *out = &d->base;
    return SFC_OK;
}

void sfc_cpu_dense_free(struct sfc_dense_part *dense)
{
    free_vectors((struct cpu_dense *)dense);
}

static float *part_of(struct cpu_dense *d, size_t index, enum sfc_block_part part)
{
    return (part == SFC_PART_VALUES          ? d->values
            : part == SFC_PART_SECOND_MOMENT ? d->second
                                             : d->momentum) +
           d->block_at[index];
}

int sfc_cpu_dense_read(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    (void)err;
    memcpy(out, part_of((struct cpu_dense *)dense, index, part) + offset, count * sizeof *out);
    return SFC_OK;
}

int sfc_cpu_dense_write(struct sfc_dense_part *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    (void)err;
    memcpy(part_of((struct cpu_dense *)dense, index, part) + offset, values,
           count * sizeof *values);
    return SFC_OK;
}

int sfc_cpu_dense_push(struct sfc_dense_part *dense, uint32_t slot, const float *slice,
                       struct sfc_error *err)
{
    (void)err;
    struct cpu_dense *d = (struct cpu_dense *)dense;
    memcpy(d->slices + slot * d->length, slice, d->length * sizeof *slice);
    return SFC_OK;
}

int sfc_cpu_dense_pull(struct sfc_dense_part *dense, float *out, struct sfc_error *err)
{
    (void)err;
    struct cpu_dense *d = (struct cpu_dense *)dense;
    memcpy(out, d->values, d->length * sizeof *out);
    return SFC_OK;
}

/* sum = slice of slots[0] + slice of slots[1] + ..., from left to right. */
static void add_slices(const struct cpu_dense *d, const uint32_t *slots, const struct piece *p)
{
    float *sum = d->sum + p->at;
    memcpy(sum, d->slices + slots[0] * d->length + p->at, p->length * sizeof *sum);
    for (uint32_t j = 1; j < d->base.config.micro_batches; j++) {
        const float *slice = d->slices + slots[j] * d->length + p->at;
        for (uint64_t k = 0; k < p->length; k++) {
            sum[k] += slice[k];
        }
    }
    if (p->role == SFC_DENSE_STATISTIC) {
        float count = (float)d->base.config.micro_batches;
        for (uint64_t k = 0; k < p->length; k++) {
            sum[k] /= count;
        }
    }
}

/* Each to the nearest bf16, ties to even; what is not finite stays so. The same as
 * sfc_bf16_nearest, in a form that compilers make vectors of. */
static void round_sums(float *v, uint64_t n)
{
    for (uint64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &v[k], sizeof bits);
        uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
        uint32_t out = (bits & 0x7f800000u) == 0x7f800000u ? bits : rounded;
        memcpy(&v[k], &out, sizeof out);
    }
}

static bool all_finite(const float *v, uint64_t n)
{
    uint32_t broken = 0;
    for (uint64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &v[k], sizeof bits);
        broken |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !broken;
}

static double sum_of_squares(const float *v, uint64_t n)
{
    double lane[SQUARE_LANES] = {0};
    uint64_t k = 0;
    for (; k + SQUARE_LANES <= n; k += SQUARE_LANES) {
        for (uint64_t l = 0; l < SQUARE_LANES; l++) {
            lane[l] += (double)v[k + l] * (double)v[k + l];
        }
    }
    for (uint64_t l = 0; k + l < n; l++) {
        lane[l] += (double)v[k + l] * (double)v[k + l];
    }
    double sum = 0;
    for (uint64_t l = 0; l < SQUARE_LANES; l++) {
        sum += lane[l];
    }
    return sum;
}

struct prepare_call {
    struct cpu_dense *dense;
    const uint32_t *slots;
    struct sfc_dense_sum *out;
};

static void prepare_block(void *arg, size_t index, unsigned worker)
{
    const struct prepare_call *call = arg;
    struct cpu_dense *d = call->dense;
    struct sfc_dense_sum sum = {d->base.blocks[index], 0, true};
    (void)worker;
    call->out[index] = sum;
    if (d->base.block_step[index] == SFC_BLOCK_GONE)
        return;
    for (size_t p = d->first_piece[index]; p < d->first_piece[index + 1]; p++) {
        const struct piece *piece = &d->pieces[p];
        add_slices(d, call->slots, piece);
        if (sfc_dense_is_half(&d->base.config, piece->role)) {
            round_sums(d->sum + piece->at, piece->length);
        }
        sum.finite = all_finite(d->sum + piece->at, piece->length) && sum.finite;
        if (piece->role != SFC_DENSE_STATISTIC) {
            sum.sum_of_squares += sum_of_squares(d->sum + piece->at, piece->length);
        }
    }
    call->out[index] = sum;
}

int sfc_cpu_dense_prepare(struct sfc_dense_part *dense, const uint32_t *slots,
                          struct sfc_dense_sum *out, struct sfc_error *err)
{
    (void)err;
    struct prepare_call call = {(struct cpu_dense *)dense, slots, out};
    sfc_cpu_pool_run(((struct sfc_cpu *)dense->backend)->pool, prepare_block, &call,
                     dense->block_count);
    return SFC_OK;
}

static void pack_halves(const float *in, uint64_t n, uint16_t *out)
{
    for (uint64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &in[k], sizeof bits);
        out[k] = (uint16_t)(bits >> 16);
    }
}

static void unpack_halves(const uint16_t *in, uint64_t n, float *out)
{
    for (uint64_t k = 0; k < n; k++) {
        uint32_t bits = (uint32_t)in[k] << 16;
        memcpy(&out[k], &bits, sizeof bits);
    }
}

struct pack_call {
    struct cpu_dense *dense;
    void *out;      /* where the sums go, or NULL */
    const void *in; /* and where they come from */
};

static void pack_block(void *arg, size_t index, unsigned worker)
{
    const struct pack_call *call = arg;
    struct cpu_dense *d = call->dense;
    size_t floats = sfc_dense_packed_floats(&d->base.packing);
    (void)worker;
    for (size_t p = d->first_piece[index]; p < d->first_piece[index + 1]; p++) {
        const struct piece *piece = &d->pieces[p];
        float *sum = d->sum + piece->at;
        bool half = sfc_dense_is_half(&d->base.config, piece->role);
        size_t at =
            half ? piece->packed * sizeof(uint16_t) : floats + piece->packed * sizeof(float);
        if (half && call->out) {
            pack_halves(sum, piece->length, (void *)((char *)call->out + at));
        } else if (half) {
            unpack_halves((const void *)((const char *)call->in + at), piece->length, sum);
        } else if (call->out) {
            memcpy((char *)call->out + at, sum, piece->length * sizeof *sum);
        } else {
            memcpy(sum, (const char *)call->in + at, piece->length * sizeof *sum);
        }
    }
}

int sfc_cpu_dense_sums(struct sfc_dense_part *dense, void *out, struct sfc_error *err)
{
    (void)err;
    struct pack_call call = {.dense = (struct cpu_dense *)dense, .out = out};
    size_t floats = sfc_dense_packed_floats(&dense->packing);
    size_t halves = dense->packing.halves * sizeof(uint16_t);
    memset((char *)out + halves, 0, floats - halves);
    sfc_cpu_pool_run(((struct sfc_cpu *)dense->backend)->pool, pack_block, &call,
                     dense->block_count);
    return SFC_OK;
}

int sfc_cpu_dense_load(struct sfc_dense_part *dense, const void *sums, struct sfc_error *err)
{
    (void)err;
    struct pack_call call = {.dense = (struct cpu_dense *)dense, .in = sums};
    sfc_cpu_pool_run(((struct sfc_cpu *)dense->backend)->pool, pack_block, &call,
                     dense->block_count);
    return SFC_OK;
}

void sfc_cpu_dense_extents(struct sfc_dense_part *dense, struct sfc_extent *out)
{
    const struct cpu_dense *d = (const struct cpu_dense *)dense;
    for (size_t i = 0; i < dense->block_count; i++) {
        out[i] = (struct sfc_extent){0};
        for (size_t p = d->first_piece[i]; p < d->first_piece[i + 1]; p++) {
            const struct piece *piece = &d->pieces[p];
            if (piece->role != SFC_DENSE_STATISTIC)
                sfc_extent_add(&out[i], d->values + piece->at, d->momentum + piece->at,
                               d->second ? d->second + piece->at : NULL, piece->length,
                               dense->config.epsilon);
        }
    }
}

static void update_statistics(float *restrict w, const float *restrict mean, uint64_t n, float rate)
{
    for (uint64_t k = 0; k < n; k++) {
        w[k] = (1 - rate) * w[k] + rate * mean[k];
    }
}

struct update {
    float clip, decay, momentum, lr;
};

static void update_weights(float *restrict w, float *restrict m, const float *restrict sum,
                           uint64_t n, struct update u)
{
    for (uint64_t k = 0; k < n; k++) {
        float g = u.clip * sum[k] + u.decay * w[k];
        m[k] = u.momentum * m[k] + g;
        w[k] -= u.lr * m[k];
    }
}

static void adamw_weights(float *restrict w, float *restrict m, float *restrict v,
                          const float *restrict sum, uint64_t n, float clip, struct sfc_adamw a)
{
    for (uint64_t k = 0; k < n; k++) {
        float g = clip * sum[k];
        m[k] = a.keep1 * m[k] + a.take1 * g;
        v[k] = a.keep2 * v[k] + a.take2 * (g * g);
        w[k] -= a.rate * m[k] / (a.root * sqrtf(v[k]) + a.epsilon) + a.decay * w[k];
    }
}

struct commit_call {
    struct cpu_dense *dense;
    double clip_scale, lr;
    struct sfc_adamw adamw;
};

static void update_piece(const struct commit_call *call, const struct piece *piece)
{
    struct cpu_dense *d = call->dense;
    const struct sfc_dense_config *c = &d->base.config;
    bool decays = piece->role == SFC_DENSE_WEIGHT;
    float *w = d->values + piece->at, *m = d->momentum + piece->at;
    const float *sum = d->sum + piece->at;
    if (is_adamw(c)) {
        struct sfc_adamw a = call->adamw;
        a.decay = decays ? a.decay : 0;
        adamw_weights(w, m, d->second + piece->at, sum, piece->length, (float)call->clip_scale, a);
        return;
    }
    struct update u = {
        .clip = (float)call->clip_scale,
        .decay = decays ? (float)c->weight_decay : 0,
        .momentum = (float)c->momentum,
        .lr = (float)call->lr,
    };
    update_weights(w, m, sum, piece->length, u);
}

static void commit_block(void *arg, size_t index, unsigned worker)
{
    const struct commit_call *call = arg;
    struct cpu_dense *d = call->dense;
    const struct sfc_dense_config *c = &d->base.config;
    (void)worker;
    if (sfc_dense_left_out(&d->base, index))
        return;
    for (size_t p = d->first_piece[index]; p < d->first_piece[index + 1]; p++) {
        const struct piece *piece = &d->pieces[p];
        if (piece->role == SFC_DENSE_STATISTIC)
            update_statistics(d->values + piece->at, d->sum + piece->at, piece->length,
                              (float)c->statistic_momentum);
        else
            update_piece(call, piece);
    }
}

int sfc_cpu_dense_commit(struct sfc_dense_part *dense, double clip_scale, double lr,
                         struct sfc_error *err)
{
    (void)err;
    const struct sfc_dense_config *c = &dense->config;
    struct commit_call call = {
        .dense = (struct cpu_dense *)dense, .clip_scale = clip_scale, .lr = lr};
    if (is_adamw(c)) {
        call.adamw = sfc_adamw_at(c->beta1, c->beta2, c->epsilon, c->weight_decay, lr, dense->step);
    }
    sfc_cpu_pool_run(((struct sfc_cpu *)dense->backend)->pool, commit_block, &call,
                     dense->block_count);
    return SFC_OK;
}

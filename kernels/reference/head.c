#include "kernels/reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rng/philox.h"
#include "kernels/rng/rounding.h"
#include "kernels/rng/sample.h"

#define PI            3.14159265358979323846
#define MIN_NORM      1e-12
#define MIN_SIN_THETA 1e-4
#define COSINE_ONE    32766.0

struct ref_block {
    uint64_t first_class;
    uint32_t rows;
    uint64_t row_at;    /* first row in w and m */
    uint64_t sample_at; /* first entry of the present sample */
    uint32_t sampled;
    uint32_t positives; /* distinct positive classes */
};

/* One logit of the kept step. */
struct logit {
    double cos, z;
    double dcos; /* after pass 2 */
};

struct ref_head {
    struct sfc_head_part base;
    size_t block_count;
    struct ref_block *blocks;
    uint64_t capacity;        /* most classes that a sample can have */
    double *w, *m;            /* [rows, dim] */
    double *v;                /* [rows, dim] AdamW: second moments; else NULL */
    uint32_t *sample;         /* [capacity] rows inside their block */
    double *x;                /* [slots, micro_batch, dim] unit rows */
    bool *zero;               /* [slots, micro_batch] feature without direction */
    struct logit *logits;     /* [slots, micro_batch, capacity] */
    double *unit_w, *product; /* [dim] scratch */
    uint8_t *is_positive;     /* [block_size] scratch */
    uint32_t *positives;      /* [block_size] scratch */
    void *sample_scratch;
};

static bool is_adamw(const struct sfc_head_config *config)
{
    return config->optimizer == SFC_OPTIMIZER_ADAMW;
}

struct sizes {
    uint64_t rows, capacity;
};

/* Quotas of all blocks, and at most `batch` positives beyond them. */
static struct sizes sizes_of(const struct sfc_head_config *c, const uint64_t *blocks, size_t count)
{
    struct sizes s = {0};
    for (size_t i = 0; i < count; i++) {
        uint32_t rows = (uint32_t)sfc_head_block_rows(c, blocks[i]);
        s.rows += rows;
        s.capacity += sfc_sample_quota(rows, c->sample_ppm, 0);
    }
    s.capacity = s.capacity + c->batch < s.rows ? s.capacity + c->batch : s.rows;
    return s;
}

int sfc_ref_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err)
{
    (void)backend;
    (void)err;
    struct sizes s = sizes_of(config, blocks, count);
    uint64_t kept = (uint64_t)config->slots * config->micro_batch;
    *out = (struct sfc_memory){
        .state_bytes = (is_adamw(config) ? 3 : 2) * s.rows * config->dim * sizeof(double),
        .step_bytes =
            s.capacity * sizeof(uint32_t) + kept * (config->dim * sizeof(double) + sizeof(bool) +
                                                    s.capacity * sizeof(struct logit)),
        .scratch_bytes = sizeof(struct ref_head) + count * sizeof(struct ref_block) +
                         2 * config->dim * sizeof(double) + (uint64_t)config->block_size * 5 +
                         sfc_sample_scratch(config->block_size) + 64,
    };
    return SFC_OK;
}

static void free_all(struct ref_head *h)
{
    free(h->blocks);
    free(h->w);
    free(h->m);
    free(h->v);
    free(h->sample);
    free(h->x);
    free(h->zero);
    free(h->logits);
    free(h->unit_w);
    free(h->product);
    free(h->is_positive);
    free(h->positives);
    free(h->sample_scratch);
    free(h);
}

static bool allocate(struct ref_head *h, const struct sfc_head_config *c, size_t count,
                     struct sizes s)
{
    size_t kept = (size_t)c->slots * c->micro_batch;
    h->blocks = calloc(count, sizeof *h->blocks);
    h->w = calloc(s.rows * c->dim, sizeof *h->w);
    h->m = calloc(s.rows * c->dim, sizeof *h->m);
    if (is_adamw(c)) {
        h->v = calloc(s.rows * c->dim, sizeof *h->v);
    }
    h->sample = calloc(s.capacity, sizeof *h->sample);
    h->x = calloc(kept * c->dim, sizeof *h->x);
    h->zero = calloc(kept, sizeof *h->zero);
    h->logits = calloc(kept * s.capacity, sizeof *h->logits);
    h->unit_w = calloc(c->dim, sizeof *h->unit_w);
    h->product = calloc(c->dim, sizeof *h->product);
    h->is_positive = calloc(c->block_size, sizeof *h->is_positive);
    h->positives = calloc(c->block_size, sizeof *h->positives);
    h->sample_scratch = aligned_alloc(64, (sfc_sample_scratch(c->block_size) + 63) / 64 * 64);
    return (h->v || !is_adamw(c)) && h->blocks && h->w && h->m && h->sample && h->x && h->zero &&
           h->logits && h->unit_w && h->product && h->is_positive && h->positives &&
           h->sample_scratch;
}

/* As bf16 state holds it; f32 state is kept in double. */
static double stored(const struct sfc_head_config *c, float value)
{
    return c->dtype == SFC_DTYPE_BF16 ? sfc_bf16_nearest(value) : value;
}

/* W ~ N(0, init_std), keyed by (class, column). */
static void init_block(struct ref_head *h, const struct sfc_head_config *c,
                       const struct ref_block *b)
{
    for (uint64_t i = 0; i < b->rows; i++) {
        double *w = h->w + (b->row_at + i) * c->dim;
        for (uint32_t k = 0; k < c->dim; k++) {
            float normal[4];
            sfc_normal4(sfc_random(c->seed, SFC_STREAM_CLASS_INIT, b->first_class + i, k / 4),
                        normal);
            w[k] = stored(c, (float)c->init_std * normal[k % 4]);
        }
    }
}

int sfc_ref_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                     const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                     struct sfc_error *err)
{
    (void)backend;
    struct sizes s = sizes_of(config, blocks, count);
    struct ref_head *h = calloc(1, sizeof *h);
    if (!h) {
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory");
    }
    if (!allocate(h, config, count, s)) {
        free_all(h);
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %llu classes of dim %u",
                        (unsigned long long)s.rows, config->dim);
    }
    h->block_count = count;
    h->capacity = s.capacity;
    uint64_t row_at = 0;
    for (size_t i = 0; i < count; i++) {
        struct ref_block *b = &h->blocks[i];
        b->first_class = blocks[i] * config->block_size;
        b->rows = (uint32_t)sfc_head_block_rows(config, blocks[i]);
        b->row_at = row_at;
        row_at += b->rows;
        if (!blank) {
            init_block(h, config, b);
        }
    }
    *out = &h->base;
    return SFC_OK;
}

void sfc_ref_head_free(struct sfc_head_part *head)
{
    free_all((struct ref_head *)head);
}

/* Mode dense is computed as it is defined, every row in every step, so all rows are up to date. */
static float last_step(const struct sfc_head_part *head, size_t index)
{
    uint64_t ahead = head->block_step[index];
    return (float)(ahead > head->done ? ahead : head->done);
}

static double *part_of(struct sfc_head_part *head, size_t index, enum sfc_block_part part)
{
    struct ref_head *h = (struct ref_head *)head;
    double *from = part == SFC_PART_VALUES ? h->w : part == SFC_PART_SECOND_MOMENT ? h->v : h->m;
    return from + h->blocks[index].row_at * head->config.dim;
}

int sfc_ref_head_read(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err)
{
    (void)err;
    if (part == SFC_PART_LAST_STEP) {
        for (uint64_t i = 0; i < count; i++) {
            out[i] = last_step(head, index);
        }
        return SFC_OK;
    }
    const double *from = part_of(head, index, part) + offset;
    for (uint64_t k = 0; k < count; k++) {
        out[k] = (float)from[k];
    }
    return SFC_OK;
}

int sfc_ref_head_write(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err)
{
    if (part == SFC_PART_LAST_STEP) {
        for (uint64_t i = 0; i < count; i++) {
            if (values[i] != last_step(head, index)) {
                return sfc_fail(err, SFC_EUNSUPPORTED,
                                "the reference backend keeps no rows of an older step");
            }
        }
        return SFC_OK;
    }
    double *to = part_of(head, index, part) + offset;
    for (uint64_t k = 0; k < count; k++) {
        to[k] = stored(&head->config, values[k]);
    }
    return SFC_OK;
}

int sfc_ref_head_plan(struct sfc_head_part *head, uint64_t step, const uint64_t *labels,
                      uint64_t *sampled, struct sfc_error *err)
{
    (void)err;
    struct ref_head *h = (struct ref_head *)head;
    const struct sfc_head_config *c = &head->config;
    uint64_t total = 0;
    for (size_t i = 0; i < h->block_count; i++) {
        struct ref_block *b = &h->blocks[i];
        memset(h->is_positive, 0, b->rows);
        for (uint32_t r = 0; r < c->batch; r++) {
            if (labels[r] >= b->first_class && labels[r] < b->first_class + b->rows) {
                h->is_positive[labels[r] - b->first_class] = 1;
            }
        }
        b->positives = 0;
        for (uint32_t row = 0; row < b->rows; row++) {
            if (h->is_positive[row]) {
                h->positives[b->positives++] = row;
            }
        }
        b->sample_at = total;
        b->sampled = 0;
        if (sfc_head_left_out(head, i, step)) {
            continue;
        }
        b->sampled =
            sfc_sample_block(c->seed, step, (uint32_t)head->blocks[i], b->rows, c->sample_ppm,
                             h->positives, b->positives, h->sample + total, h->sample_scratch);
        total += b->sampled;
    }
    *sampled = total;
    return SFC_OK;
}

void sfc_ref_head_sample(const struct sfc_head_part *head, size_t index, const uint32_t **rows,
                         uint32_t *count)
{
    const struct ref_head *h = (const struct ref_head *)head;
    *rows = h->sample + h->blocks[index].sample_at;
    *count = h->blocks[index].sampled;
}

static double dot(const double *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        sum += a[k] * b[k];
    }
    return sum;
}

/* As the products read it. */
static double operand(const struct sfc_head_config *c, double value)
{
    return c->gemm == SFC_DTYPE_BF16 ? sfc_bf16_nearest((float)value) : value;
}

/* What products read of w, as a unit vector, into h->unit_w; returns 1 over its norm before, or 0
 * and a zero vector. */
static double normalise_class(struct ref_head *h, const double *w)
{
    const struct sfc_head_config *c = &h->base.config;
    for (uint32_t k = 0; k < c->dim; k++) {
        h->unit_w[k] = operand(c, w[k]);
    }
    double norm = sqrt(dot(h->unit_w, h->unit_w, c->dim));
    double inverse = norm < MIN_NORM ? 0 : 1 / norm;
    for (uint32_t k = 0; k < c->dim; k++) {
        h->unit_w[k] *= inverse;
    }
    return inverse;
}

/* A negative's cosine as it is kept between the passes: beside bf16 operands in 16 bits. */
static double kept_cosine(const struct sfc_head_config *c, double cosine)
{
    return c->gemm == SFC_DTYPE_BF16 ? rint(cosine * COSINE_ONE) / COSINE_ONE : cosine;
}

/* p (at a target (p - 1) f') as it is kept and multiplied. */
static double kept_p(const struct sfc_head_config *c, double p)
{
    return c->gemm == SFC_DTYPE_BF16 ? sfc_bf16_nearest((float)p) : p;
}

struct margin {
    double f, slope;
};

static struct margin target_margin(const struct sfc_head_config *c, double cosine)
{
    double theta = acos(cosine);
    double phi = c->margin_m1 * theta + c->margin_m2;
    double k = floor(phi / PI);
    double sign = fmod(k, 2) == 0 ? 1 : -1;
    struct margin m = {
        .f = sign * cos(phi) - 2 * k - c->margin_m3,
        .slope = sign * c->margin_m1 * sin(phi) / fmax(sin(theta), MIN_SIN_THETA),
    };
    if (c->margin_grad == SFC_MARGIN_GRAD_IDENTITY) {
        m.slope = 1;
    }
    return m;
}

/* -log of the probability that a class of the block that is nobody's target is in the sample. */
static double logq_correction(const struct sfc_head_config *c, const struct ref_block *b)
{
    if (c->correction == SFC_CORRECTION_NONE) {
        return 0;
    }
    return -log((double)(b->sampled - b->positives) / (double)(b->rows - b->positives));
}

static bool is_filtered(const struct sfc_head_config *c, double cosine)
{
    return c->has_filter && cosine > c->filter;
}

/* True when some row of the batch has this class as its target: always sampled, no correction. */
static bool in_batch(const struct sfc_head_part *head, uint64_t class)
{
    for (uint32_t r = 0; r < head->config.batch; r++) {
        if (head->labels[r] == class) {
            return true;
        }
    }
    return false;
}

static uint32_t normalise_features(struct ref_head *h, const struct sfc_head_logits_item *item)
{
    const struct sfc_head_config *c = &h->base.config;
    uint32_t zeros = 0;
    for (uint32_t r = 0; r < c->micro_batch; r++) {
        size_t row = (size_t)item->slot * c->micro_batch + r;
        const float *from = item->features + (size_t)r * c->dim;
        double square = 0;
        for (uint32_t k = 0; k < c->dim; k++) {
            square += (double)from[k] * (double)from[k];
        }
        h->zero[row] = sqrt(square) < MIN_NORM;
        zeros += h->zero[row];
        for (uint32_t k = 0; k < c->dim; k++) {
            h->x[row * c->dim + k] = h->zero[row] ? 0 : operand(c, (double)from[k] / sqrt(square));
        }
    }
    return zeros;
}

/* One class against the rows of one micro-batch. */
static void class_logits(struct ref_head *h, const struct ref_block *b, uint32_t s,
                         struct sfc_head_logits_item *item)
{
    const struct sfc_head_config *c = &h->base.config;
    uint32_t class_row = h->sample[b->sample_at + s];
    uint64_t class = b->first_class + class_row;
    double correction = in_batch(&h->base, class) ? 0 : logq_correction(c, b);
    normalise_class(h, h->w + (b->row_at + class_row) * c->dim);
    for (uint32_t r = 0; r < c->micro_batch; r++) {
        size_t row = (size_t)item->slot * c->micro_batch + r;
        struct logit *l = &h->logits[row * h->capacity + b->sample_at + s];
        l->cos = fmin(1, fmax(-1, dot(h->x + row * c->dim, h->unit_w, c->dim)));
        if (h->base.labels[(size_t)item->micro_batch * c->micro_batch + r] == class) {
            l->z = c->scale * target_margin(c, l->cos).f;
            item->target_logit[r] = (float)l->z;
            item->has_target[r] = 1;
        } else {
            l->z = (is_filtered(c, l->cos) ? 0 : c->scale * kept_cosine(c, l->cos)) + correction;
        }
        struct sfc_sum256 sum;
        memcpy(sum.word, item->exp_sum + 4 * (size_t)r, sizeof sum.word);
        sfc_sum256_add_double(&sum, exp(l->z - sfc_exp_shift(c->scale)));
        memcpy(item->exp_sum + 4 * (size_t)r, sum.word, sizeof sum.word);
    }
}

int sfc_ref_head_logits(struct sfc_head_part *head, struct sfc_head_logits_item *items, size_t n,
                        bool add, struct sfc_error *err)
{
    (void)err;
    struct ref_head *h = (struct ref_head *)head;
    uint32_t rows = head->config.micro_batch;
    for (size_t i = 0; i < n; i++) {
        if (!add) {
            memset(items[i].exp_sum, 0, rows * 4 * sizeof(uint64_t));
            memset(items[i].target_logit, 0, rows * sizeof(float));
            memset(items[i].has_target, 0, rows);
        }
        items[i].zero_features = normalise_features(h, &items[i]);
        for (size_t b = 0; b < h->block_count; b++) {
            for (uint32_t s = 0; s < h->blocks[b].sampled; s++) {
                class_logits(h, &h->blocks[b], s, &items[i]);
            }
        }
    }
    return SFC_OK;
}

/* dcos = scale * (p - [target]) * f' / batch; 0 for a row of weight 0, a zero feature and a
 * filtered negative. */
static double gradient_of(const struct ref_head *h, const struct logit *l, size_t row,
                          uint64_t label, uint64_t class, double lse)
{
    const struct sfc_head_config *c = &h->base.config;
    if (label == SFC_LABEL_NONE || h->zero[row]) {
        return 0;
    }
    double p = exp(l->z - lse);
    if (label == class) {
        return c->scale * kept_p(c, (p - 1) * target_margin(c, l->cos).slope) / c->batch;
    }
    return is_filtered(c, l->cos) ? 0 : c->scale * kept_p(c, p) / c->batch;
}

/* One row of one block: dcos of each class, and the block's part of dx where it is wanted. */
static void row_gradient(struct ref_head *h, const struct ref_block *b, size_t row, uint64_t label,
                         double lse, int64_t *dx)
{
    uint32_t dim = h->base.config.dim;
    memset(h->product, 0, dim * sizeof *h->product);
    for (uint32_t s = 0; s < b->sampled; s++) {
        uint32_t class_row = h->sample[b->sample_at + s];
        struct logit *l = &h->logits[row * h->capacity + b->sample_at + s];
        l->dcos = gradient_of(h, l, row, label, b->first_class + class_row, lse);
        normalise_class(h, h->w + (b->row_at + class_row) * dim);
        for (uint32_t k = 0; k < dim; k++) {
            h->product[k] += l->dcos * h->unit_w[k];
        }
    }
    for (uint32_t k = 0; dx && k < dim; k++) {
        double v = h->product[k];
        dx[k] += fabs(v) < 0x1p18 ? (int64_t)llrint(v * 0x1p44) : sfc_dx_to_fixed((float)v);
    }
}

int sfc_ref_head_gradient(struct sfc_head_part *head, struct sfc_head_gradient_item *items,
                          size_t n, bool add, struct sfc_error *err)
{
    (void)err;
    struct ref_head *h = (struct ref_head *)head;
    const struct sfc_head_config *c = &head->config;
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = items[i].slot;
        if (items[i].dx && !add) {
            memset(items[i].dx, 0, (size_t)c->micro_batch * c->dim * sizeof *items[i].dx);
        }
        for (uint32_t r = 0; r < c->micro_batch; r++) {
            uint64_t label = head->labels[(size_t)head->slot_micro[slot] * c->micro_batch + r];
            size_t row = (size_t)slot * c->micro_batch + r;
            for (size_t b = 0; b < h->block_count; b++) {
                row_gradient(h, &h->blocks[b], row, label, items[i].lse[r],
                             items[i].dx ? items[i].dx + (size_t)r * c->dim : NULL);
            }
        }
    }
    return SFC_OK;
}

/* An updated row, to bf16 where the state is. */
static void round_row(const struct ref_head *h, uint64_t class, double *w, double *m, double *v)
{
    const struct sfc_head_config *c = &h->base.config;
    struct sfc_rounding_key second = sfc_rounding_second_key(c->seed, h->base.step, class);
    struct sfc_rounding_key key = sfc_rounding_key(c->seed, h->base.step, class);
    for (uint32_t k = 0; k < c->dim; k++) {
        uint32_t word = sfc_rounding_word(key, k);
        bool nearest = c->rounding == SFC_ROUNDING_NEAREST;
        w[k] = nearest ? sfc_bf16_nearest((float)w[k])
                       : sfc_bf16_stochastic((float)w[k], (uint16_t)word);
        m[k] = nearest ? sfc_bf16_nearest((float)m[k])
                       : sfc_bf16_stochastic((float)m[k], (uint16_t)(word >> 16));
        if (v) {
            uint16_t random = (uint16_t)sfc_rounding_word(second, k);
            v[k] =
                nearest ? sfc_bf16_nearest((float)v[k]) : sfc_bf16_stochastic((float)v[k], random);
        }
    }
}

static void adamw(const struct sfc_head_part *head, double *w, double *m, double *v, double g,
                  double lr)
{
    const struct sfc_head_config *c = &head->config;
    double t = (double)head->step;
    *m = c->beta1 * *m + (1 - c->beta1) * g;
    *v = c->beta2 * *v + (1 - c->beta2) * g * g;
    double first = *m / (1 - pow(c->beta1, t)), second = *v / (1 - pow(c->beta2, t));
    *w -= lr * (first / (sqrt(second) + c->epsilon) + c->weight_decay * *w);
}

static void update_class(struct ref_head *h, const struct ref_block *b, uint32_t s,
                         const uint32_t *slots, double lr)
{
    const struct sfc_head_config *c = &h->base.config;
    uint64_t at = (b->row_at + h->sample[b->sample_at + s]) * c->dim;
    double *w = h->w + at, *m = h->m + at;
    double inverse = normalise_class(h, w);
    memset(h->product, 0, c->dim * sizeof *h->product);
    for (uint32_t r = 0; r < c->batch; r++) {
        size_t row = (size_t)slots[r / c->micro_batch] * c->micro_batch + r % c->micro_batch;
        double dcos = h->logits[row * h->capacity + b->sample_at + s].dcos;
        for (uint32_t k = 0; k < c->dim; k++) {
            h->product[k] += dcos * h->x[row * c->dim + k];
        }
    }
    for (uint32_t k = 0; k < c->dim; k++) { /* w itself, by the norm of what the products read */
        h->unit_w[k] = w[k] * inverse;
    }
    double along = dot(h->unit_w, h->product, c->dim);
    for (uint32_t k = 0; k < c->dim; k++) {
        double dw = (h->product[k] - h->unit_w[k] * along) * inverse;
        if (is_adamw(c)) {
            adamw(&h->base, &w[k], &m[k], &h->v[at + k], dw, lr);
            continue;
        }
        m[k] = c->momentum * m[k] + dw + c->weight_decay * w[k];
        w[k] -= lr * m[k];
    }
    if (c->dtype == SFC_DTYPE_BF16) {
        round_row(h, b->first_class + h->sample[b->sample_at + s], w, m,
                  is_adamw(c) ? h->v + at : NULL);
    }
}

/* A row without a gradient. */
static void coast(const struct ref_head *h, uint64_t row, double lr)
{
    const struct sfc_head_config *c = &h->base.config;
    double *w = h->w + row * c->dim, *m = h->m + row * c->dim;
    for (uint32_t k = 0; k < c->dim; k++) {
        m[k] = c->momentum * m[k] + c->weight_decay * w[k];
        w[k] -= lr * m[k];
    }
}

static void coast_unsampled(const struct ref_head *h, const struct ref_block *b, double lr)
{
    const uint32_t *sample = h->sample + b->sample_at;
    for (uint32_t row = 0, s = 0; row < b->rows; row++) {
        if (s < b->sampled && sample[s] == row) {
            s++;
        } else {
            coast(h, b->row_at + row, lr);
        }
    }
}

int sfc_ref_head_commit(struct sfc_head_part *head, const uint32_t *slots, double lr,
                        struct sfc_error *err)
{
    (void)err;
    struct ref_head *h = (struct ref_head *)head;
    const struct sfc_head_config *c = &head->config;
    for (size_t b = 0; b < h->block_count; b++) {
        for (uint32_t s = 0; s < h->blocks[b].sampled; s++) {
            update_class(h, &h->blocks[b], s, slots, lr);
        }
        if (c->momentum_mode == SFC_MOMENTUM_DENSE && !sfc_head_left_out(head, b, head->step)) {
            coast_unsampled(h, &h->blocks[b], lr);
        }
    }
    return SFC_OK;
}

bool sfc_ref_head_finite(const struct sfc_head_part *head, const uint32_t *slots)
{
    const struct ref_head *h = (const struct ref_head *)head;
    const struct sfc_head_config *c = &head->config;
    const struct ref_block *last = &h->blocks[h->block_count - 1];
    uint64_t sampled = last->sample_at + last->sampled;
    for (uint32_t r = 0; r < c->batch; r++) {
        size_t row = (size_t)slots[r / c->micro_batch] * c->micro_batch + r % c->micro_batch;
        for (uint64_t s = 0; s < sampled; s++) {
            if (!isfinite(h->logits[row * h->capacity + s].dcos)) {
                return false;
            }
        }
    }
    return true;
}

void sfc_ref_head_inverse_norms(const struct sfc_head_part *head, double *out)
{
    const struct ref_head *h = (const struct ref_head *)head;
    uint32_t dim = head->config.dim;
    for (size_t b = 0; b < h->block_count; b++) {
        const struct ref_block *block = &h->blocks[b];
        out[b] = 0;
        for (uint32_t s = 0; s < block->sampled; s++) {
            const double *w = h->w + (block->row_at + h->sample[block->sample_at + s]) * dim;
            double norm = sqrt(dot(w, w, dim));
            out[b] = norm < MIN_NORM ? out[b] : fmax(out[b], 1 / norm);
        }
    }
}

void sfc_ref_head_extents(struct sfc_head_part *head, struct sfc_extent *out)
{
    const struct ref_head *h = (const struct ref_head *)head;
    for (size_t b = 0; b < h->block_count; b++) {
        uint64_t at = h->blocks[b].row_at * head->config.dim;
        uint64_t end = at + (uint64_t)h->blocks[b].rows * head->config.dim;
        out[b] = (struct sfc_extent){0};
        for (; at < end; at++) {
            out[b].w = fmax(out[b].w, fabs(h->w[at]));
            out[b].m = fmax(out[b].m, fabs(h->m[at]));
            if (h->v) {
                out[b].ratio =
                    fmax(out[b].ratio, fabs(h->m[at]) / (sqrt(h->v[at]) + head->config.epsilon));
            }
        }
    }
}

/* Head: argument checks and slot protocol for every backend. */
#include "kernels/backend_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/extent.h"
#include "kernels/lag.h"
#include "kernels/rng/sample.h"

#define MAX_CLASSES    ((uint64_t)1 << 40)
#define MAX_BLOCK_SIZE (1u << 20)
#define MAX_BATCH      (1u << 20)
#define MAX_SLOTS      65536u
/* An exponential below exp(-87) counts as 0 (f32, kernels/exact_sum.h), and a row whose sum is 0
 * has no softmax. With a scale s > 80 a class at cosine 0, where training starts, adds exp(80 - s).
 */
#define MAX_SCALE 160.0
/* With one class in the sample there is no other whose exponential is larger: its logit, at least
 * -scale * (1 + m3), must count at cosine -1. logq divides by 2^20 meanwhile. */
#define LONE_LOGIT      87.0
#define LONE_LOGIT_LOGQ 73.0
/* A row of 8192 such weights still has a norm whose square f32 holds. */
#define MAX_MAGNITUDE 1e17
#define MAX_NORMAL    8.0 /* of the initial values: Box-Muller with 24 bits */

static int check_integer(const char *field, uint64_t value, uint64_t low, uint64_t high,
                         struct sfc_error *err)
{
    if (value >= low && value <= high)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL, "head: %s %llu is outside %llu..%llu", field,
                    (unsigned long long)value, (unsigned long long)low, (unsigned long long)high);
}

static int check_real(const char *field, double value, double low, double high,
                      struct sfc_error *err)
{
    if (value >= low && value <= high)
        return SFC_OK;
    return sfc_fail(err, SFC_EINVAL, "head: %s %g is outside %g..%g", field, value, low, high);
}

static int check_shape(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc = check_integer("classes", c->classes, 1, MAX_CLASSES, err);
    if (!rc)
        rc = check_integer("dim", c->dim, 1, SFC_MAX_DIM, err);
    if (!rc)
        rc = check_integer("block_size", c->block_size, 1, MAX_BLOCK_SIZE, err);
    if (!rc)
        rc = check_integer("number of blocks", sfc_head_block_count(c), 1, UINT32_MAX, err);
    if (!rc)
        rc = check_integer("sample_ppm", c->sample_ppm, 1, 1000000, err);
    if (!rc)
        rc = check_integer("batch", c->batch, 1, MAX_BATCH, err);
    if (!rc)
        rc = check_integer("micro_batch", c->micro_batch, 1, c->batch, err);
    if (!rc && c->batch % c->micro_batch)
        rc = sfc_fail(err, SFC_EINVAL, "head: batch %u is not a multiple of micro_batch %u",
                      c->batch, c->micro_batch);
    if (!rc)
        rc = check_integer("slots", c->slots, c->batch / c->micro_batch, MAX_SLOTS, err);
    return rc;
}

static int check_numbers(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc = check_real("scale", c->scale, 1e-3, MAX_SCALE, err);
    if (!rc)
        rc = check_real("margin_m1", c->margin_m1, 1e-3, 8, err);
    if (!rc)
        rc = check_real("margin_m2", c->margin_m2, 0, 3.14, err);
    if (!rc)
        rc = check_real("margin_m3", c->margin_m3, 0, 4, err);
    if (!rc && c->has_filter)
        rc = check_real("filter", c->filter, -1, 1, err);
    if (!rc)
        rc = check_real("momentum", c->momentum, 0, 0.9999, err);
    if (!rc)
        rc = check_real("weight_decay", c->weight_decay, 0, 1, err);
    if (!rc)
        rc = check_real("init_std", c->init_std, 0, 1e3, err);
    return rc;
}

static int check_choices(const struct sfc_head_config *c, struct sfc_error *err)
{
    int rc =
        check_integer("margin_grad", (uint64_t)c->margin_grad, 0, SFC_MARGIN_GRAD_IDENTITY, err);
    if (!rc)
        rc = check_integer("correction", (uint64_t)c->correction, 0, SFC_CORRECTION_LOGQ, err);
    if (!rc)
        rc = check_integer("optimizer", (uint64_t)c->optimizer, 0, SFC_OPTIMIZER_ADAMW, err);
    if (!rc)
        rc = check_integer("momentum_mode", (uint64_t)c->momentum_mode, 0, SFC_MOMENTUM_DENSE, err);
    if (!rc)
        rc = check_integer("dtype", (uint64_t)c->dtype, 0, SFC_DTYPE_BF16, err);
    if (!rc)
        rc = check_integer("gemm", (uint64_t)c->gemm, 0, SFC_DTYPE_BF16, err);
    if (!rc)
        rc = check_integer("rounding", (uint64_t)c->rounding, 0, SFC_ROUNDING_NEAREST, err);
    if (!rc && c->optimizer == SFC_OPTIMIZER_ADAMW && c->momentum_mode == SFC_MOMENTUM_DENSE)
        rc = sfc_fail(err, SFC_EINVAL, "head: AdamW has no dense momentum mode");
    if (!rc && c->optimizer == SFC_OPTIMIZER_ADAMW)
        rc = sfc_adamw_check("head", c->beta1, c->beta2, c->epsilon, err);
    if (!rc && c->momentum_mode == SFC_MOMENTUM_DENSE)
        rc = check_integer("steps (of momentum mode dense)", c->steps, 1, SFC_LAG_MAX_STEPS, err);
    return rc;
}

static bool may_sample_one(const struct sfc_head_config *c)
{
    return sfc_head_block_count(c) == 1 &&
           sfc_sample_quota((uint32_t)c->classes, c->sample_ppm, 0) == 1;
}

static int check_lone_class(const struct sfc_head_config *c, struct sfc_error *err)
{
    double least = c->scale * (1 + c->margin_m3);
    double limit = c->correction == SFC_CORRECTION_LOGQ ? LONE_LOGIT_LOGQ : LONE_LOGIT;
    if (least <= limit || !may_sample_one(c))
        return SFC_OK;
    return sfc_fail(
        err, SFC_EINVAL,
        "head: a sample may be one class alone (%llu classes, sample_ppm %u), whose "
        "exponential is 0 at scale * (1 + margin_m3) = %g; take at most %g, more classes "
        "or a larger sample",
        (unsigned long long)c->classes, c->sample_ppm, least, limit);
}

int sfc_head_check(const struct sfc_backend *backend, const struct sfc_head_config *config,
                   struct sfc_error *err)
{
    int rc = check_shape(config, err);
    if (!rc)
        rc = check_numbers(config, err);
    if (!rc)
        rc = check_choices(config, err);
    if (!rc)
        rc = check_lone_class(config, err);
    if (!rc && backend->ops->head_check)
        rc = backend->ops->head_check(backend, config, err);
    return rc;
}

static bool is_dense(const struct sfc_head_config *c)
{
    return c->momentum_mode == SFC_MOMENTUM_DENSE;
}

static uint64_t base_bytes(const struct sfc_head_config *c, size_t count)
{
    return sfc_extents_bytes(count) + (is_dense(c) ? c->steps * sizeof(float) : 0) +
           (uint64_t)count * 2 * sizeof(uint64_t) + (uint64_t)c->batch * sizeof(uint64_t) +
           (uint64_t)c->slots * (sizeof(enum sfc_slot_state) + sizeof(uint32_t)) +
           (uint64_t)c->slots * c->micro_batch * sizeof(double);
}

int sfc_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                    const uint64_t *blocks, size_t count, struct sfc_memory *out,
                    struct sfc_error *err)
{
    struct sfc_memory memory = {0};
    int rc = sfc_head_check(backend, config, err);
    if (!rc)
        rc = sfc_blocks_check("head", blocks, count, sfc_head_block_count(config), err);
    if (!rc)
        rc = backend->ops->head_memory(backend, config, blocks, count, &memory, err);
    if (rc)
        return rc;
    memory.step_bytes += base_bytes(config, count);
    *out = memory;
    return SFC_OK;
}

static struct sfc_extent_rule extent_rule(const struct sfc_head_config *c)
{
    return (struct sfc_extent_rule){
        .optimizer = c->optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = c->epsilon,
        .weight_decay = c->weight_decay,
        .slack = c->dtype == SFC_DTYPE_BF16 ? 1 + 0x1p-7 : 1 + 0x1p-22,
        .limit = MAX_MAGNITUDE,
        .gradient = MAX_MAGNITUDE,
    };
}

/* Fills in the base members of a head that head_new returned. */
static int base_init(struct sfc_head *head, struct sfc_backend *backend,
                     const struct sfc_head_config *config, const uint64_t *blocks, size_t count,
                     struct sfc_error *err)
{
    head->backend = backend;
    head->config = *config;
    head->block_count = count;
    head->blocks = malloc(count * sizeof *head->blocks);
    head->block_step = calloc(count, sizeof *head->block_step);
    head->labels = malloc(config->batch * sizeof *head->labels);
    head->slot_state = calloc(config->slots, sizeof *head->slot_state);
    head->slot_micro = calloc(config->slots, sizeof *head->slot_micro);
    head->slot_lse = malloc((size_t)config->slots * config->micro_batch * sizeof *head->slot_lse);
    if (is_dense(config))
        head->rates = calloc(config->steps, sizeof *head->rates);
    if ((is_dense(config) && !head->rates) || !head->blocks || !head->block_step || !head->labels ||
        !head->slot_state || !head->slot_micro || !head->slot_lse)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks and %u slots", count,
                        config->slots);
    memcpy(head->blocks, blocks, count * sizeof *blocks);
    struct sfc_extent_rule rule = extent_rule(config);
    return sfc_extents_init(&head->extents, &rule, count, MAX_NORMAL * config->init_std, err);
}

int sfc_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                 const uint64_t *blocks, size_t count, struct sfc_head **out, struct sfc_error *err)
{
    struct sfc_head *head = NULL;
    int rc = sfc_head_check(backend, config, err);
    if (!rc)
        rc = sfc_blocks_check("head", blocks, count, sfc_head_block_count(config), err);
    if (!rc)
        rc = backend->ops->head_new(backend, config, blocks, count, &head, err);
    if (rc)
        return rc;
    rc = base_init(head, backend, config, blocks, count, err);
    if (rc) {
        sfc_head_free(head);
        return rc;
    }
    *out = head;
    return SFC_OK;
}

void sfc_head_free(struct sfc_head *head)
{
    if (!head)
        return;
    free(head->blocks);
    free(head->block_step);
    free(head->labels);
    free(head->slot_state);
    free(head->slot_micro);
    free(head->slot_lse);
    free(head->rates);
    sfc_extents_free(&head->extents);
    head->backend->ops->head_free(head);
}

/* Index of the block, after checking that the range lies inside it. */
static int find_range(const struct sfc_head *head, uint64_t block, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, size_t *index, struct sfc_error *err)
{
    size_t at = sfc_block_index(head->blocks, head->block_count, block);
    if (at == head->block_count)
        return sfc_fail(err, SFC_ENOTFOUND, "head: block %llu is not held here",
                        (unsigned long long)block);
    if (!sfc_has_part(head->config.optimizer, is_dense(&head->config), part))
        return sfc_fail(err, SFC_EINVAL, "head: block %llu has no part %d",
                        (unsigned long long)block, (int)part);
    uint64_t size = sfc_head_block_rows(&head->config, block);
    size *= part == SFC_PART_LAST_STEP ? 1 : head->config.dim;
    if (offset > size || count > size - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "head: elements %llu + %llu are outside block %llu of %llu elements",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)block, (unsigned long long)size);
    *index = at;
    return SFC_OK;
}

int sfc_head_read(struct sfc_head *head, uint64_t block, enum sfc_block_part part, uint64_t offset,
                  uint64_t count, float *out, struct sfc_error *err)
{
    size_t index = 0;
    int rc = find_range(head, block, part, offset, count, &index, err);
    return rc ? rc : head->backend->ops->head_read(head, index, part, offset, count, out, err);
}

int sfc_head_write(struct sfc_head *head, uint64_t block, enum sfc_block_part part, uint64_t offset,
                   uint64_t count, const float *values, struct sfc_error *err)
{
    size_t index = 0;
    int rc = find_range(head, block, part, offset, count, &index, err);
    if (rc)
        return rc;
    rc = sfc_values_check("head", block, part, offset, count, values, err);
    if (rc)
        return rc;
    for (uint64_t i = 0; part == SFC_PART_LAST_STEP && i < count; i++)
        if (values[i] < 0 || values[i] > (float)head->config.steps ||
            values[i] != floorf(values[i]))
            return sfc_fail(err, SFC_EINVAL,
                            "head: last step %g of row %llu of block %llu is not a "
                            "step of the run",
                            (double)values[i], (unsigned long long)(offset + i),
                            (unsigned long long)block);
    sfc_extents_forget(&head->extents, index);
    return head->backend->ops->head_write(head, index, part, offset, count, values, err);
}

int sfc_head_set_block_step(struct sfc_head *head, uint64_t block, uint64_t step,
                            struct sfc_error *err)
{
    size_t index = sfc_block_index(head->blocks, head->block_count, block);
    if (index == head->block_count)
        return sfc_fail(err, SFC_ENOTFOUND, "head: block %llu is not held here",
                        (unsigned long long)block);
    head->block_step[index] = step;
    head->planned = false;
    return SFC_OK;
}

/* ---- the history of mode dense */

int sfc_head_read_rates(struct sfc_head *head, uint64_t offset, uint64_t count, float *out,
                        struct sfc_error *err)
{
    if (!head->rates)
        return sfc_fail(err, SFC_EINVAL, "head: momentum mode sampled keeps no history");
    if (offset > head->done || count > head->done - offset)
        return sfc_fail(err, SFC_EINVAL, "head: steps %llu + %llu are outside the history of %llu",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)head->done);
    if (count)
        memcpy(out, head->rates + offset, count * sizeof *out);
    return SFC_OK;
}

int sfc_head_write_rates(struct sfc_head *head, uint64_t offset, uint64_t count, const float *rates,
                         struct sfc_error *err)
{
    if (!head->rates)
        return sfc_fail(err, SFC_EINVAL, "head: momentum mode sampled keeps no history");
    if (offset > head->done || count > head->config.steps - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "head: steps %llu + %llu do not follow the history of %llu of %llu steps",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)head->done, (unsigned long long)head->config.steps);
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(rates[i]))
            return sfc_fail(err, SFC_EINVAL, "head: the learning rate of step %llu is not finite",
                            (unsigned long long)(offset + i + 1));
    if (count)
        memcpy(head->rates + offset, rates, count * sizeof *rates);
    head->done = offset + count > head->done ? offset + count : head->done;
    head->planned = false;
    return SFC_OK;
}

static int check_next_step(const struct sfc_head *head, uint64_t step, struct sfc_error *err)
{
    if (!head->rates || (step == head->done + 1 && step <= head->config.steps))
        return SFC_OK;
    return sfc_fail(err, SFC_ESTATE,
                    "head: step %llu does not follow the history of %llu of %llu steps",
                    (unsigned long long)step, (unsigned long long)head->done,
                    (unsigned long long)head->config.steps);
}

/* The step is over: what the slots keep belongs to the past. */
static void end_step(struct sfc_head *head, float rate)
{
    memset(head->slot_state, 0, head->config.slots * sizeof *head->slot_state);
    head->planned = false;
    head->extents.asked = false;
    if (head->rates)
        head->rates[head->done++] = rate;
}

int sfc_head_skip(struct sfc_head *head, uint64_t step, struct sfc_error *err)
{
    int rc = check_next_step(head, step, err);
    if (rc)
        return rc;
    end_step(head, SFC_RATE_SKIPPED);
    return SFC_OK;
}

int sfc_head_plan(struct sfc_head *head, uint64_t step, const uint64_t *labels, uint64_t *sampled,
                  struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    for (uint32_t i = 0; i < c->batch; i++)
        if (labels[i] >= c->classes && labels[i] != SFC_LABEL_NONE)
            return sfc_fail(err, SFC_EINVAL, "head: label %llu of row %u is not below %llu classes",
                            (unsigned long long)labels[i], i, (unsigned long long)c->classes);
    int rc = check_next_step(head, step, err);
    if (rc)
        return rc;
    memcpy(head->labels, labels, c->batch * sizeof *labels);
    memset(head->slot_state, 0, c->slots * sizeof *head->slot_state);
    head->planned = false;
    uint64_t total = 0;
    rc = head->backend->ops->head_plan(head, step, head->labels, &total, err);
    if (rc)
        return rc;
    head->step = step;
    head->planned = true;
    if (sampled)
        *sampled = total;
    return SFC_OK;
}

void sfc_head_prefetch(struct sfc_head *head, uint64_t step, const uint64_t *labels)
{
    if (head->backend->ops->head_prefetch)
        head->backend->ops->head_prefetch(head, step, labels);
}

int sfc_head_sample(const struct sfc_head *head, uint64_t block, const uint32_t **rows,
                    uint32_t *count, struct sfc_error *err)
{
    size_t index = sfc_block_index(head->blocks, head->block_count, block);
    if (index == head->block_count)
        return sfc_fail(err, SFC_ENOTFOUND, "head: block %llu is not held here",
                        (unsigned long long)block);
    if (!head->planned)
        return sfc_fail(err, SFC_ESTATE, "head: no step is planned");
    head->backend->ops->head_sample(head, index, rows, count);
    return SFC_OK;
}

static int check_call(const struct sfc_head *head, const char *pass, size_t n,
                      struct sfc_error *err)
{
    if (!head->planned)
        return sfc_fail(err, SFC_ESTATE, "%s: no step is planned", pass);
    if (n < 1 || n > head->config.slots)
        return sfc_fail(err, SFC_EINVAL, "%s: %zu micro-batches in one call, slots are %u", pass, n,
                        head->config.slots);
    return SFC_OK;
}

/* Index of the first number that is not finite; n: none. Looks at many at once: there are as many
 * as a batch has features, and nearly never one of them is broken. */
static size_t first_broken(const float *v, size_t n)
{
    const uint32_t exponent = 0x7f800000;
    for (size_t begin = 0, end; begin < n; begin = end) {
        uint32_t broken = 0;
        end = n - begin < 1024 ? n : begin + 1024;
        for (size_t k = begin; k < end; k++) {
            uint32_t bits;
            memcpy(&bits, &v[k], sizeof bits);
            broken |= (bits & exponent) == exponent;
        }
        for (size_t k = begin; broken && k < end; k++)
            if (!isfinite(v[k]))
                return k;
    }
    return n;
}

static int check_logits_item(const struct sfc_head *head, const struct sfc_head_logits_item *items,
                             size_t i, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_head_logits_item *item = &items[i];
    if (item->slot >= c->slots)
        return sfc_fail(err, SFC_EINVAL, "logits: slot %u is not below %u", item->slot, c->slots);
    if (item->micro_batch >= c->batch / c->micro_batch)
        return sfc_fail(err, SFC_EINVAL, "logits: micro-batch %u is not below %u",
                        item->micro_batch, c->batch / c->micro_batch);
    for (size_t k = 0; k < i; k++)
        if (items[k].slot == item->slot)
            return sfc_fail(err, SFC_EINVAL, "logits: slot %u is named twice", item->slot);
    size_t numbers = (size_t)c->micro_batch * c->dim, k = first_broken(item->features, numbers);
    if (k < numbers)
        return sfc_fail(err, SFC_EINVAL,
                        "logits: feature %zu of row %zu of micro-batch %u is not finite",
                        k % c->dim, k / c->dim, item->micro_batch);
    return SFC_OK;
}

int sfc_head_logits(struct sfc_head *head, struct sfc_head_logits_item *items, size_t n,
                    struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    int rc = check_call(head, "logits", n, err);
    for (size_t i = 0; !rc && i < n; i++)
        rc = check_logits_item(head, items, i, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        head->slot_state[items[i].slot] = SFC_SLOT_EMPTY;
    rc = head->backend->ops->head_logits(head, items, n, err);
    if (rc)
        return rc;
    double shift = sfc_exp_shift(c->scale);
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = items[i].slot;
        for (uint32_t r = 0; r < c->micro_batch; r++) {
            struct sfc_sum256 sum;
            memcpy(sum.word, items[i].exp_sum + 4 * (size_t)r, sizeof sum.word);
            head->slot_lse[(size_t)slot * c->micro_batch + r] = sfc_sum256_log(&sum, shift);
        }
        head->slot_micro[slot] = items[i].micro_batch;
        head->slot_state[slot] = SFC_SLOT_LOGITS;
    }
    return SFC_OK;
}

static int check_gradient_item(const struct sfc_head *head,
                               const struct sfc_head_gradient_item *items, size_t i,
                               struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    uint32_t slot = items[i].slot;
    if (slot >= c->slots)
        return sfc_fail(err, SFC_EINVAL, "gradient: slot %u is not below %u", slot, c->slots);
    if (head->slot_state[slot] != SFC_SLOT_LOGITS)
        return sfc_fail(err, SFC_ESTATE, "gradient: slot %u %s", slot,
                        head->slot_state[slot] == SFC_SLOT_EMPTY ? "holds no logits of this plan"
                                                                 : "had its gradient already");
    for (size_t k = 0; k < i; k++)
        if (items[k].slot == slot)
            return sfc_fail(err, SFC_EINVAL, "gradient: slot %u is named twice", slot);
    if (!items[i].dx != !items[0].dx)
        return sfc_fail(err, SFC_EINVAL, "gradient: dx is wanted of some slots only");
    uint32_t j = head->slot_micro[slot];
    for (uint32_t r = 0; r < c->micro_batch; r++) {
        if (head->labels[(size_t)j * c->micro_batch + r] == SFC_LABEL_NONE)
            continue;
        double lse = items[i].lse[r], local = head->slot_lse[(size_t)slot * c->micro_batch + r];
        if (!isfinite(lse) || lse < local - 1e-3)
            return sfc_fail(err, SFC_EINVAL,
                            "gradient: lse %g of row %u of micro-batch %u is %s (local part %g)",
                            lse, r, j, isfinite(lse) ? "below this shard's part" : "not finite",
                            local);
    }
    return SFC_OK;
}

int sfc_head_gradient(struct sfc_head *head, struct sfc_head_gradient_item *items, size_t n,
                      struct sfc_error *err)
{
    int rc = check_call(head, "gradient", n, err);
    for (size_t i = 0; !rc && i < n; i++)
        rc = check_gradient_item(head, items, i, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        head->slot_state[items[i].slot] = SFC_SLOT_EMPTY;
    rc = head->backend->ops->head_gradient(head, items, n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        head->slot_state[items[i].slot] = SFC_SLOT_GRADIENT;
    return SFC_OK;
}

int sfc_head_commit(struct sfc_head *head, const uint32_t *slots, double lr, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    if (!head->planned)
        return sfc_fail(err, SFC_ESTATE, "commit: no step is planned");
    if (!isfinite((float)lr) || lr < 0)
        return sfc_fail(err, SFC_EINVAL, "commit: learning rate %g is not a number >= 0", lr);
    for (uint32_t j = 0; j < c->batch / c->micro_batch; j++) {
        if (slots[j] >= c->slots)
            return sfc_fail(err, SFC_EINVAL, "commit: slot %u is not below %u", slots[j], c->slots);
        if (head->slot_state[slots[j]] != SFC_SLOT_GRADIENT)
            return sfc_fail(err, SFC_ESTATE, "commit: slot %u has no gradient of this plan",
                            slots[j]);
        if (head->slot_micro[slots[j]] != j)
            return sfc_fail(err, SFC_EINVAL, "commit: slot %u holds micro-batch %u, not %u",
                            slots[j], head->slot_micro[slots[j]], j);
    }
    int rc = head->backend->ops->head_commit(head, slots, lr, err);
    if (rc)
        return rc;
    sfc_extents_commit(&head->extents);
    end_step(head, (float)lr);
    return SFC_OK;
}

/* A bound of |f'|. */
static double steepest_margin(const struct sfc_head_config *c)
{
    bool below_one =
        c->margin_grad == SFC_MARGIN_GRAD_IDENTITY || (c->margin_m1 == 1 && c->margin_m2 == 0);
    return below_one ? 1 : fmax(1, c->margin_m1 * 1e4);
}

/* The update keeps every number within bounds (kernels/extent.h). The gradient of a class is at
 * most the scale times |f'| over |w|: p is at most 1, but for what rounding adds, in each row of
 * the batch, and the rows are unit vectors. */
static bool update_fits(struct sfc_head *head, double lr)
{
    struct sfc_extents *e = &head->extents;
    double factor = 2 * head->config.scale * steepest_margin(&head->config);
    head->backend->ops->head_inverse_norms(head, e->gradient);
    for (size_t i = 0; i < e->count; i++)
        e->gradient[i] *= factor;
    if (sfc_extents_fit(e, lr, head->step))
        return true;
    head->backend->ops->head_extents(head, e->now);
    for (size_t i = 0; i < e->count; i++)
        if (sfc_head_left_out(head, i, head->step))
            e->now[i] = (struct sfc_extent){0}; /* this step doesn't concern it */
    bool fit = sfc_extents_fit(e, lr, head->step);
    for (size_t i = 0; i < e->count; i++)
        if (sfc_head_left_out(head, i, head->step))
            sfc_extents_forget(e, i);
    return fit;
}

bool sfc_head_finite(struct sfc_head *head, const uint32_t *slots, double lr)
{
    const struct sfc_head_config *c = &head->config;
    for (uint32_t j = 0; j < c->batch / c->micro_batch; j++)
        if (slots[j] >= c->slots || head->slot_state[slots[j]] != SFC_SLOT_GRADIENT)
            return false;
    return isfinite((float)lr) && head->backend->ops->head_finite(head, slots) &&
           update_fits(head, lr);
}

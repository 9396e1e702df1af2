/* The passes of a step: argument checks and slot protocol for every backend, and what the parts
 * answer together. */
#include <math.h>
#include <string.h>

#include "kernels/head_internal.h"
#include "kernels/lag.h"

#define MIN_NORM 1e-12 /* of a feature that has a direction */

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
    for (struct sfc_head_part *p = head->parts; p; p = p->next)
        p->extents.asked = false;
    if (head->rates) {
        head->rates[head->done] = rate;
        sfc_head_set_done(head, head->done + 1);
    }
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
    for (struct sfc_head_part *p = head->parts; p; p = p->next) {
        uint64_t some = 0;
        p->step = step;
        rc = head->backend->ops->head_plan(p, step, head->labels, &some, err);
        if (rc)
            return rc;
        total += some;
    }
    head->step = step;
    head->planned = true;
    if (sampled)
        *sampled = total;
    return SFC_OK;
}

void sfc_head_prefetch(struct sfc_head *head, uint64_t step, const uint64_t *labels)
{
    for (struct sfc_head_part *p = head->parts; p && head->backend->ops->head_prefetch; p = p->next)
        head->backend->ops->head_prefetch(p, step, labels);
}

int sfc_head_sample(const struct sfc_head *head, uint64_t block, const uint32_t **rows,
                    uint32_t *count, struct sfc_error *err)
{
    struct sfc_head_part *part = NULL;
    size_t index = 0;
    int rc = sfc_head_find(head, block, &part, &index, err);
    if (rc)
        return rc;
    if (!head->planned)
        return sfc_fail(err, SFC_ESTATE, "head: no step is planned");
    head->backend->ops->head_sample(part, index, rows, count);
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
    size_t numbers = (size_t)c->micro_batch * c->dim, k = sfc_first_broken(item->features, numbers);
    if (k < numbers)
        return sfc_fail(err, SFC_EINVAL,
                        "logits: feature %zu of row %zu of micro-batch %u is not finite",
                        k % c->dim, k / c->dim, item->micro_batch);
    return SFC_OK;
}

static uint32_t zero_rows(const float *features, size_t rows, size_t dim)
{
    uint32_t zeros = 0;
    for (size_t r = 0; r < rows; r++) {
        double square = 0;
        for (size_t k = 0; k < dim; k++)
            square += (double)features[r * dim + k] * (double)features[r * dim + k];
        zeros += sqrt(square) < MIN_NORM;
    }
    return zeros;
}

/* What a head without blocks answers. */
static void no_logits(const struct sfc_head_config *c, struct sfc_head_logits_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        memset(items[i].exp_sum, 0, (size_t)c->micro_batch * sizeof(struct sfc_sum256));
        memset(items[i].target_logit, 0, c->micro_batch * sizeof *items[i].target_logit);
        memset(items[i].has_target, 0, c->micro_batch * sizeof *items[i].has_target);
        items[i].zero_features = zero_rows(items[i].features, c->micro_batch, c->dim);
    }
}

static int part_logits(struct sfc_head *head, struct sfc_head_logits_item *items, size_t n,
                       struct sfc_error *err)
{
    int rc = SFC_OK;
    if (!head->parts)
        no_logits(&head->config, items, n);
    for (struct sfc_head_part *p = head->parts; !rc && p; p = p->next)
        rc = head->backend->ops->head_logits(p, items, n, p != head->parts, err);
    return rc;
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
    rc = part_logits(head, items, n, err);
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

static int part_gradient(struct sfc_head *head, struct sfc_head_gradient_item *items, size_t n,
                         struct sfc_error *err)
{
    size_t numbers = (size_t)head->config.micro_batch * head->config.dim;
    int rc = SFC_OK;
    for (size_t i = 0; !head->parts && items[0].dx && i < n; i++)
        memset(items[i].dx, 0, numbers * sizeof *items[i].dx);
    for (struct sfc_head_part *p = head->parts; !rc && p; p = p->next)
        rc = head->backend->ops->head_gradient(p, items, n, p != head->parts, err);
    return rc;
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
    rc = part_gradient(head, items, n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        head->slot_state[items[i].slot] = SFC_SLOT_GRADIENT;
    return SFC_OK;
}

static int part_commit(struct sfc_head *head, const uint32_t *slots, double lr,
                       struct sfc_error *err)
{
    for (struct sfc_head_part *p = head->parts; p; p = p->next) {
        int rc = head->backend->ops->head_commit(p, slots, lr, err);
        if (rc && p == head->parts)
            return rc;
        if (rc && err)
            err->code = SFC_EDEVICE; /* whatever it was: other parts are updated */
        if (rc)
            return SFC_EDEVICE;
        sfc_extents_commit(&p->extents);
    }
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
    int rc = part_commit(head, slots, lr, err);
    if (rc)
        return rc;
    sfc_head_track_commit(head);
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

/* The step doesn't concern these blocks. */
static void leave_out(const struct sfc_head *head, struct sfc_head_part *part)
{
    for (size_t i = 0; i < part->extents.count; i++)
        if (sfc_head_left_out(part, i, head->step))
            part->extents.now[i] = (struct sfc_extent){0};
}

/* The update keeps every number within bounds (kernels/extent.h). The gradient of a class is at
 * most the scale times |f'| over |w|: p is at most 1, but for what rounding adds, in each row of
 * the batch, and the rows are unit vectors. */
static bool update_fits(struct sfc_head *head, struct sfc_head_part *part, double lr)
{
    const struct sfc_backend_ops *ops = head->backend->ops;
    struct sfc_extents *e = &part->extents;
    double factor = 2 * head->config.scale * steepest_margin(&head->config);
    ops->head_inverse_norms(part, e->gradient);
    for (size_t i = 0; i < e->count; i++)
        e->gradient[i] *= factor;
    if (sfc_extents_fit(e, lr, head->step))
        return true;
    for (size_t i = 0; i < e->count; i++)
        if (!sfc_extents_fits(e, i))
            sfc_extents_forget(e, i);
    leave_out(head, part); /* not looked at */
    ops->head_extents(part, e->now);
    leave_out(head, part); /* nor judged, if it was */
    bool fit = sfc_extents_fit(e, lr, head->step);
    for (size_t i = 0; i < e->count; i++)
        if (sfc_head_left_out(part, i, head->step) && !sfc_head_gone(part, i))
            sfc_extents_forget(e, i);
    return fit;
}

bool sfc_head_finite(struct sfc_head *head, const uint32_t *slots, double lr)
{
    const struct sfc_head_config *c = &head->config;
    for (uint32_t j = 0; j < c->batch / c->micro_batch; j++)
        if (slots[j] >= c->slots || head->slot_state[slots[j]] != SFC_SLOT_GRADIENT)
            return false;
    bool finite = isfinite((float)lr);
    for (struct sfc_head_part *p = head->parts; finite && p; p = p->next)
        finite = head->backend->ops->head_finite(p, slots) && update_fits(head, p, lr);
    return finite;
}

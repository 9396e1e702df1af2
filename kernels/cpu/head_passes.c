#include <math.h>
#include <string.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"
#include "kernels/hd/margin.h"

size_t sfc_cpu_group(const struct sfc_cpu_head *head, size_t rest, size_t *log2)
{
    size_t g = head->joint ? head->sizes.groups - 1 : 0;
    while (((size_t)1 << g) > rest)
        g--;
    *log2 = g;
    return (size_t)1 << g;
}

int sfc_cpu_head_error(struct sfc_cpu_head *head, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (unsigned i = 0; i < head->cpu->threads; i++) {
        struct sfc_error *error = &head->workers[i].error;
        if (error->code && !rc)
            rc = sfc_fail(err, error->code, "%s", error->text);
        error->code = SFC_OK;
    }
    return rc;
}

void sfc_cpu_gather(struct sfc_cpu_head *head, struct sfc_cpu_worker *worker,
                    const struct sfc_cpu_block *block, size_t first, size_t n)
{
    size_t pitch = head->sizes.pitch, at = block->sample + first;
    const struct sfc_store store = sfc_cpu_store(head, block, worker);
    const uint32_t *rows = block->slab->rows + at;
    float *inverse_norm = block->slab->inverse_norm + at;
    if (head->format == SFC_STORE_F32)
        head->simd->gather(&store, rows, n, head->config.dim, pitch, worker->tile, inverse_norm);
    else
        head->simd->half->gather(&store, head->operand, rows, n, head->config.dim, pitch,
                                 worker->tile, inverse_norm);
    memset(sfc_cpu_at(head, worker->tile, n * pitch), 0,
           (head->sizes.tile - n) * pitch * head->operand_bytes);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The first of the block's targets at tile row `at` or behind it: they ascend, as labels do. */
static uint32_t first_target(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block,
                             size_t at)
{
    uint32_t low = block->target, high = block->target + block->targets;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (head->target_at[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- logits */

struct logits_call {
    struct sfc_cpu_head *head;
    struct sfc_head_logits_item *items;
    size_t n;
    bool add;
};

static struct sfc_hd_margin margin_of(const struct sfc_head_config *c)
{
    bool identity = c->margin_grad == SFC_MARGIN_GRAD_IDENTITY;
    return (struct sfc_hd_margin){c->margin_m1, c->margin_m2, c->margin_m3, identity};
}

/* Replaces z of this item's targets in tile rows [first, first + n) by their margin logits; exps:
 * the item's sums, to which the marks beside bf16 operands add nothing by themselves. */
static void set_targets(const struct logits_call *call, size_t index,
                        const struct sfc_cpu_block *block, size_t first, size_t n,
                        const float *product, size_t stride, double *exps)
{
    struct sfc_cpu_head *head = call->head;
    struct sfc_head_logits_item *item = &call->items[index];
    uint32_t m = head->config.micro_batch, row0 = item->micro_batch * m;
    const struct sfc_hd_margin margin = margin_of(&head->config);
    uint32_t end = first_target(head, block, first + n);
    for (uint32_t t = first_target(head, block, first); t < end; t++) {
        size_t at = head->target_at[t], row = head->target_row[t];
        if (row < row0 || row >= row0 + m)
            continue;
        size_t c = row - row0, s = block->sample + at;
        double cosine = (double)product[(at - first) * stride + c] * block->slab->inverse_norm[s],
               slope;
        double logit =
            head->config.scale * sfc_hd_margin_at(margin, fmax(-1, fmin(1, cosine)), &slope);
        float z = (float)logit + 0.0f;
        size_t kept = (size_t)item->slot * m + c;
        void *entry = sfc_cpu_kept_at(head, sfc_cpu_slot_z(head, block->slab, item->slot, s), c);
        head->target_z[kept] = z;
        if (head->half) {
            *(int16_t *)entry = SFC_COSINE_TARGET;
            exps[c] += exp((double)z + (double)block->slab->add[s]);
        } else {
            *(float *)entry = z;
        }
        head->slope[kept] = head->zero[kept] ? 0.0f : (float)slope;
        item->target_logit[c] = z;
        item->has_target[c] = 1;
    }
}

/* z and sums of one micro-batch from its columns of a product. */
static void logits_item(const struct logits_call *call, size_t index, struct sfc_cpu_worker *worker,
                        const struct sfc_cpu_block *block, size_t first, size_t n,
                        const float *product, size_t stride)
{
    struct sfc_cpu_head *head = call->head;
    const struct sfc_head_config *c = &head->config;
    size_t mp = head->sizes.mp, at = block->sample + first;
    float filter = c->has_filter ? (float)c->filter : 2.0f, scale = (float)c->scale;
    const float *inverse_norm = block->slab->inverse_norm + at, *add = block->slab->add + at;
    double *exps = worker->exps + index * mp;
    void *z = sfc_cpu_slot_z(head, block->slab, call->items[index].slot, at);
    if (head->half)
        head->simd->half->logits(product, stride, n, mp, inverse_norm, filter, z);
    else
        head->simd->logits(product, stride, n, mp, inverse_norm, scale, filter, z);
    set_targets(call, index, block, first, n, product, stride, exps);
    if (head->half)
        head->simd->half->exp_sum(z, n, mp, scale, add, exps);
    else
        head->simd->exp_sum(z, n, mp, add, exps);
}

static int logits_tile(const struct logits_call *call, struct sfc_cpu_worker *worker,
                       const struct sfc_cpu_block *block, size_t first, size_t n)
{
    struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_sizes *s = &head->sizes;
    sfc_cpu_gather(head, worker, block, first, n);
    for (size_t i = 0, log2, g; i < call->n; i += g) {
        g = sfc_cpu_group(head, call->n - i, &log2);
        size_t stride = g * s->mp;
        int rc = sfc_gemm_run(&worker->logits[log2], worker->stream, worker->tile,
                              sfc_cpu_at(head, head->call_x, i * s->mp * s->pitch), worker->product,
                              worker->gemm, &worker->error);
        if (rc)
            return rc;
        for (size_t k = 0; k < g; k++)
            logits_item(call, i + k, worker, block, first, n, (float *)worker->product + k * s->mp,
                        stride);
    }
    return SFC_OK;
}

static void logits_block(void *arg, size_t index, unsigned worker_index)
{
    struct logits_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    struct sfc_cpu_worker *worker = &head->workers[worker_index];
    const struct sfc_cpu_block *block = &head->blocks[index];
    size_t columns = call->n * head->sizes.mp;
    if (worker->error.code)
        return;
    memset(worker->exps, 0, columns * sizeof *worker->exps);
    for (size_t first = 0; first < block->count; first += head->sizes.tile)
        if (logits_tile(call, worker, block, first, least(head->sizes.tile, block->count - first)))
            return;
    for (size_t c = 0; c < columns; c++) {
        double sum = worker->exps[c] * head->exp_factor;
        if (!isfinite(sum)) {
            sfc_fail(&worker->error, SFC_ESTATE,
                     "logits: block %llu has class centres that are not finite",
                     (unsigned long long)block->id);
            return;
        }
        sfc_sum256_add_double(&worker->sums[c], sum);
    }
}

/* The unit feature as an operand; false where it has no direction. */
static bool load_feature(const struct sfc_cpu_head *head, const float *in, void *out)
{
    size_t dim = head->config.dim, pitch = head->sizes.pitch;
    if (!head->half)
        return head->simd->unit_row(in, dim, pitch, out);
    bool usable = head->simd->unit_row(in, dim, pitch, head->unit);
    head->simd->half->pack(head->unit, pitch, SFC_STORE_BF16, out, NULL);
    if (head->operand == SFC_OPERAND_WIDE) {
        head->simd->half->unpack(out, NULL, pitch, SFC_STORE_BF16, head->unit);
        memcpy(out, head->unit, pitch * sizeof *head->unit);
    }
    return usable;
}

/* Unit features of the slots into the matrices of the products. */
static void pack_features(const struct logits_call *call)
{
    const struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_sizes *s = &head->sizes;
    memset(head->call_x, 0, call->n * s->mp * s->pitch * head->operand_bytes);
    for (size_t i = 0, log2, g; i < call->n; i += g) {
        g = sfc_cpu_group(head, call->n - i, &log2);
        void *out = sfc_cpu_at(head, head->call_x, i * s->mp * s->pitch);
        for (size_t k = 0; k < g; k++)
            sfc_gemm_pack(&head->workers[0].logits[log2],
                          sfc_cpu_slot_x(head, call->items[i + k].slot), k * s->mp,
                          head->config.micro_batch, out);
    }
}

/* Unit features into the slots. */
static void load_features(struct logits_call *call)
{
    struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_sizes *s = &head->sizes;
    uint32_t m = head->config.micro_batch, dim = head->config.dim;
    for (size_t i = 0; i < call->n; i++) {
        struct sfc_head_logits_item *item = &call->items[i];
        void *x = sfc_cpu_slot_x(head, item->slot);
        bool *zero = head->zero + (size_t)item->slot * m;
        item->zero_features = 0;
        for (uint32_t r = 0; r < m; r++) {
            zero[r] = !load_feature(head, item->features + (size_t)r * dim,
                                    sfc_cpu_at(head, x, r * s->pitch));
            item->zero_features += zero[r];
        }
        if (call->add)
            continue;
        memset(item->target_logit, 0, m * sizeof *item->target_logit);
        memset(item->has_target, 0, m * sizeof *item->has_target);
    }
}

static void collect_sums(const struct sfc_cpu_head *head, const struct sfc_head_logits_item *items,
                         size_t n, bool add)
{
    struct sfc_sum256 *sums = head->workers[0].sums, before;
    for (size_t i = 0; i < n; i++)
        for (uint32_t r = 0; r < head->config.micro_batch; r++) {
            struct sfc_sum256 *sum = &sums[i * head->sizes.mp + r];
            uint64_t *out = items[i].exp_sum + 4 * (size_t)r;
            if (add) {
                memcpy(before.word, out, sizeof before);
                sfc_sum256_add(sum, &before);
            }
            memcpy(out, sum->word, sizeof before);
        }
}

int sfc_cpu_head_logits(struct sfc_head_part *base, struct sfc_head_logits_item *items, size_t n,
                        bool add, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    struct logits_call call = {head, items, n, add};
    size_t mp = head->sizes.mp, columns = n * mp;
    load_features(&call);
    pack_features(&call);
    for (unsigned i = 0; i < head->cpu->threads; i++)
        memset(head->workers[i].sums, 0, columns * sizeof(struct sfc_sum256));
    sfc_cpu_pool_run(head->cpu->pool, logits_block, &call, head->block_count);
    int rc = sfc_cpu_head_error(head, err);
    if (rc)
        return rc;
    for (unsigned i = 1; i < head->cpu->threads; i++)
        for (size_t c = 0; c < columns; c++)
            sfc_sum256_add(&head->workers[0].sums[c], &head->workers[i].sums[c]);
    collect_sums(head, items, n, add);
    return SFC_OK;
}

/* ---- gradient */

struct gradient_call {
    struct sfc_cpu_head *head;
    struct sfc_head_gradient_item *items;
    size_t n;
    bool add;
};

/* p - 1 and the slope of the margin at this item's targets. */
static void adjust_targets(const struct gradient_call *call, size_t index,
                           const struct sfc_cpu_block *block, size_t first, size_t n)
{
    struct sfc_cpu_head *head = call->head;
    uint32_t slot = call->items[index].slot, m = head->config.micro_batch;
    uint32_t row0 = head->base.slot_micro[slot] * m;
    uint32_t end = first_target(head, block, first + n);
    for (uint32_t t = first_target(head, block, first); t < end; t++) {
        size_t at = head->target_at[t], row = head->target_row[t];
        if (row < row0 || row >= row0 + m)
            continue;
        size_t c = row - row0, kept = (size_t)slot * m + c, s = block->sample + at;
        void *entry = sfc_cpu_kept_at(head, sfc_cpu_slot_z(head, block->slab, slot, s), c);
        if (!head->half) {
            float *p = entry;
            *p = (*p - 1.0f) * head->slope[kept];
            continue;
        }
        double lse = (double)head->high[index * head->sizes.mp + c] +
                     (double)head->low[index * head->sizes.mp + c];
        float p = (float)exp((double)head->target_z[kept] + (double)block->slab->add[s] - lse);
        p = (p - 1.0f) * head->slope[kept];
        head->simd->half->pack(&p, 1, SFC_STORE_BF16, entry, NULL);
    }
}

/* p of one item into its slot; out: p / |w| for the product of dx, NULL where that isn't wanted. */
static void softmax_tile(const struct gradient_call *call, size_t index,
                         const struct sfc_cpu_block *block, size_t first, size_t n, void *out,
                         size_t stride)
{
    struct sfc_cpu_head *head = call->head;
    const struct sfc_head_config *c = &head->config;
    size_t mp = head->sizes.mp, at = block->sample + first;
    uint32_t slot = call->items[index].slot;
    void *p = sfc_cpu_slot_z(head, block->slab, slot, at);
    const float *add = block->slab->add + at, *high = head->high + index * mp,
                *low = head->low + index * mp;
    const float *inverse_norm = block->slab->inverse_norm + at;
    float factor = (float)(c->scale / c->batch);
    bool finite = head->half ? head->simd->half->softmax(p, n, mp, (float)c->scale, add, high, low)
                             : head->simd->softmax(p, n, mp, add, high, low);
    if (!finite)
        atomic_store_explicit(&head->finite[slot], false, memory_order_relaxed);
    adjust_targets(call, index, block, first, n);
    if (!out)
        return;
    if (head->operand == SFC_OPERAND_BF16)
        head->simd->half->scale_rows(p, n, mp, inverse_norm, factor, out, stride);
    else if (head->operand == SFC_OPERAND_WIDE)
        head->simd->half->scale_rows_wide(p, n, mp, inverse_norm, factor, out, stride);
    else
        head->simd->scale_rows(p, n, mp, inverse_norm, factor, out, stride);
}

static int gradient_tile(const struct gradient_call *call, struct sfc_cpu_worker *worker,
                         const struct sfc_cpu_block *block, size_t first, size_t n)
{
    struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_sizes *s = &head->sizes;
    sfc_cpu_gather(head, worker, block, first, n);
    for (size_t i = 0, log2, g; i < call->n; i += g) {
        g = sfc_cpu_group(head, call->n - i, &log2);
        size_t stride = g * s->mp;
        for (size_t k = 0; k < g; k++)
            softmax_tile(call, i + k, block, first, n, sfc_cpu_at(head, worker->product, k * s->mp),
                         stride);
        memset(sfc_cpu_at(head, worker->product, n * stride), 0,
               (s->tile - n) * stride * head->operand_bytes);
        int rc =
            sfc_gemm_run(&worker->gradient[log2], worker->stream, worker->product, worker->tile,
                         worker->result + i * s->mp * s->pitch, worker->gemm, &worker->error);
        if (rc)
            return rc;
    }
    return SFC_OK;
}

static void gradient_block(void *arg, size_t index, unsigned worker_index)
{
    struct gradient_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    struct sfc_cpu_worker *worker = &head->workers[worker_index];
    const struct sfc_cpu_block *block = &head->blocks[index];
    size_t mp = head->sizes.mp, pitch = head->sizes.pitch;
    size_t m = head->config.micro_batch, dim = head->config.dim;
    bool wants_dx = call->items[0].dx != NULL;
    memset(worker->result, 0, wants_dx ? call->n * mp * pitch * sizeof(float) : 0);
    for (size_t first = 0; first < block->count && !worker->error.code; first += head->sizes.tile) {
        size_t n = least(head->sizes.tile, block->count - first);
        if (wants_dx)
            gradient_tile(call, worker, block, first, n);
        for (size_t i = 0; !wants_dx && i < call->n; i++)
            softmax_tile(call, i, block, first, n, NULL, 0);
    }
    for (size_t i = 0; wants_dx && i < call->n; i++)
        head->simd->add_fixed(worker->result + i * mp * pitch, m, dim, pitch,
                              worker->dx + i * m * dim);
}

static void clear_dx(void *arg, size_t index, unsigned worker)
{
    const struct gradient_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    (void)index;
    memset(head->workers[worker].dx, 0,
           call->n * head->config.micro_batch * head->config.dim * sizeof(int64_t));
}

/* One item's dx = the sum of the workers' parts. */
static void collect_dx(void *arg, size_t index, unsigned worker)
{
    const struct gradient_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    size_t length = (size_t)head->config.micro_batch * head->config.dim;
    int64_t *out = call->items[index].dx;
    (void)worker;
    if (!call->add)
        memcpy(out, head->workers[0].dx + index * length, length * sizeof *out);
    for (unsigned i = call->add ? 0 : 1; i < head->cpu->threads; i++) {
        const int64_t *part = head->workers[i].dx + index * length;
        for (size_t k = 0; k < length; k++)
            out[k] += part[k];
    }
}

/* log-sum-exp per column as a sum of two floats; inf (so p = 0) for padding and rows of weight 0.
 */
static void load_lse(const struct gradient_call *call)
{
    struct sfc_cpu_head *head = call->head;
    size_t mp = head->sizes.mp, m = head->config.micro_batch;
    double offset = -sfc_exp_shift(head->config.scale) - log(head->exp_factor);
    for (size_t i = 0; i < call->n * mp; i++) {
        head->high[i] = INFINITY;
        head->low[i] = 0;
    }
    for (size_t i = 0; i < call->n; i++) {
        size_t first = head->base.slot_micro[call->items[i].slot] * m;
        for (size_t r = 0; r < m; r++) {
            if (head->base.labels[first + r] == SFC_LABEL_NONE ||
                head->zero[call->items[i].slot * m + r])
                continue;
            double lse = call->items[i].lse[r] + offset;
            head->high[i * mp + r] = (float)lse;
            head->low[i * mp + r] = (float)(lse - (double)(float)lse);
        }
    }
}

int sfc_cpu_head_gradient(struct sfc_head_part *base, struct sfc_head_gradient_item *items,
                          size_t n, bool add, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    struct gradient_call call = {head, items, n, add};
    load_lse(&call);
    for (size_t i = 0; i < n; i++)
        atomic_store_explicit(&head->finite[items[i].slot], true, memory_order_relaxed);
    if (items[0].dx)
        sfc_cpu_pool_each(head->cpu->pool, clear_dx, &call);
    sfc_cpu_pool_run(head->cpu->pool, gradient_block, &call, head->block_count);
    int rc = sfc_cpu_head_error(head, err);
    if (!rc && items[0].dx)
        sfc_cpu_pool_run(head->cpu->pool, collect_dx, &call, n);
    return rc;
}

bool sfc_cpu_head_finite(const struct sfc_head_part *base, const uint32_t *slots)
{
    const struct sfc_cpu_head *head = (const struct sfc_cpu_head *)base;
    for (size_t j = 0; j < head->sizes.micro_batches; j++)
        if (!atomic_load_explicit(&head->finite[slots[j]], memory_order_relaxed))
            return false;
    return true;
}

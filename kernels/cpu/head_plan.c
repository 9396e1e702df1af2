#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"
#include "kernels/rng/sample.h"

#define NEAR_ROWS 2 /* apart: likely on the same or the next page of a file */

static int by_label(const void *a, const void *b)
{
    const struct sfc_cpu_label *x = a, *y = b;
    if (x->label != y->label)
        return x->label < y->label ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

/* Targets and distinct positives of one block from the sorted labels, starting at entry *at. */
static void block_labels(struct sfc_cpu_head *head, struct sfc_cpu_block *block, size_t *at)
{
    uint64_t first = block->id * head->config.block_size, end = first + block->rows;
    size_t i = *at, batch = head->config.batch;
    while (i < batch && head->labels[i].label < first)
        i++;
    block->target = block->positive = (uint32_t)i; /* both arrays have room for the whole batch */
    uint32_t distinct = 0;
    for (; i < batch && head->labels[i].label < end; i++) {
        uint32_t row = (uint32_t)(head->labels[i].label - first);
        uint32_t *positive = head->positive + block->positive;
        if (!distinct || positive[distinct - 1] != row)
            positive[distinct++] = row;
        head->target_row[i] = head->labels[i].row;
    }
    block->targets = (uint32_t)i - block->target;
    block->positives = distinct;
    *at = i;
}

/* Room for the sample of each block in its slab, in block order; none for a block that is ahead of
 * the step. */
static void place_samples(struct sfc_cpu_head *head)
{
    head->sampled = 0;
    for (struct sfc_cpu_slab *slab = head->slabs; slab; slab = slab->next)
        slab->sampled = 0;
    for (size_t i = 0; i < head->block_count; i++) {
        struct sfc_cpu_block *block = &head->blocks[i];
        block->sample = block->slab->sampled;
        block->count =
            sfc_head_left_out(&head->base, i, head->base.step)
                ? 0
                : sfc_sample_quota(block->rows, head->config.sample_ppm, block->positives);
        block->slab->sampled += block->count;
        head->sampled += block->count;
    }
}

/* What is added to z before the exponential: minus the shift, and for drawn negatives
 * -log(probability of being drawn) with the logq correction. */
static void block_add(struct sfc_cpu_head *head, const struct sfc_cpu_block *block)
{
    float *add = block->slab->add + block->sample;
    const uint32_t *rows = block->slab->rows + block->sample;
    const uint32_t *positive = head->positive + block->positive;
    double base = -sfc_exp_shift(head->config.scale) - log(head->exp_factor), drawn = 0;
    uint32_t negatives = block->count - block->positives;
    if (head->config.correction == SFC_CORRECTION_LOGQ && negatives)
        drawn = -log((double)negatives / (double)(block->rows - block->positives));
    for (uint32_t i = 0, p = 0; i < block->count; i++) {
        bool is_positive = p < block->positives && positive[p] == rows[i];
        p += is_positive;
        add[i] = (float)(is_positive ? base : base + drawn);
    }
}

/* How far back the sampled rows of the block reach. */
static void block_ages(struct sfc_cpu_block *block)
{
    const uint32_t *rows = block->slab->rows + block->sample,
                   *last = block->slab->last + block->store;
    for (uint32_t i = 0; i < block->count; i++) {
        uint32_t step = last[rows[i]];
        block->oldest = step < block->oldest ? step : block->oldest;
        block->newest = step > block->newest ? step : block->newest;
    }
}

/* The way from the state of every sampled row to the state before this step. */
static int fill_lag(struct sfc_cpu_head *head, struct sfc_error *err)
{
    uint64_t before = head->base.step - 1, oldest = before;
    for (size_t i = 0; i < head->block_count; i++) {
        const struct sfc_cpu_block *block = &head->blocks[i];
        if (block->newest > before)
            return sfc_fail(
                err, SFC_ESTATE, "head: block %llu has rows of step %u, the run is at step %llu",
                (unsigned long long)block->id, block->newest, (unsigned long long)before);
        oldest = block->oldest < oldest ? block->oldest : oldest;
    }
    sfc_lag_table(head->base.rates, head->config.momentum, head->config.weight_decay, oldest,
                  before, head->lag);
    return SFC_OK;
}

static uint32_t find_row(const uint32_t *rows, uint32_t count, uint32_t row)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Rows of a sample, ascending: neighbours are asked for together. */
static void read_rows_ahead(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block,
                            const uint32_t *rows, uint32_t count)
{
    const struct sfc_cpu_mapping *state = &block->slab->state;
    size_t record = sfc_cpu_record_bytes(head);
    const char *records = block->slab->records + block->store * record;
    for (uint32_t i = 0, n; i < count && state->file; i += n) {
        for (n = 1; i + n < count && rows[i + n] - rows[i + n - 1] <= NEAR_ROWS; n++) {
        }
        sfc_cpu_read_ahead(state, records + rows[i] * record,
                           (rows[i + n - 1] - rows[i] + 1) * record);
    }
}

static void sample_block(void *arg, size_t item, unsigned worker)
{
    struct sfc_cpu_head *head = arg;
    struct sfc_cpu_block *block = &head->blocks[item];
    uint32_t *rows = block->slab->rows + block->sample;
    block->oldest = UINT32_MAX;
    block->newest = 0;
    if (!block->count)
        return;
    sfc_sample_block(head->config.seed, head->base.step, (uint32_t)block->id, block->rows,
                     head->config.sample_ppm, head->positive + block->positive, block->positives,
                     rows, head->workers[worker].sample);
    read_rows_ahead(head, block, rows, block->count);
    block_add(head, block);
    if (head->lag)
        block_ages(block);
    for (uint32_t t = block->target; t < block->target + block->targets; t++) {
        uint64_t first = block->id * head->config.block_size;
        head->target_at[t] =
            find_row(rows, block->count, (uint32_t)(head->labels[t].label - first));
    }
}

int sfc_cpu_head_plan(struct sfc_head_part *base, uint64_t step, const uint64_t *labels,
                      uint64_t *sampled, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    for (uint32_t i = 0; i < head->config.batch; i++)
        head->labels[i] = (struct sfc_cpu_label){labels[i], i};
    qsort(head->labels, head->config.batch, sizeof *head->labels, by_label);
    size_t at = 0;
    for (size_t i = 0; i < head->block_count; i++)
        block_labels(head, &head->blocks[i], &at);
    head->base.step = step;
    place_samples(head);
    sfc_cpu_pool_run(head->cpu->pool, sample_block, head, head->block_count);
    *sampled = head->sampled;
    return head->lag ? fill_lag(head, err) : SFC_OK;
}

void sfc_cpu_head_sample(const struct sfc_head_part *base, size_t index, const uint32_t **rows,
                         uint32_t *count)
{
    const struct sfc_cpu_head *head = (const struct sfc_cpu_head *)base;
    const struct sfc_cpu_block *block = &head->blocks[index];
    *rows = block->slab->rows + block->sample;
    *count = block->count;
}

/* ---- a later step, only for where its rows are */

struct prefetch {
    struct sfc_cpu_head *head;
    uint64_t step;
};

/* The sample without its positives, which take the place of as many rows at its end. */
static void prefetch_block(void *arg, size_t item, unsigned worker)
{
    const struct prefetch *call = arg;
    struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_block *block = &head->blocks[item];
    uint32_t *rows = head->workers[worker].ahead;
    uint32_t count =
        sfc_sample_block(head->config.seed, call->step, (uint32_t)block->id, block->rows,
                         head->config.sample_ppm, NULL, 0, rows, head->workers[worker].sample);
    read_rows_ahead(head, block, rows, count);
}

void sfc_cpu_head_prefetch(struct sfc_head_part *base, uint64_t step, const uint64_t *labels)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    struct prefetch call = {head, step};
    bool files = false;
    for (const struct sfc_cpu_slab *slab = head->slabs; slab; slab = slab->next)
        files = files || slab->state.file;
    if (!files)
        return;
    sfc_cpu_pool_run(head->cpu->pool, prefetch_block, &call, head->block_count);
    for (uint32_t i = 0; i < head->config.batch; i++) {
        uint64_t block = labels[i] / head->config.block_size;
        size_t index = labels[i] == SFC_LABEL_NONE
                           ? base->block_count
                           : sfc_block_index(base->blocks, base->block_count, block);
        uint32_t row = (uint32_t)(labels[i] % head->config.block_size);
        if (index < base->block_count)
            read_rows_ahead(head, &head->blocks[index], &row, 1);
    }
}

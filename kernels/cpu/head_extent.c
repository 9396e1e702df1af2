/* How large the numbers of a block are: a pass over its state, needed when it was written or a run
 * diverges. */
#include <math.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"

void sfc_cpu_head_inverse_norms(const struct sfc_head_part *base, double *out)
{
    const struct sfc_cpu_head *head = (const struct sfc_cpu_head *)base;
    for (size_t i = 0; i < head->block_count; i++) {
        const struct sfc_cpu_block *block = &head->blocks[i];
        out[i] = sfc_extent_largest(block->slab->inverse_norm + block->sample, block->count);
    }
}

struct extent_call {
    struct sfc_cpu_head *head;
    struct sfc_extent *now;
};

static void extent_block(void *arg, size_t index, unsigned worker_index)
{
    const struct extent_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cpu_block *block = &head->blocks[index];
    if (isfinite(call->now[index].w))
        return;
    float *w = head->workers[worker_index].result; /* [16 at least, pitch] */
    float *m = w + head->sizes.pitch;
    float *v = c->optimizer == SFC_OPTIMIZER_ADAMW ? m + head->sizes.pitch : NULL;
    struct sfc_extent extent = {0};
    for (uint64_t row = 0; row < block->rows; row++) {
        float last = 0;
        sfc_cpu_head_read(&head->base, index, SFC_PART_VALUES, row * c->dim, c->dim, w, NULL);
        sfc_cpu_head_read(&head->base, index, SFC_PART_MOMENTUM, row * c->dim, c->dim, m, NULL);
        if (v)
            sfc_cpu_head_read(&head->base, index, SFC_PART_SECOND_MOMENT, row * c->dim, c->dim, v,
                              NULL);
        if (head->lag) {
            sfc_cpu_head_read(&head->base, index, SFC_PART_LAST_STEP, row, 1, &last, NULL);
            sfc_lag_apply(&head->lag[(uint32_t)last], w, m, c->dim);
        }
        sfc_extent_add(&extent, w, m, v, c->dim, c->epsilon);
    }
    call->now[index] = extent;
}

void sfc_cpu_head_extents(struct sfc_head_part *base, struct sfc_extent *now)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    struct extent_call call = {head, now};
    if (head->lag) /* the plan's table begins at the oldest of the sampled rows */
        sfc_lag_table(base->rates, head->config.momentum, head->config.weight_decay, 0,
                      base->step - 1, head->lag);
    sfc_cpu_pool_run(head->cpu->pool, extent_block, &call, head->block_count);
}

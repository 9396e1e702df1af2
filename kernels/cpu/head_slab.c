/* Memory of blocks that come and go together, or alone. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/carver.h"
#include "kernels/cpu/head.h"
#include "kernels/rng/sample.h"

static void count_rows(const struct sfc_head_config *c, const uint64_t *blocks, size_t count,
                       struct sfc_cpu_slab *slab)
{
    size_t quota = 0;
    slab->blocks = count;
    slab->store_rows = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t rows = (uint32_t)sfc_head_block_rows(c, blocks[i]);
        slab->store_rows += rows;
        quota += sfc_sample_quota(rows, c->sample_ppm, 0);
    }
    /* A block exceeds its quota only by positives, and there are at most `batch` of those. */
    size_t bound = quota + c->batch;
    slab->sample_rows = bound < slab->store_rows ? bound : slab->store_rows;
}

static void lay_out_state(const struct sfc_cpu_head *head, struct sfc_cpu_slab *slab,
                          struct sfc_cpu_carver *carver)
{
    bool dense = head->config.momentum_mode == SFC_MOMENTUM_DENSE;
    size_t rows = slab->store_rows;
    slab->records = sfc_cpu_carve(carver, rows, sfc_cpu_record_bytes(head));
    slab->last = dense ? sfc_cpu_carve(carver, rows, sizeof *slab->last) : NULL;
}

static void lay_out_step(const struct sfc_cpu_head *head, struct sfc_cpu_slab *slab,
                         struct sfc_cpu_carver *carver)
{
    size_t rows = slab->sample_rows;
    slab->rows = sfc_cpu_carve(carver, rows, sizeof *slab->rows);
    slab->inverse_norm = sfc_cpu_carve(carver, rows, sizeof *slab->inverse_norm);
    slab->add = sfc_cpu_carve(carver, rows, sizeof *slab->add);
    slab->z =
        sfc_cpu_carve(carver, (size_t)head->config.slots * rows * head->sizes.mp, head->kept_bytes);
}

/* In doubles, so that size_t can't overflow below. */
static int check_size(const struct sfc_cpu_head *head, const struct sfc_cpu_slab *slab,
                      struct sfc_error *err)
{
    double bytes =
        (double)slab->store_rows * head->config.dim * 12 +
        (double)head->config.slots * (double)slab->sample_rows * (double)head->sizes.mp * 4;
    if (bytes > SFC_CPU_MAX_BYTES)
        return sfc_fail(err, SFC_ELIMIT, "head: %.3g bytes are more than any machine has", bytes);
    return SFC_OK;
}

int sfc_cpu_slab_measure(const struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                         struct sfc_cpu_slab *out, struct sfc_error *err)
{
    struct sfc_cpu_slab slab = {0};
    struct sfc_cpu_carver carver = {0};
    count_rows(&head->config, blocks, count, &slab);
    int rc = check_size(head, &slab, err);
    if (rc)
        return rc;
    lay_out_state(head, &slab, &carver);
    slab.state_bytes = sfc_cpu_mapped_bytes(carver.used);
    carver = (struct sfc_cpu_carver){0};
    lay_out_step(head, &slab, &carver);
    slab.step_bytes = sfc_cpu_mapped_bytes(carver.used) + sizeof slab;
    *out = slab;
    return SFC_OK;
}

static int map(const struct sfc_cpu_head *head, struct sfc_cpu_slab *slab, struct sfc_error *err)
{
    const char *dir = head->cpu->store_dir;
    struct sfc_cpu_carver carver = {0};
    int rc = dir ? sfc_cpu_map_file(&slab->state, slab->state_bytes, dir, err)
                 : sfc_cpu_map(&slab->state, slab->state_bytes, "class centres", err);
    if (rc)
        return rc;
    carver.base = slab->state.data;
    lay_out_state(head, slab, &carver);
    carver = (struct sfc_cpu_carver){0};
    lay_out_step(head, slab, &carver);
    rc = sfc_cpu_map(&slab->step, carver.used, "kept logits", err);
    if (rc)
        return rc;
    carver = (struct sfc_cpu_carver){slab->step.data, 0};
    lay_out_step(head, slab, &carver);
    memset(slab->step.data, 0, carver.used);
    return SFC_OK;
}

int sfc_cpu_slab_new(const struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                     struct sfc_cpu_slab **out, struct sfc_error *err)
{
    struct sfc_cpu_slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    int rc = sfc_cpu_slab_measure(head, blocks, count, slab, err);
    if (!rc)
        rc = map(head, slab, err);
    if (rc) {
        sfc_cpu_slab_free(slab);
        return rc;
    }
    *out = slab;
    return SFC_OK;
}

void sfc_cpu_slab_free(struct sfc_cpu_slab *slab)
{
    if (!slab)
        return;
    sfc_cpu_unmap(&slab->state);
    sfc_cpu_unmap(&slab->step);
    free(slab);
}

/* ---- blocks that come and go */

/* The state of a block that is no more held goes back to the system. */
static void give_back(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block)
{
    struct sfc_cpu_slab *slab = block->slab;
    size_t record = sfc_cpu_record_bytes(head);
    if (slab->blocks) /* else all of it goes */
        slab->state_bytes -= sfc_cpu_give_back(&slab->state, slab->records + block->store * record,
                                               block->rows * record);
}

/* Of those that weren't taken along. */
static void give_back_rest(const struct sfc_cpu_head *head, const struct sfc_cpu_block *blocks,
                           size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!blocks[i].kept)
            give_back(head, &blocks[i]);
}

static void free_empty_slabs(struct sfc_cpu_head *head)
{
    for (struct sfc_cpu_slab **at = &head->slabs, *slab; (slab = *at);) {
        if (slab->blocks) {
            at = &slab->next;
            continue;
        }
        *at = slab->next;
        sfc_cpu_slab_free(slab);
    }
}

static void take_slabs(struct sfc_cpu_head *head, struct sfc_cpu_head *other)
{
    struct sfc_cpu_slab **end = &head->slabs;
    while (*end)
        end = &(*end)->next;
    *end = other->slabs;
    other->slabs = NULL;
}

int sfc_cpu_head_rearrange(struct sfc_head_part *part, struct sfc_head_part *other_part,
                           const struct sfc_head_place *places, size_t count, struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)part;
    struct sfc_cpu_head *other = (struct sfc_cpu_head *)other_part;
    struct sfc_cpu_block *blocks = calloc(count, sizeof *blocks), *old = head->blocks;
    size_t old_count = head->block_count;
    if (!blocks)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    if (other)
        take_slabs(head, other);
    for (struct sfc_cpu_slab *s = head->slabs; s; s = s->next)
        s->blocks = 0;
    for (size_t i = 0; i < count; i++) {
        struct sfc_cpu_block *from = &(places[i].other ? other->blocks : old)[places[i].index];
        blocks[i] = *from;
        from->slab->blocks++;
        from->kept = true;
    }
    head->blocks = blocks;
    head->block_count = count;
    give_back_rest(head, old, old_count);
    if (other)
        give_back_rest(head, other->blocks, other->block_count);
    free_empty_slabs(head);
    free(old);
    if (other)
        sfc_cpu_head_free(other_part);
    part->memory = sfc_cpu_head_counted(head, head->slabs, count);
    return SFC_OK;
}

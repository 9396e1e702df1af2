/* The state of a head's blocks: reading and writing it, the step that it is of, the history. */
#include <math.h>
#include <string.h>

#include "kernels/head_internal.h"
#include "kernels/lag.h"

/* Where a range of a block's part is. */
struct range {
    struct sfc_head_part *part;
    size_t index;
    uint64_t block, width; /* numbers of a row */
};

static int find_part(const struct sfc_head *head, uint64_t block, enum sfc_block_part what,
                     struct range *out, struct sfc_error *err)
{
    int rc = sfc_head_find(head, block, &out->part, &out->index, err);
    if (rc)
        return rc;
    if (!sfc_has_part(head->config.optimizer, sfc_head_is_dense(&head->config), what))
        return sfc_fail(err, SFC_EINVAL, "head: block %llu has no part %d",
                        (unsigned long long)block, (int)what);
    out->block = block;
    out->width = what == SFC_PART_LAST_STEP ? 1 : head->config.dim;
    return SFC_OK;
}

static int find_range(const struct sfc_head *head, uint64_t block, enum sfc_block_part what,
                      uint64_t offset, uint64_t count, struct range *out, struct sfc_error *err)
{
    int rc = find_part(head, block, what, out, err);
    if (rc)
        return rc;
    uint64_t size = sfc_head_block_rows(&head->config, block) * out->width;
    if (offset > size || count > size - offset)
        return sfc_fail(err, SFC_EINVAL,
                        "head: elements %llu + %llu are outside block %llu of %llu elements",
                        (unsigned long long)offset, (unsigned long long)count,
                        (unsigned long long)block, (unsigned long long)size);
    return SFC_OK;
}

static int find_rows(const struct sfc_head *head, uint64_t block, enum sfc_block_part what,
                     const uint32_t *rows, size_t count, struct range *out, struct sfc_error *err)
{
    int rc = find_part(head, block, what, out, err);
    uint64_t most = sfc_head_block_rows(&head->config, block);
    for (size_t i = 0; !rc && i < count; i++)
        if (rows[i] >= most)
            rc = sfc_fail(err, SFC_EINVAL, "head: row %u is outside block %llu of %llu rows",
                          rows[i], (unsigned long long)block, (unsigned long long)most);
    return rc;
}

/* Last steps are steps of the run. offset: of the first, for the message. */
static int check_values(const struct sfc_head *head, const struct range *range,
                        enum sfc_block_part what, uint64_t offset, uint64_t count,
                        const float *values, struct sfc_error *err)
{
    int rc = sfc_values_check("head", range->block, what, offset, count, values, err);
    for (uint64_t i = 0; !rc && what == SFC_PART_LAST_STEP && i < count; i++)
        if (values[i] < 0 || values[i] > (float)head->config.steps ||
            values[i] != floorf(values[i]))
            rc = sfc_fail(err, SFC_EINVAL,
                          "head: last step %g of row %llu of block %llu is not a step of the run",
                          (double)values[i], (unsigned long long)(offset + i),
                          (unsigned long long)range->block);
    return rc;
}

int sfc_head_read(struct sfc_head *head, uint64_t block, enum sfc_block_part what, uint64_t offset,
                  uint64_t count, float *out, struct sfc_error *err)
{
    struct range r;
    int rc = find_range(head, block, what, offset, count, &r, err);
    return rc ? rc : head->backend->ops->head_read(r.part, r.index, what, offset, count, out, err);
}

int sfc_head_write(struct sfc_head *head, uint64_t block, enum sfc_block_part what, uint64_t offset,
                   uint64_t count, const float *values, struct sfc_error *err)
{
    struct range r;
    int rc = find_range(head, block, what, offset, count, &r, err);
    if (!rc)
        rc = check_values(head, &r, what, offset, count, values, err);
    if (rc)
        return rc;
    sfc_extents_forget(&r.part->extents, r.index);
    sfc_head_untrack(head, block);
    return head->backend->ops->head_write(r.part, r.index, what, offset, count, values, err);
}

/* How many of the rows from number `at` on follow each other in the block. */
static size_t neighbours(const uint32_t *rows, size_t count, size_t at)
{
    size_t n = 1;
    while (at + n < count && rows[at + n] == rows[at] + n)
        n++;
    return n;
}

int sfc_head_read_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part what,
                       const uint32_t *rows, size_t count, float *out, struct sfc_error *err)
{
    const struct sfc_backend_ops *ops = head->backend->ops;
    struct range r;
    int rc = find_rows(head, block, what, rows, count, &r, err);
    if (!rc && ops->head_read_rows)
        return ops->head_read_rows(r.part, r.index, what, rows, count, out, err);
    for (size_t i = 0, n; !rc && i < count; i += n) {
        n = neighbours(rows, count, i);
        rc = ops->head_read(r.part, r.index, what, rows[i] * r.width, n * r.width,
                            out + i * r.width, err);
    }
    return rc;
}

int sfc_head_write_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part what,
                        const uint32_t *rows, size_t count, const float *values,
                        struct sfc_error *err)
{
    const struct sfc_backend_ops *ops = head->backend->ops;
    struct range r;
    int rc = find_rows(head, block, what, rows, count, &r, err);
    if (!rc)
        rc = check_values(head, &r, what, 0, count * r.width, values, err);
    if (rc)
        return rc;
    sfc_extents_forget(&r.part->extents, r.index);
    sfc_head_untrack(head, block);
    if (ops->head_write_rows)
        return ops->head_write_rows(r.part, r.index, what, rows, count, values, err);
    for (size_t i = 0, n; !rc && i < count; i += n) {
        n = neighbours(rows, count, i);
        rc = ops->head_write(r.part, r.index, what, rows[i] * r.width, n * r.width,
                             values + i * r.width, err);
    }
    return rc;
}

int sfc_head_set_block_step(struct sfc_head *head, uint64_t block, uint64_t step,
                            struct sfc_error *err)
{
    struct sfc_head_part *part = NULL;
    size_t index = 0;
    int rc = sfc_head_find(head, block, &part, &index, err);
    if (!rc && step == SFC_BLOCK_GONE)
        rc = sfc_fail(err, SFC_EINVAL, "head: block %llu can't be of step %llu",
                      (unsigned long long)block, (unsigned long long)step);
    if (rc)
        return rc;
    part->block_step[index] = step;
    sfc_head_untrack(head, block);
    head->planned = false;
    return SFC_OK;
}

/* ---- the history of mode dense */

void sfc_head_set_done(struct sfc_head *head, uint64_t done)
{
    head->done = done;
    for (struct sfc_head_part *p = head->parts; p; p = p->next)
        p->done = done;
}

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
    if (offset + count > head->done)
        sfc_head_set_done(head, offset + count);
    head->planned = false;
    return SFC_OK;
}

/* A part's blocks change between two steps: records and kept numbers stay where they are in the
 * device's memory, tables and what else depends on the number of blocks is made anew. */
#include <stdlib.h>

#include "kernels/cuda/head.h"

static struct sfc_cuda_block *block_at(struct sfc_cuda_head *head, struct sfc_cuda_head *other,
                                       const struct sfc_head_place *place)
{
    return &(place->other ? other : head)->blocks[place->index];
}

/* Nothing is at work in what is about to be given back. */
static int settle(struct sfc_cuda_head *head, struct sfc_error *err)
{
    int rc = sfc_cuda_enter(head->cuda, err);
    for (int i = 0; !rc && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(head->cuda, cudaStreamSynchronize(head->cuda->lane[i]),
                            "the step before a change of blocks", err);
    return rc ? rc
              : sfc_cuda_check(head->cuda, cudaStreamSynchronize(head->cuda->stream),
                               "the step before a change of blocks", err);
}

static int number(struct sfc_cuda_head *next, struct sfc_cuda_head *head,
                  struct sfc_cuda_head *other, const struct sfc_head_place *places,
                  struct sfc_error *err)
{
    uint64_t *ids = malloc(next->block_count * sizeof *ids);
    if (!ids)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", next->block_count);
    for (size_t i = 0; i < next->block_count; i++)
        ids[i] = block_at(head, other, &places[i])->id;
    int rc = sfc_cuda_head_measure(next, ids, err);
    if (!rc)
        rc = sfc_cuda_head_number(next, ids, err);
    free(ids);
    for (size_t i = 0; !rc && i < next->block_count; i++) {
        const struct sfc_cuda_block *from = block_at(head, other, &places[i]);
        next->blocks[i].slab = from->slab;
        next->blocks[i].records = from->records;
    }
    return rc;
}

/* The tiles that head and other leave behind, as many as next needs. */
static size_t lend_tiles(struct sfc_cuda_head *next, const struct sfc_cuda_head *from, size_t at)
{
    size_t n = sfc_cuda_tiles(next);
    for (size_t i = 0; from && i < sfc_cuda_tiles(from) && at < n; i++)
        next->z[at++] = from->z[i];
    return at;
}

static void keep_tiles(struct sfc_cuda_head *from, const struct sfc_cuda_head *next, size_t *at)
{
    size_t n = sfc_cuda_tiles(next);
    for (size_t i = 0; from && i < sfc_cuda_tiles(from) && *at < n; i++, ++*at)
        from->z[i] = NULL; /* next has it */
}

/* The last steps of the rows, from the tables of head and other to that of next. */
static int copy_last(struct sfc_cuda_head *next, const struct sfc_cuda_head *head,
                     const struct sfc_cuda_head *other, const struct sfc_head_place *places,
                     struct sfc_error *err)
{
    cudaStream_t stream = next->cuda->stream;
    cudaError_t status = cudaSuccess;
    for (size_t i = 0; next->last && status == cudaSuccess && i < next->block_count; i++) {
        const struct sfc_cuda_head *from = places[i].other ? other : head;
        const struct sfc_cuda_block *block = &next->blocks[i];
        status = cudaMemcpyAsync(
            next->last + block->store, from->last + from->blocks[places[i].index].store,
            block->rows * sizeof *next->last, cudaMemcpyDeviceToDevice, stream);
    }
    if (status == cudaSuccess)
        status = cudaStreamSynchronize(stream);
    return sfc_cuda_check(next->cuda, status, "the last steps of rows whose block is renumbered",
                          err);
}

/* What is new of a part with the blocks in `places`; what stays is lent, so it must not be freed
 * with it. */
static int make_next(struct sfc_cuda_head *next, struct sfc_cuda_head *head,
                     struct sfc_cuda_head *other, const struct sfc_head_place *places, size_t count,
                     struct sfc_error *err)
{
    *next = *head;
    next->block_count = count;
    next->blocks = NULL;
    next->step_memory = NULL;
    next->z = NULL;
    next->plan = NULL;
    next->state = NULL;
    int rc = number(next, head, other, places, err);
    if (!rc)
        rc = sfc_cuda_head_take_step(next, err);
    if (!rc)
        rc = copy_last(next, head, other, places, err);
    if (rc)
        return rc;
    size_t lent = lend_tiles(next, other, lend_tiles(next, head, 0));
    rc = sfc_cuda_take_tiles(next, err);
    for (size_t i = 0; rc && i < lent; i++)
        next->z[i] = NULL;
    return rc;
}

/* Of a part that did not come to be. */
static void drop_next(struct sfc_cuda_head *next)
{
    sfc_cuda_plan_free(next);
    sfc_cuda_state_free(next);
    sfc_cuda_free_tiles(next);
    cudaFree(next->step_memory);
    free(next->blocks);
}

/* Blocks that are in places belong to next from now on; the others go with the part they were in.
 */
static void hand_over(struct sfc_cuda_head *next, struct sfc_cuda_head *head,
                      struct sfc_cuda_head *other, const struct sfc_head_place *places)
{
    size_t lent = 0;
    for (size_t i = 0; i < next->block_count; i++)
        block_at(head, other, &places[i])->slab = NULL;
    keep_tiles(head, next, &lent);
    keep_tiles(other, next, &lent);
    sfc_cuda_plan_inherit(next, head);
    sfc_cuda_state_inherit(next, head);
}

/* What is left of a part after it was handed over. */
static void drop_old(struct sfc_cuda_head *old)
{
    sfc_cuda_plan_free(old);
    sfc_cuda_state_free(old);
    for (size_t i = 0; i < old->block_count; i++)
        sfc_cuda_let_go(&old->blocks[i]);
    sfc_cuda_free_tiles(old);
    cudaFree(old->step_memory);
    free(old->blocks);
}

int sfc_cuda_head_rearrange(struct sfc_head_part *base, struct sfc_head_part *other_base,
                            const struct sfc_head_place *places, size_t count,
                            struct sfc_error *err)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)base;
    struct sfc_cuda_head *other = (struct sfc_cuda_head *)other_base;
    struct sfc_cuda_head next, old;
    int rc = settle(head, err);
    if (rc)
        return rc;
    rc = make_next(&next, head, other, places, count, err);
    if (rc) {
        drop_next(&next);
        return rc;
    }
    hand_over(&next, head, other, places);
    old = *head;
    *head = next;
    drop_old(&old);
    if (other)
        sfc_cuda_head_free(&other->base);
    head->memory.state_bytes = sfc_cuda_slabs_held(head);
    head->base.memory = head->memory;
    return SFC_OK;
}

/* Device memory that stays where it is when a part's blocks change: slabs of records, tiles of kept
 * numbers. */
#include <stdlib.h>

#include "kernels/cuda/head.h"

/* A slab has so many bytes, or one block: few calls where blocks are small, and memory that is
 * given back block by block where they are large. */
#define SLAB_BYTES ((size_t)16 << 20)

/* What CUDA gives is in pages, but for the smallest. */
#define PAGE_BYTES  ((size_t)2 << 20)
#define SMALL_BYTES ((size_t)1 << 20)

size_t sfc_cuda_whole_pages(size_t bytes)
{
#ifdef SFC_CUDA_ROOM /* tests have room between ranges, which is of no page */
    return bytes;
#else
    return bytes <= SMALL_BYTES ? bytes : (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
#endif
}

int sfc_cuda_take(const struct sfc_cuda_head *head, const char *what, size_t bytes, size_t all,
                  void **out, struct sfc_error *err)
{
    size_t unused = 0;
    cudaError_t status = cudaMalloc(out, bytes);
    if (status != cudaErrorMemoryAllocation)
        return sfc_cuda_check(head->cuda, status, "cudaMalloc", err);
    cudaGetLastError(); /* it is remembered otherwise */
    sfc_cuda_free_bytes(head->cuda, &unused, NULL);
    return sfc_fail(err, SFC_ENOMEM,
                    "head: no memory for %.1f of %.1f MiB of %s on %s, %.1f MiB are free; spread "
                    "the classes over more shards, or take --dtype bf16",
                    (double)bytes / 0x1p20, (double)all / 0x1p20, what, head->cuda->label,
                    (double)unused / 0x1p20);
}

/* ---- slabs */

static char *lay_out_block(const struct sfc_cuda_head *head, struct sfc_cuda_carver *c,
                           uint64_t block)
{
    return sfc_cuda_carve(c, sfc_head_block_rows(&head->config, block), head->sizes.record);
}

static size_t one_slab(const struct sfc_cuda_head *head, const uint64_t *blocks, size_t count,
                       size_t *bytes)
{
    struct sfc_cuda_carver c = {0};
    size_t n = 0;
    while (n < count && c.used < SLAB_BYTES)
        lay_out_block(head, &c, blocks[n++]);
    *bytes = sfc_cuda_whole_pages(c.used);
    return n;
}

size_t sfc_cuda_slab_bytes(const struct sfc_cuda_head *head, const uint64_t *blocks, size_t count)
{
    size_t sum = 0, bytes = 0;
    for (size_t i = 0; i < count; sum += bytes)
        i += one_slab(head, blocks + i, count - i, &bytes);
    return sum;
}

static int take_slab(struct sfc_cuda_head *head, struct sfc_cuda_block *blocks, size_t count,
                     size_t bytes, struct sfc_error *err)
{
    struct sfc_cuda_slab *slab = malloc(sizeof *slab);
    if (!slab)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", count);
    *slab = (struct sfc_cuda_slab){.bytes = bytes, .held = count};
    int rc =
        sfc_cuda_take(head, "class centres", bytes, head->memory.state_bytes, &slab->memory, err);
    if (rc) {
        free(slab);
        return rc;
    }
    struct sfc_cuda_carver c = {.base = slab->memory};
    for (size_t i = 0; i < count; i++) {
        blocks[i].records = lay_out_block(head, &c, blocks[i].id);
        blocks[i].slab = slab;
    }
    return SFC_OK;
}

int sfc_cuda_take_slabs(struct sfc_cuda_head *head, struct sfc_error *err)
{
    uint64_t *ids = malloc(head->block_count * sizeof *ids);
    int rc = SFC_OK;
    if (!ids)
        return sfc_fail(err, SFC_ENOMEM, "head: out of memory for %zu blocks", head->block_count);
    for (size_t i = 0; i < head->block_count; i++)
        ids[i] = head->blocks[i].id;
    for (size_t i = 0, n; !rc && i < head->block_count; i += n) {
        size_t bytes = 0;
        n = one_slab(head, ids + i, head->block_count - i, &bytes);
        rc = take_slab(head, head->blocks + i, n, bytes, err);
    }
    free(ids);
    return rc;
}

void sfc_cuda_let_go(struct sfc_cuda_block *block)
{
    struct sfc_cuda_slab *slab = block->slab;
    block->slab = NULL;
    if (!slab || --slab->held > 0)
        return;
    cudaFree(slab->memory);
    free(slab);
}

size_t sfc_cuda_slabs_held(const struct sfc_cuda_head *head)
{
    size_t sum = 0;
    for (size_t i = 0; i < head->block_count; i++)
        head->blocks[i].slab->counted = false;
    for (size_t i = 0; i < head->block_count; i++) {
        struct sfc_cuda_slab *slab = head->blocks[i].slab;
        sum += slab->counted ? 0 : slab->bytes;
        slab->counted = true;
    }
    return sum;
}

/* ---- tiles of kept numbers */

int sfc_cuda_take_tiles(struct sfc_cuda_head *head, struct sfc_error *err)
{
    size_t n = sfc_cuda_tiles(head);
    int rc = SFC_OK;
    for (size_t i = 0; !rc && i < n; i++)
        if (!head->z[i])
            rc = sfc_cuda_take(head, "kept logits", head->sizes.tile, n * head->sizes.tile,
                               &head->z[i], err);
    return rc;
}

void sfc_cuda_free_tiles(struct sfc_cuda_head *head)
{
    for (size_t i = 0; head->z && i < sfc_cuda_tiles(head); i++)
        cudaFree(head->z[i]);
    free(head->z);
    head->z = NULL;
}

/* How the samples of a plan lie in chunks (kernels/cuda/head.h): positions of one block fill whole
 * chunks, what is left of its last one is padding. */
#ifndef SFC_KERNELS_HD_LAYOUT_H
#define SFC_KERNELS_HD_LAYOUT_H

#include <stddef.h>

#include "kernels/hd/hd.h"

#define SFC_HD_CHUNK_MOST  1024 /* positions of a chunk, before it is rounded up */
#define SFC_HD_CHUNK_ROUND 16
#define SFC_HD_CHUNK_LONG  384 /* longer ones are rounded up to SFC_HD_CHUNK_STRIP */
#define SFC_HD_CHUNK_STRIP 64  /* as products that are fused with what follows want them */

/* Positions of a chunk, from the quota of a full block without positives: a function of the
 * configuration alone. A full block fills as few chunks as the limit allows, nearly evenly. */
static SFC_HD inline size_t sfc_hd_chunk(size_t quota)
{
    size_t n = (quota + SFC_HD_CHUNK_MOST - 1) / SFC_HD_CHUNK_MOST;
    size_t each = n ? (quota + n - 1) / n : 0;
    size_t round = each > SFC_HD_CHUNK_LONG ? SFC_HD_CHUNK_STRIP : SFC_HD_CHUNK_ROUND;
    size_t rounded = (each + round - 1) / round * round;
    return rounded ? rounded : SFC_HD_CHUNK_ROUND;
}

/* Chunks of a block whose sample has `count` rows. */
static SFC_HD inline size_t sfc_hd_chunks(size_t count, size_t chunk)
{
    return (count + chunk - 1) / chunk;
}

/* The most chunks of any plan, block by block: begin with all zeros. */
struct sfc_hd_bound {
    size_t chunks; /* without positives beyond the quotas */
    size_t room;   /* chunks that positives could add if the batch were endless */
    size_t least;  /* chunks of the smallest quota among the blocks with such room */
};

/* Adds a block; quota: without positives. */
static SFC_HD inline void sfc_hd_bound_add(struct sfc_hd_bound *bound, size_t rows, size_t quota,
                                           size_t chunk)
{
    size_t n = sfc_hd_chunks(quota, chunk), room = sfc_hd_chunks(rows, chunk) - n;
    bound->chunks += n;
    bound->room += room;
    if (room && (!bound->least || n < bound->least))
        bound->least = n;
}

/* A block of n chunks has one more when its positives are more than n * chunk, and the next with
 * every further `chunk` of them. So e more chunks take at least (least + e - 1) * chunk + 1
 * positives: all in the block that needs the fewest. */
static SFC_HD inline size_t sfc_hd_bound_chunks(const struct sfc_hd_bound *bound, size_t batch,
                                                size_t chunk)
{
    if (!bound->room || batch <= bound->least * chunk)
        return bound->chunks;
    size_t more = (batch - 1) / chunk - bound->least + 1;
    return bound->chunks + (more < bound->room ? more : bound->room);
}

#endif

/* A dense object above its parts: what kernels/dense*.c share. Files: dense_check.c
 * (configuration), dense_parts.c (life, blocks that come and go), dense.c (the rest).
 *
 * Vectors of the caller have all held blocks in ascending order. With one part that holds all of
 * its blocks these are the part's vectors; else they are copied block by block (the places). */
#ifndef SFC_KERNELS_DENSE_INTERNAL_H
#define SFC_KERNELS_DENSE_INTERNAL_H

#include "kernels/backend_impl.h"

/* Where a block begins in a vector of floats, and in the halves and floats of packed sums. */
struct sfc_dense_at {
    uint64_t vector, halves, floats;
};

struct sfc_dense_place {
    struct sfc_dense_part *part;
    size_t index;
    struct sfc_dense_at whole, in_part, length;
};

struct sfc_dense {
    struct sfc_backend *backend;
    struct sfc_dense_config config; /* segments: an own copy */
    struct sfc_dense_part *parts;
    struct sfc_dense_place *places; /* [count] the held blocks, ascending */
    size_t count;
    bool direct;   /* one part with all of its blocks */
    void *scratch; /* not direct: a vector or packed sums of a part, or its struct sfc_dense_sum */
    uint64_t length; /* floats of all held blocks */
    struct sfc_dense_packing packing;
    bool *pushed; /* [slots] */
    bool prepared;
};

/* Checks the configuration and the block ids. */
int sfc_dense_check(const struct sfc_dense_config *c, const uint64_t *blocks, size_t count,
                    struct sfc_error *err);
/* The place of a block; NULL: it is not held. */
const struct sfc_dense_place *sfc_dense_find(const struct sfc_dense *dense, uint64_t block);

#endif

/* The CUDA backend's kernels, as host code calls them (private; C and C++). Pointers are to device
 * memory; each call only starts work in the stream. */
#ifndef SFC_KERNELS_CUDA_KERNELS_H
#define SFC_KERNELS_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SFC_CUDA_PADDING UINT32_MAX
#define SFC_CUDA_STRIP   64 /* positions of a chunk whose exponentials are summed by one block */

/* How a record holds its numbers; each tensor has `pitch` of them.
 * F32    w, m (v) in f32
 * BF16   w, m (v) in bf16
 * SPLIT  w as high (the nearest bf16, ties away from zero) and low (the rest of the integer bits),
 *        m (v) in f32 */
enum sfc_cuda_format { SFC_CUDA_F32, SFC_CUDA_BF16, SFC_CUDA_SPLIT };

/* kernels/lag.h has the same. */
struct sfc_cuda_lag {
    float ww, wm, mw, mm;
};

/* The blocks of a store lie anywhere in the device's memory. Store rows number them: row r of block
 * index b is b << shift | r. */
struct sfc_cuda_store {
    enum sfc_cuda_format format;
    uint32_t shift;
    char *const *records; /* [blocks] the block's first record */
    uint32_t *last;       /* mode dense: [store rows]; else NULL */
    size_t record;        /* bytes */
    uint32_t pitch, dim;
    const struct sfc_cuda_lag *lag; /* mode dense: lag[last]: from there to before this step */
    uint32_t now;                   /* the step in work */
    bool nearest;                   /* BF16: updates round to the nearest */
    uint64_t seed;
    const uint64_t *block_class; /* [blocks] first class */
    const uint32_t *chunk_block; /* [chunks] */
    uint32_t chunk;              /* positions of a chunk */
};

/* ---- rows of W into a tile (gather.cu) */

/* inverse_norm: [positions] 1 / norm of what the product reads (0 for padding and norms below
 * 1e-12, NaN where the row is not finite or too large to be squared), NULL: not wanted, and neither
 * are the others. block_inverse: [blocks] raised to the bits of the largest; bad_block: lowered to
 * the first block with a NaN. */
struct sfc_cuda_gather_out {
    void *tile; /* [positions, pitch] bf16 or f32 */
    float *inverse_norm;
    uint32_t *block_inverse, *bad_block;
    const float *times; /* [positions] what a row is multiplied with, with factor, after it was
                           rounded and before it is rounded again; NULL: rows as they are */
    float factor;
};

/* half: operands are bf16. rows, store->chunk_block: from the tile's first on. */
cudaError_t sfc_cuda_gather(const struct sfc_cuda_store *store, const uint32_t *rows,
                            size_t positions, bool half, const struct sfc_cuda_gather_out *out,
                            cudaStream_t stream);

/* ---- unit features (features.cu) */

struct sfc_cuda_features {
    const float *raw;          /* [slots, micro_batch, dim] */
    const int32_t *slot_micro; /* [slots] micro-batch of a slot in this call, -1: not in it */
    const int32_t *target;     /* [batch] positions */
    uint32_t slots, micro_batch, mp, dim, pitch;
    bool half;
    void *x;                /* [slots * mp, pitch] */
    uint8_t *zero;          /* [slots * mp] */
    int32_t *column_target; /* [slots * mp] position of the column's target or -1 */
};

/* Of the slots in the call: unit rows, zero flags, where the targets are. */
cudaError_t sfc_cuda_unit_features(const struct sfc_cuda_features *f, cudaStream_t stream);

/* ---- pass 1: z and the sums of exponentials of a tile (logits.cu) */

/* columns first_column .. + columns of z; the product has just these. */
struct sfc_cuda_columns {
    uint32_t first, count, all;
};

struct sfc_cuda_logits {
    float scale, filter; /* above the filter a cosine counts for nothing but its place; 2: none */
    struct sfc_cuda_columns columns;
    bool half;
    uint32_t chunk, strips;          /* positions of a chunk and strips of one */
    size_t first;                    /* the tile's first position */
    const float *product;            /* [tile positions, columns.count] */
    const float *inverse_norm, *add; /* [tile positions] */
    const int32_t *column_target;    /* [columns.all] */
    void *z;                         /* [tile positions, columns.all] */
    double *exps;                    /* [tile strips, columns.all] */
    float *target_product;           /* [columns.all] the product at the column's target */
};

cudaError_t sfc_cuda_logits_tile(const struct sfc_cuda_logits *l, size_t chunks,
                                 cudaStream_t stream);

/* Adds the strips of each chunk, in their order, times factor, to the columns' 256-bit sums. */
cudaError_t sfc_cuda_add_exps(const double *exps, size_t chunks, uint32_t strips, double factor,
                              const struct sfc_cuda_columns *columns, unsigned long long *limbs,
                              cudaStream_t stream);

/* The margin at the targets, which the sums of a tile leave out (targets.cu). Positions are those
 * of the plan. */
struct sfc_cuda_targets {
    double m1, m2, m3, scale;
    bool identity; /* f' = 1 */
    struct sfc_cuda_columns columns;
    const int32_t *column_target;    /* [columns.all] */
    const float *target_product;     /* [columns.all] */
    const uint8_t *zero;             /* [columns.all] */
    const float *inverse_norm, *add; /* [positions] */
    double factor;                   /* of the sums of exponentials */
    float *target_z, *slope;         /* [columns.all] out */
    unsigned long long *limbs;       /* [columns.all, 8] added to */
};

cudaError_t sfc_cuda_set_targets(const struct sfc_cuda_targets *t, cudaStream_t stream);
/* p of each target, less 1, times the slope: [columns.all]. high, low: as below. */
cudaError_t sfc_cuda_target_p(const struct sfc_cuda_targets *t, const float *high, const float *low,
                              float *target_p, cudaStream_t stream);

/* ---- pass 2 (gradient.cu) */

struct sfc_cuda_softmax {
    struct sfc_cuda_columns columns;
    bool half;
    uint32_t chunk, strips, mp;
    size_t first;
    float scale;
    bool filtered;           /* some entries may be */
    const float *add;        /* [tile positions] */
    const float *high, *low; /* [columns.all] log2(e) times the log-sum-exp; high inf: p = 0 */
    const int32_t *column_target;
    const float *target_p; /* [columns.all] */
    void *z;               /* [tile positions, columns.all] becomes p */
    uint32_t *not_finite;  /* [slots] */
};

cudaError_t sfc_cuda_softmax_tile(const struct sfc_cuda_softmax *s, size_t chunks,
                                  cudaStream_t stream);
/* product: [chunks, columns.count, pitch], bf16 where half, else f32; each chunk's numbers, rounded
 * to fixed point, are added to dx [columns.all, pitch], which this stream alone may touch. */
cudaError_t sfc_cuda_add_dx(const void *product, bool half, size_t chunks, uint32_t pitch,
                            const struct sfc_cuda_columns *columns, unsigned long long *dx,
                            cudaStream_t stream);
/* to += from. */
cudaError_t sfc_cuda_join_dx(unsigned long long *to, const unsigned long long *from, size_t numbers,
                             cudaStream_t stream);

/* ---- pass 3 (commit.cu) */

/* p of the batch's slots side by side: from z [positions, columns] to out [positions, batch * mp].
 * slots: [micro_batches] on the device. */
cudaError_t sfc_cuda_assemble(const void *z, bool half, size_t positions, uint32_t columns,
                              const uint32_t *slots, uint32_t micro_batches, uint32_t mp, void *out,
                              cudaStream_t stream);

/* kernels/adamw.h has the same. */
struct sfc_cuda_adamw {
    float keep1, take1, keep2, take2, rate, root, epsilon, decay;
};

struct sfc_cuda_update {
    bool is_adamw;
    float gradient_scale;
    float lr, momentum, weight_decay; /* of SGD */
    struct sfc_cuda_adamw adamw;
};

/* dw: [positions, pitch] gradients of the unit centres, but for gradient_scale: scale / batch. */
cudaError_t sfc_cuda_update_rows(const struct sfc_cuda_store *store, const uint32_t *rows,
                                 size_t positions, const float *dw, const float *inverse_norm,
                                 const struct sfc_cuda_update *update, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

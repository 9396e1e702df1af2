/* Kernels over the state as such (private; C and C++): first values, reading and writing it as f32,
 * how large it is. Pointers are to device memory; each call only starts work in the stream. */
#ifndef SFC_KERNELS_CUDA_STATE_H
#define SFC_KERNELS_CUDA_STATE_H

#include "kernels/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A run of numbers of a block, row by row; tensor: of the record, or SFC_CUDA_LAST. */
#define SFC_CUDA_LAST UINT32_MAX
struct sfc_cuda_run {
    uint32_t tensor;
    uint32_t row; /* where it begins: store row, and column below dim */
    uint32_t column, count;
};

/* Whole rows of one block, in any order. */
struct sfc_cuda_list {
    uint32_t tensor;
    uint32_t first;       /* store row of the block's row 0 */
    const uint32_t *rows; /* on the device */
    uint32_t count;       /* numbers of all rows */
};

/* How many rows the blocks of a store have. */
struct sfc_cuda_rows {
    uint32_t blocks;
    const uint32_t *block_rows; /* [blocks] */
};

/* All records: W from the seed, moments and last steps 0. */
cudaError_t sfc_cuda_run_init(const struct sfc_cuda_store *store, struct sfc_cuda_rows rows,
                              float std, cudaStream_t stream);
/* The numbers as f32 (last steps too), and back; rounded to what the record holds. */
cudaError_t sfc_cuda_run_read(const struct sfc_cuda_store *store, struct sfc_cuda_run run,
                              float *out, cudaStream_t stream);
cudaError_t sfc_cuda_run_write(const struct sfc_cuda_store *store, struct sfc_cuda_run run,
                               const float *values, cudaStream_t stream);
cudaError_t sfc_cuda_list_read(const struct sfc_cuda_store *store, struct sfc_cuda_list list,
                               float *out, cudaStream_t stream);
cudaError_t sfc_cuda_list_write(const struct sfc_cuda_store *store, struct sfc_cuda_list list,
                                const float *values, cudaStream_t stream);
/* Of each block, all rows caught up by the store's table (last steps from store->now on count as
 * caught up): the largest |w|, |m| and |m| / (sqrt(v) + epsilon) (0 without v) as bits of f32,
 * which order like the numbers, NaN above all; [blocks, 3]. */
cudaError_t sfc_cuda_run_extents(const struct sfc_cuda_store *store, struct sfc_cuda_rows rows,
                                 float epsilon, uint32_t *maxima, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

/* Kernels over backbone blocks, as host code calls them (private; C and C++). Every kernel works on
 * *tiles*: runs of floats of one block and one role, cut from each run's beginning on, so that what
 * comes of a tile depends on its block alone. One block of threads takes one tile. Pointers are to
 * device memory; each call only starts work in the stream. */
#ifndef SFC_KERNELS_CUDA_DENSE_TILES_H
#define SFC_KERNELS_CUDA_DENSE_TILES_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SFC_CUDA_DENSE_TILE 4096u /* most floats of a tile */

struct sfc_cuda_dense_tile {
    uint64_t at;     /* first float in the local vectors */
    uint64_t global; /* and in the whole vector */
    uint64_t packed; /* among the halves or the floats of packed sums */
    uint32_t length, block;
    float mean, std; /* of the initial values */
    bool statistic, decays;
    bool half; /* its sums are bf16 */
};

/* What a kernel found in a tile. */
struct sfc_cuda_dense_found {
    double squares;       /* of the sums */
    uint32_t w, m, ratio; /* largest |w|, |m|, |m| / (sqrt(v) + epsilon): bits of f32 */
    uint32_t broken;      /* a sum is not finite */
};

struct sfc_cuda_dense_vectors {
    float *values, *momentum, *sum; /* [length] */
    float *second;                  /* [length] AdamW's second moments; else NULL */
};

/* The first values: mean + std * normal of the position in the whole vector. */
cudaError_t sfc_cuda_dense_init(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                uint64_t seed, float *values, cudaStream_t stream);

/* sum = slice of slots[0] + slice of slots[1] + .., statistics over their number; squares and
 * broken of each tile. slices: [slots, length]. */
cudaError_t sfc_cuda_dense_add(const struct sfc_cuda_dense_tile *tiles, size_t count,
                               const float *slices, uint64_t length, const uint32_t *slots,
                               uint32_t micro_batches, float *sum,
                               struct sfc_cuda_dense_found *found, cudaStream_t stream);

/* Tiles that follow each other to or from packed sums: the halves of packed number first_half on at
 * `halves`, the floats of first_float on at `floats`. */
struct sfc_cuda_dense_packed {
    uint16_t *halves;
    float *floats;
    uint64_t first_half, first_float;
};
cudaError_t sfc_cuda_dense_pack(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                const float *sum, struct sfc_cuda_dense_packed packed,
                                cudaStream_t stream);
cudaError_t sfc_cuda_dense_unpack(const struct sfc_cuda_dense_tile *tiles, size_t count, float *sum,
                                  struct sfc_cuda_dense_packed packed, cudaStream_t stream);

/* w, m and ratio of each tile; statistics have none. */
cudaError_t sfc_cuda_dense_measure(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                   struct sfc_cuda_dense_vectors vectors, float epsilon,
                                   struct sfc_cuda_dense_found *found, cudaStream_t stream);

struct sfc_cuda_dense_update {
    float clip, statistic;
    float lr, momentum, weight_decay;                             /* SGD */
    float keep1, take1, keep2, take2, rate, root, epsilon, decay; /* AdamW: kernels/adamw.h */
};
/* left_out: [blocks] those that stay as they are. */
cudaError_t sfc_cuda_dense_apply(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                 struct sfc_cuda_dense_vectors vectors,
                                 struct sfc_cuda_dense_update update, const uint8_t *left_out,
                                 cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

/* Products that end in what their numbers are for, on compute capability 9.0 (private; C and C++):
 * cosines become logits before they ever leave the multiprocessor. They do what logits.cu does with
 * a product's result, which is twice the traffic of everything else in that pass. Sums are f32 in
 * the order of k, by the tensor cores. Other devices, formats and shapes take gemm.h and logits.cu.
 */
#ifndef SFC_KERNELS_CUDA_FUSED_H
#define SFC_KERNELS_CUDA_FUSED_H

#include "kernels/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A matrix of bf16, row-major; `at` and rows (ld numbers apart) are 16-byte aligned. */
struct sfc_cuda_matrix {
    const void *at;
    size_t rows, columns, ld;
};

/* Whether the device, whose compute capability is 10 * major + minor, has what it needs. */
bool sfc_cuda_fused_usable(int capability);

/* l as for sfc_cuda_logits_tile, but for `product`: it is w x' with w [tile positions, depth], x
 * [l->columns.count, depth]. Chunks have whole strips of SFC_CUDA_STRIP positions. */
cudaError_t sfc_cuda_fused_logits(const struct sfc_cuda_logits *l, size_t chunks,
                                  const struct sfc_cuda_matrix *w, const struct sfc_cuda_matrix *x,
                                  cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif

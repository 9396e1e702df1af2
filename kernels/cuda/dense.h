/* Backbone blocks of the CUDA backend (private): the dense_* members of struct sfc_backend_ops. */
#ifndef SFC_KERNELS_CUDA_DENSE_H
#define SFC_KERNELS_CUDA_DENSE_H

#include "kernels/cuda/cuda.h"

int sfc_cuda_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                          const uint64_t *blocks, size_t count, struct sfc_memory *out,
                          struct sfc_error *err);
int sfc_cuda_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_dense **out,
                       struct sfc_error *err);
void sfc_cuda_dense_free(struct sfc_dense *dense);
int sfc_cuda_dense_read(struct sfc_dense *dense, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_cuda_dense_write(struct sfc_dense *dense, size_t index, enum sfc_block_part part,
                         uint64_t offset, uint64_t count, const float *values,
                         struct sfc_error *err);
int sfc_cuda_dense_push(struct sfc_dense *dense, uint32_t slot, const float *slice,
                        struct sfc_error *err);
int sfc_cuda_dense_pull(struct sfc_dense *dense, float *out, struct sfc_error *err);
int sfc_cuda_dense_prepare(struct sfc_dense *dense, const uint32_t *slots,
                           struct sfc_dense_sum *out, struct sfc_error *err);
int sfc_cuda_dense_sums(struct sfc_dense *dense, void *out, struct sfc_error *err);
int sfc_cuda_dense_load(struct sfc_dense *dense, const void *sums, struct sfc_error *err);
void sfc_cuda_dense_extents(struct sfc_dense *dense, struct sfc_extent *out);
int sfc_cuda_dense_commit(struct sfc_dense *dense, double clip_scale, double lr,
                          struct sfc_error *err);

#endif

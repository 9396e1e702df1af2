/* The three products of a layer that is one matrix product per pixel, by cuBLASLt (private to
 * products.c): y[rows, outer] = x[rows, inner] w'[outer, inner], and its gradients. */
#ifndef SFC_WORKER_MODEL_CUDA_MATMUL_H
#define SFC_WORKER_MODEL_CUDA_MATMUL_H

#include <cublasLt.h>

#include "worker/model/cuda/conv.h"

struct sfc_matmul {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t first, second, result;
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
    int number, split; /* cuBLASLt's number of the algorithm; parts that the sum is cut into */
};

struct sfc_matmul_shape {
    size_t rows, outer, inner;
};

/* FORWARD: x, w -> y; DATA: dy, w -> dx; WEIGHTS: dy, x -> dw, which is f32. Sums that are cut into
 * parts are added in a fixed order, by way of the workspace. */
int sfc_matmul_init(struct sfc_matmul *m, const struct sfc_gpu *gpu, cublasLtHandle_t handle,
                    struct sfc_matmul_shape shape, enum sfc_conv_direction direction,
                    struct sfc_error *err);
/* In the order of the arrows above. */
int sfc_matmul_run(const struct sfc_matmul *m, const struct sfc_gpu *gpu, cublasLtHandle_t handle,
                   cudaStream_t stream, const void *a, const void *b, void *out, void *workspace,
                   struct sfc_error *err);

int sfc_cublas_said(const struct sfc_gpu *gpu, cublasStatus_t status, const char *what,
                    struct sfc_error *err);

#endif

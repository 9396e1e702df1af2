/* Matrix products of the CUDA backend, by cuBLASLt (private). Each kind of product has one
 * algorithm, chosen when it is made and the same for all sizes that it is run with: one without
 * sums that are split over blocks of threads, so that an element of the result depends only on its
 * row and its column of the operands. All matrices are row-major; sums are f32. Operands are bf16
 * or f32 (true f32, no TF32), results f32, or bf16 where the operands are.
 *
 *   LOGITS    c[r, n] = sum over k of a[r, k] * b[n, k]           rows of W, unit features
 *   GRADIENT  c[g, n, d] = sum over k of a[g, k, n] * b[g, k, d]  p, rows of W; batched over g
 *   COMMIT    c[r, d] = sum over k of a[r, k] * b[k, d]           p, unit features
 */
#ifndef SFC_KERNELS_CUDA_GEMM_H
#define SFC_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/cuda.h"

enum sfc_cuda_product { SFC_CUDA_LOGITS, SFC_CUDA_GRADIENT, SFC_CUDA_COMMIT, SFC_CUDA_PRODUCTS };

/* rows, columns: of one c (GRADIENT: n and d; LOGITS: r and n; COMMIT: r and d). lda, ldb: elements
 * from one row of the operand to the next; c is dense. */
struct sfc_cuda_gemm_shape {
    enum sfc_cuda_product product;
    bool bf16;
    bool narrow; /* the result is bf16 as well */
    size_t rows, columns, depth, lda, ldb;
    size_t batch; /* GRADIENT: matrices; else 1. Those of a are depth rows apart, as those of b. */
};

struct sfc_cuda_gemm {
    struct sfc_cuda_gemm_shape shape; /* the one it was chosen for */
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes; /* of each lane */
    char name[96];          /* of the algorithm, for the numerics class */
};

/* A number that two devices have in common when they choose the same algorithms for products of
 * usual shapes: part of the numerics class, which has to be known before there is a head. */
int sfc_cuda_gemm_fingerprint(const struct sfc_cuda *cuda, uint32_t *out, struct sfc_error *err);

/* Chooses the algorithm for the shape; LOGITS may have other columns and GRADIENT other rows when
 * it is run, multiples of `step`. */
int sfc_cuda_gemm_init(struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                       const struct sfc_cuda_gemm_shape *shape, size_t step, struct sfc_error *err);
/* c = the product, in the stream; shape->product and bf16 as at init. workspace:
 * gemm->workspace_bytes, of this stream alone. */
int sfc_cuda_gemm_run(const struct sfc_cuda_gemm *gemm, const struct sfc_cuda *cuda,
                      const struct sfc_cuda_gemm_shape *shape, const void *a, const void *b,
                      void *c, void *workspace, cudaStream_t stream, struct sfc_error *err);

#endif

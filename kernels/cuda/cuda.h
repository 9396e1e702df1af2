/* The CUDA backend's device (private). Every call of CUDA or cuBLASLt goes through sfc_cuda_check
 * or sfc_cublas_check, which name the call, the device and what to do. */
#ifndef SFC_KERNELS_CUDA_CUDA_H
#define SFC_KERNELS_CUDA_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "kernels/backend_impl.h"

#define SFC_CUDA_LANES 2 /* streams that work on tiles in turn */

struct sfc_cuda {
    struct sfc_backend base;
    int device;
    char label[128];     /* "cuda:0 (NVIDIA H100 80GB HBM3)": for messages */
    char numerics[256];  /* see sfc_backend_numerics */
    int capability;      /* 10 * major + minor */
    bool has_bf16;       /* products of bf16: capability 80 and above */
    bool fuses;          /* kernels/cuda/fused.h */
    size_t total_bytes;  /* of the device's memory */
    cudaStream_t stream; /* everything that is not a tile of a pass */
    cudaStream_t lane[SFC_CUDA_LANES];
    cublasLtHandle_t blas;
};

/* SFC_OK, or SFC_EDEVICE (SFC_ENOMEM for out of memory) with the call, its place, the device,
 * CUDA's words and advice. what: the call, e.g. "cudaMemcpyAsync of a block". */
int sfc_cuda_check(const struct sfc_cuda *cuda, cudaError_t status, const char *what,
                   struct sfc_error *err);
int sfc_cublas_check(const struct sfc_cuda *cuda, cublasStatus_t status, const char *what,
                     struct sfc_error *err);
/* Makes the device the calling thread's: first thing in every entry point (threads of a daemon call
 * in turn). */
int sfc_cuda_enter(const struct sfc_cuda *cuda, struct sfc_error *err);
/* Bytes of the device's memory that are free now. */
int sfc_cuda_free_bytes(const struct sfc_cuda *cuda, size_t *out, struct sfc_error *err);

#endif

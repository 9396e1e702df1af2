/* The CUDA backend: its device, its streams, its name, and what it says when CUDA refuses. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/head.h"

/* Changes whenever the same inputs give other bits on the same device with the same libraries:
 * order of sums, chunks, formulas. */
#define NUMERICS_VERSION 2
#define MIN_CAPABILITY   75
#define MAX_COMPILED     90 /* beyond, the driver compiles from PTX */

/* ---- errors */

static const char *advice(cudaError_t status)
{
    switch (status) {
    case cudaErrorMemoryAllocation:
        return "other programs may use the device: see nvidia-smi; lower --memory, add shards, or "
               "make the run smaller";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
        return "the device is lost to this process: start it again, and look for Xid lines in the "
               "kernel log";
    default:
        return "see nvidia-smi and the kernel log; start the process again";
    }
}

int sfc_cuda_check(const struct sfc_cuda *cuda, cudaError_t status, const char *what,
                   struct sfc_error *err)
{
    if (status == cudaSuccess)
        return SFC_OK;
    cudaGetLastError(); /* else the next launch that is asked about reports it again */
    return sfc_fail(err, status == cudaErrorMemoryAllocation ? SFC_ENOMEM : SFC_EDEVICE,
                    "%s: %s: %s (CUDA error %d); %s", cuda->label, what, cudaGetErrorString(status),
                    (int)status, advice(status));
}

int sfc_cublas_check(const struct sfc_cuda *cuda, cublasStatus_t status, const char *what,
                     struct sfc_error *err)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return SFC_OK;
    bool memory = status == CUBLAS_STATUS_ALLOC_FAILED;
    return sfc_fail(err, memory ? SFC_ENOMEM : SFC_EDEVICE, "%s: %s: %s (cuBLAS status %d); %s",
                    cuda->label, what, cublasLtGetStatusString(status), (int)status,
                    advice(memory ? cudaErrorMemoryAllocation : cudaErrorUnknown));
}

int sfc_cuda_enter(const struct sfc_cuda *cuda, struct sfc_error *err)
{
    cudaGetLastError(); /* of what was given back: the next launch would report it as its own */
    return sfc_cuda_check(cuda, cudaSetDevice(cuda->device), "cudaSetDevice", err);
}

int sfc_cuda_free_bytes(const struct sfc_cuda *cuda, size_t *out, struct sfc_error *err)
{
    size_t free_bytes = 0, total = 0;
    int rc = sfc_cuda_enter(cuda, err);
    if (rc == SFC_OK)
        rc = sfc_cuda_check(cuda, cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo", err);
    if (rc == SFC_OK)
        *out = free_bytes;
    return rc;
}

/* ---- the backend's own operations */

static void cuda_close(struct sfc_backend *backend)
{
    struct sfc_cuda *cuda = (struct sfc_cuda *)backend;
    cudaSetDevice(cuda->device); /* streams know theirs: they are given back whatever it says */
    if (cuda->blas)
        cublasLtDestroy(cuda->blas);
    for (int i = 0; i < SFC_CUDA_LANES; i++)
        if (cuda->lane[i])
            cudaStreamDestroy(cuda->lane[i]);
    if (cuda->stream)
        cudaStreamDestroy(cuda->stream);
    free(cuda);
}

static const char *cuda_numerics(const struct sfc_backend *backend)
{
    return ((const struct sfc_cuda *)backend)->numerics;
}

static int cuda_device_memory(const struct sfc_backend *backend, struct sfc_device_memory *out,
                              struct sfc_error *err)
{
    const struct sfc_cuda *cuda = (const struct sfc_cuda *)backend;
    size_t free_bytes = 0;
    int rc = sfc_cuda_free_bytes(cuda, &free_bytes, err);
    if (rc == SFC_OK)
        *out =
            (struct sfc_device_memory){.total_bytes = cuda->total_bytes, .free_bytes = free_bytes};
    return rc;
}

static const struct sfc_backend_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .numerics = cuda_numerics,
    .device_memory = cuda_device_memory,
    .head_ceilings = sfc_cuda_head_ceilings,
    .head_ceilings_memory = sfc_cuda_head_ceilings_memory,
    .head_check = sfc_cuda_head_check,
    .head_memory = sfc_cuda_head_memory,
    .head_new = sfc_cuda_head_new,
    .head_free = sfc_cuda_head_free,
    .head_read = sfc_cuda_head_read,
    .head_write = sfc_cuda_head_write,
    .head_read_rows = sfc_cuda_head_read_rows,
    .head_write_rows = sfc_cuda_head_write_rows,
    .head_rearrange = sfc_cuda_head_rearrange,
    .head_plan = sfc_cuda_head_plan,
    .head_sample = sfc_cuda_head_sample,
    .head_logits = sfc_cuda_head_logits,
    .head_gradient = sfc_cuda_head_gradient,
    .head_commit = sfc_cuda_head_commit,
    .head_finite = sfc_cuda_head_finite,
    .head_inverse_norms = sfc_cuda_head_inverse_norms,
    .head_extents = sfc_cuda_head_extents,
    .dense_memory = sfc_cuda_dense_memory,
    .dense_new = sfc_cuda_dense_new,
    .dense_free = sfc_cuda_dense_free,
    .dense_read = sfc_cuda_dense_read,
    .dense_write = sfc_cuda_dense_write,
    .dense_push = sfc_cuda_dense_push,
    .dense_pull = sfc_cuda_dense_pull,
    .dense_prepare = sfc_cuda_dense_prepare,
    .dense_sums = sfc_cuda_dense_sums,
    .dense_load = sfc_cuda_dense_load,
    .dense_extents = sfc_cuda_dense_extents,
    .dense_commit = sfc_cuda_dense_commit,
};

/* ---- opening */

/* Whatever CUDA says before a device works means that there is none. */
static int no_gpu(unsigned device, cudaError_t status, const char *call, struct sfc_error *err)
{
    const char *what =
        status == cudaErrorInsufficientDriver
            ? "install NVIDIA's driver, of a version for CUDA 13 or later (nvidia-smi shows it)"
            : "check that nvidia-smi shows the device, that this user may open /dev/nvidia*, and "
              "CUDA_VISIBLE_DEVICES; or use --backend cpu";
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "backend 'cuda': no usable GPU: %s (error %d of %s, device %u); %s",
                    cudaGetErrorString(status), (int)status, call, device, what);
}

static int find_device(unsigned device, struct sfc_error *err)
{
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess)
        return no_gpu(device, status, "cudaGetDeviceCount", err);
    if (count < 1)
        return no_gpu(device, cudaErrorNoDevice, "cudaGetDeviceCount", err);
    if (device >= (unsigned)count)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend 'cuda': no usable GPU %u: the last one is cuda:%d "
                        "(CUDA_VISIBLE_DEVICES hides others); give one of cuda:0..%d",
                        device, count - 1, count - 1);
    status = cudaSetDevice((int)device);
    if (status == cudaSuccess)
        status = cudaFree(NULL); /* makes the context, which fails where the device is taken */
    return status == cudaSuccess ? SFC_OK : no_gpu(device, status, "cudaSetDevice", err);
}

/* Numerics class, to which name_algorithms adds the algorithms of the products. */
static void name_numerics(struct sfc_cuda *cuda, const char *device)
{
    char name[64];
    size_t version = cublasLtGetVersion();
    int driver = 0, n;
    snprintf(name, sizeof name, "%.63s", device);
    for (char *c = name; *c; c++)
        *c = *c == ' ' ? '-' : *c;
    n = snprintf(cuda->numerics, sizeof cuda->numerics, "cuda sm_%d %s cublaslt-%zu.%zu.%zu n%d",
                 cuda->capability, name, version / 10000, version / 100 % 100, version % 100,
                 NUMERICS_VERSION);
    if (cuda->capability > MAX_COMPILED && cudaDriverGetVersion(&driver) == cudaSuccess)
        snprintf(cuda->numerics + n, sizeof cuda->numerics - (size_t)n, " compiled-by-driver-%d.%d",
                 driver / 1000, driver / 10 % 100);
}

static int look_at(struct sfc_cuda *cuda, struct sfc_error *err)
{
    struct cudaDeviceProp properties;
    int rc = sfc_cuda_check(cuda, cudaGetDeviceProperties(&properties, cuda->device),
                            "cudaGetDeviceProperties", err);
    if (rc != SFC_OK)
        return rc;
    snprintf(cuda->label, sizeof cuda->label, "cuda:%d (%.100s)", cuda->device, properties.name);
    cuda->capability = 10 * properties.major + properties.minor;
    cuda->has_bf16 = cuda->capability >= 80;
    cuda->fuses = sfc_cuda_fused_usable(cuda->capability);
    cuda->total_bytes = properties.totalGlobalMem;
    if (cuda->capability < MIN_CAPABILITY)
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "backend 'cuda': no usable GPU: %s has compute capability %d.%d, the least "
                        "is %d.%d; use another device (cuda:N) or --backend cpu",
                        cuda->label, properties.major, properties.minor, MIN_CAPABILITY / 10,
                        MIN_CAPABILITY % 10);
    name_numerics(cuda, properties.name);
    return SFC_OK;
}

static int open_streams(struct sfc_cuda *cuda, struct sfc_error *err)
{
    int rc = sfc_cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking),
                            "cudaStreamCreate", err);
    for (int i = 0; rc == SFC_OK && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->lane[i], cudaStreamNonBlocking),
                            "cudaStreamCreate of a lane", err);
    if (rc == SFC_OK)
        rc = sfc_cublas_check(cuda, cublasLtCreate(&cuda->blas), "cublasLtCreate", err);
    return rc;
}

static int name_algorithms(struct sfc_cuda *cuda, struct sfc_error *err)
{
    uint32_t fingerprint = 0;
    size_t n = strlen(cuda->numerics);
    int rc = sfc_cuda_gemm_fingerprint(cuda, &fingerprint, err);
    if (rc == SFC_OK)
        snprintf(cuda->numerics + n, sizeof cuda->numerics - n, " products-%08x%s", fingerprint,
                 cuda->fuses ? " fused" : "");
    return rc;
}

int sfc_backend_cuda_open(unsigned device, unsigned threads, struct sfc_backend **out,
                          struct sfc_error *err)
{
    (void)threads; /* the device has its own */
    int rc = find_device(device, err);
    if (rc != SFC_OK)
        return rc;
    struct sfc_cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda)
        return sfc_fail(err, SFC_ENOMEM, "backend 'cuda': out of memory");
    cuda->base.ops = &cuda_ops;
    cuda->device = (int)device;
    snprintf(cuda->label, sizeof cuda->label, "cuda:%u", device);
    rc = look_at(cuda, err);
    if (rc == SFC_OK)
        rc = open_streams(cuda, err);
    if (rc == SFC_OK)
        rc = name_algorithms(cuda, err);
    if (rc != SFC_OK) {
        cuda_close(&cuda->base);
        return rc;
    }
    *out = &cuda->base;
    return SFC_OK;
}

int sfc_backend_cuda_open_linked(unsigned threads, struct sfc_backend **out, struct sfc_error *err)
{
    return sfc_backend_cuda_open(0, threads, out, err);
}

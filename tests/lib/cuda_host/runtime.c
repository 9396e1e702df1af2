#include "tests/lib/cuda_host/internal.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

/* ---- the device: one, with few multiprocessors, of the kind that the backend is made for */

static cudaError_t check_device(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

static cudaError_t number(int *out, int value)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc)
        *out = value;
    return sfc_host_return(rc);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    return number(version, CUDART_VERSION);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return number(version, CUDART_VERSION);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    return number(count, 1);
}

cudaError_t cudaGetDevice(int *device)
{
    return number(device, 0);
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    return sfc_host_return(rc ? rc : check_device(device));
}

cudaError_t cudaInitDevice(int device, unsigned flags, unsigned more)
{
    (void)flags, (void)more;
    return cudaSetDevice(device);
}

cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    (void)flags;
    return sfc_host_return(sfc_host_call(cudaErrorUnknown));
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device)
{
    size_t free_bytes, total;
    cudaError_t rc = cudaMemGetInfo(&free_bytes, &total);
    rc = rc ? rc : check_device(device);
    if (!rc)
        *out = (struct cudaDeviceProp){
            .name = "Emulated GPU",
            .totalGlobalMem = total,
            .sharedMemPerBlock = (size_t)48 << 10,
            .regsPerBlock = 65536,
            .warpSize = 32,
            .maxThreadsPerBlock = 1024,
            .major = 9,
            .multiProcessorCount = 3,
            .memoryBusWidth = 5120,
            .l2CacheSize = 1 << 20,
            .maxThreadsPerMultiProcessor = 2048,
        };
    return rc;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp p;
    cudaError_t rc = cudaGetDeviceProperties(&p, device);
    if (!rc)
        *value = attribute == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
                 : attribute == cudaDevAttrComputeCapabilityMajor ? p.major
                                                                  : p.minor;
    return rc;
}

/* ---- copies */

struct copy {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
    char *staged; /* what the source was, where the host may change it at once; else NULL */
};

static size_t extent(size_t pitch, size_t width, size_t height)
{
    return width && height ? pitch * (height - 1) + width : 0;
}

static void do_copy(void *arg)
{
    const struct copy *c = arg;
    sfc_host_place(c->to, extent(c->to_pitch, c->width, c->height), "copy to");
    if (!c->staged)
        sfc_host_place(c->from, extent(c->from_pitch, c->width, c->height), "copy from");
    for (size_t i = 0; i < c->height; i++)
        memcpy(c->to + i * c->to_pitch, c->from + i * c->from_pitch, c->width);
}

static void drop_copy(void *arg)
{
    struct copy *c = arg;
    free(c->staged);
    free(c);
}

static bool fits(enum cudaMemcpyKind kind, enum sfc_host_place to, enum sfc_host_place from)
{
    bool to_device = to == SFC_HOST_DEVICE, from_device = from == SFC_HOST_DEVICE;
    return kind == cudaMemcpyDefault ||
           ((kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) == to_device &&
            (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) == from_device);
}

static void stage(struct copy *c)
{
    size_t bytes = extent(c->from_pitch, c->width, c->height);
    c->staged = malloc(bytes);
    if (!c->staged)
        sfc_host_die("no memory");
    for (size_t i = 0; i < c->height; i++)
        memcpy(c->staged + i * c->from_pitch, c->from + i * c->from_pitch, c->width);
    c->from = c->staged;
}

static cudaError_t copy(struct copy c, enum cudaMemcpyKind kind, cudaStream_t stream, bool wait)
{
    enum sfc_host_place to, from;
    if (c.width == 0 || c.height == 0)
        return cudaSuccess;
    to = sfc_host_place(c.to, extent(c.to_pitch, c.width, c.height), "copy to");
    from = sfc_host_place(c.from, extent(c.from_pitch, c.width, c.height), "copy from");
    if (!fits(kind, to, from))
        return cudaErrorInvalidMemcpyDirection;
    if (c.height > 1 && (c.width > c.to_pitch || c.width > c.from_pitch))
        return cudaErrorInvalidValue;
    if (from == SFC_HOST_PAGEABLE)
        stage(&c);
    struct copy *own = malloc(sizeof *own);
    if (!own)
        sfc_host_die("no memory");
    *own = c;
    sfc_host_enqueue(stream, do_copy, drop_copy, own);
    if (stream && (wait || to == SFC_HOST_PAGEABLE))
        sfc_host_drain(stream);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    struct copy c = {to, from, to_pitch, from_pitch, width, height, NULL};
    return sfc_host_return(rc ? rc : copy(c, kind, stream, false));
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind)
{
    return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, NULL);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

struct fill {
    char *to;
    int value;
    size_t pitch, width, height;
};

static void do_fill(void *arg)
{
    const struct fill *f = arg;
    if (sfc_host_place(f->to, extent(f->pitch, f->width, f->height), "cudaMemset") ==
        SFC_HOST_PAGEABLE)
        sfc_host_die("cudaMemset of %p, which is no memory of the device", (void *)f->to);
    for (size_t i = 0; i < f->height; i++)
        memset(f->to + i * f->pitch, f->value, f->width);
}

cudaError_t cudaMemset2DAsync(void *device, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (rc || width == 0 || height == 0)
        return sfc_host_return(rc);
    struct fill *f = malloc(sizeof *f);
    if (!f)
        sfc_host_die("no memory");
    *f = (struct fill){device, value, pitch, width, height};
    return sfc_host_return(sfc_host_enqueue(stream, do_fill, free, f));
}

cudaError_t cudaMemsetAsync(void *device, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset2DAsync(device, bytes, value, bytes, 1, stream);
}

cudaError_t cudaMemset(void *device, int value, size_t bytes)
{
    return cudaMemsetAsync(device, value, bytes, NULL);
}

/* ---- launches */

struct started {
    struct sfc_host_launch launch;
    void (*drop)(void *arg);
};

static void do_launch(void *arg)
{
    const struct started *s = arg;
    sfc_host_run_grid(&s->launch);
}

static void drop_launch(void *arg)
{
    struct started *s = arg;
    s->drop(s->launch.arg);
    free(s);
}

static bool possible(struct sfc_cuda_dim3 grid, struct sfc_cuda_dim3 block)
{
    return grid.x >= 1 && grid.x <= INT32_MAX && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
           grid.z <= 65535 && block.x >= 1 && block.x <= 1024 && block.y >= 1 && block.y <= 1024 &&
           block.z >= 1 && block.z <= 64 && block.x * block.y * block.z <= 1024;
}

void sfc_cuda_launch(const char *name, struct sfc_cuda_dim3 grid, struct sfc_cuda_dim3 block,
                     cudaStream_t stream, void (*run)(void *arg), void (*drop)(void *arg),
                     void *arg)
{
    cudaError_t rc = sfc_host_call(cudaErrorLaunchFailure);
    rc = rc ? rc : possible(grid, block) ? cudaSuccess : cudaErrorInvalidConfiguration;
    if (rc) {
        drop(arg);
        sfc_host_return(rc);
        return;
    }
    struct started *s = malloc(sizeof *s);
    if (!s)
        sfc_host_die("no memory");
    *s = (struct started){{name, grid, block, run, arg}, drop};
    sfc_host_count_launch();
    sfc_host_return(sfc_host_enqueue(stream, do_launch, drop_launch, s));
}

/* ---- cuBLASLt but for its products (gemm.c) */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (!rc) {
        *out = malloc(1);
        if (!*out)
            sfc_host_die("no memory");
        sfc_host_count(0, 0, 0, 0, 1);
    }
    sfc_host_return(cudaSuccess); /* it has statuses of its own */
    return rc ? CUBLAS_STATUS_ALLOC_FAILED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    cudaError_t rc = sfc_host_call(cudaErrorUnknown);
    if (handle)
        sfc_host_count(0, 0, 0, 0, -1);
    free(handle);
    sfc_host_return(cudaSuccess);
    return rc ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return 130000;
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_ALLOC_FAILED";
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "the library was not initialized";
}

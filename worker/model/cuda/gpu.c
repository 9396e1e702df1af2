#include "worker/model/cuda/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model/cuda/products.h"

#define MIN_CAPABILITY      75
#define MIN_BF16_CAPABILITY 80
/* Changes whenever the same inputs give other bits on the same device with the same libraries. */
#define NUMERICS_VERSION 1

const char *sfc_gpu_advice(cudaError_t status)
{
    switch (status) {
    case cudaErrorMemoryAllocation:
        return "other programs may use the device: see nvidia-smi; give fewer --threads, or make "
               "the run's micro-batch smaller";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
        return "the device is lost to this process: start it again, and look for Xid lines in the "
               "kernel log";
    default:
        return "see nvidia-smi and the kernel log; start the process again";
    }
}

int sfc_gpu_check(const struct sfc_gpu *gpu, cudaError_t status, const char *what,
                  struct sfc_error *err)
{
    if (status == cudaSuccess) {
        return SFC_OK;
    }
    cudaGetLastError(); /* told once: the check of the next launch is about that launch */
    return sfc_fail(err, status == cudaErrorMemoryAllocation ? SFC_ENOMEM : SFC_EDEVICE,
                    "%s: %s: %s (CUDA error %d); %s", gpu->label, what, cudaGetErrorString(status),
                    (int)status, sfc_gpu_advice(status));
}

int sfc_gpu_enter(const struct sfc_gpu *gpu, struct sfc_error *err)
{
    return sfc_gpu_check(gpu, cudaSetDevice(gpu->device), "cudaSetDevice", err);
}

static void gpu_close(const struct sfc_lane_device *device)
{
    union {
        const struct sfc_lane_device *read;
        void *made;
    } u = {.read = device}; /* sfc_gpu_open allocated it */
    free(u.made);
}

static void gpu_numerics(const struct sfc_lane_device *device, char *out, size_t size)
{
    const struct sfc_gpu *gpu = (const struct sfc_gpu *)device;
    char libraries[64];
    sfc_products_libraries(libraries, sizeof libraries);
    snprintf(out, size, "cuda sm_%d %.40s %s %s g%d", gpu->capability, gpu->name, libraries,
             sfc_precision_name(gpu->precision), NUMERICS_VERSION);
}

static const struct sfc_lane_device_ops gpu_ops = {
    .close = gpu_close, .numerics = gpu_numerics, .lane_new = sfc_gpu_lane_new};

static int no_device(unsigned device, const char *why, struct sfc_error *err)
{
    return sfc_fail(err, SFC_EUNSUPPORTED,
                    "device 'cuda:%u' can't be used: %s; see nvidia-smi for the devices and the "
                    "driver of this machine, or give --device cpu",
                    device, why);
}

static int find_device(unsigned device, struct cudaDeviceProp *properties, struct sfc_error *err)
{
    char why[128];
    int count = 0, driver = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
        driver == 0) {
        cudaGetLastError(); /* told once */
        return no_device(device, "this machine has no NVIDIA driver", err);
    }
    if (status == cudaSuccess && (unsigned)count <= device) {
        snprintf(why, sizeof why, "CUDA sees %d devices", count);
        return no_device(device, why, err);
    }
    if (status == cudaSuccess) {
        status = cudaGetDeviceProperties(properties, (int)device);
    }
    if (status == cudaSuccess) {
        status = cudaSetDevice((int)device);
    }
    if (status == cudaSuccess) {
        return SFC_OK;
    }
    cudaGetLastError(); /* told once */
    return no_device(device, cudaGetErrorString(status), err);
}

static int check_precision(const struct sfc_gpu *gpu, struct sfc_error *err)
{
    if (gpu->capability < MIN_CAPABILITY) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s has compute capability %d.%d; ShardFC needs 7.5 (Turing) or newer",
                        gpu->label, gpu->capability / 10, gpu->capability % 10);
    }
    if (gpu->precision == SFC_PRECISION_BF16 && gpu->capability < MIN_BF16_CAPABILITY) {
        return sfc_fail(err, SFC_EUNSUPPORTED,
                        "%s has compute capability %d.%d, which has no bf16; give --precision fp16 "
                        "or f32",
                        gpu->label, gpu->capability / 10, gpu->capability % 10);
    }
    return SFC_OK;
}

static enum sfc_number number_of(enum sfc_precision precision)
{
    switch (precision) {
    case SFC_PRECISION_BF16:
        return SFC_NUMBER_BF16;
    case SFC_PRECISION_F16:
        return SFC_NUMBER_F16;
    case SFC_PRECISION_F32:
        break;
    }
    return SFC_NUMBER_F32;
}

int sfc_gpu_open(unsigned device, enum sfc_precision precision, const struct sfc_lane_device **out,
                 struct sfc_error *err)
{
    struct cudaDeviceProp properties;
    int rc = find_device(device, &properties, err);
    if (rc != SFC_OK) {
        return rc;
    }
    struct sfc_gpu *gpu = calloc(1, sizeof *gpu);
    if (gpu == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a device");
    }
    gpu->base.ops = &gpu_ops;
    gpu->device = (int)device;
    gpu->capability = 10 * properties.major + properties.minor;
    gpu->precision = precision;
    gpu->number = number_of(precision);
    snprintf(gpu->name, sizeof gpu->name, "%.100s", properties.name);
    snprintf(gpu->label, sizeof gpu->label, "cuda:%u (%s)", device, gpu->name);
    for (char *c = gpu->name; *c != '\0'; c++) {
        *c = *c == ' ' ? '-' : *c;
    }
    rc = check_precision(gpu, err);
    if (rc != SFC_OK) {
        free(gpu);
        return rc;
    }
    *out = &gpu->base;
    return SFC_OK;
}

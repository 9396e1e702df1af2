#include "tests/lib/cuda_host/internal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    uint64_t countdown;
    bool onwards, failed;
    cudaError_t last;
    struct sfc_cuda_host_use use;
} calls;

void sfc_cuda_host_fail(uint64_t n, bool onwards)
{
    pthread_mutex_lock(&lock);
    calls.countdown = n;
    calls.onwards = onwards;
    calls.failed = false;
    pthread_mutex_unlock(&lock);
}

bool sfc_cuda_host_failed(void)
{
    return calls.failed;
}

cudaError_t sfc_host_call(cudaError_t how)
{
    pthread_mutex_lock(&lock);
    if (calls.failed && calls.onwards)
        return cudaErrorIllegalAddress;
    if (calls.countdown == 0 || --calls.countdown > 0)
        return cudaSuccess;
    calls.failed = true;
    return calls.onwards ? cudaErrorIllegalAddress : how;
}

cudaError_t sfc_host_return(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        calls.last = error;
    pthread_mutex_unlock(&lock);
    return error;
}

void sfc_host_count(int64_t allocations, int64_t bytes, int64_t streams, int64_t events,
                    int64_t handles)
{
    calls.use.allocations += (size_t)allocations;
    calls.use.device_bytes += (size_t)bytes;
    calls.use.streams += (size_t)streams;
    calls.use.events += (size_t)events;
    calls.use.handles += (size_t)handles;
}

void sfc_host_count_launch(void)
{
    calls.use.launches++;
}

struct sfc_cuda_host_use sfc_cuda_host_use(void)
{
    pthread_mutex_lock(&lock);
    struct sfc_cuda_host_use use = calls.use;
    pthread_mutex_unlock(&lock);
    return use;
}

_Noreturn void sfc_host_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("cuda emulator: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

/* Launches have no status of their own: it is here. */
cudaError_t cudaGetLastError(void)
{
    pthread_mutex_lock(&lock);
    cudaError_t last = calls.last;
    calls.last = cudaSuccess;
    pthread_mutex_unlock(&lock);
    return last;
}

cudaError_t cudaPeekAtLastError(void)
{
    pthread_mutex_lock(&lock);
    cudaError_t last = calls.last;
    pthread_mutex_unlock(&lock);
    return last;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

static size_t error_index(cudaError_t error)
{
    size_t i = 0;
    while (i + 1 < sizeof errors / sizeof *errors && errors[i].error != error)
        i++;
    return i;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return errors[error_index(error)].name;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return errors[error_index(error)].text;
}

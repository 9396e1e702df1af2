/* Between the parts of tests/lib/cuda_host. */
#ifndef SFC_TESTS_CUDA_HOST_INTERNAL_H
#define SFC_TESTS_CUDA_HOST_INTERNAL_H

#include <cuda_runtime_api.h>

#include "tests/lib/cuda_host/cuda_host.h"
#include "tests/lib/cuda_host/device.h"

/* ---- orders (order.c): one sequence of random numbers for everything */
bool sfc_host_in_order(void);
uint64_t sfc_host_random(void);

/* ---- fibers (fiber.c): stacks that take turns on one thread. The one who calls is the scheduler.
 */
struct sfc_fiber;
/* A fiber that begins with run(arg) when it is entered; from a pool that only grows. */
struct sfc_fiber *sfc_fiber_take(void (*run)(void *arg), void *arg);
/* Runs it until it yields or its run returns; then it is back in the pool and true is returned. */
bool sfc_fiber_enter(struct sfc_fiber *fiber);
/* In a fiber: back to the scheduler. */
void sfc_fiber_yield(void);

/* ---- grids (grid.c) */
struct sfc_host_launch {
    const char *name;
    struct sfc_cuda_dim3 grid, block;
    void (*run)(void *arg);
    void *arg;
};
/* All blocks, one after the other. */
void sfc_host_run_grid(const struct sfc_host_launch *launch);

/* ---- memory (memory.c) */
enum sfc_host_place { SFC_HOST_PAGEABLE, SFC_HOST_PINNED, SFC_HOST_DEVICE };
/* Where the address lies; with bytes > what is left of its allocation the process ends. */
enum sfc_host_place sfc_host_place(const void *address, size_t bytes, const char *what);
/* Around everything that runs on the device. */
void sfc_host_device_begin(void);
void sfc_host_device_end(void);
void sfc_host_poison(void *memory, size_t bytes);

/* ---- calls (calls.c) */
/* First thing in a call that can fail: takes the lock and says whether to fail, with `how` or,
 * from the n-th onwards, with the error of a lost device. */
cudaError_t sfc_host_call(cudaError_t how);
/* Last thing: keeps the error for cudaGetLastError and releases the lock. */
cudaError_t sfc_host_return(cudaError_t error);
void sfc_host_count(int64_t allocations, int64_t bytes, int64_t streams, int64_t events,
                    int64_t handles);
void sfc_host_count_launch(void);
/* Ends the process: a bug was found. */
_Noreturn void sfc_host_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- products (gemm.c); with the lock: one of the shape into memory of the host */
struct sfc_cuda_gemm_shape;
void sfc_host_product(const struct sfc_cuda_gemm_shape *shape, const void *a, const void *b,
                      float *c, cudaStream_t stream);

/* ---- streams (stream.c); with the lock */
/* run(arg), then free(arg) in the stream's order. */
cudaError_t sfc_host_enqueue(cudaStream_t stream, void (*run)(void *arg), void (*drop)(void *arg),
                             void *arg);
/* Until the stream is empty; NULL: everything of every stream. */
void sfc_host_drain(cudaStream_t stream);

#endif

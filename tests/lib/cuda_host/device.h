/* What a kernel sees of the grid that it is part of (C and C++). */
#ifndef SFC_TESTS_CUDA_HOST_DEVICE_H
#define SFC_TESTS_CUDA_HOST_DEVICE_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sfc_cuda_dim3 {
    unsigned x, y, z;
};
struct sfc_cuda_grid {
    struct sfc_cuda_dim3 block, threads, blocks;
};
struct sfc_cuda_place {
    struct sfc_cuda_dim3 thread;
    unsigned lane; /* of the warp */
};
extern struct sfc_cuda_grid sfc_cuda_grid;
extern const struct sfc_cuda_place *sfc_cuda_here;

enum sfc_cuda_meeting {
    SFC_CUDA_SYNCTHREADS,
    SFC_CUDA_SYNCWARP,
    SFC_CUDA_SHFL,
    SFC_CUDA_SHFL_UP,
    SFC_CUDA_SHFL_DOWN,
    SFC_CUDA_SHFL_XOR,
    SFC_CUDA_BALLOT,
    SFC_CUDA_ANY,
    SFC_CUDA_ALL
};

/* Waits for the whole block. */
void sfc_cuda_meet_block(const char *file, int line);
/* Waits for the whole warp; returns what each of the 32 lanes gave. Valid until the lane's next
 * meeting. */
const uint64_t *sfc_cuda_meet_warp(enum sfc_cuda_meeting kind, unsigned mask, uint64_t value,
                                   const char *file, int line);
/* The block's shared array of this key. */
void *sfc_cuda_shared(const void *key, size_t bytes);

/* Starts a grid: run(arg) in every thread, drop(arg) after the last. name: must stay. */
void sfc_cuda_launch(const char *name, struct sfc_cuda_dim3 grid, struct sfc_cuda_dim3 block,
                     cudaStream_t stream, void (*run)(void *arg), void (*drop)(void *arg),
                     void *arg);
/* A pointer that a kernel is given must be one of the device (or pinned, or NULL); else the process
 * ends. */
void sfc_cuda_check_pointer(const char *name, const void *pointer);

#ifdef __cplusplus
}
#endif

#endif

/* What every file of device code begins with. */
#ifndef SFC_KERNELS_CUDA_LAUNCH_H
#define SFC_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#ifndef SFC_LAUNCH /* the emulator of the tests has its own */
#define SFC_LAUNCH(kernel, grid, block, stream, ...)                                               \
    kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)

/* 2^x, relative error 2^-22; denormal results are kept. */
__device__ static inline float sfc_exp2_fast(float x)
{
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

#endif

/* Kernels over rows x channels: which of both a thread has, and the sums of a block over its rows.
 */
#ifndef SFC_WORKER_MODEL_CUDA_ROWS_CUH
#define SFC_WORKER_MODEL_CUDA_ROWS_CUH

#include "worker/model/cuda/number.cuh"

/* This thread's first channel; what is at or beyond `channels` has nothing to do. */
template <int Width> __device__ static inline uint32_t sfc_own_channel(void)
{
    return (blockIdx.y * blockDim.x + threadIdx.x) * Width;
}

/* sums[i * stride] of the thread's Width channels, first at out, = the block's sum of `mine` over
 * its lines, in their order. buffer: SFC_BLOCK_THREADS * Width floats that the block shares. The
 * whole block calls it. */
template <int Width>
__device__ static inline void sfc_sum_lines(const float *mine, float *buffer, uint32_t channels,
                                            double *out)
{
    uint32_t wide = blockDim.x * Width, line = threadIdx.y * wide + threadIdx.x * Width;
    uint32_t rank = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Width; i++)
        buffer[line + i] = mine[i];
    __syncthreads();
    for (uint32_t at = rank; at < wide; at += blockDim.x * blockDim.y) {
        uint32_t channel = blockIdx.y * wide + at;
        if (channel >= channels)
            continue;
        double sum = 0;
        for (uint32_t y = 0; y < blockDim.y; y++)
            sum += (double)buffer[y * wide + at];
        out[channel] = sum;
    }
}

#define SFC_FINISH_CHANNELS 32
#define SFC_FINISH_LINES    16

/* The sum of part[chunk * stride] over chunks, for a block of SFC_FINISH_CHANNELS x
 * SFC_FINISH_LINES threads: every line sums each 16th chunk, then the lines are summed in their
 * order. Valid in line 0. buffer: one double per thread. The whole block calls it. */
__device__ static inline double sfc_sum_chunks(const double *part, bool mine, uint32_t chunks,
                                               size_t stride, double *buffer)
{
    double sum = 0;
    if (mine)
        for (uint32_t k = threadIdx.y; k < chunks; k += SFC_FINISH_LINES)
            sum += part[k * stride];
    __syncthreads();
    buffer[threadIdx.y * SFC_FINISH_CHANNELS + threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    if (threadIdx.y == 0)
        for (uint32_t y = 0; y < SFC_FINISH_LINES; y++)
            sum += buffer[y * SFC_FINISH_CHANNELS + threadIdx.x];
    return sum;
}

static inline dim3 sfc_finish_grid(uint32_t items)
{
    return dim3((items + SFC_FINISH_CHANNELS - 1) / SFC_FINISH_CHANNELS);
}

static inline dim3 sfc_finish_block(void)
{
    return dim3(SFC_FINISH_CHANNELS, SFC_FINISH_LINES);
}

#endif

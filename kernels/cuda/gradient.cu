/* Pass 2: z of a tile to p, and the tile's part of dx. */
#include "kernels/cuda/record.cuh"

#include "kernels/hd/cosine.h"
#include "kernels/hd/exact.h"

#define LOG2_E 1.44269504088896340736
#define LANES  32
#define ROWS   8
#define WIDTH  8 /* columns of a thread: 16 bytes of 16-bit numbers */
#define SPAN   (LANES * WIDTH)

/* ---- p in the place of z */

template <bool HALF>
__device__ static inline void load_kept(const void *z, size_t at, float scale, float *logit,
                                        bool *counts)
{
    if (HALF) {
        uint4 u = *(const uint4 *)(const void *)((const int16_t *)z + at);
        const uint32_t pair[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            int16_t q = (int16_t)(pair[i / 2] >> (i % 2 * 16));
            logit[i] = sfc_hd_cosine_logit(q, scale / SFC_COSINE_ONE);
            counts[i] = q != SFC_COSINE_FILTERED;
        }
    } else {
        struct sfc_eight e = sfc_load_floats((const float *)z + at);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            logit[i] = e.v[i];
            counts[i] = __float_as_uint(e.v[i]) != 0x80000000u; /* -0: filtered */
        }
    }
}

template <bool HALF> __global__ static void softmax_strip(struct sfc_cuda_softmax s)
{
    uint32_t lane = threadIdx.x % LANES, thread_row = threadIdx.x / LANES;
    uint32_t chunk = blockIdx.x / s.strips, strip = blockIdx.x % s.strips;
    uint32_t begin = strip * SFC_CUDA_STRIP;
    uint32_t end = begin + SFC_CUDA_STRIP < s.chunk ? begin + SFC_CUDA_STRIP : s.chunk;
    uint32_t at = blockIdx.y * SPAN + lane * WIDTH, column = s.columns.first + at;
    if (at >= s.columns.count)
        return;
    struct sfc_eight high = sfc_load_floats(s.high + column), low = sfc_load_floats(s.low + column);
    int32_t target[WIDTH];
    bool finite = true;
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
        target[i] = s.column_target[column + i];
    for (uint32_t p = begin + thread_row; p < end; p += ROWS) {
        size_t position = (size_t)chunk * s.chunk + p, z = position * s.columns.all + column;
        float add = s.add[position], shift = add * (float)LOG2_E;
        float logit[WIDTH];
        bool counts[WIDTH];
        struct sfc_eight out;
        load_kept<HALF>(s.z, z, s.scale, logit, counts);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            float x = logit[i] * (float)LOG2_E + shift;
            float probability = counts[i] ? sfc_exp2_fast((x - high.v[i]) - low.v[i]) : 0.0f;
            if (target[i] == (int32_t)(s.first + position))
                probability = s.target_p[column + i];
            out.v[i] = probability;
            finite = finite && isfinite(out.v[i]);
        }
        if (HALF)
            sfc_store_nearest((uint16_t *)s.z + z, out);
        else
            sfc_store_floats((float *)s.z + z, out);
    }
    if (!finite)
        s.not_finite[column / s.mp] = 1;
}

extern "C" cudaError_t sfc_cuda_softmax_tile(const struct sfc_cuda_softmax *s, size_t chunks,
                                             cudaStream_t stream)
{
    dim3 grid((unsigned)chunks * s->strips, (s->columns.count + SPAN - 1) / SPAN);
    if (s->half)
        SFC_LAUNCH(softmax_strip<true>, grid, LANES * ROWS, stream, *s);
    else
        SFC_LAUNCH(softmax_strip<false>, grid, LANES * ROWS, stream, *s);
    return cudaGetLastError();
}

/* ---- dx */

#define DX_THREADS 256

struct add_dx {
    const float *product;
    size_t chunks, numbers; /* columns * pitch */
    unsigned long long *dx;
};

__global__ static void add_dx(struct add_dx call)
{
    size_t at = ((size_t)blockIdx.x * DX_THREADS + threadIdx.x) * 4;
    if (at >= call.numbers)
        return;
    int64_t sum[4] = {0, 0, 0, 0};
    for (size_t chunk = 0; chunk < call.chunks; chunk++) {
        float4 v = *(const float4 *)(call.product + chunk * call.numbers + at);
        sum[0] += sfc_hd_dx_to_fixed(v.x);
        sum[1] += sfc_hd_dx_to_fixed(v.y);
        sum[2] += sfc_hd_dx_to_fixed(v.z);
        sum[3] += sfc_hd_dx_to_fixed(v.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        atomicAdd(call.dx + at + i, (unsigned long long)sum[i]);
}

extern "C" cudaError_t sfc_cuda_add_dx(const float *product, size_t chunks, uint32_t pitch,
                                       const struct sfc_cuda_columns *columns,
                                       unsigned long long *dx, cudaStream_t stream)
{
    size_t numbers = (size_t)columns->count * pitch;
    struct add_dx call = {product, chunks, numbers, dx + (size_t)columns->first * pitch};
    SFC_LAUNCH(add_dx, (unsigned)((numbers / 4 + DX_THREADS - 1) / DX_THREADS), DX_THREADS, stream,
               call);
    return cudaGetLastError();
}

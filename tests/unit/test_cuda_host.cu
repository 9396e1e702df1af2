#include "kernels/cuda/launch.h"
#include "tests/unit/test_cuda_host.h"

#define FULL 0xffffffffu

__global__ static void __launch_bounds__(256) reverse(const unsigned *in, unsigned *out)
{
    __shared__ unsigned kept[256];
    kept[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = kept[255 - threadIdx.x];
}

cudaError_t launch_reverse(unsigned blocks, const unsigned *in, unsigned *out, cudaStream_t stream)
{
    SFC_LAUNCH(reverse, blocks, 256, stream, in, out);
    return cudaGetLastError();
}

__global__ static void racing_reverse(const unsigned *in, unsigned *out)
{
    __shared__ unsigned kept[256];
    kept[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = kept[255 - threadIdx.x];
}

cudaError_t launch_racing_reverse(const unsigned *in, unsigned *out, cudaStream_t stream)
{
    SFC_LAUNCH(racing_reverse, 1, 256, stream, in, out);
    return cudaGetLastError();
}

__global__ static void order(unsigned *counter, unsigned *out)
{
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1u);
}

cudaError_t launch_order(unsigned blocks, unsigned threads, unsigned *counter, unsigned *out,
                         cudaStream_t stream)
{
    SFC_LAUNCH(order, blocks, threads, stream, counter, out);
    return cudaGetLastError();
}

__global__ static void warp(unsigned *out)
{
    unsigned lane = threadIdx.x, v = 100 + lane;
    out[0 * 32 + lane] = __shfl_sync(FULL, v, 7);
    out[1 * 32 + lane] = __shfl_sync(FULL, v, (int)(31 - lane));
    out[2 * 32 + lane] = __shfl_xor_sync(FULL, v, 5);
    out[3 * 32 + lane] = __shfl_up_sync(FULL, v, 3);
    out[4 * 32 + lane] = __shfl_down_sync(FULL, v, 3);
    out[5 * 32 + lane] = __ballot_sync(FULL, lane % 3 == 0);
    out[6 * 32 + lane] = (unsigned)__any_sync(FULL, lane == 9) + 2 * __any_sync(FULL, lane == 99);
    out[7 * 32 + lane] = (unsigned)__all_sync(FULL, lane < 32) + 2 * __all_sync(FULL, lane != 4);
    __syncwarp();
    out[8 * 32 + lane] = __float_as_uint(__shfl_xor_sync(FULL, (float)lane, 1));
    double wide = __shfl_down_sync(FULL, 1.0 / (1 + lane), 1);
    out[9 * 32 + lane] = (unsigned)(__double_as_longlong(wide) >> 32);
    out[10 * 32 + lane] = __shfl_sync(FULL, v, 2, 8);
    out[11 * 32 + lane] = __shfl_down_sync(FULL, v, 5, 16);
}

cudaError_t launch_warp(unsigned *out, cudaStream_t stream)
{
    SFC_LAUNCH(warp, 1, 32, stream, out);
    return cudaGetLastError();
}

template <class T> __device__ static T warp_sum(T v)
{
#pragma unroll
    for (int with = 16; with > 0; with /= 2)
        v += __shfl_xor_sync(FULL, v, with);
    return v;
}

template <class T, int THREADS> __global__ static void sums(T *out)
{
    __shared__ T part[THREADS / 32];
    T sum = warp_sum<T>(1 + blockIdx.x * THREADS + threadIdx.x);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum<T>(threadIdx.x < THREADS / 32 ? part[threadIdx.x] : 0);
        if (threadIdx.x == 0)
            out[blockIdx.x] = sum;
    }
}

cudaError_t launch_sums(unsigned blocks, unsigned long long *out, cudaStream_t stream)
{
    SFC_LAUNCH((sums<unsigned long long, 256>), blocks, 256, stream, out);
    return cudaGetLastError();
}

__global__ static void atomics(unsigned *out, unsigned long long *wide)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&out[0], i);
    atomicMax(&out[1], i * 2654435761u);
    atomicMin(&out[2], i * 2654435761u);
    atomicOr(&out[3], 1u << i % 32);
    atomicAdd((int *)&out[4], -(int)i);
    atomicAdd(&wide[0], (unsigned long long)i << 40);
    atomicMax(&wide[1], (unsigned long long)i << 40);
    atomicMin(&wide[2], (unsigned long long)(i + 1) << 40);
}

cudaError_t launch_atomics(unsigned *out, unsigned long long *wide, cudaStream_t stream)
{
    SFC_LAUNCH(atomics, 5, 64, stream, out, wide);
    return cudaGetLastError();
}

__global__ static void numbers(long long *out)
{
    out[0] = __float2ll_rn(2.5f);
    out[1] = __float2ll_rn(-3.5f);
    out[2] = __float2ll_rn(1e30f);
    out[3] = __double2ll_rn(-1e300);
    out[4] = __double2ll_rn(4503599627370497.5);
    out[5] = __float2int_rn(-0.5f);
    out[6] = __float2int_rn(3e9f);
    out[7] = __float_as_uint(-2.0f);
    out[8] = (long long)__uint_as_float(0x40490fdb);
    out[9] = __umulhi(0xdeadbeefu, 0xcafebabeu);
    out[10] = __popc(0xf0f01u);
    out[11] = __ffs(0x50u);
    out[12] = __clz(0x50u);
    out[13] = __clz(0u);
    out[14] = __double_as_longlong(1.0);
    out[15] = (long long)(sfc_exp2_fast(10) + rsqrtf(0.25f));
    out[16] = isfinite(1.0f / 0.0f * (float)blockDim.x) ? 1 : 0;
    out[17] = __ffs(0u);
    out[18] = (long long)__umul64hi(0xdeadbeefcafebabeull, 0xfeedfacefeedfaceull);
    out[19] = min(3u, 4u) * 10 + max(3u, 4u);
}

cudaError_t launch_numbers(long long *out, cudaStream_t stream)
{
    SFC_LAUNCH(numbers, 1, 1, stream, out);
    return cudaGetLastError();
}

__global__ static void shared_at_first(unsigned *out)
{
    __shared__ float tile[2][3];
    __shared__ alignas(16) unsigned short half[8];
    __shared__ unsigned alone;
    out[blockIdx.x * 3] = __float_as_uint(tile[1][2]);
    out[blockIdx.x * 3 + 1] = half[7];
    out[blockIdx.x * 3 + 2] = alone;
    tile[1][2] = 0;
    half[7] = 0;
    alone = 0;
}

cudaError_t launch_shared_at_first(unsigned blocks, unsigned *out, cudaStream_t stream)
{
    SFC_LAUNCH(shared_at_first, blocks, 1, stream, out);
    return cudaGetLastError();
}

__global__ static void add(unsigned *out, unsigned by)
{
    *out += by;
}

cudaError_t launch_add(unsigned *out, unsigned by, cudaStream_t stream)
{
    SFC_LAUNCH(add, 1, 1, stream, out, by);
    return cudaGetLastError();
}

__global__ static void diverge(enum divergence how)
{
    __shared__ unsigned kept[64];
    unsigned i = threadIdx.x;
    kept[i] = i;
    switch (how) {
    case RETURNS_BEFORE_BARRIER:
        if (i == 37)
            return;
        __syncthreads();
        break;
    case TWO_BARRIERS:
        if (i == 37)
            __syncthreads();
        else
            __syncthreads();
        break;
    case LANE_LEAVES_WARP:
        if (i != 37)
            kept[i] = __shfl_xor_sync(FULL, i, 1);
        break;
    case LANES_IN_TWO_PLACES:
        if (i < 37)
            kept[i] = __ballot_sync(FULL, 1);
        else
            kept[i] = (unsigned)__any_sync(FULL, 1);
        break;
    case PART_OF_THE_MASK:
        if (i < 16)
            __syncwarp(0xffffu);
        break;
    case BEYOND_SHARED:
        (&kept[0])[i + 1] = i;
        break;
    }
}

cudaError_t launch_divergence(enum divergence how, cudaStream_t stream)
{
    SFC_LAUNCH(diverge, 1, 64, stream, how);
    return cudaGetLastError();
}

__global__ static void nothing()
{
}

cudaError_t launch_nothing(unsigned x, unsigned y, unsigned threads, cudaStream_t stream)
{
    SFC_LAUNCH(nothing, dim3(x, y), threads, stream);
    return cudaGetLastError();
}

__global__ static void places(unsigned *out)
{
    unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[b * 24 + t] = blockIdx.x | blockIdx.y << 4 | blockIdx.z << 8 | threadIdx.x << 12 |
                      threadIdx.y << 16 | threadIdx.z << 20;
}

cudaError_t launch_places(unsigned *out, cudaStream_t stream)
{
    SFC_LAUNCH(places, dim3(2, 3, 2), dim3(4, 2, 3), stream, out);
    return cudaGetLastError();
}

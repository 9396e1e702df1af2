/* Backbone blocks: elementwise passes over tiles. */
#include "kernels/cuda/dense_tiles.h"
#include "kernels/cuda/launch.h"
#include "kernels/hd/philox.h"
#include "kernels/hd/rounding.h"

enum { THREADS = 256 };

/* ---- first values */

__global__ static void __launch_bounds__(THREADS)
    init_tile(const struct sfc_cuda_dense_tile *tiles, struct sfc_philox_key key, float *values)
{
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    const uint64_t end = tile.global + tile.length;
    for (uint64_t call = tile.global / 4 + threadIdx.x; 4 * call < end; call += THREADS) {
        float normal[4];
        sfc_hd_normal4(sfc_hd_philox(key, 0, call), normal);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t at = 4 * call + i;
            if (at >= tile.global && at < end)
                values[tile.at + (at - tile.global)] =
                    sfc_hd_add(tile.mean, sfc_hd_mul(tile.std, normal[i]));
        }
    }
}

cudaError_t sfc_cuda_dense_init(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                uint64_t seed, float *values, cudaStream_t stream)
{
    struct sfc_philox_key key = sfc_hd_stream_key(seed, SFC_STREAM_DENSE_INIT);
    SFC_LAUNCH(init_tile, (unsigned)count, THREADS, stream, tiles, key, values);
    return cudaGetLastError();
}

/* ---- sums */

__device__ static inline bool is_finite(float v)
{
    return (sfc_hd_bits(v) & 0x7f800000u) != 0x7f800000u;
}

struct add_call {
    const float *slices;
    uint64_t length;
    const uint32_t *slots;
    uint32_t micro_batches;
    float *sum;
};

__device__ static inline float add_one(const struct sfc_cuda_dense_tile &tile,
                                       const struct add_call &c, uint32_t i)
{
    const float *slice = c.slices + tile.at + i;
    float v = slice[c.slots[0] * c.length];
#pragma unroll 4
    for (uint32_t j = 1; j < c.micro_batches; j++)
        v += slice[c.slots[j] * c.length];
    if (tile.statistic)
        return v / (float)c.micro_batches;
    return tile.half && is_finite(v) ? sfc_hd_bf16_float(sfc_hd_bf16_nearest(v)) : v;
}

/* Sums over the threads as a tree, the result in thread 0. Ends with no barrier. */
__device__ static inline double tree_sum(double *part, double v)
{
    part[threadIdx.x] = v;
    for (uint32_t apart = THREADS / 2; apart; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart)
            part[threadIdx.x] += part[threadIdx.x + apart];
    }
    return part[0];
}

__global__ static void __launch_bounds__(THREADS)
    add_tile(const struct sfc_cuda_dense_tile *tiles, struct add_call c,
             struct sfc_cuda_dense_found *found)
{
    __shared__ double part[THREADS];
    __shared__ uint32_t broken;
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    double squares = 0;
    uint32_t odd = 0;
    if (threadIdx.x == 0)
        broken = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < tile.length; i += THREADS) {
        float v = add_one(tile, c, i);
        c.sum[tile.at + i] = v;
        squares += (double)v * (double)v; /* exact products */
        odd |= !is_finite(v);
    }
    if (odd)
        atomicOr(&broken, 1u);
    double sum = tree_sum(part, squares);
    if (threadIdx.x == 0) {
        found[blockIdx.x].squares = tile.statistic ? 0 : sum;
        found[blockIdx.x].broken = broken;
    }
}

cudaError_t sfc_cuda_dense_add(const struct sfc_cuda_dense_tile *tiles, size_t count,
                               const float *slices, uint64_t length, const uint32_t *slots,
                               uint32_t micro_batches, float *sum,
                               struct sfc_cuda_dense_found *found, cudaStream_t stream)
{
    struct add_call c = {slices, length, slots, micro_batches, sum};
    SFC_LAUNCH(add_tile, (unsigned)count, THREADS, stream, tiles, c, found);
    return cudaGetLastError();
}

/* ---- packed sums */

__global__ static void __launch_bounds__(THREADS)
    pack_tile(const struct sfc_cuda_dense_tile *tiles, const float *sum,
              struct sfc_cuda_dense_packed packed)
{
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < tile.length; i += THREADS) {
        float v = sum[tile.at + i];
        if (tile.half)
            packed.halves[tile.packed - packed.first_half + i] = (uint16_t)(sfc_hd_bits(v) >> 16);
        else
            packed.floats[tile.packed - packed.first_float + i] = v;
    }
}

__global__ static void __launch_bounds__(THREADS)
    unpack_tile(const struct sfc_cuda_dense_tile *tiles, float *sum,
                struct sfc_cuda_dense_packed packed)
{
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < tile.length; i += THREADS)
        sum[tile.at + i] =
            tile.half ? sfc_hd_bf16_float(packed.halves[tile.packed - packed.first_half + i])
                      : packed.floats[tile.packed - packed.first_float + i];
}

cudaError_t sfc_cuda_dense_pack(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                const float *sum, struct sfc_cuda_dense_packed packed,
                                cudaStream_t stream)
{
    SFC_LAUNCH(pack_tile, (unsigned)count, THREADS, stream, tiles, sum, packed);
    return cudaGetLastError();
}

cudaError_t sfc_cuda_dense_unpack(const struct sfc_cuda_dense_tile *tiles, size_t count, float *sum,
                                  struct sfc_cuda_dense_packed packed, cudaStream_t stream)
{
    SFC_LAUNCH(unpack_tile, (unsigned)count, THREADS, stream, tiles, sum, packed);
    return cudaGetLastError();
}

/* ---- magnitudes */

__device__ static inline void raise(uint32_t *most, float v)
{
    uint32_t bits = sfc_hd_bits(v) & 0x7fffffffu;
    *most = bits > *most ? bits : *most;
}

__global__ static void __launch_bounds__(THREADS)
    measure_tile(const struct sfc_cuda_dense_tile *tiles, struct sfc_cuda_dense_vectors x,
                 float epsilon, struct sfc_cuda_dense_found *found)
{
    __shared__ uint32_t most[3];
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    const uint32_t length = tile.statistic ? 0 : tile.length;
    uint32_t w = 0, m = 0, ratio = 0;
    if (threadIdx.x < 3)
        most[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < length; i += THREADS) {
        float moment = x.momentum[tile.at + i];
        raise(&w, x.values[tile.at + i]);
        raise(&m, moment);
        if (x.second && moment != 0)
            raise(&ratio, moment / (sqrtf(x.second[tile.at + i]) + epsilon));
    }
    atomicMax(&most[0], w);
    atomicMax(&most[1], m);
    atomicMax(&most[2], ratio);
    __syncthreads();
    if (threadIdx.x == 0) {
        found[blockIdx.x].w = most[0];
        found[blockIdx.x].m = most[1];
        found[blockIdx.x].ratio = most[2];
    }
}

cudaError_t sfc_cuda_dense_measure(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                   struct sfc_cuda_dense_vectors vectors, float epsilon,
                                   struct sfc_cuda_dense_found *found, cudaStream_t stream)
{
    SFC_LAUNCH(measure_tile, (unsigned)count, THREADS, stream, tiles, vectors, epsilon, found);
    return cudaGetLastError();
}

/* ---- the update */

__device__ static inline void sgd(float *w, float *m, float sum,
                                  const struct sfc_cuda_dense_update &u, bool decays)
{
    float g = u.clip * sum + (decays ? u.weight_decay : 0) * *w;
    *m = u.momentum * *m + g;
    *w -= u.lr * *m;
}

__device__ static inline void adamw(float *w, float *m, float *v, float sum,
                                    const struct sfc_cuda_dense_update &u, bool decays)
{
    float g = u.clip * sum;
    *m = u.keep1 * *m + u.take1 * g;
    *v = u.keep2 * *v + u.take2 * (g * g);
    *w -= u.rate * *m / (u.root * sqrtf(*v) + u.epsilon) + (decays ? u.decay : 0) * *w;
}

__global__ static void __launch_bounds__(THREADS)
    apply_tile(const struct sfc_cuda_dense_tile *tiles, struct sfc_cuda_dense_vectors x,
               struct sfc_cuda_dense_update u, const uint8_t *left_out)
{
    const struct sfc_cuda_dense_tile tile = tiles[blockIdx.x];
    const uint32_t length = left_out[tile.block] ? 0 : tile.length;
    for (uint32_t i = threadIdx.x; i < length; i += THREADS) {
        uint64_t at = tile.at + i;
        float w = x.values[at], sum = x.sum[at];
        if (tile.statistic) {
            x.values[at] = (1 - u.statistic) * w + u.statistic * sum;
            continue;
        }
        float m = x.momentum[at];
        if (x.second) {
            float v = x.second[at];
            adamw(&w, &m, &v, sum, u, tile.decays);
            x.second[at] = v;
        } else {
            sgd(&w, &m, sum, u, tile.decays);
        }
        x.momentum[at] = m;
        x.values[at] = w;
    }
}

cudaError_t sfc_cuda_dense_apply(const struct sfc_cuda_dense_tile *tiles, size_t count,
                                 struct sfc_cuda_dense_vectors vectors,
                                 struct sfc_cuda_dense_update update, const uint8_t *left_out,
                                 cudaStream_t stream)
{
    SFC_LAUNCH(apply_tile, (unsigned)count, THREADS, stream, tiles, vectors, update, left_out);
    return cudaGetLastError();
}

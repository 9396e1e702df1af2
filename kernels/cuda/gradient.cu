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

#define DEPTH (SFC_CUDA_STRIP / ROWS) /* rows of a thread */
/* Its bits plus an integer below 2^22 are it plus the integer. */
#define MAGIC 12582912.0f

/* The kept numbers of a thread in one row, as they lie in memory. */
struct kept_half {
    uint4 u;
};
struct kept_float {
    float4 low, high;
};

__device__ static inline void load(struct kept_half *kept, const void *z, size_t at)
{
    kept->u = __ldcs((const uint4 *)(const void *)((const int16_t *)z + at));
}

__device__ static inline void load(struct kept_float *kept, const void *z, size_t at)
{
    const float4 *from = (const float4 *)(const void *)((const float *)z + at);
    kept->low = __ldcs(from);
    kept->high = __ldcs(from + 1);
}

/* Eight logits times log2(e) plus the shift; a filtered entry is no exponential. */
template <bool FILTER>
__device__ static inline void exponents(const struct kept_half *kept, float unit, float shift,
                                        float *exponent)
{
    const uint32_t pair[4] = {kept->u.x, kept->u.y, kept->u.z, kept->u.w};
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        int32_t q = i % 2 ? (int32_t)pair[i / 2] >> 16 : (int32_t)(pair[i / 2] << 16) >> 16;
        float whole = __uint_as_float(__float_as_uint(MAGIC) + (uint32_t)q) - MAGIC;
        exponent[i] = whole * unit + shift;
        if (FILTER && q == SFC_COSINE_FILTERED)
            exponent[i] = -INFINITY;
    }
}

template <bool FILTER>
__device__ static inline void exponents(const struct kept_float *kept, float unit, float shift,
                                        float *exponent)
{
    const float z[WIDTH] = {kept->low.x,  kept->low.y,  kept->low.z,  kept->low.w,
                            kept->high.x, kept->high.y, kept->high.z, kept->high.w};
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        exponent[i] = z[i] * unit + shift;
        if (FILTER && __float_as_uint(z[i]) == 0x80000000u) /* -0 */
            exponent[i] = -INFINITY;
    }
}

template <typename KEPT, bool FILTER>
__global__ static void softmax_strip(struct sfc_cuda_softmax s, float unit)
{
    const bool half = sizeof(KEPT) == sizeof(struct kept_half);
    uint32_t lane = threadIdx.x % LANES, thread_row = threadIdx.x / LANES;
    uint32_t chunk = blockIdx.x / s.strips, begin = blockIdx.x % s.strips * SFC_CUDA_STRIP;
    uint32_t rows = s.chunk - begin < SFC_CUDA_STRIP ? s.chunk - begin : SFC_CUDA_STRIP;
    uint32_t at = blockIdx.y * SPAN + lane * WIDTH, column = s.columns.first + at;
    size_t first = (size_t)chunk * s.chunk + begin;
    if (at >= s.columns.count)
        return;
    KEPT kept[DEPTH];
#pragma unroll
    for (int r = 0; r < DEPTH; r++) { /* all of them before the first is needed */
        uint32_t row = thread_row + r * ROWS;
        if (row < rows)
            load(&kept[r], s.z, (first + row) * s.columns.all + column);
    }
    struct sfc_eight high = sfc_load_floats(s.high + column), low = sfc_load_floats(s.low + column);
    int32_t target[WIDTH];
    float odd = 0; /* stays 0 while everything is finite */
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
        target[i] = s.column_target[column + i] - (int32_t)(s.first + first);
#pragma unroll
    for (int r = 0; r < DEPTH; r++) {
        uint32_t row = thread_row + r * ROWS;
        if (row >= rows)
            break;
        size_t position = first + row, z = position * s.columns.all + column;
        struct sfc_eight p;
        exponents<FILTER>(&kept[r], unit, s.add[position] * (float)LOG2_E, p.v);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            p.v[i] = sfc_exp2_fast((p.v[i] - high.v[i]) - low.v[i]);
            if (target[i] == (int32_t)row)
                p.v[i] = s.target_p[column + i];
            odd += p.v[i] * 0.0f;
        }
        if (half)
            sfc_store_nearest((uint16_t *)s.z + z, p);
        else
            sfc_store_floats((float *)s.z + z, p);
    }
    if (!(odd == 0.0f))
        s.not_finite[column / s.mp] = 1;
}

template <typename KEPT>
static void launch(const struct sfc_cuda_softmax &s, float unit, dim3 grid, cudaStream_t stream)
{
    if (s.filtered)
        SFC_LAUNCH((softmax_strip<KEPT, true>), grid, LANES * ROWS, stream, s, unit);
    else
        SFC_LAUNCH((softmax_strip<KEPT, false>), grid, LANES * ROWS, stream, s, unit);
}

extern "C" cudaError_t sfc_cuda_softmax_tile(const struct sfc_cuda_softmax *s, size_t chunks,
                                             cudaStream_t stream)
{
    dim3 grid((unsigned)chunks * s->strips, (s->columns.count + SPAN - 1) / SPAN);
    if (s->half)
        launch<struct kept_half>(*s, s->scale / SFC_COSINE_ONE * (float)LOG2_E, grid, stream);
    else
        launch<struct kept_float>(*s, (float)LOG2_E, grid, stream);
    return cudaGetLastError();
}

/* ---- dx */

#define DX_THREADS 256

struct add_dx {
    const void *product;
    size_t chunks, numbers; /* columns * pitch */
    unsigned long long *dx;
};

template <bool HALF>
__device__ static inline struct sfc_eight load_product(const struct add_dx &call, size_t at)
{
    return HALF ? sfc_load_halves((const uint16_t *)call.product + at)
                : sfc_load_floats((const float *)call.product + at);
}

/* No atomics: dx belongs to the stream. */
template <bool HALF> __global__ static void add_dx(struct add_dx call)
{
    size_t at = ((size_t)blockIdx.x * DX_THREADS + threadIdx.x) * SFC_LANE_WIDTH;
    if (at >= call.numbers)
        return;
    unsigned long long sum[SFC_LANE_WIDTH];
    ulonglong2 *to = (ulonglong2 *)(void *)(call.dx + at);
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH / 2; i++) {
        ulonglong2 two = to[i];
        sum[2 * i] = two.x;
        sum[2 * i + 1] = two.y;
    }
#pragma unroll 4
    for (size_t chunk = 0; chunk < call.chunks; chunk++) {
        struct sfc_eight v = load_product<HALF>(call, chunk * call.numbers + at);
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++)
            sum[i] += (unsigned long long)sfc_hd_dx_to_fixed(v.v[i]);
    }
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH / 2; i++) {
        ulonglong2 two;
        two.x = sum[2 * i];
        two.y = sum[2 * i + 1];
        to[i] = two;
    }
}

extern "C" cudaError_t sfc_cuda_add_dx(const void *product, bool half, size_t chunks,
                                       uint32_t pitch, const struct sfc_cuda_columns *columns,
                                       unsigned long long *dx, cudaStream_t stream)
{
    size_t numbers = (size_t)columns->count * pitch, per_block = DX_THREADS * SFC_LANE_WIDTH;
    struct add_dx call = {product, chunks, numbers, dx + (size_t)columns->first * pitch};
    unsigned grid = (unsigned)((numbers + per_block - 1) / per_block);
    if (half)
        SFC_LAUNCH((add_dx<true>), grid, DX_THREADS, stream, call);
    else
        SFC_LAUNCH((add_dx<false>), grid, DX_THREADS, stream, call);
    return cudaGetLastError();
}

/* ---- the lanes' parts of dx */

struct join_dx {
    unsigned long long *to;
    const unsigned long long *from;
    size_t numbers;
};

__global__ static void join_dx(struct join_dx call)
{
    size_t at = (size_t)blockIdx.x * DX_THREADS + threadIdx.x;
    if (at < call.numbers)
        call.to[at] += call.from[at];
}

extern "C" cudaError_t sfc_cuda_join_dx(unsigned long long *to, const unsigned long long *from,
                                        size_t numbers, cudaStream_t stream)
{
    struct join_dx call = {to, from, numbers};
    SFC_LAUNCH(join_dx, (unsigned)((numbers + DX_THREADS - 1) / DX_THREADS), DX_THREADS, stream,
               call);
    return cudaGetLastError();
}

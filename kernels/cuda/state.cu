/* The records themselves: first values, reading and writing them as f32, how large they are. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/record.cuh"
#include "kernels/cuda/state.h"
#include "kernels/hd/philox.h"
#include "kernels/hd/rounding.h"

enum { WARP = 32, THREADS = 256, WARPS = THREADS / WARP };
enum { MAX_GRID = 1 << 16 };
enum { SLAB = 16 }; /* rows whose magnitudes one warp takes */

static unsigned grid_for(uint64_t items, unsigned per_block)
{
    uint64_t blocks = (items + per_block - 1) / per_block;
    return blocks < MAX_GRID ? (unsigned)blocks : (unsigned)MAX_GRID;
}

static uint32_t tensors_of(const struct sfc_cuda_store *s)
{
    return (uint32_t)(s->record / s->pitch / (s->format == SFC_CUDA_BF16 ? 2 : 4));
}

/* ---- single numbers */

__device__ static float get(const struct sfc_cuda_store &s, const char *record, uint32_t tensor,
                            uint32_t column)
{
    const uint16_t *half = (const uint16_t *)record;
    if (s.format == SFC_CUDA_BF16)
        return sfc_hd_bf16_float(half[tensor * s.pitch + column]);
    if (s.format == SFC_CUDA_SPLIT && tensor == 0)
        return sfc_hd_split_join(half[column], half[s.pitch + column]);
    return ((const float *)record)[tensor * s.pitch + column];
}

__device__ static void put(const struct sfc_cuda_store &s, char *record, uint32_t tensor,
                           uint32_t column, float v)
{
    uint16_t *half = (uint16_t *)record;
    if (s.format == SFC_CUDA_BF16) {
        half[tensor * s.pitch + column] = sfc_hd_bf16_nearest(v);
    } else if (s.format == SFC_CUDA_SPLIT && tensor == 0) {
        half[column] = sfc_hd_split_high(v);
        half[s.pitch + column] = sfc_hd_split_low(v);
    } else {
        ((float *)record)[tensor * s.pitch + column] = v;
    }
}

__global__ static void __launch_bounds__(THREADS)
    read_run(struct sfc_cuda_store s, struct sfc_cuda_run run, float *out)
{
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < run.count; i += gridDim.x * THREADS) {
        uint32_t at = run.column + i;
        out[i] = run.tensor == SFC_CUDA_LAST
                     ? (float)s.last[run.row + i]
                     : get(s, sfc_record_at(s, run.row + at / s.dim), run.tensor, at % s.dim);
    }
}

__global__ static void __launch_bounds__(THREADS)
    write_run(struct sfc_cuda_store s, struct sfc_cuda_run run, const float *values)
{
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < run.count; i += gridDim.x * THREADS) {
        uint32_t at = run.column + i;
        if (run.tensor == SFC_CUDA_LAST)
            s.last[run.row + i] = (uint32_t)values[i];
        else
            put(s, sfc_record_at(s, run.row + at / s.dim), run.tensor, at % s.dim, values[i]);
    }
}

cudaError_t sfc_cuda_run_read(const struct sfc_cuda_store *store, struct sfc_cuda_run run,
                              float *out, cudaStream_t stream)
{
    SFC_LAUNCH(read_run, grid_for(run.count, THREADS), THREADS, stream, *store, run, out);
    return cudaGetLastError();
}

cudaError_t sfc_cuda_run_write(const struct sfc_cuda_store *store, struct sfc_cuda_run run,
                               const float *values, cudaStream_t stream)
{
    SFC_LAUNCH(write_run, grid_for(run.count, THREADS), THREADS, stream, *store, run, values);
    return cudaGetLastError();
}

__global__ static void __launch_bounds__(THREADS)
    read_list(struct sfc_cuda_store s, struct sfc_cuda_list list, float *out)
{
    const uint32_t width = list.tensor == SFC_CUDA_LAST ? 1 : s.dim;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < list.count;
         i += gridDim.x * THREADS) {
        uint32_t row = list.first + list.rows[i / width];
        out[i] = list.tensor == SFC_CUDA_LAST
                     ? (float)s.last[row]
                     : get(s, sfc_record_at(s, row), list.tensor, i % width);
    }
}

__global__ static void __launch_bounds__(THREADS)
    write_list(struct sfc_cuda_store s, struct sfc_cuda_list list, const float *values)
{
    const uint32_t width = list.tensor == SFC_CUDA_LAST ? 1 : s.dim;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < list.count;
         i += gridDim.x * THREADS) {
        uint32_t row = list.first + list.rows[i / width];
        if (list.tensor == SFC_CUDA_LAST)
            s.last[row] = (uint32_t)values[i];
        else
            put(s, sfc_record_at(s, row), list.tensor, i % width, values[i]);
    }
}

cudaError_t sfc_cuda_list_read(const struct sfc_cuda_store *store, struct sfc_cuda_list list,
                               float *out, cudaStream_t stream)
{
    SFC_LAUNCH(read_list, grid_for(list.count, THREADS), THREADS, stream, *store, list, out);
    return cudaGetLastError();
}

cudaError_t sfc_cuda_list_write(const struct sfc_cuda_store *store, struct sfc_cuda_list list,
                                const float *values, cudaStream_t stream)
{
    SFC_LAUNCH(write_list, grid_for(list.count, THREADS), THREADS, stream, *store, list, values);
    return cudaGetLastError();
}

/* ---- whole rows: a warp takes one at a time */

struct init_call {
    struct sfc_cuda_rows rows;
    uint32_t tensors;
    struct sfc_philox_key key;
    float std;
};

/* W of four columns from a multiple of four on. */
__device__ static inline void first_values(const struct init_call &c, uint64_t cls, uint32_t column,
                                           uint32_t dim, float v[4])
{
    float normal[4];
    sfc_hd_normal4(sfc_hd_philox(c.key, cls, column / 4), normal);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        v[i] = column + i < dim ? normal[i] * c.std : 0;
}

/* Eight columns of a 16-bit tensor. */
__device__ static inline void put_halves(char *record, uint32_t column, const uint16_t half[8])
{
    uint32_t pair[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        pair[i] = half[2 * i] | (uint32_t)half[2 * i + 1] << 16;
    *(uint4 *)((uint16_t *)record + column) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

/* The weights of one row, in 16-byte stores that follow each other over the lanes. */
template <int FORMAT>
__device__ static void init_weights(const struct sfc_cuda_store &s, const struct init_call &c,
                                    char *record, uint64_t cls, uint32_t lane)
{
    float v[8];
    uint16_t high[8], low[8];
    if constexpr (FORMAT == SFC_CUDA_F32) {
        for (uint32_t k = 4 * lane; k < s.pitch; k += 4 * WARP) {
            first_values(c, cls, k, s.dim, v);
            ((float4 *)record)[k / 4] = make_float4(v[0], v[1], v[2], v[3]);
        }
    } else {
        for (uint32_t k = 8 * lane; k < s.pitch; k += 8 * WARP) {
            first_values(c, cls, k, s.dim, v);
            first_values(c, cls, k + 4, s.dim, v + 4);
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                high[i] =
                    FORMAT == SFC_CUDA_BF16 ? sfc_hd_bf16_nearest(v[i]) : sfc_hd_split_high(v[i]);
                low[i] = sfc_hd_split_low(v[i]);
            }
            put_halves(record, k, high);
            if (FORMAT == SFC_CUDA_SPLIT)
                put_halves(record, s.pitch + k, low);
        }
    }
}

template <int FORMAT>
__global__ static void __launch_bounds__(THREADS)
    init_rows(struct sfc_cuda_store s, struct init_call c)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint64_t weights = s.record / c.tensors, warps = (uint64_t)gridDim.x * WARPS;
    const uint64_t end = (uint64_t)c.rows.blocks << s.shift;
    for (uint64_t at = (uint64_t)blockIdx.x * WARPS + threadIdx.x / WARP; at < end; at += warps) {
        uint32_t row = (uint32_t)at, block = row >> s.shift, inside = sfc_row_in_block(s, row);
        if (inside >= c.rows.block_rows[block])
            continue;
        char *record = sfc_record_at(s, row);
        init_weights<FORMAT>(s, c, record, s.block_class[block] + inside, lane);
        for (uint64_t byte = weights + 16 * lane; byte < s.record; byte += 16 * WARP)
            *(uint4 *)(record + byte) = make_uint4(0, 0, 0, 0);
        if (s.last && lane == 0)
            s.last[row] = 0;
    }
}

cudaError_t sfc_cuda_run_init(const struct sfc_cuda_store *store, struct sfc_cuda_rows rows,
                              float std, cudaStream_t stream)
{
    struct init_call c = {rows, tensors_of(store),
                          sfc_hd_stream_key(store->seed, SFC_STREAM_CLASS_INIT), std};
    unsigned grid = grid_for((uint64_t)rows.blocks << store->shift, WARPS);
    if (store->format == SFC_CUDA_BF16)
        SFC_LAUNCH(init_rows<SFC_CUDA_BF16>, grid, THREADS, stream, *store, c);
    else if (store->format == SFC_CUDA_SPLIT)
        SFC_LAUNCH(init_rows<SFC_CUDA_SPLIT>, grid, THREADS, stream, *store, c);
    else
        SFC_LAUNCH(init_rows<SFC_CUDA_F32>, grid, THREADS, stream, *store, c);
    return cudaGetLastError();
}

/* ---- magnitudes */

/* Four columns of a tensor from a multiple of four on. */
template <int FORMAT>
__device__ static inline void get4(const char *record, uint32_t pitch, uint32_t tensor,
                                   uint32_t column, float v[4])
{
    const uint16_t *half = (const uint16_t *)record + tensor * pitch + column;
    if (FORMAT == SFC_CUDA_F32 || (FORMAT == SFC_CUDA_SPLIT && tensor > 0)) {
        float4 x = *(const float4 *)((const float *)record + tensor * pitch + column);
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
        return;
    }
    uint2 high = *(const uint2 *)half, low = make_uint2(0, 0);
    if (FORMAT == SFC_CUDA_SPLIT)
        low = *(const uint2 *)(half + pitch);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint16_t h = (uint16_t)((i < 2 ? high.x : high.y) >> 16 * (i % 2));
        uint16_t l = (uint16_t)((i < 2 ? low.x : low.y) >> 16 * (i % 2));
        v[i] = FORMAT == SFC_CUDA_SPLIT ? sfc_hd_split_join(h, l) : sfc_hd_bf16_float(h);
    }
}

struct maxima {
    uint32_t w, m, ratio; /* bits */
};

__device__ static inline void raise(uint32_t *most, float v)
{
    uint32_t bits = __float_as_uint(v) & 0x7fffffffu;
    *most = bits > *most ? bits : *most;
}

__device__ static inline uint32_t warp_max(uint32_t v)
{
#pragma unroll
    for (int apart = WARP / 2; apart; apart /= 2) {
        uint32_t other = __shfl_xor_sync(0xffffffffu, v, apart);
        v = other > v ? other : v;
    }
    return v;
}

__device__ static void flush(struct maxima *most, uint32_t *out, uint32_t lane)
{
    uint32_t w = warp_max(most->w), m = warp_max(most->m), ratio = warp_max(most->ratio);
    if (lane == 0) {
        atomicMax(&out[0], w);
        atomicMax(&out[1], m);
        atomicMax(&out[2], ratio);
    }
    most->w = most->m = most->ratio = 0;
}

template <int FORMAT, bool SECOND>
__device__ static void measure_row(const struct sfc_cuda_store &s, uint32_t row, float epsilon,
                                   uint32_t lane, struct maxima *most)
{
    const char *record = sfc_record_at(s, row);
    struct sfc_cuda_lag lag = {1, 0, 0, 1};
    if (s.last && s.last[row] < s.now)
        lag = s.lag[s.last[row]];
    for (uint32_t k = 4 * lane; k < s.pitch; k += 4 * WARP) {
        float w[4], m[4], v[4];
        get4<FORMAT>(record, s.pitch, 0, k, w);
        get4<FORMAT>(record, s.pitch, 1, k, m);
        if (SECOND)
            get4<FORMAT>(record, s.pitch, 2, k, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            raise(&most->w, lag.ww * w[i] + lag.wm * m[i]);
            raise(&most->m, lag.mw * w[i] + lag.mm * m[i]);
            if (SECOND && m[i] != 0)
                raise(&most->ratio, m[i] / (sqrtf(v[i]) + epsilon));
        }
    }
}

__host__ __device__ static inline uint32_t slabs_of(const struct sfc_cuda_store &s)
{
    return ((1u << s.shift) + SLAB - 1) / SLAB;
}

template <int FORMAT, bool SECOND>
__global__ static void __launch_bounds__(THREADS)
    measure_rows(struct sfc_cuda_store s, struct sfc_cuda_rows rows, float epsilon, uint32_t *out)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint64_t warps = (uint64_t)gridDim.x * WARPS;
    const uint32_t slabs = slabs_of(s); /* of a block */
    const uint64_t end = (uint64_t)rows.blocks * slabs;
    for (uint64_t i = (uint64_t)blockIdx.x * WARPS + threadIdx.x / WARP; i < end; i += warps) {
        struct maxima most = {0, 0, 0};
        uint32_t block = (uint32_t)(i / slabs), first = (uint32_t)(i % slabs) * SLAB;
        uint32_t stop = rows.block_rows[block];
        stop = stop < first + SLAB ? stop : first + SLAB;
        for (uint32_t row = first; row < stop; row++)
            measure_row<FORMAT, SECOND>(s, (block << s.shift) + row, epsilon, lane, &most);
        flush(&most, out + 3 * (uint64_t)block, lane);
    }
}

template <int FORMAT>
static void launch_measure(const struct sfc_cuda_store *store, struct sfc_cuda_rows rows,
                           float epsilon, uint32_t *maxima, cudaStream_t stream)
{
    unsigned grid = grid_for((uint64_t)rows.blocks * slabs_of(*store), WARPS);
    if (tensors_of(store) == 3)
        SFC_LAUNCH((measure_rows<FORMAT, true>), grid, THREADS, stream, *store, rows, epsilon,
                   maxima);
    else
        SFC_LAUNCH((measure_rows<FORMAT, false>), grid, THREADS, stream, *store, rows, epsilon,
                   maxima);
}

cudaError_t sfc_cuda_run_extents(const struct sfc_cuda_store *store, struct sfc_cuda_rows rows,
                                 float epsilon, uint32_t *maxima, cudaStream_t stream)
{
    cudaError_t status =
        cudaMemsetAsync(maxima, 0, 3 * (size_t)rows.blocks * sizeof *maxima, stream);
    if (status != cudaSuccess)
        return status;
    if (store->format == SFC_CUDA_BF16)
        launch_measure<SFC_CUDA_BF16>(store, rows, epsilon, maxima, stream);
    else if (store->format == SFC_CUDA_SPLIT)
        launch_measure<SFC_CUDA_SPLIT>(store, rows, epsilon, maxima, stream);
    else
        launch_measure<SFC_CUDA_F32>(store, rows, epsilon, maxima, stream);
    return cudaGetLastError();
}

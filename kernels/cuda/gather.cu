/* Rows of W, caught up with the step, into the tile that a product reads. */
#include "kernels/cuda/record.cuh"

struct gather {
    struct sfc_cuda_store store;
    struct sfc_cuda_gather_out out;
    const uint32_t *rows;
    size_t positions;
};

template <bool HALF>
__device__ static inline void store_operand(void *tile, size_t at, struct sfc_eight w)
{
    if (HALF)
        sfc_store_nearest((uint16_t *)tile + at, w);
    else
        sfc_store_floats((float *)tile + at, w);
}

/* Eight numbers of the row as they are before the step. */
template <int FORMAT, bool DENSE>
__device__ static inline struct sfc_eight
caught_up(const struct sfc_cuda_store &store, char *record, uint32_t k, struct sfc_cuda_lag lag)
{
    struct sfc_eight w = sfc_load_w<FORMAT>(store, record, k);
    if (DENSE) {
        struct sfc_eight m = sfc_load_moment<FORMAT>(store, record, 1, k);
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++)
            w.v[i] = lag.ww * w.v[i] + lag.wm * m.v[i];
    }
    return w;
}

/* HALF: operands of bf16. Beside them SPLIT rows that need no catching up are their high halves;
 * these are the nearest bf16 with ties away from zero, as the store defines them. */
template <int FORMAT, bool HALF, bool DENSE> __global__ static void gather_rows(struct gather call)
{
    const struct sfc_cuda_store &store = call.store;
    size_t position = (size_t)blockIdx.x * (blockDim.x / SFC_WARP) + threadIdx.x / SFC_WARP;
    uint32_t lane = threadIdx.x % SFC_WARP;
    if (position >= call.positions)
        return;
    uint32_t row = call.rows[position];
    bool padding = row == SFC_CUDA_PADDING;
    char *record = sfc_record_at(store, padding ? 0 : row);
    struct sfc_cuda_lag lag = {1, 0, 0, 1};
    if (DENSE && !padding)
        lag = store.lag[store.last[row]];
    float square = 0, times = 1;
    if (call.out.times)
        times = call.out.times[position] * call.out.factor;
    for (uint32_t k = lane * SFC_LANE_WIDTH; k < store.pitch; k += SFC_WARP_WIDTH) {
        struct sfc_eight w;
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++)
            w.v[i] = 0;
        if (!padding) {
            if (FORMAT == SFC_CUDA_SPLIT && HALF && !DENSE)
                w = sfc_load_halves((const uint16_t *)(void *)record + k);
            else
                w = caught_up<FORMAT, DENSE>(store, record, k, lag);
        }
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++) {
            if (HALF)
                w.v[i] = sfc_nearest(w.v[i]);
            square += w.v[i] * w.v[i];
            w.v[i] *= times;
        }
        store_operand<HALF>(call.out.tile, position * store.pitch + k, w);
    }
    square = sfc_warp_sum(square);
    if (lane || !call.out.inverse_norm)
        return;
    float norm = sqrtf(square);
    float inverse = norm < 1e-12f ? 0.0f : 1.0f / norm;
    uint32_t block = store.chunk_block[position / store.chunk];
    if (!isfinite(norm)) {
        inverse = __uint_as_float(0x7fc00000u);
        atomicMin(call.out.bad_block, block);
    }
    call.out.inverse_norm[position] = padding ? 0.0f : inverse;
    if (!padding)
        atomicMax(call.out.block_inverse + block, __float_as_uint(inverse));
}

#define THREADS 256

template <int FORMAT, bool HALF> static void launch(const struct gather &call, cudaStream_t stream)
{
    size_t warps = THREADS / SFC_WARP;
    unsigned grid = (unsigned)((call.positions + warps - 1) / warps);
    if (call.store.last)
        SFC_LAUNCH((gather_rows<FORMAT, HALF, true>), grid, THREADS, stream, call);
    else
        SFC_LAUNCH((gather_rows<FORMAT, HALF, false>), grid, THREADS, stream, call);
}

extern "C" cudaError_t sfc_cuda_gather(const struct sfc_cuda_store *store, const uint32_t *rows,
                                       size_t positions, bool half,
                                       const struct sfc_cuda_gather_out *out, cudaStream_t stream)
{
    struct gather call = {*store, *out, rows, positions};
    if (store->format == SFC_CUDA_F32)
        launch<SFC_CUDA_F32, false>(call, stream);
    else if (store->format == SFC_CUDA_SPLIT)
        launch<SFC_CUDA_SPLIT, true>(call, stream);
    else if (half)
        launch<SFC_CUDA_BF16, true>(call, stream);
    else
        launch<SFC_CUDA_BF16, false>(call, stream);
    return cudaGetLastError();
}

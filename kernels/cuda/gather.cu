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

/* Eight numbers as they are stored and as a product may need them: nothing is computed before all
 * loads of a row are on their way. */
struct piece {
    struct sfc_eight w, m;
};

/* HALF: operands of bf16. Beside them SPLIT rows that need no catching up are their high halves;
 * these are the nearest bf16 with ties away from zero, as the store defines them. */
template <int FORMAT, bool HALF, bool DENSE>
__device__ static inline struct piece load_piece(const struct sfc_cuda_store &store, char *record,
                                                 uint32_t k, bool padding)
{
    struct piece piece = {};
    if (padding)
        return piece;
    if (FORMAT == SFC_CUDA_SPLIT && HALF && !DENSE)
        piece.w = sfc_load_halves((const uint16_t *)(void *)record + k);
    else
        piece.w = sfc_load_w<FORMAT>(store, record, k);
    if (DENSE)
        piece.m = sfc_load_moment<FORMAT>(store, record, 1, k);
    return piece;
}

/* The operand's eight numbers into the tile; returns the sum of their squares before the factor. */
template <bool HALF, bool DENSE>
__device__ static inline float put_piece(struct piece piece, struct sfc_cuda_lag lag, float times,
                                         void *tile, size_t at)
{
    struct sfc_eight w = piece.w;
    float square = 0;
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++) {
        if (DENSE)
            w.v[i] = lag.ww * w.v[i] + lag.wm * piece.m.v[i];
        if (HALF)
            w.v[i] = sfc_nearest(w.v[i]);
        square += w.v[i] * w.v[i];
        w.v[i] *= times;
    }
    store_operand<HALF>(tile, at, w);
    return square;
}

/* PIECES: runs of 256 columns of a row; 0: more than are loaded at once. */
template <int FORMAT, bool HALF, bool DENSE, int PIECES>
__global__ static void gather_rows(struct gather call)
{
    const struct sfc_cuda_store &store = call.store;
    size_t position = (size_t)blockIdx.x * (blockDim.x / SFC_WARP) + threadIdx.x / SFC_WARP;
    uint32_t lane = threadIdx.x % SFC_WARP, start = lane * SFC_LANE_WIDTH;
    if (position >= call.positions)
        return;
    uint32_t row = call.rows[position];
    bool padding = row == SFC_CUDA_PADDING;
    char *record = sfc_record_at(store, padding ? 0 : row);
    size_t at = position * store.pitch;
    float square = 0, times = call.out.times ? call.out.times[position] * call.out.factor : 1;
    struct sfc_cuda_lag lag = {1, 0, 0, 1};
    struct piece pieces[PIECES ? PIECES : 1];
    if (PIECES) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (start + i * SFC_WARP_WIDTH < store.pitch)
                pieces[i] = load_piece<FORMAT, HALF, DENSE>(store, record,
                                                            start + i * SFC_WARP_WIDTH, padding);
    }
    if (DENSE && !padding)
        lag = store.lag[store.last[row]];
    if (PIECES) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (start + i * SFC_WARP_WIDTH < store.pitch)
                square += put_piece<HALF, DENSE>(pieces[i], lag, times, call.out.tile,
                                                 at + start + i * SFC_WARP_WIDTH);
    } else {
        for (uint32_t k = start; k < store.pitch; k += SFC_WARP_WIDTH)
            square +=
                put_piece<HALF, DENSE>(load_piece<FORMAT, HALF, DENSE>(store, record, k, padding),
                                       lag, times, call.out.tile, at + k);
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

template <int FORMAT, bool HALF, bool DENSE>
static void launch_sized(const struct gather &call, cudaStream_t stream)
{
    size_t warps = THREADS / SFC_WARP;
    unsigned grid = (unsigned)((call.positions + warps - 1) / warps);
    if (call.store.pitch <= SFC_WARP_WIDTH)
        SFC_LAUNCH((gather_rows<FORMAT, HALF, DENSE, 1>), grid, THREADS, stream, call);
    else if (call.store.pitch <= 2 * SFC_WARP_WIDTH)
        SFC_LAUNCH((gather_rows<FORMAT, HALF, DENSE, 2>), grid, THREADS, stream, call);
    else
        SFC_LAUNCH((gather_rows<FORMAT, HALF, DENSE, 0>), grid, THREADS, stream, call);
}

template <int FORMAT, bool HALF> static void launch(const struct gather &call, cudaStream_t stream)
{
    if (call.store.last)
        launch_sized<FORMAT, HALF, true>(call, stream);
    else
        launch_sized<FORMAT, HALF, false>(call, stream);
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

/* Pass 3: the optimiser, straight into the store. */
#include "kernels/cuda/record.cuh"

#define THREADS 256

/* ---- p of the batch side by side */

struct assemble {
    const uint4 *z;
    size_t positions;
    uint32_t columns, micro_batches, mp; /* in units of 16 bytes: columns and mp */
    const uint32_t *slots;
    uint4 *out;
};

__global__ static void assemble_tile(struct assemble call)
{
    uint32_t width = call.micro_batches * call.mp;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= call.positions * width)
        return;
    size_t position = at / width;
    uint32_t column = (uint32_t)(at % width), slot = call.slots[column / call.mp];
    call.out[at] = call.z[position * call.columns + (size_t)slot * call.mp + column % call.mp];
}

extern "C" cudaError_t sfc_cuda_assemble(const void *z, bool half, size_t positions,
                                         uint32_t columns, const uint32_t *slots,
                                         uint32_t micro_batches, uint32_t mp, void *out,
                                         cudaStream_t stream)
{
    uint32_t unit = half ? 8 : 4;
    struct assemble call = {(const uint4 *)z, positions, columns / unit, micro_batches,
                            mp / unit,        slots,     (uint4 *)out};
    size_t total = positions * micro_batches * (mp / unit);
    SFC_LAUNCH(assemble_tile, (unsigned)((total + THREADS - 1) / THREADS), THREADS, stream, call);
    return cudaGetLastError();
}

/* ---- update */

struct update {
    struct sfc_cuda_store store;
    struct sfc_cuda_update how;
    const uint32_t *rows;
    size_t positions;
    const float *dw, *inverse_norm;
};

/* What a row's eight numbers need: both halves of a word are random bits, of the weight and the
 * moment. */
struct random_words {
    struct sfc_rounding_key first, second;
    bool used;
};

/* The state of eight columns, caught up with the step. */
struct columns_state {
    struct sfc_eight w, m;
};

template <int FORMAT, bool DENSE>
__device__ static inline struct columns_state
load_state(const struct sfc_cuda_store &store, char *record, uint32_t k, struct sfc_cuda_lag lag)
{
    struct columns_state c;
    c.w = sfc_load_w<FORMAT>(store, record, k);
    c.m = sfc_load_moment<FORMAT>(store, record, 1, k);
    if (DENSE) {
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++) {
            float w = c.w.v[i], m = c.m.v[i];
            c.w.v[i] = lag.ww * w + lag.wm * m;
            c.m.v[i] = lag.mw * w + lag.mm * m;
        }
    }
    return c;
}

/* What rounds eight numbers that get the low halves of the random words and eight that get the high
 * halves. */
template <int FORMAT>
__device__ static inline void rounding_of(const struct random_words &random,
                                          struct sfc_rounding_key key, uint32_t k,
                                          struct sfc_eight low, struct sfc_eight high,
                                          struct sfc_adds *add_low, struct sfc_adds *add_high)
{
    if (FORMAT != SFC_CUDA_BF16)
        return;
    *add_low = sfc_adds_of_nearest(low);
    *add_high = sfc_adds_of_nearest(high);
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++) {
        uint32_t word = sfc_hd_rounding_word(key, k + i);
        add_low->v[i] = random.used ? word & 0xffffu : add_low->v[i];
        add_high->v[i] = random.used ? word >> 16 : add_high->v[i];
    }
}

/* g: the gradient dw. */
template <int FORMAT, bool ADAMW>
__device__ static inline void step(const struct update &call, char *record, uint32_t k,
                                   struct columns_state c, struct sfc_eight g,
                                   const struct random_words &random)
{
    const struct sfc_cuda_update &u = call.how;
    struct sfc_eight v;
    if (ADAMW)
        v = sfc_load_moment<FORMAT>(call.store, record, 2, k);
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++) {
        if (ADAMW) {
            const struct sfc_cuda_adamw &a = u.adamw;
            c.m.v[i] = a.keep1 * c.m.v[i] + a.take1 * g.v[i];
            v.v[i] = a.keep2 * v.v[i] + a.take2 * (g.v[i] * g.v[i]);
            float unit = a.rate * c.m.v[i] / (a.root * sqrtf(v.v[i]) + a.epsilon);
            c.w.v[i] = c.w.v[i] - (unit + a.decay * c.w.v[i]);
        } else {
            float d = g.v[i] + u.weight_decay * c.w.v[i];
            c.m.v[i] = u.momentum * c.m.v[i] + d;
            c.w.v[i] = c.w.v[i] - u.lr * c.m.v[i];
        }
    }
    struct sfc_adds add_w, add_m;
    rounding_of<FORMAT>(random, random.first, k, c.w, c.m, &add_w, &add_m);
    sfc_store_w<FORMAT>(call.store, record, k, c.w, add_w);
    sfc_store_moment<FORMAT>(call.store, record, 1, k, c.m, add_m);
    if (ADAMW) {
        rounding_of<FORMAT>(random, random.second, k, v, v, &add_w, &add_m);
        sfc_store_moment<FORMAT>(call.store, record, 2, k, v, add_w);
    }
}

template <int FORMAT>
__device__ static inline struct random_words random_of(const struct sfc_cuda_store &store,
                                                       uint32_t row)
{
    struct random_words random;
    random.used = FORMAT == SFC_CUDA_BF16 && !store.nearest;
    if (!random.used)
        return random;
    uint64_t cls = store.block_class[row >> store.shift] + sfc_row_in_block(store, row);
    sfc_hd_rounding_keys(store.seed, store.now, cls, &random.first, &random.second);
    return random;
}

/* One row by one warp. PIECES: runs of 256 columns that stay in registers between the dot product
 * and the step; 0: they are read twice. */
template <int FORMAT, bool DENSE, bool ADAMW, int PIECES>
__global__ static void update_rows(struct update call)
{
    const struct sfc_cuda_store &store = call.store;
    size_t position = (size_t)blockIdx.x * (THREADS / SFC_WARP) + threadIdx.x / SFC_WARP;
    uint32_t lane = threadIdx.x % SFC_WARP, start = lane * SFC_LANE_WIDTH;
    if (position >= call.positions)
        return;
    uint32_t row = call.rows[position];
    if (row == SFC_CUDA_PADDING)
        return;
    char *record = sfc_record_at(store, row);
    const float *dw = call.dw + position * store.pitch;
    float inverse_norm = call.inverse_norm[position], along = 0;
    struct sfc_cuda_lag lag = {1, 0, 0, 1};
    if (DENSE)
        lag = store.lag[store.last[row]];
    struct columns_state kept[PIECES ? PIECES : 1];
    struct sfc_eight kept_g[PIECES ? PIECES : 1];
    if (PIECES) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint32_t k = start + i * SFC_WARP_WIDTH;
            if (k >= store.pitch)
                break;
            kept[i] = load_state<FORMAT, DENSE>(store, record, k, lag);
            kept_g[i] = sfc_load_floats(dw + k);
#pragma unroll
            for (int j = 0; j < SFC_LANE_WIDTH; j++)
                along += kept[i].w.v[j] * kept_g[i].v[j];
        }
    } else {
        for (uint32_t k = start; k < store.pitch; k += SFC_WARP_WIDTH) {
            struct columns_state c = load_state<FORMAT, DENSE>(store, record, k, lag);
            struct sfc_eight g = sfc_load_floats(dw + k);
#pragma unroll
            for (int j = 0; j < SFC_LANE_WIDTH; j++)
                along += c.w.v[j] * g.v[j];
        }
    }
    along = sfc_warp_sum(along);
    float a = call.how.gradient_scale * inverse_norm;
    float b = (float)((double)along * (double)inverse_norm * (double)inverse_norm);
    struct random_words random = random_of<FORMAT>(store, row);
    if (PIECES) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint32_t k = start + i * SFC_WARP_WIDTH;
            if (k >= store.pitch)
                break;
#pragma unroll
            for (int j = 0; j < SFC_LANE_WIDTH; j++)
                kept_g[i].v[j] = a * (kept_g[i].v[j] - b * kept[i].w.v[j]);
            step<FORMAT, ADAMW>(call, record, k, kept[i], kept_g[i], random);
        }
    } else {
        for (uint32_t k = start; k < store.pitch; k += SFC_WARP_WIDTH) {
            struct columns_state c = load_state<FORMAT, DENSE>(store, record, k, lag);
            struct sfc_eight g = sfc_load_floats(dw + k);
#pragma unroll
            for (int j = 0; j < SFC_LANE_WIDTH; j++)
                g.v[j] = a * (g.v[j] - b * c.w.v[j]);
            step<FORMAT, ADAMW>(call, record, k, c, g, random);
        }
    }
    __syncwarp();
    if (DENSE && !lane)
        store.last[row] = store.now;
}

template <int FORMAT, bool DENSE, bool ADAMW>
static void launch_sized(const struct update &call, cudaStream_t stream)
{
    size_t warps = THREADS / SFC_WARP;
    unsigned grid = (unsigned)((call.positions + warps - 1) / warps);
    if (call.store.pitch <= SFC_WARP_WIDTH)
        SFC_LAUNCH((update_rows<FORMAT, DENSE, ADAMW, 1>), grid, THREADS, stream, call);
    else if (call.store.pitch <= 2 * SFC_WARP_WIDTH)
        SFC_LAUNCH((update_rows<FORMAT, DENSE, ADAMW, 2>), grid, THREADS, stream, call);
    else
        SFC_LAUNCH((update_rows<FORMAT, DENSE, ADAMW, 0>), grid, THREADS, stream, call);
}

template <int FORMAT> static void launch(const struct update &call, cudaStream_t stream)
{
    if (call.how.is_adamw)
        launch_sized<FORMAT, false, true>(call, stream);
    else if (call.store.last)
        launch_sized<FORMAT, true, false>(call, stream);
    else
        launch_sized<FORMAT, false, false>(call, stream);
}

extern "C" cudaError_t sfc_cuda_update_rows(const struct sfc_cuda_store *store,
                                            const uint32_t *rows, size_t positions, const float *dw,
                                            const float *inverse_norm,
                                            const struct sfc_cuda_update *how, cudaStream_t stream)
{
    struct update call = {*store, *how, rows, positions, dw, inverse_norm};
    if (store->format == SFC_CUDA_F32)
        launch<SFC_CUDA_F32>(call, stream);
    else if (store->format == SFC_CUDA_BF16)
        launch<SFC_CUDA_BF16>(call, stream);
    else
        launch<SFC_CUDA_SPLIT>(call, stream);
    return cudaGetLastError();
}

/* Samples of all blocks at once, one thread block each, with the rows that sfc_sample_block draws.
 * Words are made anew from their counters whenever they are read: that costs less than memory of a
 * block's size would, and blocks may be of any size. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plan.h"
#include "kernels/hd/sample.h"

enum { WARP = 32, THREADS = 512, WARPS = THREADS / WARP };
enum { BINS_EACH = SFC_HD_BINS / THREADS };
enum { FEW = 256 }; /* keys that are ranked instead of narrowed down further */

#define ALL_LANES 0xffffffffu

/* What a thread block draws from. */
struct draw {
    struct sfc_philox_key key;
    uint64_t step;
    struct sfc_cuda_plan_block block;
    const uint32_t *positive; /* of the block */
};

/* Four rows from 4 * call on; masks have bit i for row 4 * call + i. */
struct quad {
    struct sfc_philox words;
    uint32_t positive, negative;
};

__device__ static struct quad draw_quad(const struct draw &d, uint32_t call)
{
    struct quad q;
    uint32_t rest = d.block.rows - 4 * call, inside = rest < 4 ? (1u << rest) - 1 : 15u;
    q.words = sfc_hd_sample_words(d.key, d.step, d.block.id, call);
    q.positive = sfc_hd_members4(d.positive, d.block.positives, 4 * call);
    q.negative = inside & ~q.positive;
    return q;
}

/* Sum of what the threads before this one have; *total: of all. sums: shared [WARPS]. */
__device__ static uint32_t sum_before(uint32_t own, uint32_t *sums, uint32_t *total)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = own;
    for (uint32_t distance = 1; distance < WARP; distance *= 2) {
        uint32_t other = __shfl_up_sync(ALL_LANES, sum, distance);
        sum += lane >= distance ? other : 0;
    }
    if (lane == WARP - 1)
        sums[warp] = sum;
    __syncthreads();
    uint32_t before = sum - own, all = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < warp ? sums[w] : 0;
        all += sums[w];
    }
    __syncthreads(); /* sums may be written again */
    *total = all;
    return before;
}

/* Counts the keys that the cut holds by bins, and narrows the cut to one bin. */
__device__ static void narrow(const struct draw &d, struct sfc_hd_cut *cut, uint32_t *bins,
                              uint32_t *sums)
{
    struct sfc_hd_cut now = *cut;
    for (uint32_t i = threadIdx.x; i < SFC_HD_BINS; i += THREADS)
        bins[i] = 0;
    __syncthreads();
    for (uint32_t call = threadIdx.x; 4 * call < d.block.rows; call += THREADS) {
        struct quad q = draw_quad(d, call);
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t key = sfc_hd_sample_key(q.words.v[i], 4 * call + i);
            if ((q.negative >> i & 1) && sfc_hd_cut_holds(&now, key))
                atomicAdd(&bins[sfc_hd_cut_bin(&now, key)], 1u);
        }
    }
    __syncthreads();
    uint32_t *mine = bins + threadIdx.x * BINS_EACH, own = 0, total;
    for (uint32_t i = 0; i < BINS_EACH; i++)
        own += mine[i];
    uint32_t before = sum_before(own, sums, &total);
    if (before < now.k && now.k <= before + own) { /* one thread */
        uint32_t i = 0;
        while (before + mine[i] < now.k)
            before += mine[i++];
        sfc_hd_cut_narrow(&now, threadIdx.x * BINS_EACH + i, before, mine[i]);
        *cut = now;
    }
    __syncthreads();
}

/* Writes the k-th of the keys that the cut holds, FEW at most, to *found. keys: shared [FEW]. */
__device__ static void rank(const struct draw &d, const struct sfc_hd_cut *cut, uint64_t *keys,
                            uint32_t *count, uint64_t *found)
{
    struct sfc_hd_cut now = *cut;
    if (threadIdx.x == 0)
        *count = 0;
    __syncthreads();
    for (uint32_t call = threadIdx.x; 4 * call < d.block.rows; call += THREADS) {
        struct quad q = draw_quad(d, call);
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t key = sfc_hd_sample_key(q.words.v[i], 4 * call + i);
            if ((q.negative >> i & 1) && sfc_hd_cut_holds(&now, key))
                keys[atomicAdd(count, 1u)] = key;
        }
    }
    __syncthreads();
    if (threadIdx.x < now.members) {
        uint32_t less = 0;
        for (uint32_t i = 0; i < now.members; i++)
            less += keys[i] < keys[threadIdx.x];
        if (less == now.k - 1)
            *found = keys[threadIdx.x];
    }
    __syncthreads();
}

/* Keys of sampled negatives are below this. */
__device__ static uint64_t limit_of(const struct draw &d)
{
    __shared__ uint32_t bins[SFC_HD_BINS];
    __shared__ uint32_t sums[WARPS];
    __shared__ uint64_t keys[FEW];
    __shared__ struct sfc_hd_cut cut[1];
    __shared__ uint64_t found[1];
    __shared__ uint32_t count[1];
    const struct sfc_cuda_plan_block &b = d.block;
    if (b.count == b.rows)
        return UINT64_MAX;
    if (b.count == b.positives)
        return 0;
    if (threadIdx.x == 0) {
        struct sfc_hd_cut all = {0, 64, b.count - b.positives, b.rows - b.positives};
        *cut = all;
    }
    __syncthreads();
    while (cut->members > FEW)
        narrow(d, cut, bins, sums);
    rank(d, cut, keys, count, found);
    return *found + 1;
}

/* The oldest and the newest last step of the sampled rows: of each thread to of the block. */
__device__ static void put_ages(uint32_t oldest, uint32_t newest, uint32_t *out)
{
    __shared__ uint32_t ages[2];
    if (threadIdx.x == 0) {
        ages[0] = UINT32_MAX;
        ages[1] = 0;
    }
    __syncthreads();
    atomicMin(&ages[0], oldest);
    atomicMax(&ages[1], newest);
    __syncthreads();
    if (threadIdx.x < 2)
        out[threadIdx.x] = ages[threadIdx.x];
}

/* Writes the sample, ascending by row. */
__device__ static void take(const struct draw &d, uint64_t limit,
                            const struct sfc_cuda_plan_call &call)
{
    __shared__ uint32_t sums[WARPS];
    const struct sfc_cuda_plan_block &b = d.block;
    size_t first = (size_t)b.first_chunk * call.chunk;
    uint32_t done = 0, oldest = UINT32_MAX, newest = 0;
    for (uint32_t round = 0; 4 * round < b.rows; round += THREADS) {
        uint32_t at_call = round + threadIdx.x, chosen = 0;
        struct quad q = {};
        if (4 * at_call < b.rows) {
            q = draw_quad(d, at_call);
            chosen = q.positive;
            for (uint32_t i = 0; i < 4; i++)
                if (sfc_hd_sample_key(q.words.v[i], 4 * at_call + i) < limit)
                    chosen |= q.negative & 1u << i;
        }
        uint32_t total, at = done + sum_before((uint32_t)__popc(chosen), sums, &total);
        for (uint32_t i = 0; i < 4; i++) {
            if (!(chosen >> i & 1))
                continue;
            call.rows[first + at] = b.store + 4 * at_call + i;
            call.add[first + at] = q.positive >> i & 1 ? b.add_positive : b.add_drawn;
            at++;
            if (b.last) {
                uint32_t step = b.last[4 * at_call + i];
                oldest = step < oldest ? step : oldest;
                newest = step > newest ? step : newest;
            }
        }
        done += total;
    }
    if (b.last)
        put_ages(oldest, newest, call.ages + 2 * (size_t)blockIdx.x);
}

__device__ static void pad(const struct sfc_cuda_plan_call &call, size_t from, size_t to)
{
    for (size_t i = from + threadIdx.x; i < to; i += THREADS) {
        call.rows[i] = SFC_CUDA_PADDING;
        call.add[i] = sfc_hd_float(0xff800000u); /* -inf */
    }
}

/* Thread blocks beyond those of the class blocks pad the chunks that fill the last tile. */
__global__ static void __launch_bounds__(THREADS) draw_blocks(struct sfc_cuda_plan_call call)
{
    size_t chunk = call.chunk;
    if (blockIdx.x >= call.blocks) {
        size_t at = call.chunks + (blockIdx.x - call.blocks);
        pad(call, at * chunk, (at + 1) * chunk);
        if (threadIdx.x == 0)
            call.chunk_block[at] = 0; /* any: it has no row */
        return;
    }
    struct draw d;
    d.key = call.key;
    d.step = call.step;
    d.block = call.block[blockIdx.x];
    d.positive = call.positive + d.block.positive;
    if (d.block.count > 0)
        take(d, limit_of(d), call);
    else if (call.ages)
        put_ages(UINT32_MAX, 0, call.ages + 2 * (size_t)blockIdx.x);
    for (uint32_t i = threadIdx.x; i < d.block.chunks; i += THREADS)
        call.chunk_block[d.block.first_chunk + i] = blockIdx.x;
    pad(call, d.block.first_chunk * chunk + d.block.count,
        (d.block.first_chunk + d.block.chunks) * chunk);
}

__global__ static void __launch_bounds__(THREADS) find_targets(struct sfc_cuda_plan_call call)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= call.batch)
        return;
    struct sfc_cuda_plan_label label = call.label[i];
    int32_t at = -1;
    if (label.block != SFC_CUDA_NO_BLOCK) {
        const struct sfc_cuda_plan_block *b = &call.block[label.block];
        size_t first = (size_t)b->first_chunk * call.chunk;
        if (b->count > 0)
            at = (int32_t)(first +
                           sfc_hd_lower_bound(call.rows + first, b->count, b->store + label.row));
    }
    call.target[i] = at;
}

cudaError_t sfc_cuda_draw_plan(const struct sfc_cuda_plan_call *call, cudaStream_t stream)
{
    unsigned grid = call->blocks + (call->all_chunks - call->chunks);
    SFC_LAUNCH(draw_blocks, grid, THREADS, stream, *call);
    cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
        return status;
    SFC_LAUNCH(find_targets, (call->batch + THREADS - 1) / THREADS, THREADS, stream, *call);
    return cudaGetLastError();
}

/* Pass 1: what the slots keep of a tile's cosines, and the sums of exponentials (kernels/backend.h
 * has the maths). A block of threads has 64 positions of a chunk and 128 columns: a row of 32
 * threads with 4 columns each, and 8 such rows with every eighth position. */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/kernels.h"
#include "kernels/hd/cosine.h"
#include "kernels/hd/exact.h"

#define LOG2_E 1.44269504088896340736
#define LANES  32
#define ROWS   8
#define WIDTH  4
#define SPAN   (LANES * WIDTH)

/* The kept number of a cosine; *logit: what goes into the exponential. */
template <bool HALF>
__device__ static inline void keep(const struct sfc_cuda_logits &l, float cosine, float scale,
                                   bool target, void *to, int i, float *logit)
{
    if (HALF) {
        int16_t q = sfc_hd_cosine_pack(cosine, l.filter);
        *logit = sfc_hd_cosine_logit(q, scale / SFC_COSINE_ONE);
        ((int16_t *)to)[i] = target ? (int16_t)SFC_COSINE_TARGET : q;
    } else {
        bool filtered = cosine > l.filter;
        *logit = filtered ? 0.0f : cosine * scale + 0.0f;
        ((float *)to)[i] = filtered ? -0.0f : *logit;
    }
}

template <bool HALF> __device__ static inline void store_kept(void *z, size_t at, const void *kept)
{
    if (HALF)
        *(uint2 *)(void *)((int16_t *)z + at) = *(const uint2 *)kept;
    else
        *(float4 *)(void *)((float *)z + at) = *(const float4 *)kept;
}

template <bool HALF> __global__ static void logits_strip(struct sfc_cuda_logits l)
{
    uint32_t lane = threadIdx.x % LANES, thread_row = threadIdx.x / LANES;
    uint32_t chunk = blockIdx.x / l.strips, strip = blockIdx.x % l.strips;
    uint32_t begin = strip * SFC_CUDA_STRIP;
    uint32_t end = begin + SFC_CUDA_STRIP < l.chunk ? begin + SFC_CUDA_STRIP : l.chunk;
    uint32_t at = blockIdx.y * SPAN + lane * WIDTH; /* column of the product */
    uint32_t column = l.columns.first + at;
    bool used = at < l.columns.count;
    float scale = l.scale, sum[WIDTH] = {0, 0, 0, 0};
    int32_t target[WIDTH] = {-1, -1, -1, -1};
    for (int i = 0; used && i < WIDTH; i++)
        target[i] = l.column_target[column + i];
    for (uint32_t p = begin + thread_row; used && p < end; p += ROWS) {
        size_t position = (size_t)chunk * l.chunk + p;
        float inverse = l.inverse_norm[position], add = l.add[position];
        float shift = add * (float)LOG2_E;
        float4 cosines = *(const float4 *)(l.product + position * l.columns.count + at);
        const float v[WIDTH] = {cosines.x, cosines.y, cosines.z, cosines.w};
        float4 kept;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            bool is_target = target[i] == (int32_t)(l.first + position);
            float logit, cosine = fminf(1.0f, fmaxf(-1.0f, v[i] * inverse));
            keep<HALF>(l, cosine, scale, is_target, &kept, i, &logit);
            if (is_target)
                l.target_product[column + i] = v[i];
            else
                sum[i] += sfc_exp2_fast(logit * (float)LOG2_E + shift);
        }
        store_kept<HALF>(l.z, position * l.columns.all + column, &kept);
    }
    __shared__ double part[ROWS][SPAN];
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
        part[thread_row][lane * WIDTH + i] = (double)sum[i];
    __syncthreads();
    at = blockIdx.y * SPAN + threadIdx.x;
    if (threadIdx.x >= SPAN || at >= l.columns.count)
        return;
    double total = 0;
    for (int i = 0; i < ROWS; i++)
        total += part[i][threadIdx.x];
    l.exps[(size_t)blockIdx.x * l.columns.all + l.columns.first + at] = total;
}

extern "C" cudaError_t sfc_cuda_logits_tile(const struct sfc_cuda_logits *l, size_t chunks,
                                            cudaStream_t stream)
{
    dim3 grid((unsigned)chunks * l->strips, (l->columns.count + SPAN - 1) / SPAN);
    if (l->half)
        SFC_LAUNCH(logits_strip<true>, grid, LANES * ROWS, stream, *l);
    else
        SFC_LAUNCH(logits_strip<false>, grid, LANES * ROWS, stream, *l);
    return cudaGetLastError();
}

/* ---- sums over chunks */

#define SUM_THREADS 64
#define SUM_CHUNKS  16 /* chunks of one thread */

struct add_exps {
    const double *exps;
    size_t chunks;
    uint32_t strips;
    double factor;
    struct sfc_cuda_columns columns;
    unsigned long long *limbs;
};

__global__ static void add_exps(struct add_exps call)
{
    uint32_t at = blockIdx.y * SUM_THREADS + threadIdx.x;
    if (at >= call.columns.count)
        return;
    uint32_t column = call.columns.first + at;
    size_t first = (size_t)blockIdx.x * SUM_CHUNKS;
    size_t end = first + SUM_CHUNKS < call.chunks ? first + SUM_CHUNKS : call.chunks;
    for (size_t chunk = first; chunk < end; chunk++) {
        double sum = 0;
        for (uint32_t s = 0; s < call.strips; s++)
            sum += call.exps[(chunk * call.strips + s) * call.columns.all + column];
        struct sfc_hd_term term = sfc_hd_term_of(sum * call.factor);
        for (int i = 0; i < 3; i++)
            if (term.limb[i])
                atomicAdd(call.limbs + (size_t)column * SFC_HD_LIMBS + term.first + i,
                          (unsigned long long)term.limb[i]);
    }
}

extern "C" cudaError_t sfc_cuda_add_exps(const double *exps, size_t chunks, uint32_t strips,
                                         double factor, const struct sfc_cuda_columns *columns,
                                         unsigned long long *limbs, cudaStream_t stream)
{
    struct add_exps call = {exps, chunks, strips, factor, *columns, limbs};
    dim3 grid((unsigned)((chunks + SUM_CHUNKS - 1) / SUM_CHUNKS),
              (columns->count + SUM_THREADS - 1) / SUM_THREADS);
    SFC_LAUNCH(add_exps, grid, SUM_THREADS, stream, call);
    return cudaGetLastError();
}

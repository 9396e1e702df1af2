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
#define DEPTH  (SFC_CUDA_STRIP / ROWS) /* rows of a thread */

/* Adding it rounds to an integer, ties to even, which is then in the low bits: exact up to 2^22. */
#define MAGIC 12582912.0f

struct strip {
    float filter, unit; /* unit: of a kept number, times log2(e) */
};

/* The four entries of a thread in one row of the product. */
struct entries {
    float cosine[WIDTH];
    float shift; /* log2(e) times what is added to z */
};

template <bool FILTER>
__device__ static inline uint2 keep_half(const struct strip &s, const struct entries &e,
                                         float *exponent)
{
    uint32_t q[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        float rounded = sfc_hd_mul(e.cosine[i], SFC_COSINE_ONE) + MAGIC;
        bool filtered = FILTER && e.cosine[i] > s.filter;
        q[i] = filtered ? (uint32_t)SFC_COSINE_FILTERED : __float_as_uint(rounded);
        exponent[i] = filtered ? e.shift : (rounded - MAGIC) * s.unit + e.shift;
    }
    return make_uint2((q[0] & 0xffffu) | q[1] << 16, (q[2] & 0xffffu) | q[3] << 16);
}

template <bool FILTER>
__device__ static inline float4 keep_float(const struct strip &s, const struct entries &e,
                                           float scale, float *exponent)
{
    float z[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        bool filtered = FILTER && e.cosine[i] > s.filter;
        z[i] = e.cosine[i] * scale + 0.0f; /* + 0 turns -0 into +0: -0 is the mark */
        exponent[i] = filtered ? e.shift : z[i] * (float)LOG2_E + e.shift;
        z[i] = filtered ? -0.0f : z[i];
    }
    return make_float4(z[0], z[1], z[2], z[3]);
}

/* The entry of a target in a row that was kept: its mark, and no exponential. */
template <bool HALF>
__device__ static inline void mark_target(const struct sfc_cuda_logits &l, size_t at, int i,
                                          uint32_t column, float product, float *exponent)
{
    if (HALF)
        ((int16_t *)l.z)[at + i] = (int16_t)SFC_COSINE_TARGET;
    l.target_product[column + i] = product;
    exponent[i] = -INFINITY;
}

/* FILTER: there is one. */
template <bool HALF, bool FILTER> __global__ static void logits_strip(struct sfc_cuda_logits l)
{
    uint32_t lane = threadIdx.x % LANES, thread_row = threadIdx.x / LANES;
    uint32_t chunk = blockIdx.x / l.strips, begin = blockIdx.x % l.strips * SFC_CUDA_STRIP;
    uint32_t rows = l.chunk - begin < SFC_CUDA_STRIP ? l.chunk - begin : SFC_CUDA_STRIP;
    uint32_t at = blockIdx.y * SPAN + lane * WIDTH; /* column of the product */
    uint32_t column = l.columns.first + at;
    bool used = at < l.columns.count;
    size_t first = (size_t)chunk * l.chunk + begin;
    struct strip s = {l.filter, l.scale / SFC_COSINE_ONE * (float)LOG2_E};
    float sum[WIDTH] = {0, 0, 0, 0};
    int32_t target[WIDTH] = {-1, -1, -1, -1};
    float4 product[DEPTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
        target[i] = used ? l.column_target[column + i] - (int32_t)(l.first + first) : -1;
#pragma unroll
    for (int r = 0; r < DEPTH; r++) { /* all of them before the first is needed */
        uint32_t row = thread_row + r * ROWS;
        if (used && row < rows)
            product[r] = __ldcs((const float4 *)(l.product + (first + row) * l.columns.count + at));
    }
#pragma unroll
    for (int r = 0; r < DEPTH; r++) {
        uint32_t row = thread_row + r * ROWS;
        if (!used || row >= rows)
            break;
        size_t position = first + row, z = position * l.columns.all + column;
        const float v[WIDTH] = {product[r].x, product[r].y, product[r].z, product[r].w};
        float inverse = l.inverse_norm[position], exponent[WIDTH];
        struct entries e;
        e.shift = l.add[position] * (float)LOG2_E;
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            e.cosine[i] = fminf(1.0f, fmaxf(-1.0f, sfc_hd_mul(v[i], inverse)));
        if (HALF)
            __stcs((uint2 *)(void *)((int16_t *)l.z + z), keep_half<FILTER>(s, e, exponent));
        else
            __stcs((float4 *)(void *)((float *)l.z + z),
                   keep_float<FILTER>(s, e, l.scale, exponent));
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            if (target[i] == (int32_t)row)
                mark_target<HALF>(l, z, i, column, v[i], exponent);
            sum[i] += sfc_exp2_fast(exponent[i]);
        }
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

template <bool HALF>
static void launch(const struct sfc_cuda_logits &l, dim3 grid, cudaStream_t stream)
{
    if (l.filter <= 1.0f)
        SFC_LAUNCH((logits_strip<HALF, true>), grid, LANES * ROWS, stream, l);
    else
        SFC_LAUNCH((logits_strip<HALF, false>), grid, LANES * ROWS, stream, l);
}

extern "C" cudaError_t sfc_cuda_logits_tile(const struct sfc_cuda_logits *l, size_t chunks,
                                            cudaStream_t stream)
{
    dim3 grid((unsigned)chunks * l->strips, (l->columns.count + SPAN - 1) / SPAN);
    if (l->half)
        launch<true>(*l, grid, stream);
    else
        launch<false>(*l, grid, stream);
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

/* A cluster is two blocks of threads, each of three warpgroups: two have 64 rows each of a result
 * of 128 x 256, and the last keeps the copy engine at work, STAGES steps of 64 k ahead, with few
 * registers. The two blocks have other rows of W and the same columns of the batch, which each
 * fetches half of for both. A cluster works on one result after the other: the next is being
 * fetched while the last is used. */
#include <cudaTypedefs.h>

#include "kernels/cuda/fused.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/record.cuh"
#include "kernels/hd/cosine.h"

#define LOG2_E  1.44269504088896340736
#define THREADS ((WORKERS + 1) * 128)
#define WORKERS 2   /* warpgroups that multiply */
#define ROWS    128 /* of a block's result */
#define WIDTH   256 /* its columns */
#define STRIP   64  /* rows of a warpgroup */
#define DEPTH   64  /* k of a stage */
#define STAGES  4
#define A_BYTES (ROWS * DEPTH * 2)
#define B_BYTES (WIDTH * DEPTH * 2)
#define STAGE   (A_BYTES + B_BYTES)
#define ALIGNED 1024 /* of a stage: the pattern of the copy engine repeats */
/* Registers of a thread: of 168 on the average, which is what a processor has for 384 threads. */
#define FETCHER 40
#define WORKER  232

/* Behind the stages. */
struct shared {
    float part[WORKERS * 4][WIDTH]; /* sums of exponentials over a warp's rows */
    uint64_t full[STAGES], empty[STAGES];
};
#define SHARED_BYTES (ALIGNED + STAGES * STAGE + sizeof(struct shared))

static_assert(SFC_CUDA_STRIP == STRIP, "strips of exponentials");

struct place {
    uint32_t stages, rank; /* address of the first stage; block of the cluster */
    struct shared *shared;
};

__device__ static inline uint32_t full_at(const struct place &p, uint32_t stage)
{
    return hopper::shared_address(&p.shared->full[stage]);
}

__device__ static inline uint32_t empty_at(const struct place &p, uint32_t stage)
{
    return hopper::shared_address(&p.shared->empty[stage]);
}

__device__ static inline struct place arrive(char *memory)
{
    struct place p;
    uint32_t base = hopper::shared_address(memory);
    uint32_t room = (ALIGNED - base % ALIGNED) % ALIGNED;
    p.stages = base + room;
    p.rank = hopper::rank_in_cluster();
    p.shared = (struct shared *)(void *)(memory + room + STAGES * STAGE);
    if (!threadIdx.x) {
        for (int i = 0; i < STAGES; i++) {
            hopper::barrier_init(full_at(p, i), 1);
            hopper::barrier_init(empty_at(p, i), 2 * WORKERS * 4); /* warps of the cluster */
        }
        hopper::barriers_are_ready();
    }
    hopper::meet_cluster();
    return p;
}

/* Stages in turn; parity: of the phase that is waited for. */
struct turn {
    uint32_t stage, parity;
};

__device__ static inline void next(struct turn *t)
{
    t->stage = t->stage + 1 == STAGES ? 0 : t->stage + 1;
    t->parity ^= !t->stage;
}

/* Says that this warp has read the stage, to both blocks. */
__device__ static inline void release(const struct place &p, uint32_t stage)
{
    uint32_t lane = threadIdx.x % SFC_WARP;
    if (lane < 2)
        hopper::barrier_arrive(hopper::address_in(empty_at(p, stage), lane));
}

/* One result: k stages. */
__device__ static inline void accumulate(const struct place &p, uint32_t group, uint32_t k,
                                         struct turn *turn, float (&d)[128])
{
    uint32_t before = 0;
#pragma unroll
    for (int i = 0; i < 128; i++)
        d[i] = 0;
    hopper::hold(d);
    for (uint32_t i = 0; i < k; i++) {
        hopper::barrier_wait(full_at(p, turn->stage), turn->parity);
        uint32_t a = p.stages + turn->stage * STAGE + group * STRIP * 128;
        uint32_t b = p.stages + turn->stage * STAGE + A_BYTES;
        hopper::product_begin();
#pragma unroll
        for (int j = 0; j < DEPTH / 16; j++) /* 32 bytes of a row each */
            hopper::multiply(d, hopper::operand_at(a + j * 32), hopper::operand_at(b + j * 32));
        hopper::product_commit();
        if (i) {
            hopper::product_wait<1>();
            release(p, before);
        }
        before = turn->stage;
        next(turn);
    }
    hopper::product_wait<0>();
    hopper::hold(d);
    release(p, before);
}

__device__ static inline uint32_t quad_lane()
{
    return threadIdx.x % 4;
}

/* Words 0 .. 3 of each of four lanes: lane q gets word q of all four, in their order. */
__device__ static inline void turn_words(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d)
{
    bool odd = quad_lane() & 1, high = quad_lane() & 2;
    uint32_t r = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1);
    uint32_t s = __shfl_xor_sync(0xffffffffu, odd ? c : d, 1);
    uint32_t ab0 = odd ? r : a, ab1 = odd ? b : r, cd0 = odd ? s : c, cd1 = odd ? d : s;
    r = __shfl_xor_sync(0xffffffffu, high ? ab0 : cd0, 2);
    s = __shfl_xor_sync(0xffffffffu, high ? ab1 : cd1, 2);
    a = high ? r : ab0, b = high ? s : ab1;
    c = high ? cd0 : r, d = high ? cd1 : s;
}

/* ---- logits */

struct logits {
    struct sfc_cuda_logits l;
    uint32_t items, k;  /* results: each cluster has every so manyth; stages of one */
    uint32_t wide;      /* results that lie side by side */
    uint32_t positions; /* with a sample: whole strips */
};

__device__ static void fetch_logits(const struct logits &call, const struct place &p,
                                    const CUtensorMap *w, const CUtensorMap *x)
{
    struct turn turn = {0, 1};
    for (uint32_t item = blockIdx.x / 2; item < call.items; item += gridDim.x / 2) {
        uint32_t row = (item / call.wide * 2 + p.rank) * ROWS;
        uint32_t column = item % call.wide * WIDTH + p.rank * (WIDTH / 2);
        for (uint32_t k = 0; k < call.k; k++) {
            uint32_t full = full_at(p, turn.stage), to = p.stages + turn.stage * STAGE;
            hopper::barrier_wait(empty_at(p, turn.stage), turn.parity);
            hopper::barrier_expect(full, STAGE);
            hopper::load_box(w, to, full, k * DEPTH, row);
            hopper::load_box_for_both(x, to + A_BYTES + p.rank * (B_BYTES / 2), full, k * DEPTH,
                                      column);
            next(&turn);
        }
    }
}

/* Adding it rounds to an integer, ties to even, which is then in the low bits: exact up to 2^22. */
#define MAGIC 12582912.0f

struct strip {
    uint32_t row, column; /* its first: of the tile, of the product */
    float unit;           /* kept number to log2(e) times the logit */
    bool used, has_target;
    float inverse[2], shift[2]; /* of the thread's two rows */
};

/* Whether one of the strip's entries is a target: all threads of the warp know. */
__device__ static inline bool any_target(const struct logits &call, uint32_t row, uint32_t column)
{
    uint32_t lane = threadIdx.x % SFC_WARP;
    bool found = false;
#pragma unroll
    for (uint32_t i = 0; i < WIDTH / SFC_WARP; i++) {
        uint32_t at = column + lane + i * SFC_WARP;
        int32_t target =
            at < call.l.columns.count ? call.l.column_target[call.l.columns.first + at] : -1;
        int64_t from = (int64_t)target - (int64_t)(call.l.first + row);
        found = found || (target >= 0 && from >= 0 && from < STRIP);
    }
    return __any_sync(0xffffffffu, found);
}

/* A pair of cosines to kept numbers (returned) and exponentials (in their place). */
template <bool FILTER, bool TARGETS>
__device__ static inline uint32_t keep_pair(const struct logits &call, const struct strip &s,
                                            uint32_t row, uint32_t column, float inverse,
                                            float shift, float *pair)
{
    uint32_t q[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float cosine = fminf(1.0f, fmaxf(-1.0f, sfc_hd_mul(pair[i], inverse)));
        float rounded = sfc_hd_mul(cosine, SFC_COSINE_ONE) + MAGIC;
        bool filtered = FILTER && cosine > call.l.filter;
        q[i] = filtered ? (uint32_t)SFC_COSINE_FILTERED : __float_as_uint(rounded);
        float exponent = filtered ? shift : (rounded - MAGIC) * s.unit + shift;
        if (TARGETS && column + i < call.l.columns.count) {
            uint32_t at = call.l.columns.first + column + i;
            int32_t target = call.l.column_target[at];
            if (target >= 0 && (size_t)target == call.l.first + row) {
                q[i] = (uint32_t)SFC_COSINE_TARGET;
                call.l.target_product[at] = pair[i];
                exponent = -INFINITY;
            }
        }
        pair[i] = sfc_exp2_fast(exponent);
    }
    return (q[0] & 0xffffu) | q[1] << 16;
}

/* Adds the other half of a pair of lanes: each keeps N of 2 N sums, the upper lane the second. */
template <int N> __device__ static inline void halve(float *v, uint32_t lanes_apart)
{
    bool upper = threadIdx.x & lanes_apart;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float other = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + N], lanes_apart);
        v[i] = (upper ? v[i + N] : v[i]) + other;
    }
}

/* Sums over the eight lanes that have the same eight columns: each is left with the one whose
 * number is returned. */
__device__ static inline uint32_t add_lanes(float (&v)[8])
{
    halve<4>(v, 16);
    halve<2>(v, 8);
    halve<1>(v, 4);
    uint32_t lane = threadIdx.x;
    return (lane & 16) / 4 + (lane & 8) / 4 + (lane & 4) / 4;
}

/* d: the strip's part of the product. TARGETS: there may be some. */
template <bool FILTER, bool TARGETS>
__device__ static inline void use_logits(const struct logits &call, const struct place &p,
                                         uint32_t group, const struct strip &s, float (&d)[128])
{
    const struct sfc_cuda_logits &l = call.l;
    uint32_t lane = threadIdx.x % SFC_WARP, warp = threadIdx.x / SFC_WARP % 4, q = quad_lane();
    uint32_t row[2] = {s.row + warp * 16 + lane / 4, s.row + warp * 16 + lane / 4 + 8};
    float(*part)[WIDTH] = p.shared->part + group * 4;
#pragma unroll
    for (int t = 0; t < 8; t++) { /* 32 columns */
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t word[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                word[j] = keep_pair<FILTER, TARGETS>(
                    call, s, row[r], s.column + t * 32 + j * 8 + q * 2, s.inverse[r], s.shift[r],
                    &d[t * 16 + j * 4 + r * 2]);
            turn_words(word[0], word[1], word[2], word[3]);
            uint32_t column = s.column + t * 32 + q * 8;
            if (column < l.columns.count)
                __stcs((uint4 *)(void *)((int16_t *)l.z + (size_t)row[r] * l.columns.all +
                                         l.columns.first + column),
                       make_uint4(word[0], word[1], word[2], word[3]));
        }
        float sum[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum[j] = d[t * 16 + j / 2 * 4 + j % 2] + d[t * 16 + j / 2 * 4 + j % 2 + 2];
        uint32_t mine = add_lanes(sum);
        part[warp][t * 32 + mine / 2 * 8 + q * 2 + mine % 2] = sum[0];
    }
    hopper::meet_group(group);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t at = threadIdx.x % 128 + i * 128, column = s.column + at;
        double total = 0;
        for (int k = 0; k < 4; k++)
            total += (double)part[k][at];
        if (column < l.columns.count)
            l.exps[(size_t)(s.row / STRIP) * l.columns.all + l.columns.first + column] = total;
    }
    hopper::meet_group(group); /* before the parts are written again */
}

/* Loads what a result needs beside the product. */
__device__ static inline struct strip strip_of(const struct logits &call, const struct place &p,
                                               uint32_t group, uint32_t item)
{
    struct strip s = {};
    uint32_t lane = threadIdx.x % SFC_WARP, warp = threadIdx.x / SFC_WARP % 4;
    s.row = (item / call.wide * 2 + p.rank) * ROWS + group * STRIP;
    s.column = item % call.wide * WIDTH;
    s.unit = call.l.scale / SFC_COSINE_ONE * (float)LOG2_E;
    s.used = s.row < call.positions;
    for (uint32_t r = 0; s.used && r < 2; r++) {
        uint32_t row = s.row + warp * 16 + lane / 4 + r * 8;
        s.inverse[r] = call.l.inverse_norm[row];
        s.shift[r] = call.l.add[row] * (float)LOG2_E;
    }
    s.has_target = any_target(call, s.row, s.column);
    return s;
}

template <bool FILTER>
__device__ static void multiply_logits(const struct logits &call, const struct place &p)
{
    uint32_t group = threadIdx.x / 128;
    struct turn turn = {0, 0};
    float d[128];
    for (uint32_t item = blockIdx.x / 2; item < call.items; item += gridDim.x / 2) {
        struct strip s = strip_of(call, p, group, item);
        accumulate(p, group, call.k, &turn, d);
        if (s.used && s.has_target)
            use_logits<FILTER, true>(call, p, group, s, d);
        else if (s.used)
            use_logits<FILTER, false>(call, p, group, s, d);
        __syncwarp();
    }
}

template <bool FILTER>
__global__ static void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    fused_logits(const __grid_constant__ struct logits call, const __grid_constant__ CUtensorMap w,
                 const __grid_constant__ CUtensorMap x)
{
    extern __shared__ char memory[];
    struct place p = arrive(memory);
    if (threadIdx.x < WORKERS * 128) {
        hopper::take_registers<WORKER>();
        multiply_logits<FILTER>(call, p);
    } else {
        hopper::give_registers<FETCHER>();
        if (threadIdx.x == WORKERS * 128)
            fetch_logits(call, p, &w, &x);
    }
    __syncthreads();
    hopper::meet_cluster(); /* the other one's copies and arrivals come here */
}

/* ---- from the host */

static PFN_cuTensorMapEncodeTiled_v12000 find_encode()
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                          cudaEnableDefault, &result);
    return status || result ? nullptr : (PFN_cuTensorMapEncodeTiled_v12000)found;
}

static PFN_cuTensorMapEncodeTiled_v12000 encode()
{
    static const PFN_cuTensorMapEncodeTiled_v12000 found = find_encode();
    return found;
}

/* For boxes of 64 columns and so many rows. */
static cudaError_t map_of(const struct sfc_cuda_matrix *m, uint32_t rows, CUtensorMap *out)
{
    const cuuint64_t size[2] = {m->columns, m->rows}, stride[1] = {m->ld * 2};
    const cuuint32_t box[2] = {DEPTH, rows}, step[2] = {1, 1};
    CUresult result =
        encode()(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)m->at, size, stride, box, step,
                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result ? cudaErrorInvalidValue : cudaSuccess;
}

extern "C" bool sfc_cuda_fused_usable(int capability)
{
    return capability == 90 && encode();
}

/* As many clusters as the device has room for, or results. */
static cudaError_t clusters_of(uint32_t items, const void *kernel, unsigned *blocks)
{
    int device = 0, processors = 0;
    cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
    if (!status)
        status = cudaGetDevice(&device);
    if (!status)
        status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    uint32_t most = (uint32_t)processors / 2;
    *blocks = 2 * (items < most ? items : most);
    return status;
}

template <bool FILTER>
static cudaError_t launch_logits(const struct logits &call, const CUtensorMap &w,
                                 const CUtensorMap &x, cudaStream_t stream)
{
    unsigned blocks = 0;
    cudaError_t status = clusters_of(call.items, (const void *)fused_logits<FILTER>, &blocks);
    if (status)
        return status;
    fused_logits<FILTER><<<blocks, THREADS, SHARED_BYTES, stream>>>(call, w, x);
    return cudaGetLastError();
}

extern "C" cudaError_t sfc_cuda_fused_logits(const struct sfc_cuda_logits *l, size_t chunks,
                                             const struct sfc_cuda_matrix *w,
                                             const struct sfc_cuda_matrix *x, cudaStream_t stream)
{
    CUtensorMap w_map, x_map;
    cudaError_t status = map_of(w, ROWS, &w_map);
    if (!status)
        status = map_of(x, WIDTH / 2, &x_map);
    if (status)
        return status;
    struct logits call = {*l, 0, 0, 0, (uint32_t)(chunks * l->chunk)};
    call.wide = (l->columns.count + WIDTH - 1) / WIDTH;
    call.items = (call.positions + 2 * ROWS - 1) / (2 * ROWS) * call.wide;
    call.k = (uint32_t)((w->columns + DEPTH - 1) / DEPTH);
    return l->filter <= 1.0f ? launch_logits<true>(call, w_map, x_map, stream)
                             : launch_logits<false>(call, w_map, x_map, stream);
}

/* Rows of the store on the device (kernels.h): one warp works on one row, each lane on eight
 * columns at a time, 8 * 32 apart. Loads and stores have 16 bytes. */
#ifndef SFC_KERNELS_CUDA_RECORD_CUH
#define SFC_KERNELS_CUDA_RECORD_CUH

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/hd/rounding.h"

#define SFC_WARP       32
#define SFC_LANE_WIDTH 8                           /* columns of a lane in one go */
#define SFC_WARP_WIDTH (SFC_WARP * SFC_LANE_WIDTH) /* columns of a warp in one go */

struct sfc_eight {
    float v[SFC_LANE_WIDTH];
};

__device__ static inline float sfc_low_half(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

__device__ static inline float sfc_high_half(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* Records are used once in a pass: they make room in the L2 cache before the tiles of products,
 * which are written and read again at once, have to. */
__device__ static inline struct sfc_eight sfc_load_halves(const void *from)
{
    uint4 u = __ldcs((const uint4 *)from);
    struct sfc_eight e;
    e.v[0] = sfc_low_half(u.x), e.v[1] = sfc_high_half(u.x);
    e.v[2] = sfc_low_half(u.y), e.v[3] = sfc_high_half(u.y);
    e.v[4] = sfc_low_half(u.z), e.v[5] = sfc_high_half(u.z);
    e.v[6] = sfc_low_half(u.w), e.v[7] = sfc_high_half(u.w);
    return e;
}

__device__ static inline struct sfc_eight sfc_load_floats(const float *from)
{
    float4 a = __ldcs((const float4 *)from), b = __ldcs((const float4 *)(from + 4));
    struct sfc_eight e;
    e.v[0] = a.x, e.v[1] = a.y, e.v[2] = a.z, e.v[3] = a.w;
    e.v[4] = b.x, e.v[5] = b.y, e.v[6] = b.z, e.v[7] = b.w;
    return e;
}

__device__ static inline void sfc_store_floats(float *to, struct sfc_eight e)
{
    *(float4 *)to = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
    *(float4 *)(to + 4) = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
}

/* Into a record, which is not read again soon. */
__device__ static inline void sfc_stream_floats(float *to, struct sfc_eight e)
{
    __stcs((float4 *)to, make_float4(e.v[0], e.v[1], e.v[2], e.v[3]));
    __stcs((float4 *)(to + 4), make_float4(e.v[4], e.v[5], e.v[6], e.v[7]));
}

/* bits[i]: the number i in its high half, the low half is cut off. */
__device__ static inline uint4 sfc_high_halves(const uint32_t *bits)
{
    uint4 u;
    u.x = (bits[0] >> 16) | (bits[1] & 0xffff0000u);
    u.y = (bits[2] >> 16) | (bits[3] & 0xffff0000u);
    u.z = (bits[4] >> 16) | (bits[5] & 0xffff0000u);
    u.w = (bits[6] >> 16) | (bits[7] & 0xffff0000u);
    return u;
}

/* Bits of a float whose high half is the nearest bf16, ties to even. */
__device__ static inline uint32_t sfc_nearest_bits(float v)
{
    uint32_t u = __float_as_uint(v);
    return u + 0x7fffu + ((u >> 16) & 1u);
}

__device__ static inline float sfc_nearest(float v)
{
    return __uint_as_float(sfc_nearest_bits(v) & 0xffff0000u);
}

__device__ static inline void sfc_store_nearest(void *to, struct sfc_eight e)
{
    uint32_t bits[SFC_LANE_WIDTH];
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++)
        bits[i] = sfc_nearest_bits(e.v[i]);
    *(uint4 *)to = sfc_high_halves(bits);
}

__device__ static inline uint32_t sfc_row_in_block(const struct sfc_cuda_store &store, uint32_t row)
{
    return row & ((1u << store.shift) - 1);
}

__device__ static inline char *sfc_record_at(const struct sfc_cuda_store &store, uint32_t row)
{
    return store.records[row >> store.shift] + (size_t)sfc_row_in_block(store, row) * store.record;
}

/* Where tensor t of a record (1: the first moment) begins; SPLIT's weights take as much as f32. */
template <int FORMAT>
__device__ static inline char *sfc_tensor_at(const struct sfc_cuda_store &store, char *record,
                                             int t)
{
    size_t width = FORMAT == SFC_CUDA_BF16 ? sizeof(uint16_t) : sizeof(float);
    return record + (size_t)t * store.pitch * width;
}

/* The weights as they are. */
template <int FORMAT>
__device__ static inline struct sfc_eight sfc_load_w(const struct sfc_cuda_store &store,
                                                     char *record, uint32_t k)
{
    if (FORMAT == SFC_CUDA_F32)
        return sfc_load_floats((const float *)(void *)record + k);
    const uint16_t *high = (const uint16_t *)(void *)record;
    struct sfc_eight e = sfc_load_halves(high + k);
    if (FORMAT == SFC_CUDA_BF16)
        return e;
    uint4 u = __ldcs((const uint4 *)(high + store.pitch + k));
    const uint32_t low[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++) {
        int32_t rest = (int16_t)(low[i / 2] >> (i % 2 * 16));
        e.v[i] = __uint_as_float(__float_as_uint(e.v[i]) + (uint32_t)rest);
    }
    return e;
}

/* A moment: t 1 or 2. */
template <int FORMAT>
__device__ static inline struct sfc_eight sfc_load_moment(const struct sfc_cuda_store &store,
                                                          char *record, int t, uint32_t k)
{
    char *tensor = sfc_tensor_at<FORMAT>(store, record, t);
    if (FORMAT == SFC_CUDA_BF16)
        return sfc_load_halves((const uint16_t *)(void *)tensor + k);
    return sfc_load_floats((const float *)(void *)tensor + k);
}

/* What is added to the bits of eight numbers before their low halves are cut off. */
struct sfc_adds {
    uint32_t v[SFC_LANE_WIDTH];
};

__device__ static inline struct sfc_adds sfc_adds_of_nearest(struct sfc_eight e)
{
    struct sfc_adds adds;
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++)
        adds.v[i] = 0x7fffu + ((__float_as_uint(e.v[i]) >> 16) & 1u);
    return adds;
}

__device__ static inline void sfc_store_rounded(void *to, struct sfc_eight e, struct sfc_adds adds)
{
    uint32_t bits[SFC_LANE_WIDTH];
#pragma unroll
    for (int i = 0; i < SFC_LANE_WIDTH; i++)
        bits[i] = __float_as_uint(e.v[i]) + adds.v[i];
    __stcs((uint4 *)to, sfc_high_halves(bits));
}

/* adds: of BF16 only. */
template <int FORMAT>
__device__ static inline void sfc_store_w(const struct sfc_cuda_store &store, char *record,
                                          uint32_t k, struct sfc_eight e, struct sfc_adds adds)
{
    uint16_t *high = (uint16_t *)(void *)record;
    if (FORMAT == SFC_CUDA_F32) {
        sfc_stream_floats((float *)(void *)record + k, e);
    } else if (FORMAT == SFC_CUDA_BF16) {
        sfc_store_rounded(high + k, e, adds);
    } else {
        uint32_t bits[SFC_LANE_WIDTH], low[SFC_LANE_WIDTH];
#pragma unroll
        for (int i = 0; i < SFC_LANE_WIDTH; i++) {
            bits[i] = __float_as_uint(e.v[i]) + 0x8000u;
            low[i] = __float_as_uint(e.v[i]) << 16; /* v - (high << 16), modulo 2^16 */
        }
        __stcs((uint4 *)(void *)(high + k), sfc_high_halves(bits));
        __stcs((uint4 *)(void *)(high + store.pitch + k), sfc_high_halves(low));
    }
}

template <int FORMAT>
__device__ static inline void sfc_store_moment(const struct sfc_cuda_store &store, char *record,
                                               int t, uint32_t k, struct sfc_eight e,
                                               struct sfc_adds adds)
{
    char *tensor = sfc_tensor_at<FORMAT>(store, record, t);
    if (FORMAT == SFC_CUDA_BF16)
        sfc_store_rounded((uint16_t *)(void *)tensor + k, e, adds);
    else
        sfc_stream_floats((float *)(void *)tensor + k, e);
}

/* Sum over the lanes of a warp, in a fixed order; every lane has it. */
__device__ static inline float sfc_warp_sum(float v)
{
#pragma unroll
    for (int offset = SFC_WARP / 2; offset; offset /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

#endif

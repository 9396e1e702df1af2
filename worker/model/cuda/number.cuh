/* Number formats of activations: how eight neighbouring numbers, or one, are read and written. The
 * conversions are bit arithmetic, so that a host computes them with the same bits. */
#ifndef SFC_WORKER_MODEL_CUDA_NUMBER_CUH
#define SFC_WORKER_MODEL_CUDA_NUMBER_CUH

#include "kernels/cuda/launch.h"
#include "worker/model/cuda/kernels.h"

/* Nearest bf16, ties to even; a NaN stays one. */
__device__ static inline uint32_t sfc_to_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return u >> 16 | 0x40u;
    return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

__device__ static inline float sfc_from_bf16(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

/* Nearest f16, ties to even; what is too large becomes infinite. */
__device__ static inline uint32_t sfc_to_f16(float x)
{
    uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7e00u;
    if (u >= 0x47800000u) /* 2^16 */
        return sign | 0x7c00u;
    if (u < 0x38800000u) /* below 2^-14: f32's adder rounds at 2^-24 when 0.5 is added */
        return sign | (__float_as_uint(__uint_as_float(u) + 0.5f) - 0x3f000000u);
    return sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13);
}

__device__ static inline float sfc_from_f16(uint32_t bits)
{
    uint32_t u = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    float magnitude = __uint_as_float(u) * 0x1p112f; /* denormals too */
    if (u >= 0x0f800000u)                            /* infinite or NaN */
        magnitude = __uint_as_float(u | 0x7f800000u);
    return __uint_as_float(__float_as_uint(magnitude) | sign);
}

struct sfc_f32 {
    typedef float store;
    __device__ static float get(const float *at)
    {
        return *at;
    }
    __device__ static void put(float *at, float x)
    {
        *at = x;
    }
    __device__ static void get8(const float *at, float *x)
    {
        float4 a = ((const float4 *)at)[0], b = ((const float4 *)at)[1];
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }
    __device__ static void put8(float *at, const float *x)
    {
        float4 a, b;
        a.x = x[0], a.y = x[1], a.z = x[2], a.w = x[3];
        b.x = x[4], b.y = x[5], b.z = x[6], b.w = x[7];
        ((float4 *)at)[0] = a;
        ((float4 *)at)[1] = b;
    }
};

struct sfc_bf16 {
    typedef uint16_t store;
    __device__ static float from(uint32_t bits)
    {
        return sfc_from_bf16(bits);
    }
    __device__ static uint32_t to(float x)
    {
        return sfc_to_bf16(x);
    }
};

struct sfc_f16 {
    typedef uint16_t store;
    __device__ static float from(uint32_t bits)
    {
        return sfc_from_f16(bits);
    }
    __device__ static uint32_t to(float x)
    {
        return sfc_to_f16(x);
    }
};

/* Access to a format of 16 bits. */
template <class Format> struct sfc_half : Format {
    __device__ static float get(const uint16_t *at)
    {
        return Format::from(*at);
    }
    __device__ static void put(uint16_t *at, float x)
    {
        *at = (uint16_t)Format::to(x);
    }
    __device__ static void get8(const uint16_t *at, float *x)
    {
        uint4 v = *(const uint4 *)at;
        x[0] = Format::from(v.x & 0xffffu), x[1] = Format::from(v.x >> 16);
        x[2] = Format::from(v.y & 0xffffu), x[3] = Format::from(v.y >> 16);
        x[4] = Format::from(v.z & 0xffffu), x[5] = Format::from(v.z >> 16);
        x[6] = Format::from(v.w & 0xffffu), x[7] = Format::from(v.w >> 16);
    }
    __device__ static void put8(uint16_t *at, const float *x)
    {
        uint4 v;
        v.x = Format::to(x[0]) | Format::to(x[1]) << 16;
        v.y = Format::to(x[2]) | Format::to(x[3]) << 16;
        v.z = Format::to(x[4]) | Format::to(x[5]) << 16;
        v.w = Format::to(x[6]) | Format::to(x[7]) << 16;
        *(uint4 *)at = v;
    }
};

/* `Width` neighbouring numbers, 1 or 8. */
template <class Number, int Width>
__device__ static inline void sfc_get(const typename Number::store *at, float *x)
{
    if (Width == 8)
        Number::get8(at, x);
    else
        x[0] = Number::get(at);
}

template <class Number, int Width>
__device__ static inline void sfc_put(typename Number::store *at, const float *x)
{
    if (Width == 8)
        Number::put8(at, x);
    else
        Number::put(at, x[0]);
}

/* return CALL(a number format) for the format that `number` names. */
#define SFC_WITH_NUMBER(number, CALL)                                                              \
    switch (number) {                                                                              \
    case SFC_NUMBER_F32:                                                                           \
        return CALL(sfc_f32);                                                                      \
    case SFC_NUMBER_BF16:                                                                          \
        return CALL(sfc_half<sfc_bf16>);                                                           \
    case SFC_NUMBER_F16:                                                                           \
        return CALL(sfc_half<sfc_f16>);                                                            \
    }                                                                                              \
    return cudaErrorInvalidValue

#endif

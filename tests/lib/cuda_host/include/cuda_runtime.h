/* The part of CUDA C++ that kernels/cuda uses, for the host's C++ compiler
 * (tests/lib/cuda_host/cuda_host.h). Shared arrays are rewritten by shared.sed: `__shared__ T
 * name[N];` becomes SFC_CUDA_SHARED. */
#ifndef SFC_TESTS_CUDA_RUNTIME_H
#define SFC_TESTS_CUDA_RUNTIME_H

#include <cmath>
#include <cstring>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <tuple>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "tests/lib/cuda_host/device.h"

#define __global__
#define __device__
#define __host__
#define __constant__    const
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
    operator sfc_cuda_dim3() const
    {
        return {x, y, z};
    }
};
#define threadIdx (sfc_cuda_here->thread)
#define blockIdx  (sfc_cuda_grid.block)
#define blockDim  (sfc_cuda_grid.threads)
#define gridDim   (sfc_cuda_grid.blocks)
#define warpSize  32

#define SFC_VECTORS(type, name, bytes)                                                             \
    struct alignas(2 * bytes) name##2                                                              \
    {                                                                                              \
        type x, y;                                                                                 \
    };                                                                                             \
    struct alignas(4 * bytes) name##4                                                              \
    {                                                                                              \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##2 make_##name##2(type x, type y)                                           \
    {                                                                                              \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w)                           \
    {                                                                                              \
        return {x, y, z, w};                                                                       \
    }
SFC_VECTORS(float, float, 4)
SFC_VECTORS(int, int, 4)
SFC_VECTORS(unsigned, uint, 4)
SFC_VECTORS(unsigned short, ushort, 2)
SFC_VECTORS(short, short, 2)
#undef SFC_VECTORS
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) longlong2 {
    long long x, y;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

#define SFC_CUDA_SHARED(name, ...)                                                                 \
    static char name##_key;                                                                        \
    using name##_shared = __VA_ARGS__;                                                             \
    name##_shared &name =                                                                          \
        *static_cast<name##_shared *>(sfc_cuda_shared(&name##_key, sizeof(name##_shared)))

/* ---- launches */

template <class P> static inline void sfc_cuda_check_argument(const char *name, const P &argument)
{
    if constexpr (std::is_pointer_v<P>)
        sfc_cuda_check_pointer(name, argument);
}

/* Arguments become the kernel's parameters once, when the grid is started. */
template <class... P, class... A>
static inline void sfc_cuda_start(const char *name, dim3 grid, dim3 block, cudaStream_t stream,
                                  void (*kernel)(P...), A... arguments)
{
    struct call {
        void (*kernel)(P...);
        std::tuple<P...> parameters;
    };
    call *c = new call{kernel, std::tuple<P...>(arguments...)};
    std::apply([&](const auto &...p) { (sfc_cuda_check_argument(name, p), ...); }, c->parameters);
    sfc_cuda_launch(
        name, grid, block, stream,
        [](void *arg) {
            const call *of = static_cast<const call *>(arg);
            std::apply(of->kernel, of->parameters);
        },
        [](void *arg) { delete static_cast<call *>(arg); }, c);
}

#define SFC_LAUNCH(kernel, grid, block, stream, ...)                                               \
    sfc_cuda_start(#kernel, dim3(grid), dim3(block), stream, kernel, ##__VA_ARGS__)

/* ---- barriers and warps */

#define SFC_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(SFC_HERE)
{
    sfc_cuda_meet_block(file, line);
}

static inline void __syncwarp(unsigned mask = UINT32_MAX, SFC_HERE)
{
    sfc_cuda_meet_warp(SFC_CUDA_SYNCWARP, mask, 0, file, line);
}

template <class T>
static inline T sfc_cuda_exchange(sfc_cuda_meeting kind, unsigned mask, T value, unsigned source,
                                  const char *file, int line)
{
    static_assert(std::is_arithmetic_v<T>, "shuffles are of numbers");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t *all = sfc_cuda_meet_warp(kind, mask, bits, file, line);
    std::memcpy(&value, &all[source], sizeof value);
    return value;
}

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, SFC_HERE)
{
    unsigned lane = sfc_cuda_here->lane, first = lane / (unsigned)width * (unsigned)width;
    return sfc_cuda_exchange(SFC_CUDA_SHFL, mask, value, first + (unsigned)source % (unsigned)width,
                             file, line);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = warpSize, SFC_HERE)
{
    unsigned lane = sfc_cuda_here->lane, other = lane ^ (unsigned)with;
    bool inside = other / (unsigned)width <= lane / (unsigned)width;
    return sfc_cuda_exchange(SFC_CUDA_SHFL_XOR, mask, value, inside ? other : lane, file, line);
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize, SFC_HERE)
{
    unsigned lane = sfc_cuda_here->lane;
    bool inside = lane % (unsigned)width >= by;
    return sfc_cuda_exchange(SFC_CUDA_SHFL_UP, mask, value, inside ? lane - by : lane, file, line);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize,
                                 SFC_HERE)
{
    unsigned lane = sfc_cuda_here->lane;
    bool inside = lane % (unsigned)width + by < (unsigned)width;
    return sfc_cuda_exchange(SFC_CUDA_SHFL_DOWN, mask, value, inside ? lane + by : lane, file,
                             line);
}

static inline unsigned sfc_cuda_votes(sfc_cuda_meeting kind, unsigned mask, int predicate,
                                      const char *file, int line)
{
    const uint64_t *all = sfc_cuda_meet_warp(kind, mask, predicate != 0, file, line);
    unsigned votes = 0;
    for (unsigned i = 0; i < warpSize; i++)
        votes |= (unsigned)all[i] << i;
    return votes;
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, SFC_HERE)
{
    return sfc_cuda_votes(SFC_CUDA_BALLOT, mask, predicate, file, line);
}

static inline int __any_sync(unsigned mask, int predicate, SFC_HERE)
{
    return sfc_cuda_votes(SFC_CUDA_ANY, mask, predicate, file, line) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, SFC_HERE)
{
    return sfc_cuda_votes(SFC_CUDA_ALL, mask, predicate, file, line) == UINT32_MAX;
}

#undef SFC_HERE

/* ---- atomics: only one thread runs at a time */

template <class T, class F> static inline T sfc_cuda_replace(T *at, F next)
{
    T old = *at;
    *at = next(old);
    return old;
}

#define SFC_ATOMIC(name, type, result)                                                             \
    static inline type name(type *at, type value)                                                  \
    {                                                                                              \
        return sfc_cuda_replace(at, [value](type old) { return static_cast<type>(result); });      \
    }
SFC_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
SFC_ATOMIC(atomicAdd, unsigned, old + value)
SFC_ATOMIC(atomicAdd, unsigned long long, old + value)
SFC_ATOMIC(atomicMax, int, old > value ? old : value)
SFC_ATOMIC(atomicMax, unsigned, old > value ? old : value)
SFC_ATOMIC(atomicMax, unsigned long long, old > value ? old : value)
SFC_ATOMIC(atomicMin, int, old < value ? old : value)
SFC_ATOMIC(atomicMin, unsigned, old < value ? old : value)
SFC_ATOMIC(atomicMin, unsigned long long, old < value ? old : value)
SFC_ATOMIC(atomicOr, unsigned, old | value)
SFC_ATOMIC(atomicOr, unsigned long long, old | value)
#undef SFC_ATOMIC

static inline void __threadfence(void)
{
}
static inline void __threadfence_block(void)
{
}

/* ---- numbers */

template <class To, class From> static inline To sfc_cuda_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "bits of the same number");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float x)
{
    return sfc_cuda_bits<unsigned>(x);
}
static inline int __float_as_int(float x)
{
    return sfc_cuda_bits<int>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return sfc_cuda_bits<float>(x);
}
static inline float __int_as_float(int x)
{
    return sfc_cuda_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return sfc_cuda_bits<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return sfc_cuda_bits<double>(x);
}

/* To the nearest, ties to even; out of range: the nearest number of the type; NaN as on the device.
 */
static inline long long __double2ll_rn(double x)
{
    if (x != x)
        return LLONG_MIN;
    return x >= 0x1p63 ? LLONG_MAX : x < -0x1p63 ? LLONG_MIN : static_cast<long long>(rint(x));
}
static inline long long __float2ll_rn(float x)
{
    return __double2ll_rn(static_cast<double>(x));
}
static inline int __double2int_rn(double x)
{
    if (x != x)
        return INT_MIN;
    x = rint(x);
    return x >= 0x1p31 ? INT_MAX : x < -0x1p31 ? INT_MIN : static_cast<int>(x);
}
static inline int __float2int_rn(float x)
{
    return x != x ? 0 : __double2int_rn(static_cast<double>(x));
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __ffs(unsigned x)
{
    return __builtin_ffs(static_cast<int>(x));
}
static inline int __clz(unsigned x)
{
    return x ? __builtin_clz(x) : 32;
}
static inline int __clzll(unsigned long long x)
{
    return x ? __builtin_clzll(x) : 64;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __fma_rn(double a, double b, double c)
{
    return fma(a, b, c);
}
static inline float rsqrtf(float x)
{
    return 1 / sqrtf(x);
}
static inline double rsqrt(double x)
{
    return 1 / sqrt(x);
}
/* The device's is approximate too; here it is the best there is. */
static inline float sfc_exp2_fast(float x)
{
    return exp2f(x);
}
template <class T> static inline T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T> static inline T max(T a, T b)
{
    return a < b ? b : a;
}
using std::isfinite;
using std::isinf;
using std::isnan;

/* ---- memory */

template <class T> static inline const T *sfc_cuda_aligned(const T *at)
{
    if (reinterpret_cast<uintptr_t>(at) % sizeof(T))
        __builtin_trap(); /* an access that is not aligned, which ends a kernel on the device */
    return at;
}
template <class T> static inline T __ldg(const T *at)
{
    return *sfc_cuda_aligned(at);
}
template <class T> static inline T __ldcs(const T *at)
{
    return *sfc_cuda_aligned(at);
}
template <class T> static inline T __ldcg(const T *at)
{
    return *sfc_cuda_aligned(at);
}
template <class T> static inline void __stcs(T *at, T value)
{
    *const_cast<T *>(sfc_cuda_aligned(at)) = value;
}
template <class T> static inline void __stcg(T *at, T value)
{
    *const_cast<T *>(sfc_cuda_aligned(at)) = value;
}

#endif

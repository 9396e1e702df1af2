/* Images, features and weights between the formats of the host and those of the products; sums. */
#include "worker/model/cuda/number.cuh"

#define THREADS SFC_BLOCK_THREADS

static dim3 blocks_for(uint32_t items)
{
    return dim3((items + THREADS - 1) / THREADS);
}

template <class Number>
__global__ static void images_kernel(uint32_t count, uint32_t channels, uint32_t pixels,
                                     const float *from, typename Number::store *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    uint32_t c = i % channels, row = i / channels, pixel = row % pixels, image = row / pixels;
    Number::put(to + i, from[(image * channels + c) * pixels + pixel]);
}

template <class Number>
static cudaError_t images(cudaStream_t stream, uint32_t batch, uint32_t channels, uint32_t pixels,
                          const float *from, void *to)
{
    uint32_t count = batch * channels * pixels;
    auto kernel = images_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count), dim3(THREADS), stream, count, channels, pixels, from,
               (typename Number::store *)to);
    return cudaGetLastError();
}

cudaError_t sfc_launch_images(cudaStream_t stream, enum sfc_number number, uint32_t batch,
                              uint32_t channels, uint32_t pixels, const float *from, void *to)
{
#define CALL(N) images<N>(stream, batch, channels, pixels, from, to)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
__global__ static void narrow_kernel(uint32_t count, const float *from, float scale,
                                     typename Number::store *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        Number::put(to + i, from[i] * scale);
}

template <class Number>
static cudaError_t narrow(cudaStream_t stream, uint32_t count, const float *from, float scale,
                          void *to)
{
    auto kernel = narrow_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count), dim3(THREADS), stream, count, from, scale,
               (typename Number::store *)to);
    return cudaGetLastError();
}

cudaError_t sfc_launch_narrow(cudaStream_t stream, enum sfc_number number, uint32_t count,
                              const float *from, float scale, void *to)
{
#define CALL(N) narrow<N>(stream, count, from, scale, to)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
__global__ static void widen_kernel(uint32_t count, const typename Number::store *from, float *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        to[i] = Number::get(from + i);
}

template <class Number>
static cudaError_t widen(cudaStream_t stream, uint32_t count, const void *from, float *to)
{
    auto kernel = widen_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count), dim3(THREADS), stream, count,
               (const typename Number::store *)from, to);
    return cudaGetLastError();
}

cudaError_t sfc_launch_widen(cudaStream_t stream, enum sfc_number number, uint32_t count,
                             const void *from, float *to)
{
#define CALL(N) widen<N>(stream, count, from, to)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

/* A weight's place in [outer, inner, taps], from its place i in [outer, taps, inner]. */
__device__ static inline uint32_t plain_place(uint32_t i, uint32_t inner, uint32_t taps)
{
    uint32_t c = i % inner, line = i / inner;
    return (line / taps * inner + c) * taps + line % taps;
}

template <class Number>
__global__ static void pack_kernel(uint32_t count, uint32_t inner, uint32_t taps, const float *from,
                                   typename Number::store *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        Number::put(to + i, from[plain_place(i, inner, taps)]);
}

template <class Number>
static cudaError_t pack(cudaStream_t stream, uint32_t outer, uint32_t inner, uint32_t taps,
                        const float *from, void *to)
{
    uint32_t count = outer * inner * taps;
    auto kernel = pack_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count), dim3(THREADS), stream, count, inner, taps, from,
               (typename Number::store *)to);
    return cudaGetLastError();
}

cudaError_t sfc_launch_pack(cudaStream_t stream, enum sfc_number number, uint32_t outer,
                            uint32_t inner, uint32_t taps, const float *from, void *to)
{
#define CALL(N) pack<N>(stream, outer, inner, taps, from, to)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
__global__ static void unpack_kernel(uint32_t count, uint32_t inner, uint32_t taps,
                                     const typename Number::store *from, float scale, float *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        to[plain_place(i, inner, taps)] = Number::get(from + i) * scale;
}

template <class Number>
static cudaError_t unpack(cudaStream_t stream, uint32_t outer, uint32_t inner, uint32_t taps,
                          const void *from, float scale, float *to)
{
    uint32_t count = outer * inner * taps;
    auto kernel = unpack_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count), dim3(THREADS), stream, count, inner, taps,
               (const typename Number::store *)from, scale, to);
    return cudaGetLastError();
}

cudaError_t sfc_launch_unpack(cudaStream_t stream, enum sfc_number number, uint32_t outer,
                              uint32_t inner, uint32_t taps, const void *from, float scale,
                              float *to)
{
#define CALL(N) unpack<N>(stream, outer, inner, taps, from, scale, to)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

__global__ static void fill_kernel(uint32_t count, float value, float *to)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        to[i] = value;
}

cudaError_t sfc_launch_fill(cudaStream_t stream, uint32_t count, float value, float *to)
{
    SFC_LAUNCH(fill_kernel, blocks_for(count), dim3(THREADS), stream, count, value, to);
    return cudaGetLastError();
}

/* A thread adds eight neighbours, or what is left of them at the end. */
template <class Number>
__global__ static void add_kernel(uint32_t count, const typename Number::store *a,
                                  const typename Number::store *b, typename Number::store *out)
{
    uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= count) {
        float x[8], y[8];
        Number::get8(a + i, x);
        Number::get8(b + i, y);
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] += y[k];
        Number::put8(out + i, x);
        return;
    }
    for (; i < count; i++)
        Number::put(out + i, Number::get(a + i) + Number::get(b + i));
}

template <class Number>
static cudaError_t add(cudaStream_t stream, uint32_t count, const void *a, const void *b, void *out)
{
    typedef typename Number::store store;
    auto kernel = add_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for((count + 7) / 8), dim3(THREADS), stream, count, (const store *)a,
               (const store *)b, (store *)out);
    return cudaGetLastError();
}

cudaError_t sfc_launch_add(cudaStream_t stream, enum sfc_number number, uint32_t count,
                           const void *a, const void *b, void *out)
{
#define CALL(N) add<N>(stream, count, a, b, out)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

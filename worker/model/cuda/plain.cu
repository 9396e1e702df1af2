/* Convolutions as plain loops, one thread per result: for what cuDNN has no deterministic engine
 * for, and to compare with. */
#include "worker/model/cuda/number.cuh"

#define THREADS SFC_BLOCK_THREADS

template <class Number>
__global__ static void
forward_kernel(struct sfc_plain_conv c, uint32_t count, const typename Number::store *x,
               const typename Number::store *weights, typename Number::store *y)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    struct sfc_window w = c.window;
    uint32_t inner = w.channels / c.groups, k = i % c.out_channels, row = i / c.out_channels;
    uint32_t ox = row % w.out_width, oy = row / w.out_width % w.out_height;
    uint32_t image = row / w.out_width / w.out_height;
    uint32_t first = k / (c.out_channels / c.groups) * inner;
    const typename Number::store *kernel =
        weights + (size_t)k * w.kernel_height * w.kernel_width * inner;
    float sum = 0;
    for (uint32_t ky = 0; ky < w.kernel_height; ky++) {
        uint32_t iy = oy * w.stride + ky - w.pad; /* below 0 wraps */
        for (uint32_t kx = 0; kx < w.kernel_width; kx++, kernel += inner) {
            uint32_t ix = ox * w.stride + kx - w.pad;
            if (iy >= w.in_height || ix >= w.in_width)
                continue;
            size_t at = (((size_t)image * w.in_height + iy) * w.in_width + ix) * w.channels + first;
            for (uint32_t n = 0; n < inner; n++)
                sum += Number::get(x + at + n) * Number::get(kernel + n);
        }
    }
    Number::put(y + i, sum);
}

template <class Number>
__global__ static void
data_kernel(struct sfc_plain_conv c, uint32_t count, const typename Number::store *dy,
            const typename Number::store *weights, typename Number::store *dx)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    struct sfc_window w = c.window;
    uint32_t inner = w.channels / c.groups, outer = c.out_channels / c.groups;
    uint32_t channel = i % w.channels, row = i / w.channels,
             taps = w.kernel_height * w.kernel_width;
    uint32_t ix = row % w.in_width, iy = row / w.in_width % w.in_height;
    uint32_t image = row / w.in_width / w.in_height, first = channel / inner * outer;
    float sum = 0;
    for (uint32_t tap = 0; tap < taps; tap++) {
        uint32_t y = iy + w.pad - tap / w.kernel_width, x = ix + w.pad - tap % w.kernel_width;
        uint32_t oy = y / w.stride, ox = x / w.stride;
        if (y % w.stride || x % w.stride || oy >= w.out_height || ox >= w.out_width ||
            y > iy + w.pad || x > ix + w.pad) /* below 0 wraps */
            continue;
        size_t at = (((size_t)image * w.out_height + oy) * w.out_width + ox) * c.out_channels;
        for (uint32_t k = first; k < first + outer; k++)
            sum += Number::get(dy + at + k) *
                   Number::get(weights + ((size_t)k * taps + tap) * inner + channel % inner);
    }
    Number::put(dx + i, sum);
}

/* partial[chunk * count + i]: weight i's gradient from a chunk of output pixels. */
template <class Number>
__global__ static void weights_kernel(struct sfc_plain_conv c, uint32_t count, uint32_t rows,
                                      const typename Number::store *x,
                                      const typename Number::store *dy, float *partial)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    struct sfc_window w = c.window;
    uint32_t inner = w.channels / c.groups, taps = w.kernel_height * w.kernel_width;
    uint32_t n = i % inner, tap = i / inner % taps, k = i / inner / taps;
    uint32_t channel = k / (c.out_channels / c.groups) * inner + n;
    uint32_t each = (rows + SFC_PLAIN_CHUNKS - 1) / SFC_PLAIN_CHUNKS;
    uint32_t row = blockIdx.y * each, end = row + each < rows ? row + each : rows;
    float sum = 0;
    for (; row < end; row++) {
        uint32_t ox = row % w.out_width, oy = row / w.out_width % w.out_height;
        uint32_t image = row / w.out_width / w.out_height;
        uint32_t iy = oy * w.stride + tap / w.kernel_width - w.pad;
        uint32_t ix = ox * w.stride + tap % w.kernel_width - w.pad;
        if (iy >= w.in_height || ix >= w.in_width)
            continue;
        size_t at = (((size_t)image * w.in_height + iy) * w.in_width + ix) * w.channels + channel;
        sum += Number::get(x + at) * Number::get(dy + (size_t)row * c.out_channels + k);
    }
    partial[(size_t)blockIdx.y * count + i] = sum;
}

__global__ static void finish_kernel(uint32_t count, const float *partial, float *dw)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    double sum = 0;
    for (uint32_t chunk = 0; chunk < SFC_PLAIN_CHUNKS; chunk++)
        sum += (double)partial[(size_t)chunk * count + i];
    dw[i] = (float)sum;
}

static dim3 blocks_for(uint32_t items, uint32_t chunks)
{
    return dim3((items + THREADS - 1) / THREADS, chunks);
}

template <class Number>
static cudaError_t forward(cudaStream_t stream, const struct sfc_plain_conv *c, const void *x,
                           const void *weights, void *y)
{
    typedef typename Number::store store;
    uint32_t count = c->window.batch * c->window.out_height * c->window.out_width * c->out_channels;
    auto kernel = forward_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count, 1), dim3(THREADS), stream, *c, count, (const store *)x,
               (const store *)weights, (store *)y);
    return cudaGetLastError();
}

cudaError_t sfc_launch_plain_conv(cudaStream_t stream, enum sfc_number number,
                                  const struct sfc_plain_conv *c, const void *x,
                                  const void *weights, void *y)
{
#define CALL(N) forward<N>(stream, c, x, weights, y)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
static cudaError_t backward_data(cudaStream_t stream, const struct sfc_plain_conv *c,
                                 const void *dy, const void *weights, void *dx)
{
    typedef typename Number::store store;
    uint32_t count =
        c->window.batch * c->window.in_height * c->window.in_width * c->window.channels;
    auto kernel = data_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count, 1), dim3(THREADS), stream, *c, count, (const store *)dy,
               (const store *)weights, (store *)dx);
    return cudaGetLastError();
}

cudaError_t sfc_launch_plain_conv_data(cudaStream_t stream, enum sfc_number number,
                                       const struct sfc_plain_conv *c, const void *dy,
                                       const void *weights, void *dx)
{
#define CALL(N) backward_data<N>(stream, c, dy, weights, dx)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
static cudaError_t backward_weights(cudaStream_t stream, const struct sfc_plain_conv *c,
                                    const void *x, const void *dy, float *partial, float *dw)
{
    typedef typename Number::store store;
    uint32_t rows = c->window.batch * c->window.out_height * c->window.out_width;
    uint32_t count = c->out_channels * c->window.kernel_height * c->window.kernel_width *
                     (c->window.channels / c->groups);
    auto kernel = weights_kernel<Number>;
    SFC_LAUNCH(kernel, blocks_for(count, SFC_PLAIN_CHUNKS), dim3(THREADS), stream, *c, count, rows,
               (const store *)x, (const store *)dy, partial);
    SFC_LAUNCH(finish_kernel, blocks_for(count, 1), dim3(THREADS), stream, count,
               (const float *)partial, dw);
    return cudaGetLastError();
}

cudaError_t sfc_launch_plain_conv_weights(cudaStream_t stream, enum sfc_number number,
                                          const struct sfc_plain_conv *c, const void *x,
                                          const void *dy, float *partial, float *dw)
{
#define CALL(N) backward_weights<N>(stream, c, x, dy, partial, dw)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

/* Windows with one weight per tap and channel: depthwise and global convolutions, pooling. A thread
 * has a pixel and its channels; the threads of a block differ in channel first. */
#include "worker/model/cuda/rows.cuh"

/* [first, last] of the outputs that see input position `at`; empty where last < first. */
struct span {
    int first, last;
};

__device__ static inline struct span outputs_of(uint32_t at, uint32_t kernel, uint32_t stride,
                                                uint32_t pad, uint32_t out)
{
    struct span s;
    int reach = (int)(at + pad), low = reach - (int)kernel + 1, step = (int)stride;
    s.first = low <= 0 ? 0 : (low + step - 1) / step;
    s.last = reach / step;
    s.last = s.last < (int)out - 1 ? s.last : (int)out - 1;
    return s;
}

struct pixel {
    uint32_t image, y, x;
};

__device__ static inline struct pixel pixel_of(uint32_t row, uint32_t height, uint32_t width)
{
    struct pixel p;
    p.x = row % width;
    row /= width;
    p.y = row % height;
    p.image = row / height;
    return p;
}

/* The place of input (image, y, x), or false outside of the image. */
__device__ static inline bool input_at(const struct sfc_window &w, struct pixel out, uint32_t ky,
                                       uint32_t kx, size_t *place)
{
    uint32_t y = out.y * w.stride + ky - w.pad, x = out.x * w.stride + kx - w.pad;
    if (y >= w.in_height || x >= w.in_width) /* below 0 wraps */
        return false;
    *place = ((size_t)out.image * w.in_height + y) * w.in_width + x;
    return true;
}

template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    forward_kernel(struct sfc_window w, uint32_t rows, const typename Number::store *x,
                   const float *weights, typename Number::store *y)
{
    uint32_t c = sfc_own_channel<Width>(), row = blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= w.channels || row >= rows)
        return;
    struct pixel p = pixel_of(row, w.out_height, w.out_width);
    float sum[Width] = {0}, v[Width], k[Width];
    for (uint32_t ky = 0; ky < w.kernel_height; ky++) {
        for (uint32_t kx = 0; kx < w.kernel_width; kx++) {
            size_t at;
            if (!input_at(w, p, ky, kx, &at))
                continue;
            sfc_get<Number, Width>(x + at * w.channels + c, v);
            sfc_get<sfc_f32, Width>(weights + (ky * w.kernel_width + kx) * w.channels + c, k);
#pragma unroll
            for (int i = 0; i < Width; i++)
                sum[i] += v[i] * k[i];
        }
    }
    sfc_put<Number, Width>(y + (size_t)row * w.channels + c, sum);
}

template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    data_kernel(struct sfc_window w, uint32_t rows, const typename Number::store *dy,
                const float *weights, typename Number::store *dx)
{
    uint32_t c = sfc_own_channel<Width>(), row = blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= w.channels || row >= rows)
        return;
    struct pixel p = pixel_of(row, w.in_height, w.in_width);
    struct span ys = outputs_of(p.y, w.kernel_height, w.stride, w.pad, w.out_height);
    struct span xs = outputs_of(p.x, w.kernel_width, w.stride, w.pad, w.out_width);
    float sum[Width] = {0}, v[Width], k[Width];
    for (int y = ys.first; y <= ys.last; y++) {
        uint32_t ky = p.y + w.pad - (uint32_t)y * w.stride;
        size_t line = ((size_t)p.image * w.out_height + (uint32_t)y) * w.out_width;
        for (int at = xs.first; at <= xs.last; at++) {
            uint32_t tap = ky * w.kernel_width + p.x + w.pad - (uint32_t)at * w.stride;
            sfc_get<Number, Width>(dy + (line + (uint32_t)at) * w.channels + c, v);
            sfc_get<sfc_f32, Width>(weights + (size_t)tap * w.channels + c, k);
#pragma unroll
            for (int i = 0; i < Width; i++)
                sum[i] += v[i] * k[i];
        }
    }
    sfc_put<Number, Width>(dx + (size_t)row * w.channels + c, sum);
}

/* Taps blockIdx.z * Taps and the following: partial sums of x * dy over a chunk of output pixels.
 */
template <class Number, int Width, int Taps>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    weights_kernel(struct sfc_window w, struct sfc_cut cut, uint32_t rows,
                   const typename Number::store *x, const typename Number::store *dy,
                   double *partial)
{
    __shared__ float buffer[SFC_BLOCK_THREADS * Width];
    uint32_t c = sfc_own_channel<Width>(), first = blockIdx.z * Taps;
    uint32_t row = blockIdx.x * cut.chunk_rows, end = row + cut.chunk_rows;
    uint32_t taps = w.kernel_height * w.kernel_width;
    float sum[Taps][Width] = {{0}}, v[Width], g[Width];
    end = end < rows ? end : rows;
    for (row += threadIdx.y; c < w.channels && row < end; row += blockDim.y) {
        struct pixel p = pixel_of(row, w.out_height, w.out_width);
        sfc_get<Number, Width>(dy + (size_t)row * w.channels + c, g);
#pragma unroll
        for (int t = 0; t < Taps; t++) {
            size_t at;
            uint32_t wide = Taps == 9 ? 3 : w.kernel_width;
            if (!input_at(w, p, (first + t) / wide, (first + t) % wide, &at))
                continue;
            sfc_get<Number, Width>(x + at * w.channels + c, v);
#pragma unroll
            for (int i = 0; i < Width; i++)
                sum[t][i] += v[i] * g[i];
        }
    }
#pragma unroll
    for (int t = 0; t < Taps; t++) {
        double *out = partial + ((size_t)blockIdx.x * taps + first + t) * w.channels;
        sfc_sum_lines<Width>(sum[t], buffer, w.channels, out);
    }
}

__global__ static void finish_kernel(uint32_t channels, uint32_t taps, uint32_t chunks,
                                     const double *partial, float scale, float *gradient)
{
    __shared__ double buffer[SFC_FINISH_CHANNELS * SFC_FINISH_LINES];
    uint32_t i = blockIdx.x * SFC_FINISH_CHANNELS + threadIdx.x;
    bool mine = i < channels * taps;
    double sum = sfc_sum_chunks(partial + i, mine, chunks, (size_t)channels * taps, buffer);
    if (mine && threadIdx.y == 0)
        gradient[i % channels * taps + i / channels] = (float)sum * scale;
}

static dim3 pixel_grid(const struct sfc_cut *cut, uint32_t rows)
{
    return dim3((rows + cut->lines - 1) / cut->lines, cut->tiles);
}

template <class Number>
static cudaError_t forward(cudaStream_t stream, const struct sfc_window *w, const void *x,
                           const float *weights, void *y)
{
    typedef typename Number::store store;
    uint32_t rows = w->batch * w->out_height * w->out_width;
    struct sfc_cut cut = sfc_cut_rows(rows, w->channels);
    auto wide = forward_kernel<Number, 8>, narrow = forward_kernel<Number, 1>;
    auto kernel = cut.width == 8 ? wide : narrow;
    SFC_LAUNCH(kernel, pixel_grid(&cut, rows), dim3(cut.columns, cut.lines), stream, *w, rows,
               (const store *)x, weights, (store *)y);
    return cudaGetLastError();
}

cudaError_t sfc_launch_window(cudaStream_t stream, enum sfc_number number,
                              const struct sfc_window *w, const void *x, const float *weights,
                              void *y)
{
#define CALL(N) forward<N>(stream, w, x, weights, y)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number>
static cudaError_t backward_data(cudaStream_t stream, const struct sfc_window *w, const void *dy,
                                 const float *weights, void *dx)
{
    typedef typename Number::store store;
    uint32_t rows = w->batch * w->in_height * w->in_width;
    struct sfc_cut cut = sfc_cut_rows(rows, w->channels);
    auto wide = data_kernel<Number, 8>, narrow = data_kernel<Number, 1>;
    auto kernel = cut.width == 8 ? wide : narrow;
    SFC_LAUNCH(kernel, pixel_grid(&cut, rows), dim3(cut.columns, cut.lines), stream, *w, rows,
               (const store *)dy, weights, (store *)dx);
    return cudaGetLastError();
}

cudaError_t sfc_launch_window_data(cudaStream_t stream, enum sfc_number number,
                                   const struct sfc_window *w, const void *dy, const float *weights,
                                   void *dx)
{
#define CALL(N) backward_data<N>(stream, w, dy, weights, dx)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

template <class Number, int Width>
static void launch_weights(cudaStream_t stream, const struct sfc_window *w,
                           const struct sfc_cut *cut, uint32_t rows, const void *x, const void *dy,
                           double *partial)
{
    typedef typename Number::store store;
    bool square = w->kernel_height == 3 && w->kernel_width == 3;
    dim3 block(cut->columns, cut->lines);
    auto nine = weights_kernel<Number, Width, 9>, one = weights_kernel<Number, Width, 1>;
    auto kernel = square ? nine : one;
    uint32_t depth = square ? 1 : w->kernel_height * w->kernel_width;
    SFC_LAUNCH(kernel, dim3(cut->chunks, cut->tiles, depth), block, stream, *w, *cut, rows,
               (const store *)x, (const store *)dy, partial);
}

template <class Number>
static cudaError_t backward_weights(cudaStream_t stream, const struct sfc_window *w, const void *x,
                                    const void *dy, double *partial, float scale, float *gradient)
{
    uint32_t rows = w->batch * w->out_height * w->out_width;
    uint32_t taps = w->kernel_height * w->kernel_width;
    struct sfc_cut cut = sfc_cut_rows(rows, w->channels);
    if (cut.width == 8)
        launch_weights<Number, 8>(stream, w, &cut, rows, x, dy, partial);
    else
        launch_weights<Number, 1>(stream, w, &cut, rows, x, dy, partial);
    SFC_LAUNCH(finish_kernel, sfc_finish_grid(w->channels * taps), sfc_finish_block(), stream,
               w->channels, taps, cut.chunks, (const double *)partial, scale, gradient);
    return cudaGetLastError();
}

cudaError_t sfc_launch_window_weights(cudaStream_t stream, enum sfc_number number,
                                      const struct sfc_window *w, const void *x, const void *dy,
                                      double *partial, float scale, float *gradient)
{
#define CALL(N) backward_weights<N>(stream, w, x, dy, partial, scale, gradient)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

/* Batch norm with PReLU: one pass over x for its statistics, one to apply them; backward one pass
 * for three sums and one for the gradient. */
#include "worker/model/cuda/rows.cuh"

#define EPSILON 1e-5 /* SFC_BATCH_NORM_EPSILON */

/* A launch's constants, by value. */
struct norm_work {
    struct sfc_norm_at at;
    struct sfc_cut cut;
};

/* Parameters start anywhere in their vector, so they are read one by one. */
template <int Width> __device__ static inline void get_floats(const float *at, float *x)
{
#pragma unroll
    for (int i = 0; i < Width; i++)
        x[i] = at[i];
}

/* What a thread knows of its channels. */
template <int Width> struct channel_set {
    float mean[Width], factor[Width], beta[Width], slope[Width];
    __device__ void load(const struct sfc_norm_at &at, uint32_t c)
    {
        get_floats<Width>(at.mean + c, mean);
        get_floats<Width>(at.factor + c, factor);
        get_floats<Width>(at.beta + c, beta);
#pragma unroll
        for (int i = 0; i < Width; i++)
            slope[i] = at.slope ? at.slope[c + i] : 1.0f;
    }
    __device__ float before_slope(int i, float x) const
    {
        return (x - mean[i]) * factor[i] + beta[i];
    }
};

/* ---- forward */

/* Sums of x - pivot and of its square, the pivot being the channel's first number: deviations of 1
 * around 100 keep their digits. */
template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    measure_kernel(struct norm_work w, const typename Number::store *x)
{
    __shared__ float buffer[SFC_BLOCK_THREADS * Width];
    uint32_t channels = w.at.channels, c = sfc_own_channel<Width>();
    uint32_t row = blockIdx.x * w.cut.chunk_rows, end = row + w.cut.chunk_rows;
    float sum[Width] = {0}, square[Width] = {0}, pivot[Width], v[Width];
    end = end < w.at.rows ? end : w.at.rows;
    if (c < channels) {
        sfc_get<Number, Width>(x + c, pivot);
#pragma unroll 4
        for (row += threadIdx.y; row < end; row += blockDim.y) {
            sfc_get<Number, Width>(x + (size_t)row * channels + c, v);
#pragma unroll
            for (int i = 0; i < Width; i++) {
                float d = v[i] - pivot[i];
                sum[i] += d;
                square[i] += d * d;
            }
        }
    }
    double *out = w.at.partial + (size_t)blockIdx.x * 2 * channels;
    sfc_sum_lines<Width>(sum, buffer, channels, out);
    sfc_sum_lines<Width>(square, buffer, channels, out + channels);
}

template <class Number>
__global__ static void measured_kernel(struct norm_work w, const typename Number::store *x)
{
    __shared__ double buffer[SFC_FINISH_CHANNELS * SFC_FINISH_LINES];
    uint32_t channels = w.at.channels, c = blockIdx.x * SFC_FINISH_CHANNELS + threadIdx.x;
    bool mine = c < channels;
    const double *part = w.at.partial + c;
    double sum = sfc_sum_chunks(part, mine, w.cut.chunks, 2 * (size_t)channels, buffer);
    double square =
        sfc_sum_chunks(part + channels, mine, w.cut.chunks, 2 * (size_t)channels, buffer);
    if (!mine || threadIdx.y)
        return;
    double rows = w.at.rows, off = sum / rows, deviation = square - sum * off;
    deviation = deviation < 0 ? 0 : deviation; /* a NaN stays one */
    float inverse = (float)(1.0 / sqrt(deviation / rows + EPSILON));
    w.at.mean[c] = (float)((double)Number::get(x + c) + off);
    w.at.inverse_std[c] = inverse;
    w.at.unbiased_var[c] = (float)(deviation / (rows - 1.0));
    w.at.factor[c] = w.at.gamma[c] * inverse;
}

template <class Number>
static cudaError_t measure(cudaStream_t stream, const struct sfc_norm_at *at, const void *x)
{
    typedef typename Number::store store;
    struct norm_work w = {*at, sfc_cut_rows(at->rows, at->channels)};
    auto wide = measure_kernel<Number, 8>, narrow = measure_kernel<Number, 1>;
    auto kernel = w.cut.width == 8 ? wide : narrow;
    SFC_LAUNCH(kernel, dim3(w.cut.chunks, w.cut.tiles), dim3(w.cut.columns, w.cut.lines), stream, w,
               (const store *)x);
    auto finish = measured_kernel<Number>;
    SFC_LAUNCH(finish, sfc_finish_grid(at->channels), sfc_finish_block(), stream, w,
               (const store *)x);
    return cudaGetLastError();
}

cudaError_t sfc_launch_norm_measure(cudaStream_t stream, enum sfc_number number,
                                    const struct sfc_norm_at *at, const void *x)
{
#define CALL(N) measure<N>(stream, at, x)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

__global__ static void running_kernel(struct sfc_norm_at at, const float *mean, const float *var)
{
    uint32_t c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= at.channels)
        return;
    float inverse = (float)(1.0 / sqrt((double)var[c] + EPSILON));
    at.mean[c] = mean[c];
    at.inverse_std[c] = inverse;
    at.factor[c] = at.gamma[c] * inverse;
}

cudaError_t sfc_launch_norm_running(cudaStream_t stream, const struct sfc_norm_at *at,
                                    const float *running_mean, const float *running_var)
{
    dim3 grid((at->channels + SFC_BLOCK_THREADS - 1) / SFC_BLOCK_THREADS);
    SFC_LAUNCH(running_kernel, grid, dim3(SFC_BLOCK_THREADS), stream, *at, running_mean,
               running_var);
    return cudaGetLastError();
}

template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    apply_kernel(struct norm_work w, const typename Number::store *x, typename Number::store *y)
{
    uint32_t channels = w.at.channels, c = sfc_own_channel<Width>();
    uint32_t row = blockIdx.x * w.cut.chunk_rows, end = row + w.cut.chunk_rows;
    struct channel_set<Width> set;
    float v[Width];
    if (c >= channels)
        return;
    end = end < w.at.rows ? end : w.at.rows;
    set.load(w.at, c);
#pragma unroll 4
    for (row += threadIdx.y; row < end; row += blockDim.y) {
        size_t at = (size_t)row * channels + c;
        sfc_get<Number, Width>(x + at, v);
#pragma unroll
        for (int i = 0; i < Width; i++) {
            float z = set.before_slope(i, v[i]);
            v[i] = z > 0.0f ? z : set.slope[i] * z;
        }
        sfc_put<Number, Width>(y + at, v);
    }
}

template <class Number>
static cudaError_t apply(cudaStream_t stream, const struct sfc_norm_at *at, const void *x, void *y)
{
    typedef typename Number::store store;
    struct norm_work w = {*at, sfc_cut_rows(at->rows, at->channels)};
    auto wide = apply_kernel<Number, 8>, narrow = apply_kernel<Number, 1>;
    auto kernel = w.cut.width == 8 ? wide : narrow;
    SFC_LAUNCH(kernel, dim3(w.cut.chunks, w.cut.tiles), dim3(w.cut.columns, w.cut.lines), stream, w,
               (const store *)x, (store *)y);
    return cudaGetLastError();
}

cudaError_t sfc_launch_norm_apply(cudaStream_t stream, enum sfc_number number,
                                  const struct sfc_norm_at *at, const void *x, void *y)
{
#define CALL(N) apply<N>(stream, at, x, y)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

/* ---- backward */

/* Sums of g, of g * (x - mean), and of what the slope gets; g is the gradient behind the PReLU, z
 * computed as in the forward pass. */
template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    gradients_kernel(struct norm_work w, const typename Number::store *x,
                     const typename Number::store *grad)
{
    __shared__ float buffer[SFC_BLOCK_THREADS * Width];
    uint32_t channels = w.at.channels, c = sfc_own_channel<Width>();
    uint32_t row = blockIdx.x * w.cut.chunk_rows, end = row + w.cut.chunk_rows;
    float sum[Width] = {0}, product[Width] = {0}, tilt[Width] = {0}, v[Width], g[Width];
    struct channel_set<Width> set;
    end = end < w.at.rows ? end : w.at.rows;
    if (c < channels) {
        set.load(w.at, c);
#pragma unroll 2
        for (row += threadIdx.y; row < end; row += blockDim.y) {
            size_t at = (size_t)row * channels + c;
            sfc_get<Number, Width>(x + at, v);
            sfc_get<Number, Width>(grad + at, g);
#pragma unroll
            for (int i = 0; i < Width; i++) {
                float z = set.before_slope(i, v[i]);
                float behind = z > 0.0f ? g[i] : set.slope[i] * g[i];
                sum[i] += behind;
                product[i] += behind * (v[i] - set.mean[i]);
                tilt[i] += z > 0.0f ? 0.0f : g[i] * z;
            }
        }
    }
    double *out = w.at.partial + (size_t)blockIdx.x * 3 * channels;
    sfc_sum_lines<Width>(sum, buffer, channels, out);
    sfc_sum_lines<Width>(product, buffer, channels, out + channels);
    sfc_sum_lines<Width>(tilt, buffer, channels, out + 2 * (size_t)channels);
}

__global__ static void summed_kernel(struct norm_work w, float scale, float *dgamma, float *dbeta,
                                     float *dslope)
{
    __shared__ double buffer[SFC_FINISH_CHANNELS * SFC_FINISH_LINES];
    uint32_t channels = w.at.channels, c = blockIdx.x * SFC_FINISH_CHANNELS + threadIdx.x;
    size_t stride = 3 * (size_t)channels;
    bool mine = c < channels;
    const double *part = w.at.partial + c;
    double sum = sfc_sum_chunks(part, mine, w.cut.chunks, stride, buffer);
    double product = sfc_sum_chunks(part + channels, mine, w.cut.chunks, stride, buffer);
    double tilt = sfc_sum_chunks(part + 2 * (size_t)channels, mine, w.cut.chunks, stride, buffer);
    if (!mine || threadIdx.y)
        return;
    double inverse = (double)w.at.inverse_std[c], rows = w.at.rows;
    w.at.mean_grad[c] = (float)(sum / rows);
    w.at.tilt[c] = (float)(product * inverse * inverse / rows);
    dgamma[c] = (float)(product * inverse) * scale;
    dbeta[c] = (float)sum * scale;
    if (dslope)
        dslope[c] = (float)tilt * scale;
}

/* grad = factor * (g - mean_grad - (x - mean) * tilt) */
template <class Number, int Width>
__global__ static void __launch_bounds__(SFC_BLOCK_THREADS)
    input_gradient_kernel(struct norm_work w, const typename Number::store *x,
                          typename Number::store *grad)
{
    uint32_t channels = w.at.channels, c = sfc_own_channel<Width>();
    uint32_t row = blockIdx.x * w.cut.chunk_rows, end = row + w.cut.chunk_rows;
    struct channel_set<Width> set;
    float mean_grad[Width], tilt[Width], v[Width], g[Width];
    if (c >= channels)
        return;
    end = end < w.at.rows ? end : w.at.rows;
    set.load(w.at, c);
    get_floats<Width>(w.at.mean_grad + c, mean_grad);
    get_floats<Width>(w.at.tilt + c, tilt);
#pragma unroll 2
    for (row += threadIdx.y; row < end; row += blockDim.y) {
        size_t at = (size_t)row * channels + c;
        sfc_get<Number, Width>(x + at, v);
        sfc_get<Number, Width>(grad + at, g);
#pragma unroll
        for (int i = 0; i < Width; i++) {
            float behind = set.before_slope(i, v[i]) > 0.0f ? g[i] : set.slope[i] * g[i];
            g[i] = set.factor[i] * (behind - mean_grad[i] - (v[i] - set.mean[i]) * tilt[i]);
        }
        sfc_put<Number, Width>(grad + at, g);
    }
}

template <class Number>
static cudaError_t backward(cudaStream_t stream, const struct sfc_norm_at *at, const void *x,
                            void *grad, float scale, float *dgamma, float *dbeta, float *dslope)
{
    typedef typename Number::store store;
    struct norm_work w = {*at, sfc_cut_rows(at->rows, at->channels)};
    dim3 grid(w.cut.chunks, w.cut.tiles), block(w.cut.columns, w.cut.lines);
    auto wide = gradients_kernel<Number, 8>, narrow = gradients_kernel<Number, 1>;
    auto sums = w.cut.width == 8 ? wide : narrow;
    SFC_LAUNCH(sums, grid, block, stream, w, (const store *)x, (const store *)grad);
    SFC_LAUNCH(summed_kernel, sfc_finish_grid(at->channels), sfc_finish_block(), stream, w, scale,
               dgamma, dbeta, dslope);
    auto wide_input = input_gradient_kernel<Number, 8>;
    auto narrow_input = input_gradient_kernel<Number, 1>;
    auto input = w.cut.width == 8 ? wide_input : narrow_input;
    SFC_LAUNCH(input, grid, block, stream, w, (const store *)x, (store *)grad);
    return cudaGetLastError();
}

cudaError_t sfc_launch_norm_backward(cudaStream_t stream, enum sfc_number number,
                                     const struct sfc_norm_at *at, const void *x, void *grad,
                                     float scale, float *dgamma, float *dbeta, float *dslope)
{
#define CALL(N) backward<N>(stream, at, x, grad, scale, dgamma, dbeta, dslope)
    SFC_WITH_NUMBER(number, CALL);
#undef CALL
}

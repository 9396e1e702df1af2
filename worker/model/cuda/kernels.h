/* The backbone's own device code: everything but convolutions and products of matrices. Plain C for
 * whoever launches. Activations are [rows, channels], row = (image, y, x), in one of three number
 * formats; parameters, statistics and gradients of parameters are f32. Every sum has an order that
 * is a function of the shape alone: rows in chunks, a chunk's rows by threads of one block in f32,
 * threads and chunks in double; no atomics.
 *
 * A launcher puts its kernels into the stream and returns what launching them said. */
#ifndef SFC_WORKER_MODEL_CUDA_KERNELS_H
#define SFC_WORKER_MODEL_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sfc_number { SFC_NUMBER_F32, SFC_NUMBER_BF16, SFC_NUMBER_F16 };

/* Bytes of one number. */
static inline size_t sfc_number_size(enum sfc_number number)
{
    return number == SFC_NUMBER_F32 ? 4 : 2;
}

/* How a kernel that sums over rows is cut: threads.x columns of `width` channels, threads.y rows.
 */
struct sfc_cut {
    uint32_t width;              /* channels of a thread: 8, or 1 where they don't divide */
    uint32_t columns, lines;     /* threads of a block */
    uint32_t tiles;              /* blocks side by side over the channels */
    uint32_t chunks, chunk_rows; /* blocks over the rows */
};

#define SFC_BLOCK_THREADS 256u
#define SFC_CHUNKS_LIMIT  512u

static inline struct sfc_cut sfc_cut_rows(uint32_t rows, uint32_t channels)
{
    struct sfc_cut c;
    c.width = channels % 8 == 0 ? 8 : 1;
    uint32_t columns = channels / c.width;
    c.columns = columns < 32 ? columns : 32;
    c.lines = SFC_BLOCK_THREADS / c.columns;
    c.tiles = (columns + c.columns - 1) / c.columns;
    uint32_t least = c.lines * 16;
    uint32_t even = (rows + SFC_CHUNKS_LIMIT - 1) / SFC_CHUNKS_LIMIT;
    c.chunk_rows = even < least ? least : even;
    c.chunks = (rows + c.chunk_rows - 1) / c.chunk_rows;
    return c;
}

/* ---- images, features, weights */

/* [batch, channels, pixels] f32 -> [batch, pixels, channels]. */
cudaError_t sfc_launch_images(cudaStream_t stream, enum sfc_number number, uint32_t batch,
                              uint32_t channels, uint32_t pixels, const float *from, void *to);
/* to = from * scale, and back. */
cudaError_t sfc_launch_narrow(cudaStream_t stream, enum sfc_number number, uint32_t count,
                              const float *from, float scale, void *to);
cudaError_t sfc_launch_widen(cudaStream_t stream, enum sfc_number number, uint32_t count,
                             const void *from, float *to);
/* Weights [outer, inner, taps] f32 -> [outer, taps, inner], as products want them. */
cudaError_t sfc_launch_pack(cudaStream_t stream, enum sfc_number number, uint32_t outer,
                            uint32_t inner, uint32_t taps, const float *from, void *to);
/* Their gradient back, times scale. */
cudaError_t sfc_launch_unpack(cudaStream_t stream, enum sfc_number number, uint32_t outer,
                              uint32_t inner, uint32_t taps, const void *from, float scale,
                              float *to);
cudaError_t sfc_launch_fill(cudaStream_t stream, uint32_t count, float value, float *to);

/* ---- sums of tensors */

cudaError_t sfc_launch_add(cudaStream_t stream, enum sfc_number number, uint32_t count,
                           const void *a, const void *b, void *out);

/* ---- batch norm with PReLU */

struct sfc_norm_at {
    uint32_t rows, channels;
    const float *gamma, *beta, *slope;        /* slope NULL: no PReLU */
    float *mean, *inverse_std, *unbiased_var; /* of the last measure; kept for backward */
    float *factor;                            /* gamma * inverse_std, kept likewise */
    float *mean_grad, *tilt;                  /* scratch of backward */
    double *partial;                          /* 3 * chunks * channels */
};

/* mean, inverse_std, unbiased_var, factor from x; rows >= 2. */
cudaError_t sfc_launch_norm_measure(cudaStream_t stream, enum sfc_number number,
                                    const struct sfc_norm_at *at, const void *x);
/* mean, inverse_std, factor from running statistics. */
cudaError_t sfc_launch_norm_running(cudaStream_t stream, const struct sfc_norm_at *at,
                                    const float *running_mean, const float *running_var);
/* y = PReLU((x - mean) * factor + beta). */
cudaError_t sfc_launch_norm_apply(cudaStream_t stream, enum sfc_number number,
                                  const struct sfc_norm_at *at, const void *x, void *y);
/* grad: d loss / d y in, d loss / d x out; dgamma, dbeta, dslope (NULL without PReLU) times scale.
 */
cudaError_t sfc_launch_norm_backward(cudaStream_t stream, enum sfc_number number,
                                     const struct sfc_norm_at *at, const void *x, void *grad,
                                     float scale, float *dgamma, float *dbeta, float *dslope);

/* ---- windows: one weight per tap and channel. Depthwise convolutions, and with a kernel as large
 * as the image the global ones. Weights are f32 [taps, channels]. */

struct sfc_window {
    uint32_t batch, channels, in_height, in_width, out_height, out_width;
    uint32_t kernel_height, kernel_width, stride, pad;
};

cudaError_t sfc_launch_window(cudaStream_t stream, enum sfc_number number,
                              const struct sfc_window *w, const void *x, const float *weights,
                              void *y);
cudaError_t sfc_launch_window_data(cudaStream_t stream, enum sfc_number number,
                                   const struct sfc_window *w, const void *dy, const float *weights,
                                   void *dx);
/* gradient [channels, taps] = scale * d loss / d weights. partial: taps * chunks * channels. */
cudaError_t sfc_launch_window_weights(cudaStream_t stream, enum sfc_number number,
                                      const struct sfc_window *w, const void *x, const void *dy,
                                      double *partial, float scale, float *gradient);

/* ---- convolutions as plain loops, for what cuDNN has no deterministic engine for. Weights as
 * packed: [out_channels, taps, channels / groups]. */

struct sfc_plain_conv {
    struct sfc_window window; /* channels: of x */
    uint32_t out_channels, groups;
};

#define SFC_PLAIN_CHUNKS 64u

cudaError_t sfc_launch_plain_conv(cudaStream_t stream, enum sfc_number number,
                                  const struct sfc_plain_conv *c, const void *x,
                                  const void *weights, void *y);
cudaError_t sfc_launch_plain_conv_data(cudaStream_t stream, enum sfc_number number,
                                       const struct sfc_plain_conv *c, const void *dy,
                                       const void *weights, void *dx);
/* dw f32, packed. partial: SFC_PLAIN_CHUNKS floats per weight. */
cudaError_t sfc_launch_plain_conv_weights(cudaStream_t stream, enum sfc_number number,
                                          const struct sfc_plain_conv *c, const void *x,
                                          const void *dy, float *partial, float *dw);

#ifdef __cplusplus
}
#endif

#endif

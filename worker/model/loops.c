#include "worker/model/loops.h"

#include <math.h>
#include <string.h>

#include "worker/model/layers.h"

/* One copy of a hot loop per instruction set, chosen when the program loads. Sanitizers instrument
 * the chooser before they are ready, so they get the plain copy: the same bits. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define HOT __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HOT
#endif

static size_t chunk_end(size_t row, size_t rows)
{
    return rows - row > SFC_CHUNK_ROWS ? row + SFC_CHUNK_ROWS : rows;
}

/* Closes a chunk: total += part, part = 0. */
static void close_chunk(size_t count, float *part, double *total)
{
    for (size_t i = 0; i < count; i++) {
        total[i] += (double)part[i];
        part[i] = 0.0f;
    }
}

/* part = column sums of the rows; squares = column sums of (x - centre)^2, centre their float
 * means. */
HOT static void measure_chunk(size_t rows, size_t channels, const float *restrict x,
                              float *restrict part, float *restrict centre, float *restrict squares)
{
    memset(part, 0, channels * sizeof *part);
    memset(squares, 0, channels * sizeof *squares);
    for (size_t row = 0; row < rows; row++) {
        const float *xr = x + row * channels;
        for (size_t c = 0; c < channels; c++) {
            part[c] += xr[c];
        }
    }
    float share = 1.0f / (float)rows;
    for (size_t c = 0; c < channels; c++) {
        centre[c] = part[c] * share;
    }
    for (size_t row = 0; row < rows; row++) {
        const float *xr = x + row * channels;
        for (size_t c = 0; c < channels; c++) {
            float d = xr[c] - centre[c];
            squares[c] += d * d;
        }
    }
}

/* Joins a chunk of `rows` rows to the mean and the sum of squared deviations of `before` rows (Chan
 * et al.): one pass over memory, no cancellation. */
HOT static void join_chunk(size_t before, size_t rows, size_t channels, const float *restrict part,
                           const float *restrict centre, const float *restrict squares,
                           double *restrict mean, double *restrict deviation)
{
    double n = (double)rows, all = (double)(before + rows);
    double share = n / all, weight = (double)before * share;
    for (size_t c = 0; c < channels; c++) {
        double chunk_mean = (double)part[c] / n, off = chunk_mean - (double)centre[c];
        double delta = chunk_mean - mean[c];
        mean[c] += delta * share;
        deviation[c] += (double)squares[c] - n * (off * off) + delta * delta * weight;
    }
}

void sfc_norm_measure(struct sfc_matrix m, const float *x, struct sfc_norm_saved saved,
                      struct sfc_norm_scratch scratch)
{
    size_t channels = m.channels;
    float *part = scratch.part, *centre = part + channels, *squares = centre + channels;
    double *mean = scratch.total, *deviation = mean + channels, rows = (double)m.rows;
    memset(mean, 0, 2 * channels * sizeof *mean);
    for (size_t row = 0, end; row < m.rows; row = end) {
        end = chunk_end(row, m.rows);
        measure_chunk(end - row, channels, x + row * channels, part, centre, squares);
        join_chunk(row, end - row, channels, part, centre, squares, mean, deviation);
    }
    for (size_t c = 0; c < channels; c++) {
        double sum = deviation[c] < 0 ? 0 : deviation[c]; /* a NaN stays one */
        saved.mean[c] = (float)mean[c];
        saved.inverse_std[c] = (float)(1.0 / sqrt(sum / rows + SFC_BATCH_NORM_EPSILON));
        saved.unbiased_var[c] = (float)(sum / (rows - 1.0));
    }
}

void sfc_norm_inverse_std(size_t channels, const float *var, float *inverse_std)
{
    for (size_t c = 0; c < channels; c++) {
        inverse_std[c] = (float)(1.0 / sqrt((double)var[c] + SFC_BATCH_NORM_EPSILON));
    }
}

HOT static void apply_linear(struct sfc_matrix m, const float *restrict x,
                             const float *restrict mean, const float *restrict factor,
                             const float *restrict beta, float *restrict y)
{
    for (size_t row = 0; row < m.rows; row++) {
        const float *xr = x + row * m.channels;
        float *yr = y + row * m.channels;
        for (size_t c = 0; c < m.channels; c++) {
            yr[c] = (xr[c] - mean[c]) * factor[c] + beta[c];
        }
    }
}

HOT static void apply_prelu(struct sfc_matrix m, const float *restrict x,
                            const float *restrict mean, const float *restrict factor,
                            const float *restrict beta, const float *restrict slope,
                            float *restrict y)
{
    for (size_t row = 0; row < m.rows; row++) {
        const float *xr = x + row * m.channels;
        float *yr = y + row * m.channels;
        for (size_t c = 0; c < m.channels; c++) {
            float z = (xr[c] - mean[c]) * factor[c] + beta[c];
            float s = slope[c] * z;
            yr[c] = z > 0.0f ? z : s;
        }
    }
}

static void fill_factor(size_t channels, const float *gamma, const float *inverse_std, float *out)
{
    for (size_t c = 0; c < channels; c++) {
        out[c] = gamma[c] * inverse_std[c];
    }
}

void sfc_norm_apply(struct sfc_matrix m, const float *x, const float *mean,
                    const float *inverse_std, struct sfc_norm_weights w, float *y,
                    struct sfc_norm_scratch scratch)
{
    float *factor = scratch.part;
    fill_factor(m.channels, w.gamma, inverse_std, factor);
    if (w.slope == NULL) {
        apply_linear(m, x, mean, factor, w.beta, y);
    } else {
        apply_prelu(m, x, mean, factor, w.beta, w.slope, y);
    }
}

/* What both passes of the backward read. slope NULL: no PReLU. */
struct backward_in {
    const float *x, *mean, *factor, *beta, *slope;
};

/* total = [sums of g, of g * (x - mean), of what the slope gets], g the gradient behind the PReLU;
 * z is computed exactly as in the forward pass. */
HOT static void sum_gradients(struct sfc_matrix m, struct backward_in in,
                              const float *restrict grad, float *restrict part, double *total)
{
    const float *restrict mean = in.mean, *restrict factor = in.factor;
    const float *restrict beta = in.beta, *restrict slope = in.slope;
    float *restrict product = part + m.channels, *restrict tilt = product + m.channels;
    memset(part, 0, 3 * m.channels * sizeof *part);
    memset(total, 0, 3 * m.channels * sizeof *total);
    for (size_t row = 0; row < m.rows;) {
        size_t end = chunk_end(row, m.rows);
        for (; row < end; row++) {
            const float *restrict xr = in.x + row * m.channels;
            const float *restrict gr = grad + row * m.channels;
            for (size_t c = 0; slope == NULL && c < m.channels; c++) {
                part[c] += gr[c];
                product[c] += gr[c] * (xr[c] - mean[c]);
            }
            for (size_t c = 0; slope != NULL && c < m.channels; c++) {
                float d = xr[c] - mean[c], z = d * factor[c] + beta[c];
                float leaky = slope[c] * gr[c], side = gr[c] * z;
                float g = z > 0.0f ? gr[c] : leaky;
                part[c] += g;
                product[c] += g * d;
                tilt[c] += z > 0.0f ? 0.0f : side;
            }
        }
        close_chunk(3 * m.channels, part, total);
    }
}

/* grad = factor * (g - mean_grad - (x - mean) * tilt) */
HOT static void finish_backward(struct sfc_matrix m, struct backward_in in,
                                const float *restrict mean_grad, const float *restrict tilt,
                                float *restrict grad)
{
    const float *restrict mean = in.mean, *restrict factor = in.factor;
    const float *restrict beta = in.beta, *restrict slope = in.slope;
    for (size_t row = 0; row < m.rows; row++) {
        const float *restrict xr = in.x + row * m.channels;
        float *restrict gr = grad + row * m.channels;
        for (size_t c = 0; slope == NULL && c < m.channels; c++) {
            gr[c] = factor[c] * (gr[c] - mean_grad[c] - (xr[c] - mean[c]) * tilt[c]);
        }
        for (size_t c = 0; slope != NULL && c < m.channels; c++) {
            float d = xr[c] - mean[c], z = d * factor[c] + beta[c];
            float leaky = slope[c] * gr[c];
            float g = z > 0.0f ? gr[c] : leaky;
            gr[c] = factor[c] * (g - mean_grad[c] - d * tilt[c]);
        }
    }
}

void sfc_norm_backward(struct sfc_matrix m, const float *x, struct sfc_norm_saved saved,
                       struct sfc_norm_weights w, float *grad, float *dgamma, float *dbeta,
                       float *dslope, struct sfc_norm_scratch scratch)
{
    size_t channels = m.channels;
    double rows = (double)m.rows, *total = scratch.total;
    float *part = scratch.part, *factor = part + 3 * channels;
    fill_factor(channels, w.gamma, saved.inverse_std, factor);
    struct backward_in in = {x, saved.mean, factor, w.beta, w.slope};
    sum_gradients(m, in, grad, part, total);
    float *mean_grad = part, *tilt = part + channels;
    for (size_t c = 0; c < channels; c++) {
        double inverse = (double)saved.inverse_std[c];
        double product = total[channels + c] * inverse;
        dbeta[c] = (float)total[c];
        dgamma[c] = (float)product;
        mean_grad[c] = (float)(total[c] / rows);
        tilt[c] = (float)(product * inverse / rows);
    }
    for (size_t c = 0; w.slope != NULL && c < channels; c++) {
        dslope[c] = (float)total[2 * channels + c];
    }
    finish_backward(m, in, mean_grad, tilt, grad);
}

HOT void sfc_add_to(size_t count, const float *restrict from, float *restrict to)
{
    for (size_t i = 0; i < count; i++) {
        to[i] += from[i];
    }
}

HOT void sfc_add(size_t count, const float *restrict a, const float *restrict b,
                 float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = a[i] + b[i];
    }
}

void sfc_transpose(size_t rows, size_t columns, const float *from, float *to)
{
    for (size_t c = 0; c < columns; c++) {
        for (size_t r = 0; r < rows; r++) {
            to[c * rows + r] = from[r * columns + c];
        }
    }
}

HOT void sfc_global_depthwise(size_t batch, size_t pixels, size_t channels, const float *restrict x,
                              const float *restrict w, float *restrict y)
{
    memset(y, 0, batch * channels * sizeof *y);
    for (size_t b = 0; b < batch; b++) {
        float *yb = y + b * channels;
        for (size_t p = 0; p < pixels; p++) {
            const float *xp = x + (b * pixels + p) * channels;
            const float *wp = w + p * channels;
            for (size_t c = 0; c < channels; c++) {
                yb[c] += xp[c] * wp[c];
            }
        }
    }
}

HOT static void depthwise_data_gradient(size_t batch, size_t pixels, size_t channels,
                                        const float *restrict w, const float *restrict dy,
                                        float *restrict dx)
{
    for (size_t b = 0; b < batch; b++) {
        const float *dyb = dy + b * channels;
        for (size_t p = 0; p < pixels; p++) {
            float *dxp = dx + (b * pixels + p) * channels;
            for (size_t c = 0; c < channels; c++) {
                dxp[c] = dyb[c] * w[p * channels + c];
            }
        }
    }
}

HOT static void depthwise_weight_gradient(size_t batch, size_t pixels, size_t channels,
                                          const float *restrict x, const float *restrict dy,
                                          float *restrict dw)
{
    memset(dw, 0, pixels * channels * sizeof *dw);
    for (size_t b = 0; b < batch; b++) {
        const float *dyb = dy + b * channels;
        for (size_t p = 0; p < pixels; p++) {
            const float *xp = x + (b * pixels + p) * channels;
            float *dwp = dw + p * channels;
            for (size_t c = 0; c < channels; c++) {
                dwp[c] += xp[c] * dyb[c];
            }
        }
    }
}

void sfc_global_depthwise_backward(size_t batch, size_t pixels, size_t channels, const float *x,
                                   const float *w, const float *dy, float *dx, float *dw)
{
    depthwise_weight_gradient(batch, pixels, channels, x, dy, dw);
    if (dx != NULL) {
        depthwise_data_gradient(batch, pixels, channels, w, dy, dx);
    }
}

HOT void sfc_global_pool(size_t batch, size_t pixels, size_t channels, const float *restrict x,
                         float *restrict y)
{
    float share = 1.0f / (float)pixels;
    memset(y, 0, batch * channels * sizeof *y);
    for (size_t b = 0; b < batch; b++) {
        float *yb = y + b * channels;
        for (size_t p = 0; p < pixels; p++) {
            const float *xp = x + (b * pixels + p) * channels;
            for (size_t c = 0; c < channels; c++) {
                yb[c] += xp[c];
            }
        }
        for (size_t c = 0; c < channels; c++) {
            yb[c] *= share;
        }
    }
}

HOT void sfc_global_pool_backward(size_t batch, size_t pixels, size_t channels,
                                  const float *restrict dy, float *restrict dx)
{
    float share = 1.0f / (float)pixels;
    for (size_t b = 0; b < batch; b++) {
        const float *dyb = dy + b * channels;
        for (size_t p = 0; p < pixels; p++) {
            float *dxp = dx + (b * pixels + p) * channels;
            for (size_t c = 0; c < channels; c++) {
                dxp[c] = dyb[c] * share;
            }
        }
    }
}

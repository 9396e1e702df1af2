/* The layers that are loops of our own: batch norm with PReLU, global depthwise convolution, global
 * pooling, sums, transposes. Activations are `rows` rows of `channels` floats. Every sum runs in
 * one fixed order whatever the instruction set: rows in chunks of SFC_CHUNK_ROWS in float, chunks
 * in double; the code is compiled without contraction, so wider vectors don't change bits. */
#ifndef SFC_WORKER_MODEL_LOOPS_H
#define SFC_WORKER_MODEL_LOOPS_H

#include <stddef.h>

#define SFC_CHUNK_ROWS 64

struct sfc_matrix {
    size_t rows, channels;
};

/* Scratch of the norm functions: `part` 4 * channels floats, `total` 3 * channels doubles. */
struct sfc_norm_scratch {
    float *part;
    double *total;
};

struct sfc_norm_weights {
    const float *gamma, *beta;
    const float *slope; /* NULL: no PReLU */
};

/* What one pass of training leaves for its backward pass: [channels] each. */
struct sfc_norm_saved {
    float *mean, *inverse_std;
    float *unbiased_var;
};

/* Batch mean and 1 / sqrt(biased variance + epsilon) of x; rows >= 2. */
void sfc_norm_measure(struct sfc_matrix m, const float *x, struct sfc_norm_saved saved,
                      struct sfc_norm_scratch scratch);
/* inverse_std from a running variance. */
void sfc_norm_inverse_std(size_t channels, const float *var, float *inverse_std);
/* y = PReLU((x - mean) * inverse_std * gamma + beta). */
void sfc_norm_apply(struct sfc_matrix m, const float *x, const float *mean,
                    const float *inverse_std, struct sfc_norm_weights w, float *y,
                    struct sfc_norm_scratch scratch);
/* grad: d loss / d y in, d loss / d x out. dgamma, dbeta, dslope (NULL without PReLU) are written.
 */
void sfc_norm_backward(struct sfc_matrix m, const float *x, struct sfc_norm_saved saved,
                       struct sfc_norm_weights w, float *grad, float *dgamma, float *dbeta,
                       float *dslope, struct sfc_norm_scratch scratch);

/* to[i] += from[i]; out[i] = a[i] + b[i]. */
void sfc_add_to(size_t count, const float *from, float *to);
void sfc_add(size_t count, const float *a, const float *b, float *out);

/* [rows, columns] -> [columns, rows]. */
void sfc_transpose(size_t rows, size_t columns, const float *from, float *to);

/* y[b][c] = sum over pixels of x[b][pixel][c] * w[pixel][c]. */
void sfc_global_depthwise(size_t batch, size_t pixels, size_t channels, const float *x,
                          const float *w, float *y);
/* dx may be NULL. dw is written. */
void sfc_global_depthwise_backward(size_t batch, size_t pixels, size_t channels, const float *x,
                                   const float *w, const float *dy, float *dx, float *dw);
void sfc_global_pool(size_t batch, size_t pixels, size_t channels, const float *x, float *y);
void sfc_global_pool_backward(size_t batch, size_t pixels, size_t channels, const float *dy,
                              float *dx);

#endif

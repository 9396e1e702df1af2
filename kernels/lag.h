/* Dense momentum for rows that are rarely touched. A row without a gradient takes the step
 *
 *   m' = momentum * m + weight_decay * w,   w' = w - rate * m'
 *
 * which is one linear map of (w, m), the same for every element of the row. So the steps that a
 * row has missed are one 2 x 2 matrix, the product of the steps' maps, and a row only needs to know
 * the last step that it has seen.
 *
 * Rates are the history of a run: rates[s - 1] is the learning rate of step s, negative where the
 * step was skipped (the identity). */
#ifndef SFC_KERNELS_LAG_H
#define SFC_KERNELS_LAG_H

#include <stddef.h>
#include <stdint.h>

#define SFC_RATE_SKIPPED (-1.0f)
/* Steps travel as f32 numbers in blocks and files, so they must be exact in them. */
#define SFC_LAG_MAX_STEPS ((uint64_t)1 << 24)

struct sfc_lag {
    float ww, wm; /* w' = ww * w + wm * m */
    float mw, mm; /* m' = mw * w + mm * m */
};

/* table[u] for from <= u <= to: the map from the state after step u to the state after step `to`,
 * multiplied in double from the last step backwards. */
void sfc_lag_table(const float *rates, double momentum, double weight_decay, uint64_t from,
                   uint64_t to, struct sfc_lag *table);
/* Catches up n elements of one row. */
void sfc_lag_apply(const struct sfc_lag *lag, float *w, float *m, size_t n);

#endif

/* How large the numbers of each block's state are and how large a step may make them: so that a
 * step that would overflow is found at Prepare, when nothing has changed yet.
 *
 * The rule is a function of the block's state and the step's inputs, so it decides alike wherever
 * the block lives and whatever became of it in between (I2): with the largest magnitudes w of a
 * weight and m of a moment in the block, and g of a gradient in the step, the step fits when
 *
 *   SGD:   m' = momentum * m + g + weight_decay * w,  w' = w + lr * m'
 *   AdamW: m' = max(m, g),  r' = beta1 / sqrt(beta2) * r + (1 - beta1) / sqrt(1 - beta2),
 *          w' = w + lr * (r' / (1 - beta1^t) + weight_decay * w)
 *
 * (r: the largest |m| / (sqrt(v) + epsilon); r' = m' / epsilon for a beta2 of 0) are all within the
 * limit. The limit is far below what
 * f32 holds and far above what training reaches, so it doesn't matter that the bounds are crude.
 *
 * Looking at the whole state in each step would cost more than the step. What is kept instead is at
 * least as large as the state: the bounds themselves, step after step. Only when they don't fit any
 * more is the state looked at (by the backend), which sets them back: in a run that doesn't diverge
 * once in thousands of steps (bf16, whose rounding has to be allowed for) or tens of thousands. */
#ifndef SFC_KERNELS_EXTENT_H
#define SFC_KERNELS_EXTENT_H

#include "kernels/backend.h"

struct sfc_extent {
    double w, m;  /* largest magnitudes */
    double ratio; /* AdamW: largest |m| / (sqrt(v) + epsilon); else 0 */
};

struct sfc_extent_rule {
    enum sfc_optimizer optimizer;
    double momentum, beta1, beta2, epsilon, weight_decay;
    double slack;    /* >= 1: how much rounding may enlarge a number */
    double limit;    /* of w and m */
    double gradient; /* limit of g: AdamW squares it */
};

struct sfc_extents {
    struct sfc_extent_rule rule;
    size_t count;
    struct sfc_extent *now, *next; /* [count] next: after the step that was asked about */
    double *gradient;              /* [count] the caller's: largest magnitudes in the step */
    bool asked;
};

/* What is allocated for so many blocks. */
uint64_t sfc_extents_bytes(size_t count);
/* Weights of at most w and no moments. */
int sfc_extents_init(struct sfc_extents *e, const struct sfc_extent_rule *rule, size_t count,
                     double w, struct sfc_error *err);
void sfc_extents_free(struct sfc_extents *e); /* zeroed is fine */
/* The block was written: nothing is known of it until somebody looks. */
void sfc_extents_forget(struct sfc_extents *e, size_t index);
/* Whether step t with the gradients in e->gradient fits in every block (by what is known) or in one
 * (by the last answer). */
bool sfc_extents_fit(struct sfc_extents *e, double lr, uint64_t t);
bool sfc_extents_fits(const struct sfc_extents *e, size_t index);
/* The step was applied; if nobody asked about it, everything is forgotten. */
void sfc_extents_commit(struct sfc_extents *e);

/* Enlarges an extent by n elements of a block; v NULL: SGD. */
void sfc_extent_add(struct sfc_extent *extent, const float *w, const float *m, const float *v,
                    size_t n, double epsilon);
/* Largest magnitude of n numbers. */
double sfc_extent_largest(const float *v, size_t n);

#endif

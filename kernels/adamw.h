/* AdamW with what a step has in common for all its elements worked out in double (the formulas are
 * in kernels/backend.h):
 *
 *   m = keep1 * m + take1 * g;  v = keep2 * v + take2 * g^2
 *   w = w - rate * m / (root * sqrt(v) + epsilon) - decay * w */
#ifndef SFC_KERNELS_ADAMW_H
#define SFC_KERNELS_ADAMW_H

#include <stdint.h>

struct sfc_adamw {
    float keep1, take1, keep2, take2;
    float rate; /* lr / (1 - beta1^t) */
    float root; /* 1 / sqrt(1 - beta2^t) */
    float epsilon;
    float decay; /* lr * weight_decay */
};

/* t: the step of the run, >= 1. */
struct sfc_adamw sfc_adamw_at(double beta1, double beta2, double epsilon, double weight_decay,
                              double lr, uint64_t t);

#endif

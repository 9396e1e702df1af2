#include "kernels/adamw.h"

#include <math.h>

struct sfc_adamw sfc_adamw_at(double beta1, double beta2, double epsilon, double weight_decay,
                              double lr, uint64_t t)
{
    return (struct sfc_adamw){
        .keep1 = (float)beta1,
        .take1 = (float)(1 - beta1),
        .keep2 = (float)beta2,
        .take2 = (float)(1 - beta2),
        .rate = (float)(lr / (1 - pow(beta1, (double)t))),
        .root = (float)(1 / sqrt(1 - pow(beta2, (double)t))),
        .epsilon = (float)epsilon,
        .decay = (float)(lr * weight_decay),
    };
}

/* Learning rate of a step: linear warm-up, then polynomial decay.
 *
 *   step <= warmup:  lr * step / warmup
 *   else:            lr * (end + (1 - end) * (1 - (step - warmup) / (steps - warmup)) ^ power)
 *
 * so that the last step has lr * end. The value travels in the plan: shards never compute it. */
#ifndef SFC_CORE_SCHEDULE_H
#define SFC_CORE_SCHEDULE_H

#include "server/core/types.h"

struct sfc_schedule {
    double lr;             /* finite, > 0 */
    uint64_t warmup_steps; /* <= steps */
    double power;          /* finite, >= 0 */
    double end;            /* 0..1: fraction of lr at the last step */
    uint64_t steps;        /* >= 1 */
};

/* SFC_EINVAL names the field. */
int sfc_schedule_check(const struct sfc_schedule *schedule, struct sfc_error *err);
/* step: 1-based; beyond the last step: the value of the last. */
double sfc_schedule_lr(const struct sfc_schedule *schedule, uint64_t step);

#endif

#include "server/core/schedule.h"

#include <math.h>

int sfc_schedule_check(const struct sfc_schedule *s, struct sfc_error *err)
{
    if (!isfinite(s->lr) || s->lr <= 0)
        return sfc_fail(err, SFC_EINVAL, "lr: %g is not a finite number above 0", s->lr);
    if (s->steps < 1)
        return sfc_fail(err, SFC_EINVAL, "steps: at least 1 is needed");
    if (s->warmup_steps > s->steps)
        return sfc_fail(err, SFC_EINVAL,
                        "warmup_steps: %llu is more than the %llu steps of the run",
                        (unsigned long long)s->warmup_steps, (unsigned long long)s->steps);
    if (!isfinite(s->power) || s->power < 0)
        return sfc_fail(err, SFC_EINVAL, "lr_power: %g is not a finite number of at least 0",
                        s->power);
    if (!(s->end >= 0 && s->end <= 1))
        return sfc_fail(err, SFC_EINVAL, "lr_end: %g is outside 0..1", s->end);
    return SFC_OK;
}

double sfc_schedule_lr(const struct sfc_schedule *s, uint64_t step)
{
    if (step > s->steps)
        step = s->steps;
    if (step <= s->warmup_steps)
        return s->lr * (double)step / (double)s->warmup_steps;
    double span = (double)(s->steps - s->warmup_steps);
    double left = 1.0 - (double)(step - s->warmup_steps) / span;
    return s->lr * (s->end + (1.0 - s->end) * pow(left, s->power));
}

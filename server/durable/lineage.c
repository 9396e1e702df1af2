#include "server/durable/lineage.h"

#include <inttypes.h>
#include <string.h>

static void join_lowest(struct sfc_lineage *x)
{
    x->returns[1].step = x->returns[0].step;
    x->count--;
    memmove(x->returns, x->returns + 1, x->count * sizeof *x->returns);
}

void sfc_lineage_add(struct sfc_lineage *x, uint64_t step, struct sfc_attempt last)
{
    while (x->count > 0 && x->returns[x->count - 1].step >= step) {
        struct sfc_attempt before = x->returns[--x->count].last;
        last = sfc_attempt_compare(before, last) > 0 ? before : last;
    }
    if (x->count == SFC_LINEAGE_MAX) {
        join_lowest(x);
    }
    x->returns[x->count++] = (struct sfc_return){.step = step, .last = last};
}

int sfc_lineage_check(const struct sfc_return *returns, size_t count, struct sfc_error *err)
{
    if (count > SFC_LINEAGE_MAX) {
        return sfc_fail(err, SFC_EINVAL, "%zu returns; at most %u", count, SFC_LINEAGE_MAX);
    }
    for (size_t i = 1; i < count; i++) {
        if (returns[i].step <= returns[i - 1].step ||
            sfc_attempt_compare(returns[i].last, returns[i - 1].last) < 0) {
            return sfc_fail(
                err, SFC_EINVAL,
                "returns[%zu]: step %" PRIu64 " and round %" PRIu64 ".%" PRIu64 " don't ascend", i,
                returns[i].step, returns[i].last.incarnation, returns[i].last.counter);
        }
    }
    return SFC_OK;
}

bool sfc_lineage_void(const struct sfc_return *returns, size_t count, uint64_t step,
                      struct sfc_attempt round)
{
#if SFC_PLANT_BUG == 14 /* what was given up counts like everything else */
    count = 0;
#endif
    for (size_t i = 0; i < count; i++) {
        if (step > returns[i].step && sfc_attempt_compare(round, returns[i].last) <= 0) {
            return true;
        }
    }
    return false;
}

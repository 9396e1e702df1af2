/* Words that all machines of the core share. The core is pure: no I/O, clock, threads, device;
 * memory is allocated by the _init functions only. Every machine is driven by one thread. */
#ifndef SFC_CORE_TYPES_H
#define SFC_CORE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#ifndef SFC_PLANT_BUG
#define SFC_PLANT_BUG                                                                              \
    0 /* tests/sim builds the core with each known bug to prove that it is caught */
#endif

#define SFC_CORE_LABEL_NONE        UINT64_MAX /* row of weight 0; the same number as SFC_LABEL_NONE */
#define SFC_CORE_MAX_SHARDS        256u
#define SFC_CORE_MAX_MICRO_BATCHES 4096u

/* An attempt at a micro-batch, and also a *round* of a step: a round is the attempt number at which
 * the scheduler began the step afresh (Abort opens a round). Every grant of a round has a greater
 * number than the round, so "number <= round" says that an attempt is void. Ordered by incarnation
 * first. */
struct sfc_attempt {
    uint64_t incarnation;
    uint64_t counter;
};

static inline int sfc_attempt_compare(struct sfc_attempt a, struct sfc_attempt b)
{
    if (a.incarnation != b.incarnation)
        return a.incarnation < b.incarnation ? -1 : 1;
    if (a.counter != b.counter)
        return a.counter < b.counter ? -1 : 1;
    return 0;
}

/* XXH3-128, canonical bytes: of the features followed by the log-sum-exp, as sent. */
struct sfc_head_digest {
    uint8_t bytes[16];
};

#endif

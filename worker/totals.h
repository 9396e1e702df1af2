/* What a worker has done since it started, over all runs. Any thread. */
#ifndef SFC_WORKER_TOTALS_H
#define SFC_WORKER_TOTALS_H

#include <stdatomic.h>
#include <stdint.h>

#include "proto/base/status.h"

struct sfc_worker_totals {
    _Atomic uint64_t micro_batches, images; /* done and accepted */
    _Atomic uint64_t given_up, batches_read;
    _Atomic uint64_t step; /* last one that is committed, as far as it knows */
    _Atomic uint64_t errors[SFC_EINTERNAL + 1];
};

static inline void sfc_total_add(_Atomic uint64_t *total, uint64_t n)
{
    atomic_fetch_add_explicit(total, n, memory_order_relaxed);
}

#endif

/* Blocks of work made by several threads and consumed in order by the caller's thread. The result
 * never depends on the number of threads. */
#ifndef SFC_WORKER_DATA_ORDERED_H
#define SFC_WORKER_DATA_ORDERED_H

#include <stdint.h>

#include "proto/base/status.h"

struct sfc_ordered {
    uint64_t blocks;
    uint32_t threads, slots; /* slots >= threads: blocks made but not consumed at once */
    void *arg;
    /* On a worker thread; block b uses slot b % slots, which nobody else touches until it is
     * consumed. */
    int (*make)(void *arg, uint32_t thread, uint64_t block, uint32_t slot, struct sfc_error *err);
    /* On the caller's thread, in the order of blocks. */
    int (*consume)(void *arg, uint64_t block, uint32_t slot, struct sfc_error *err);
};

/* The error of the first failing block in the order of blocks, or consume's. All threads have ended
 * on return. */
int sfc_ordered_run(const struct sfc_ordered *work, struct sfc_error *err);

#endif

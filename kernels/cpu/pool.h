/* Compute threads of the CPU backend. They sleep when idle (no spinning), and each sets its OpenMP
 * thread count to 1 before anything else, so that oneDNN runs inside them single-threaded. */
#ifndef SFC_KERNELS_CPU_POOL_H
#define SFC_KERNELS_CPU_POOL_H

#include <stddef.h>

#include "proto/base/status.h"

struct sfc_cpu_pool;

/* item: 0..items-1; worker: 0..threads-1, the thread that runs it. */
typedef void (*sfc_pool_fn)(void *arg, size_t item, unsigned worker);

int sfc_cpu_pool_new(unsigned threads, struct sfc_cpu_pool **out, struct sfc_error *err);
void sfc_cpu_pool_free(struct sfc_cpu_pool *pool); /* NULL is fine */
/* Runs fn for every item, each on any one worker, in ascending order of start; returns when all are
 * done. Callers of several threads take turns; never from inside fn. */
void sfc_cpu_pool_run(struct sfc_cpu_pool *pool, sfc_pool_fn fn, void *arg, size_t items);
/* Runs fn exactly once on every worker (item = worker). */
void sfc_cpu_pool_each(struct sfc_cpu_pool *pool, sfc_pool_fn fn, void *arg);

#endif

#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "proto/base/openmp.h"

struct worker {
    struct sfc_cpu_pool *pool;
    pthread_t thread;
    unsigned index;
};

struct sfc_cpu_pool {
    pthread_mutex_t turn; /* held by the caller whose job it is */
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    unsigned threads, started;
    struct worker *workers;
    /* the present job, under lock except for next */
    uint64_t generation;
    unsigned running;
    bool stop, each;
    sfc_pool_fn fn;
    void *arg;
    size_t items;
    atomic_size_t next;
};

static void work(struct sfc_cpu_pool *pool, unsigned index)
{
    if (pool->each) {
        pool->fn(pool->arg, index, index);
        return;
    }
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= pool->items)
            return;
        pool->fn(pool->arg, item, index);
    }
}

static void *main_of_worker(void *arg)
{
    struct worker *worker = arg;
    struct sfc_cpu_pool *pool = worker->pool;
    uint64_t seen = 0;
    omp_set_num_threads(1);
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->stop && pool->generation == seen)
            pthread_cond_wait(&pool->start, &pool->lock);
        if (pool->stop)
            break;
        seen = pool->generation;
        pthread_mutex_unlock(&pool->lock);
        work(pool, worker->index);
        pthread_mutex_lock(&pool->lock);
        if (--pool->running == 0)
            pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int sfc_cpu_pool_new(unsigned threads, struct sfc_cpu_pool **out, struct sfc_error *err)
{
    struct sfc_cpu_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return sfc_fail(err, SFC_ENOMEM, "thread pool: out of memory");
    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = threads;
    pool->workers = calloc(threads, sizeof *pool->workers);
    if (!pool->workers) {
        sfc_cpu_pool_free(pool);
        return sfc_fail(err, SFC_ENOMEM, "thread pool: out of memory");
    }
    for (; pool->started < threads; pool->started++) {
        struct worker *worker = &pool->workers[pool->started];
        worker->pool = pool;
        worker->index = pool->started;
        if (pthread_create(&worker->thread, NULL, main_of_worker, worker)) {
            unsigned started = pool->started;
            sfc_cpu_pool_free(pool);
            return sfc_fail(err, SFC_ELIMIT, "thread pool: thread %u of %u can't be started",
                            started + 1, threads);
        }
    }
    *out = pool;
    return SFC_OK;
}

void sfc_cpu_pool_free(struct sfc_cpu_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->start);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->turn);
    free(pool->workers);
    free(pool);
}

static void run(struct sfc_cpu_pool *pool, sfc_pool_fn fn, void *arg, size_t items, bool each)
{
    pthread_mutex_lock(&pool->turn);
    pthread_mutex_lock(&pool->lock);
    pool->fn = fn;
    pool->arg = arg;
    pool->items = items;
    pool->each = each;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->running = pool->threads;
    pool->generation++;
    pthread_cond_broadcast(&pool->start);
    while (pool->running)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&pool->turn);
}

void sfc_cpu_pool_run(struct sfc_cpu_pool *pool, sfc_pool_fn fn, void *arg, size_t items)
{
    if (items)
        run(pool, fn, arg, items, false);
}

void sfc_cpu_pool_each(struct sfc_cpu_pool *pool, sfc_pool_fn fn, void *arg)
{
    run(pool, fn, arg, 0, true);
}

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/cpu/pool.h"

enum { WORKERS = 3, CALLERS = 3, JOBS = 2000, ITEMS = 7 };

struct caller {
    pthread_t thread;
    struct sfc_cpu_pool *pool;
    unsigned seen[ITEMS], once[WORKERS];
    unsigned wrong;
};

static void count_item(void *arg, size_t item, unsigned worker)
{
    struct caller *caller = arg;
    caller->seen[item]++;
    (void)worker;
}

static void count_worker(void *arg, size_t item, unsigned worker)
{
    struct caller *caller = arg;
    caller->once[worker]++;
    (void)item;
}

static void *call(void *arg)
{
    struct caller *caller = arg;
    for (unsigned job = 1; job <= JOBS; job++) {
        sfc_cpu_pool_run(caller->pool, count_item, caller, ITEMS);
        sfc_cpu_pool_each(caller->pool, count_worker, caller);
        for (size_t i = 0; i < ITEMS; i++)
            caller->wrong += caller->seen[i] != job;
        for (size_t i = 0; i < WORKERS; i++)
            caller->wrong += caller->once[i] != job;
    }
    return NULL;
}

/* A shard asks for the memory of its next run while it computes for the present one. */
static void callers_take_turns(void **state)
{
    static struct caller callers[CALLERS];
    struct sfc_cpu_pool *pool;
    struct sfc_error err = {0};
    (void)state;
    assert_int_equal(sfc_cpu_pool_new(WORKERS, &pool, &err), SFC_OK);
    for (size_t i = 0; i < CALLERS; i++) {
        callers[i].pool = pool;
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    for (size_t i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].wrong, 0);
    }
    sfc_cpu_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(callers_take_turns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

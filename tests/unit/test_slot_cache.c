/* The worker's bounded buffers: what is kept, what is given up, and threads that want the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>

#include "worker/slot_cache.h"

static struct sfc_slot_cache *make(size_t slots)
{
    struct sfc_slot_cache *cache;
    struct sfc_error err;
    assert_int_equal(sfc_slot_cache_new(slots, 4, 16, &cache, &err), SFC_OK);
    return cache;
}

/* Opens (step, j), fills it with a mark if it must, closes it. True: it was filled now. */
static bool visit(struct sfc_slot_cache *cache, uint64_t step, uint32_t j)
{
    bool fill;
    struct sfc_slot *slot = sfc_slot_open(cache, step, j, &fill);
    if (fill) {
        slot->values[0] = (float)(step * 100 + j);
        sfc_slot_filled(cache, slot);
    }
    assert_true(slot->step == step && slot->micro_batch == j);
    assert_true(slot->values[0] == (float)(step * 100 + j));
    assert_true((uintptr_t)slot->values % 64 == 0);
    sfc_slot_close(cache, slot);
    return fill;
}

static void test_keeps_and_drops(void **state)
{
    (void)state;
    struct sfc_slot_cache *cache = make(4);
    assert_true(visit(cache, 1, 0));
    assert_true(visit(cache, 1, 1));
    assert_true(visit(cache, 2, 0));
    assert_false(visit(cache, 1, 0));
    assert_int_equal(sfc_slot_cache_used(cache), 3);
    sfc_slot_cache_committed(cache, 1);
    assert_int_equal(sfc_slot_cache_used(cache), 1);
    assert_false(visit(cache, 2, 0));
    assert_true(visit(cache, 1, 0));
    sfc_slot_cache_free(cache);
}

static void test_gives_up_what_is_needed_last(void **state)
{
    (void)state;
    struct sfc_slot_cache *cache = make(3);
    visit(cache, 1, 0);
    visit(cache, 2, 1);
    visit(cache, 2, 0);
    assert_true(visit(cache, 1, 1)); /* takes the place of (2, 1) */
    assert_false(visit(cache, 1, 0));
    assert_false(visit(cache, 2, 0));
    assert_true(visit(cache, 2, 1));
    sfc_slot_cache_free(cache);
}

static void test_held_slots_stay(void **state)
{
    (void)state;
    struct sfc_slot_cache *cache = make(2);
    bool fill;
    struct sfc_slot *held = sfc_slot_open(cache, 9, 0, &fill);
    assert_true(fill);
    held->values[0] = 900;
    sfc_slot_filled(cache, held);
    for (uint64_t s = 1; s < 20; s++)
        visit(cache, s == 9 ? 30 : s, 0);
    sfc_slot_cache_committed(cache, 20);
    assert_true(held->step == 9 && held->values[0] == 900);
    sfc_slot_close(cache, held);
    assert_int_equal(sfc_slot_cache_used(cache), 0); /* it was committed while held */
    sfc_slot_cache_free(cache);
}

static void test_failed_fill_is_forgotten(void **state)
{
    (void)state;
    struct sfc_slot_cache *cache = make(2);
    bool fill;
    struct sfc_slot *slot = sfc_slot_open(cache, 1, 0, &fill);
    assert_true(fill);
    sfc_slot_close(cache, slot); /* without filled */
    assert_int_equal(sfc_slot_cache_used(cache), 0);
    visit(cache, 1, 0);
    slot = sfc_slot_open(cache, 1, 0, &fill);
    assert_false(fill);
    sfc_slot_forget(cache, slot);
    sfc_slot_close(cache, slot);
    assert_true(visit(cache, 1, 0));
    sfc_slot_cache_free(cache);
}

#define THREADS 4
static struct sfc_slot_cache *shared;
static atomic_uint fills;
static atomic_bool wrong;

static void *walk(void *arg)
{
    (void)arg;
    for (uint64_t step = 1; step <= 500; step++) {
        bool fill;
        struct sfc_slot *slot = sfc_slot_open(shared, step, 0, &fill);
        if (fill) {
            for (int i = 0; i < 16; i++)
                slot->values[i] = (float)step;
            atomic_fetch_add(&fills, 1);
            sfc_slot_filled(shared, slot);
        }
        for (int i = 0; i < 16; i++)
            if (slot->values[i] != (float)step)
                atomic_store(&wrong, true);
        sfc_slot_close(shared, slot);
    }
    return NULL;
}

static void test_threads_share(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    shared = make(THREADS + 1);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, walk, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_false(atomic_load(&wrong));
    assert_true(atomic_load(&fills) >= 500 && atomic_load(&fills) <= 500 * THREADS);
    sfc_slot_cache_free(shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keeps_and_drops), cmocka_unit_test(test_gives_up_what_is_needed_last),
        cmocka_unit_test(test_held_slots_stay), cmocka_unit_test(test_failed_fill_is_forgotten),
        cmocka_unit_test(test_threads_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

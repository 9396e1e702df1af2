/* The recorder of spans: what is read is whole, in order, and of the steps that are asked for. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/base/spans.h"

static struct sfc_span out[SFC_SPANS_KEPT + 8];

static struct sfc_spans *fresh(void)
{
    struct sfc_spans *spans = NULL;
    assert_int_equal(sfc_spans_new(&spans, NULL), SFC_OK);
    return spans;
}

/* Every field follows from `step` and `begin`, so that a torn span shows. */
static struct sfc_span made(uint64_t step, uint64_t begin)
{
    return (struct sfc_span){.begin_ns = begin,
                             .end_ns = begin + 1000,
                             .step = step,
                             .bytes = begin * 3,
                             .rows = (uint32_t)(begin * 5),
                             .micro_batch = (uint32_t)(begin * 7),
                             .index = (uint32_t)step,
                             .phase = SFC_SPAN_FORWARD,
                             .thread = SFC_THREAD_LANE};
}

static void check_whole(const struct sfc_span *s)
{
    struct sfc_span right = made(s->step, s->begin_ns);
    assert_int_equal(s->end_ns, right.end_ns);
    assert_int_equal(s->bytes, right.bytes);
    assert_int_equal(s->rows, right.rows);
    assert_int_equal(s->micro_batch, right.micro_batch);
    assert_int_equal(s->index, right.index);
    assert_int_equal(s->phase, right.phase);
    assert_int_equal(s->thread, right.thread);
}

static void test_steps(void **state)
{
    (void)state;
    struct sfc_spans *spans = fresh();
    bool gone = true;
    assert_int_equal(sfc_spans_take(spans, 0, UINT64_MAX, out, 8, &gone), 0);
    assert_false(gone);
    for (uint64_t i = 0; i < 100; i++) {
        struct sfc_span span = made(i / 10, i);
        sfc_spans_add(spans, &span);
    }
    assert_int_equal(sfc_spans_take(spans, 3, 4, out, 100, &gone), 20);
    assert_false(gone);
    for (size_t i = 0; i < 20; i++) {
        assert_int_equal(out[i].begin_ns, 30 + i);
        check_whole(&out[i]);
    }
    assert_int_equal(sfc_spans_take(spans, 3, 4, out, 19, &gone), 19);
    assert_true(gone);
    sfc_spans_free(spans);
    sfc_spans_free(NULL);
    sfc_spans_add(NULL, &out[0]);
}

static void test_overwritten(void **state)
{
    (void)state;
    struct sfc_spans *spans = fresh();
    bool gone = true;
    for (uint64_t i = 0; i < 3 * SFC_SPANS_KEPT; i++) {
        struct sfc_span span = made(i / SFC_SPANS_KEPT, i);
        sfc_spans_add(spans, &span);
    }
    assert_int_equal(sfc_spans_take(spans, 1, 1, out, SFC_SPANS_KEPT, &gone), 0);
    assert_true(gone);
    assert_int_equal(sfc_spans_take(spans, 2, 2, out, SFC_SPANS_KEPT, &gone), SFC_SPANS_KEPT);
    assert_true(gone); /* nothing older is there: the first of step 2 may be missing */
    struct sfc_span next = made(3, 7);
    sfc_spans_add(spans, &next);
    assert_int_equal(sfc_spans_take(spans, 3, 3, out, 8, &gone), 1);
    assert_false(gone);
    check_whole(&out[0]);
    sfc_spans_forget(spans);
    assert_int_equal(sfc_spans_take(spans, 2, 3, out, 8, &gone), 0);
    assert_false(gone); /* what there is of them now is whole */
    sfc_spans_add(spans, &next);
    assert_int_equal(sfc_spans_take(spans, 2, 3, out, 8, &gone), 1);
    sfc_spans_free(spans);
}

static void test_histogram(void **state)
{
    (void)state;
    struct sfc_spans *spans = fresh();
    struct sfc_histogram h;
    struct sfc_span span = {.begin_ns = 5, .end_ns = 5 + 30000, .phase = SFC_SPAN_COMMIT};
    sfc_spans_add(spans, &span);
    span.end_ns = 1; /* a clock that is wrong is no negative time */
    sfc_spans_add(spans, &span);
    span.phase = SFC_SPAN_PHASES; /* no phase */
    sfc_spans_add(spans, &span);
    sfc_spans_histogram(spans, SFC_SPAN_COMMIT, &h);
    assert_int_equal(h.all, 2);
    assert_int_equal(h.counts[0], 1);
    assert_int_equal(h.counts[2], 1);
    assert_float_equal(h.sum, 30e-6, 1e-12);
    sfc_spans_histogram(spans, SFC_SPAN_FORWARD, &h);
    assert_int_equal(h.all, 0);
    sfc_spans_free(spans);
}

enum { THREADS = 4, EACH = 100000 };

static void *add_many(void *arg)
{
    struct sfc_spans *spans = arg;
    for (uint64_t i = 0; i < EACH; i++) {
        struct sfc_span span = made(i, i);
        sfc_spans_add(spans, &span);
    }
    return NULL;
}

/* Several threads lap the ring while it is read: no span is torn, and the histogram has all. */
static void test_threads(void **state)
{
    (void)state;
    struct sfc_spans *spans = fresh();
    pthread_t threads[THREADS];
    struct sfc_histogram h;
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, spans), 0);
    do {
        bool gone;
        size_t n = sfc_spans_take(spans, 0, UINT64_MAX, out, SFC_SPANS_KEPT, &gone);
        for (size_t i = 0; i < n; i++)
            check_whole(&out[i]);
        sfc_spans_histogram(spans, SFC_SPAN_FORWARD, &h);
    } while (h.all < THREADS * EACH);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    sfc_spans_free(spans);
}

static void test_laps(void **state)
{
    (void)state;
    struct sfc_spans *spans = fresh();
    struct sfc_lap lap = {.spans = spans,
                          .span = {.step = 4, .rows = 8, .thread = SFC_THREAD_LANE}};
    bool gone;
    sfc_lap_begin(&lap);
    sfc_lap_end(&lap, SFC_SPAN_FORWARD, 5);
    sfc_lap_end(&lap, SFC_SPAN_BACKWARD, 0);
    assert_int_equal(sfc_spans_take(spans, 4, 4, out, 8, &gone), 2);
    assert_int_equal(out[0].phase, SFC_SPAN_FORWARD);
    assert_int_equal(out[0].bytes, 5);
    assert_int_equal(out[1].bytes, 0);
    assert_int_equal(out[1].rows, 8);
    assert_true(out[0].begin_ns <= out[0].end_ns && out[0].end_ns == out[1].begin_ns);
    sfc_lap_begin(NULL);
    sfc_lap_end(NULL, SFC_SPAN_FORWARD, 0);
    sfc_spans_free(spans);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(sfc_phase_name(SFC_SPAN_FORWARD), "forward");
    assert_null(sfc_phase_name(0));
    assert_null(sfc_phase_help(SFC_SPAN_PHASES));
    assert_non_null(sfc_phase_help(SFC_SPAN_COMPUTE));
    assert_string_equal(sfc_thread_name(SFC_THREAD_READER), "reader");
    assert_null(sfc_thread_name(SFC_THREADS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),     cmocka_unit_test(test_overwritten),
        cmocka_unit_test(test_histogram), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_laps),      cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

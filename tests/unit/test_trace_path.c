/* Where the time of a step went: pieces that follow one another, and gaps that are not hidden. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/ctl/trace_file.h"

enum { STEP = 7 };

static void give(struct sfc_trace_process *p, unsigned phase, unsigned thread, uint32_t index,
                 uint64_t begin, uint64_t end)
{
    p->spans = realloc(p->spans, (p->count + 1) * sizeof *p->spans);
    assert_non_null(p->spans);
    p->spans[p->count++] = (struct sfc_span){.begin_ns = begin,
                                             .end_ns = end,
                                             .step = STEP,
                                             .phase = (uint8_t)phase,
                                             .thread = (uint8_t)thread,
                                             .index = index,
                                             .micro_batch = UINT32_MAX};
}

static struct sfc_trace_process *add(struct sfc_trace *t, enum sfc_trace_kind kind, uint64_t id)
{
    struct sfc_trace_process *p = sfc_trace_add(t, kind, id);
    assert_non_null(p);
    strcpy(p->name, sfc_trace_kind_name(kind));
    return p;
}

static void add_scheduler(struct sfc_trace *t)
{
    struct sfc_trace_process *s = add(t, SFC_TRACE_SCHEDULER, 0);
    t->first = t->last = STEP;
    give(s, SFC_SPAN_COMPUTE, SFC_THREAD_LOOP, 0, 1000, 2000); /* of an attempt that was void */
    give(s, SFC_SPAN_COMPUTE, SFC_THREAD_LOOP, 0, 1000, 5000);
    give(s, SFC_SPAN_PREPARE_ALL, SFC_THREAD_LOOP, 0, 5000, 6000);
    give(s, SFC_SPAN_RECORD, SFC_THREAD_LOOP, 0, 6000, 6500);
}

static uint64_t row(const struct sfc_trace_path *path, enum sfc_trace_kind kind, unsigned phase)
{
    for (size_t i = 0; i < path->row_count; i++)
        if (path->rows[i].kind == kind && path->rows[i].phase == phase)
            return path->rows[i].ns;
    return 0;
}

static void check_pieces(const struct sfc_trace_path *path)
{
    uint64_t all = 0, rows = 0;
    for (size_t i = 0; i < path->count; i++) {
        assert_true(path->pieces[i].begin_ns < path->pieces[i].end_ns);
        assert_true(path->pieces[i].begin_ns >= (i ? path->pieces[i - 1].end_ns : path->begin_ns));
        all += path->pieces[i].end_ns - path->pieces[i].begin_ns;
    }
    for (size_t i = 0; i < path->row_count; i++)
        rows += path->rows[i].ns;
    assert_true(path->pieces[path->count - 1].end_ns <= path->end_ns);
    assert_int_equal(all, path->known_ns);
    assert_int_equal(rows, path->known_ns);
}

static void test_way(void **state)
{
    (void)state;
    struct sfc_trace t = {0};
    struct sfc_trace_path path;
    add_scheduler(&t);
    struct sfc_trace_process *w = add(&t, SFC_TRACE_WORKER, 1);
    give(w, SFC_SPAN_FORWARD, SFC_THREAD_LANE, 1, 1000, 4000); /* a lane that was faster */
    give(w, SFC_SPAN_DONE, SFC_THREAD_LANE, 1, 4000, 4100);
    w = add(&t, SFC_TRACE_WORKER, 2);
    give(w, SFC_SPAN_TICKET, SFC_THREAD_LANE, 0, 900, 1500); /* began before the step */
    give(w, SFC_SPAN_READ, SFC_THREAD_READER, 0, 1000, 5000);
    give(w, SFC_SPAN_FORWARD, SFC_THREAD_LANE, 0, 1500, 3000);
    give(w, SFC_SPAN_ASK_LOGITS, SFC_THREAD_LANE, 0, 3000, 4000);
    give(w, SFC_SPAN_DONE, SFC_THREAD_LANE, 0, 4900, 5100);
    struct sfc_trace_process *h = add(&t, SFC_TRACE_SHARD, 3);
    give(h, SFC_SPAN_PREPARE, SFC_THREAD_COMPUTE, 0, 5050, 5100);
    give(h, SFC_SPAN_FLUSH, SFC_THREAD_LOG, 0, 5100, 5200); /* ready before the other */
    h = add(&t, SFC_TRACE_SHARD, 4);
    give(h, SFC_SPAN_PREPARE, SFC_THREAD_COMPUTE, 0, 5100, 5400);
    give(h, SFC_SPAN_FLUSH, SFC_THREAD_LOG, 0, 5500, 5900);
    give(h, SFC_SPAN_COMMIT, SFC_THREAD_COMPUTE, 0, 6500, 7000);
    assert_int_equal(sfc_trace_path(&t, STEP, &path, NULL), SFC_OK);
    check_pieces(&path);
    assert_int_equal(path.begin_ns, 1000);
    assert_int_equal(path.end_ns, 6500);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_TICKET), 500);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_FORWARD), 1500);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_ASK_LOGITS), 1000);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_DONE), 100);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_READ), 0);
    assert_int_equal(row(&path, SFC_TRACE_SHARD, SFC_SPAN_PREPARE), 300);
    assert_int_equal(row(&path, SFC_TRACE_SHARD, SFC_SPAN_FLUSH), 400);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_PREPARE_ALL), 300);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_RECORD), 500);
    assert_int_equal(path.end_ns - path.begin_ns - path.known_ns, 900); /* 4000 to 4900 */
    json_t *json = sfc_trace_json(&t, &path, 1, "a \"run\"");
    assert_non_null(json);
    assert_true(json_array_size(json_object_get(json, "traceEvents")) > 20);
    json_decref(json);
    sfc_trace_path_close(&path);
    sfc_trace_close(&t);
}

/* Processes that are missing leave the scheduler's phases. */
static void test_partial(void **state)
{
    (void)state;
    struct sfc_trace t = {0};
    struct sfc_trace_path path;
    add_scheduler(&t);
    add(&t, SFC_TRACE_WORKER, 1);
    add(&t, SFC_TRACE_SHARD, 2);
    assert_int_equal(sfc_trace_path(&t, STEP, &path, NULL), SFC_OK);
    check_pieces(&path);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_COMPUTE), 4000);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_PREPARE_ALL), 1000);
    assert_int_equal(path.known_ns, 5500);
    sfc_trace_path_close(&path);
    struct sfc_error err;
    assert_int_equal(sfc_trace_path(&t, STEP + 1, &path, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "step 8"));
    sfc_trace_close(&t);
}

/* While the lane waits for a shard that is away, it is that; what nobody measured stays a gap. */
static void test_delays(void **state)
{
    (void)state;
    struct sfc_trace t = {0};
    struct sfc_trace_path path;
    add_scheduler(&t);
    struct sfc_trace_process *s = &t.processes[0];
    give(s, SFC_SPAN_AWAY, SFC_THREAD_LOOP, 1, 900, 1100);
    give(s, SFC_SPAN_AWAY, SFC_THREAD_LOOP, 1, 2000, 2500);
    give(s, SFC_SPAN_RECOVERY, SFC_THREAD_LOOP, 1, 2500, 3500);
    give(s, SFC_SPAN_ABORT, SFC_THREAD_LOOP, 0, 4200, 4400);
    struct sfc_trace_process *w = add(&t, SFC_TRACE_WORKER, 1);
    give(w, SFC_SPAN_FORWARD, SFC_THREAD_LANE, 0, 1000, 1800); /* works while the shard is away */
    give(w, SFC_SPAN_ASK_LOGITS, SFC_THREAD_LANE, 0, 1800, 4000);
    give(w, SFC_SPAN_GIVE_UP, SFC_THREAD_LANE, 0, 4000, 4100);
    give(w, SFC_SPAN_DONE, SFC_THREAD_LANE, 0, 4600, 5000);
    struct sfc_trace_process *h = add(&t, SFC_TRACE_SHARD, 2); /* has nothing to do with it */
    h->place = 0;
    give(h, SFC_SPAN_REPLAY, SFC_THREAD_COMPUTE, 0, 2500, 3500);
    h = add(&t, SFC_TRACE_SHARD, 3);
    h->place = 1;
    give(h, SFC_SPAN_OPEN, SFC_THREAD_COMPUTE, 0, 2400, 2700);
    give(h, SFC_SPAN_REPLAY, SFC_THREAD_COMPUTE, 0, 3000, 3600); /* longer than it is waited for */
    assert_int_equal(sfc_trace_path(&t, STEP, &path, NULL), SFC_OK);
    check_pieces(&path);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_FORWARD), 800);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_AWAY), 500);
    assert_int_equal(row(&path, SFC_TRACE_SHARD, SFC_SPAN_OPEN), 200);
    assert_int_equal(row(&path, SFC_TRACE_SHARD, SFC_SPAN_REPLAY), 500);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_RECOVERY), 300);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_ASK_LOGITS), 700);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_GIVE_UP), 100);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_ABORT), 200); /* no lane says more */
    assert_int_equal(path.end_ns - path.begin_ns - path.known_ns, 300);     /* 4100 and 4400 on */
    sfc_trace_path_close(&path);
    sfc_trace_close(&t);
}

/* A new map, as shards take it one after another; without any worker's spans. */
static void test_map(void **state)
{
    (void)state;
    struct sfc_trace t = {0};
    struct sfc_trace_path path;
    add_scheduler(&t);
    struct sfc_trace_process *s = &t.processes[0];
    give(s, SFC_SPAN_BOUNDARY, SFC_THREAD_LOOP, 0, 1000, 1400);
    give(s, SFC_SPAN_WRITE_MAP, SFC_THREAD_LOOP, 0, 1400, 2000);
    give(s, SFC_SPAN_SET_MAP, SFC_THREAD_LOOP, 0, 2000, 3000);
    struct sfc_trace_process *h = add(&t, SFC_TRACE_SHARD, 3);
    give(h, SFC_SPAN_TAKE_MAP, SFC_THREAD_LOOP, 0, 2500, 2900);
    h = add(&t, SFC_TRACE_SHARD, 2);
    give(h, SFC_SPAN_TAKE_MAP, SFC_THREAD_LOOP, 0, 2100, 2600);
    assert_int_equal(sfc_trace_path(&t, STEP, &path, NULL), SFC_OK);
    check_pieces(&path);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_BOUNDARY), 400);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_WRITE_MAP), 600);
    assert_int_equal(row(&path, SFC_TRACE_SHARD, SFC_SPAN_TAKE_MAP), 800);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_SET_MAP), 200);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_COMPUTE), 2000);
    json_t *json = sfc_trace_json(&t, &path, 1, "r");
    assert_non_null(json);
    json_decref(json);
    sfc_trace_path_close(&path);
    sfc_trace_close(&t);
}

/* A clock that is wrong by more than it says takes nothing twice. */
static void test_wrong_clock(void **state)
{
    (void)state;
    struct sfc_trace t = {0};
    struct sfc_trace_path path;
    add_scheduler(&t);
    struct sfc_trace_process *w = add(&t, SFC_TRACE_WORKER, 1);
    give(w, SFC_SPAN_FORWARD, SFC_THREAD_LANE, 0, 0, 800); /* before the step */
    give(w, SFC_SPAN_BACKWARD, SFC_THREAD_LANE, 0, 2000, 4000);
    give(w, SFC_SPAN_ASK_PUSH, SFC_THREAD_LANE, 0, 3000, 4500); /* over the one before */
    give(w, SFC_SPAN_DONE, SFC_THREAD_LANE, 0, 4500, 9000);
    struct sfc_trace_process *h = add(&t, SFC_TRACE_SHARD, 2);
    give(h, SFC_SPAN_PREPARE, SFC_THREAD_COMPUTE, 0, 7000, 8000); /* after its phase */
    assert_int_equal(sfc_trace_path(&t, STEP, &path, NULL), SFC_OK);
    check_pieces(&path);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_FORWARD), 0);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_ASK_PUSH), 500);
    assert_int_equal(row(&path, SFC_TRACE_WORKER, SFC_SPAN_DONE), 500);
    assert_int_equal(row(&path, SFC_TRACE_SCHEDULER, SFC_SPAN_PREPARE_ALL), 1000);
    sfc_trace_path_close(&path);
    sfc_trace_close(&t);
}

static void test_clock(void **state)
{
    (void)state;
    int64_t offset = 0;
    uint64_t uncertainty = UINT64_MAX;
    sfc_clock_estimate(1000, 5300, 5400, 1900, &offset, &uncertainty); /* 400 there, 400 back */
    assert_int_equal(offset, 3900);
    assert_int_equal(uncertainty, 400);
    sfc_clock_estimate(1000, 9000, 9000, 9000, &offset, &uncertainty); /* slower: says less */
    assert_int_equal(offset, 3900);
    sfc_clock_estimate(1000, 4990, 4990, 1000, &offset, &uncertainty);
    assert_int_equal(offset, 3990);
    assert_int_equal(uncertainty, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_way),         cmocka_unit_test(test_partial),
        cmocka_unit_test(test_delays),      cmocka_unit_test(test_map),
        cmocka_unit_test(test_wrong_clock), cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

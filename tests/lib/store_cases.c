#include "tests/lib/store_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct sfc_store *store_must_open(void **state)
{
    const struct store_place *p = *state;
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    if (sfc_store_open(p->where, &store, &err) != SFC_OK)
        fail_msg("open: %s", err.text);
    return store;
}

void store_case_incarnation_survives(void **state)
{
    uint64_t n = 0;
    for (uint64_t expect = 1; expect <= 3; expect++) {
        struct sfc_store *store = store_must_open(state);
        assert_int_equal(sfc_store_next_incarnation(store, &n, NULL), SFC_OK);
        assert_int_equal(n, expect);
        sfc_store_close(store);
    }
}

void store_case_exclusive(void **state)
{
    const struct store_place *p = *state;
    struct sfc_store *store = store_must_open(state), *second = NULL;
    struct sfc_error err = {0};
    assert_int_equal(sfc_store_open(p->where, &second, &err), SFC_ESTATE);
    assert_non_null(strstr(err.text, "another scheduler"));
    assert_null(second);
    sfc_store_close(store);
    sfc_store_close(store_must_open(state));
}

void store_case_runs(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_run got = {0};
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_ENOTFOUND);
    uint8_t config[] = {1, 0, 2}, map[] = {9};
    struct sfc_store_run run = {.start_step = 7,
                                .load = true,
                                .elastic = true,
                                .mirrors = 2,
                                .grace_s = 90,
                                .map_version = 3,
                                .state = "loading",
                                .config = config,
                                .config_size = sizeof config,
                                .map = map,
                                .map_size = sizeof map};
    uint64_t first = 0, second = 0;
    assert_int_equal(sfc_store_add_run(store, &run, &first, NULL), SFC_OK);
    assert_int_equal(sfc_store_add_run(store, &run, &second, NULL), SFC_OK);
    assert_true(second > first);
    assert_int_equal(sfc_store_set_run_state(store, second, "failed", true, "shard 1 lost", NULL),
                     SFC_OK);
    assert_int_equal(sfc_store_set_run_state(store, second + 9, "failed", false, "", NULL),
                     SFC_ENOTFOUND);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_string_equal(got.numerics, "");
    sfc_store_run_close(&got);
    assert_int_equal(sfc_store_set_run_numerics(store, second, "cpu avx2", NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, second);
    assert_int_equal(got.start_step, 7);
    assert_true(got.load && got.elastic);
    assert_int_equal(got.mirrors, 2);
    assert_int_equal(got.grace_s, 90);
    assert_string_equal(got.state, "failed");
    assert_string_equal(got.reason, "shard 1 lost");
    assert_string_equal(got.numerics, "cpu avx2");
    assert_int_equal(got.config_size, sizeof config);
    assert_memory_equal(got.config, config, sizeof config);
    assert_memory_equal(got.map, map, sizeof map);
    sfc_store_run_close(&got);
    assert_int_equal(sfc_store_run_before(store, UINT64_MAX, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, second);
    assert_string_equal(got.state, "failed");
    assert_string_equal(got.reason, "shard 1 lost");
    assert_true(got.paused);
    sfc_store_run_close(&got);
    assert_int_equal(sfc_store_run_before(store, second, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, first);
    assert_string_equal(got.state, "loading");
    assert_int_equal(got.start_step, 7);
    assert_int_equal(got.config_size, sizeof config);
    assert_memory_equal(got.config, config, sizeof config);
    sfc_store_run_close(&got);
    assert_int_equal(sfc_store_run_before(store, first, &got, NULL), SFC_ENOTFOUND);
    assert_int_equal(sfc_store_run_before(store, 0, &got, NULL), SFC_ENOTFOUND);
    assert_null(got.config);
    sfc_store_close(store);
}

/* The newest map is the run's; a run before it keeps its own. */
void store_case_maps(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_run got = {0};
    uint8_t first[] = {1}, second[] = {2, 0}, third[] = {3, 3, 3};
    const struct sfc_store_run run = {
        .map_version = 1, .state = "loading", .map = first, .map_size = sizeof first};
    uint64_t before = 0, id = 0;
    assert_int_equal(sfc_store_add_run(store, &run, &before, NULL), SFC_OK);
    struct sfc_store_map map = {
        .run_id = before, .version = 9, .step = 1, .bytes = third, .size = sizeof third};
    assert_int_equal(sfc_store_put_map(store, &map, NULL), SFC_OK);
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    map = (struct sfc_store_map){.run_id = id,
                                 .version = 2,
                                 .step = 7,
                                 .order = UINT64_MAX,
                                 .bytes = second,
                                 .size = sizeof second};
    assert_int_equal(sfc_store_put_map(store, &map, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_map(store, &map, NULL), SFC_OK);
    map.bytes = third;
    assert_int_equal(sfc_store_put_map(store, &map, NULL), SFC_ECONFLICT);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, id);
    assert_true(got.map_version == 2 && got.map_step == 7 && got.map_order == UINT64_MAX);
    assert_int_equal(got.map_size, sizeof second);
    assert_memory_equal(got.map, second, sizeof second);
    sfc_store_run_close(&got);
    map.size = sizeof third;
    for (map.version = 3; map.version <= 200; map.version++)
        assert_int_equal(sfc_store_put_map(store, &map, NULL), SFC_OK);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_true(got.map_version == 200 && got.map_size == sizeof third);
    sfc_store_run_close(&got);
    sfc_store_close(store);
}

void store_case_commits(void **state)
{
    struct sfc_store *store = store_must_open(state);
    uint8_t attempts[] = {5, 6};
    struct sfc_store_commit c = {.run_id = 2,
                                 .clip_scale = 0.25,
                                 .applied = true,
                                 .lr = 0.1,
                                 .images_per_s = 700,
                                 .time_us = UINT64_C(1700000000123456),
                                 .norm = 3,
                                 .round_incarnation = 4,
                                 .round_counter = 1ull << 63,
                                 .skipped_total = 6,
                                 .classes = 1ull << 40,
                                 .map_version = 1,
                                 .attempts = attempts,
                                 .attempts_size = sizeof attempts};
    struct sfc_store_commit got;
    assert_int_equal(sfc_store_last_commit(store, 2, &got, NULL), SFC_ENOTFOUND);
    for (uint64_t t = 1; t <= 5; t++) {
        c.step = t;
        c.loss = t == 4 ? (double)NAN : (double)t;
        c.applied = t != 4;
        c.position = t * 128;
        assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK);
        assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK); /* the same again */
    }
    attempts[0] = 7;
    assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_ECONFLICT);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_commit(store, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 5);
    assert_int_equal(got.position, 640);
    assert_int_equal(got.time_us, UINT64_C(1700000000123456));
    assert_int_equal(got.round_incarnation, 4);
    assert_int_equal(got.round_counter, 1ull << 63);
    assert_int_equal(got.skipped_total, 6);
    assert_true(got.norm == 3);
    assert_int_equal(got.classes, 1ull << 40);
    assert_true(got.clip_scale == 0.25 && got.lr == 0.1 && got.loss == 5);
    struct sfc_store_commit points[8];
    size_t n = 0;
    assert_int_equal(sfc_store_history(store, 2, 2, 8, points, &n, NULL), SFC_OK);
    assert_int_equal(n, 3);
    assert_int_equal(points[0].step, 3);
    assert_true(isnan(points[1].loss));
    assert_false(points[1].applied);
    assert_int_equal(sfc_store_history(store, 2, 0, 2, points, &n, NULL), SFC_OK);
    assert_int_equal(n, 2);
    assert_int_equal(sfc_store_history(store, 1, 0, 2, points, &n, NULL), SFC_OK);
    assert_int_equal(n, 0);
    sfc_store_close(store);
}

void store_case_drops(void **state)
{
    struct sfc_store *store = store_must_open(state);
    const struct sfc_store_drop drops[] = {{7, 3}, {5, 1}, {7, 0}};
    struct sfc_store_drop got[4];
    size_t n = 9;
    assert_int_equal(sfc_store_drops(store, 2, 0, 4, got, &n, NULL), SFC_OK);
    assert_int_equal(n, 0);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(sfc_store_put_drop(store, 2, &drops[i], NULL), SFC_OK);
    assert_int_equal(sfc_store_put_drop(store, 2, &drops[0], NULL), SFC_OK); /* again */
    assert_int_equal(sfc_store_put_drop(store, 3, &drops[0], NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_drops(store, 2, 4, 4, got, &n, NULL), SFC_OK);
    assert_int_equal(n, 3);
    assert_true(got[0].step == 5 && got[0].micro_batch == 1);
    assert_true(got[1].step == 7 && got[1].micro_batch == 0);
    assert_int_equal(sfc_store_drops(store, 2, 5, 1, got, &n, NULL), SFC_OK);
    assert_int_equal(n, 1);
    assert_int_equal(got[0].step, 7);
    assert_int_equal(sfc_store_drops(store, 2, 7, 4, got, &n, NULL), SFC_OK);
    assert_int_equal(n, 0);
    sfc_store_close(store);
}

void store_case_rewind(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_commit c = {.loss = 0.5}, got = {0};
    struct sfc_store_drop drops[4];
    size_t count = 0;
    for (c.run_id = 1; c.run_id <= 2; c.run_id++)
        for (c.step = 1; c.step <= 5; c.step++) {
            const struct sfc_store_drop drop = {c.step, 1};
            assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK);
            assert_int_equal(sfc_store_put_drop(store, c.run_id, &drop, NULL), SFC_OK);
        }
    for (int again = 0; again < 2; again++) {
        assert_int_equal(sfc_store_rewind(store, 2, 3, NULL, 0, NULL, NULL), SFC_OK);
        sfc_store_close(store);
        store = store_must_open(state);
        assert_int_equal(sfc_store_last_commit(store, 2, &got, NULL), SFC_OK);
        assert_int_equal(got.step, 3);
    }
    assert_int_equal(sfc_store_drops(store, 2, 0, 4, drops, &count, NULL), SFC_OK);
    assert_int_equal(count, 3);
    assert_int_equal(sfc_store_last_commit(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 5); /* the other run's */
    assert_int_equal(sfc_store_commit_of(store, 2, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 2);
    assert_int_equal(sfc_store_commit_of(store, 2, 4, &got, NULL), SFC_ENOTFOUND);
    assert_int_equal(sfc_store_commit_of(store, 2, 0, &got, NULL), SFC_ENOTFOUND);
    c = (struct sfc_store_commit){.run_id = 2, .step = 4, .loss = 0.25, .clip_scale = 0.5};
    assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK); /* another future */
    assert_int_equal(sfc_store_rewind(store, 2, 0, NULL, 0, NULL, NULL), SFC_OK);
    assert_int_equal(sfc_store_last_commit(store, 2, &got, NULL), SFC_ENOTFOUND);
    sfc_store_close(store);
}

/* Where a run went back goes with the records, whole. */
void store_case_lineage(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_lineage lineage = {0}, got = {.count = 9};
    struct sfc_store_commit commit = {.run_id = 2, .step = 4};
    assert_int_equal(sfc_store_lineage(store, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.count, 0);
    sfc_lineage_add(&lineage, 3, (struct sfc_attempt){1, UINT64_MAX});
    sfc_lineage_add(&lineage, 8, (struct sfc_attempt){2, 5});
    assert_int_equal(sfc_store_put_commits(store, &commit, 1, &lineage, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_lineage(store, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.count, 2);
    assert_true(got.returns[0].step == 3 && got.returns[0].last.counter == UINT64_MAX);
    assert_true(got.returns[1].step == 8 && got.returns[1].last.incarnation == 2);
    sfc_lineage_add(&lineage, 2, (struct sfc_attempt){2, 6});
    assert_int_equal(sfc_store_rewind(store, 2, 2, NULL, 0, &lineage, NULL), SFC_OK);
    assert_int_equal(sfc_store_rewind(store, 2, 2, NULL, 0, &lineage, NULL), SFC_OK);
    assert_int_equal(sfc_store_lineage(store, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.count, 1);
    assert_int_equal(sfc_store_lineage(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.count, 0);
    assert_int_equal(sfc_store_last_commit(store, 2, &commit, NULL), SFC_ENOTFOUND);
    sfc_store_close(store);
}

static void expect_lr(struct sfc_store *store, uint64_t run, const struct sfc_store_lr *expected,
                      size_t count)
{
    struct sfc_store_lr got[8];
    size_t n = 99;
    assert_int_equal(sfc_store_lr_changes(store, run, 8, got, &n, NULL), SFC_OK);
    assert_int_equal(n, count);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got[i].from_step, expected[i].from_step);
        assert_true(got[i].lr == expected[i].lr);
    }
}

/* A change takes the place of later ones, and goes with the steps that a rewind takes back. */
void store_case_lr(void **state)
{
    static const struct sfc_store_lr first[] = {{3, 0.1}, {7, 0}, {UINT64_MAX >> 1, 1e-300}};
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_run run = {.state = "loading", .lr_changes = first, .lr_change_count = 3};
    uint64_t id = 0, other = 0;
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    assert_int_equal(sfc_store_add_run(store, &run, &other, NULL), SFC_OK);
    expect_lr(store, id, first, 3);
    const struct sfc_store_lr four = {4, 1.0 / 3}, nine = {9, 0.2};
    assert_int_equal(sfc_store_put_lr(store, id, &four, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_lr(store, id, &four, NULL), SFC_OK); /* again */
    assert_int_equal(sfc_store_put_lr(store, id, &nine, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    const struct sfc_store_lr now[] = {first[0], four, nine};
    expect_lr(store, id, now, 3);
    expect_lr(store, other, first, 3);
    assert_int_equal(sfc_store_rewind(store, id, 9, NULL, 0, NULL, NULL), SFC_OK);
    expect_lr(store, id, now, 3);
    assert_int_equal(sfc_store_rewind(store, id, 8, NULL, 0, NULL, NULL), SFC_OK);
    expect_lr(store, id, now, 2);
    assert_int_equal(sfc_store_rewind(store, id, 0, NULL, 0, NULL, NULL), SFC_OK);
    expect_lr(store, id, now, 0);
    expect_lr(store, other, first, 3);
    sfc_store_close(store);
}

void store_case_shards(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_shard shards[4];
    size_t n = 9;
    assert_int_equal(sfc_store_shards(store, shards, 4, &n, NULL), SFC_OK);
    assert_int_equal(n, 0);
    assert_int_equal(sfc_store_put_shard(store, 2, "127.0.0.1:2", NULL), SFC_OK);
    assert_int_equal(sfc_store_put_shard(store, 1, "127.0.0.1:1", NULL), SFC_OK);
    assert_int_equal(sfc_store_put_shard(store, 1, "127.0.0.1:1", NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_shards(store, shards, 4, &n, NULL), SFC_OK);
    assert_int_equal(n, 2);
    assert_int_equal(shards[0].shard, 1);
    assert_string_equal(shards[1].address, "127.0.0.1:2");
    assert_int_equal(sfc_store_drop_shard(store, 2, NULL), SFC_OK);
    assert_int_equal(sfc_store_drop_shard(store, 2, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_shard(store, 3, "127.0.0.1:2", NULL), SFC_OK);
    assert_int_equal(sfc_store_shards(store, shards, 4, &n, NULL), SFC_OK);
    assert_int_equal(n, 2);
    assert_int_equal(shards[1].shard, 3);
    sfc_store_close(store);
}

void store_case_goals(void **state)
{
    struct sfc_store *store = store_must_open(state);
    uint8_t *goal = NULL;
    size_t size = 9;
    assert_int_equal(sfc_store_goal(store, 1, &goal, &size, NULL), SFC_OK);
    assert_null(goal);
    assert_int_equal(size, 0);
    assert_int_equal(sfc_store_put_goal(store, 1, (const uint8_t *)"four", 4, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_goal(store, 2, (const uint8_t *)"other", 5, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_goal(store, 1, (const uint8_t *)"five!", 5, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_goal(store, 1, &goal, &size, NULL), SFC_OK);
    assert_int_equal(size, 5);
    assert_memory_equal(goal, "five!", 5);
    free(goal);
    goal = NULL;
    assert_int_equal(sfc_store_put_goal(store, 1, NULL, 0, NULL), SFC_OK);
    assert_int_equal(sfc_store_goal(store, 1, &goal, &size, NULL), SFC_OK);
    assert_null(goal);
    assert_int_equal(size, 0);
    sfc_store_close(store);
}

/* Those that are kept, in order, from either end. */
void store_case_events(void **state)
{
    enum { PUT = 250 };
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_event *got = calloc(320, sizeof *got);
    struct sfc_store_event event = {.run_id = 3, .who = "127.0.0.1:9"};
    size_t count = 9;
    assert_non_null(got);
    assert_int_equal(sfc_store_events(store, 0, true, 10, got, &count, NULL), SFC_OK);
    assert_int_equal(count, 0);
    for (int i = 1; i <= PUT; i++) {
        event.time_ms = 1000 + i;
        snprintf(event.text, sizeof event.text, "event %d", i);
        assert_int_equal(sfc_store_put_event(store, &event, NULL), SFC_OK);
    }
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_events(store, 0, true, 10, got, &count, NULL), SFC_OK);
    assert_int_equal(count, 10);
    assert_string_equal(got[0].text, "event 241");
    assert_string_equal(got[9].text, "event 250");
    assert_string_equal(got[9].who, "127.0.0.1:9");
    assert_true(got[9].time_ms == 1250 && got[9].run_id == 3);
    assert_int_equal(sfc_store_events(store, got[4].id, false, 3, got + 10, &count, NULL), SFC_OK);
    assert_int_equal(count, 3);
    assert_string_equal(got[10].text, "event 246");
    assert_int_equal(sfc_store_events(store, got[8].id, true, 300, got + 10, &count, NULL), SFC_OK);
    assert_int_equal(count, 1);
    assert_true(got[10].id == got[9].id);
    free(got);
    sfc_store_close(store);
}

/* A configuration and a map of 16 MiB each. */
void store_case_large_run(void **state)
{
    enum { SIZE = 16 << 20 };
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_run run = {.state = "loading", .map_version = 1}, got = {0};
    uint64_t id = 0;
    run.config = malloc(SIZE);
    run.map = malloc(SIZE);
    assert_non_null(run.config);
    assert_non_null(run.map);
    run.config_size = SIZE;
    run.map_size = SIZE - 1;
    for (size_t i = 0; i < SIZE; i++) {
        run.config[i] = (uint8_t)(i * 7 + (i >> 13));
        run.map[i] = (uint8_t)(i * 11 + (i >> 15));
    }
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.config_size, SIZE);
    assert_int_equal(got.map_size, SIZE - 1);
    assert_memory_equal(got.config, run.config, SIZE);
    assert_memory_equal(got.map, run.map, SIZE - 1);
    sfc_store_run_close(&got);
    sfc_store_run_close(&run);
    sfc_store_close(store);
}

/* As many records as are ever written together; again, and with one more behind them. */
void store_case_commits_together(void **state)
{
    enum { COUNT = 1000 };
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_commit *c = calloc(COUNT + 1, sizeof *c), got;
    uint8_t attempts[200] = {1};
    size_t n = 0;
    assert_non_null(c);
    for (size_t i = 0; i <= COUNT; i++)
        c[i] = (struct sfc_store_commit){.run_id = 3,
                                         .step = i + 1,
                                         .loss = (double)i,
                                         .attempts = attempts,
                                         .attempts_size = sizeof attempts};
    assert_int_equal(sfc_store_put_commits(store, c, COUNT, NULL, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_commits(store, c, COUNT + 1, NULL, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_commit(store, 3, &got, NULL), SFC_OK);
    assert_int_equal(got.step, COUNT + 1);
    assert_int_equal(sfc_store_commit_of(store, 3, 500, &got, NULL), SFC_OK);
    assert_true(got.loss == 499);
    assert_int_equal(sfc_store_history(store, 3, 500, COUNT, c, &n, NULL), SFC_OK);
    assert_int_equal(n, 501);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(c[i].step, 501 + i);
    c[0] = (struct sfc_store_commit){.run_id = 3, .step = 700, .clip_scale = 9};
    assert_int_equal(sfc_store_put_commit(store, &c[0], NULL), SFC_ECONFLICT);
    sfc_store_close(store);
    free(c);
}

/* Back to a step whose record was written together with later ones, and another future from there;
 * then back to before all of them, with records that were never written. */
void store_case_rewind_into_several(void **state)
{
    struct sfc_store *store = store_must_open(state);
    struct sfc_store_commit c[6], got;
    size_t n = 0;
    for (size_t i = 0; i < 6; i++)
        c[i] = (struct sfc_store_commit){.run_id = 1, .step = i + 1, .loss = 1};
    assert_int_equal(sfc_store_put_commits(store, c, 6, NULL, NULL), SFC_OK);
    for (int again = 0; again < 2; again++)
        assert_int_equal(sfc_store_rewind(store, 1, 4, NULL, 0, NULL, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_commit(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 4);
    assert_int_equal(sfc_store_commit_of(store, 1, 5, &got, NULL), SFC_ENOTFOUND);
    c[4].loss = c[5].loss = 2;
    c[4].clip_scale = 0.5;
    assert_int_equal(sfc_store_put_commits(store, c + 4, 2, NULL, NULL), SFC_OK);
    assert_int_equal(sfc_store_history(store, 1, 0, 6, c, &n, NULL), SFC_OK);
    assert_int_equal(n, 6);
    assert_true(c[3].loss == 1 && c[4].loss == 2 && c[5].step == 6);
    assert_int_equal(sfc_store_rewind(store, 1, 0, NULL, 0, NULL, NULL), SFC_OK);
    assert_int_equal(sfc_store_rewind(store, 1, 4, c, 6, NULL, NULL), SFC_OK);
    assert_int_equal(sfc_store_last_commit(store, 1, &got, NULL), SFC_OK);
    assert_int_equal(got.step, 4);
    assert_int_equal(sfc_store_history(store, 1, 0, 6, c, &n, NULL), SFC_OK);
    assert_int_equal(n, 4);
    sfc_store_close(store);
}

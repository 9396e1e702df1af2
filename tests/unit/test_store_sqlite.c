/* The scheduler's store: durable over reopen, exclusive, clear about files that are not its own. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "server/scheduler/state_store.h"

struct place {
    char base[64];
    char dir[80];
    char db[128];
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    strcpy(p->base, "/tmp/sfc_store_XXXXXX");
    assert_non_null(mkdtemp(p->base));
    snprintf(p->dir, sizeof p->dir, "%s/state", p->base);
    snprintf(p->db, sizeof p->db, "%s/scheduler.db", p->dir);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    static const char *const files[] = {"scheduler.db", "scheduler.db-wal", "scheduler.db-shm",
                                        "lock"};
    char path[256];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", p->dir, files[i]);
        unlink(path);
    }
    rmdir(p->dir);
    assert_int_equal(rmdir(p->base), 0);
    free(p);
    return 0;
}

static struct sfc_store *must_open(const struct place *p)
{
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    if (sfc_store_open(p->dir, &store, &err) != SFC_OK)
        fail_msg("open: %s", err.text);
    return store;
}

static void test_incarnation_survives(void **state)
{
    uint64_t n = 0;
    for (uint64_t expect = 1; expect <= 3; expect++) {
        struct sfc_store *store = must_open(*state);
        assert_int_equal(sfc_store_next_incarnation(store, &n, NULL), SFC_OK);
        assert_int_equal(n, expect);
        sfc_store_close(store);
    }
    struct stat st;
    assert_int_equal(stat(((struct place *)*state)->dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
}

static void test_exclusive(void **state)
{
    struct place *p = *state;
    struct sfc_store *store = must_open(p), *second = NULL;
    struct sfc_error err = {0};
    assert_int_equal(sfc_store_open(p->dir, &second, &err), SFC_ESTATE);
    assert_non_null(strstr(err.text, "another scheduler"));
    assert_null(second);
    sfc_store_close(store);
    sfc_store_close(must_open(p));
}

static void test_runs(void **state)
{
    struct sfc_store *store = must_open(*state);
    struct sfc_store_run got = {0};
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_ENOTFOUND);
    uint8_t config[] = {1, 0, 2}, map[] = {9};
    struct sfc_store_run run = {.start_step = 7,
                                .load = true,
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
    store = must_open(*state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, second);
    assert_int_equal(got.start_step, 7);
    assert_true(got.load);
    assert_string_equal(got.state, "failed");
    assert_string_equal(got.reason, "shard 1 lost");
    assert_string_equal(got.numerics, "cpu avx2");
    assert_int_equal(got.config_size, sizeof config);
    assert_memory_equal(got.config, config, sizeof config);
    assert_memory_equal(got.map, map, sizeof map);
    sfc_store_run_close(&got);
    sfc_store_close(store);
}

/* The newest map is the run's; a run before it keeps its own. */
static void test_maps(void **state)
{
    struct sfc_store *store = must_open(*state);
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
    store = must_open(*state);
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

static void test_commits(void **state)
{
    struct sfc_store *store = must_open(*state);
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
    store = must_open(*state);
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

static void test_drops(void **state)
{
    struct sfc_store *store = must_open(*state);
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
    store = must_open(*state);
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

static void test_rewind(void **state)
{
    struct sfc_store *store = must_open(*state);
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
        store = must_open(*state);
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
static void test_lineage(void **state)
{
    struct sfc_store *store = must_open(*state);
    struct sfc_lineage lineage = {0}, got = {.count = 9};
    struct sfc_store_commit commit = {.run_id = 2, .step = 4};
    assert_int_equal(sfc_store_lineage(store, 2, &got, NULL), SFC_OK);
    assert_int_equal(got.count, 0);
    sfc_lineage_add(&lineage, 3, (struct sfc_attempt){1, UINT64_MAX});
    sfc_lineage_add(&lineage, 8, (struct sfc_attempt){2, 5});
    assert_int_equal(sfc_store_put_commits(store, &commit, 1, &lineage, NULL), SFC_OK);
    sfc_store_close(store);
    store = must_open(*state);
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

/* A file of schema 4 goes on, by way of 5. */
static void test_upgrade(void **state)
{
    const struct place *p = *state;
    struct sfc_store_run run = {.state = "loading"}, got = {0};
    struct sfc_store *store = must_open(p);
    uint64_t id = 0;
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    sfc_store_close(store);
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(p->db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db,
                                  "ALTER TABLE runs DROP COLUMN rewind_window;"
                                  "ALTER TABLE runs DROP COLUMN durable_every;"
                                  "ALTER TABLE runs DROP COLUMN nonce;"
                                  "ALTER TABLE runs DROP COLUMN elastic;"
                                  "ALTER TABLE events DROP COLUMN who;"
                                  "DROP TABLE returns;"
                                  "ALTER TABLE runs DROP COLUMN paused;"
                                  "DROP TABLE lr_changes;"
                                  "UPDATE runs SET state = 'paused';"
                                  "DROP TABLE goals;"
                                  "DROP TABLE maps;"
                                  "PRAGMA user_version=4",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(db);
    store = must_open(p);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, id);
    assert_int_equal(got.rewind_window, 0);
    assert_true(got.paused);
    sfc_store_run_close(&got);
    assert_int_equal(got.nonce, 0);
    run.rewind_window = 12;
    run.nonce = UINT64_MAX;
    run.elastic = true;
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    sfc_store_close(store);
    store = must_open(p);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.rewind_window, 12);
    assert_true(got.nonce == UINT64_MAX);
    assert_true(got.elastic);
    sfc_store_run_close(&got);
    sfc_store_close(store);
}

static void test_goals(void **state)
{
    struct sfc_store *store = must_open(*state);
    uint8_t *goal = NULL;
    size_t size = 9;
    assert_int_equal(sfc_store_goal(store, 1, &goal, &size, NULL), SFC_OK);
    assert_null(goal);
    assert_int_equal(size, 0);
    assert_int_equal(sfc_store_put_goal(store, 1, (const uint8_t *)"four", 4, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_goal(store, 2, (const uint8_t *)"other", 5, NULL), SFC_OK);
    assert_int_equal(sfc_store_put_goal(store, 1, (const uint8_t *)"five!", 5, NULL), SFC_OK);
    sfc_store_close(store);
    store = must_open(*state);
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
static void test_events(void **state)
{
    enum { PUT = 250 };
    struct sfc_store *store = must_open(*state);
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
    store = must_open(*state);
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
static void test_lr(void **state)
{
    static const struct sfc_store_lr first[] = {{3, 0.1}, {7, 0}, {UINT64_MAX >> 1, 1e-300}};
    struct sfc_store *store = must_open(*state);
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
    store = must_open(*state);
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

static void test_shards(void **state)
{
    struct sfc_store *store = must_open(*state);
    struct sfc_store_shard shards[4];
    size_t n = 9;
    assert_int_equal(sfc_store_shards(store, shards, 4, &n, NULL), SFC_OK);
    assert_int_equal(n, 0);
    assert_int_equal(sfc_store_put_shard(store, 2, "127.0.0.1:2", NULL), SFC_OK);
    assert_int_equal(sfc_store_put_shard(store, 1, "127.0.0.1:1", NULL), SFC_OK);
    assert_int_equal(sfc_store_put_shard(store, 1, "127.0.0.1:1", NULL), SFC_OK);
    sfc_store_close(store);
    store = must_open(*state);
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

static void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    fclose(f);
}

static void expect_refused(const struct place *p, const char *word)
{
    struct sfc_store *store = NULL;
    struct sfc_error err = {0};
    assert_int_equal(sfc_store_open(p->dir, &store, &err), SFC_ECORRUPT);
    assert_null(store);
    assert_non_null(strstr(err.text, p->db));
    if (!strstr(err.text, word))
        fail_msg("'%s' lacks '%s'", err.text, word);
}

static void test_foreign_files(void **state)
{
    struct place *p = *state;
    assert_int_equal(mkdir(p->dir, 0700), 0);
    char text[4096];
    memset(text, 'x', sizeof text);
    write_file(p->db, text, sizeof text);
    expect_refused(p, "not an SQLite database");
    unlink(p->db);
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(p->db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE mine(x)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    expect_refused(p, "another program");
    unlink(p->db);
    sfc_store_close(must_open(p));
    assert_int_equal(sqlite3_open(p->db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    expect_refused(p, "schema version 99");
}

static void test_damaged_page(void **state)
{
    struct place *p = *state;
    struct sfc_store *store = must_open(p);
    struct sfc_store_commit c = {.run_id = 1};
    for (c.step = 1; c.step <= 300; c.step++)
        assert_int_equal(sfc_store_put_commit(store, &c, NULL), SFC_OK);
    sfc_store_close(store);
    struct stat st;
    assert_int_equal(stat(p->db, &st), 0);
    FILE *f = fopen(p->db, "r+b");
    assert_non_null(f);
    char junk[512];
    memset(junk, 0xa5, sizeof junk);
    for (long at = 8192; at + 512 <= st.st_size; at += 4096) {
        assert_int_equal(fseek(f, at, SEEK_SET), 0);
        assert_int_equal(fwrite(junk, 1, sizeof junk, f), sizeof junk);
    }
    fclose(f);
    expect_refused(p, "damaged");
}

static void test_etcd_refused(void **state)
{
    (void)state;
    struct sfc_store *store = NULL;
    assert_int_equal(sfc_store_open("etcd://h:1", &store, NULL), SFC_EUNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_incarnation_survives, setup, teardown),
        cmocka_unit_test_setup_teardown(test_exclusive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_runs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_maps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rewind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lineage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upgrade, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lr, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(test_goals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_page, setup, teardown),
        cmocka_unit_test(test_etcd_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

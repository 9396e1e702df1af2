/* The scheduler's store: durable over reopen, exclusive, clear about files that are not its own. */
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

#include "tests/lib/store_cases.h"

struct place {
    struct store_place common; /* a folder that is not there yet */
    char base[64];
    char db[320];
};

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    assert_non_null(p);
    strcpy(p->base, "/tmp/sfc_store_XXXXXX");
    assert_non_null(mkdtemp(p->base));
    snprintf(p->common.where, sizeof p->common.where, "%s/state", p->base);
    snprintf(p->db, sizeof p->db, "%s/scheduler.db", p->common.where);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    static const char *const files[] = {"scheduler.db", "scheduler.db-wal", "scheduler.db-shm",
                                        "lock"};
    char path[320];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", p->common.where, files[i]);
        unlink(path);
    }
    rmdir(p->common.where);
    assert_int_equal(rmdir(p->base), 0);
    free(p);
    return 0;
}

/* Made for its owner alone. */
static void test_folder(void **state)
{
    struct place *p = *state;
    struct stat st;
    sfc_store_close(store_must_open(state));
    assert_int_equal(stat(p->common.where, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
}

/* A file of schema 4 goes on, by way of 5. */
static void test_upgrade(void **state)
{
    const struct place *p = *state;
    struct sfc_store_run run = {.state = "loading"}, got = {0};
    struct sfc_store *store = store_must_open(state);
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
                                  "ALTER TABLE runs DROP COLUMN mirrors;"
                                  "ALTER TABLE runs DROP COLUMN grace_s;"
                                  "DROP TABLE lr_changes;"
                                  "UPDATE runs SET state = 'paused';"
                                  "DROP TABLE goals;"
                                  "DROP TABLE maps;"
                                  "PRAGMA user_version=4",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(db);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.run_id, id);
    assert_int_equal(got.rewind_window, 0);
    assert_int_equal(got.mirrors, 0);
    assert_true(got.paused);
    sfc_store_run_close(&got);
    assert_int_equal(got.nonce, 0);
    run.rewind_window = 12;
    run.nonce = UINT64_MAX;
    run.elastic = true;
    assert_int_equal(sfc_store_add_run(store, &run, &id, NULL), SFC_OK);
    sfc_store_close(store);
    store = store_must_open(state);
    assert_int_equal(sfc_store_last_run(store, &got, NULL), SFC_OK);
    assert_int_equal(got.rewind_window, 12);
    assert_true(got.nonce == UINT64_MAX);
    assert_true(got.elastic);
    sfc_store_run_close(&got);
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
    assert_int_equal(sfc_store_open(p->common.where, &store, &err), SFC_ECORRUPT);
    assert_null(store);
    assert_non_null(strstr(err.text, p->db));
    if (!strstr(err.text, word))
        fail_msg("'%s' lacks '%s'", err.text, word);
}

static void test_foreign_files(void **state)
{
    struct place *p = *state;
    assert_int_equal(mkdir(p->common.where, 0700), 0);
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
    sfc_store_close(store_must_open(state));
    assert_int_equal(sqlite3_open(p->db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    expect_refused(p, "schema version 99");
}

static void test_damaged_page(void **state)
{
    struct place *p = *state;
    struct sfc_store *store = store_must_open(state);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_CASES(setup, teardown),
        cmocka_unit_test_setup_teardown(test_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upgrade, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_page, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

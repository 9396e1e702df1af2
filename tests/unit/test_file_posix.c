/* The files of the operating system: the contract of file_layer.h, a log and snapshots on it, run
 * folders. */
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

#include "server/durable/run_folder.h"
#include "tests/lib/log_rig.h"
#include "tests/lib/snapshot_rig.h"

struct fixture {
    char state[64];
    struct sfc_folder *folder;
    struct sfc_error err;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->state, "/tmp/sfc-posix-XXXXXX");
    assert_non_null(mkdtemp(f->state));
    assert_int_equal(sfc_run_folder_open(f->state, 42, true, &f->folder, &f->err), SFC_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];
    sfc_folder_close(f->folder);
    snprintf(command, sizeof command, "rm -rf '%s'", f->state);
    int code = system(command);
    free(f);
    return code;
}

static int count_name(void *arg, const char *name, struct sfc_error *err)
{
    (void)name;
    (void)err;
    ++*(int *)arg;
    return SFC_OK;
}

/* Of more than two direct writes and an odd size; the folder is one of /tmp, which may be a tmpfs.
 */
static void large_snapshots_are_written_directly(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_identity identity = {.run_id = 42};
    struct sfc_snapshot_shape shape = {
        .dtype = SFC_SNAPSHOT_F32, .rows = 1234567, .dim = 1, .has = {true, true, false, false}};
    struct sfc_snapshot_key key = {.kind = SFC_SNAPSHOT_DENSE, .block = 1, .step = 3};
    struct sfc_snapshot_store *store;
    struct sfc_snapshot_header header;
    struct sfc_snapshot_write *write;
    size_t part = 4 * 1234567, n = 0;
    uint8_t *values = malloc(2 * part), *back = NULL;
    bool done = false;
    for (size_t i = 0; i < 2 * part; i++)
        values[i] = (uint8_t)(i * 2654435761u >> 24);
    const void *parts[SFC_SNAPSHOT_PARTS] = {values, values + part};
    assert_int_equal(sfc_snapshot_store_open(f->folder, &identity, &store, &f->err), SFC_OK);
    assert_int_equal(sfc_snapshot_write_begin(store, &key, &shape, parts, &write, &f->err), SFC_OK);
    sfc_snapshot_write_direct(write);
    for (; !done; n++)
        assert_int_equal(sfc_snapshot_write_some(write, 3000001, &done, &f->err), SFC_OK);
    assert_int_equal(n, 4);
    sfc_snapshot_write_end(write);
    assert_int_equal(sfc_snapshot_check(f->folder, "dense-1-3.sfs", &header, &f->err), SFC_OK);
    assert_int_equal(sfc_snapshot_load(f->folder, "dense-1-3.sfs", &header, &back, &f->err),
                     SFC_OK);
    assert_memory_equal(back, values, 2 * part);
    free(back);
    free(values);
    sfc_snapshot_store_close(store);
}

static void files_do_what_the_contract_says(void **state)
{
    struct fixture *f = *state;
    const struct sfc_folder_ops *ops = f->folder->ops;
    struct sfc_file *file, *again;
    struct sfc_bytes parts[3000];
    uint8_t bytes[3000], back[4000];
    uint64_t size, space;
    size_t got;
    for (size_t i = 0; i < 3000; i++) { /* more parts than one call takes, some of them empty */
        bytes[i] = (uint8_t)(i * 7);
        parts[i] = (struct sfc_bytes){&bytes[i], i % 10 != 3};
    }
    assert_int_equal(ops->create(f->folder, "a", &file, &f->err), SFC_OK);
    assert_int_equal(ops->create(f->folder, "a", &again, &f->err), SFC_EEXIST);
    assert_int_equal(ops->write(file, 100, parts, 3000, &f->err), SFC_OK);
    assert_int_equal(ops->sync(file, &f->err), SFC_OK);
    assert_int_equal(ops->size(file, &size, &f->err), SFC_OK);
    assert_int_equal(size, 2800);
    assert_int_equal(ops->read(file, 50, back, sizeof back, &got, &f->err), SFC_OK);
    assert_int_equal(got, 2750);
    assert_int_equal(back[0], 0);
    assert_int_equal(back[50 + 4], bytes[5]);
    assert_int_equal(ops->resize(file, 10, &f->err), SFC_OK);
    ops->close_file(file);
    assert_int_equal(ops->rename(f->folder, "a", "b", &f->err), SFC_OK);
    assert_int_equal(ops->open(f->folder, "a", false, &file, &f->err), SFC_ENOTFOUND);
    assert_int_equal(ops->open(f->folder, "b", false, &file, &f->err), SFC_OK);
    assert_int_equal(ops->size(file, &size, &f->err), SFC_OK);
    assert_int_equal(size, 10);
    assert_int_not_equal(ops->write(file, 0, parts, 1, &f->err), SFC_OK);
    assert_non_null(strstr(f->err.text, "run-42/b"));
    ops->close_file(file);
    int names = 0;
    assert_int_equal(ops->list(f->folder, count_name, &names, &f->err), SFC_OK);
    assert_int_equal(names, 1);
    assert_int_equal(ops->remove(f->folder, "b", &f->err), SFC_OK);
    assert_int_equal(ops->remove(f->folder, "b", &f->err), SFC_ENOTFOUND);
    assert_int_equal(ops->sync_names(f->folder, &f->err), SFC_OK);
    assert_int_equal(ops->free_space(f->folder, &space, &f->err), SFC_OK);
    assert_true(space > 0);
}

static void a_log_and_snapshots_live_there(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_log_config config = {.geometry = rig_geometry, .segment_bytes = 2000};
    struct sfc_step_log *log;
    struct sfc_step_log_report report;
    struct sfc_snapshot_store *store;
    struct sfc_snapshot_content content;
    struct rig_step record;
    rig_identity(&config.identity);
    assert_int_equal(sfc_step_log_create(f->folder, &config, &log, &f->err), SFC_OK);
    for (uint64_t step = 1; step <= 9; step++) {
        struct sfc_log_commit commit = rig_commit(step, (struct sfc_attempt){1, step});
        rig_fill(&record, step, commit.round);
        assert_int_equal(sfc_step_log_append_prepare(log, &record.prepare, &f->err), SFC_OK);
        assert_int_equal(sfc_step_log_flush(log, &f->err), SFC_OK);
        assert_int_equal(sfc_step_log_append_commit(log, &commit, &f->err), SFC_OK);
    }
    sfc_step_log_close(log);
    struct sfc_step_log_recovery recovery = {
        .from = 1, .last = rig_commit(9, (struct sfc_attempt){1, 9}), .has_last = true};
    assert_int_equal(sfc_step_log_recover(f->folder, &config, &recovery, &log, &report, &f->err),
                     SFC_OK);
    assert_int_equal(report.last_step, 9);
    assert_true(report.segments > 1);
    sfc_step_log_close(log);
    assert_int_equal(sfc_snapshot_store_open(f->folder, &config.identity, &store, &f->err), SFC_OK);
    assert_int_equal(rig_snapshot_write(store, 1, 9, &f->err), SFC_OK);
    sfc_snapshot_store_close(store);
    assert_int_equal(sfc_snapshot_store_open(f->folder, &config.identity, &store, &f->err), SFC_OK);
    struct sfc_snapshot_shape shape = rig_shape(1, 9);
    char loud[512];
    assert_int_equal(
        sfc_snapshot_store_read(store, SFC_SNAPSHOT_CLASS, 17, 9, &shape, &content, loud, &f->err),
        SFC_OK);
    assert_true(rig_snapshot_same(&content, 1));
    sfc_snapshot_store_close(store);
}

static bool there(const struct fixture *f, const char *name)
{
    char path[128];
    struct stat status;
    snprintf(path, sizeof path, "%s/%s", f->state, name);
    return stat(path, &status) == 0;
}

static void make(struct fixture *f, const char *name)
{
    char path[128];
    struct sfc_folder *folder;
    struct sfc_file *file;
    snprintf(path, sizeof path, "%s/%s", f->state, name);
    assert_int_equal(sfc_folder_open(path, true, &folder, &f->err), SFC_OK);
    assert_int_equal(folder->ops->create(folder, "x", &file, &f->err), SFC_OK);
    folder->ops->close_file(file);
    sfc_folder_close(folder);
}

static void run_folders_come_and_go_whole(void **state)
{
    struct fixture *f = *state;
    struct sfc_folder *folder;
    bool existed;
    unsigned removed;
    assert_int_equal(sfc_run_folder_open(f->state, 7, false, &folder, &f->err), SFC_ENOTFOUND);
    make(f, "run-7");
    make(f, "dead-run-7"); /* a removal that was cut off */
    assert_int_equal(sfc_run_folder_remove(f->state, 7, &existed, &f->err), SFC_OK);
    assert_true(existed);
    assert_false(there(f, "run-7"));
    assert_false(there(f, "dead-run-7"));
    assert_int_equal(sfc_run_folder_remove(f->state, 7, &existed, &f->err), SFC_OK);
    assert_false(existed);
    make(f, "run-8");
    make(f, "dead-run-9");
    make(f, "dead-run-42");
    make(f, "run-08"); /* not a name of ours */
    make(f, "other");
    assert_int_equal(sfc_run_folder_remove_others(f->state, 42, &removed, &f->err), SFC_OK);
    assert_int_equal(removed, 1);
    assert_true(there(f, "run-42"));
    assert_true(there(f, "other"));
    assert_true(there(f, "run-08"));
    assert_false(there(f, "run-8"));
    assert_false(there(f, "dead-run-9"));
    assert_false(there(f, "dead-run-42"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(files_do_what_the_contract_says),
        TEST(large_snapshots_are_written_directly),
        TEST(a_log_and_snapshots_live_there),
        TEST(run_folders_come_and_go_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

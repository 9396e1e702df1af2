/* The offline check: what it lists, which steps it calls recoverable, and the exit status of
 * `shardfc log` (SFC_BIN: folder of the program). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "server/ctl/state_report.h"
#include "server/durable/dense_list.h"
#include "server/durable/run_folder.h"
#include "tests/lib/log_rig.h"
#include "tests/lib/snapshot_rig.h"

enum { STEPS = 12, SEGMENT_STEPS = 5 };

struct fixture {
    char state[64];
    struct sfc_folder *folder;
    struct sfc_error err;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->state, "/tmp/sfc-report-XXXXXX");
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

static void append(struct fixture *f, struct sfc_step_log *log, uint64_t step,
                   struct sfc_attempt round)
{
    struct rig_step record;
    struct sfc_log_commit commit = rig_commit(step, round);
    rig_fill(&record, step, round);
    assert_int_equal(sfc_step_log_append_prepare(log, &record.prepare, &f->err), SFC_OK);
    assert_int_equal(sfc_step_log_flush(log, &f->err), SFC_OK);
    assert_int_equal(sfc_step_log_append_commit(log, &commit, &f->err), SFC_OK);
}

static void write_log(struct fixture *f, uint64_t first)
{
    struct sfc_step_log_config config = {.geometry = rig_geometry,
                                         .segment_bytes = SEGMENT_STEPS *
                                                          sfc_step_log_step_bytes(&rig_geometry)};
    struct sfc_step_log *log;
    rig_identity(&config.identity);
    assert_int_equal(sfc_step_log_create(f->folder, &config, &log, &f->err), SFC_OK);
    for (uint64_t step = first; step <= STEPS; step++) {
        append(f, log, step, (struct sfc_attempt){1, step});
    }
    sfc_step_log_close(log);
}

/* The run goes back to a step and takes `again` more of them, in rounds after `round`. */
static void write_again(struct fixture *f, uint64_t step, unsigned again, struct sfc_attempt round)
{
    struct sfc_step_log_config config = {.geometry = rig_geometry,
                                         .segment_bytes = SEGMENT_STEPS *
                                                          sfc_step_log_step_bytes(&rig_geometry)};
    const struct sfc_step_log_recovery recovery = {
        .from = step + 1,
        .has_last = true,
        .last = rig_commit(step, (struct sfc_attempt){1, step})};
    struct sfc_step_log_report report;
    struct sfc_step_log *log;
    rig_identity(&config.identity);
    assert_int_equal(sfc_step_log_recover(f->folder, &config, &recovery, &log, &report, &f->err),
                     SFC_OK);
    for (unsigned i = 0; i < again; i++) {
        round.counter++;
        append(f, log, ++step, round);
    }
    sfc_step_log_close(log);
}

/* Of each block, a step apart; of commits of a step in round (1, step). */
static void write_snapshots(struct fixture *f, uint64_t step)
{
    struct sfc_snapshot_store *store;
    struct sfc_run_identity identity;
    rig_identity(&identity);
    assert_int_equal(sfc_snapshot_store_open(f->folder, &identity, &store, &f->err), SFC_OK);
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        const struct sfc_attempt round = {1, step + block};
        assert_int_equal(rig_snapshot_write_round(store, block, step + block, round, &f->err),
                         SFC_OK);
    }
    sfc_snapshot_store_close(store);
}

static void flip(struct fixture *f, const char *name, uint64_t offset)
{
    struct sfc_file *file;
    uint8_t byte;
    size_t got;
    const struct sfc_folder_ops *ops = f->folder->ops;
    assert_int_equal(ops->open(f->folder, name, true, &file, &f->err), SFC_OK);
    assert_int_equal(ops->read(file, offset, &byte, 1, &got, &f->err), SFC_OK);
    byte ^= 1;
    struct sfc_bytes bytes = {&byte, 1};
    assert_int_equal(ops->write(file, offset, &bytes, 1, &f->err), SFC_OK);
    ops->close_file(file);
}

static json_int_t number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static json_t *report_of(struct fixture *f)
{
    json_t *report;
    assert_int_equal(sfc_state_report(f->folder, true, &report, &f->err), SFC_OK);
    return report;
}

static int exit_status(const struct fixture *f, const char *options)
{
    char command[512];
    const char *bin = getenv("SFC_BIN");
    snprintf(command, sizeof command, "'%s/shardfc' log %s '%s' >'%s/out' 2>&1",
             bin == NULL ? "." : bin, options, f->state, f->state);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool said(const struct fixture *f, const char *what)
{
    char path[128], text[8192] = "";
    snprintf(path, sizeof path, "%s/out", f->state);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return n > 0 && strstr(text, what) != NULL;
}

static void whole_state_is_clean(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(exit_status(f, ""), 2); /* nothing there yet */
    write_log(f, 1);
    json_t *report = report_of(f);
    const json_t *range = json_object_get(report, "recoverable");
    assert_int_equal(number(report, "problems"), 0);
    assert_int_equal(number(report, "run"), 42);
    assert_int_equal(json_array_size(json_object_get(report, "records")), 2 * STEPS - 1);
    assert_int_equal(number(range, "from"), 0); /* from the seed */
    assert_int_equal(number(range, "to"), STEPS - 1);
    assert_int_equal(number(range, "prepared"), STEPS);
    json_decref(report);
    write_snapshots(f, 4);
    report = report_of(f);
    range = json_object_get(report, "recoverable");
    assert_int_equal(json_array_size(json_object_get(report, "snapshots")), RIG_BLOCKS);
    assert_int_equal(number(report, "floor"), 4);
    assert_int_equal(number(range, "from"), 4 + RIG_BLOCKS - 1);
    assert_int_equal(number(report, "problems"), 0);
    json_decref(report);
    assert_int_equal(exit_status(f, ""), 0);
    assert_int_equal(exit_status(f, "--records"), 0);
    assert_int_equal(exit_status(f, "--json --records"), 0);
    assert_int_equal(exit_status(f, "--nonsense"), 2);
}

static void damage_is_listed(void **state)
{
    struct fixture *f = *state;
    write_log(f, 1);
    write_snapshots(f, 4);
    flip(f, "log-00000002.sfl", 700);
    json_t *report = report_of(f);
    const json_t *bad = json_array_get(json_object_get(report, "bad"), 0);
    assert_string_equal(json_string_value(json_object_get(bad, "file")), "log-00000002.sfl");
    assert_string_equal(json_string_value(json_object_get(bad, "state")), "corrupt");
    assert_true(number(report, "problems") >= 1);
    json_decref(report);
    assert_int_equal(exit_status(f, ""), 1);
    flip(f, "log-00000002.sfl", 700);
    assert_int_equal(exit_status(f, ""), 0);
    flip(f, "class-3-4.sfs", 530);
    report = report_of(f);
    assert_int_equal(number(report, "problems"), 1);
    json_decref(report);
    assert_int_equal(exit_status(f, "--json"), 1);
}

static void every_byte_of_a_list_of_blocks_is_checked(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_identity identity;
    const uint64_t blocks[] = {1, 4, 5};
    const char *name = NULL;
    uint64_t size = 40 + 3 * 8 + 8;
    rig_identity(&identity);
    write_log(f, 1);
    write_snapshots(f, 8);
    assert_int_equal(sfc_dense_list_store(f->folder, &identity, blocks, 3, &f->err), SFC_OK);
    json_t *report = report_of(f);
    json_t *list = json_array_get(json_object_get(report, "dense_lists"), 0);
    assert_int_equal(number(list, "blocks"), 3);
    assert_int_equal(number(report, "problems"), 0);
    name = json_string_value(json_object_get(list, "file"));
    assert_int_equal(exit_status(f, ""), 0);
    assert_true(said(f, "3 dense blocks  ok"));
    for (uint64_t at = 0; at < size; at++) {
        flip(f, name, at);
        json_t *damaged = report_of(f);
        assert_int_equal(number(damaged, "problems"), 1);
        json_decref(damaged);
        if (at == 50) {
            assert_int_equal(exit_status(f, ""), 1);
            assert_true(said(f, name) && said(f, "byte 0: the checksum is wrong") &&
                        said(f, "from a copy"));
        }
        flip(f, name, at);
    }
    json_decref(report);
}

static void a_gap_is_not_recoverable(void **state)
{
    struct fixture *f = *state;
    write_log(f, 6); /* the snapshots end before */
    write_snapshots(f, 2);
    json_t *report = report_of(f);
    assert_int_equal(number(json_object_get(report, "recoverable"), "to"), 0);
    assert_true(json_is_null(json_object_get(report, "recoverable")));
    json_decref(report);
    assert_int_equal(exit_status(f, ""), 1);
}

/* Steps, snapshots and segments of what was given up are listed as such, and promise nothing. */
static void what_was_given_up_is_void(void **state)
{
    struct fixture *f = *state;
    enum { BACK = 6, AGAIN = 3 };
    size_t i;
    json_t *o;
    unsigned voids = 0;
    write_log(f, 1);
    write_snapshots(f, 2);
    write_snapshots(f, 8); /* of 8, 9, 10 and 11: all after the step that it goes back to */
    json_t *report = report_of(f);
    assert_int_equal(number(json_object_get(report, "recoverable"), "to"), STEPS - 1);
    json_decref(report);
    write_again(f, BACK, AGAIN, (struct sfc_attempt){2, 0});
    report = report_of(f);
    json_array_foreach(json_object_get(report, "records"), i, o)
    {
        bool old =
            number(o, "step") > BACK && json_string_value(json_object_get(o, "round"))[0] == '1';
        assert_int_equal(json_is_true(json_object_get(o, "void")), old);
        assert_int_equal(strcmp(json_string_value(json_object_get(o, "why")), "") != 0, old);
        voids += old;
    }
    assert_true(voids >= 2 * (SEGMENT_STEPS * (STEPS / SEGMENT_STEPS) - BACK)); /* flushed */
    json_array_foreach(json_object_get(report, "snapshots"), i, o)
    {
        assert_int_equal(json_is_true(json_object_get(o, "void")), number(o, "step") > BACK);
    }
    json_array_foreach(json_object_get(report, "segments"), i, o)
    {
        assert_true(number(o, "last") <= BACK + AGAIN);
        assert_true(voids >= number(o, "void"));
        voids -= (unsigned)number(o, "void");
    }
    assert_int_equal(voids, 0);
    const json_t *range = json_object_get(report, "recoverable");
    assert_int_equal(number(range, "from"), 2 + RIG_BLOCKS - 1);
    assert_int_equal(number(range, "to"), BACK + AGAIN - 1);
    assert_int_equal(number(range, "prepared"), BACK + AGAIN);
    assert_int_equal(number(report, "floor"), 2);
    assert_int_equal(number(report, "problems"), 0);
    json_decref(report);
    assert_int_equal(exit_status(f, "--records"), 0);
    assert_true(said(f, "void: step 7 came again in round 2.1"));
}

/* A try at a step that was aborted, without any going back. */
static void an_aborted_try_is_void(void **state)
{
    struct fixture *f = *state;
    struct sfc_step_log_config config = {.geometry = rig_geometry};
    struct rig_step first_try;
    struct sfc_step_log *log;
    rig_identity(&config.identity);
    assert_int_equal(sfc_step_log_create(f->folder, &config, &log, &f->err), SFC_OK);
    append(f, log, 1, (struct sfc_attempt){1, 1});
    rig_fill(&first_try, 2, (struct sfc_attempt){1, 1});
    assert_int_equal(sfc_step_log_append_prepare(log, &first_try.prepare, &f->err), SFC_OK);
    append(f, log, 2, (struct sfc_attempt){1, 5});
    append(f, log, 3, (struct sfc_attempt){1, 5}); /* rounds outlive a step */
    sfc_step_log_close(log);
    json_t *report = report_of(f), *o;
    size_t i;
    unsigned voids = 0;
    json_array_foreach(json_object_get(report, "records"), i, o)
    {
        bool is_void = json_is_true(json_object_get(o, "void"));
        assert_true(!is_void || number(o, "step") == 2);
        voids += is_void;
    }
    assert_int_equal(voids, 1);
    assert_int_equal(number(json_object_get(report, "recoverable"), "to"), 2);
    assert_int_equal(number(json_object_get(report, "recoverable"), "prepared"), 3);
    json_decref(report);
}

static void a_foreign_snapshot_is_named(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_store *store;
    struct sfc_run_identity identity;
    write_log(f, 1);
    rig_identity(&identity);
    identity.nonce++;
    assert_int_equal(sfc_snapshot_store_open(f->folder, &identity, &store, &f->err), SFC_OK);
    assert_int_equal(rig_snapshot_write_round(store, 0, 3, (struct sfc_attempt){9, 9}, &f->err),
                     SFC_OK);
    sfc_snapshot_store_close(store);
    json_t *report = report_of(f);
    assert_int_equal(number(report, "problems"), 1);
    assert_int_equal(number(json_object_get(report, "recoverable"), "to"), STEPS - 1);
    json_decref(report);
    assert_int_equal(exit_status(f, ""), 1);
    assert_true(said(f, "belongs to another run"));
}

/* A shard that is running: a file that was listed is gone when it is opened. */
static struct leaving {
    const struct sfc_folder_ops *real;
    const char *name;
    int (*visit)(void *arg, const char *name, struct sfc_error *err);
    void *arg;
    struct sfc_folder *folder;
    int left;
} leaving;

static int visit_leaving(void *arg, const char *name, struct sfc_error *err)
{
    struct leaving *l = arg;
    if (strcmp(name, l->name) == 0) {
        assert_int_equal(l->real->remove(l->folder, name, err), SFC_OK);
        l->left++;
    }
    return l->visit(l->arg, name, err);
}

static int list_leaving(struct sfc_folder *folder,
                        int (*visit)(void *arg, const char *name, struct sfc_error *err), void *arg,
                        struct sfc_error *err)
{
    leaving.visit = visit;
    leaving.arg = arg;
    leaving.folder = folder;
    return leaving.real->list(folder, visit_leaving, &leaving, err);
}

static json_t *report_while_leaves(struct fixture *f, const char *name)
{
    struct sfc_folder_ops ops = *f->folder->ops;
    leaving = (struct leaving){.real = f->folder->ops, .name = name};
    ops.list = list_leaving;
    f->folder->ops = &ops;
    json_t *report = report_of(f);
    f->folder->ops = leaving.real;
    assert_int_equal(leaving.left, 1);
    return report;
}

static void what_is_removed_meanwhile_is_left_out(void **state)
{
    struct fixture *f = *state;
    struct sfc_run_identity identity;
    const uint64_t blocks[] = {1, 4};
    rig_identity(&identity);
    write_log(f, 1);
    write_snapshots(f, 6);
    write_snapshots(f, 8);
    assert_int_equal(sfc_dense_list_store(f->folder, &identity, blocks, 2, &f->err), SFC_OK);
    json_t *report = report_of(f);
    size_t segments = json_array_size(json_object_get(report, "segments"));
    char list[64];
    snprintf(list, sizeof list, "%s",
             json_string_value(json_object_get(
                 json_array_get(json_object_get(report, "dense_lists"), 0), "file")));
    json_decref(report);
    const char *const names[] = {"log-00000001.sfl", "class-3-6.sfs", list};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        report = report_while_leaves(f, names[i]);
        assert_int_equal(number(report, "problems"), 0);
        assert_int_equal(json_array_size(json_object_get(report, "segments")), segments - 1);
        assert_int_equal(number(json_object_get(report, "recoverable"), "to"), STEPS - 1);
        json_decref(report);
    }
    report = report_of(f);
    assert_int_equal(json_array_size(json_object_get(report, "dense_lists")), 0);
    json_decref(report);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(whole_state_is_clean),        TEST(damage_is_listed),
        TEST(a_gap_is_not_recoverable),    TEST(every_byte_of_a_list_of_blocks_is_checked),
        TEST(what_was_given_up_is_void),   TEST(an_aborted_try_is_void),
        TEST(a_foreign_snapshot_is_named), TEST(what_is_removed_meanwhile_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

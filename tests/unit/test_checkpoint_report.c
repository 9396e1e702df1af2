/* The offline check of a checkpoint: what it lists, what it calls damaged, and the exit status of
 * `shardfc log` (SFC_BIN: folder of the program). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/ctl/checkpoint_report.h"
#include "tests/lib/checkpoint_rig.h"

enum { BLOCKS = 6, FLOATS_OF_THE_LAST_CLASS_BLOCK = 2 * 5 * 3 + 5 };

struct fixture {
    char root[64], dir[96];
    struct checkpoint_rig rig;
    char digest[SFC_DIGEST_HEX];
    struct sfc_error err;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->root, "/tmp/sfc-cp-report-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    snprintf(f->dir, sizeof f->dir, "%s/c", f->root);
    checkpoint_rig_init(&f->rig);
    assert_int_equal(checkpoint_rig_write(&f->rig, f->dir, f->digest, &f->err), SFC_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", f->root);
    int code = system(command);
    free(f);
    return code;
}

static void path_of(const struct fixture *f, const char *name, char path[160])
{
    snprintf(path, 160, "%s/%s", f->dir, name);
}

static void flip(const struct fixture *f, const char *name, long at)
{
    char path[160];
    path_of(f, name, path);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    assert_int_equal(fputc(byte ^ 1, file), byte ^ 1);
    assert_int_equal(fclose(file), 0);
}

/* Exit status of `shardfc log OPTIONS DIR`; what it says is in root/out. */
static int exit_status(const struct fixture *f, const char *options, const char *dir)
{
    char command[512];
    const char *bin = getenv("SFC_BIN");
    snprintf(command, sizeof command, "'%s/shardfc' log %s '%s' >'%s/out' 2>&1",
             bin == NULL ? "." : bin, options, dir, f->root);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool said(const struct fixture *f, const char *what)
{
    char path[128], text[8192] = "";
    snprintf(path, sizeof path, "%s/out", f->root);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    return n > 0 && strstr(text, what) != NULL;
}

static json_t *report_of(struct fixture *f)
{
    json_t *report;
    assert_int_equal(sfc_checkpoint_report(f->dir, NULL, NULL, &report, &f->err), SFC_OK);
    return report;
}

static json_int_t number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void count_blocks(void *ctx, uint64_t done, uint64_t total)
{
    assert_int_equal(total, BLOCKS);
    assert_int_equal(done, ++*(uint64_t *)ctx);
}

static void a_whole_one_is_listed(void **state)
{
    struct fixture *f = *state;
    uint64_t told = 0;
    json_t *report;
    assert_int_equal(sfc_checkpoint_report(f->dir, count_blocks, &told, &report, &f->err), SFC_OK);
    assert_int_equal(told, BLOCKS);
    json_t *files = json_object_get(report, "files");
    const json_t *third = json_array_get(files, 2), *last = json_array_get(files, BLOCKS - 1);
    assert_int_equal(json_array_size(files), BLOCKS);
    assert_int_equal(number(report, "step"), CHECKPOINT_RIG_STEP);
    assert_string_equal(text(report, "run"), "a");
    assert_string_equal(text(report, "digest"), f->digest);
    assert_string_equal(text(third, "file"), "class-000002.f32");
    assert_string_equal(text(third, "kind"), "class");
    assert_int_equal(number(third, "block"), 2);
    assert_int_equal(number(third, "bytes"), 4 * FLOATS_OF_THE_LAST_CLASS_BLOCK);
    assert_int_equal(strlen(text(third, "xxh3")), SFC_DIGEST_HEX - 1);
    assert_true(json_is_true(json_object_get(third, "ok")));
    assert_string_equal(text(last, "kind"), "history");
    assert_int_equal(number(last, "bytes"), 4 * CHECKPOINT_RIG_STEP);
    assert_int_equal(number(report, "problems"), 0);
    json_decref(report);
    assert_int_equal(exit_status(f, "", f->dir), 0);
    assert_true(said(f, f->digest) && said(f, "class-000002.f32") && said(f, "0 problems"));
    assert_int_equal(exit_status(f, "--json", f->dir), 0);
    assert_true(said(f, "\"problems\":0"));
}

/* Not only the first. */
static void every_damaged_block_is_named(void **state)
{
    struct fixture *f = *state;
    char path[160];
    flip(f, "class-000001.f32", 17);
    path_of(f, "dense-000000.f32", path);
    assert_int_equal(truncate(path, 100), 0);
    path_of(f, "history-000000.f32", path);
    assert_int_equal(unlink(path), 0);
    json_t *report = report_of(f), *o;
    size_t i;
    const bool whole[BLOCKS] = {true, false, true, false, true, false};
    json_array_foreach(json_object_get(report, "files"), i, o)
    {
        assert_int_equal(json_is_true(json_object_get(o, "ok")), whole[i]);
        assert_int_equal(strstr(text(o, "why"), text(o, "file")) != NULL, !whole[i]);
    }
    assert_int_equal(number(report, "problems"), 3);
    json_decref(report);
    assert_int_equal(exit_status(f, "", f->dir), 1);
    assert_true(said(f, "class-000001.f32: bytes 0 to ") && said(f, "100 bytes, expected") &&
                said(f, "No such file") && said(f, "3 problems"));
}

static void a_damaged_manifest_is_a_problem(void **state)
{
    static const char *const files[] = {"manifest.json", "manifest.xxh3", "run.pb"};
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        flip(f, files[i], 9);
        json_t *report = report_of(f);
        assert_int_equal(number(report, "problems"), 1);
        assert_non_null(strstr(text(report, "why"), f->dir));
        json_decref(report);
        assert_int_equal(exit_status(f, "", f->dir), 1);
        assert_true(said(f, "NOT readable") && said(f, "1 problems"));
        flip(f, files[i], 9);
    }
    assert_int_equal(exit_status(f, "", f->dir), 0);
}

static void what_is_none_is_refused(void **state)
{
    struct fixture *f = *state;
    char path[160], partial[160];
    assert_int_equal(exit_status(f, "", f->root), 2);
    assert_true(said(f, "no checkpoint: name"));
    path_of(f, "run.pb", path);
    assert_int_equal(exit_status(f, "", path), 2);
    assert_true(said(f, "is a file"));
    path_of(f, "manifest.json", path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(exit_status(f, "", f->dir), 2);
    assert_true(said(f, "manifest.json is missing"));
    snprintf(partial, sizeof partial, "%s/c.partial-12", f->root);
    assert_int_equal(rename(f->dir, partial), 0);
    assert_int_equal(exit_status(f, "", partial), 2);
    assert_true(said(f, "did not finish"));
    assert_int_equal(exit_status(f, "", f->dir), 2);
    assert_true(said(f, "No such file"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_whole_one_is_listed),
        TEST(every_damaged_block_is_named),
        TEST(a_damaged_manifest_is_a_problem),
        TEST(what_is_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

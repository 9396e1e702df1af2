/* Checkpoint directories: round trip, digests, refusal of whatever was changed afterwards. */
#include <fcntl.h>
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

#include "server/ctl/checkpoint.h"

enum { STEP = 7, CLASSES = 25, BLOCK = 10, DIM = 3, DENSE = 70, DENSE_BLOCK = 32 };

struct fixture {
    char root[64];
    char dir[96];
    Shardfc__V1__RunConfig config;
    Shardfc__V1__DataSet data;
    Shardfc__V1__DenseSegment segment;
    Shardfc__V1__DenseSegment *segments[1];
    uint64_t shape[1];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->root, "/tmp/sfc-checkpoint-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    snprintf(f->dir, sizeof f->dir, "%s/c", f->root);
    f->config = (Shardfc__V1__RunConfig)SHARDFC__V1__RUN_CONFIG__INIT;
    f->data = (Shardfc__V1__DataSet)SHARDFC__V1__DATA_SET__INIT;
    f->segment = (Shardfc__V1__DenseSegment)SHARDFC__V1__DENSE_SEGMENT__INIT;
    f->shape[0] = DENSE;
    f->segment.name = "all";
    f->segment.shape = f->shape;
    f->segment.n_shape = 1;
    f->segments[0] = &f->segment;
    f->config.name = "a";
    f->config.classes = CLASSES;
    f->config.block_size = BLOCK;
    f->config.dim = DIM;
    f->config.dense_block_size = DENSE_BLOCK;
    f->config.data = &f->data; /* from here on: what makes it a configuration that may run */
    f->data.samples = 100;
    f->config.sample_ppm = 1000000;
    f->config.scale = 16;
    f->config.margin_m1 = 1;
    f->config.margin_grad = "exact";
    f->config.correction = "none";
    f->config.dtype = "f32";
    f->config.gemm = "f32";
    f->config.rounding = "stochastic";
    f->config.optimizer = "sgd";
    f->config.momentum_mode = "sampled";
    f->config.steps = 10;
    f->config.global_batch = 8;
    f->config.micro_batch = 4;
    f->config.backbone = "tiny";
    f->config.segments = f->segments;
    f->config.n_segments = 1;
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

static float value_at(int kind, uint64_t block, uint64_t i, float tweak)
{
    return (float)(1000 * kind) + (float)block + 0.001F * (float)i + tweak;
}

static void write_block(struct sfc_checkpoint_writer *writer, const struct fixture *f, int kind,
                        uint64_t block, float tweak)
{
    uint64_t n = 0;
    struct sfc_error err;
    for (int part = 0; part < SFC_CHECKPOINT_PARTS; part++) {
        n += sfc_config_part_elements(&f->config, STEP, (Shardfc__V1__BlockKind)kind, block,
                                      (Shardfc__V1__BlockPart)part);
    }
    assert_int_equal(sfc_checkpoint_begin(writer, (Shardfc__V1__BlockKind)kind, block, &err),
                     SFC_OK);
    for (uint64_t i = 0; i < n; i++) {
        float value = value_at(kind, block, i, tweak);
        assert_int_equal(sfc_checkpoint_append(writer, &value, 1, &err), SFC_OK);
    }
    assert_int_equal(sfc_checkpoint_end(writer, &err), SFC_OK);
}

static void write_blocks(struct sfc_checkpoint_writer *writer, const struct fixture *f, float tweak)
{
    for (int kind = SFC_CHECKPOINT_KINDS - 1; kind >= 0; kind--) { /* any order */
        uint64_t count = sfc_config_block_count(&f->config, (Shardfc__V1__BlockKind)kind);
        for (uint64_t b = count; b-- > 0;) {
            write_block(writer, f, kind, b, kind == 0 && b == 1 ? tweak : 0);
        }
    }
}

static void write_all(const struct fixture *f, const char *dir, uint64_t step, float tweak,
                      char digest[SFC_DIGEST_HEX])
{
    struct sfc_checkpoint_writer *writer;
    struct sfc_error err;
    assert_int_equal(sfc_checkpoint_create(dir, &f->config, step, &writer, &err), SFC_OK);
    write_blocks(writer, f, tweak);
    assert_int_equal(sfc_checkpoint_finish(writer, digest, &err), SFC_OK);
}

static void lr_changes_go_with_it(void **state)
{
    static const struct sfc_checkpoint_lr changes[] = {{3, 1.0 / 3}, {9, 0}, {10, 1e-6}};
    struct fixture *f = *state;
    struct sfc_checkpoint_writer *writer;
    struct sfc_checkpoint *c;
    const struct sfc_checkpoint_lr *got;
    struct sfc_error err;
    char plain[SFC_DIGEST_HEX], changed[SFC_DIGEST_HEX], other[128];
    snprintf(other, sizeof other, "%s-lr", f->dir);
    write_all(f, f->dir, STEP, 0, plain);
    assert_int_equal(sfc_checkpoint_create(other, &f->config, STEP, &writer, &err), SFC_OK);
    assert_int_equal(sfc_checkpoint_set_lr(writer, changes, 3, &err), SFC_OK);
    write_blocks(writer, f, 0);
    assert_int_equal(sfc_checkpoint_finish(writer, changed, &err), SFC_OK);
    assert_string_equal(plain, changed); /* of the state, not of what is still to come */
    assert_int_equal(sfc_checkpoint_open(f->dir, &c, &err), SFC_OK);
    assert_int_equal(sfc_checkpoint_lr(c, &got), 0);
    sfc_checkpoint_close(c);
    assert_int_equal(sfc_checkpoint_open(other, &c, &err), SFC_OK);
    assert_int_equal(sfc_checkpoint_lr(c, &got), 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(got[i].from_step, changes[i].from_step);
        assert_true(got[i].lr == changes[i].lr);
    }
    sfc_checkpoint_close(c);
}

static void round_trip(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX];
    float values[2 * BLOCK * DIM + 2 * DENSE_BLOCK];
    struct sfc_checkpoint *c;
    write_all(f, f->dir, 7, 0, digest);
    assert_int_equal(sfc_checkpoint_open(f->dir, &c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_step(c), 7);
    assert_string_equal(sfc_checkpoint_digest(c), digest);
    assert_int_equal(sfc_checkpoint_verify(c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_block_count(c, 0), 3);
    assert_int_equal(sfc_checkpoint_block_count(c, 1), 3);
    assert_int_equal(sfc_checkpoint_block_elements(c, 0, 2), 5 * DIM);
    assert_int_equal(sfc_checkpoint_block_elements(c, 1, 2), 6);
    assert_int_equal(sfc_checkpoint_read(c, 0, 2, values, NULL), SFC_OK);
    for (uint64_t i = 0; i < 2 * 5 * DIM; i++) {
        assert_true(values[i] == value_at(0, 2, i, 0));
    }
    sfc_checkpoint_close(c);
}

static void dense_mode_keeps_last_steps_and_history(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX], other[SFC_DIGEST_HEX], path[160];
    float values[2 * BLOCK * DIM + BLOCK];
    struct sfc_checkpoint *c;
    f->config.momentum_mode = "dense";
    write_all(f, f->dir, STEP, 0, digest);
    assert_int_equal(sfc_checkpoint_open(f->dir, &c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_verify(c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_block_floats(c, 0, 2), 2 * 5 * DIM + 5);
    assert_int_equal(sfc_checkpoint_block_floats(c, 1, 2), 2 * 6);
    assert_int_equal(sfc_checkpoint_block_count(c, 2), 1);
    assert_int_equal(sfc_checkpoint_block_floats(c, 2, 0), STEP);
    assert_int_equal(sfc_checkpoint_read(c, 0, 2, values, NULL), SFC_OK);
    assert_true(values[2 * 5 * DIM + 4] == value_at(0, 2, 2 * 5 * DIM + 4, 0));
    assert_int_equal(sfc_checkpoint_read(c, 2, 0, values, NULL), SFC_OK);
    assert_true(values[STEP - 1] == value_at(2, 0, STEP - 1, 0));
    sfc_checkpoint_close(c);
    f->config.momentum_mode = "sampled";
    snprintf(path, sizeof path, "%s/sampled", f->root);
    write_all(f, path, STEP, 0, other);
    assert_string_not_equal(digest, other);
}

/* The version in the manifest; what older programs don't know has another number. */
static int version_of(const char *dir)
{
    char path[160], text[256] = {0};
    snprintf(path, sizeof path, "%s/manifest.json", dir);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    const char *at = strstr(text, "\"version\":");
    assert_non_null(at);
    return (int)strtol(at + strlen("\"version\":"), NULL, 10);
}

static void adamw_keeps_second_moments(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX], path[160];
    float values[3 * BLOCK * DIM];
    struct sfc_checkpoint *c;
    snprintf(path, sizeof path, "%s/sgd", f->root);
    write_all(f, path, STEP, 0, digest);
    assert_int_equal(version_of(path), 2);
    f->config.optimizer = "adamw";
    f->config.beta1 = 0.9;
    f->config.beta2 = 0.999;
    f->config.epsilon = 1e-8;
    write_all(f, f->dir, STEP, 0, digest);
    assert_int_equal(version_of(f->dir), 3);
    assert_int_equal(sfc_checkpoint_open(f->dir, &c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_verify(c, NULL), SFC_OK);
    assert_int_equal(sfc_checkpoint_block_elements(c, 0, 2), 5 * DIM);
    assert_int_equal(sfc_checkpoint_block_floats(c, 0, 2), 3 * 5 * DIM);
    assert_int_equal(sfc_checkpoint_block_floats(c, 1, 2), 3 * 6);
    assert_int_equal(sfc_checkpoint_block_count(c, 2), 0);
    assert_int_equal(sfc_checkpoint_read(c, 0, 2, values, NULL), SFC_OK);
    assert_true(values[3 * 5 * DIM - 1] == value_at(0, 2, 3 * 5 * DIM - 1, 0));
    sfc_checkpoint_close(c);
}

static void digest_tells_states_apart(void **state)
{
    struct fixture *f = *state;
    char a[SFC_DIGEST_HEX], b[SFC_DIGEST_HEX], dir[128];
    write_all(f, f->dir, 7, 0, a);
    snprintf(dir, sizeof dir, "%s/same", f->root);
    f->config.name = "another name";
    write_all(f, dir, 7, 0, b);
    assert_string_equal(a, b);
    snprintf(dir, sizeof dir, "%s/step", f->root);
    write_all(f, dir, 8, 0, b);
    assert_string_not_equal(a, b);
    snprintf(dir, sizeof dir, "%s/bit", f->root);
    write_all(f, dir, 7, 1, b);
    assert_string_not_equal(a, b);
    snprintf(dir, sizeof dir, "%s/config", f->root);
    f->config.seed = 2;
    write_all(f, dir, 7, 0, b);
    assert_string_not_equal(a, b);
}

static void existing_directory_is_kept(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX];
    struct sfc_checkpoint_writer *writer;
    struct sfc_error err;
    write_all(f, f->dir, 7, 0, digest);
    assert_int_equal(sfc_checkpoint_create(f->dir, &f->config, 9, &writer, &err), SFC_EEXIST);
}

static void missing_block_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX];
    struct sfc_checkpoint_writer *writer;
    struct sfc_error err;
    assert_int_equal(sfc_checkpoint_create(f->dir, &f->config, 9, &writer, &err), SFC_OK);
    write_block(writer, f, 0, 0, 0);
    assert_int_not_equal(sfc_checkpoint_finish(writer, digest, &err), SFC_OK);
    assert_int_not_equal(access(f->dir, F_OK), 0);
    assert_int_equal(rmdir(f->root), 0); /* empty: the partial directory is gone too */
    assert_int_equal(mkdir(f->root, 0700), 0);
}

static void flip(const char *path, off_t at)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Opens and verifies; the code of the first failure. */
static int check(const char *dir, struct sfc_error *err)
{
    struct sfc_checkpoint *c = NULL;
    int code = sfc_checkpoint_open(dir, &c, err);
    if (code == SFC_OK) {
        code = sfc_checkpoint_verify(c, err);
    }
    sfc_checkpoint_close(c);
    return code;
}

static void every_flipped_byte_is_found(void **state)
{
    struct fixture *f = *state;
    static const char *const files[] = {"manifest.json",    "manifest.xxh3",    "run.pb",
                                        "class-000000.f32", "class-000002.f32", "dense-000001.f32"};
    char digest[SFC_DIGEST_HEX];
    write_all(f, f->dir, 7, 0, digest);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[160];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", f->dir, files[i]);
        assert_int_equal(stat(path, &info), 0);
        for (off_t at = 0; at < info.st_size; at++) {
            struct sfc_error err;
            flip(path, at);
            int code = check(f->dir, &err);
            flip(path, at);
            assert_int_equal(code, SFC_ECORRUPT);
            assert_non_null(strstr(err.text, f->dir));
            assert_non_null(strstr(err.text, files[i]));
            assert_non_null(strstr(err.text, ": bytes 0 to "));
            assert_non_null(strstr(err.text, "use another checkpoint"));
        }
    }
    assert_int_equal(check(f->dir, NULL), SFC_OK);
}

static void cut_and_missing_files_are_named(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX];
    char path[160];
    struct sfc_error err;
    write_all(f, f->dir, 7, 0, digest);
    snprintf(path, sizeof path, "%s/class-000001.f32", f->dir);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(check(f->dir, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "class-000001.f32"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(check(f->dir, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "class-000001.f32"));
    assert_int_equal(check("/nonexistent", &err), SFC_ENOTFOUND);
}

static void what_is_no_checkpoint_says_so(void **state)
{
    struct fixture *f = *state;
    char digest[SFC_DIGEST_HEX], path[160];
    struct sfc_error err;
    assert_int_equal(check(f->root, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "no checkpoint: name a folder"));
    write_all(f, f->dir, 7, 0, digest);
    snprintf(path, sizeof path, "%s/run.pb", f->dir);
    assert_int_equal(check(path, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "is a file"));
    snprintf(path, sizeof path, "%s/manifest.json", f->dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(check(f->dir, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "damaged"));
    snprintf(path, sizeof path, "%s/x.partial-12", f->root);
    assert_int_equal(rename(f->dir, path), 0);
    assert_int_equal(check(path, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "did not finish"));
}

static void count_removed(void *ctx, const char *path)
{
    assert_non_null(strstr(path, ".partial-"));
    ++*(unsigned *)ctx;
}

/* A folder in root with one file in it. */
static void make_folder(const struct fixture *f, const char *name, const char *file)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", f->root, name);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/%s/%s", f->root, name, file);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static bool is_there(const struct fixture *f, const char *name)
{
    char path[192];
    snprintf(path, sizeof path, "%s/%s", f->root, name);
    return access(path, F_OK) == 0;
}

/* Only what a dead writer left goes: not what has one, nor what isn't a checkpoint's. */
static void only_stale_ones_are_removed(void **state)
{
    struct fixture *f = *state;
    struct sfc_checkpoint_writer *writer;
    struct sfc_error err;
    unsigned removed = 0;
    char mine[64];
    make_folder(f, "a.partial-1", "class-000000.f32");
    make_folder(f, "b.partial-2", "manifest.json");
    make_folder(f, "c.partial-3", "notes");
    make_folder(f, "d.partial-x", "run.pb");
    make_folder(f, "e", "run.pb");
    snprintf(mine, sizeof mine, "c.partial-%ld", (long)getpid());
    assert_int_equal(sfc_checkpoint_create(f->dir, &f->config, 9, &writer, &err), SFC_OK);
    assert_true(is_there(f, mine));
    sfc_checkpoint_remove_stale(f->dir, count_removed, &removed);
    assert_int_equal(removed, 2);
    assert_false(is_there(f, "a.partial-1") || is_there(f, "b.partial-2"));
    assert_true(is_there(f, "c.partial-3") && is_there(f, "d.partial-x") && is_there(f, "e"));
    assert_true(is_there(f, mine)); /* its writer lives */
    sfc_checkpoint_discard(writer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lr_changes_go_with_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(dense_mode_keeps_last_steps_and_history, set_up, tear_down),
        cmocka_unit_test_setup_teardown(adamw_keeps_second_moments, set_up, tear_down),
        cmocka_unit_test_setup_teardown(digest_tells_states_apart, set_up, tear_down),
        cmocka_unit_test_setup_teardown(existing_directory_is_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(missing_block_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_flipped_byte_is_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cut_and_missing_files_are_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_no_checkpoint_says_so, set_up, tear_down),
        cmocka_unit_test_setup_teardown(only_stale_ones_are_removed, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

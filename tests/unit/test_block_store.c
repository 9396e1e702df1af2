/* Class blocks in a scratch file: the same bits as in memory, no name left behind, and a refusal
 * before anything is used where there is no space. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/lib/head_rig.h"

enum { CLASSES = 3000, DIM = 40, BLOCK = 256, BATCH = 24, MICRO = 8, STEPS = 4 };

static char folder[64];

static size_t names_in_folder(void)
{
    DIR *dir = opendir(folder);
    size_t count = 0;
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2; /* . and .. */
}

static struct sfc_head_config configuration(enum sfc_dtype dtype)
{
    struct sfc_head_config c = rig_config(CLASSES, DIM, BLOCK, BATCH, MICRO);
    c.sample_ppm = 200000;
    c.dtype = dtype;
    c.momentum_mode = SFC_MOMENTUM_DENSE;
    c.steps = STEPS;
    return c;
}

struct outcome {
    float w[CLASSES * DIM], m[CLASSES * DIM];
    int64_t dx[STEPS][BATCH * DIM];
};

static void run(const char *store, const struct sfc_head_config *c, struct outcome *out)
{
    struct rig rig;
    struct rig_step step;
    rig_open_in(&rig, (struct rig_setup){.backend = "cpu", .threads = 2, .heads = 2, .group = 1},
                store, c);
    rig_step_init(&step, c);
    rig_read(&rig, SFC_PART_VALUES, out->w);
    for (uint64_t t = 1; t <= STEPS; t++) {
        uint64_t labels[BATCH], next[BATCH];
        float features[BATCH * DIM];
        rig_labels(t, RIG_WITH_NONE, c, labels);
        rig_labels(t + 1, RIG_WITH_NONE, c, next);
        rig_features(t, c, labels, out->w, features);
        rig_forward(&rig, t, labels, features, &step);
        memcpy(out->dx[t - 1], step.dx, sizeof out->dx[0]);
        if (store)
            for (size_t i = 0; i < rig.setup.heads; i++) /* a plan is open: it must not notice */
                sfc_head_prefetch(rig.head[i], t + 1, next);
        rig_commit(&rig, 0.1);
        if (store && t == 2) /* into a file of their own; those of the others get holes */
            rig_move(&rig, (const uint64_t[]){1, 5, 7}, 3, 0);
    }
    rig_read(&rig, SFC_PART_VALUES, out->w);
    rig_read(&rig, SFC_PART_MOMENTUM, out->m);
    assert_int_equal(names_in_folder(), 0);
    rig_step_free(&step);
    rig_close(&rig);
}

static void test_same_bits(void **state)
{
    (void)state;
    static struct outcome memory, file;
    for (int dtype = SFC_DTYPE_F32; dtype <= SFC_DTYPE_BF16; dtype++) {
        struct sfc_head_config c = configuration((enum sfc_dtype)dtype);
        run(NULL, &c, &memory);
        run(folder, &c, &file);
        assert_memory_equal(&memory, &file, sizeof memory);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct sfc_backend *backend;
    struct sfc_error err = {0};
    char missing[80];
    strcpy(missing, folder);
    strcat(missing, "/not-there");
    assert_int_equal(sfc_backend_open("cpu", 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_backend_set_store(backend, missing, &err), SFC_EIO);
    assert_non_null(strstr(err.text, missing));
    assert_int_equal(sfc_backend_set_store(backend, folder, &err), SFC_OK);

    struct sfc_head_config c = configuration(SFC_DTYPE_F32);
    uint64_t count = 1 << 15, *blocks = calloc(count, sizeof *blocks);
    assert_non_null(blocks);
    for (uint64_t i = 0; i < count; i++)
        blocks[i] = i;
    c.block_size = 1 << 20;
    c.classes = count * c.block_size;
    c.dim = 1024; /* 2^48 bytes */
    struct sfc_head *head = NULL;
    assert_int_equal(sfc_head_new(backend, &c, blocks, count, &head, &err), SFC_ENOMEM);
    assert_non_null(strstr(err.text, folder));
    assert_non_null(strstr(err.text, "free"));
    assert_null(head);
    assert_int_equal(names_in_folder(), 0);
    free(blocks);

    assert_int_equal(sfc_backend_set_store(backend, NULL, &err), SFC_OK); /* memory again */
    sfc_backend_close(backend);
    assert_int_equal(sfc_backend_open("reference", 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_backend_set_store(backend, folder, &err), SFC_EUNSUPPORTED);
    assert_int_equal(sfc_backend_set_store(backend, NULL, &err), SFC_OK);
    sfc_backend_close(backend);
}

/* state_bytes is the size of the file, so the rest of the plan is memory. */
static void test_plan(void **state)
{
    (void)state;
    struct sfc_head_config c = configuration(SFC_DTYPE_F32);
    struct sfc_backend *backend;
    struct sfc_error err = {0};
    struct sfc_memory memory, file;
    uint64_t blocks[] = {0, 1, 2};
    assert_int_equal(sfc_backend_open("cpu", 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_head_memory(backend, &c, blocks, 3, &memory, &err), SFC_OK);
    assert_int_equal(sfc_backend_set_store(backend, folder, &err), SFC_OK);
    assert_int_equal(sfc_head_memory(backend, &c, blocks, 3, &file, &err), SFC_OK);
    assert_memory_equal(&memory, &file, sizeof memory);
    uint64_t rows = 3 * BLOCK;
    assert_in_range(file.state_bytes, rows * (DIM * 8 + 4), rows * (DIM * 8 + 4) + 4096 + 128);
    sfc_backend_close(backend);
}

/* Where the file system can punch holes; a head that counts them has asked for them. */
static void test_removed_blocks_free_their_space(void **state)
{
    (void)state;
    struct sfc_head_config c = configuration(SFC_DTYPE_F32);
    c.dim = 512; /* a block: 1 MiB */
    struct sfc_backend *backend;
    struct sfc_head *head = NULL;
    struct sfc_error err = {0};
    struct sfc_memory before, after;
    const uint64_t blocks[] = {0, 1, 2, 3, 4, 5, 6, 7}, gone[] = {1, 2, 5};
    assert_int_equal(sfc_backend_open("cpu", 1, &backend, &err), SFC_OK);
    assert_int_equal(sfc_backend_set_store(backend, folder, &err), SFC_OK);
    assert_int_equal(sfc_head_new(backend, &c, blocks, 8, &head, &err), SFC_OK);
    sfc_head_used(head, &before);
    assert_int_equal(sfc_head_remove(head, gone, 3, &err), SFC_OK);
    sfc_head_used(head, &after);
    uint64_t given = before.state_bytes - after.state_bytes,
             block = 2 * BLOCK * 512 * sizeof(float);
    assert_true(given == 0 || given >= 3 * (block - 2 * 4096)); /* 0: no holes here */
    sfc_head_free(head);
    sfc_backend_close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_removed_blocks_free_their_space),
    };
    strcpy(folder, "/tmp/sfc-store-XXXXXX");
    if (!mkdtemp(folder))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}

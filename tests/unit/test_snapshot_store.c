/* Snapshots: what is written is read, damage falls back to the older one, floor, owners. The loops
 * over failing calls are in tests/fault/test_snapshot_crash.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/durable/packed_state.h"
#include "server/durable/run_folder.h"
#include "tests/lib/log_rig.h"
#include "tests/lib/memory_files.h"
#include "tests/lib/snapshot_rig.h"

struct fixture {
    struct memory_files *files;
    struct sfc_folder *folder;
    struct sfc_run_identity identity;
    struct sfc_snapshot_store *store;
    struct sfc_error err;
    char loud[512];
    int level; /* of compression; 0: none */
};

static void reopen(struct fixture *f)
{
    sfc_snapshot_store_close(f->store);
    f->store = NULL;
    assert_int_equal(sfc_snapshot_store_open(f->folder, &f->identity, &f->store, &f->err), SFC_OK);
    assert_int_equal(sfc_snapshot_store_compress(f->store, f->level, &f->err), SFC_OK);
}

static int set_up_level(void **state, int level)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->level = level;
    f->files = memory_files_new(1);
    f->folder = memory_files_folder(f->files);
    rig_identity(&f->identity);
    reopen(f);
    *state = f;
    return 0;
}

static int set_up(void **state)
{
    return set_up_level(state, 0);
}

static int set_up_zstd(void **state)
{
    return set_up_level(state, 3);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    sfc_snapshot_store_close(f->store);
    sfc_folder_close(f->folder);
    memory_files_free(f->files);
    free(f);
    return 0;
}

static void put(struct fixture *f, size_t block, uint64_t step)
{
    assert_int_equal(rig_snapshot_write(f->store, block, step, &f->err), SFC_OK);
}

static int get(struct fixture *f, size_t block, uint64_t max_step,
               struct sfc_snapshot_content *content)
{
    struct sfc_snapshot_shape shape = rig_shape(block, 0);
    return sfc_snapshot_store_read(f->store, rig_blocks[block].kind, rig_blocks[block].block,
                                   max_step, &shape, content, f->loud, &f->err);
}

static uint64_t floor_of(struct fixture *f)
{
    return sfc_snapshot_store_floor(f->store, rig_blocks, RIG_BLOCKS, 5);
}

static void assert_says(const char *text, const char *word)
{
    if (strstr(text, word) == NULL) {
        fail_msg("no '%s' in '%s'", word, text);
    }
}

static void is_read_as_written(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        assert_int_equal(get(f, block, UINT64_MAX, &content), SFC_ENOTFOUND);
        put(f, block, 6 + block);
        put(f, block, 20 + block);
    }
    for (int round = 0; round < 2; round++) {
        for (size_t block = 0; block < RIG_BLOCKS; block++) {
            assert_int_equal(get(f, block, UINT64_MAX, &content), SFC_OK);
            assert_int_equal(content.step, 20 + block);
            assert_true(rig_snapshot_same(&content, block));
            assert_string_equal(f->loud, "");
            assert_int_equal(get(f, block, 19, &content), SFC_OK);
            assert_int_equal(content.step, 6 + block);
            assert_true(rig_snapshot_same(&content, block));
            assert_int_equal(get(f, block, 5, &content), SFC_ENOTFOUND);
        }
        reopen(f);
    }
}

static void two_are_kept_and_the_floor_is_the_second_newest(void **state)
{
    struct fixture *f = *state;
    uint64_t stamps[2];
    assert_int_equal(floor_of(f), 5); /* no snapshot: the run's beginning */
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        put(f, block, 10 + block);
    }
    assert_int_equal(floor_of(f), 10);
    put(f, 0, 20);
    assert_int_equal(floor_of(f), 10);
    put(f, 0, 30);
    assert_int_equal(floor_of(f), 11);
    assert_int_equal(memory_files_count(f->files), RIG_BLOCKS + 1);
    const struct sfc_snapshot_block third = {SFC_SNAPSHOT_CLASS, 3};
    assert_int_equal(sfc_snapshot_store_stamps(f->store, &third, 0, stamps), 2);
    assert_int_equal(stamps[0], 30);
    assert_int_equal(stamps[1], 20);
    assert_int_equal(rig_snapshot_write(f->store, 0, 30, &f->err), SFC_EEXIST);
    reopen(f);
    assert_int_equal(floor_of(f), 11);
}

/* The run must be able to go back by 10 steps: what leads there stays, and so does its successor.
 */
static void what_leads_back_is_kept(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    uint64_t window = 10, most = 0;
    for (uint64_t step = 6; step <= 60; step += 1 + step % 3) {
        uint64_t horizon = step > 5 + window ? step - window : 5;
        sfc_snapshot_store_keep_from(f->store, horizon);
        for (size_t block = 0; block < RIG_BLOCKS; block++) {
            put(f, block, step);
        }
        assert_true(memory_files_count(f->files) <= 4 * RIG_BLOCKS);
        uint64_t floor = floor_of(f);
        assert_true(floor <= horizon);
        assert_true(step - floor <= 2 * window + 6);
        for (uint64_t to = horizon; to <= step && floor > 5; to++) {
            assert_int_equal(get(f, 0, to, &content), SFC_OK);
            assert_true(content.step >= floor);
        }
        uint64_t oldest =
            sfc_snapshot_store_oldest(f->store, rig_blocks, RIG_BLOCKS, 5, true, floor);
        assert_true(oldest <= horizon && oldest >= floor);
        most = floor > most ? floor : most;
    }
    assert_true(most > 35); /* it moves on with the run */
    assert_int_equal(sfc_snapshot_store_oldest(f->store, rig_blocks, RIG_BLOCKS, 5, true, 99),
                     UINT64_MAX);
    /* All the log, but the snapshots of the beginning are gone: only the seed leads there. */
    assert_int_equal(sfc_snapshot_store_oldest(f->store, rig_blocks, RIG_BLOCKS, 5, true, 5), 5);
    uint64_t loaded = sfc_snapshot_store_oldest(f->store, rig_blocks, RIG_BLOCKS, 5, false, 5);
    assert_true(loaded >= floor_of(f) && loaded <= 50);
}

/* Snapshots of steps that the run gave up are not seen, and gone for good when it goes on. */
static void later_ones_are_hidden_and_dropped(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        put(f, block, 10);
        put(f, block, 20);
    }
    reopen(f);
    sfc_snapshot_store_hide_after(f->store, 15);
    assert_int_equal(floor_of(f), 10);
    assert_int_equal(get(f, 1, UINT64_MAX, &content), SFC_OK);
    assert_int_equal(content.step, 10);
    reopen(f); /* the run did not go back after all */
    assert_int_equal(get(f, 1, UINT64_MAX, &content), SFC_OK);
    assert_int_equal(content.step, 20);
    sfc_snapshot_store_hide_after(f->store, 15);
    assert_int_equal(sfc_snapshot_store_drop_hidden(f->store, &f->err), SFC_OK);
    memory_files_restart(f->files, true);
    reopen(f);
    assert_int_equal(memory_files_count(f->files), RIG_BLOCKS);
    put(f, 1, 20);
    assert_int_equal(get(f, 1, UINT64_MAX, &content), SFC_OK);
    assert_int_equal(content.step, 20);
}

static size_t names_of(struct fixture *f, size_t block)
{
    size_t n = 0;
    for (uint64_t step = 1; step <= 40; step++) {
        char name[SFC_SNAPSHOT_NAME_SIZE];
        struct sfc_snapshot_key key = {
            .kind = rig_blocks[block].kind, .block = rig_blocks[block].block, .step = step};
        struct sfc_file *file;
        sfc_snapshot_name(&key, name);
        if (f->folder->ops->open(f->folder, name, false, &file, NULL) == SFC_OK) {
            f->folder->ops->close_file(file);
            n++;
        }
    }
    return n;
}

/* What a pinned step can be made from stays, beside the newest two. */
static void a_pin_keeps_its_snapshot(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    put(f, 0, 6);
    put(f, 0, 10);
    put(f, 1, 10);
    sfc_snapshot_store_pin(f->store, 12);
    for (uint64_t step = 11; step < 20; step++) {
        put(f, 0, step);
    }
    put(f, 1, 13);
    put(f, 1, 14);
    put(f, 1, 15);
    assert_int_equal(get(f, 0, 12, &content), SFC_OK);
    assert_int_equal(content.step, 12);
    assert_true(rig_snapshot_same(&content, 0));
    assert_int_equal(get(f, 1, 12, &content), SFC_OK);
    assert_int_equal(content.step, 10);
    assert_int_equal(names_of(f, 0), 3);
    assert_int_equal(names_of(f, 1), 3);
    uint64_t stamps[2];
    assert_int_equal(sfc_snapshot_store_stamps(f->store, &rig_blocks[0], 0, stamps), 2);
    assert_int_equal(stamps[1], 18);
    sfc_snapshot_store_unpin(f->store);
    assert_int_equal(get(f, 0, 12, &content), SFC_ENOTFOUND);
    assert_int_equal(names_of(f, 0), 2);
    assert_int_equal(names_of(f, 1), 2);
    assert_int_equal(get(f, 0, 19, &content), SFC_OK);
    assert_int_equal(content.step, 19);
}

static void remains_are_removed(void **state)
{
    struct fixture *f = *state;
    struct rig_snapshot s;
    struct sfc_snapshot_write *write;
    bool done;
    put(f, 1, 7);
    rig_snapshot_fill(&s, 1, 9);
    assert_int_equal(sfc_snapshot_write_begin(f->store, &s.key, &s.shape, s.parts, &write, &f->err),
                     SFC_OK);
    assert_int_equal(sfc_snapshot_write_some(write, 10, &done, &f->err), SFC_OK);
    assert_false(done);
    assert_int_equal(memory_files_count(f->files), 2);
    struct sfc_snapshot_store *second;
    assert_int_equal(sfc_snapshot_store_open(f->folder, &f->identity, &second, &f->err), SFC_OK);
    assert_int_equal(memory_files_count(f->files), 1);
    sfc_snapshot_store_close(second);
    sfc_snapshot_write_end(write);
    put(f, 1, 9);
}

static void put_of_round(struct fixture *f, uint64_t step, struct sfc_attempt round)
{
    struct rig_snapshot s;
    struct sfc_snapshot_write *write;
    bool done;
    rig_snapshot_fill(&s, 0, step);
    s.key.round = round;
    assert_int_equal(sfc_snapshot_write_begin(f->store, &s.key, &s.shape, s.parts, &write, &f->err),
                     SFC_OK);
    assert_int_equal(sfc_snapshot_write_some(write, UINT64_MAX, &done, &f->err), SFC_OK);
    assert_true(done);
    sfc_snapshot_write_end(write);
}

/* An old copy of the folder: its newest snapshot is of steps that the run gave up since then. */
static void void_snapshots_are_not_seen_and_go(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    struct sfc_lineage lineage = {0};
    put_of_round(f, 30, (struct sfc_attempt){1, 3});
    put_of_round(f, 50, (struct sfc_attempt){1, 5});
    sfc_lineage_add(&lineage, 40, (struct sfc_attempt){1, 4});
    reopen(f);
    assert_int_equal(sfc_snapshot_store_hide_void(f->store, &lineage, &f->err), SFC_OK);
    assert_int_equal(get(f, 0, 60, &content), SFC_OK);
    assert_int_equal(content.step, 50); /* of a later round: done after the return */
    sfc_lineage_add(&lineage, 40, (struct sfc_attempt){1, 5});
    reopen(f);
    assert_int_equal(sfc_snapshot_store_hide_void(f->store, &lineage, &f->err), SFC_OK);
    assert_int_equal(get(f, 0, 60, &content), SFC_OK);
    assert_int_equal(content.step, 30);
    assert_int_equal(memory_files_count(f->files), 2);
    assert_int_equal(sfc_snapshot_store_drop_hidden(f->store, &f->err), SFC_OK);
    assert_int_equal(memory_files_count(f->files), 1);
    put_of_round(f, 50, (struct sfc_attempt){2, 1});
    reopen(f);
    assert_int_equal(sfc_snapshot_store_hide_void(f->store, &lineage, &f->err), SFC_OK);
    assert_int_equal(get(f, 0, 60, &content), SFC_OK);
    assert_int_equal(content.step, 50);
}

static void every_flip_falls_back_loudly(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t words[] = {i, 78}, random = sfc_digest64(words, sizeof words);
        size_t block = random % RIG_BLOCKS, size;
        if (i < RIG_BLOCKS) {
            put(f, i, 40);
            put(f, i, 50);
        }
        block = i < RIG_BLOCKS ? i : block;
        char name[SFC_SNAPSHOT_NAME_SIZE];
        struct sfc_snapshot_key key = {
            .kind = rig_blocks[block].kind, .block = rig_blocks[block].block, .step = 50};
        sfc_snapshot_name(&key, name);
        uint8_t *data = memory_files_data(f->files, name, &size);
        assert_non_null(data);
        size_t at = (random >> 8) % size;
        data[at] ^= (uint8_t)(1u << (random >> 60) % 8);
        assert_int_equal(get(f, block, UINT64_MAX, &content), SFC_OK);
        assert_int_equal(content.step, 40);
        assert_true(rig_snapshot_same(&content, block));
        assert_says(f->loud, name);
        assert_says(f->loud, "byte ");
        assert_says(f->loud, "step 40 instead");
        assert_int_equal(sfc_snapshot_check(f->folder, name, NULL, &f->err), SFC_ECORRUPT);
        assert_says(f->err.text, name);
        data[at] ^= (uint8_t)(1u << (random >> 60) % 8);
    }
    assert_int_equal(get(f, 0, UINT64_MAX, &content), SFC_OK);
    assert_string_equal(f->loud, "");
}

static void no_whole_snapshot_is_refused(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    size_t size;
    put(f, 0, 8);
    memory_files_data(f->files, "class-3-8.sfs", &size)[600] ^= 1;
    assert_int_equal(get(f, 0, UINT64_MAX, &content), SFC_ECORRUPT);
    assert_says(f->err.text, "class-3-8.sfs: byte 512");
    assert_says(f->err.text, "restore the run from a checkpoint");
    for (size_t cut = 0; cut < size; cut += 7) {
        memory_files_resize(f->files, "class-3-8.sfs", cut);
        assert_int_equal(get(f, 0, UINT64_MAX, &content), SFC_ECORRUPT);
        memory_files_resize(f->files, "class-3-8.sfs", size);
    }
}

static void another_owner_or_shape_is_refused(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    struct sfc_snapshot_shape shape = rig_shape(0, 0);
    put(f, 0, 8);
    shape.rows++;
    assert_int_equal(sfc_snapshot_store_read(f->store, SFC_SNAPSHOT_CLASS, 3, 9, &shape, &content,
                                             f->loud, &f->err),
                     SFC_ESTALE);
    f->identity.nonce++;
    reopen(f);
    assert_int_equal(get(f, 0, 9, &content), SFC_ESTALE);
    f->identity.run_id++;
    reopen(f);
    assert_int_equal(get(f, 0, 9, &content), SFC_ESTALE);
    assert_says(f->err.text, "class-3-8.sfs");
}

/* A file under another block's name is whole, and not that block. */
static void a_wrong_name_is_damage(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    put(f, 0, 8);
    assert_int_equal(f->folder->ops->rename(f->folder, "class-3-8.sfs", "class-3-9.sfs", &f->err),
                     SFC_OK);
    reopen(f);
    assert_int_equal(get(f, 0, 9, &content), SFC_ECORRUPT);
    assert_says(f->err.text, "another block or step");
}

static void one_write_at_a_time(void **state)
{
    struct fixture *f = *state;
    struct rig_snapshot s;
    struct sfc_snapshot_write *write, *second;
    rig_snapshot_fill(&s, 0, 9);
    assert_int_equal(sfc_snapshot_write_begin(f->store, &s.key, &s.shape, s.parts, &write, &f->err),
                     SFC_OK);
    assert_int_equal(
        sfc_snapshot_write_begin(f->store, &s.key, &s.shape, s.parts, &second, &f->err),
        SFC_ESTATE);
    sfc_snapshot_write_end(write);
    s.parts[1] = NULL;
    assert_int_equal(sfc_snapshot_write_begin(f->store, &s.key, &s.shape, s.parts, &write, &f->err),
                     SFC_EINVAL);
    assert_int_equal(memory_files_count(f->files), 0);
}

enum { LARGE_ROWS = 300, LARGE_DIM = 3000 };

/* Larger than a piece of reading and than a block of zstd, in pieces of odd sizes, at every level.
 */
static void large_ones_are_packed(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_shape shape = {
        .dtype = SFC_SNAPSHOT_F32, .rows = LARGE_ROWS, .dim = LARGE_DIM, .has = {true, true}};
    size_t bytes = sfc_snapshot_part_bytes(&shape, SFC_SNAPSHOT_VALUES);
    uint8_t *values = malloc(bytes);
    assert_non_null(values);
    for (size_t i = 0; i < bytes; i++) {
        values[i] = (uint8_t)(i * i >> 8);
    }
    const void *parts[SFC_SNAPSHOT_PARTS] = {values, values};
    for (int level = 1; level <= 19; level += 6) {
        struct sfc_snapshot_key key = {
            .kind = SFC_SNAPSHOT_CLASS, .block = 5, .step = 100 + (uint64_t)level};
        struct sfc_snapshot_write *write;
        struct sfc_snapshot_content content;
        struct sfc_snapshot_header header;
        char name[SFC_SNAPSHOT_NAME_SIZE];
        bool done = false;
        assert_int_equal(sfc_snapshot_store_compress(f->store, level, &f->err), SFC_OK);
        assert_int_equal(sfc_snapshot_write_begin(f->store, &key, &shape, parts, &write, &f->err),
                         SFC_OK);
        while (!done) {
            assert_int_equal(sfc_snapshot_write_some(write, 777777, &done, &f->err), SFC_OK);
        }
        sfc_snapshot_write_end(write);
        sfc_snapshot_name(&key, name);
        assert_int_equal(sfc_snapshot_check(f->folder, name, &header, &f->err), SFC_OK);
        assert_int_equal(header.storage, SFC_SNAPSHOT_ZSTD);
        assert_true(header.stored[0] < bytes && header.stored[0] == header.stored[1]);
        assert_int_equal(sfc_snapshot_store_read(f->store, key.kind, key.block, key.step, &shape,
                                                 &content, f->loud, &f->err),
                         SFC_OK);
        assert_memory_equal(content.parts[0], values, bytes);
        assert_memory_equal(content.parts[1], values, bytes);
    }
    free(values);
}

/* A frame that says another length, with right checksums all around it. */
static void a_frame_of_another_length_is_damage(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    size_t size;
    put(f, 2, 8); /* 33 f32: a frame header of magic, descriptor and one byte of length */
    uint8_t *data = memory_files_data(f->files, "dense-3-8.sfs", &size);
    uint64_t stored;
    memcpy(&stored, data + 304, sizeof stored);
    for (int more = -1; more <= 1; more += 2) {
        data[SFC_SNAPSHOT_HEADER + 5] = (uint8_t)(data[SFC_SNAPSHOT_HEADER + 5] + more);
        uint64_t sum = sfc_digest64(data + SFC_SNAPSHOT_HEADER, (size_t)stored);
        memcpy(data + 80 + 8, &sum, sizeof sum);
        sum = sfc_digest64(data, SFC_SNAPSHOT_HEADER - 8);
        memcpy(data + SFC_SNAPSHOT_HEADER - 8, &sum, sizeof sum);
        assert_int_equal(get(f, 2, 9, &content), SFC_ECORRUPT);
        assert_says(f->err.text, "dense-3-8.sfs: byte 512");
        assert_says(f->err.text, more < 0 ? "a zstd frame of 131 bytes instead of 132"
                                          : "a zstd frame of 133 bytes instead of 132");
        data[SFC_SNAPSHOT_HEADER + 5] = 132;
    }
}

/* A state folder tells whether reading it will take what unpacking takes. */
static void a_packed_state_is_known(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_store *store;
    struct sfc_run_identity identity;
    struct sfc_folder *folder;
    char path[64] = "/tmp/sfc-packed-XXXXXX", command[96];
    bool packed = true;
    assert_int_equal(sfc_state_has_packed("/tmp/sfc-no-such-folder", &packed, &f->err), SFC_OK);
    assert_false(packed);
    assert_non_null(mkdtemp(path));
    rig_identity(&identity);
    for (int level = 0; level < 2; level++) {
        assert_int_equal(sfc_run_folder_open(path, 7 + (uint64_t)level, true, &folder, &f->err),
                         SFC_OK);
        assert_int_equal(sfc_snapshot_store_open(folder, &identity, &store, &f->err), SFC_OK);
        assert_int_equal(sfc_snapshot_store_compress(store, level, &f->err), SFC_OK);
        assert_int_equal(rig_snapshot_write(store, 0, 3, &f->err), SFC_OK);
        sfc_snapshot_store_close(store);
        sfc_folder_close(folder);
        assert_int_equal(sfc_state_has_packed(path, &packed, &f->err), SFC_OK);
        assert_int_equal(packed, level > 0);
    }
    assert_true(sfc_snapshot_compression_memory(0) > 8 << 20);
    assert_true(sfc_snapshot_compression_memory(1) > sfc_snapshot_compression_memory(0));
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

/* Written with and without compression, both are read. */
static void both_kinds_live_side_by_side(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    put(f, 0, 8);
    f->level = 0;
    reopen(f);
    put(f, 0, 9);
    for (uint64_t step = 8; step <= 9; step++) {
        assert_int_equal(get(f, 0, step, &content), SFC_OK);
        assert_int_equal(content.step, step);
        assert_true(rig_snapshot_same(&content, 0));
    }
}

static void names_are_exact(void **state)
{
    (void)state;
    struct sfc_snapshot_key key;
    assert_true(sfc_snapshot_parse_name("dense-12-345.sfs", &key));
    assert_int_equal(key.kind, SFC_SNAPSHOT_DENSE);
    assert_int_equal(key.block, 12);
    assert_int_equal(key.step, 345);
    assert_int_equal(key.grown, 0);
    assert_true(sfc_snapshot_parse_name("class-12-345r256.sfs", &key));
    assert_int_equal(key.grown, 256);
    assert_false(sfc_snapshot_parse_name("class-12-345r0.sfs", &key));
    assert_false(sfc_snapshot_parse_name("dense-012-345.sfs", &key));
    assert_false(sfc_snapshot_parse_name("dense-12-345.sfs.tmp", &key));
    assert_false(sfc_snapshot_parse_name("dense-12.sfs", &key));
    assert_false(sfc_snapshot_parse_name("classes-1-2.sfs", &key));
}

#define PACKED(name) cmocka_unit_test_setup_teardown(name, set_up_zstd, tear_down)
#define TEST(name)   cmocka_unit_test_setup_teardown(name, set_up, tear_down)

/* Blocks that left: only theirs are deleted, durably, hidden ones too. */
static void others_are_deleted(void **state)
{
    struct fixture *f = *state;
    struct sfc_snapshot_content content;
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        put(f, block, 10);
        put(f, block, 12);
    }
    sfc_snapshot_store_hide_after(f->store, 11);
    const struct sfc_snapshot_block kept[] = {rig_blocks[0], rig_blocks[RIG_BLOCKS - 1]};
    assert_int_equal(sfc_snapshot_store_keep_only(f->store, kept, 2, &f->err), SFC_OK);
    sfc_snapshot_store_close(f->store);
    f->store = NULL;
    sfc_folder_close(f->folder);
    memory_files_restart(f->files, true);
    f->folder = memory_files_folder(f->files);
    reopen(f);
    for (size_t block = 0; block < RIG_BLOCKS; block++) {
        bool own = block == 0 || block == RIG_BLOCKS - 1;
        assert_int_equal(get(f, block, 12, &content), own ? SFC_OK : SFC_ENOTFOUND);
    }
    assert_int_equal(sfc_snapshot_store_keep_only(f->store, NULL, 0, &f->err), SFC_OK);
    assert_int_equal(get(f, 0, 12, &content), SFC_ENOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(is_read_as_written),
        TEST(others_are_deleted),
        TEST(two_are_kept_and_the_floor_is_the_second_newest),
        TEST(what_leads_back_is_kept),
        TEST(later_ones_are_hidden_and_dropped),
        TEST(a_pin_keeps_its_snapshot),
        TEST(remains_are_removed),
        TEST(void_snapshots_are_not_seen_and_go),
        TEST(every_flip_falls_back_loudly),
        TEST(no_whole_snapshot_is_refused),
        TEST(another_owner_or_shape_is_refused),
        TEST(a_wrong_name_is_damage),
        TEST(one_write_at_a_time),
        cmocka_unit_test(names_are_exact),
    };
    const struct CMUnitTest packed[] = {
        PACKED(is_read_as_written),           PACKED(remains_are_removed),
        PACKED(every_flip_falls_back_loudly), PACKED(no_whole_snapshot_is_refused),
        PACKED(large_ones_are_packed),        PACKED(a_frame_of_another_length_is_damage),
        PACKED(both_kinds_live_side_by_side), TEST(a_packed_state_is_known),
    };
    return cmocka_run_group_tests_name("raw", tests, NULL, NULL) +
           cmocka_run_group_tests_name("zstd", packed, NULL, NULL);
}

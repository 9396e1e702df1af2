/* Writer, reader and decoder on small sets, whole and broken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "worker/data/dataset.h"
#include "worker/data/file.h"
#include "worker/data/jpeg.h"
#include "worker/data/meta.h"
#include "worker/data/recordio.h"
#include "worker/data/set_writer.h"

#define SIDE      32
#define CLASSES   5
#define PER_CLASS 4
#define SAMPLES   (CLASSES * PER_CLASS)

static char folder[64];

static char *in_folder(const char *name)
{
    static char path[4][128];
    static unsigned turn;
    char *out = path[turn++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", folder, name);
    return out;
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/sfc-dataset-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"train.rec", "train.idx", "meta.json"};
    for (size_t i = 0; i < 3; i++)
        unlink(in_folder(names[i]));
    return rmdir(folder);
}

static uint8_t pixel_of(int sample, int x, int y)
{
    return (uint8_t)(20 * (sample % 10) + 3 * x / 2 + y / 4);
}

static void write_set(int side)
{
    struct sfc_error err = {0};
    struct sfc_set_writer *writer = NULL;
    struct sfc_jpeg *jpeg = NULL;
    uint8_t pixels[SIDE * SIDE];
    struct sfc_meta meta = {.width = SIDE, .height = SIDE, .channels = 1, .origin = "test"};
    assert_int_equal(sfc_jpeg_new(&jpeg, &err), SFC_OK);
    assert_int_equal(sfc_set_writer_new(folder, "train", &writer, &err), SFC_OK);
    for (int i = 0; i < SAMPLES; i++) {
        const uint8_t *data = NULL;
        size_t length = 0;
        for (int p = 0; p < side * side; p++)
            pixels[p] = pixel_of(i, p % side, p / side);
        assert_int_equal(sfc_jpeg_encode_grey(jpeg, pixels, (uint32_t)side, (uint32_t)side, 95,
                                              &data, &length, &err),
                         SFC_OK);
        assert_int_equal(sfc_set_writer_add(writer, (uint64_t)(i / PER_CLASS), data, length, &err),
                         SFC_OK);
    }
    assert_int_equal(sfc_set_writer_finish(writer, &meta.files[0], &err), SFC_OK);
    meta.file_count = 1;
    sfc_set_writer_free(writer);
    sfc_jpeg_free(jpeg);
    assert_int_equal(sfc_meta_write(in_folder("meta.json"), &meta, &err), SFC_OK);
}

static struct sfc_dataset *open_set(void)
{
    struct sfc_error err = {0};
    struct sfc_dataset *set = NULL;
    if (sfc_dataset_open(folder, &set, &err) != SFC_OK)
        fail_msg("%s", err.text);
    return set;
}

static void expect_open_error(int code, const char *part1, const char *part2)
{
    struct sfc_error err = {0};
    struct sfc_dataset *set = NULL;
    assert_int_equal(sfc_dataset_open(folder, &set, &err), code);
    assert_null(set);
    if (strstr(err.text, part1) == NULL || strstr(err.text, part2) == NULL)
        fail_msg("\"%s\" names neither \"%s\" nor \"%s\"", err.text, part1, part2);
}

/* Overwrites bytes of a file. */
static void patch(const char *name, long offset, const void *bytes, size_t length)
{
    FILE *file = fopen(in_folder(name), "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, offset, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
}

static long offset_of(uint64_t key)
{
    struct sfc_error err = {0};
    uint8_t *text = NULL;
    size_t length = 0, count = 0;
    struct sfc_index_entry *entries = NULL;
    assert_int_equal(sfc_file_read(in_folder("train.idx"), 1 << 20, &text, &length, &err), SFC_OK);
    assert_int_equal(sfc_index_parse((char *)text, length, 1 << 30, &entries, &count, &err),
                     SFC_OK);
    long offset = -1;
    for (size_t i = 0; i < count; i++)
        if (entries[i].key == key)
            offset = (long)entries[i].offset;
    free(entries);
    free(text);
    assert_true(offset >= 0);
    return offset;
}

static void test_round_trip(void **state)
{
    (void)state;
    write_set(SIDE);
    struct sfc_error err = {0};
    struct sfc_dataset *set = open_set();
    struct sfc_decoder *decoder = NULL;
    const struct sfc_dataset_info *info = sfc_dataset_info(set);
    assert_int_equal(info->samples, SAMPLES);
    assert_int_equal(info->classes, CLASSES);
    assert_int_equal(info->width, SIDE);
    assert_int_equal(info->channels, 1);
    assert_false(info->flip);
    assert_int_equal(strlen(info->digest), 32);
    assert_int_equal(sfc_decoder_new(set, &decoder, &err), SFC_OK);
    float image[SIDE * SIDE];
    for (int i = 0; i < SAMPLES; i++) {
        assert_int_equal(sfc_dataset_label(set, (uint64_t)i), i / PER_CLASS);
        assert_int_equal(sfc_decoder_read(decoder, (uint64_t)i, NULL, 1, 0, image, &err), SFC_OK);
        for (int p = 0; p < SIDE * SIDE; p++)
            assert_true(abs((int)(image[p] * 127.5F + 0.5F) - pixel_of(i, p % SIDE, p / SIDE)) < 8);
    }
    assert_int_equal(sfc_decoder_read(decoder, SAMPLES, NULL, 1, 0, image, &err), SFC_EINVAL);
    sfc_decoder_free(decoder);
    sfc_dataset_close(set);
}

static void test_digest(void **state)
{
    (void)state;
    char first[33];
    write_set(SIDE);
    struct sfc_dataset *set = open_set();
    strcpy(first, sfc_dataset_info(set)->digest);
    sfc_dataset_close(set);
    write_set(SIDE); /* the same again */
    set = open_set();
    assert_string_equal(first, sfc_dataset_info(set)->digest);
    sfc_dataset_close(set);
    unlink(in_folder("meta.json")); /* other image shape */
    set = open_set();
    assert_string_not_equal(first, sfc_dataset_info(set)->digest);
    assert_int_equal(sfc_dataset_info(set)->width, 112);
    assert_true(sfc_dataset_info(set)->flip);
    sfc_dataset_close(set);
}

static void test_broken_records(void **state)
{
    (void)state;
    static const uint8_t zeros[4];
    static const float fraction = 0.5F, above = 20000000.0F, far = 4000.0F;
    write_set(SIDE);
    long at = offset_of(7);
    patch("train.rec", at, zeros, 4);
    expect_open_error(SFC_ECORRUPT, "train.rec: record 7 ", "magic");
    write_set(SIDE);
    patch("train.rec", at + 8 + 4, &fraction, 4);
    expect_open_error(SFC_ECORRUPT, "train.rec: record 7 ", "not a class number");
    write_set(SIDE);
    patch("train.rec", at + 8 + 4, &far, 4); /* id2 still says the old label */
    expect_open_error(SFC_ECORRUPT, "train.rec: record 7 ", "beside it");
    patch("train.rec", at + 8 + 16, zeros, 4);
    patch("train.rec", at + 8 + 20, zeros, 4);
    expect_open_error(SFC_ECORRUPT, "train.rec: record 7 ", "outside the set's 5 classes");
    patch("train.rec", at + 8 + 4, &above, 4);
    expect_open_error(SFC_EUNSUPPORTED, "train.rec: record 7 ", "ambiguous");
}

static void test_broken_files(void **state)
{
    (void)state;
    write_set(SIDE);
    assert_int_equal(truncate(in_folder("train.rec"), offset_of(SAMPLES) + 40), 0);
    expect_open_error(SFC_ECORRUPT, "train.rec", "meta.json says");
    unlink(in_folder("meta.json"));
    expect_open_error(SFC_ECORRUPT, "train.idx", "not inside the record file");
    write_set(SIDE);
    patch("train.idx", 3, "x", 1);
    expect_open_error(SFC_ECORRUPT, "train.idx: line ", "key<TAB>offset");
    write_set(SIDE);
    patch("meta.json", 0, "[", 1);
    expect_open_error(SFC_ECORRUPT, "meta.json", "line ");
    write_set(SIDE);
    unlink(in_folder("train.idx"));
    expect_open_error(SFC_ENOTFOUND, "train.idx", "open");
    write_set(SIDE);
    FILE *index = fopen(in_folder("train.idx"), "w");
    fprintf(index, "0\t0\n1\t%ld\n", (long)(8 + SFC_RANGE_HEADER));
    fclose(index);
    expect_open_error(SFC_ECORRUPT, "train.rec", "announces 20 images, the index holds 1");
}

static void test_cut_in_mid_record(void **state)
{
    (void)state;
    write_set(SIDE);
    unlink(in_folder("meta.json"));
    long last = offset_of(SAMPLES);
    FILE *index = fopen(in_folder("train.idx"), "w");
    fprintf(index, "1\t%ld\n", last);
    fclose(index);
    assert_int_equal(truncate(in_folder("train.rec"), last + 40), 0);
    expect_open_error(SFC_ECORRUPT, "train.rec: record 1 at byte", "cut short");
}

/* An end marker in the middle of the coded pixels. */
static void break_jpeg(uint64_t key)
{
    static const uint8_t end[2] = {0xff, 0xd9};
    patch("train.rec", offset_of(key + 1) - 40, end, sizeof end);
}

static void test_broken_jpeg(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_decoder *decoder = NULL;
    float image[SIDE * SIDE];
    write_set(SIDE);
    break_jpeg(3);
    struct sfc_dataset *set = open_set();
    assert_int_equal(sfc_decoder_new(set, &decoder, &err), SFC_OK);
    assert_int_equal(sfc_decoder_read(decoder, 2, NULL, 1, 0, image, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "train.rec: record 3 (sample 2): JPEG"));
    assert_int_equal(sfc_decoder_read(decoder, 3, NULL, 1, 0, image, &err), SFC_OK);
    sfc_decoder_free(decoder);
    sfc_dataset_close(set);
    write_set(16); /* meta.json still says 32 */
    set = open_set();
    assert_int_equal(sfc_decoder_new(set, &decoder, &err), SFC_OK);
    assert_int_equal(sfc_decoder_read(decoder, 2, NULL, 1, 0, image, &err), SFC_ECORRUPT);
    assert_non_null(strstr(err.text, "16 x 16 instead of 32 x 32"));
    sfc_decoder_free(decoder);
    sfc_dataset_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_digest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut_in_mid_record, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_jpeg, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Packing a folder, and the report of a set. */
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

#include "worker/data/file.h"
#include "worker/data/info.h"
#include "worker/data/jpeg.h"
#include "worker/data/pack.h"

static char root[64];

static char *at(const char *name)
{
    static char path[4][256];
    static unsigned turn;
    char *out = path[turn++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", root, name);
    return out;
}

static void put(const char *name, const void *data, size_t length)
{
    FILE *file = fopen(at(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    fclose(file);
}

static void put_jpeg(const char *name, uint32_t side, int shade)
{
    struct sfc_jpeg *jpeg = NULL;
    struct sfc_error err = {0};
    const uint8_t *data = NULL;
    size_t length = 0;
    uint8_t pixels[64 * 64];
    memset(pixels, shade, sizeof pixels);
    assert_int_equal(sfc_jpeg_new(&jpeg, &err), SFC_OK);
    assert_int_equal(sfc_jpeg_encode_grey(jpeg, pixels, side, side, 95, &data, &length, &err),
                     SFC_OK);
    put(name, data, length);
    sfc_jpeg_free(jpeg);
}

static int setup(void **state)
{
    (void)state;
    static const char *const folders[] = {"in", "in/bob", "in/alice", "in/lonely", "in/.hidden"};
    strcpy(root, "/tmp/sfc-pack-XXXXXX");
    if (mkdtemp(root) == NULL)
        return 1;
    for (size_t i = 0; i < 5; i++)
        if (mkdir(at(folders[i]), 0777) != 0)
            return 1;
    put_jpeg("in/bob/2.jpg", 24, 120);
    put_jpeg("in/bob/1.JPEG", 24, 110);
    put_jpeg("in/alice/b.jpg", 24, 20);
    put_jpeg("in/alice/a.jpg", 24, 10);
    put_jpeg("in/alice/c.jpg", 24, 30);
    put_jpeg("in/lonely/a.jpg", 24, 200);
    put("in/alice/notes.txt", "x", 1);
    put("in/readme", "x", 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

static int pack(uint32_t min_images, bool no_flip, struct sfc_pack_report *report,
                struct sfc_error *err)
{
    char folder[256], out[256];
    strcpy(folder, at("in"));
    strcpy(out, at("out/deep"));
    struct sfc_pack_options options = {
        .folder = folder, .out = out, .min_images = min_images, .no_flip = no_flip};
    return sfc_data_pack(&options, report, err);
}

static void test_pack(void **state)
{
    (void)state;
    struct sfc_pack_report report = {0};
    struct sfc_error err = {0};
    if (pack(2, true, &report, &err) != SFC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(report.identities, 2);
    assert_int_equal(report.samples, 5);
    assert_int_equal(report.dropped_identities, 1);
    assert_int_equal(report.ignored_files, 2);
    assert_true(report.width == 24 && report.height == 24 && report.channels == 1);
    struct sfc_dataset *set = NULL;
    struct sfc_decoder *decoder = NULL;
    float image[24 * 24];
    assert_int_equal(sfc_dataset_open(at("out/deep"), &set, &err), SFC_OK);
    assert_string_equal(sfc_dataset_info(set)->digest, report.digest);
    assert_false(sfc_dataset_info(set)->flip);
    assert_int_equal(sfc_decoder_new(set, &decoder, &err), SFC_OK);
    static const int shades[5] = {10, 20, 30, 110, 120}; /* alice before bob, by file name */
    for (uint64_t i = 0; i < 5; i++) {
        assert_int_equal(sfc_decoder_read(decoder, i, NULL, 0, 0, image, &err), SFC_OK);
        assert_int_equal((int)(image[5] * 127.5F + 0.5F), shades[i]);
        assert_int_equal(sfc_dataset_label(set, i), i < 3 ? 0 : 1);
    }
    sfc_decoder_free(decoder);
    sfc_dataset_close(set);
}

static void expect_refusal(int code, const char *part1, const char *part2)
{
    struct sfc_pack_report report = {0};
    struct sfc_error err = {0};
    assert_int_equal(pack(1, false, &report, &err), code);
    if (strstr(err.text, part1) == NULL || strstr(err.text, part2) == NULL)
        fail_msg("\"%s\" does not name \"%s\" and \"%s\"", err.text, part1, part2);
    assert_int_not_equal(access(at("out/deep/train.rec"), F_OK), 0);
    assert_int_not_equal(access(at("out/deep/train.rec.tmp"), F_OK), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    put_jpeg("in/bob/3.jpg", 32, 0);
    expect_refusal(SFC_EINVAL, "in/bob/3.jpg", "in/alice/a.jpg");
    put("in/bob/3.jpg", "no jpeg", 7);
    expect_refusal(SFC_ECORRUPT, "in/bob/3.jpg", "not a JPEG");
    put_jpeg("in/bob/3.jpg", 24, 0);
    struct stat st;
    assert_int_equal(stat(at("in/bob/3.jpg"), &st), 0);
    assert_int_equal(truncate(at("in/bob/3.jpg"), st.st_size - 6), 0);
    expect_refusal(SFC_ECORRUPT, "in/bob/3.jpg", "JPEG: ");
    struct sfc_pack_report report = {0};
    struct sfc_error err = {0};
    assert_int_equal(pack(9, false, &report, &err), SFC_ENOTFOUND);
}

static void test_info(void **state)
{
    (void)state;
    struct sfc_pack_report packed = {0};
    struct sfc_data_report report = {0};
    struct sfc_error err = {0};
    assert_int_equal(pack(1, false, &packed, &err), SFC_OK);
    assert_int_equal(sfc_data_info(at("out/deep"), true, NULL, NULL, &report, &err), SFC_OK);
    assert_int_equal(report.info.samples, 6);
    assert_int_equal(report.used_classes, 3);
    assert_int_equal(report.min_per_class, 1);
    assert_int_equal(report.max_per_class, 3);
    assert_true(report.verified && report.broken == 0 && report.info.flip);
    assert_int_equal(report.bytes, packed.bytes);
    uint8_t *data = NULL;
    size_t length = 0;
    assert_int_equal(sfc_file_read(at("out/deep/train.rec"), 1 << 20, &data, &length, &err),
                     SFC_OK);
    for (size_t i = 0, images = 0; i + 1 < length; i++) /* no image starts with ff d8 any more */
        if (data[i] == 0xff && data[i + 1] == 0xd8 && images++ >= 4)
            data[i + 1] = 0;
    put("out/deep/train.rec", data, length);
    free(data);
    assert_int_equal(sfc_data_info(at("out/deep"), true, NULL, NULL, &report, &err), SFC_OK);
    assert_int_equal(report.broken, 2);
    assert_int_equal(report.first_broken, 4);
    assert_non_null(strstr(report.first_broken_cause, "record 5"));
    char *json = sfc_data_report_json(&report);
    assert_non_null(json);
    assert_non_null(strstr(json, "\"broken\": 2"));
    free(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_pack, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_info, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

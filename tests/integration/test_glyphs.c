/* A small glyph set from the installed fonts: the same bytes for any number of threads, sides
 * apart, readable by our own readers. Skipped (77) where the fonts are not installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/data/dataset.h"
#include "worker/data/file.h"
#include "worker/data/glyph_fonts.h"
#include "worker/data/glyph_pairs.h"
#include "worker/data/glyphs.h"
#include "worker/data/pickle_bin.h"

#define CLASSES 60
#define HOLDOUT 20
#define PAIRS   200

static const char *const files[] = {"train.rec",      "train.idx",      "train.txt",
                                    "holdout.rec",    "holdout.idx",    "holdout.txt",
                                    "pairs_easy.bin", "pairs_hard.bin", "meta.json"};
static char folders[3][64];

static char *path_in(int folder, const char *name)
{
    static char path[4][256];
    static unsigned turn;
    char *out = path[turn++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", folders[folder], name);
    return out;
}

static void make(int folder, uint32_t threads, uint64_t seed, uint32_t size,
                 struct sfc_glyph_report *report)
{
    struct sfc_error err = {0};
    struct sfc_glyph_options options = {.out = folders[folder],
                                        .classes = CLASSES,
                                        .holdout = HOLDOUT,
                                        .pairs = PAIRS,
                                        .size = size,
                                        .threads = threads,
                                        .seed = seed};
    if (sfc_data_glyphs(&options, report, &err) != SFC_OK)
        fail_msg("%s", err.text);
}

static bool equal_files(const char *name, int a, int b)
{
    struct sfc_error err = {0};
    uint8_t *x = NULL, *y = NULL;
    size_t nx = 0, ny = 0;
    assert_int_equal(sfc_file_read(path_in(a, name), 1 << 28, &x, &nx, &err), SFC_OK);
    assert_int_equal(sfc_file_read(path_in(b, name), 1 << 28, &y, &ny, &err), SFC_OK);
    bool equal = nx == ny && memcmp(x, y, nx) == 0;
    free(x);
    free(y);
    return equal;
}

static void test_deterministic(void **state)
{
    (void)state;
    struct sfc_glyph_report a = {0}, b = {0}, c = {0};
    make(0, 1, 7, 32, &a);
    make(1, 3, 7, 32, &b);
    make(2, 2, 8, 32, &c);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (!equal_files(files[i], 0, 1))
            fail_msg("%s differs between 1 and 3 threads", files[i]);
    assert_string_equal(a.digest, b.digest);
    assert_string_not_equal(a.digest, c.digest);
    sfc_glyph_report_free(&a);
    sfc_glyph_report_free(&b);
    sfc_glyph_report_free(&c);
}

static void test_sides(void **state)
{
    (void)state;
    struct sfc_glyph_report report = {0};
    make(0, 2, 7, 32, &report);
    assert_int_equal(report.identities, CLASSES);
    assert_int_equal(report.holdout_identities, HOLDOUT);
    assert_true(report.min_samples >= 8);
    uint64_t train = 0, holdout = 0;
    for (uint32_t i = 0; i < report.face_count; i++) {
        const struct sfc_glyph_face *f = &report.faces[i];
        static const char *const held[] = {"cwtex", "motoya", "dejima"};
        bool expected = false;
        for (int k = 0; k < 3; k++)
            expected = expected || strcmp(f->group, held[k]) == 0;
        assert_int_equal(f->holdout, expected);
        *(f->holdout ? &holdout : &train) += f->used;
        for (uint32_t k = 0; k < report.face_count; k++)
            if (strcmp(f->group, report.faces[k].group) == 0)
                assert_int_equal(f->holdout, report.faces[k].holdout);
    }
    assert_int_equal(train, report.samples);
    assert_int_equal(holdout, report.holdout_samples);
    char *json = sfc_glyph_report_json(&report);
    assert_non_null(json);
    assert_non_null(strstr(json, "cwTeXMing"));
    free(json);
    sfc_glyph_report_free(&report);
}

/* No character on both sides. */
static void test_identities_apart(void **state)
{
    (void)state;
    unsigned train[CLASSES], label = 0, character = 0, n = 0;
    FILE *file = fopen(path_in(0, "train.txt"), "r");
    assert_non_null(file);
    while (fscanf(file, "%u U+%X", &label, &character) == 2 && n < CLASSES) {
        assert_int_equal(label, n);
        assert_true(character >= 0x4e00 && character <= 0x9fff);
        train[n++] = character;
    }
    fclose(file);
    assert_int_equal(n, CLASSES);
    file = fopen(path_in(0, "holdout.txt"), "r");
    assert_non_null(file);
    unsigned held = 0;
    while (fscanf(file, "%u U+%X", &label, &character) == 2) {
        held++;
        for (n = 0; n < CLASSES; n++)
            assert_int_not_equal(train[n], character);
    }
    fclose(file);
    assert_int_equal(held, HOLDOUT);
}

static void check_set(const char *path, uint64_t classes, uint64_t samples)
{
    struct sfc_error err = {0};
    struct sfc_dataset *set = NULL;
    struct sfc_decoder *decoder = NULL;
    float image[32 * 32];
    if (sfc_dataset_open(path, &set, &err) != SFC_OK)
        fail_msg("%s", err.text);
    const struct sfc_dataset_info *info = sfc_dataset_info(set);
    assert_int_equal(info->classes, classes);
    assert_int_equal(info->samples, samples);
    assert_false(info->flip);
    assert_int_equal(sfc_decoder_new(set, &decoder, &err), SFC_OK);
    for (uint64_t i = 0; i < samples; i++) {
        int inked = 0;
        assert_int_equal(sfc_decoder_read(decoder, i, NULL, 0, 0, image, &err), SFC_OK);
        for (int p = 0; p < 32 * 32; p++)
            inked += image[p] > 40 / 127.5F;
        assert_true(inked >= 15); /* not blank, after JPEG */
    }
    sfc_decoder_free(decoder);
    sfc_dataset_close(set);
}

static void test_readable(void **state)
{
    (void)state;
    struct sfc_glyph_report report = {0};
    make(0, 2, 7, 32, &report);
    check_set(folders[0], CLASSES, report.samples);
    check_set(path_in(0, "holdout.rec"), HOLDOUT, report.holdout_samples);
    sfc_glyph_report_free(&report);
    struct sfc_pairs easy = {0}, hard = {0};
    struct sfc_error err = {0};
    assert_int_equal(sfc_pairs_read(path_in(0, "pairs_easy.bin"), &easy, &err), SFC_OK);
    assert_int_equal(sfc_pairs_read(path_in(0, "pairs_hard.bin"), &hard, &err), SFC_OK);
    assert_int_equal(easy.pairs, PAIRS);
    assert_int_equal(hard.pairs, PAIRS);
    size_t genuine = 0, other = 0;
    for (size_t i = 0; i < PAIRS; i++) {
        assert_int_equal(easy.same[i], hard.same[i]);
        genuine += easy.same[i];
        const struct sfc_bytes *a = &easy.images[2 * i + 1], *b = &hard.images[2 * i + 1];
        bool equal = a->size == b->size && memcmp(a->data, b->data, a->size) == 0;
        if (easy.same[i])
            assert_true(equal); /* only the impostors differ */
        other += !equal;
    }
    assert_int_equal(genuine, PAIRS / 2);
    assert_true(other > PAIRS / 4);
    sfc_pairs_free(&easy);
    sfc_pairs_free(&hard);
}

static void test_large_pictures(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_glyph_report report = {0};
    struct sfc_dataset *set = NULL;
    make(2, 2, 7, 112, &report);
    assert_int_equal(sfc_dataset_open(folders[2], &set, &err), SFC_OK);
    assert_int_equal(sfc_dataset_info(set)->width, 112);
    assert_int_equal(sfc_dataset_info(set)->channels, 3);
    sfc_dataset_close(set);
    sfc_glyph_report_free(&report);
}

static void test_refusals(void **state)
{
    (void)state;
    struct sfc_error err = {0};
    struct sfc_glyph_report report = {0};
    struct sfc_glyph_options options = {.out = folders[0], .size = 48};
    assert_int_equal(sfc_data_glyphs(&options, &report, &err), SFC_EINVAL);
    assert_non_null(strstr(err.text, "48"));
    options = (struct sfc_glyph_options){.out = folders[0], .fonts = folders[1]};
    assert_int_equal(sfc_data_glyphs(&options, &report, &err), SFC_ENOTFOUND);
    assert_non_null(strstr(err.text, "deploy/font-packages"));
}

static void test_nearest(void **state)
{
    (void)state;
    static float features[6][SFC_GLYPH_FEATURE];
    static const float at[6] = {0, 10, 3, 11, 2.5F, 40};
    uint32_t nearest[6 * 2];
    for (int i = 0; i < 6; i++)
        features[i][17] = at[i];
    sfc_glyph_nearest(features[0], 6, 2, nearest);
    static const uint32_t expected[12] = {4, 2, 3, 2, 4, 0, 1, 2, 2, 0, 3, 1};
    assert_memory_equal(nearest, expected, sizeof expected);
}

int main(void)
{
    struct sfc_font *fonts = NULL;
    struct sfc_error err = {0};
    uint32_t count = 0;
    if (sfc_fonts_find("/usr/share/fonts", &fonts, &count, &err) != SFC_OK) {
        fprintf(stderr, "skipped: %s\n", err.text);
        return 77;
    }
    sfc_fonts_free(fonts, count);
    for (int i = 0; i < 3; i++) {
        strcpy(folders[i], "/tmp/sfc-glyphs-XXXXXX");
        if (mkdtemp(folders[i]) == NULL)
            return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest),  cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_sides),    cmocka_unit_test(test_identities_apart),
        cmocka_unit_test(test_readable), cmocka_unit_test(test_large_pictures),
        cmocka_unit_test(test_refusals),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < sizeof files / sizeof files[0]; k++)
            unlink(path_in(i, files[k]));
        rmdir(folders[i]);
    }
    return failed;
}

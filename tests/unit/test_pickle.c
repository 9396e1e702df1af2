/* The restricted pickle reader: what Python writes, what it must refuse, and every cut and flip of
 * a good file. Python itself is asked where it is installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/data/file.h"
#include "worker/data/pickle_bin.h"

#define PYTHON "/usr/bin/python3"
#define PAIRS  40

static char path[] = "/tmp/sfc-pickle-XXXXXX";

/* Image i of the test: length and bytes by formula, the same in Python below. */
static size_t image_length(size_t i)
{
    return i * i % 700;
}

static uint8_t image_byte(size_t i, size_t k)
{
    return (uint8_t)(i * 31 + k * 7);
}

static void expect_content(const struct sfc_pairs *pairs)
{
    assert_int_equal(pairs->pairs, PAIRS);
    for (size_t i = 0; i < 2 * PAIRS; i++) {
        assert_int_equal(pairs->images[i].size, image_length(i));
        for (size_t k = 0; k < image_length(i); k++)
            assert_int_equal(pairs->images[i].data[k], image_byte(i, k));
    }
    for (size_t i = 0; i < PAIRS; i++)
        assert_int_equal(pairs->same[i], i % 3 == 0);
}

static void write_content(void)
{
    static uint8_t bytes[2 * PAIRS][700];
    struct sfc_bytes images[2 * PAIRS];
    struct sfc_error err = {0};
    bool same[PAIRS];
    for (size_t i = 0; i < 2 * PAIRS; i++) {
        for (size_t k = 0; k < image_length(i); k++)
            bytes[i][k] = image_byte(i, k);
        images[i] = (struct sfc_bytes){bytes[i], image_length(i)};
    }
    for (size_t i = 0; i < PAIRS; i++)
        same[i] = i % 3 == 0;
    assert_int_equal(sfc_pairs_write(path, images, same, PAIRS, &err), SFC_OK);
}

static bool have_python(void)
{
    return access(PYTHON, X_OK) == 0;
}

static int run_python(const char *code)
{
    char command[2048];
    assert_true(snprintf(command, sizeof command, "%s -c '%s' %s", PYTHON, code, path) <
                (int)sizeof command);
    return system(command);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct sfc_pairs pairs = {0};
    struct sfc_error err = {0};
    write_content();
    assert_int_equal(sfc_pairs_read(path, &pairs, &err), SFC_OK);
    expect_content(&pairs);
    sfc_pairs_free(&pairs);
}

static void test_python_reads_ours(void **state)
{
    (void)state;
    if (!have_python())
        skip();
    write_content();
    assert_int_equal(
        run_python("import pickle, sys\n"
                   "a, b = pickle.load(open(sys.argv[1], \"rb\"), encoding=\"bytes\")\n"
                   "assert [type(x) for x in (a, b)] == [list, list]\n"
                   "assert b == [i % 3 == 0 for i in range(40)] and type(b[0]) is bool\n"
                   "assert a == [bytes((i * 31 + k * 7) % 256 for k in range(i * i % 700))"
                   " for i in range(80)]"),
        0);
}

/* Protocols 3 to 5 from Python as they come; 0 to 2 as Python 2 wrote str (our own assembly,
 * because Python 3 writes bytes there by calling a function, which is refused). */
static void test_ours_reads_python(void **state)
{
    (void)state;
    if (!have_python())
        skip();
    for (int protocol = 0; protocol <= 5; protocol++) {
        char code[1600];
        struct sfc_pairs pairs = {0};
        struct sfc_error err = {0};
        snprintf(
            code, sizeof code,
            "import pickle, sys\n"
            "a = [bytes((i * 31 + k * 7) %% 256 for k in range(i * i %% 700)) for i in range(80)]\n"
            "b = [i %% 3 == 0 for i in range(40)]\n"
            "p = %d\n"
            "class P(pickle._Pickler):\n"
            "    def save_bytes(self, o):\n"
            "        n = len(o)\n"
            "        if p == 0: self.write(b\"S\" + repr(o)[1:].encode() + b\"\\n\")\n"
            "        elif n < 256: self.write(b\"U\" + bytes([n]) + o)\n"
            "        else: self.write(b\"T\" + n.to_bytes(4, \"little\") + o)\n"
            "        self.memoize(o)\n"
            "    dispatch = dict(pickle._Pickler.dispatch)\n"
            "    dispatch[bytes] = save_bytes\n"
            "f = open(sys.argv[1], \"wb\")\n"
            "(P if p < 3 else pickle.Pickler)(f, protocol=p).dump((a, b))",
            protocol);
        assert_int_equal(run_python(code), 0);
        if (sfc_pairs_read(path, &pairs, &err) != SFC_OK)
            fail_msg("protocol %d: %s", protocol, err.text);
        expect_content(&pairs);
        sfc_pairs_free(&pairs);
    }
}

static void expect(const char *bytes, size_t length, int code, const char *message)
{
    struct sfc_pairs pairs = {0};
    struct sfc_error err = {0};
    uint8_t *exact = malloc(length); /* so that sanitizers see a read behind the end */
    memcpy(exact, bytes, length);
    int rc = sfc_pairs_parse(exact, length, &pairs, &err);
    if (rc != code || strstr(err.text, message) == NULL)
        fail_msg("%d \"%s\" instead of %d \"%s\"", rc, err.text, code, message);
    free(exact);
}

#define EXPECT(bytes, code, message) expect(bytes, sizeof bytes - 1, code, message)

static void test_refusals(void **state)
{
    (void)state;
    EXPECT("\x80\x03"
           "cos\nsystem\nX\x04\0\0\0true\x85R.",
           SFC_EUNSUPPORTED, "opcode GLOBAL (0x63) at byte 2");
    EXPECT("\x80\x04\x95\0\0\0\0\0\0\0\0\x8c\x02os", SFC_EUNSUPPORTED,
           "opcode SHORT_BINUNICODE (0x8c) at byte 11");
    EXPECT("(i", SFC_EUNSUPPORTED, "INST");
    EXPECT("}.", SFC_EUNSUPPORTED, "EMPTY_DICT");
    EXPECT("\xff", SFC_EUNSUPPORTED, "opcode unknown (0xff) at byte 0");
    EXPECT("\x80\x06.", SFC_EUNSUPPORTED, "protocol 6");
    EXPECT("]", SFC_ECORRUPT, "without STOP");
    EXPECT("", SFC_ECORRUPT, "without STOP");
    EXPECT(".", SFC_ECORRUPT, "not a pair");
    EXPECT("]]\x86.", SFC_ECORRUPT, "0 images for 0 pairs");
    EXPECT("](C\1aC\1be](\x88\x88"
           "e\x86.",
           SFC_ECORRUPT, "2 images for 2 pairs");
    EXPECT("](C\1a\x88"
           "e](\x88"
           "e\x86.",
           SFC_ECORRUPT, "image 1 is a boolean");
    EXPECT("](C\1aC\1be](C\1ae\x86.", SFC_ECORRUPT, "entry 0 of the second list is bytes");
    EXPECT("](C\1aC\1be](K\2e\x86.", SFC_ECORRUPT, "neither 0 nor 1");
    EXPECT("\x88\x89\x86.", SFC_ECORRUPT, "a boolean and a boolean");
    EXPECT("a", SFC_ECORRUPT, "append without an item");
    EXPECT("\x88\x88"
           "a",
           SFC_ECORRUPT, "append to something that is no list");
    EXPECT("e", SFC_ECORRUPT, "no mark");
    EXPECT("(\x86", SFC_ECORRUPT, "too few items");
    EXPECT("h\0", SFC_ECORRUPT, "never set");
    EXPECT("]r\xff\xff\xff\x7f", SFC_ECORRUPT, "memo index");
    EXPECT("q\0", SFC_ECORRUPT, "nothing to remember");
    EXPECT("C\5abc", SFC_ECORRUPT, "reaches over the end");
    EXPECT("B\xff\xff\xff\xff", SFC_ECORRUPT, "reaches over the end");
    EXPECT("\x8e\xff\xff\xff\xff\xff\xff\xff\xff", SFC_ECORRUPT, "reaches over the end");
    EXPECT("S'abc", SFC_ECORRUPT, "inside a line");
    EXPECT("Sabc\n", SFC_ECORRUPT, "without quotes");
    EXPECT("S'a\\q'\n", SFC_ECORRUPT, "unknown escape");
    EXPECT("I12x\n", SFC_ECORRUPT, "not a number");
    EXPECT("\x8a\x09", SFC_ECORRUPT, "more than 64 bits");
}

static void test_self_reference(void **state)
{
    (void)state;
    EXPECT("]q\0(h\0h\0e](\x88"
           "e\x86.",
           SFC_ECORRUPT, "image 0 is a list");
}

static void test_bounded_memory(void **state)
{
    (void)state;
    size_t length = 1 << 20;
    char *lists = malloc(length);
    memset(lists, ']', length);
    expect(lists, length, SFC_ELIMIT, "more than 135168 objects");
    memset(lists, '(', length);
    expect(lists, length, SFC_ECORRUPT, "without STOP");
    free(lists);
}

/* Cut or changed anywhere: an error or another content, never a crash (sanitizers watch). */
static void test_every_cut_and_flip(void **state)
{
    (void)state;
    uint8_t *data = NULL;
    size_t length = 0;
    struct sfc_error err = {0};
    write_content();
    assert_int_equal(sfc_file_read(path, 1 << 20, &data, &length, &err), SFC_OK);
    for (size_t cut = 0; cut < length; cut += cut < 200 ? 1 : 37)
        expect((char *)data, cut, SFC_ECORRUPT, "pickle");
    for (size_t i = 0; i < length; i += i < 200 || i > length - 60 ? 1 : 53)
        for (unsigned bit = 0; bit < 8; bit++) {
            struct sfc_pairs pairs = {0};
            data[i] ^= (uint8_t)(1U << bit);
            if (sfc_pairs_parse(data, length, &pairs, &err) == SFC_OK)
                sfc_pairs_free(&pairs);
            data[i] ^= (uint8_t)(1U << bit);
        }
    free(data);
}

static void test_names_the_file(void **state)
{
    (void)state;
    struct sfc_pairs pairs = {0};
    struct sfc_error err = {0};
    FILE *file = fopen(path, "w");
    fputs("c", file);
    fclose(file);
    assert_int_equal(sfc_pairs_read(path, &pairs, &err), SFC_EUNSUPPORTED);
    assert_non_null(strstr(err.text, path));
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_python_reads_ours),
        cmocka_unit_test(test_ours_reads_python),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_self_reference),     cmocka_unit_test(test_bounded_memory),
        cmocka_unit_test(test_every_cut_and_flip), cmocka_unit_test(test_names_the_file),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}

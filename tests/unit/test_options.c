#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "proto/base/log.h"
#include "proto/base/options.h"

struct values {
    const char *listen;
    bool json;
    uint64_t steps;
    double lr;
    uint64_t memory;
    uint64_t wait;
    int margin;
    bool mixed;
};

static const char *const margins[] = {"cosface", "arcface", NULL};

static const struct sfc_option table[] = {
    {.name = "listen",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct values, listen),
     .fallback = "127.0.0.1:0",
     .min = 3,
     .max = 20,
     .metavar = "ADDR",
     .help = "address to serve on"},
    {.name = "json",
     .type = SFC_OPTION_BOOL,
     .offset = offsetof(struct values, json),
     .help = "one JSON object on stdout"},
    {.name = "steps",
     .type = SFC_OPTION_U64,
     .offset = offsetof(struct values, steps),
     .min = 1,
     .max = 1000,
     .flags = SFC_OPTION_REQUIRED,
     .help = "how many steps"},
    {.name = "lr",
     .type = SFC_OPTION_DOUBLE,
     .offset = offsetof(struct values, lr),
     .fallback = "0.1",
     .low = 0,
     .high = 10,
     .help = "learning rate"},
    {.name = "memory",
     .type = SFC_OPTION_SIZE,
     .offset = offsetof(struct values, memory),
     .fallback = "1G",
     .min = 1 << 20,
     .flags = SFC_OPTION_RELOAD,
     .help = "memory of the shard"},
    {.name = "wait",
     .type = SFC_OPTION_DURATION,
     .offset = offsetof(struct values, wait),
     .fallback = "10s",
     .max = 3600000,
     .help = "how long to wait"},
    {.name = "margin",
     .type = SFC_OPTION_ENUM,
     .offset = offsetof(struct values, margin),
     .choices = margins,
     .fallback = "arcface",
     .help = "kind of margin"},
    {.name = "mixed",
     .type = SFC_OPTION_BOOL,
     .offset = offsetof(struct values, mixed),
     .fallback = "yes",
     .help = "let others in"},
};

static const struct sfc_program program = {.name = "shardfc-test",
                                           .summary = "A program that only tests use.",
                                           .arguments = "[DIR]",
                                           .max_arguments = 1,
                                           .options = table,
                                           .count = sizeof table / sizeof *table};

static struct values values;
static struct sfc_options *parsed;
static struct sfc_error error;

/* Words of a command line after the program's name; NULL ends. */
static int parse_with(char *const *environment, ...)
{
    char *argv[32] = {"shardfc-test"};
    int argc = 1;
    va_list args;
    va_start(args, environment);
    for (char *word; (word = va_arg(args, char *)) != NULL;) {
        argv[argc++] = word;
    }
    va_end(args);
    enum sfc_options_action action;
    sfc_options_free(parsed);
    parsed = NULL;
    error = (struct sfc_error){0};
    memset(&values, 0xee, sizeof values);
    int code =
        sfc_options_parse(&program, argc, argv, environment, &values, &action, &parsed, &error);
    return code != SFC_OK ? -code : (int)action;
}

#define RUN(...)      assert_int_equal(parse_with(NULL, __VA_ARGS__, NULL), SFC_OPTIONS_RUN)
#define REFUSED(...)  assert_int_equal(parse_with(NULL, __VA_ARGS__, NULL), -SFC_EINVAL)
#define MESSAGE(part) assert_non_null(strstr(error.text, part))

static void test_defaults(void **state)
{
    (void)state;
    RUN("--steps", "5");
    assert_string_equal(values.listen, "127.0.0.1:0");
    assert_false(values.json);
    assert_int_equal(values.steps, 5);
    assert_true(values.lr == 0.1);
    assert_int_equal(values.memory, 1 << 30);
    assert_int_equal(values.wait, 10000);
    assert_int_equal(values.margin, 1);
    assert_true(values.mixed);
    assert_true(sfc_options_given(parsed, "steps"));
    assert_false(sfc_options_given(parsed, "lr"));
    assert_false(sfc_options_given(parsed, "nonsense"));
}

static void test_flags(void **state)
{
    (void)state;
    RUN("--steps=7", "--json", "--no-mixed", "--lr", "2.5e-1", "--memory=3M", "DIR", "--wait",
        "1.5s", "--margin=cosface");
    assert_int_equal(values.steps, 7);
    assert_true(values.json);
    assert_false(values.mixed);
    assert_true(values.lr == 0.25);
    assert_int_equal(values.memory, 3 << 20);
    assert_int_equal(values.wait, 1500);
    assert_int_equal(values.margin, 0);
    assert_int_equal(sfc_options_argument_count(parsed), 1);
    assert_string_equal(sfc_options_argument(parsed, 0), "DIR");
    assert_null(sfc_options_argument(parsed, 1));
    RUN("--steps", "1", "--json=no", "--", "--odd-name");
    assert_false(values.json);
    assert_string_equal(sfc_options_argument(parsed, 0), "--odd-name");
    RUN("--steps", "1", "--steps", "2"); /* the last one counts */
    assert_int_equal(values.steps, 2);
}

static void test_refusals(void **state)
{
    (void)state;
    REFUSED("--steps", "0");
    MESSAGE("--steps");
    MESSAGE("\"0\"");
    MESSAGE("1 to 1000");
    REFUSED("--steps", "1001");
    REFUSED("--steps", "-1");
    REFUSED("--steps", " 1");
    REFUSED("--steps", "18446744073709551616");
    REFUSED("--steps");
    MESSAGE("needs a value");
    REFUSED("--json");
    MESSAGE("--steps N is required");
    REFUSED("--steps", "1", "--lr", "nan");
    REFUSED("--steps", "1", "--lr", "1e999");
    REFUSED("--steps", "1", "--lr", "10.1");
    MESSAGE("0 to 10");
    REFUSED("--steps", "1", "--memory", "1Q");
    REFUSED("--steps", "1", "--memory", "1023K");
    MESSAGE("at least 1M");
    REFUSED("--steps", "1", "--memory", "99999999999T");
    REFUSED("--steps", "1", "--wait", "61m");
    MESSAGE("0ms to 1h");
    REFUSED("--steps", "1", "--margin", "sphere");
    MESSAGE("one of cosface, arcface");
    REFUSED("--steps", "1", "--json=maybe");
    MESSAGE("yes or no");
    REFUSED("--steps", "1", "--listen", "a");
    MESSAGE("3 to 20 bytes");
    REFUSED("--steps", "1", "-x");
    REFUSED("--steps", "1", "one", "two");
    MESSAGE("unexpected argument \"two\"");
}

static void test_suggestions(void **state)
{
    (void)state;
    REFUSED("--step", "5");
    MESSAGE("did you mean \"steps\"");
    REFUSED("--lisen=x");
    MESSAGE("did you mean \"listen\"");
    REFUSED("--xyzzyx");
    MESSAGE("see --help");
    REFUSED("--no-steps");
    REFUSED(
        "--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void write_file(char *path, const char *text)
{
    strcpy(path, "/tmp/sfc_options_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void test_file_and_environment(void **state)
{
    (void)state;
    char path[64];
    char *environment[] = {"PATH=/bin", "SFC_LR=2", "SFC_WAIT=2s", "SFC_OTHER_PROGRAM=x", NULL};
    write_file(path, "# a comment\n\n steps = 9 # nine\nlr=3\r\nwait = 3s\nlisten =  1.2.3.4:5\n");
    assert_int_equal(parse_with(environment, "--config", path, "--wait", "4s", NULL), 0);
    assert_int_equal(values.steps, 9);
    assert_true(values.lr == 2);
    assert_int_equal(values.wait, 4000);
    assert_string_equal(values.listen, "1.2.3.4:5");
    unlink(path);
    write_file(path, "steps = 9\nlr = many\n");
    REFUSED("--config", path);
    MESSAGE("line 2: lr");
    REFUSED("--config", path, "--lr", "1"); /* checked even where it does not count */
    unlink(path);
    write_file(path, "stepz = 9\n");
    REFUSED("--config", path);
    MESSAGE("line 1: ");
    MESSAGE("did you mean \"steps\"");
    unlink(path);
    write_file(path, "just words\n");
    REFUSED("--config", path);
    unlink(path);
    write_file(path, "config = other\n");
    REFUSED("--config", path);
    unlink(path);
    assert_int_equal(parse_with(NULL, "--config", "/nonexistent/file", NULL), -SFC_ENOTFOUND);
    char *bad[] = {"SFC_LR=fast", NULL};
    assert_int_equal(parse_with(bad, "--steps", "1", NULL), -SFC_EINVAL);
    MESSAGE("SFC_LR");
}

static void test_help(void **state)
{
    (void)state;
    assert_int_equal(parse_with(NULL, "--help", "--nonsense", NULL), SFC_OPTIONS_HELP);
    assert_int_equal(parse_with(NULL, "--version", NULL), SFC_OPTIONS_VERSION);
    char *help = sfc_options_help(&program);
    assert_non_null(help);
    for (size_t i = 0; i < program.count; i++) {
        assert_non_null(strstr(help, table[i].name));
    }
    assert_non_null(strstr(help, "usage: shardfc-test [options] [DIR]"));
    assert_non_null(strstr(help, "--log-level LEVEL"));
    assert_non_null(strstr(help, "(1 to 1000; required)"));
    assert_non_null(strstr(help, "(at least 1M; default 1G)"));
    free(help);
}

static void test_man(void **state)
{
    (void)state;
    assert_int_equal(parse_with(NULL, "--help=man", "--nonsense", NULL), SFC_OPTIONS_MAN);
    char *man = sfc_options_man(&program);
    assert_non_null(man);
    assert_non_null(strstr(man, ".TH SHARDFC\\-TEST 1 "));
    assert_non_null(strstr(man, "shardfc\\-test \\- a program that only tests use\n"));
    assert_non_null(
        strstr(man, "\\fB\\-\\-memory\\fR \\fISIZE\\fR\nmemory of the shard (at least"));
    assert_non_null(strstr(man, "\\fB\\-\\-log\\-level\\fR"));
    free(man);
}

static void test_markdown(void **state)
{
    (void)state;
    assert_int_equal(parse_with(NULL, "--help=markdown", NULL), SFC_OPTIONS_MARKDOWN);
    char *text = sfc_options_markdown(&program);
    assert_non_null(text);
    assert_non_null(strstr(text, "## shardfc-test\n\nA program that only tests use.\n"));
    assert_non_null(
        strstr(text, "| `memory` | SIZE, at least 1M | memory of the shard | 1G | yes | yes |\n"));
    assert_non_null(
        strstr(text, "| `steps` | N, 1 to 1000 | how many steps | required | yes |  |\n"));
    assert_non_null(strstr(text, "| `config` | FILE |"));
    free(text);
}

static void test_words(void **state)
{
    (void)state;
    assert_int_equal(parse_with(NULL, "--help=words", NULL), SFC_OPTIONS_WORDS);
    char *text = sfc_options_words(&program);
    assert_non_null(text);
    assert_non_null(strstr(text, "--margin cosface arcface\n"));
    assert_non_null(strstr(text, "--json\n"));
    assert_non_null(strstr(text, "--memory text\n"));
    assert_non_null(strstr(text, "--config file\n"));
    free(text);
}

static char told[256]; /* "name+" taken, "name-" not now */

static void tell(void *ctx, const char *name, bool now)
{
    (void)ctx;
    size_t at = strlen(told);
    snprintf(told + at, sizeof told - at, "%s%s ", name, now ? "+" : "-");
}

static void reloaded(int code, const char *what)
{
    told[0] = '\0';
    error = (struct sfc_error){0};
    assert_int_equal(sfc_options_reload(parsed, tell, NULL, &error), code);
    assert_string_equal(told, what);
}

static void test_reload(void **state)
{
    (void)state;
    char path[] = "/tmp/test_options_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    char *argv[] = {"shardfc-test", "--config", path, "--steps", "5", "--lr=1", NULL};
    sfc_options_free(parsed);
    write_text(path, "memory = 2M\nlisten = host:1\n");
    assert_int_equal(sfc_options_main(&program, 6, argv, &values, &parsed), -1);
    reloaded(SFC_OK, "");
    write_text(path, "memory = 3M\nlisten = host:2\nlr = 2\nsteps = 6\nlog-level = debug\n");
    reloaded(SFC_OK, "listen- memory+ log-level+ "); /* the flags say lr and steps */
    assert_int_equal(values.memory, 3 << 20);
    assert_string_equal(values.listen, "host:1");
    assert_true(sfc_log_on(SFC_LOG_DEBUG));
    reloaded(SFC_OK, "listen- ");
    write_text(path, "memory = 4M\nlisten = host:1\nlog-level = loud\n");
    reloaded(SFC_EINVAL, "");
    MESSAGE("line 3: log-level");
    assert_int_equal(values.memory, 3 << 20);
    assert_true(sfc_log_on(SFC_LOG_DEBUG));
    write_text(path, "");
    reloaded(SFC_OK, "listen- memory+ log-level+ ");
    assert_int_equal(values.memory, 1 << 30);
    assert_false(sfc_log_on(SFC_LOG_DEBUG));
    unlink(path);
    reloaded(SFC_ENOTFOUND, "");
    MESSAGE(path);
}

static void test_parsers(void **state)
{
    (void)state;
    uint64_t n;
    double x;
    assert_int_equal(sfc_parse_u64("18446744073709551615", &n), SFC_OK);
    assert_true(n == UINT64_MAX);
    assert_int_equal(sfc_parse_u64("", &n), SFC_EINVAL);
    assert_int_equal(sfc_parse_u64("1x", &n), SFC_EINVAL);
    assert_int_equal(sfc_parse_double("-1.5e3", &x), SFC_OK);
    assert_true(x == -1500);
    static const char *const bad[] = {"", "-", "inf", "0x10", "1,5", "1e", "--1", " 1", "+1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(sfc_parse_double(bad[i], &x), SFC_EINVAL);
    }
    assert_int_equal(sfc_parse_size("1.5KiB", &n), SFC_OK);
    assert_int_equal(n, 1536);
    assert_int_equal(sfc_parse_size("16777216T", &n), SFC_EINVAL);
    assert_int_equal(sfc_parse_size("K", &n), SFC_EINVAL);
    assert_int_equal(sfc_parse_size("1.2.3K", &n), SFC_EINVAL);
    assert_int_equal(sfc_parse_duration("90", &n), SFC_OK);
    assert_int_equal(n, 90000);
    assert_int_equal(sfc_parse_duration("2h", &n), SFC_OK);
    assert_int_equal(n, 7200000);
}

static int teardown(void **state)
{
    (void)state;
    sfc_options_free(parsed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_suggestions),
        cmocka_unit_test(test_file_and_environment),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_man),
        cmocka_unit_test(test_markdown),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_reload),
        cmocka_unit_test(test_parsers),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}

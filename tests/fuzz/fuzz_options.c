/* Any text as a configuration file, an environment and a command line (lines of the input). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/base/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct values {
    const char *text;
    bool flag;
    uint64_t number, bytes, ms;
    double real;
    int word;
};

static const char *const words[] = {"one", "two", NULL};
static const struct sfc_option table[] = {
    {.name = "text", .type = SFC_OPTION_STRING, .offset = offsetof(struct values, text), .max = 8},
    {.name = "flag", .type = SFC_OPTION_BOOL, .offset = offsetof(struct values, flag)},
    {.name = "number",
     .type = SFC_OPTION_U64,
     .offset = offsetof(struct values, number),
     .max = 99},
    {.name = "bytes", .type = SFC_OPTION_SIZE, .offset = offsetof(struct values, bytes)},
    {.name = "ms", .type = SFC_OPTION_DURATION, .offset = offsetof(struct values, ms)},
    {.name = "real", .type = SFC_OPTION_DOUBLE, .offset = offsetof(struct values, real), .high = 5},
    {.name = "word",
     .type = SFC_OPTION_ENUM,
     .offset = offsetof(struct values, word),
     .choices = words},
};
static const struct sfc_program program = {
    .name = "fuzz", .options = table, .count = sizeof table / sizeof *table, .max_arguments = 2};

static void check(const struct values *v)
{
    bool fine = v->number <= 99 && v->real >= 0 && v->real <= 5 && v->word >= 0 && v->word <= 1 &&
                (v->text == NULL || strlen(v->text) <= 8);
    if (!fine) {
        abort();
    }
}

static void parse(int argc, char **argv, char **environment)
{
    struct values values;
    struct sfc_options *options;
    struct sfc_error err;
    enum sfc_options_action action;
    if (sfc_options_parse(&program, argc, argv, environment, &values, &action, &options, &err) ==
        SFC_OK) {
        check(&values);
        sfc_options_free(options);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { WORDS = 16 };
    char path[] = "/dev/shm/sfc_fuzz_XXXXXX", *copy = malloc(size + 1), *place = copy;
    char *argv[WORDS + 3] = {"fuzz"}, *with_file[] = {"fuzz", "--config", path, NULL};
    char *environment[WORDS + 1];
    int fd = mkstemp(path), count = 0;
    if (fd < 0 || copy == NULL || write(fd, data, size) != (ssize_t)size) {
        abort();
    }
    close(fd);
    parse(3, with_file, NULL);
    memcpy(copy, data, size);
    copy[size] = '\0';
    for (char *word; count < WORDS && (word = strsep(&place, "\n")) != NULL; count++) {
        argv[count + 1] = environment[count] = word;
    }
    argv[count + 1] = environment[count] = NULL;
    /* "--config" of the input may name any file: only the file above is read here. */
    bool names_file = strstr(copy, "config") != NULL;
    for (int i = 0; i < count; i++) {
        names_file = names_file || strstr(argv[i + 1], "config") != NULL;
    }
    if (!names_file) {
        parse(count + 1, argv, NULL);
    }
    parse(1, argv, environment);
    unlink(path);
    free(copy);
    return 0;
}

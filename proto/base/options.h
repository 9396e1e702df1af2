/* Options of a program from ONE table: flags (--name VALUE, --name=VALUE, --bool, --no-bool),
 * environment (SFC_NAME, with '-' as '_'), configuration file (--config FILE: lines "name = value",
 * '#' starts a comment) and the text of --help. Flags win over the environment, the environment over
 * the file, the file over the default. Every program also has --help, --version, --log-level, --log-format,
 * --config;
 * --help=man, --help=markdown and --help=words give the same table as a manual page, as a section of
 * docs/CONFIGURATION.md and as words for the completion of a shell.
 *
 *     struct shard_options { const char *listen; uint64_t memory; bool json; };
 *     static const struct sfc_option table[] = {
 *         {.name = "listen", .type = SFC_OPTION_STRING, .metavar = "ADDR", .fallback = "127.0.0.1:0",
 *          .offset = offsetof(struct shard_options, listen), .help = "address to serve on"},
 *         {.name = "memory", .type = SFC_OPTION_SIZE, .min = 1 << 20, .fallback = "1G", ...},
 *     };
 *     static const struct sfc_program program = {.name = "shardfc-shard", .summary = "...",
 *         .options = table, .count = sizeof table / sizeof *table};
 *     int main(int argc, char **argv) {
 *         struct shard_options o;
 *         struct sfc_options *parsed;
 *         int code = sfc_options_main(&program, argc, argv, &o, &parsed);
 *         if (code >= 0) return code;
 *         ...
 *         sfc_options_free(parsed); */
#ifndef SFC_BASE_OPTIONS_H
#define SFC_BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

enum sfc_option_type {
    SFC_OPTION_STRING,   /* const char *; min, max: length bounds */
    SFC_OPTION_BOOL,     /* bool */
    SFC_OPTION_U64,      /* uint64_t */
    SFC_OPTION_DOUBLE,   /* double, finite; low, high */
    SFC_OPTION_SIZE,     /* uint64_t bytes: 4096, 64K, 512M, 8G, 1T, also KiB, MiB, ... (powers of 1024) */
    SFC_OPTION_DURATION, /* uint64_t milliseconds: 500ms, 10s, 5m, 2h; a bare number is seconds */
    SFC_OPTION_ENUM,     /* int: index into choices */
};

enum {
    SFC_OPTION_REQUIRED = 1, /* must come from somewhere */
    SFC_OPTION_FLAG_ONLY = 2, /* not from environment or file */
    SFC_OPTION_RELOAD = 4     /* sfc_options_reload takes a new value; not for a STRING */
};

struct sfc_option {
    const char *name;            /* "memory"; lower case, digits, '-' */
    enum sfc_option_type type;
    size_t offset;               /* of the value in the caller's struct */
    const char *fallback;        /* default, as one would write it; NULL: value stays 0/NULL/false */
    uint64_t min, max;           /* STRING length, U64, SIZE, DURATION (ms); max 0 = no upper bound */
    double low, high;            /* DOUBLE; both 0 = any finite number */
    const char *const *choices;  /* ENUM: all that there are; STRING: what a shell may offer; ends with NULL */
    const char *metavar;         /* NULL: a word for the type */
    const char *unit;            /* shown in --help; may be NULL */
    const char *help;            /* one sentence, wrapped by --help */
    unsigned flags;
};

struct sfc_program {
    const char *name;            /* "shardfc-shard"; "shardfc status" for a subcommand */
    const char *summary;         /* one or more sentences for --help */
    const char *arguments;       /* of positional arguments in usage ("DIR", "on|off N"); NULL: none */
    unsigned min_arguments, max_arguments;
    const struct sfc_option *options;
    size_t count;
    const char *footer;          /* further text of --help (examples, list of commands); may be NULL */
};

struct sfc_options; /* owns the strings in the caller's struct */

enum sfc_options_action {
    SFC_OPTIONS_RUN,
    SFC_OPTIONS_HELP,
    SFC_OPTIONS_MAN,
    SFC_OPTIONS_MARKDOWN,
    SFC_OPTIONS_WORDS,
    SFC_OPTIONS_VERSION,
};

/* Parses without printing. argv[0] is skipped. environment: "NAME=VALUE" strings ending with NULL (may
 * be NULL). values: zeroed and filled; its strings live as long as *out. With another action than RUN
 * nothing else is checked or filled. Errors are SFC_EINVAL (usage: names the option, the value and
 * the bounds; an unknown option gets the nearest name) or those of reading the file. */
int sfc_options_parse(const struct sfc_program *program, int argc, char *const *argv,
                      char *const *environment, void *values, enum sfc_options_action *action,
                      struct sfc_options **out, struct sfc_error *err);
void sfc_options_free(struct sfc_options *options);

/* For main(): parses argv and the environment, does --help and --version, sets the log up with the
 * program's name, --log-level and --log-format, prints usage errors on stderr. Returns -1 to go on, otherwise the
 * exit code (0 or 2). argv must outlive *out. */
int sfc_options_main(const struct sfc_program *program, int argc, char *const *argv, void *values,
                     struct sfc_options **out);

/* For a daemon that is asked to reload (SIGHUP): reads arguments, environment and file of
 * sfc_options_main again. The log's level and format and options with SFC_OPTION_RELOAD take what is said now, the
 * others stay; told(ctx, name, now) is called for each that is said to be another than it is. An
 * error changes nothing. */
typedef void (*sfc_options_told)(void *ctx, const char *name, bool now);
int sfc_options_reload(struct sfc_options *options, sfc_options_told told, void *ctx,
                       struct sfc_error *err);

/* True if the option came from a flag, the environment or the file (not only its default). */
bool sfc_options_given(const struct sfc_options *options, const char *name);
size_t sfc_options_argument_count(const struct sfc_options *options);
const char *sfc_options_argument(const struct sfc_options *options, size_t index);

/* Text of --help; the caller frees it. NULL without memory. */
char *sfc_options_help(const struct sfc_program *program);
char *sfc_options_man(const struct sfc_program *program);      /* of --help=man */
char *sfc_options_markdown(const struct sfc_program *program); /* of --help=markdown */
/* Of --help=words: a line for each option, "--name" and behind it, if it takes a value, what values
 * there are: words, or one of "file", "dir", "text". Then a line for each positional argument, ":1" and so on, of
 * the same kind. */
char *sfc_options_words(const struct sfc_program *program);

/* Parsers of single values, for use elsewhere (whole text must match; no sign, no spaces). */
int sfc_parse_u64(const char *text, uint64_t *out);
int sfc_parse_double(const char *text, double *out); /* finite */
int sfc_parse_size(const char *text, uint64_t *bytes);
int sfc_parse_duration(const char *text, uint64_t *ms);

#endif

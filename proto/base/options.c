#include "proto/base/edit_distance.h"
#include "proto/base/options_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

enum { CONFIG_FILE_MAX = 1 << 20, NAME_MAX_BYTES = 64 };

/* Where a value came from, weakest first. */
enum source { FROM_NOTHING, FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG };

struct entry {
    const struct sfc_option *option;
    void *base; /* of the struct that holds the value */
    enum source source;
};

struct sfc_options {
    struct sfc_standard standard;
    struct entry *entries;
    size_t count;
    char **arguments;
    size_t argument_count;
    char **texts; /* copies that values point to */
    size_t text_count, text_room;
    /* what sfc_options_main was called with, for a reload */
    const struct sfc_program *program;
    int argc;
    char *const *argv;
};

/* ---- the table */

static struct entry *find(const struct sfc_options *options, const char *name, size_t size)
{
    for (size_t i = 0; i < options->count; i++) {
        const char *known = options->entries[i].option->name;
        if (strlen(known) == size && memcmp(known, name, size) == 0) {
            return &options->entries[i];
        }
    }
    return NULL;
}

static int unknown(const struct sfc_options *options, const char *name, size_t size,
                   const char *where, struct sfc_error *err)
{
    char given[NAME_MAX_BYTES + 1];
    const char *nearest = NULL;
    size_t least = 4; /* further away is no typing error */
    snprintf(given, sizeof given, "%.*s", (int)(size < NAME_MAX_BYTES ? size : NAME_MAX_BYTES),
             name);
    for (size_t i = 0; i < options->count; i++) {
        const char *known = options->entries[i].option->name;
        size_t d = sfc_edit_distance(given, known);
        if (d < least && d < strlen(known)) {
            least = d;
            nearest = known;
        }
    }
    if (nearest != NULL) {
        return sfc_fail(err, SFC_EINVAL, "%sunknown option \"%s\"; did you mean \"%s\"?", where,
                        given, nearest);
    }
    return sfc_fail(err, SFC_EINVAL, "%sunknown option \"%s\"; see --help", where, given);
}

static int keep_text(struct sfc_options *options, const char *text, size_t size, char **out,
                     struct sfc_error *err)
{
    if (options->text_count == options->text_room) {
        size_t room = options->text_room * 2 + 16;
        char **more = realloc(options->texts, room * sizeof *more);
        if (more == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "no memory for options");
        }
        options->texts = more;
        options->text_room = room;
    }
    char *copy = strndup(text, size);
    if (copy == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for options");
    }
    options->texts[options->text_count++] = copy;
    *out = copy;
    return SFC_OK;
}

/* A weaker source never replaces a stronger one, but its value is checked all the same. */
static int assign(struct sfc_options *options, struct entry *entry, enum source source,
                  const char *shown, const char *text, size_t size, struct sfc_error *err)
{
    char *copy = NULL;
    int code = keep_text(options, text, size, &copy, err);
    if (code != SFC_OK) {
        return code;
    }
    if (source < entry->source) {
        char *scratch = calloc(1, entry->option->offset + sizeof(uint64_t));
        if (scratch == NULL) {
            return sfc_fail(err, SFC_ENOMEM, "no memory for options");
        }
        code = sfc_option_set(entry->option, shown, copy, scratch, err);
        free(scratch);
        return code;
    }
    code = sfc_option_set(entry->option, shown, copy, entry->base, err);
    if (code == SFC_OK) {
        entry->source = source;
    }
    return code;
}

/* ---- flags */

/* Handles argv[*at], moves *at over a value that stands by itself. */
static int take_flag(struct sfc_options *options, int argc, char *const *argv, int *at,
                     struct sfc_error *err)
{
    const char *name = argv[*at] + 2, *equals = strchr(name, '=');
    size_t size = equals != NULL ? (size_t)(equals - name) : strlen(name);
    struct entry *entry = find(options, name, size);
    const char *value = equals != NULL ? equals + 1 : NULL;
    char shown[NAME_MAX_BYTES + 16];
    snprintf(shown, sizeof shown, "--%.*s", (int)(size < NAME_MAX_BYTES ? size : NAME_MAX_BYTES),
             name);
    if (entry == NULL && equals == NULL && strncmp(name, "no-", 3) == 0) {
        entry = find(options, name + 3, size - 3);
        if (entry != NULL && entry->option->type == SFC_OPTION_BOOL) {
            value = "no";
        } else {
            entry = NULL;
        }
    }
    if (entry == NULL) {
        return unknown(options, name, size, "", err);
    }
    if (value == NULL && entry->option->type == SFC_OPTION_BOOL) {
        value = "yes";
    }
    if (value == NULL) {
        if (*at + 1 >= argc) {
            return sfc_fail(err, SFC_EINVAL, "%s needs a value: %s", shown,
                            sfc_option_metavar(entry->option));
        }
        value = argv[++*at];
    }
    return assign(options, entry, FROM_FLAG, shown, value, strlen(value), err);
}

static int take_arguments(struct sfc_options *options, const struct sfc_program *program, int argc,
                          char *const *argv, struct sfc_error *err)
{
    bool only_arguments = false;
    for (int i = 1; i < argc; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0) {
            only_arguments = true;
        } else if (!only_arguments && strncmp(argv[i], "--", 2) == 0) {
            int code = take_flag(options, argc, argv, &i, err);
            if (code != SFC_OK) {
                return code;
            }
        } else if (!only_arguments && argv[i][0] == '-' && argv[i][1] != '\0') {
            return sfc_fail(err, SFC_EINVAL, "unknown option \"%.64s\"; options start with --",
                            argv[i]);
        } else if (options->argument_count >= program->max_arguments) {
            return sfc_fail(err, SFC_EINVAL, "unexpected argument \"%.100s\"", argv[i]);
        } else {
            char *copy = NULL;
            int code = keep_text(options, argv[i], strlen(argv[i]), &copy, err);
            if (code != SFC_OK) {
                return code;
            }
            options->arguments[options->argument_count++] = copy;
        }
    }
    if (options->argument_count < program->min_arguments) {
        return sfc_fail(err, SFC_EINVAL, "missing argument: %s",
                        program->arguments != NULL ? program->arguments : "");
    }
    return SFC_OK;
}

/* ---- environment */

static int take_environment(struct sfc_options *options, char *const *environment,
                            struct sfc_error *err)
{
    for (; environment != NULL && *environment != NULL; environment++) {
        const char *line = *environment, *equals = strchr(line, '=');
        if (equals == NULL || strncmp(line, "SFC_", 4) != 0 || equals - line > NAME_MAX_BYTES) {
            continue;
        }
        char name[NAME_MAX_BYTES + 1], shown[NAME_MAX_BYTES + 1];
        size_t size = (size_t)(equals - line) - 4;
        for (size_t i = 0; i < size; i++) {
            char c = line[4 + i];
            name[i] = (char)(c == '_' ? '-' : c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
        }
        snprintf(shown, sizeof shown, "%.*s", (int)(equals - line), line);
        struct entry *entry = find(options, name, size);
        if (entry == NULL || (entry->option->flags & SFC_OPTION_FLAG_ONLY) != 0) {
            continue; /* of another program, perhaps */
        }
        int code =
            assign(options, entry, FROM_ENVIRONMENT, shown, equals + 1, strlen(equals + 1), err);
        if (code != SFC_OK) {
            return code;
        }
    }
    return SFC_OK;
}

/* ---- configuration file */

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* Cuts blanks off both ends of [*begin, *end). */
static void trim(const char **begin, const char **end)
{
    while (*begin < *end && is_blank(**begin)) {
        (*begin)++;
    }
    while (*begin < *end && is_blank((*end)[-1])) {
        (*end)--;
    }
}

static int take_line(struct sfc_options *options, const char *begin, const char *end,
                     const char *where, struct sfc_error *err)
{
    const char *comment = memchr(begin, '#', (size_t)(end - begin));
    const char *stop = comment != NULL ? comment : end;
    trim(&begin, &stop);
    if (begin == stop) {
        return SFC_OK;
    }
    const char *equals = memchr(begin, '=', (size_t)(stop - begin));
    if (equals == NULL) {
        return sfc_fail(err, SFC_EINVAL, "%sexpected \"name = value\"", where);
    }
    const char *name_end = equals, *value = equals + 1;
    trim(&begin, &name_end);
    trim(&value, &stop);
    struct entry *entry = find(options, begin, (size_t)(name_end - begin));
    if (entry == NULL) {
        return unknown(options, begin, (size_t)(name_end - begin), where, err);
    }
    if ((entry->option->flags & SFC_OPTION_FLAG_ONLY) != 0) {
        return sfc_fail(err, SFC_EINVAL, "%s\"%s\" is an option of the command line only", where,
                        entry->option->name);
    }
    char shown[256];
    snprintf(shown, sizeof shown, "%s%s", where, entry->option->name);
    return assign(options, entry, FROM_FILE, shown, value, (size_t)(stop - value), err);
}

static int take_text(struct sfc_options *options, const char *path, const char *text, size_t size,
                     struct sfc_error *err)
{
    if (memchr(text, '\0', size) != NULL) {
        return sfc_fail(err, SFC_EINVAL, "%s is not a text file", path);
    }
    const char *end = text + size;
    for (unsigned line = 1; text < end; line++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        stop = stop != NULL ? stop : end;
        char where[180];
        snprintf(where, sizeof where, "%.150s line %u: ", path, line);
        int code = take_line(options, text, stop, where, err);
        if (code != SFC_OK) {
            return code;
        }
        text = stop + 1;
    }
    return SFC_OK;
}

static int take_file(struct sfc_options *options, struct sfc_error *err)
{
    const char *path = options->standard.config;
    if (path == NULL) {
        return SFC_OK;
    }
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return sfc_fail_errno(err, "cannot open configuration file %s", path);
    }
    int code = SFC_OK;
    char *text = malloc(CONFIG_FILE_MAX + 1);
    size_t size = text != NULL ? fread(text, 1, CONFIG_FILE_MAX + 1, file) : 0;
    if (text == NULL) {
        code = sfc_fail(err, SFC_ENOMEM, "no memory for %s", path);
    } else if (ferror(file)) {
        code = sfc_fail_errno(err, "cannot read configuration file %s", path);
    } else if (size > CONFIG_FILE_MAX) {
        code = sfc_fail(err, SFC_EINVAL, "%s is larger than %d bytes", path, CONFIG_FILE_MAX);
    } else {
        code = take_text(options, path, text, size, err);
    }
    free(text);
    fclose(file);
    return code;
}

/* ---- all together */

static int take_defaults(struct sfc_options *options, struct sfc_error *err)
{
    for (size_t i = 0; i < options->count; i++) {
        struct entry *entry = &options->entries[i];
        const char *fallback = entry->option->fallback;
        if (fallback == NULL) {
            continue;
        }
        int code = assign(options, entry, FROM_DEFAULT, entry->option->name, fallback,
                          strlen(fallback), err);
        if (code != SFC_OK) {
            return code;
        }
    }
    return SFC_OK;
}

static int check_required(const struct sfc_options *options, struct sfc_error *err)
{
    for (size_t i = 0; i < options->count; i++) {
        const struct entry *entry = &options->entries[i];
        if ((entry->option->flags & SFC_OPTION_REQUIRED) != 0 && entry->source == FROM_NOTHING) {
            return sfc_fail(err, SFC_EINVAL, "--%s %s is required", entry->option->name,
                            sfc_option_metavar(entry->option));
        }
    }
    return SFC_OK;
}

size_t sfc_option_size(const struct sfc_option *option)
{
    static const size_t sizes[] = {
        [SFC_OPTION_STRING] = sizeof(const char *),
        [SFC_OPTION_BOOL] = sizeof(bool),
        [SFC_OPTION_U64] = sizeof(uint64_t),
        [SFC_OPTION_DOUBLE] = sizeof(double),
        [SFC_OPTION_SIZE] = sizeof(uint64_t),
        [SFC_OPTION_DURATION] = sizeof(uint64_t),
        [SFC_OPTION_ENUM] = sizeof(int),
    };
    return sizes[option->type];
}

static struct sfc_options *options_new(const struct sfc_program *program, int argc, void *values)
{
    struct sfc_options *options = calloc(1, sizeof *options);
    if (options == NULL) {
        return NULL;
    }
    options->entries = calloc(program->count + SFC_STANDARD_COUNT, sizeof *options->entries);
    options->arguments = calloc((size_t)(argc > 0 ? argc : 1), sizeof *options->arguments);
    if (options->entries == NULL || options->arguments == NULL) {
        sfc_options_free(options);
        return NULL;
    }
    for (size_t i = 0; i < program->count; i++) {
        /* one by one: the size of the caller's struct isn't known here */
        memset((char *)values + program->options[i].offset, 0,
               sfc_option_size(&program->options[i]));
        options->entries[options->count++] =
            (struct entry){.option = &program->options[i], .base = values};
    }
    for (size_t i = 0; i < SFC_STANDARD_COUNT; i++) {
        options->entries[options->count++] =
            (struct entry){.option = &sfc_standard_options[i], .base = &options->standard};
    }
    return options;
}

/* --help and --version win over everything else, wherever they stand before "--". */
static enum sfc_options_action wanted_action(int argc, char *const *argv)
{
    static const struct {
        const char *flag;
        enum sfc_options_action action;
    } actions[] = {{"--help", SFC_OPTIONS_HELP},        {"-h", SFC_OPTIONS_HELP},
                   {"--help=man", SFC_OPTIONS_MAN},     {"--help=markdown", SFC_OPTIONS_MARKDOWN},
                   {"--help=words", SFC_OPTIONS_WORDS}, {"--version", SFC_OPTIONS_VERSION}};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        for (size_t k = 0; k < sizeof actions / sizeof *actions; k++) {
            if (strcmp(argv[i], actions[k].flag) == 0) {
                return actions[k].action;
            }
        }
    }
    return SFC_OPTIONS_RUN;
}

int sfc_options_parse(const struct sfc_program *program, int argc, char *const *argv,
                      char *const *environment, void *values, enum sfc_options_action *action,
                      struct sfc_options **out, struct sfc_error *err)
{
    enum sfc_options_action wanted = wanted_action(argc, argv);
    struct sfc_options *options = options_new(program, argc, values);
    if (options == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "no memory for options");
    }
    int code = SFC_OK;
    if (wanted == SFC_OPTIONS_RUN) {
        code = take_defaults(options, err);
        code = code != SFC_OK ? code : take_arguments(options, program, argc, argv, err);
        code = code != SFC_OK ? code : take_environment(options, environment, err);
        code = code != SFC_OK ? code : take_file(options, err);
        code = code != SFC_OK ? code : check_required(options, err);
    }
    if (code != SFC_OK) {
        sfc_options_free(options);
        return code;
    }
    *action = wanted;
    *out = options;
    return SFC_OK;
}

void sfc_options_free(struct sfc_options *options)
{
    if (options == NULL) {
        return;
    }
    for (size_t i = 0; i < options->text_count; i++) {
        free(options->texts[i]);
    }
    free(options->texts);
    free(options->arguments);
    free(options->entries);
    free(options);
}

bool sfc_options_given(const struct sfc_options *options, const char *name)
{
    const struct entry *entry = find(options, name, strlen(name));
    return entry != NULL && entry->source > FROM_DEFAULT;
}

size_t sfc_options_argument_count(const struct sfc_options *options)
{
    return options->argument_count;
}

const char *sfc_options_argument(const struct sfc_options *options, size_t index)
{
    return index < options->argument_count ? options->arguments[index] : NULL;
}

/* A text that is longer than the stream's buffer fails here, and later nobody knows why. */
static int print_help(const struct sfc_program *program, const char *help)
{
    errno = 0;
    if (fputs(help, stdout) != EOF && fflush(stdout) == 0) {
        return 0;
    }
    fprintf(stderr, "%s: standard output: %s\n", program->name,
            errno != 0 ? strerror(errno) : "not everything could be written");
    return 1;
}

/* What is asked for in the place of a run. */
static int print(const struct sfc_program *program, enum sfc_options_action action)
{
    if (action == SFC_OPTIONS_VERSION) {
        printf("%s %s\n", program->name, SFC_VERSION);
        return 0;
    }
    char *help = action == SFC_OPTIONS_MAN        ? sfc_options_man(program)
                 : action == SFC_OPTIONS_MARKDOWN ? sfc_options_markdown(program)
                 : action == SFC_OPTIONS_WORDS    ? sfc_options_words(program)
                                                  : sfc_options_help(program);
    int code = print_help(program, help != NULL ? help : "");
    free(help);
    return code;
}

static void set_log(const struct sfc_options *options, const struct sfc_program *program)
{
    sfc_log_init(program->name, (enum sfc_log_level)options->standard.log_level);
    sfc_log_format((enum sfc_log_form)options->standard.log_format);
}

int sfc_options_main(const struct sfc_program *program, int argc, char *const *argv, void *values,
                     struct sfc_options **out)
{
    struct sfc_error err = {0};
    struct sfc_options *options;
    enum sfc_options_action action;
    int code = sfc_options_parse(program, argc, argv, environ, values, &action, &options, &err);
    if (code != SFC_OK) {
        fprintf(stderr, "%s: %s\n", program->name, err.text);
        return 2;
    }
    if (action == SFC_OPTIONS_RUN) {
        set_log(options, program);
        options->program = program;
        options->argc = argc;
        options->argv = argv;
        *out = options;
        return -1;
    }
    sfc_options_free(options);
    return print(program, action);
}

/* ---- reload */

static bool same(const struct sfc_option *option, const void *a, const void *b)
{
    const char *x = (const char *)a + option->offset, *y = (const char *)b + option->offset;
    if (option->type != SFC_OPTION_STRING) {
        return memcmp(x, y, sfc_option_size(option)) == 0;
    }
    const char *first, *second;
    memcpy(&first, x, sizeof first);
    memcpy(&second, y, sizeof second);
    return first == second || (first != NULL && second != NULL && strcmp(first, second) == 0);
}

/* Room for values of a program whose struct isn't known here. */
static void *scratch_values(const struct sfc_program *program)
{
    size_t size = sizeof(uint64_t);
    for (size_t i = 0; i < program->count; i++) {
        size_t end = program->options[i].offset + sizeof(uint64_t);
        size = end > size ? end : size;
    }
    return calloc(1, size);
}

static void take_new(struct sfc_options *options, const struct sfc_options *read,
                     sfc_options_told told, void *ctx)
{
    for (size_t i = 0; i < options->count; i++) {
        const struct sfc_option *option = options->entries[i].option;
        void *is = options->entries[i].base, *said = read->entries[i].base;
        bool now = (option->flags & SFC_OPTION_RELOAD) != 0;
        if (same(option, is, said)) {
            continue;
        }
        if (now) {
            memcpy((char *)is + option->offset, (char *)said + option->offset,
                   sfc_option_size(option));
        }
        told(ctx, option->name, now);
    }
}

int sfc_options_reload(struct sfc_options *options, sfc_options_told told, void *ctx,
                       struct sfc_error *err)
{
    const struct sfc_program *program = options->program;
    struct sfc_options *read = NULL;
    enum sfc_options_action action;
    void *values = scratch_values(program);
    int code = values != NULL ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no memory for options");
    if (code == SFC_OK) {
        code = sfc_options_parse(program, options->argc, options->argv, environ, values, &action,
                                 &read, err);
    }
    if (code == SFC_OK) {
        take_new(options, read, told, ctx);
        set_log(options, program);
        sfc_options_free(read);
    }
    free(values);
    return code;
}

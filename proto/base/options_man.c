/* The table of a program's options as a manual page, as a section of docs/CONFIGURATION.md, and as
 * words for a shell's completion. */
#include "proto/base/options_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Text for roff: no line begins with a control character, hyphens stay what they are. */
static void put_roff(FILE *out, const char *text)
{
    bool begins = true;
    for (; *text != '\0'; text++) {
        if (begins && (*text == '.' || *text == '\'')) {
            fputs("\\&", out);
        }
        if (*text == '-') {
            fputs("\\-", out);
        } else if (*text == '\\') {
            fputs("\\e", out);
        } else {
            fputc(*text, out);
        }
        begins = *text == '\n';
    }
}

/* "shardfc status": shardfc-status, in capitals for the title. */
static void put_page_name(FILE *out, const char *name, bool capitals)
{
    for (; *name != '\0'; name++) {
        char c = *name == ' ' ? '-' : *name;
        if (c == '-') {
            fputs("\\-", out);
        } else {
            fputc(capitals ? toupper((unsigned char)c) : c, out);
        }
    }
}

/* The first sentence, without its full stop and capital. */
static void put_purpose(FILE *out, const char *summary)
{
    size_t size = strcspn(summary, "\n");
    const char *stop = strstr(summary, ". ");
    if (stop != NULL && (size_t)(stop - summary) < size) {
        size = (size_t)(stop - summary);
    }
    while (size > 0 && summary[size - 1] == '.') {
        size--;
    }
    char *text = strndup(summary, size);
    if (text != NULL) {
        bool word = isupper((unsigned char)text[0]) && !isupper((unsigned char)text[1]);
        text[0] = (char)(word ? tolower((unsigned char)text[0]) : text[0]);
        put_roff(out, text);
    }
    free(text);
}

static void man_option(FILE *out, const struct sfc_option *option)
{
    char flag[160], text[1024];
    sfc_option_flag(option, flag, sizeof flag);
    sfc_option_facts(option, text, sizeof text);
    size_t name = strcspn(flag, " ");
    fputs(".TP\n\\fB", out);
    char *bold = strndup(flag, name);
    put_roff(out, bold != NULL ? bold : "");
    free(bold);
    fputs("\\fR", out);
    if (flag[name] != '\0') {
        fputs(" \\fI", out);
        put_roff(out, flag + name + 1);
        fputs("\\fR", out);
    }
    fputc('\n', out);
    put_roff(out, text);
    fputc('\n', out);
}

static void man_page(FILE *out, const struct sfc_program *program)
{
    const char *summary = program->summary != NULL ? program->summary : program->name;
    const struct sfc_option *option;
    fputs(".TH ", out);
    put_page_name(out, program->name, true);
    fprintf(out, " 1 \"\" \"ShardFC %s\" \"ShardFC\"\n.SH NAME\n", SFC_VERSION);
    put_page_name(out, program->name, false);
    fputs(" \\- ", out);
    put_purpose(out, summary);
    fputs("\n.SH SYNOPSIS\n\\fB", out);
    put_roff(out, program->name);
    fputs("\\fR [\\fIoptions\\fR]", out);
    if (program->arguments != NULL) {
        fputc(' ', out);
        put_roff(out, program->arguments);
    }
    fputs("\n.SH DESCRIPTION\n", out);
    put_roff(out, summary);
    fputs("\n.SH OPTIONS\n", out);
    for (size_t i = 0; (option = sfc_program_option(program, i)) != NULL; i++) {
        man_option(out, option);
    }
    fputs(".TP\n\\fB\\-\\-help\\fR\nprint the options and end\n"
          ".TP\n\\fB\\-\\-version\\fR\nprint the version and end\n.PP\n",
          out);
    put_roff(out, sfc_options_sources);
    fputc('\n', out);
    if (program->footer != NULL) {
        fputs(".SH NOTES\n.nf\n", out);
        put_roff(out, program->footer);
        fputs("\n.fi\n", out);
    }
    fputs(".SH SEE ALSO\n.BR shardfc (1),\n.BR shardfc\\-scheduler (1),\n"
          ".BR shardfc\\-shard (1),\n.BR shardfc\\-worker (1)\n",
          out);
}

/* Text for a cell of a table. */
static void put_cell(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '|' || *text == '<' || *text == '*' || *text == '_') {
            fputc('\\', out);
        }
        fputc(*text == '\n' ? ' ' : *text, out);
    }
}

static void markdown(FILE *out, const struct sfc_program *program)
{
    const struct sfc_option *option;
    fprintf(out,
            "## %s\n\n%s\n\n| option | value | what it says | default | in a file | reload |\n"
            "|---|---|---|---|---|---|\n",
            program->name, program->summary != NULL ? program->summary : "");
    for (size_t i = 0; (option = sfc_program_option(program, i)) != NULL; i++) {
        char bounds[256];
        sfc_option_bounds(option, bounds, sizeof bounds);
        bool is_bool = option->type == SFC_OPTION_BOOL;
        fprintf(out, "| `%s` | ", option->name);
        put_cell(out, sfc_option_metavar(option));
        if (!is_bool && bounds[0] != '\0') {
            fputs(", ", out);
            put_cell(out, bounds);
        }
        fputs(" | ", out);
        put_cell(out, option->help != NULL ? option->help : "");
        bool required = (option->flags & SFC_OPTION_REQUIRED) != 0 && option->fallback == NULL;
        fprintf(out, " | %s | %s | %s |\n",
                option->fallback != NULL ? option->fallback
                : required               ? "required"
                                         : "",
                (option->flags & SFC_OPTION_FLAG_ONLY) != 0 ? "no" : "yes",
                (option->flags & SFC_OPTION_RELOAD) != 0 ? "yes" : "");
    }
}

/* What is offered for a value that usage calls so. */
static const char *kind_of(const char *metavar)
{
    return strstr(metavar, "FILE") != NULL                                       ? "file"
           : strstr(metavar, "DIR") != NULL || strstr(metavar, "FOLDER") != NULL ? "dir"
                                                                                 : "text";
}

/* "lr X|schedule": what is written small is meant literally. */
static void argument_words(FILE *out, const char *arguments)
{
    unsigned number = 1;
    while (*arguments != '\0') {
        char metavar[64];
        size_t size = strcspn(arguments, " ");
        const char *end = arguments + size;
        bool literal = false;
        snprintf(metavar, sizeof metavar, "%.*s", (int)size, arguments);
        fprintf(out, ":%u", number++);
        while (arguments < end) {
            size = strcspn(arguments, "| ");
            if (islower((unsigned char)*arguments)) {
                fprintf(out, " %.*s", (int)size, arguments);
                literal = true;
            }
            arguments += size + (arguments[size] == '|');
        }
        fprintf(out, literal ? "\n" : " %s\n", kind_of(metavar));
        arguments += strspn(arguments, " ");
    }
}

static void words(FILE *out, const struct sfc_program *program)
{
    const struct sfc_option *option;
    for (size_t i = 0; (option = sfc_program_option(program, i)) != NULL; i++) {
        fprintf(out, "--%s", option->name);
        if (option->choices != NULL) {
            for (const char *const *choice = option->choices; *choice != NULL; choice++) {
                fprintf(out, " %s", *choice);
            }
        } else if (option->type != SFC_OPTION_BOOL) {
            fprintf(out, " %s", kind_of(option->metavar != NULL ? option->metavar : ""));
        }
        fputc('\n', out);
    }
    fputs("--help\n--version\n", out);
    if (program->arguments != NULL) {
        argument_words(out, program->arguments);
    }
}

static char *written(void (*write)(FILE *out, const struct sfc_program *program),
                     const struct sfc_program *program)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return NULL;
    }
    write(out, program);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

char *sfc_options_man(const struct sfc_program *program)
{
    return written(man_page, program);
}

char *sfc_options_markdown(const struct sfc_program *program)
{
    return written(markdown, program);
}

char *sfc_options_words(const struct sfc_program *program)
{
    return written(words, program);
}

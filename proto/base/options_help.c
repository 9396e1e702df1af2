#include "proto/base/options_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 96, INDENT = 30 };

/* Writes text in lines of at most WIDTH columns; the first one starts at `column`, others at
 * indent. */
static void put_wrapped(FILE *out, const char *text, size_t column, size_t indent)
{
    bool first_word = true;
    while (*text != '\0') {
        size_t size = strcspn(text, " \n");
        if (!first_word && column + 1 + size > WIDTH) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
            first_word = true;
        }
        fprintf(out, "%s%.*s", first_word ? "" : " ", (int)size, text);
        column += size + (first_word ? 0 : 1);
        first_word = false;
        text += size;
        if (*text == '\n') {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
            first_word = true;
        }
        text += *text != '\0';
    }
    fputc('\n', out);
}

/* Adds a fact to "help (fact; fact)"; *count facts stand there already. */
static void add_fact(char *text, size_t size, unsigned *count, const char *before, const char *fact)
{
    size_t at = strlen(text);
    if (fact != NULL && fact[0] != '\0') {
        snprintf(text + at, size - at, "%s%s%s", *count == 0 ? " (" : "; ", before, fact);
        (*count)++;
    }
}

void sfc_option_facts(const struct sfc_option *option, char *text, size_t size)
{
    char bounds[256];
    unsigned count = 0;
    bool is_bool = option->type == SFC_OPTION_BOOL;
    sfc_option_bounds(option, bounds, sizeof bounds);
    snprintf(text, size, "%s", option->help != NULL ? option->help : "");
    add_fact(text, size, &count, "", is_bool ? NULL : bounds);
    add_fact(text, size, &count, "in ", option->unit);
    add_fact(text, size, &count, "default ", option->fallback);
    if ((option->flags & SFC_OPTION_REQUIRED) != 0 && option->fallback == NULL) {
        add_fact(text, size, &count, "", "required");
    }
    if (count > 0 && strlen(text) + 1 < size) {
        strcat(text, ")");
    }
}

static void put_line(FILE *out, const char *flag, const char *text)
{
    int n = fprintf(out, "  %s", flag);
    size_t column = n > 0 ? (size_t)n : 0;
    if (column + 2 > INDENT) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", (int)(INDENT - column), "");
    put_wrapped(out, text, INDENT, INDENT);
}

void sfc_option_flag(const struct sfc_option *option, char *out, size_t size)
{
    bool is_bool = option->type == SFC_OPTION_BOOL;
    snprintf(out, size, "--%s%s%s", option->name, is_bool ? "" : " ",
             is_bool ? "" : sfc_option_metavar(option));
}

const struct sfc_option *sfc_program_option(const struct sfc_program *program, size_t index)
{
    if (index < program->count) {
        return &program->options[index];
    }
    index -= program->count;
    return index < SFC_STANDARD_COUNT ? &sfc_standard_options[index] : NULL;
}

const char sfc_options_sources[] =
    "Every option may also stand in the environment (--some-option as SFC_SOME_OPTION) "
    "or in the file of --config (some-option = value). Flags win over the environment, "
    "the environment over the file.";

static void put_option(FILE *out, const struct sfc_option *option)
{
    char flag[160], text[1024];
    sfc_option_flag(option, flag, sizeof flag);
    sfc_option_facts(option, text, sizeof text);
    put_line(out, flag, text);
}

char *sfc_options_help(const struct sfc_program *program)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return NULL;
    }
    fprintf(out, "usage: %s [options]%s%s\n\n", program->name,
            program->arguments != NULL ? " " : "",
            program->arguments != NULL ? program->arguments : "");
    if (program->summary != NULL) {
        put_wrapped(out, program->summary, 0, 0);
        fputc('\n', out);
    }
    fprintf(out, "options:\n");
    const struct sfc_option *option;
    for (size_t i = 0; (option = sfc_program_option(program, i)) != NULL; i++) {
        put_option(out, option);
    }
    put_line(out, "--help", "print this text");
    put_line(out, "--version", "print the version");
    fprintf(out, "\n");
    put_wrapped(out, sfc_options_sources, 0, 0);
    if (program->footer != NULL) {
        fprintf(out, "\n%s\n", program->footer);
    }
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

#include "proto/base/options_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const struct sfc_option sfc_standard_options[SFC_STANDARD_COUNT] = {
    [SFC_STANDARD_LOG_LEVEL] = {.name = "log-level",
                                .type = SFC_OPTION_ENUM,
                                .offset = offsetof(struct sfc_standard, log_level),
                                .fallback = "info",
                                .choices = sfc_log_level_names,
                                .metavar = "LEVEL",
                                .flags = SFC_OPTION_RELOAD,
                                .help = "least important messages to print on stderr"},
    [SFC_STANDARD_LOG_FORMAT] =
        {.name = "log-format",
         .type = SFC_OPTION_ENUM,
         .offset = offsetof(struct sfc_standard, log_format),
         .fallback = "text",
         .choices = sfc_log_format_names,
         .flags = SFC_OPTION_RELOAD,
         .help = "json: each message on stderr is one line with a JSON object: time, level, "
                 "program, pid, message, and run and step where there is a run; where stderr is "
                 "systemd's journal, entries have fields instead, whatever the format"},
    [SFC_STANDARD_CONFIG] = {.name = "config",
                             .type = SFC_OPTION_STRING,
                             .offset = offsetof(struct sfc_standard, config),
                             .metavar = "FILE",
                             .flags = SFC_OPTION_FLAG_ONLY,
                             .help = "read options from FILE: lines \"name = value\", # comments"},
};

const char *sfc_option_metavar(const struct sfc_option *option)
{
    static const char *const words[] = {
        [SFC_OPTION_STRING] = "TEXT", [SFC_OPTION_BOOL] = "yes|no", [SFC_OPTION_U64] = "N",
        [SFC_OPTION_DOUBLE] = "X",    [SFC_OPTION_SIZE] = "SIZE",   [SFC_OPTION_DURATION] = "TIME",
        [SFC_OPTION_ENUM] = "WORD",
    };
    return option->metavar != NULL ? option->metavar : words[option->type];
}

/* A number in the form in which one would write it. */
static void put_number(const struct sfc_option *option, uint64_t value, char *out, size_t size)
{
    static const char *const size_units[] = {"", "K", "M", "G", "T"};
    static const struct {
        const char *name;
        uint64_t ms;
    } times[] = {{"h", 3600000}, {"m", 60000}, {"s", 1000}};
    if (option->type == SFC_OPTION_SIZE) {
        unsigned unit = 0;
        while (unit < 4 && value > 0 && value % 1024 == 0) {
            value /= 1024;
            unit++;
        }
        snprintf(out, size, "%" PRIu64 "%s", value, size_units[unit]);
        return;
    }
    if (option->type == SFC_OPTION_DURATION) {
        for (size_t i = 0; i < 3; i++) {
            if (value > 0 && value % times[i].ms == 0) {
                snprintf(out, size, "%" PRIu64 "%s", value / times[i].ms, times[i].name);
                return;
            }
        }
        snprintf(out, size, "%" PRIu64 "ms", value);
        return;
    }
    snprintf(out, size, "%" PRIu64, value);
}

static void choices_text(const char *const *choices, char *out, size_t size)
{
    size_t at = (size_t)snprintf(out, size, "one of ");
    for (size_t i = 0; choices[i] != NULL && at < size; i++) {
        at += (size_t)snprintf(out + at, size - at, "%s%s", i > 0 ? ", " : "", choices[i]);
    }
}

void sfc_option_bounds(const struct sfc_option *option, char *out, size_t size)
{
    char low[32], high[32];
    out[0] = '\0';
    switch (option->type) {
    case SFC_OPTION_BOOL:
        snprintf(out, size, "yes or no");
        return;
    case SFC_OPTION_ENUM:
        choices_text(option->choices, out, size);
        return;
    case SFC_OPTION_DOUBLE:
        if (option->low != 0 || option->high != 0) {
            snprintf(out, size, "%g to %g", option->low, option->high);
        }
        return;
    default:
        break;
    }
    put_number(option, option->min, low, sizeof low);
    put_number(option, option->max, high, sizeof high);
    const char *what = option->type == SFC_OPTION_STRING ? " bytes" : "";
    if (option->max > 0) {
        snprintf(out, size, "%s to %s%s", low, high, what);
    } else if (option->min > 0) {
        snprintf(out, size, "at least %s%s", low, what);
    }
}

static const char *type_text(enum sfc_option_type type)
{
    static const char *const texts[] = {
        [SFC_OPTION_STRING] = "text",
        [SFC_OPTION_BOOL] = "yes or no",
        [SFC_OPTION_U64] = "a whole number",
        [SFC_OPTION_DOUBLE] = "a number",
        [SFC_OPTION_SIZE] = "a size (4096, 64K, 512M, 8G)",
        [SFC_OPTION_DURATION] = "a time (500ms, 10s, 5m, 2h)",
        [SFC_OPTION_ENUM] = "a word",
    };
    return texts[type];
}

static int refuse(const struct sfc_option *option, const char *shown, const char *text,
                  struct sfc_error *err)
{
    char bounds[256];
    sfc_option_bounds(option, bounds, sizeof bounds);
    if (option->type == SFC_OPTION_ENUM || option->type == SFC_OPTION_BOOL || bounds[0] == '\0') {
        return sfc_fail(err, SFC_EINVAL, "%s: \"%.100s\" is not %s", shown, text,
                        bounds[0] != '\0' ? bounds : type_text(option->type));
    }
    return sfc_fail(err, SFC_EINVAL, "%s: \"%.100s\" is not %s, %s", shown, text,
                    type_text(option->type), bounds);
}

static int parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"yes", "true", "on", "1"};
    static const char *const no[] = {"no", "false", "off", "0"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out = strcmp(text, yes[i]) == 0;
            return SFC_OK;
        }
    }
    return SFC_EINVAL;
}

static int parse_choice(const char *const *choices, const char *text, int *out)
{
    for (int i = 0; choices[i] != NULL; i++) {
        if (strcmp(choices[i], text) == 0) {
            *out = i;
            return SFC_OK;
        }
    }
    return SFC_EINVAL;
}

static bool in_bounds(const struct sfc_option *option, uint64_t value)
{
    return value >= option->min && (option->max == 0 || value <= option->max);
}

static int set_number(const struct sfc_option *option, const char *text, uint64_t *to)
{
    uint64_t value;
    int code = option->type == SFC_OPTION_SIZE       ? sfc_parse_size(text, &value)
               : option->type == SFC_OPTION_DURATION ? sfc_parse_duration(text, &value)
                                                     : sfc_parse_u64(text, &value);
    if (code != SFC_OK || !in_bounds(option, value)) {
        return SFC_EINVAL;
    }
    *to = value;
    return SFC_OK;
}

static int set_double(const struct sfc_option *option, const char *text, double *to)
{
    double value;
    bool bounded = option->low != 0 || option->high != 0;
    if (sfc_parse_double(text, &value) != SFC_OK ||
        (bounded && (value < option->low || value > option->high))) {
        return SFC_EINVAL;
    }
    *to = value;
    return SFC_OK;
}

int sfc_option_set(const struct sfc_option *option, const char *shown, const char *text, void *base,
                   struct sfc_error *err)
{
    void *at = (char *)base + option->offset;
    int code = SFC_EINVAL;
    switch (option->type) {
    case SFC_OPTION_STRING:
        if (in_bounds(option, strlen(text))) {
            *(const char **)at = text;
            code = SFC_OK;
        }
        break;
    case SFC_OPTION_BOOL:
        code = parse_bool(text, at);
        break;
    case SFC_OPTION_ENUM:
        code = parse_choice(option->choices, text, at);
        break;
    case SFC_OPTION_DOUBLE:
        code = set_double(option, text, at);
        break;
    default:
        code = set_number(option, text, at);
        break;
    }
    return code == SFC_OK ? code : refuse(option, shown, text, err);
}

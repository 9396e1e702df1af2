/* Private to proto/base/options*.c. */
#ifndef SFC_BASE_OPTIONS_INTERNAL_H
#define SFC_BASE_OPTIONS_INTERNAL_H

#include "proto/base/log.h"
#include "proto/base/options.h"

/* Options that every program has; their values live in struct sfc_options. */
enum { SFC_STANDARD_LOG_LEVEL, SFC_STANDARD_LOG_FORMAT, SFC_STANDARD_CONFIG, SFC_STANDARD_COUNT };
extern const struct sfc_option sfc_standard_options[SFC_STANDARD_COUNT];

struct sfc_standard {
    int log_level, log_format;
    const char *config;
};

/* Bounds as text: "1 to 100", "at least 1", "one of a, b". Empty when anything goes. */
void sfc_option_bounds(const struct sfc_option *option, char *out, size_t size);

/* Sets the value at base + option->offset. SFC_EINVAL names option (as `shown`), value and bounds.
 * Strings are stored as given (not copied). */
int sfc_option_set(const struct sfc_option *option, const char *shown, const char *text, void *base,
                   struct sfc_error *err);

const char *sfc_option_metavar(const struct sfc_option *option);

/* "--memory SIZE", and what --help says behind it: help, bounds, default. */
void sfc_option_flag(const struct sfc_option *option, char *out, size_t size);
void sfc_option_facts(const struct sfc_option *option, char *out, size_t size);

/* The program's options, then the standard ones; NULL behind the last. */
const struct sfc_option *sfc_program_option(const struct sfc_program *program, size_t index);

/* What stands in every --help about where options may come from. */
extern const char sfc_options_sources[];

/* The size of a value. */
size_t sfc_option_size(const struct sfc_option *option);

#endif

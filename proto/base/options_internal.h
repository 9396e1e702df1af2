/* Private to proto/base/options*.c. */
#ifndef SFC_BASE_OPTIONS_INTERNAL_H
#define SFC_BASE_OPTIONS_INTERNAL_H

#include "proto/base/log.h"
#include "proto/base/options.h"

/* Options that every program has; their values live in struct sfc_options. */
enum { SFC_STANDARD_LOG_LEVEL, SFC_STANDARD_CONFIG, SFC_STANDARD_COUNT };
extern const struct sfc_option sfc_standard_options[SFC_STANDARD_COUNT];

struct sfc_standard {
    int log_level;
    const char *config;
};

/* Bounds as text: "1 to 100", "at least 1", "one of a, b". Empty when anything goes. */
void sfc_option_bounds(const struct sfc_option *option, char *out, size_t size);

/* Sets the value at base + option->offset. SFC_EINVAL names option (as `shown`), value and bounds. Strings
 * are stored as given (not copied). */
int sfc_option_set(const struct sfc_option *option, const char *shown, const char *text, void *base,
                   struct sfc_error *err);

const char *sfc_option_metavar(const struct sfc_option *option);

#endif

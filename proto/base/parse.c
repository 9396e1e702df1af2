#include "proto/base/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int sfc_parse_u64(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    if (*text == '\0') {
        return SFC_EINVAL;
    }
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value)) {
            return SFC_EINVAL;
        }
    }
    *out = value;
    return SFC_OK;
}

/* Decimal only: [-]digits[.digits][e[+-]digits]; the programs run in the "C" locale. */
int sfc_parse_double(const char *text, double *out)
{
    const char *first = *text == '-' ? text + 1 : text;
    if ((*first < '0' || *first > '9') && *first != '.') {
        return SFC_EINVAL;
    }
    if (strspn(first, "0123456789.eE+-") != strlen(first)) {
        return SFC_EINVAL;
    }
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (*end != '\0' || end == text || !isfinite(value)) {
        return SFC_EINVAL;
    }
    *out = value;
    return SFC_OK;
}

struct unit {
    const char *name;
    uint64_t factor;
};

/* Digits, optionally a fraction, and one of the units; the result is rounded down to a whole
 * number. */
static int parse_with_unit(const char *text, const struct unit *units, uint64_t *out)
{
    char number[32];
    size_t size = strspn(text, "0123456789.");
    if (size == 0 || size >= sizeof number) {
        return SFC_EINVAL;
    }
    memcpy(number, text, size);
    number[size] = '\0';
    while (units->name != NULL && strcmp(units->name, text + size) != 0) {
        units++;
    }
    if (units->name == NULL) {
        return SFC_EINVAL;
    }
    uint64_t whole;
    if (sfc_parse_u64(number, &whole) == SFC_OK) {
        return __builtin_mul_overflow(whole, units->factor, out) ? SFC_EINVAL : SFC_OK;
    }
    double value;
    if (sfc_parse_double(number, &value) != SFC_OK) {
        return SFC_EINVAL;
    }
    value *= (double)units->factor;
    if (value >= 0x1p63) {
        return SFC_EINVAL;
    }
    *out = (uint64_t)value;
    return SFC_OK;
}

int sfc_parse_size(const char *text, uint64_t *bytes)
{
    static const struct unit units[] = {
        {"", 1},           {"B", 1},
        {"K", 1ull << 10}, {"KiB", 1ull << 10},
        {"M", 1ull << 20}, {"MiB", 1ull << 20},
        {"G", 1ull << 30}, {"GiB", 1ull << 30},
        {"T", 1ull << 40}, {"TiB", 1ull << 40},
        {NULL, 0},
    };
    uint64_t value;
    int code = parse_with_unit(text, units, &value);
    if (code == SFC_OK) {
        *bytes = value;
    }
    return code;
}

int sfc_parse_duration(const char *text, uint64_t *ms)
{
    static const struct unit units[] = {
        {"", 1000},     {"ms", 1},      {"s", 1000},     {"m", 60000},
        {"min", 60000}, {"h", 3600000}, {"d", 86400000}, {NULL, 0},
    };
    uint64_t value;
    int code = parse_with_unit(text, units, &value);
    if (code == SFC_OK) {
        *ms = value;
    }
    return code;
}

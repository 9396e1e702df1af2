#include "proto/base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/text.h"

const char *sfc_status_text(int code)
{
    switch (code) {
#define X(name, number, text)                                                                      \
    case number:                                                                                   \
        return text;
        SFC_STATUS_MAP(X)
#undef X
    default:
        return "unknown status";
    }
}

const char *sfc_status_name(int code)
{
    switch (code) {
#define X(name, number, text)                                                                      \
    case number:                                                                                   \
        return #name;
        SFC_STATUS_MAP(X)
#undef X
    default:
        return "SFC_UNKNOWN";
    }
}

int sfc_fail(struct sfc_error *err, int code, const char *format, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        int n = vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        sfc_mark_cut(err->text, sizeof err->text, n);
        sfc_clean_text(err->text, true); /* names of files, and words that "%.200s" has cut */
        err->code = code;
    }
    return code;
}

static int code_of_errno(int number)
{
    switch (number) {
    case ENOMEM:
        return SFC_ENOMEM;
    case ENOENT:
        return SFC_ENOTFOUND;
    case EEXIST:
        return SFC_EEXIST;
    case EACCES:
    case EPERM:
        return SFC_EDENIED;
    default:
        return SFC_EIO;
    }
}

int sfc_fail_errno(struct sfc_error *err, const char *format, ...)
{
    int number = errno;
    int code = code_of_errno(number);
    if (err != NULL) {
        char what[sizeof err->text];
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof what, format, args);
        va_end(args);
        sfc_fail(err, code, "%s: %s", what, strerror(number));
    }
    return code;
}

int sfc_prefix(struct sfc_error *err, const char *format, ...)
{
    if (err == NULL) {
        return SFC_EINTERNAL;
    }
    char where[sizeof err->text];
    char what[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
    memcpy(what, err->text, sizeof what);
    return sfc_fail(err, err->code, "%s: %s", where, what);
}

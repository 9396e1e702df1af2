/* Text log of a program on stderr: one line per message, "2026-01-31T12:00:00.123Z info shard: ...".
 * Programs use it; libraries return errors instead. Safe from any thread; a line is written with one
 * write(2), so lines of several processes on one terminal or file don't mix. */
#ifndef SFC_BASE_LOG_H
#define SFC_BASE_LOG_H

#include <stdbool.h>

#include "proto/base/status.h"

enum sfc_log_level {
    SFC_LOG_ERROR,
    SFC_LOG_WARNING,
    SFC_LOG_INFO,
    SFC_LOG_DEBUG,
};

/* "error", "warning", "info", "debug", NULL: the choices of --log-level in order of enum values. */
extern const char *const sfc_log_level_names[];

/* program: the word after the level; must outlive all messages. Default: "shardfc", info. */
void sfc_log_init(const char *program, enum sfc_log_level level);
bool sfc_log_on(enum sfc_log_level level);

/* Control characters and line ends in the message are written as '?': a peer's text can't forge a
 * line. Lines over 1 KiB are cut and end in "...". */
void sfc_log(enum sfc_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define sfc_error_log(...)   sfc_log(SFC_LOG_ERROR, __VA_ARGS__)
#define sfc_warning_log(...) sfc_log(SFC_LOG_WARNING, __VA_ARGS__)
#define sfc_info_log(...)    sfc_log(SFC_LOG_INFO, __VA_ARGS__)
#define sfc_debug_log(...)   sfc_log(SFC_LOG_DEBUG, __VA_ARGS__)

#endif

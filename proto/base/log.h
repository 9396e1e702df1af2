/* Log of a program on stderr: one line per message, "2026-01-31T12:00:00.123Z info shard: ...", or
 * a JSON object. Programs use it; libraries return errors instead. Safe from any thread; a line is
 * written with one write(2), so lines of several processes on one terminal or file don't mix. */
#ifndef SFC_BASE_LOG_H
#define SFC_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

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
/* JSON: {"time","level","program","pid","message"}, and "run" and "step" of sfc_log_at. Whatever
 * bytes a message has, the line is valid: what is no UTF-8 becomes U+FFFD. */
enum sfc_log_form { SFC_LOG_TEXT, SFC_LOG_JSON };
extern const char *const sfc_log_format_names[]; /* "text", "json", NULL */
void sfc_log_format(enum sfc_log_form form);
/* Messages from now on are of this run (0: none), at this step. Any thread. */
void sfc_log_at(uint64_t run, uint64_t step);
void sfc_log_where(uint64_t *run, uint64_t *step);
/* Where messages go instead of stderr; text has no line end. Before other threads start. */
typedef void (*sfc_log_sink)(enum sfc_log_level level, const char *program, const char *text);
void sfc_log_to(sfc_log_sink sink);

/* Control characters and line ends in the message are written as '?': a peer's text can't forge a
 * line. Lines over 1 KiB are cut and end in "...". */
void sfc_log(enum sfc_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define sfc_error_log(...)   sfc_log(SFC_LOG_ERROR, __VA_ARGS__)
#define sfc_warning_log(...) sfc_log(SFC_LOG_WARNING, __VA_ARGS__)
#define sfc_info_log(...)    sfc_log(SFC_LOG_INFO, __VA_ARGS__)
#define sfc_debug_log(...)   sfc_log(SFC_LOG_DEBUG, __VA_ARGS__)

#endif

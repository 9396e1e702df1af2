/* Status codes and error messages. Status codes travel on the wire (docs/PROTOCOL.md), so they are
 * part of the protocol: never renumber them.
 *
 * Convention in all of ShardFC: a function that can fail returns int (an enum sfc_status value) and
 * takes a struct sfc_error * as its last argument, which may be NULL. On failure the error holds
 * the same code and a message that says what failed, where, and what to do. Out parameters are
 * written on success only. Libraries never log and never abort for a runtime error. */
#ifndef SFC_BASE_STATUS_H
#define SFC_BASE_STATUS_H

#include <stddef.h>

#define SFC_STATUS_MAP(X)                                                                          \
    X(SFC_OK, 0, "ok")                                                                             \
    X(SFC_EINVAL, 1, "invalid input")                                                              \
    X(SFC_ENOMEM, 2, "out of memory")                                                              \
    X(SFC_ENOTFOUND, 3, "not found")                                                               \
    X(SFC_EEXIST, 4, "already exists")                                                             \
    X(SFC_ESTATE, 5, "not possible in this state")                                                 \
    X(SFC_ESTALE, 6, "belongs to another run, step, attempt, incarnation or map version")          \
    X(SFC_ECONFLICT, 7, "same key with another body")                                              \
    X(SFC_EUNAVAILABLE, 8, "peer unavailable")                                                     \
    X(SFC_ETIMEOUT, 9, "deadline exceeded")                                                        \
    X(SFC_ECANCELED, 10, "canceled")                                                               \
    X(SFC_ELIMIT, 11, "over a limit")                                                              \
    X(SFC_ECORRUPT, 12, "corrupt data")                                                            \
    X(SFC_EIO, 13, "input/output error")                                                           \
    X(SFC_EUNSUPPORTED, 14, "not supported")                                                       \
    X(SFC_EDEVICE, 15, "device error")                                                             \
    X(SFC_EDENIED, 16, "permission denied")                                                        \
    X(SFC_EINTERNAL, 17, "internal error")

enum sfc_status {
#define X(name, code, text) name = code,
    SFC_STATUS_MAP(X)
#undef X
};

struct sfc_error {
    int code;
    char text[512];
};

/* The short text of a code ("not found"); "unknown status" for a number that is none. */
const char *sfc_status_text(int code);
/* The name of a code ("SFC_ENOTFOUND"), for JSON and logs. */
const char *sfc_status_name(int code);

/* Writes code and the formatted message into err (NULL: nothing) and returns code, so that callers
 * write `return sfc_fail(err, SFC_EINVAL, "...", ...)`. Messages longer than the buffer end in
 * "...". */
int sfc_fail(struct sfc_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Like sfc_fail with ": <strerror(errno)>" added; ENOMEM, ENOENT, EEXIST, EACCES map to their
 * codes, everything else to SFC_EIO. */
int sfc_fail_errno(struct sfc_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "<formatted>: " before the message in err ("load train.idx: line 7: ...") and returns
 * err's code (err NULL: SFC_EINTERNAL, so callers that pass NULL return their own code). */
int sfc_prefix(struct sfc_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif

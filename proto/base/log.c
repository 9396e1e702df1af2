#include "proto/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/text.h"

enum { LINE_MAX_BYTES = 1024 };

const char *const sfc_log_format_names[] = {"text", "json", NULL};
const char *const sfc_log_level_names[] = {"error", "warning", "info", "debug", NULL};

static _Atomic(const char *) log_program = "shardfc";
static atomic_int log_level = SFC_LOG_INFO;
static atomic_int log_form = SFC_LOG_TEXT;
static _Atomic uint64_t log_run, log_step;
static sfc_log_sink log_sink; /* NULL: stderr */

void sfc_log_init(const char *program, enum sfc_log_level level)
{
    atomic_store(&log_program, program);
    atomic_store(&log_level, (int)level);
}

void sfc_log_to(sfc_log_sink sink)
{
    log_sink = sink;
}

void sfc_log_format(enum sfc_log_form form)
{
    atomic_store(&log_form, (int)form);
}

void sfc_log_at(uint64_t run, uint64_t step)
{
    atomic_store(&log_run, run);
    atomic_store(&log_step, step);
}

void sfc_log_where(uint64_t *run, uint64_t *step)
{
    *run = atomic_load(&log_run);
    *step = atomic_load(&log_step);
}

bool sfc_log_on(enum sfc_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* "2026-01-31T12:00:00.123Z"; its length. */
static size_t put_time(char *out, size_t size)
{
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t n = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &parts);
    return n + (size_t)snprintf(out + n, size - n, ".%03ldZ", now.tv_nsec / 1000000);
}

/* Writes "time level program: " and returns its length. */
static size_t put_prefix(char *line, size_t size, enum sfc_log_level level)
{
    size_t n = put_time(line, size);
    int more = snprintf(line + n, size - n, " %s %s: ", sfc_log_level_names[level],
                        atomic_load(&log_program));
    size_t all = n + (more > 0 ? (size_t)more : 0);
    return all < size ? all : size - 1;
}

/* Bytes that are no UTF-8 stay: JSON has a character for them. */
static void clean(char *text)
{
    unsigned char *at = (unsigned char *)text;
    while (*at != '\0') {
        size_t length = sfc_utf8_length(at);
        if (length > 0 && sfc_is_control(at)) {
            memset(at, '?', length);
        }
        at += length > 0 ? length : 1;
    }
}

static void write_all(const char *text, size_t size)
{
    while (size > 0) {
        ssize_t n = write(STDERR_FILENO, text, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return; /* nowhere to tell it */
        }
        text += n;
        size -= (size_t)n;
    }
}

/* ---- JSON */

/* A text without control characters as a JSON string with its quotes; returns its length. out: at
 * least three bytes for each of text and two more. */
static size_t put_string(char *out, const char *text)
{
    size_t n = 0;
    out[n++] = '"';
    while (*text != '\0') {
        size_t length = sfc_utf8_length((const unsigned char *)text);
        if (length == 0) {
            memcpy(out + n, "\xef\xbf\xbd", 3); /* U+FFFD */
            n += 3;
            text++;
            continue;
        }
        if (*text == '"' || *text == '\\') {
            out[n++] = '\\';
        }
        memcpy(out + n, text, length);
        n += length;
        text += length;
    }
    out[n++] = '"';
    return n;
}

static void write_json(enum sfc_log_level level, const char *text)
{
    char line[3 * LINE_MAX_BYTES + 512], when[40];
    uint64_t run, step;
    sfc_log_where(&run, &step);
    put_time(when, sizeof when);
    size_t n = (size_t)snprintf(
        line, 400, "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"%.100s\",\"pid\":%ld", when,
        sfc_log_level_names[level], atomic_load(&log_program), (long)getpid());
    if (run != 0) {
        n += (size_t)snprintf(line + n, 100, ",\"run\":%" PRIu64 ",\"step\":%" PRIu64, run, step);
    }
    n += (size_t)snprintf(line + n, 20, ",\"message\":");
    n += put_string(line + n, text);
    memcpy(line + n, "}\n", 2);
    write_all(line, n + 2);
}

void sfc_log(enum sfc_log_level level, const char *format, ...)
{
    if (!sfc_log_on(level)) {
        return;
    }
    int saved = errno;
    char line[LINE_MAX_BYTES + 1];
    size_t start = put_prefix(line, LINE_MAX_BYTES, level);
    size_t room = LINE_MAX_BYTES - start;
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(line + start, room, format, args);
    va_end(args);
    size_t size = wanted > 0 ? (size_t)wanted : 0;
    if (size >= room) {
        size = room - 1;
        if (size >= 3) {
            memcpy(line + start + size - 3, "...", 3);
        }
    }
    line[start + size] = '\0';
    clean(line + start);
    if (log_sink != NULL) {
        log_sink(level, atomic_load(&log_program), line + start);
    } else if (atomic_load(&log_form) == SFC_LOG_JSON) {
        write_json(level, line + start);
    } else {
        line[start + size] = '\n';
        write_all(line, start + size + 1);
    }
    errno = saved;
}

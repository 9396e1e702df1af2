#include "proto/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1024 };

const char *const sfc_log_level_names[] = {"error", "warning", "info", "debug", NULL};

static _Atomic(const char *) log_program = "shardfc";
static atomic_int log_level = SFC_LOG_INFO;

void sfc_log_init(const char *program, enum sfc_log_level level)
{
    atomic_store(&log_program, program);
    atomic_store(&log_level, (int)level);
}

bool sfc_log_on(enum sfc_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* Writes "time level program: " and returns its length. */
static size_t put_prefix(char *line, size_t size, enum sfc_log_level level)
{
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t n = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &parts);
    int more = snprintf(line + n, size - n, ".%03ldZ %s %s: ", now.tv_nsec / 1000000,
                        sfc_log_level_names[level], atomic_load(&log_program));
    size_t all = n + (more > 0 ? (size_t)more : 0);
    return all < size ? all : size - 1;
}

static void clean(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f) {
            text[i] = '?';
        }
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
    clean(line + start, size);
    line[start + size] = '\n';
    write_all(line, start + size + 1);
    errno = saved;
}

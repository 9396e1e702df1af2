#define SD_JOURNAL_SUPPRESS_LOCATION
#include "proto/base/service.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/log.h"

enum { SLOW_MS = 1000, SOON_MS = 100 };

static atomic_bool told_ready; /* the thread that reloads reads it, too */
static char told_text[200];    /* of the thread that tells */

/* ---- the journal */

static void put_in_journal(enum sfc_log_level level, const char *program, const char *text)
{
    static const int priorities[] = {[SFC_LOG_ERROR] = LOG_ERR,
                                     [SFC_LOG_WARNING] = LOG_WARNING,
                                     [SFC_LOG_INFO] = LOG_INFO,
                                     [SFC_LOG_DEBUG] = LOG_DEBUG};
    uint64_t run, step;
    sfc_log_where(&run, &step);
    if (run != 0) {
        sd_journal_send("MESSAGE=%s", text, "PRIORITY=%d", priorities[level],
                        "SYSLOG_IDENTIFIER=%s", program, "SFC_RUN=%" PRIu64, run,
                        "SFC_STEP=%" PRIu64, step, NULL);
    } else {
        sd_journal_send("MESSAGE=%s", text, "PRIORITY=%d", priorities[level],
                        "SYSLOG_IDENTIFIER=%s", program, NULL);
    }
}

/* The journal says which file its stream is; a stderr that was redirected is another one. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat file;
    return stream != NULL && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &file) == 0 && file.st_dev == device && file.st_ino == inode;
}

void sfc_service_begin(void)
{
    if (stderr_is_journal()) {
        sfc_log_to(put_in_journal);
    }
}

void sfc_service_at(uint64_t run, uint64_t step)
{
    sfc_log_at(run, step);
}

/* ---- the service manager */

uint64_t sfc_service_patience(void)
{
    uint64_t us = 0;
    return sd_watchdog_enabled(0, &us) > 0 ? us / 1000 : 0;
}

uint64_t sfc_service_interval(void)
{
    uint64_t third = sfc_service_patience() / 3;
    if (getenv("NOTIFY_SOCKET") == NULL) {
        return 0;
    }
    if (!told_ready) {
        return SOON_MS;
    }
    return third > 0 && third < SLOW_MS ? third : SLOW_MS;
}

void sfc_service_tell(const struct sfc_service_state *state)
{
    sfc_service_at(state->run, state->step);
    if (strcmp(told_text, state->text) != 0) {
        snprintf(told_text, sizeof told_text, "%s", state->text);
        sd_notifyf(0, "STATUS=%s", told_text);
    }
    if (state->ready && !told_ready) {
        told_ready = true;
        sd_notify(0, "READY=1");
    }
    if (state->working && sfc_service_patience() > 0) {
        sd_notify(0, "WATCHDOG=1");
    }
}

void sfc_service_reloading(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
               (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
}

void sfc_service_reloaded(void)
{
    if (told_ready) {
        sd_notify(0, "READY=1");
    }
}

void sfc_service_stopping(void)
{
    sd_notify(0, "STOPPING=1");
}

void sfc_service_extend(uint64_t ms)
{
    sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, ms * 1000);
}

#include "server/ctl/command.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BEARS_S  60.0
#define BEARS_MS 200

const char *const sfc_elastic_names[] = {"manual", "auto", NULL};

int sfc_command_failed(const char *command, const struct sfc_error *err)
{
    fprintf(stderr, "shardfc %s: %s\n", command, err->text);
    switch (err->code) {
    case SFC_EINVAL:
    case SFC_ENOTFOUND:
    case SFC_EEXIST:
    case SFC_ECORRUPT:
    case SFC_EUNSUPPORTED:
        return 2;
    default:
        return 1;
    }
}

void sfc_command_json(json_t *object)
{
    char *text = object == NULL ? NULL : json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(12));
    if (text != NULL) {
        puts(text);
    }
    free(text);
    json_decref(object);
}

void sfc_command_say_state(const Shardfc__V1__ControlReply *reply, bool json)
{
    if (json) {
        sfc_command_json(
            json_pack("{s:s, s:I}", "state", reply->state, "step", (json_int_t)reply->step));
    } else {
        printf("%s at step %" PRIu64 "\n", reply->state, reply->step);
    }
}

size_t sfc_command_columns(void)
{
    struct winsize size;
    if (isatty(STDOUT_FILENO) == 0) {
        return 0;
    }
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

double sfc_command_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void sfc_command_wait(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&pause, NULL);
}

void sfc_command_progress(struct sfc_command_progress *p, uint64_t done, uint64_t total)
{
    double now = sfc_command_clock();
    if (p->started == 0) {
        p->started = p->last = now;
        p->first = done > 1 ? done : 0; /* 1: the first piece of work is done */
        p->last_percent = -1;
    }
    bool terminal = isatty(STDERR_FILENO) != 0;
    uint64_t since = done > p->first ? done - p->first : 0; /* a run may go back */
    int percent = total <= p->first ? 100 : (int)(100 * since / (total - p->first));
    bool due = now - p->last >= (terminal ? 0.2 : 2.0) && (terminal || percent != p->last_percent);
    if (!due && done < total) {
        return;
    }
    if (done == total && p->last_percent == 100) {
        return;
    }
    p->last = now;
    p->last_percent = percent;
    double elapsed = now - p->started;
    double rate = elapsed > 0 ? (double)since / elapsed : 0;
    char left[48] = "";
    if (rate > 0)
        snprintf(left, sizeof left, ", %.0f s left", (double)(total - done) / rate);
    fprintf(stderr, "%s%s %" PRIu64 "/%" PRIu64 " %s (%d %%), %.*f %s/s%s%s",
            terminal ? "\r\033[K" : "", p->what, done, total, p->unit, percent, rate < 10 ? 2 : 0,
            rate, p->unit, left, terminal && done < total ? "" : "\n");
}

void sfc_command_progress_end(struct sfc_command_progress *p)
{
    if (p->started != 0 && p->last > p->started && p->last_percent < 100 &&
        isatty(STDERR_FILENO) != 0) {
        fputc('\n', stderr);
    }
    p->started = 0;
}

void sfc_command_waiting(struct sfc_command_waiting *w, const char *text)
{
    double now = sfc_command_clock();
    bool terminal = isatty(STDERR_FILENO) != 0;
    bool same = strncmp(w->text, text, sizeof w->text - 1) == 0;
    double pause = same ? 30 : terminal ? 0.2 : 10;
    if (w->last != 0 && now - w->last < pause) {
        return;
    }
    w->last = now;
    snprintf(w->text, sizeof w->text, "%s", text);
    fprintf(stderr, "%s%s%s", terminal ? "\r\033[K" : "", w->text, terminal ? "" : "\n");
}

void sfc_command_waited(struct sfc_command_waiting *w)
{
    if (w->last != 0 && isatty(STDERR_FILENO) != 0) {
        fputc('\n', stderr);
    }
    *w = (struct sfc_command_waiting){0};
}

bool sfc_command_is_silence(int code)
{
    return code == SFC_EUNAVAILABLE || code == SFC_ETIMEOUT;
}

bool sfc_command_bears(struct sfc_command_silence *silence, int code, const struct sfc_error *err)
{
    double now = sfc_command_clock();
    if (!sfc_command_is_silence(code)) {
        sfc_command_waited(&silence->waiting);
        silence->since = 0;
        return false;
    }
    silence->since = silence->since != 0 ? silence->since : now;
    if (now - silence->since >= BEARS_S) {
        return false;
    }
    sfc_command_waiting(&silence->waiting, err->text);
    sfc_command_wait(BEARS_MS);
    return true;
}

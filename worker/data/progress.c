#include "worker/data/progress.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void sfc_progress_begin(struct sfc_progress_clock *clock)
{
    clock->start = seconds_now();
    clock->last = 0;
}

int sfc_progress_tell(struct sfc_progress_clock *clock, sfc_progress_fn progress, void *arg,
                      const char *phase, const char *unit, uint64_t done, uint64_t total,
                      struct sfc_error *err)
{
    double now = seconds_now();
    if (progress == NULL || (done < total && now - clock->last < 0.25))
        return SFC_OK;
    clock->last = now;
    struct sfc_progress p = {phase, unit, done, total, now - clock->start};
    return progress(arg, &p) ? SFC_OK : sfc_fail(err, SFC_ECANCELED, "%s was stopped", phase);
}

void sfc_progress_text(const struct sfc_progress *p, char *out, size_t size)
{
    double rate = p->seconds > 0 ? (double)p->done / p->seconds : 0;
    double percent = p->total > 0 ? 100.0 * (double)p->done / (double)p->total : 0;
    int n =
        snprintf(out, size, "%s %llu/%llu %s %.0f %% %.0f/s", p->phase, (unsigned long long)p->done,
                 (unsigned long long)p->total, p->unit, percent, rate);
    if (n < 0 || (size_t)n >= size)
        return;
    if (p->done == p->total)
        snprintf(out + n, size - (size_t)n, " in %.1f s", p->seconds);
    else if (rate > 0)
        snprintf(out + n, size - (size_t)n, " ETA %.0f s", (double)(p->total - p->done) / rate);
}

bool sfc_progress_print(void *arg, const struct sfc_progress *progress)
{
    struct sfc_progress_printer *printer = arg;
    double now = seconds_now();
    bool terminal = isatty(fileno(printer->file)) == 1;
    bool last = progress->done == progress->total;
    if (!last && now - printer->last < (terminal ? 1.0 : 5.0))
        return true;
    char text[160];
    sfc_progress_text(progress, text, sizeof text);
    if (terminal)
        fprintf(printer->file, "\r\033[K%s%s", text, last ? "\n" : "");
    else
        fprintf(printer->file, "%s\n", text);
    fflush(printer->file);
    printer->last = now;
    return true;
}

/* Progress of a long data job, told by the library and shown by a program. */
#ifndef SFC_WORKER_DATA_PROGRESS_H
#define SFC_WORKER_DATA_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/status.h"

struct sfc_progress {
    const char *phase; /* "survey", "render", "pairs", "pack" */
    const char *unit;  /* "glyphs", "files" */
    uint64_t done, total;
    double seconds; /* since the phase began */
};

/* Called from the thread that started the job, at most a few times per second and once at the end
 * of each phase (done == total). Returning false cancels the job (SFC_ECANCELED). */
typedef bool (*sfc_progress_fn)(void *arg, const struct sfc_progress *progress);

/* "survey 120000/260000 glyphs 46 % 9870/s ETA 14 s" into out. */
void sfc_progress_text(const struct sfc_progress *progress, char *out, size_t size);
/* A ready-made sfc_progress_fn: arg is a struct sfc_progress_printer; a line per second on a
 * terminal (overwritten), every five seconds elsewhere. */
struct sfc_progress_printer {
    FILE *file;
    double last; /* 0 at start */
};
bool sfc_progress_print(void *arg, const struct sfc_progress *progress);

/* For the jobs: tells progress at most four times a second and at the end; SFC_ECANCELED when it
 * says so. */
struct sfc_progress_clock {
    double start, last;
};
void sfc_progress_begin(struct sfc_progress_clock *clock);
int sfc_progress_tell(struct sfc_progress_clock *clock, sfc_progress_fn progress, void *arg,
                      const char *phase, const char *unit, uint64_t done, uint64_t total,
                      struct sfc_error *err);

#endif

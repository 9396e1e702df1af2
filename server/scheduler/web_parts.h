/* What the scheduler's pages are made of: web.c asks for each once a second. Loop thread. */
#ifndef SFC_SCHEDULER_WEB_PARTS_H
#define SFC_SCHEDULER_WEB_PARTS_H

#include "proto/daemon_metrics.h"
#include "server/scheduler/scheduler_internal.h"

/* What a page was made of: while it is the same, so is the page. */
struct sfc_web_mark {
    bool made;
    unsigned waits; /* seconds until what failed is tried again, unless something changes */
    uint64_t numbers[5];
};

struct sfc_web {
    struct sfc_scheduler *scheduler;
    struct sfc_http *http;
    uv_timer_t timer;
    struct sfc_certificate_metric certificate;
    struct sfc_web_mark series, blocks, events, runs;
    bool reading_events, reading_runs; /* a task of the store is under way */
};

enum { SFC_WEB_WAITS = 30 };
/* true: something is different, and the mark says so now. */
bool sfc_web_changed(struct sfc_web_mark *mark, const uint64_t numbers[5]);

/* The status page (server/scheduler/page). */
extern const struct sfc_http_file sfc_page[];
extern const size_t sfc_page_count;

void sfc_web_put_series(struct sfc_web *web); /* web_series.c */
void sfc_web_put_blocks(struct sfc_web *web); /* web_blocks.c */
void sfc_web_put_events(struct sfc_web *web); /* web_events.c */
void sfc_web_put_runs(struct sfc_web *web);   /* web_runs.c */

#endif

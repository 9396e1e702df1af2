/* /api/series: curves of the run (server/core/series.h), a point as
 * [first step, last step, loss, least loss, greatest loss, learning rate, images per second]. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "server/scheduler/web_parts.h"

/* JSON has no NaN. */
static const char *number(double value, char out[32])
{
    snprintf(out, 32, isfinite(value) ? "%.6g" : "null", value);
    return out;
}

static void add_point(struct sfc_http_list *list, const struct sfc_series_point *p)
{
    char text[256], loss[32], least[32], most[32], lr[32], rate[32];
    snprintf(text, sizeof text, "[%" PRIu64 ",%" PRIu64 ",%s,%s,%s,%s,%s]", p->first, p->last,
             number(sfc_series_loss(p), loss), number(p->losses ? p->loss_min : NAN, least),
             number(p->losses ? p->loss_max : NAN, most), number(p->lr, lr),
             number(sfc_series_rate(p), rate));
    sfc_http_list_item(list, p->last, text);
}

/* Readers that know this version have all points but the newest one as they are. */
static void add_head(const struct sfc_scheduler *s, struct sfc_http_list *list)
{
    char text[256];
    const struct sfc_sched_run *run = s->run;
    snprintf(text, sizeof text,
             "{\"run_id\":%" PRIu64 ",\"version\":\"%" PRIu64 ".%" PRIu64
             "\",\"steps_per_point\":%" PRIu64 ",\"points\":[",
             run ? run->id : 0, s->incarnation, run ? run->series.changed : 0,
             run ? run->series.length : 0);
    sfc_http_list_head(list, text);
}

void sfc_web_put_series(struct sfc_web *w)
{
    const struct sfc_sched_run *run = w->scheduler->run;
    const struct sfc_series *series = run ? &run->series : NULL;
    const uint64_t mark[5] = {run ? run->id : 0, series ? series->changed : 0,
                              series ? series->count : 0,
                              series && series->count ? series->points[series->count - 1].last : 0};
    struct sfc_http_list list = {0};
    if (!sfc_web_changed(&w->series, mark))
        return;
    add_head(w->scheduler, &list);
    for (uint32_t i = 0; series && i < series->count; i++)
        add_point(&list, &series->points[i]);
    sfc_http_list_tail(&list, "]}");
    w->series.made = !list.failed;
    sfc_http_put_items(w->http, SFC_HTTP_SERIES, &list);
}

/* What the scheduler shows over HTTP (--http): once a second the status becomes metrics and JSON,
 * which a thread of its own serves (proto/http.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/daemon_metrics.h"
#include "server/run/status_json.h"
#include "server/run/status_metrics.h"
#include "server/scheduler/web_parts.h"

enum { REFRESH_MS = 1000 };

bool sfc_web_changed(struct sfc_web_mark *mark, const uint64_t numbers[5])
{
    bool same = memcmp(mark->numbers, numbers, sizeof mark->numbers) == 0;
    if (same && !mark->made && mark->waits > 0) {
        mark->waits--;
        return false;
    }
    same = same && mark->made;
    mark->waits = 0;
    memcpy(mark->numbers, numbers, sizeof mark->numbers);
    mark->made = true;
    return !same;
}

static void put(struct sfc_web *w, enum sfc_http_page page, char *text)
{
    if (text)
        sfc_http_put(w->http, page, text);
}

/* What the program takes, and its phases of steps. */
static void add_self(const struct sfc_scheduler *s, struct sfc_metrics *metrics)
{
    struct sfc_rpc_traffic traffic = sfc_rpc_loop_traffic(s->rpc);
    sfc_metrics_process(metrics);
    sfc_metrics_traffic(metrics, &traffic);
    sfc_metrics_phases(metrics, "shardfc_scheduler_phase_seconds",
                       "What a step took here, by phase; ask_: one shard's answer.", s->spans,
                       SFC_SPAN_COMPUTE, SFC_SPAN_SET_MAP);
}

static void put_status(struct sfc_web *w)
{
    Shardfc__V1__StatusReply *status = sfc_sched_status(w->scheduler);
    if (!status)
        return; /* no memory: the pages of a second ago stay */
    struct sfc_metrics metrics = {0};
    sfc_status_metrics(status, &w->scheduler->step_durations, &metrics);
    sfc_metrics_certificate(&metrics, &w->certificate, w->scheduler->options->security.tls);
    add_self(w->scheduler, &metrics);
    put(w, SFC_HTTP_METRICS, sfc_metrics_take(&metrics));
    json_t *json = sfc_status_json(status);
    put(w, SFC_HTTP_STATUS, json ? json_dumps(json, JSON_COMPACT) : NULL);
    json_decref(json);
    sfc_sched_status_free(status);
}

static void refresh(uv_timer_t *timer)
{
    struct sfc_web *w = timer->data;
    bool leads = w->scheduler->timer_open; /* it has taken the state up and serves */
    if (leads) {
        put_status(w);
        sfc_web_put_series(w);
        sfc_web_put_blocks(w);
        sfc_web_put_events(w);
        sfc_web_put_runs(w);
    }
    sfc_http_alive(w->http, leads ? NULL : "standing by: another scheduler leads, or none yet");
}

int sfc_web_start(struct sfc_scheduler *s, struct sfc_error *err)
{
    if (!s->options->http)
        return SFC_OK;
    struct sfc_web *w = calloc(1, sizeof *w);
    if (!w)
        return sfc_fail(err, SFC_ENOMEM, "no memory for pages");
    int port = 0,
        code = sfc_http_start(s->options->http, &s->options->security, &w->http, &port, err);
    if (code == SFC_OK)
        code = sfc_http_put_files(w->http, sfc_page, sfc_page_count, err);
    if (code != SFC_OK) {
        sfc_http_stop(w->http);
        free(w);
        return sfc_prefix(err, "--http"), code;
    }
    sfc_http_print(s->options->http, port);
    sfc_sched_address(s->options->http, port, s->pages);
    w->scheduler = s;
    s->web = w;
    uv_timer_init(s->uv, &w->timer);
    w->timer.data = w;
    uv_timer_start(&w->timer, refresh, 0, REFRESH_MS);
    return SFC_OK;
}

void sfc_web_stop(struct sfc_scheduler *s)
{
    if (s->web)
        uv_close((uv_handle_t *)&s->web->timer, NULL);
}

void sfc_web_free(struct sfc_scheduler *s)
{
    if (s->web)
        sfc_http_stop(s->web->http);
    free(s->web);
    s->web = NULL;
}

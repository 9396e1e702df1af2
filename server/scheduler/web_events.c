/* /api/events: the last ones, read from the store when there are others. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/base/log.h"
#include "server/scheduler/web_parts.h"

enum { EVENTS = 200 };

struct events_task {
    struct sfc_store_task task;
    struct sfc_web *web;
    size_t count;
    struct sfc_store_event events[EVENTS];
};

static void events_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct events_task *t = (struct events_task *)task;
    task->code = sfc_store_events(store, 0, true, EVENTS, t->events, &t->count, &task->error);
}

/* A text that was cut off may end within a character: JSON has whole ones only. */
static json_t *text_json(const char *text)
{
    char plain[sizeof((struct sfc_store_event *)0)->text];
    json_t *json = json_string(text);
    if (json)
        return json;
    snprintf(plain, sizeof plain, "%s", text);
    for (char *c = plain; *c; c++)
        *c = *c & 0x80 ? '?' : *c;
    return json_string(plain);
}

/* NULL: no memory. */
static char *event_text(const struct sfc_store_event *e)
{
    json_t *json = json_pack("{s:I, s:I, s:I, s:o, s:o}", "id", (json_int_t)e->id, "time_ms",
                             (json_int_t)e->time_ms, "run_id", (json_int_t)e->run_id, "who",
                             text_json(e->who), "text", text_json(e->text));
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    return text;
}

static void put_events(struct events_task *t)
{
    struct sfc_http_list list = {0};
    char head[64];
    snprintf(head, sizeof head, "{\"incarnation\":%" PRIu64 ",\"events\":[",
             t->web->scheduler->incarnation);
    sfc_http_list_head(&list, head);
    for (size_t i = 0; i < t->count; i++) {
        char *text = event_text(&t->events[i]);
        if (text)
            sfc_http_list_item(&list, t->events[i].id, text);
        else
            list.failed = true;
        free(text);
    }
    sfc_http_list_tail(&list, "]}");
    t->web->events.made = t->web->events.made && !list.failed;
    sfc_http_put_items(t->web->http, SFC_HTTP_EVENTS, &list);
}

static void events_done(struct sfc_store_task *task)
{
    struct events_task *t = (struct events_task *)task;
    t->web->reading_events = false;
    if (task->code == SFC_OK) {
        put_events(t);
    } else {
        t->web->events.made = false;
        t->web->events.waits = SFC_WEB_WAITS;
        sfc_error_log("events for the status page: %s", task->error.text);
    }
    free(t);
}

void sfc_web_put_events(struct sfc_web *w)
{
    const uint64_t mark[5] = {w->scheduler->events_stored};
    struct events_task *t;
    if (w->reading_events || !sfc_web_changed(&w->events, mark))
        return;
    if (!(t = calloc(1, sizeof *t))) {
        w->events.made = false; /* in a second again */
        return;
    }
    t->web = w;
    t->task.work = events_work;
    t->task.done = events_done;
    w->reading_events = true;
    sfc_store_queue_submit(&w->scheduler->queue, &t->task);
}

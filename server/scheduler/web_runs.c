/* /api/runs: the newest runs that the store knows, read again when the present one is another, or
 * in another state. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "proto/base/log.h"
#include "server/scheduler/web_parts.h"

enum { RUNS = 20 };

struct line {
    uint64_t id, step, steps, first_us, last_us;
    char name[SFC_LIMIT_NAME + 1], state[16], reason[512];
    double loss;
};

struct runs_task {
    struct sfc_store_task task;
    struct sfc_web *web;
    size_t count;
    struct line lines[RUNS];
};

/* What its configuration and its commits say. */
static int read_line(struct sfc_store *store, const struct sfc_store_run *run, struct line *out,
                     struct sfc_error *err)
{
    int code;
    struct sfc_store_commit first, last;
    size_t count = 0;
    Shardfc__V1__RunConfig *config = sfc_unpack((struct sfc_bytes){run->config, run->config_size},
                                                &shardfc__v1__run_config__descriptor, &code);
    if (!config)
        return sfc_fail(err, code, "the configuration of run %llu",
                        (unsigned long long)run->run_id);
    *out = (struct line){
        .id = run->run_id, .step = run->start_step, .steps = config->steps, .loss = (double)NAN};
    snprintf(out->name, sizeof out->name, "%s", config->name);
    snprintf(out->state, sizeof out->state, "%s", run->state);
    snprintf(out->reason, sizeof out->reason, "%s", run->reason);
    sfc_message_free(config);
    code = sfc_store_last_commit(store, run->run_id, &last, err);
    if (code == SFC_ENOTFOUND)
        return SFC_OK;
    if (code == SFC_OK)
        code = sfc_store_history(store, run->run_id, 0, 1, &first, &count, err);
    if (code == SFC_OK) {
        out->step = last.step;
        out->loss = last.loss;
        out->last_us = last.time_us;
        out->first_us = count ? first.time_us : last.time_us;
    }
    return code;
}

static void runs_work(struct sfc_store_task *task, struct sfc_store *store)
{
    struct runs_task *t = (struct runs_task *)task;
    uint64_t before = UINT64_MAX;
    while (task->code == SFC_OK && t->count < RUNS) {
        struct sfc_store_run run;
        task->code = sfc_store_run_before(store, before, &run, &task->error);
        if (task->code != SFC_OK)
            break;
        before = run.run_id;
        task->code = read_line(store, &run, &t->lines[t->count], &task->error);
        sfc_store_run_close(&run);
        t->count += task->code == SFC_OK;
    }
    if (task->code == SFC_ENOTFOUND)
        task->code = SFC_OK; /* that was the oldest */
}

static json_t *line_json(const struct line *l)
{
    return json_pack("{s:I, s:s, s:s, s:s, s:I, s:I, s:o, s:I, s:I}", "run_id", (json_int_t)l->id,
                     "run", l->name, "state", l->state, "reason", l->reason, "step",
                     (json_int_t)l->step, "steps", (json_int_t)l->steps, "loss",
                     isfinite(l->loss) ? json_real(l->loss) : json_null(), "first_ms",
                     (json_int_t)(l->first_us / 1000), "last_ms", (json_int_t)(l->last_us / 1000));
}

static void put_lines(struct runs_task *t)
{
    json_t *list = json_array(), *all = json_pack("{s:o}", "runs", list);
    for (size_t i = 0; i < t->count; i++)
        json_array_append_new(list, line_json(&t->lines[i]));
    char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    json_decref(all);
    t->web->runs.made = t->web->runs.made && text;
    if (text)
        sfc_http_put(t->web->http, SFC_HTTP_RUNS, text);
}

static void runs_done(struct sfc_store_task *task)
{
    struct runs_task *t = (struct runs_task *)task;
    t->web->reading_runs = false;
    if (task->code == SFC_OK) {
        put_lines(t);
    } else {
        t->web->runs.made = false;
        t->web->runs.waits = SFC_WEB_WAITS;
        sfc_error_log("runs for the status page: %s", task->error.text);
    }
    free(t);
}

void sfc_web_put_runs(struct sfc_web *w)
{
    const struct sfc_sched_run *run = w->scheduler->run;
    const uint64_t mark[5] = {w->scheduler->last_run_id, run ? run->state_number : 0,
                              run ? run->stored_number : 0, run ? (uint64_t)run->fsm.state : 0};
    struct runs_task *t;
    if (w->reading_runs || !sfc_web_changed(&w->runs, mark))
        return;
    if (!(t = calloc(1, sizeof *t))) {
        w->runs.made = false; /* in a second again */
        return;
    }
    t->web = w;
    t->task.work = runs_work;
    t->task.done = runs_done;
    w->reading_runs = true;
    sfc_store_queue_submit(&w->scheduler->queue, &t->task);
}

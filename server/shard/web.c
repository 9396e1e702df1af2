#include "server/shard/web.h"

#include <stdlib.h>

#include "proto/daemon_metrics.h"
#include "server/shard/shard_internal.h"

enum { REFRESH_MS = 1000 };

struct sfc_shard_web {
    struct sfc_shard *shard;
    struct sfc_http *http;
    uv_timer_t timer;
    bool timer_open;
    struct sfc_certificate_metric certificate;
};

static void add_run(const struct sfc_shard_run *run, struct sfc_metrics *m)
{
    Shardfc__V1__ShardDurability durability = SHARDFC__V1__SHARD_DURABILITY__INIT;
    Shardfc__V1__MoveProgress move = SHARDFC__V1__MOVE_PROGRESS__INIT;
    bool open = run != NULL && run->open;
    uint64_t step = open ? sfc_step_applied(&run->fsm) : 0;
    if (open)
        sfc_durability_report(run, &durability);
    bool moves = open && sfc_move_report(run, &move);
    uint64_t kept =
        durability.has_floor && durability.log_floor < step ? durability.log_floor : step;
    sfc_metrics_gauge(m, "shardfc_shard_applied_step", "Last step that is applied to the blocks.",
                      (double)step);
    sfc_metrics_gauge(m, "shardfc_shard_owned_blocks", "Blocks of the open run.",
                      open ? (double)(run->class_count + run->dense_count) : 0);
    sfc_metrics_gauge(m, "shardfc_shard_run_memory_bytes",
                      "Memory of the open run, on the device where there is one.",
                      run ? (double)(run->resident + run->on_device) : 0);
    sfc_metrics_gauge(m, "shardfc_shard_log_size_bytes", "Size of the step log.",
                      (double)durability.log_bytes);
    sfc_metrics_gauge(m, "shardfc_shard_log_lag_steps",
                      "Steps that a recovery now would go through again.", (double)(step - kept));
    sfc_metrics_gauge(m, "shardfc_shard_snapshot_age_steps",
                      "Steps since the oldest newest snapshot of a block.",
                      (double)durability.snapshot_lag);
    sfc_metrics_gauge(m, "shardfc_shard_disk_error", "1 while the disk refuses.",
                      durability.error != NULL && durability.error[0] != '\0');
    sfc_metrics_gauge(m, "shardfc_shard_move_copied_bytes",
                      "Bytes copied of the blocks that are on their way to this shard.",
                      moves ? (double)move.copied : 0);
}

static void add_memory(const struct sfc_shard *shard, struct sfc_metrics *m)
{
    struct sfc_device_memory device = {0};
    sfc_metrics_gauge(m, "shardfc_shard_memory_budget_bytes", "Memory that runs may use.",
                      (double)(shard->device_limit ? shard->device_limit : shard->memory_limit));
    if (!shard->device_limit ||
        sfc_backend_device_memory(sfc_compute_backend(shard->compute), &device, NULL) != SFC_OK)
        return;
    sfc_metrics_gauge(m, "shardfc_shard_gpu_memory_bytes", "Memory of the GPU.",
                      (double)device.total_bytes);
    sfc_metrics_gauge(m, "shardfc_shard_gpu_memory_free_bytes", "Of it, what is free.",
                      (double)device.free_bytes);
}

static char *make_metrics(struct sfc_shard_web *w)
{
    const struct sfc_shard *shard = w->shard;
    struct sfc_metrics m = {0};
    struct sfc_rpc_traffic traffic = sfc_rpc_loop_traffic(shard->rpc);
    sfc_metrics_build(&m);
    sfc_metrics_process(&m);
    sfc_metrics_traffic(&m, &traffic);
    sfc_metrics_certificate(&m, &w->certificate, shard->options->security.tls);
    sfc_metrics_gauge(&m, "shardfc_shard_registered", "1 while the scheduler knows this shard.",
                      shard->id != 0);
    add_memory(shard, &m);
    add_run(shard->run, &m);
    sfc_metrics_counter(&m, "shardfc_shard_sampled_rows_total",
                        "Rows of class centres that planned steps have sampled.",
                        (double)shard->sampled_rows);
    sfc_metrics_counter(&m, "shardfc_shard_zero_features_total",
                        "Features of length zero, whose gradient is zero.",
                        (double)shard->zero_features);
    sfc_metrics_errors(&m, "shardfc_shard_errors_total", "Calls that were refused, by status.",
                       shard->refused);
    sfc_metrics_phases(&m, "shardfc_shard_phase_seconds", "What a step's work here took, by phase.",
                       shard->spans, SFC_SPAN_QUEUE, SFC_SPAN_TAKE_MAP);
    sfc_metrics_more_phases(&m, "shardfc_shard_phase_seconds", shard->spans, SFC_SPAN_STAGE,
                            SFC_SPAN_LAND);
    return sfc_metrics_take(&m);
}

static void refresh(uv_timer_t *timer)
{
    struct sfc_shard_web *w = timer->data;
    struct sfc_service_state state = {0};
    char *text = make_metrics(w);
    if (text)
        sfc_http_put(w->http, SFC_HTTP_METRICS, text);
    sfc_shard_look(w->shard, &state);
    if (state.working)
        sfc_http_alive(w->http, state.ready ? NULL : state.text);
}

int sfc_shard_web_start(struct sfc_shard *shard, struct sfc_error *err)
{
    const char *listen = shard->options->http;
    int port = 0;
    if (!listen)
        return SFC_OK;
    struct sfc_shard_web *w = calloc(1, sizeof *w);
    if (!w)
        return sfc_fail(err, SFC_ENOMEM, "no memory for pages");
    w->shard = shard;
    shard->web = w; /* freed with the shard, whatever happens */
    int code = sfc_http_start(listen, &shard->options->security, &w->http, &port, err);
    if (code != SFC_OK)
        return sfc_prefix(err, "--http"), code;
    sfc_http_print(listen, port);
    uv_timer_init(shard->uv, &w->timer);
    w->timer.data = w;
    w->timer_open = true;
    uv_timer_start(&w->timer, refresh, 0, REFRESH_MS);
    return SFC_OK;
}

void sfc_shard_web_stop(struct sfc_shard *shard)
{
    if (shard->web && shard->web->timer_open)
        uv_close((uv_handle_t *)&shard->web->timer, NULL);
}

void sfc_shard_web_free(struct sfc_shard *shard)
{
    if (shard->web)
        sfc_http_stop(shard->web->http);
    free(shard->web);
    shard->web = NULL;
}

#include "worker/pages.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "proto/daemon_metrics.h"

#define REFRESH_S 1

struct sfc_pages {
    struct sfc_pages_options options;
    struct sfc_http *http;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop; /* under lock */
    struct sfc_certificate_metric certificate;
};

static double total(const _Atomic uint64_t *of)
{
    return (double)atomic_load_explicit(of, memory_order_relaxed);
}

static void add_work(const struct sfc_pages *p, const struct sfc_worker_health *health,
                     struct sfc_metrics *m)
{
    const struct sfc_worker_totals *t = p->options.totals;
    uint64_t errors[SFC_EINTERNAL + 1];
    for (int code = 0; code <= SFC_EINTERNAL; code++)
        errors[code] = (uint64_t)total(&t->errors[code]);
    sfc_metrics_gauge(m, "shardfc_worker_joined", "1 while it takes part in a run.",
                      health->joined);
    sfc_metrics_gauge(m, "shardfc_worker_threads", "Lanes: micro-batches computed side by side.",
                      p->options.threads);
    sfc_metrics_gauge(m, "shardfc_worker_step", "Last step that it knows to be committed.",
                      total(&t->step));
    sfc_metrics_counter(m, "shardfc_worker_images_total",
                        "Rows of micro-batches that were done and accepted.", total(&t->images));
    sfc_metrics_counter(m, "shardfc_worker_done_micro_batches_total",
                        "Micro-batches that were done and accepted.", total(&t->micro_batches));
    sfc_metrics_counter(m, "shardfc_worker_given_up_micro_batches_total",
                        "Grants that were given back.", total(&t->given_up));
    sfc_metrics_counter(m, "shardfc_worker_read_micro_batches_total",
                        "Micro-batches that were read and announced.", total(&t->batches_read));
    sfc_metrics_errors(m, "shardfc_worker_errors_total", "Why grants were given back, by status.",
                       errors);
}

static void refresh(struct sfc_pages *p)
{
    struct sfc_metrics m = {0};
    struct sfc_worker_health health = {0};
    struct sfc_rpc_traffic traffic = sfc_rpc_loop_traffic(p->options.rpc);
    p->options.look(p->options.ctx, &health);
    sfc_metrics_build(&m);
    sfc_metrics_process(&m);
    sfc_metrics_traffic(&m, &traffic);
    sfc_metrics_certificate(&m, &p->certificate, p->options.security->tls);
    add_work(p, &health, &m);
    sfc_metrics_phases(&m, "shardfc_worker_phase_seconds",
                       "What a micro-batch's work here took, by phase.", p->options.spans,
                       SFC_SPAN_TICKET, SFC_SPAN_JOIN);
    char *text = sfc_metrics_take(&m);
    if (text)
        sfc_http_put(p->http, SFC_HTTP_METRICS, text);
    if (health.working)
        sfc_http_alive(p->http, health.ready ? NULL : "the scheduler has not answered yet");
}

static void *work(void *arg)
{
    struct sfc_pages *p = arg;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        pthread_mutex_unlock(&p->lock);
        refresh(p);
        pthread_mutex_lock(&p->lock);
        until.tv_sec += REFRESH_S;
        while (!p->stop && !pthread_cond_timedwait(&p->wake, &p->lock, &until)) {
            /* woken, not timed out */
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int sfc_pages_start(const struct sfc_pages_options *options, struct sfc_pages **out,
                    struct sfc_error *err)
{
    struct sfc_pages *p = calloc(1, sizeof *p);
    int port = 0;
    if (!p)
        return sfc_fail(err, SFC_ENOMEM, "no memory for pages");
    p->options = *options;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&p->lock, NULL);
    int code = sfc_http_start(options->listen, options->security, &p->http, &port, err);
    if (code != SFC_OK)
        sfc_prefix(err, "--http");
    if (code == SFC_OK && pthread_create(&p->thread, NULL, work, p))
        code = sfc_fail(err, SFC_ENOMEM, "the thread for pages could not be started");
    p->started = code == SFC_OK;
    if (code != SFC_OK) {
        sfc_pages_stop(p);
        return code;
    }
    sfc_http_print(options->listen, port);
    *out = p;
    return SFC_OK;
}

void sfc_pages_stop(struct sfc_pages *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    if (p->started)
        pthread_join(p->thread, NULL);
    sfc_http_stop(p->http);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

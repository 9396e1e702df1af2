/* shardfc-worker: reads samples, computes the backbone, exchanges features for gradients. */
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/options.h"
#include "proto/base/process.h"
#include "proto/base/service.h"
#include "proto/daemon_metrics.h"
#include "proto/security.h"
#include "worker/trainer.h"

struct worker_options {
    const char *scheduler, *data, *device, *precision, *trace;
    struct sfc_security security;
    const char *http;
    uint64_t threads, cache;
    bool exit_when_done;
};

static const struct sfc_option table[] = {
    {.name = "scheduler",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct worker_options, scheduler),
     .metavar = "ADDR[,ADDR...]",
     .help = "address of the scheduler, HOST:PORT, or those of several of which one leads",
     .flags = SFC_OPTION_REQUIRED},
    SFC_SECURITY_OPTIONS(offsetof(struct worker_options, security)),
    SFC_HTTP_OPTION(offsetof(struct worker_options, http)),
    {.name = "data",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct worker_options, data),
     .metavar = "DIR|synthetic",
     .help = "folder with train.rec and train.idx, or the word synthetic",
     .flags = SFC_OPTION_REQUIRED},
    {.name = "threads",
     .type = SFC_OPTION_U64,
     .offset = offsetof(struct worker_options, threads),
     .fallback = "1",
     .min = 1,
     .max = 256,
     .metavar = "N",
     .help = "lanes: micro-batches computed side by side, one thread each; never changes a result"},
    {.name = "device",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct worker_options, device),
     .fallback = "cpu",
     .metavar = "cpu|cuda[:N]",
     .help = "where the backbone is computed; cuda needs the plugin libshardfc-cudnn.so"},
    {.name = "precision",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct worker_options, precision),
     .fallback = "f32",
     .metavar = "f32|bf16|fp16",
     .help =
         "number format of the backbone's products and activations; part of the numerics class, "
         "so all workers of a run have the same; cpu knows f32 alone"},
    {.name = "cache",
     .type = SFC_OPTION_SIZE,
     .offset = offsetof(struct worker_options, cache),
     .fallback = "256M",
     .metavar = "SIZE",
     .help = "memory for decoded micro-batches that wait for their turn"},
    {.name = "exit-when-done",
     .type = SFC_OPTION_BOOL,
     .offset = offsetof(struct worker_options, exit_when_done),
     .help = "exit when the run is finished, instead of waiting for the next one"},
    {.name = "trace",
     .type = SFC_OPTION_STRING,
     .offset = offsetof(struct worker_options, trace),
     .metavar = "FILE",
     .help = "write step,loss,lr,images_per_s of every step as CSV"},
};

static const struct sfc_program program = {
    .name = "shardfc-worker",
    .summary = "Computes micro-batches of a training run. Any number of workers may come and go at "
               "any time; none of them holds state.",
    .options = table,
    .count = sizeof table / sizeof *table,
};

struct waiter {
    struct sfc_trainer *trainer;
    struct sfc_options *parsed;
    pthread_t thread;
};

static void told(void *ctx, const char *name, bool now)
{
    bool *any = ctx;
    *any = true;
    if (now)
        sfc_info_log("reload: --%s has a new value", name);
    else
        sfc_warning_log("reload: --%s is another now, which the next start will use", name);
}

static void reload(struct sfc_options *parsed)
{
    struct sfc_error err = {0};
    bool any = false;
    sfc_service_reloading();
    if (sfc_options_reload(parsed, told, &any, &err) != SFC_OK)
        sfc_error_log("reload: nothing is changed: %s", err.text);
    else if (!any)
        sfc_info_log("reload: no option has another value");
    sfc_service_reloaded();
}

static void *wait_for_signal(void *arg)
{
    struct waiter *w = arg;
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1); /* from main: nothing to wait for any more */
    while (sigwait(&set, &number) == 0 && number == SIGHUP)
        reload(w->parsed);
    if (number != SIGUSR1)
        sfc_info_log("%s: leaving", strsignal(number));
    sfc_service_stopping();
    sfc_trainer_stop(w->trainer);
    return NULL;
}

static int run(const struct worker_options *o, struct sfc_options *parsed, struct sfc_error *err)
{
    enum sfc_precision precision;
    int rc = sfc_precision_parse(o->precision, &precision, err);
    if (rc)
        return rc;
    struct sfc_trainer_options options = {.scheduler = o->scheduler,
                                          .security = o->security,
                                          .http = o->http,
                                          .data = o->data,
                                          .device = o->device,
                                          .precision = precision,
                                          .lanes = (uint32_t)o->threads,
                                          .cache_bytes = o->cache,
                                          .exit_when_done = o->exit_when_done,
                                          .trace = o->trace};
    struct waiter w = {.parsed = parsed};
    rc = sfc_trainer_new(&options, &w.trainer, err);
    if (rc)
        return rc;
    if (pthread_create(&w.thread, NULL, wait_for_signal, &w)) {
        sfc_trainer_free(w.trainer);
        return sfc_fail(err, SFC_ENOMEM, "the signal thread could not be started");
    }
    rc = sfc_trainer_run(w.trainer, err);
    pthread_kill(w.thread, SIGUSR1);
    pthread_join(w.thread, NULL);
    sfc_trainer_free(w.trainer);
    return rc;
}

int main(int argc, char **argv)
{
    sfc_process_hold_hangup();
    sfc_process_tune(argv);
    struct worker_options options;
    struct sfc_options *parsed;
    int code = sfc_options_main(&program, argc, argv, &options, &parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-worker", code);
    sfc_service_begin();
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* inherited by every thread */
    struct sfc_error err = {0};
    int rc = run(&options, parsed, &err);
    if (rc)
        sfc_error_log("%s", err.text);
    sfc_options_free(parsed);
    bool bad_input =
        rc == SFC_EINVAL || rc == SFC_ENOTFOUND || rc == SFC_ECORRUPT || rc == SFC_EUNSUPPORTED;
    return rc == SFC_OK ? 0 : bad_input ? 2 : 1;
}

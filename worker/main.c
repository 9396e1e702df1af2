/* shardfc-worker: reads samples, computes the backbone, exchanges features for gradients. */
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/options.h"
#include "proto/base/process.h"
#include "worker/trainer.h"

struct worker_options {
    const char *scheduler, *data, *device, *precision, *trace;
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

static void *wait_for_signal(void *arg)
{
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1); /* from main: nothing to wait for any more */
    sigwait(&set, &number);
    if (number != SIGUSR1)
        sfc_info_log("%s: leaving", strsignal(number));
    sfc_trainer_stop(arg);
    return NULL;
}

static int run(const struct worker_options *o, struct sfc_error *err)
{
    enum sfc_precision precision;
    int rc = sfc_precision_parse(o->precision, &precision, err);
    if (rc)
        return rc;
    struct sfc_trainer_options options = {.scheduler = o->scheduler,
                                          .data = o->data,
                                          .device = o->device,
                                          .precision = precision,
                                          .lanes = (uint32_t)o->threads,
                                          .cache_bytes = o->cache,
                                          .exit_when_done = o->exit_when_done,
                                          .trace = o->trace};
    struct sfc_trainer *trainer;
    pthread_t waiter;
    rc = sfc_trainer_new(&options, &trainer, err);
    if (rc)
        return rc;
    if (pthread_create(&waiter, NULL, wait_for_signal, trainer)) {
        sfc_trainer_free(trainer);
        return sfc_fail(err, SFC_ENOMEM, "the signal thread could not be started");
    }
    rc = sfc_trainer_run(trainer, err);
    pthread_kill(waiter, SIGUSR1);
    pthread_join(waiter, NULL);
    sfc_trainer_free(trainer);
    return rc;
}

int main(int argc, char **argv)
{
    sfc_process_tune(argv);
    struct worker_options options;
    struct sfc_options *parsed;
    int code = sfc_options_main(&program, argc, argv, &options, &parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-worker", code);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* inherited by every thread */
    struct sfc_error err = {0};
    int rc = run(&options, &err);
    if (rc)
        sfc_error_log("%s", err.text);
    sfc_options_free(parsed);
    bool bad_input =
        rc == SFC_EINVAL || rc == SFC_ENOTFOUND || rc == SFC_ECORRUPT || rc == SFC_EUNSUPPORTED;
    return rc == SFC_OK ? 0 : bad_input ? 2 : 1;
}

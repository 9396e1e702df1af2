#include <stdio.h>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/run/daemon.h"
#include "server/scheduler/scheduler.h"

struct program {
    struct sfc_scheduler_options options;
    char address[300]; /* of the first start: those of later ones */
    struct sfc_daemon daemon;
    int code; /* of its end */
};

static void stop(void *ctx)
{
    sfc_scheduler_stop(ctx);
}

static void ended(void *ctx, int code)
{
    struct program *p = ctx;
    if (code == SFC_ESTALE) {
        sfc_daemon_quit_again(&p->daemon);
    } else {
        p->code = code;
        sfc_daemon_quit(&p->daemon);
    }
}

static int exit_code(int status)
{
    return status == SFC_OK ? 0 : status == SFC_EINVAL || status == SFC_EUNSUPPORTED ? 2 : 1;
}

/* One life: until a signal, or until another scheduler leads. */
static void live(struct program *p)
{
    struct sfc_scheduler *scheduler = NULL;
    struct sfc_error err = {0};
    const struct sfc_scheduler_end end = {ended, p};
    const char *address = NULL;
    p->code = sfc_daemon_init(&p->daemon, &err);
    if (p->code != SFC_OK) {
        sfc_error_log("%s", err.text);
        return;
    }
    p->code = sfc_scheduler_start(p->daemon.rpc, &p->daemon.uv, &p->options, &end, &scheduler,
                                  &address, &err);
    if (p->code != SFC_OK) {
        address = NULL;
        sfc_error_log("%s", err.text);
    } else {
        snprintf(p->address, sizeof p->address, "%s", address);
        p->options.listen = p->address;
    }
    sfc_daemon_run(&p->daemon, address, stop, scheduler);
    sfc_scheduler_free(scheduler);
}

int main(int argc, char **argv)
{
    sfc_process_tune(argv);
    struct program p = {.code = SFC_OK};
    struct sfc_options *parsed = NULL;
    int code = sfc_options_main(&sfc_scheduler_program, argc, argv, &p.options, &parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-scheduler", code);
    do
        live(&p);
    while (p.code == SFC_OK && p.daemon.again);
    sfc_options_free(parsed);
    return exit_code(p.code);
}

#include <stdio.h>

#include "proto/base/log.h"
#include "proto/base/process.h"
#include "server/run/daemon.h"
#include "server/scheduler/scheduler.h"

struct program {
    struct sfc_scheduler_options said;    /* by the user, now */
    struct sfc_scheduler_options options; /* what the scheduler goes by */
    struct sfc_options *parsed;
    char address[300], pages[300]; /* of the first start: those of later ones */
    struct sfc_daemon daemon;
    struct sfc_scheduler *scheduler;
    int code; /* of its end */
};

static void stop(void *ctx)
{
    sfc_scheduler_stop(((struct program *)ctx)->scheduler);
}

static void look(void *ctx, struct sfc_service_state *state)
{
    sfc_scheduler_look(((struct program *)ctx)->scheduler, state);
}

static void reloaded(void *ctx)
{
    struct program *p = ctx;
    p->options.move_rate = p->said.move_rate;
    p->options.peers = p->said.peers;
    sfc_rpc_loop_limit(p->daemon.rpc, &p->options.peers);
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
    const struct sfc_daemon_calls calls = {stop, NULL, look, reloaded, p};
    struct sfc_error err = {0};
    const struct sfc_scheduler_end end = {ended, p};
    const char *address = NULL;
    if (p->options.advertise)
        p->code = sfc_host_check("advertise", p->options.advertise, &err);
    if (p->code == SFC_OK)
        p->code = sfc_daemon_init(&p->daemon, p->parsed, &p->options.security, &err);
    if (p->code != SFC_OK) {
        sfc_error_log("%s", err.text);
        return;
    }
    sfc_rpc_loop_limit(p->daemon.rpc, &p->options.peers);
    p->code = sfc_scheduler_start(p->daemon.rpc, &p->daemon.uv, &p->options, &end, &p->scheduler,
                                  &address, &err);
    if (p->code != SFC_OK) {
        address = NULL;
        sfc_error_log("%s", err.text);
    } else {
        snprintf(p->address, sizeof p->address, "%s", address);
        p->options.listen = p->address;
        if (sfc_scheduler_pages(p->scheduler)) {
            snprintf(p->pages, sizeof p->pages, "%s", sfc_scheduler_pages(p->scheduler));
            p->options.http = p->pages;
        }
    }
    sfc_daemon_run(&p->daemon, address, &calls);
    sfc_scheduler_free(p->scheduler);
    p->scheduler = NULL;
}

int main(int argc, char **argv)
{
    sfc_process_hold_hangup();
    sfc_process_tune(argv);
    struct program p = {.code = SFC_OK};
    int code = sfc_options_main(&sfc_scheduler_program, argc, argv, &p.said, &p.parsed);
    if (code >= 0)
        return sfc_process_end("shardfc-scheduler", code);
    p.options = p.said;
    sfc_service_begin();
    do
        live(&p);
    while (p.code == SFC_OK && p.daemon.again);
    sfc_options_free(p.parsed);
    return exit_code(p.code);
}

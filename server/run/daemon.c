#include "server/run/daemon.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"

static void rpc_stopped(void *ctx)
{
    (void)ctx;
}

void sfc_daemon_quit(struct sfc_daemon *daemon)
{
    if (daemon->stopping)
        return;
    daemon->stopping = true;
    daemon->stop(daemon->ctx);
    sfc_rpc_loop_stop(daemon->rpc, rpc_stopped, NULL);
}

void sfc_daemon_quit_again(struct sfc_daemon *daemon)
{
    daemon->again = !daemon->stopping;
    sfc_daemon_quit(daemon);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct sfc_daemon *daemon = handle->data;
    daemon->again = false;
    if (!daemon->stopping)
        sfc_info_log("%s: shutting down", number == SIGTERM ? "SIGTERM" : "SIGINT");
    sfc_daemon_quit(daemon);
}

int sfc_daemon_init(struct sfc_daemon *daemon, struct sfc_error *err)
{
    memset(daemon, 0, sizeof *daemon);
    int code = uv_loop_init(&daemon->uv);
    if (code != 0)
        return sfc_fail(err, SFC_EINTERNAL, "event loop: %s", uv_strerror(code));
    if ((code = sfc_rpc_loop_start(&daemon->uv, &daemon->rpc, err)) != SFC_OK) {
        uv_loop_close(&daemon->uv);
        return code;
    }
    for (int i = 0; i < 2; i++) {
        uv_signal_init(&daemon->uv, &daemon->signals[i]);
        daemon->signals[i].data = daemon;
        uv_signal_start(&daemon->signals[i], on_signal, i ? SIGINT : SIGTERM);
        uv_unref((uv_handle_t *)&daemon->signals[i]); /* they watch to the very end */
    }
    return SFC_OK;
}

void sfc_daemon_run(struct sfc_daemon *daemon, const char *address, void (*stop)(void *ctx),
                    void *ctx)
{
    daemon->stop = stop;
    daemon->ctx = ctx;
    if (address) {
        printf("listening %s\n", address);
        fflush(stdout);
    } else {
        sfc_daemon_quit(daemon);
    }
    uv_run(&daemon->uv, UV_RUN_DEFAULT);
    /* A second signal must not kill a process that is ending well; one that begins anew it must. */
    for (int i = 0; i < 2; i++) {
        uv_close((uv_handle_t *)&daemon->signals[i], NULL);
        if (!daemon->again)
            signal(i ? SIGINT : SIGTERM, SIG_IGN);
    }
    uv_run(&daemon->uv, UV_RUN_DEFAULT);
    if (uv_loop_close(&daemon->uv) != 0)
        sfc_warning_log("the event loop still had open handles");
}

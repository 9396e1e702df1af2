#include "server/run/daemon.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/process.h"

static void rpc_stopped(void *ctx)
{
    (void)ctx;
}

void sfc_daemon_quit(struct sfc_daemon *daemon)
{
    if (daemon->stopping)
        return;
    daemon->stopping = true;
    daemon->calls.stop(daemon->calls.ctx);
    sfc_rpc_loop_stop(daemon->rpc, rpc_stopped, NULL);
}

void sfc_daemon_quit_again(struct sfc_daemon *daemon)
{
    daemon->again = !daemon->stopping;
    sfc_daemon_quit(daemon);
}

static void end(struct sfc_daemon *daemon, const char *signal)
{
    daemon->again = false;
    if (daemon->finishing || daemon->stopping) {
        sfc_daemon_quit(daemon);
        return;
    }
    sfc_info_log("%s: shutting down", signal);
    sfc_service_stopping();
    daemon->finishing = true;
    if (!daemon->calls.finish || !daemon->calls.finish(daemon->calls.ctx))
        sfc_daemon_quit(daemon);
}

static void told(void *ctx, const char *name, bool now)
{
    bool *any = ctx;
    *any = true;
    if (now)
        sfc_info_log("reload: --%s has a new value", name);
    else
        sfc_warning_log("reload: --%s is another now, which the next start will use", name);
}

static void reload(struct sfc_daemon *daemon)
{
    struct sfc_error err = {0};
    bool any = false;
    sfc_service_reloading();
    if (sfc_options_reload(daemon->options, told, &any, &err) != SFC_OK)
        sfc_error_log("reload: nothing is changed: %s", err.text);
    else if (!any)
        sfc_info_log("reload: no option has another value");
    else if (daemon->calls.reloaded)
        daemon->calls.reloaded(daemon->calls.ctx);
    sfc_service_reloaded();
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct sfc_daemon *daemon = handle->data;
    if (number == SIGHUP)
        reload(daemon);
    else
        end(daemon, number == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void on_pulse(uv_timer_t *timer)
{
    struct sfc_daemon *daemon = timer->data;
    struct sfc_service_state state = {0};
    if (daemon->stopping)
        return;
    daemon->calls.look(daemon->calls.ctx, &state);
    sfc_service_tell(&state);
    uv_timer_start(timer, on_pulse, sfc_service_interval(), 0);
}

static const int signal_numbers[SFC_DAEMON_SIGNALS] = {SIGTERM, SIGINT, SIGHUP};

/* They watch to the very end. */
static void watch(struct sfc_daemon *daemon)
{
    for (int i = 0; i < SFC_DAEMON_SIGNALS; i++) {
        uv_signal_init(&daemon->uv, &daemon->signals[i]);
        daemon->signals[i].data = daemon;
        uv_signal_start(&daemon->signals[i], on_signal, signal_numbers[i]);
        uv_unref((uv_handle_t *)&daemon->signals[i]);
    }
    sfc_process_take_hangup();
    uv_timer_init(&daemon->uv, &daemon->pulse);
    daemon->pulse.data = daemon;
    uv_unref((uv_handle_t *)&daemon->pulse);
}

static void log_refused(const char *text)
{
    sfc_warning_log("%s", text);
}

int sfc_daemon_init(struct sfc_daemon *daemon, struct sfc_options *options,
                    const struct sfc_security *security, struct sfc_error *err)
{
    memset(daemon, 0, sizeof *daemon);
    daemon->options = options;
    sfc_rpc_on_refused(log_refused);
    int code = uv_loop_init(&daemon->uv);
    if (code != 0)
        return sfc_fail(err, SFC_EINTERNAL, "event loop: %s", uv_strerror(code));
    if ((code = sfc_rpc_loop_start(&daemon->uv, security, &daemon->rpc, err)) != SFC_OK) {
        uv_loop_close(&daemon->uv);
        return code;
    }
    watch(daemon);
    return SFC_OK;
}

static void begin(struct sfc_daemon *daemon, const char *address)
{
    if (!address) {
        sfc_daemon_quit(daemon);
        return;
    }
    printf("listening %s\n", address);
    fflush(stdout);
    if (sfc_service_interval() > 0)
        on_pulse(&daemon->pulse);
}

void sfc_daemon_run(struct sfc_daemon *daemon, const char *address,
                    const struct sfc_daemon_calls *calls)
{
    daemon->calls = *calls;
    begin(daemon, address);
    uv_run(&daemon->uv, UV_RUN_DEFAULT);
    /* A second signal must not kill a process that is ending well; one that begins anew it must. */
    for (int i = 0; i < SFC_DAEMON_SIGNALS; i++) {
        uv_close((uv_handle_t *)&daemon->signals[i], NULL);
        if (!daemon->again || signal_numbers[i] == SIGHUP)
            signal(signal_numbers[i], SIG_IGN);
    }
    uv_close((uv_handle_t *)&daemon->pulse, NULL);
    uv_run(&daemon->uv, UV_RUN_DEFAULT);
    if (uv_loop_close(&daemon->uv) != 0)
        sfc_warning_log("the event loop still had open handles");
}

/* What both daemons do the same way: a libuv loop with an RPC loop on it, run until SIGTERM or
 * SIGINT, then shut down in order; SIGHUP reads the configuration again. The service manager hears
 * from the loop that everything goes through, so a loop that is stuck starves its watchdog. */
#ifndef SFC_RUN_DAEMON_H
#define SFC_RUN_DAEMON_H

#include "proto/base/options.h"
#include "proto/base/service.h"
#include "proto/rpc.h"

/* What a daemon is asked, on the loop. */
struct sfc_daemon_calls {
    /* Once: it closes its handles. */
    void (*stop)(void *ctx);
    /* Once, before stop, on the first signal: true if it has to end something first, and calls
     * sfc_daemon_quit then (a second signal does not wait for it). NULL: nothing. */
    bool (*finish)(void *ctx);
    void (*look)(void *ctx, struct sfc_service_state *state); /* how is it? *state is zeroed */
    void (*reloaded)(void *ctx); /* the values of options are others now; NULL: nothing to do */
    void *ctx;
};

enum { SFC_DAEMON_SIGNALS = 3 };

struct sfc_daemon {
    uv_loop_t uv;
    struct sfc_rpc_loop *rpc;
    uv_signal_t signals[SFC_DAEMON_SIGNALS];
    uv_timer_t pulse; /* for the service manager */
    struct sfc_daemon_calls calls;
    struct sfc_options *options;
    bool finishing, stopping;
    bool again; /* see sfc_daemon_quit_again */
};

/* options: of sfc_options_main, for reloads; borrowed. security: of its server and of its calls;
 * what is refused goes to the log. */
int sfc_daemon_init(struct sfc_daemon *daemon, struct sfc_options *options,
                    const struct sfc_security *security, struct sfc_error *err);
/* Prints "listening ADDRESS" on stdout and runs until a signal. Then calls->finish, calls->stop,
 * and the RPC loop is shut down. Returns when everything has ended; further signals change nothing.
 * address NULL: start failed, shut down at once. */
void sfc_daemon_run(struct sfc_daemon *daemon, const char *address,
                    const struct sfc_daemon_calls *calls);
/* From the loop thread: ends without calls->finish. */
void sfc_daemon_quit(struct sfc_daemon *daemon);
/* The same, to begin anew with another sfc_daemon_init: daemon->again stays true unless a signal
 * came as well, and signals are not ignored behind the end. */
void sfc_daemon_quit_again(struct sfc_daemon *daemon);

#endif

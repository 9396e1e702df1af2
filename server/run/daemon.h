/* What both daemons do the same way: a libuv loop with an RPC loop on it, run until SIGTERM or
 * SIGINT, then shut down in order. */
#ifndef SFC_RUN_DAEMON_H
#define SFC_RUN_DAEMON_H

#include "proto/rpc.h"

struct sfc_daemon {
    uv_loop_t uv;
    struct sfc_rpc_loop *rpc;
    uv_signal_t signals[2];
    void (*stop)(void *ctx); /* see sfc_daemon_run */
    void *ctx;
    bool stopping;
    bool again; /* see sfc_daemon_quit_again */
};

int sfc_daemon_init(struct sfc_daemon *daemon, struct sfc_error *err);
/* Prints "listening ADDRESS" on stdout and runs until a signal. stop(ctx) is called once, on the
 * loop; it must close its handles; then the RPC loop is shut down. Returns when everything has
 * ended; further signals change nothing. address NULL: start failed, shut down at once. */
void sfc_daemon_run(struct sfc_daemon *daemon, const char *address, void (*stop)(void *ctx),
                    void *ctx);
/* From the loop thread: as if a signal had come. */
void sfc_daemon_quit(struct sfc_daemon *daemon);
/* The same, to begin anew with another sfc_daemon_init: daemon->again stays true unless a signal
 * came as well, and signals are not ignored behind the end. */
void sfc_daemon_quit_again(struct sfc_daemon *daemon);

#endif

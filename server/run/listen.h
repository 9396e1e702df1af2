/* Where a daemon serves. Peers know a shard, and shards a scheduler, by its address, so a daemon
 * whose port the kernel chose takes the same one when it comes back to its state folder. */
#ifndef SFC_RUN_LISTEN_H
#define SFC_RUN_LISTEN_H

#include <stddef.h>

#include "proto/rpc.h"

struct sfc_listen {
    const char
        *address;      /* "HOST:PORT"; port 0: the port of the last time, else the kernel chooses */
    const char *state; /* folder whose file `port` keeps the choice; NULL: nothing is kept */
    const struct sfc_rpc_method *methods;
    size_t method_count;
    void *ctx;
};

/* sfc_rpc_server_start at l->address. A kept port that somebody else uses now is an error that says
 * how to go on: at another port nobody would find the daemon. A file that holds no port is an
 * error, too. */
int sfc_listen_start(struct sfc_rpc_loop *rpc, const struct sfc_listen *l,
                     struct sfc_rpc_server **out, int *port, struct sfc_error *err);

#endif

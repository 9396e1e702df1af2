/* The scheduler: wires RPC calls and clocks to the pure machines of server/core (membership, run)
 * and carries out their actions: messages to shards, durable records, answers to waiting calls.
 * Everything runs on the loop thread except the store's work (store_queue.h). */
#ifndef SFC_SCHEDULER_SCHEDULER_H
#define SFC_SCHEDULER_SCHEDULER_H

#include "proto/base/service.h"
#include "proto/rpc.h"
#include "server/scheduler/options.h"

struct sfc_scheduler;

/* A scheduler of a shared state that can't go on after its start calls ended, once, on the loop: it
 * has to be stopped and freed. SFC_ESTALE: another one leads now, and this one may be started again
 * to wait for its turn. */
struct sfc_scheduler_end {
    void (*ended)(void *ctx, int code);
    void *ctx;
};

/* Opens the store, makes a new incarnation durable, takes up the run that the store holds, binds
 * the address. With a shared state (etcd) it binds the address, refuses calls with SFC_EUNAVAILABLE
 * and does the rest when it leads. *out is set on failure, too: stop and free it. *address is owned
 * by the scheduler. */
int sfc_scheduler_start(struct sfc_rpc_loop *rpc, uv_loop_t *uv,
                        const struct sfc_scheduler_options *options,
                        const struct sfc_scheduler_end *end, struct sfc_scheduler **out,
                        const char **address, struct sfc_error *err);
/* Where it shows its pages (--http), with the port that it is; NULL: nowhere. */
const char *sfc_scheduler_pages(const struct sfc_scheduler *scheduler);
/* What the service manager hears. A standby is ready: it answers that it is one. */
void sfc_scheduler_look(const struct sfc_scheduler *scheduler, struct sfc_service_state *out);
/* Stops the timer and answers waiting calls; then stop the RPC loop, run the loop to its end, free.
 */
void sfc_scheduler_stop(struct sfc_scheduler *scheduler);
void sfc_scheduler_free(struct sfc_scheduler *scheduler); /* NULL is fine */

#endif

/* A shard server: wires RPC calls to the step machine (server/core/step_fsm.h) and that to the
 * compute thread. Everything here runs on the loop thread.
 *
 *   call --validate--> event --> step machine --> START  --> compute thread --> JOB_DONE event
 *                                             '-> REPLY, FAIL --> answer of the call */
#ifndef SFC_SHARD_SHARD_H
#define SFC_SHARD_SHARD_H

#include "proto/rpc.h"
#include "server/shard/options.h"

struct sfc_shard;

/* Opens the backend, binds the address, begins to register with the scheduler. *address: where it
 * listens (owned by the shard). */
int sfc_shard_start(struct sfc_rpc_loop *rpc, uv_loop_t *uv,
                    const struct sfc_shard_options *options, struct sfc_shard **out,
                    const char **address, struct sfc_error *err);
/* Ends the compute thread and stops the timers; no new work begins. Then stop the RPC loop, then
 * free. */
void sfc_shard_stop(struct sfc_shard *shard);
void sfc_shard_free(struct sfc_shard *shard); /* NULL is fine */

#endif

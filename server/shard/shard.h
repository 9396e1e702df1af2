/* A shard server: wires RPC calls to the step machine (server/core/step_fsm.h) and that to the
 * compute thread. Everything here runs on the loop thread.
 *
 *   call --validate--> event --> step machine --> START  --> compute thread --> JOB_DONE event
 *                                             '-> REPLY, FAIL --> answer of the call */
#ifndef SFC_SHARD_SHARD_H
#define SFC_SHARD_SHARD_H

#include "proto/base/service.h"
#include "proto/rpc.h"
#include "server/shard/options.h"

struct sfc_shard;

/* Opens the backend, binds the address, begins to register with the scheduler. *address: where it
 * listens (owned by the shard). */
int sfc_shard_start(struct sfc_rpc_loop *rpc, uv_loop_t *uv,
                    const struct sfc_shard_options *options, struct sfc_shard **out,
                    const char **address, struct sfc_error *err);
/* To be ended well: lets a step that may be committed end, writes every block of the run as it is
 * then, and calls done, on the loop; then stop. False: there is nothing to wait for, and done is
 * not called. */
bool sfc_shard_finish(struct sfc_shard *shard, void (*done)(void *ctx), void *ctx);
/* What the service manager hears. Work is late that takes longer than the watchdog's period, but
 * for what may take any time: opening a run, recovery, copies of blocks. */
void sfc_shard_look(const struct sfc_shard *shard, struct sfc_service_state *out);
/* Options have other values: --snapshot-rate and --recovery-target of the open run, too. */
void sfc_shard_reloaded(struct sfc_shard *shard);
/* Ends the compute thread and stops the timers; no new work begins. Then stop the RPC loop, then
 * free. */
void sfc_shard_stop(struct sfc_shard *shard);
void sfc_shard_free(struct sfc_shard *shard); /* NULL is fine */

#endif

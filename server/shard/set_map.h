/* SetMap: at a boundary between two steps the blocks of this shard become those of another map. The
 * scheduler has decided it durably, so a shard that can't follow says so and is told to recover
 * with that map.
 *
 *   what is read of blocks that change ends (a pin, copies)
 *   a shard that joins, or lacks steps of the history, gets it from another
 *   the step machine is told: MAPPING; calls wait
 *   compute thread: staged blocks become the run's, others leave
 *   loop thread: lists, buffers, snapshots, peers; the calls that waited go on
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_SET_MAP_H
#define SFC_SHARD_SET_MAP_H

#include "proto/rpc.h"
#include "proto/shardfc.pb-c.h"
#include "server/shard/compute.h"

struct sfc_shard_run;
struct sfc_map_change;

/* Takes the call. */
void sfc_set_map(struct sfc_shard_run *run, struct sfc_rpc_call *call,
                 const Shardfc__V1__SetMapRequest *request);
/* What the MAP job of the step machine does. */
void sfc_set_map_start(struct sfc_shard_run *run, struct sfc_compute_job *job);
/* It is done; the step machine hears of it afterwards. Not SFC_OK: the state can't be trusted any
 * more. */
int sfc_set_map_done(struct sfc_shard_run *run, int code, struct sfc_error *err);

/* Some time has passed. False: no change waits. */
bool sfc_set_map_tick(struct sfc_shard_run *run);
/* With the run. */
void sfc_set_map_free(struct sfc_shard_run *run);

#endif

/* Blocks of other shards that this one mirrors (places of the map that name it): their snapshots in
 * its own folder, which with its own log lead to the state that their owner has. Should the owner
 * be lost for good, the scheduler gives the blocks to this shard, which then recovers (recovery.h).
 *
 *   a commit is applied ---> the block that is due: BeginCopy, ReadCopy ... at its owner (paced and
 *                            held to --snapshot-rate like the own snapshots)
 *   this shard's durable step has reached the copy's ---> snapshot thread: write it
 *   the log is kept from the older of a block's two newest copies on
 *
 * A block is covered when the log has every step after its newest copy: head inputs, which every
 * log has, and of a dense block the gradients, which come here from the map on that says so. While
 * the log is whole from the seed on, no copy is needed.
 *
 * Steps come first: where the log is full because of a mirror, the mirror gives way, and begins
 * anew. All calls are made again until they work.
 *
 * Threads: functions here are called from the loop thread. */
#ifndef SFC_SHARD_MIRROR_H
#define SFC_SHARD_MIRROR_H

#include "proto/shardfc.pb-c.h"
#include "server/shard/dense_sums.h"

struct sfc_shard_run;
struct sfc_mirror;

/* The run's blocks and log are there. SFC_ENOMEM. */
int sfc_mirror_open(struct sfc_shard_run *run, struct sfc_error *err);
/* run->mirrored is another since the boundary after `step`; pushed: dense blocks whose gradients
 * came here before. */
int sfc_mirror_change(struct sfc_shard_run *run, struct sfc_dense_set pushed, uint64_t step,
                      struct sfc_error *err);
/* A commit is applied, whose step took so long to compute. */
void sfc_mirror_applied(struct sfc_shard_run *run, double step_ms);
/* Some time has passed. False: nothing is at work. */
bool sfc_mirror_tick(struct sfc_shard_run *run);

/* The log is needed behind this step; UINT64_MAX: it isn't. */
uint64_t sfc_mirror_floor(const struct sfc_shard_run *run);

/* Of heartbeats: one per mirrored place, at most SFC_CORE_MAX_SHARDS; texts live until the next
 * event. Returns how many. */
size_t sfc_mirror_report(const struct sfc_shard_run *run, Shardfc__V1__MirrorState *out);

/* The run ends: nothing is copied any more, and owners hear of it. */
void sfc_mirror_abandon(struct sfc_shard_run *run);
/* With the run, when no job is at work. */
void sfc_mirror_free(struct sfc_shard_run *run);

#endif

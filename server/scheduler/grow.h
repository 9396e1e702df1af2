/* More identities while the run goes on (Grow; server/core/growth.h says what that is). New blocks
 * go to the members that have the fewest classes and room for them; each makes its own from the
 * seed. Loop thread. */
#ifndef SFC_SCHEDULER_GROW_H
#define SFC_SCHEDULER_GROW_H

#include "server/scheduler/orders.h"
#include "server/scheduler/scheduler_internal.h"

void sfc_sched_on_grow(struct sfc_rpc_call *call, void *ctx);
/* The run's growths are those of its map: setup, sample order, load of blocks. */
int sfc_sched_take_growths(struct sfc_sched_run *run, struct sfc_error *err);
/* Owner of every class block of the present map, and of those of so many classes. *owners:
 * [*count], to be freed. */
int sfc_sched_place_growth(struct sfc_sched_run *run, uint64_t classes, uint32_t **owners,
                           size_t *count, struct sfc_error *err);
/* The map with which the run has the order's classes; owners: as placed. NULL: no memory. */
Shardfc__V1__BlockMap *sfc_sched_grown_map(const struct sfc_sched_run *run,
                                           const struct sfc_sched_order *order,
                                           const uint32_t *owners, size_t count, uint64_t version,
                                           uint64_t step);
/* An order of a Grow call has ended. */
void sfc_sched_grow_done(struct sfc_sched_run *run, uint64_t number, int code, const char *text);
/* The set of a run, and whether a worker has it, or a larger one that begins with it. */
struct sfc_set_of_run {
    uint64_t samples;
    const char *digest;
};
struct sfc_set_of_run sfc_sched_set(const struct sfc_sched_run *run);
/* Workers that have not got the run's set any more are told to join again. */
void sfc_sched_part_workers(struct sfc_sched_run *run);

#endif

/* What orders.c offers to the files of a run. Loop thread. */
#ifndef SFC_SCHEDULER_ORDER_PARTS_H
#define SFC_SCHEDULER_ORDER_PARTS_H

#include "server/scheduler/orders.h"
#include "server/scheduler/scheduler_internal.h"

/* Actions of the machine. */
void sfc_sched_write_map(struct sfc_sched_run *run, const struct sfc_run_action *a);
void sfc_sched_take_map(struct sfc_sched_run *run);
void sfc_sched_order_done(struct sfc_sched_run *run, const struct sfc_run_action *a);
/* Orders that could not begin, or that nobody was told about, for lack of memory. */
void sfc_sched_orders_tick(struct sfc_sched_run *run);
void sfc_sched_orders_free(struct sfc_sched_run *run); /* nobody is told */
/* A shard registered that says it holds our run: has it a place, or an order to get one? */
void sfc_sched_orders_stray(struct sfc_sched_run *run, uint64_t shard);
/* Packed FetchBlocks, TakeBlocks, SetMap or CancelMove. NULL: no memory. */
uint8_t *sfc_sched_pack_move(const struct sfc_sched_run *run, const struct sfc_run_action *a,
                             size_t *size);
/* The map that the order at work will make (sfc_message_free). NULL: no memory. */
Shardfc__V1__BlockMap *sfc_sched_map_to_come(const struct sfc_sched_run *run);
/* The map that OpenRun(join) carries (sfc_message_free). NULL: no memory. */
Shardfc__V1__BlockMap *sfc_sched_map_to_join(const struct sfc_sched_run *run, uint32_t place);

#endif

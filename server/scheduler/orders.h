/* Changes of a run's map: shards that join and leave, blocks that move. Orders wait in a queue; the
 * run's machine works at one at a time (server/core/run_moves.c). The queue is in memory only:
 * after a restart the durable map says where blocks are, and whoever gave orders gives new ones.
 * Loop thread. */
#ifndef SFC_SCHEDULER_ORDERS_H
#define SFC_SCHEDULER_ORDERS_H

#include "server/core/run_fsm.h"

#define SFC_MAX_ORDERS 64u /* that wait, or are at work */

struct sfc_sched_run;
struct sfc_scheduler;

struct sfc_sched_order {
    enum sfc_order_kind kind;
    uint64_t shard; /* id of who joins, leaves or is lost; of a move: where to */
    uint64_t from;  /* of a move */
    const uint64_t *class_blocks, *dense_blocks; /* of a move: ascending; of a loss: all it owns */
    uint32_t class_count, dense_count;
    const uint32_t *class_owners, *dense_owners; /* of a loss: places that take them */
    uint64_t bytes;                              /* of a move: about so many, for status */
    uint64_t bytes_per_s; /* of a move: at most so fast, 0: as fast as possible */
    const char *why;      /* "scale to 3 shards" */
    /* GROW: new blocks are placed when its turn comes */
    uint64_t classes, samples;
    const char *data_digest; /* of the set that has them; copied */
};

/* Told how every order ended, exactly once, from the loop and never from within the functions
 * below; it may call them. code SFC_OK: run->map is the new map, durable, and every shard has it or
 * recovers with it. Else nothing has changed, and text says why: SFC_ECANCELED; SFC_EUNAVAILABLE (a
 * shard was lost, the run went back), SFC_ETIMEOUT, or what a shard said (SFC_ENOMEM, ...). */
struct sfc_order_listener {
    void (*done)(struct sfc_sched_run *run, void *ctx, uint64_t number, int code, const char *text);
    void *ctx;
};

/* Everything is copied. A loss comes before all that wait. Whether an order fits the map is looked
 * at when its turn comes. SFC_ELIMIT: the queue is full. SFC_ESTATE: the run has not started yet,
 * or has ended. SFC_EUNAVAILABLE: we have just restarted and wait for shards. SFC_EINVAL: a move
 * without blocks, or of blocks that are not ascending. */
int sfc_sched_order(struct sfc_sched_run *run, const struct sfc_sched_order *order,
                    uint64_t *number, struct sfc_error *err);
/* 0: all. One whose map is being written, or is written, goes on. */
void sfc_sched_order_cancel(struct sfc_sched_run *run, uint64_t number);
bool sfc_sched_order_busy(const struct sfc_sched_run *run); /* one waits or is at work */

/* One that waits or is at work, for Status; in order, the one at work first. */
struct sfc_order_view {
    struct sfc_sched_order order; /* borrowed until the next event */
    uint64_t number;
    bool at_work;
};
bool sfc_sched_order_at(const struct sfc_sched_run *run, size_t i, struct sfc_order_view *out);

#endif

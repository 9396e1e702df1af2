/* Runs work on the durable store off the loop thread, one task at a time, in the order of
 * submission. */
#ifndef SFC_SCHEDULER_STORE_QUEUE_H
#define SFC_SCHEDULER_STORE_QUEUE_H

#include <stdbool.h>
#include <uv.h>

#include "server/scheduler/state_store.h"

struct sfc_store_task {
    /* On a worker thread; sets code and error. */
    void (*work)(struct sfc_store_task *task, struct sfc_store *store);
    /* On the loop thread; the task belongs to its submitter again. */
    void (*done)(struct sfc_store_task *task);
    int code;
    struct sfc_error error;
    struct sfc_store_task *next; /* private */
};

struct sfc_store_queue {
    uv_loop_t *uv;
    struct sfc_store *store;
    uv_work_t work;
    struct sfc_store_task *head, **tail;
    bool busy;
};

void sfc_store_queue_init(struct sfc_store_queue *queue, uv_loop_t *uv, struct sfc_store *store);
/* From the loop thread; never blocks. done is always called, as long as the loop runs. */
void sfc_store_queue_submit(struct sfc_store_queue *queue, struct sfc_store_task *task);
bool sfc_store_queue_idle(const struct sfc_store_queue *queue);

#endif

/* A thread that runs tasks from a queue in order: the step log has one, the snapshots another, so
 * that a Prepare never waits for the writing of a block.
 *
 * Threads: every function here is called from the loop thread. A task is its submitter's again when
 * its done callback runs, on the loop thread. */
#ifndef SFC_SHARD_TASKS_H
#define SFC_SHARD_TASKS_H

#include "proto/base/status.h"

struct sfc_task {
    int (*work)(struct sfc_task *task, struct sfc_error *err); /* on the thread */
    void (*done)(struct sfc_task *task);                       /* on the loop thread */
    void *owner;                                               /* for work and done */
    int code;                                                  /* what work returned */
    struct sfc_error error;
    struct sfc_task *next; /* private */
};

struct sfc_tasks;

/* Runs fn(ctx) on the loop thread; from any thread. */
typedef void (*sfc_tasks_post)(void *post_ctx, void (*fn)(void *ctx), void *ctx);

int sfc_tasks_start(sfc_tasks_post post, void *post_ctx, struct sfc_tasks **out,
                    struct sfc_error *err);
/* Finishes the tasks in the queue and joins the thread. Done callbacks that are not yet delivered
 * are delivered from here. NULL is fine. */
void sfc_tasks_stop(struct sfc_tasks *tasks);
/* After stop, and after the loop has run what was posted to it. NULL is fine. */
void sfc_tasks_free(struct sfc_tasks *tasks);
/* Never blocks. */
void sfc_tasks_submit(struct sfc_tasks *tasks, struct sfc_task *task);

#endif

#include "server/scheduler/store_queue.h"

#include <string.h>

void sfc_store_queue_init(struct sfc_store_queue *queue, uv_loop_t *uv, struct sfc_store *store)
{
    memset(queue, 0, sizeof *queue);
    queue->uv = uv;
    queue->store = store;
    queue->work.data = queue;
    queue->tail = &queue->head;
}

bool sfc_store_queue_idle(const struct sfc_store_queue *queue)
{
    return !queue->busy && !queue->head;
}

static void work_run(uv_work_t *work)
{
    struct sfc_store_queue *queue = work->data;
    queue->head->work(queue->head, queue->store);
}

static void start_next(struct sfc_store_queue *queue);

static void work_done(uv_work_t *work, int status)
{
    struct sfc_store_queue *queue = work->data;
    struct sfc_store_task *task = queue->head;
    queue->head = task->next;
    if (!queue->head)
        queue->tail = &queue->head;
    queue->busy = false;
    if (status != 0)
        task->code = sfc_fail(&task->error, SFC_ECANCELED, "the store was stopped");
    start_next(queue);
    task->done(task);
}

static void start_next(struct sfc_store_queue *queue)
{
    if (queue->busy || !queue->head)
        return;
    queue->busy = true;
    uv_queue_work(queue->uv, &queue->work, work_run, work_done); /* fails only without a function */
}

void sfc_store_queue_submit(struct sfc_store_queue *queue, struct sfc_store_task *task)
{
    task->next = NULL;
    task->code = SFC_OK;
    memset(&task->error, 0, sizeof task->error);
    *queue->tail = task;
    queue->tail = &task->next;
    start_next(queue);
}

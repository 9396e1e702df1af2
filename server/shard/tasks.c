#include "server/shard/tasks.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct list {
    struct sfc_task *head;
    struct sfc_task **tail;
};

struct sfc_tasks {
    sfc_tasks_post post;
    void *post_ctx;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stopping;        /* under mutex */
    bool delivery_posted; /* under mutex: a deliver call is on its way to the loop */
    struct list queue;    /* under mutex */
    struct list ready;    /* under mutex */
};

static void list_init(struct list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static void list_push(struct list *list, struct sfc_task *task)
{
    task->next = NULL;
    *list->tail = task;
    list->tail = &task->next;
}

static struct sfc_task *list_pop(struct list *list)
{
    struct sfc_task *task = list->head;
    if (!task)
        return NULL;
    list->head = task->next;
    if (!list->head)
        list->tail = &list->head;
    task->next = NULL;
    return task;
}

static void deliver(void *ctx)
{
    struct sfc_tasks *t = ctx;
    for (;;) {
        pthread_mutex_lock(&t->mutex);
        struct sfc_task *task = list_pop(&t->ready);
        t->delivery_posted = t->delivery_posted && task != NULL;
        pthread_mutex_unlock(&t->mutex);
        if (!task)
            return;
        task->done(task);
    }
}

/* With the mutex held; gives it up meanwhile. */
static void run_next(struct sfc_tasks *t)
{
    struct sfc_task *task = list_pop(&t->queue);
    pthread_mutex_unlock(&t->mutex);
    task->code = task->work(task, &task->error);
    pthread_mutex_lock(&t->mutex);
    list_push(&t->ready, task);
    if (t->delivery_posted || t->stopping)
        return;
    t->delivery_posted = true;
    pthread_mutex_unlock(&t->mutex);
    t->post(t->post_ctx, deliver, t);
    pthread_mutex_lock(&t->mutex);
}

static void *loop(void *ctx)
{
    struct sfc_tasks *t = ctx;
    pthread_mutex_lock(&t->mutex);
    while (t->queue.head || !t->stopping) {
        if (t->queue.head)
            run_next(t);
        else
            pthread_cond_wait(&t->wake, &t->mutex);
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

int sfc_tasks_start(sfc_tasks_post post, void *post_ctx, struct sfc_tasks **out,
                    struct sfc_error *err)
{
    struct sfc_tasks *t = calloc(1, sizeof *t);
    if (!t)
        return sfc_fail(err, SFC_ENOMEM, "task thread");
    t->post = post;
    t->post_ctx = post_ctx;
    list_init(&t->queue);
    list_init(&t->ready);
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->wake, NULL);
    if (pthread_create(&t->thread, NULL, loop, t) != 0) {
        sfc_tasks_free(t);
        return sfc_fail(err, SFC_ENOMEM, "start a task thread");
    }
    *out = t;
    return SFC_OK;
}

void sfc_tasks_stop(struct sfc_tasks *t)
{
    if (!t || t->stopping)
        return;
    pthread_mutex_lock(&t->mutex);
    t->stopping = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    deliver(t);
}

void sfc_tasks_free(struct sfc_tasks *t)
{
    if (!t)
        return;
    pthread_mutex_destroy(&t->mutex);
    pthread_cond_destroy(&t->wake);
    free(t);
}

void sfc_tasks_submit(struct sfc_tasks *t, struct sfc_task *task)
{
    memset(&task->error, 0, sizeof task->error);
    task->code = SFC_OK;
    pthread_mutex_lock(&t->mutex);
    list_push(&t->queue, task);
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mutex);
}

#include "worker/data/ordered.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct result {
    bool ready;
    int rc;
    struct sfc_error error;
};

struct state {
    const struct sfc_ordered *work;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t next, consumed; /* blocks claimed, blocks consumed */
    bool stop;
    struct result *results; /* [slots] */
};

struct maker {
    struct state *state;
    uint32_t thread;
    pthread_t id;
};

static void *make_loop(void *arg)
{
    struct maker *maker = arg;
    struct state *s = maker->state;
    const struct sfc_ordered *work = s->work;
    pthread_mutex_lock(&s->lock);
    while (!s->stop && s->next < work->blocks) {
        if (s->next >= s->consumed + work->slots) {
            pthread_cond_wait(&s->changed, &s->lock);
            continue;
        }
        uint64_t block = s->next++;
        struct result *result = &s->results[block % work->slots];
        pthread_mutex_unlock(&s->lock);
        struct sfc_error error = {0};
        int rc =
            work->make(work->arg, maker->thread, block, (uint32_t)(block % work->slots), &error);
        pthread_mutex_lock(&s->lock);
        result->rc = rc;
        result->error = error;
        result->ready = true;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int consume_all(struct state *s, struct sfc_error *err)
{
    const struct sfc_ordered *work = s->work;
    int rc = SFC_OK;
    for (uint64_t block = 0; block < work->blocks && rc == SFC_OK; block++) {
        struct result *result = &s->results[block % work->slots];
        pthread_mutex_lock(&s->lock);
        while (!result->ready)
            pthread_cond_wait(&s->changed, &s->lock);
        pthread_mutex_unlock(&s->lock);
        rc = result->rc;
        if (rc != SFC_OK)
            rc = sfc_fail(err, rc, "%s", result->error.text);
        else
            rc = work->consume(work->arg, block, (uint32_t)(block % work->slots), err);
        pthread_mutex_lock(&s->lock);
        result->ready = false;
        s->consumed = block + 1;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
    }
    return rc;
}

int sfc_ordered_run(const struct sfc_ordered *work, struct sfc_error *err)
{
    struct state state = {.work = work};
    struct maker *makers = calloc(work->threads, sizeof *makers);
    state.results = calloc(work->slots, sizeof *state.results);
    if (makers == NULL || state.results == NULL) {
        free(makers);
        free(state.results);
        return sfc_fail(err, SFC_ENOMEM, "no memory for %u threads", work->threads);
    }
    pthread_mutex_init(&state.lock, NULL);
    pthread_cond_init(&state.changed, NULL);
    int rc = SFC_OK;
    uint32_t started = 0;
    for (; started < work->threads; started++) {
        makers[started] = (struct maker){.state = &state, .thread = started};
        errno = pthread_create(&makers[started].id, NULL, make_loop, &makers[started]);
        if (errno != 0) {
            rc = sfc_fail_errno(err, "start a thread");
            break;
        }
    }
    if (rc == SFC_OK)
        rc = consume_all(&state, err);
    pthread_mutex_lock(&state.lock);
    state.stop = true;
    pthread_cond_broadcast(&state.changed);
    pthread_mutex_unlock(&state.lock);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(makers[i].id, NULL);
    pthread_cond_destroy(&state.changed);
    pthread_mutex_destroy(&state.lock);
    free(makers);
    free(state.results);
    return rc;
}

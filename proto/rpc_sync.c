#include "proto/rpc_client_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Made by the caller, filled on the loop thread, freed by the caller in wait. */
struct sfc_rpc_future {
    struct sfc_rpc_tag tag;
    struct sfc_rpc_client *client;
    struct sfc_rpc_request request; /* method and head are copies */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
    struct sfc_rpc_body body;
    struct sfc_error result;
};

static void future_free(struct sfc_rpc_future *future)
{
    pthread_cond_destroy(&future->changed);
    pthread_mutex_destroy(&future->lock);
    free((void *)(uintptr_t)future->request.method);
    free((void *)(uintptr_t)future->request.head.data);
    free(future);
}

static void future_set(struct sfc_rpc_future *future, int code, const char *text,
                       struct sfc_rpc_body *body)
{
    pthread_mutex_lock(&future->lock);
    if (body != NULL) {
        future->body = *body;
        body->buffer = NULL;
    }
    sfc_fail(&future->result, code, "%s", text);
    future->done = true;
    pthread_cond_signal(&future->changed); /* the waiter frees: nothing after the unlock */
    pthread_mutex_unlock(&future->lock);
}

static void deliver(int code, const char *text, struct sfc_rpc_body *body, void *ctx)
{
    future_set(ctx, code, text, body);
}

static void begin(struct sfc_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct sfc_rpc_future *future = SFC_CONTAINER(tag, struct sfc_rpc_future, tag);
    struct sfc_error err = {0};
    int code = sfc_rpc_client_begin(future->client, &future->request, deliver, future, NULL, &err);
    if (code != SFC_OK) {
        future_set(future, code, err.text, NULL);
    }
}

/* Of the clock that no one sets. */
static bool condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) {
        return false;
    }
    bool fine = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(condition, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return fine;
}

static bool future_init(struct sfc_rpc_future *future, const struct sfc_rpc_request *request)
{
    uint8_t *head = malloc(request->head.size > 0 ? request->head.size : 1);
    char *method = strdup(request->method);
    if (head == NULL || method == NULL || pthread_mutex_init(&future->lock, NULL) != 0) {
        free(head);
        free(method);
        return false;
    }
    if (!condition_init(&future->changed)) {
        pthread_mutex_destroy(&future->lock);
        free(head);
        free(method);
        return false;
    }
    if (request->head.size > 0) {
        memcpy(head, request->head.data, request->head.size);
    }
    future->request = *request;
    future->request.method = method;
    future->request.head.data = head;
    return true;
}

int sfc_rpc_start(struct sfc_rpc_client *client, const struct sfc_rpc_request *request,
                  struct sfc_rpc_future **out, struct sfc_error *err)
{
    struct sfc_rpc_future *future = calloc(1, sizeof *future);
    if (future == NULL || !future_init(future, request)) {
        free(future);
        return sfc_fail(err, SFC_ENOMEM, "%s: no memory for a call", request->method);
    }
    future->client = client;
    future->tag.fire = begin;
    sfc_rpc_enqueue(sfc_rpc_client_loop(client), &future->tag, true);
    *out = future;
    return SFC_OK;
}

bool sfc_rpc_wait_for(struct sfc_rpc_future *future, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(ms / 1000);
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&future->lock);
    int rc = 0;
    while (!future->done && rc == 0) {
        rc = pthread_cond_timedwait(&future->changed, &future->lock, &until);
    }
    bool done = future->done;
    pthread_mutex_unlock(&future->lock);
    return done;
}

int sfc_rpc_wait(struct sfc_rpc_future *future, struct sfc_rpc_owned *out, struct sfc_error *err)
{
    pthread_mutex_lock(&future->lock);
    while (!future->done) {
        pthread_cond_wait(&future->changed, &future->lock);
    }
    pthread_mutex_unlock(&future->lock);
    int code = future->result.code;
    if (code == SFC_OK) {
        *out = (struct sfc_rpc_owned){.head = future->body.head,
                                      .tensor = future->body.tensor,
                                      .memory = future->body.buffer,
                                      .answered = true};
    } else {
        out->answered = future->body.answered;
        sfc_rpc_buffer_put(future->body.buffer);
        sfc_fail(err, code, "%s", future->result.text);
    }
    future_free(future);
    return code;
}

void sfc_rpc_owned_free(struct sfc_rpc_owned *reply)
{
    if (reply != NULL) {
        sfc_rpc_buffer_put(reply->memory);
        *reply = (struct sfc_rpc_owned){0};
    }
}

#include "proto/unpack.h"
#include "proto/rpc_blocking.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct sfc_rpc_runner {
    uv_loop_t uv;
    struct sfc_rpc_loop *loop;
    pthread_t thread;
};

static void *run(void *arg)
{
    struct sfc_rpc_runner *runner = arg;
    uv_run(&runner->uv, UV_RUN_DEFAULT);
    return NULL;
}

int sfc_rpc_runner_start(const struct sfc_security *security, struct sfc_rpc_runner **out,
                         struct sfc_error *err)
{
    struct sfc_rpc_runner *runner = calloc(1, sizeof *runner);
    if (runner == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for an RPC loop");
    }
    if (uv_loop_init(&runner->uv) != 0) {
        free(runner);
        return sfc_fail(err, SFC_EINTERNAL, "libuv loop could not be made");
    }
    int code = sfc_rpc_loop_start(&runner->uv, security, &runner->loop, err);
    if (code != SFC_OK) {
        uv_loop_close(&runner->uv);
        free(runner);
        return code;
    }
    if (pthread_create(&runner->thread, NULL, run, runner) != 0) {
        sfc_rpc_loop_stop(runner->loop, NULL, NULL);
        uv_run(&runner->uv, UV_RUN_DEFAULT);
        uv_loop_close(&runner->uv);
        free(runner);
        return sfc_fail(err, SFC_ENOMEM, "RPC thread could not be started");
    }
    *out = runner;
    return SFC_OK;
}

struct sfc_rpc_loop *sfc_rpc_runner_loop(struct sfc_rpc_runner *runner)
{
    return runner->loop;
}

static void stop_on_loop(void *ctx)
{
    struct sfc_rpc_runner *runner = ctx;
    sfc_rpc_loop_stop(runner->loop, NULL, NULL);
}

void sfc_rpc_runner_stop(struct sfc_rpc_runner *runner)
{
    if (runner == NULL) {
        return;
    }
    sfc_rpc_loop_post(runner->loop, stop_on_loop, runner);
    pthread_join(runner->thread, NULL); /* the loop ends when its last handle is closed */
    uv_loop_close(&runner->uv);
    free(runner);
}

struct client_job {
    struct sfc_rpc_runner *runner;
    const char *address;
    struct sfc_rpc_client *client;
    struct sfc_error *err;
    int code;
    sem_t done;
};

static void connect_on_loop(void *ctx)
{
    struct client_job *job = ctx;
    job->code = sfc_rpc_client_new(job->runner->loop, job->address, &job->client, job->err);
    sem_post(&job->done);
}

static void connect_like_on_loop(void *ctx)
{
    struct client_job *job = ctx;
    job->code = sfc_rpc_client_like(job->client, &job->client, job->err);
    sem_post(&job->done);
}

static void disconnect_on_loop(void *ctx)
{
    struct client_job *job = ctx;
    sfc_rpc_client_free(job->client);
    sem_post(&job->done);
}

static void do_job(struct client_job *job, void (*fn)(void *ctx))
{
    sem_init(&job->done, 0, 0);
    sfc_rpc_loop_post(job->runner->loop, fn, job);
    while (sem_wait(&job->done) != 0) {
        /* interrupted by a signal */
    }
    sem_destroy(&job->done);
}

int sfc_rpc_runner_connect(struct sfc_rpc_runner *runner, const char *address,
                           struct sfc_rpc_client **out, struct sfc_error *err)
{
    struct client_job job = {.runner = runner, .address = address, .err = err};
    do_job(&job, connect_on_loop);
    if (job.code == SFC_OK) {
        *out = job.client;
    }
    return job.code;
}

int sfc_rpc_runner_connect_like(struct sfc_rpc_runner *runner, struct sfc_rpc_client *other,
                                struct sfc_rpc_client **out, struct sfc_error *err)
{
    struct client_job job = {.runner = runner, .client = other, .err = err};
    do_job(&job, connect_like_on_loop);
    if (job.code == SFC_OK) {
        *out = job.client;
    }
    return job.code;
}

void sfc_rpc_runner_disconnect(struct sfc_rpc_runner *runner, struct sfc_rpc_client *client)
{
    if (client != NULL) {
        struct client_job job = {.runner = runner, .client = client};
        do_job(&job, disconnect_on_loop);
    }
}

int sfc_ask_start(struct sfc_rpc_client *client, const struct sfc_ask *ask,
                  struct sfc_rpc_future **out, struct sfc_error *err)
{
    size_t size = protobuf_c_message_get_packed_size(ask->message);
    uint8_t *packed = malloc(size + 1);
    if (packed == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "%s: out of memory for the request", ask->method);
    }
    protobuf_c_message_pack(ask->message, packed);
    struct sfc_rpc_request request = {
        .method = ask->method,
        .head = {packed, size},
        .tensor = ask->tensor,
        .deadline_ms = ask->deadline_ms,
        .retries = ask->retries,
    };
    int code = sfc_rpc_start(client, &request, out, err);
    free(packed);
    return code == SFC_OK ? SFC_OK : sfc_prefix(err, "%s", ask->method);
}

int sfc_ask_finish(struct sfc_rpc_future *future, const struct sfc_ask *ask, struct sfc_answer *out,
                   struct sfc_error *err)
{
    struct sfc_rpc_owned owned;
    memset(&owned, 0, sizeof owned);
    int code = sfc_rpc_wait(future, &owned, err);
    out->owned.answered = owned.answered;
    if (code != SFC_OK) {
        sfc_prefix(err, "%s", strrchr(ask->method, '/') + 1);
        return code;
    }
    ProtobufCMessage *message = sfc_unpack_reply(owned.head, ask->reply_type, &code);
    if (message == NULL) {
        sfc_rpc_owned_free(&owned);
        if (code == SFC_ENOMEM) {
            return sfc_fail(err, SFC_ENOMEM, "%s: no memory for the reply", ask->method);
        }
        return sfc_fail(err, SFC_ECORRUPT, "%s: the reply is not a %s", ask->method,
                        ask->reply_type->name);
    }
    out->message = message;
    out->tensor = owned.tensor;
    out->owned = owned;
    return SFC_OK;
}

int sfc_ask(struct sfc_rpc_client *client, const struct sfc_ask *ask, struct sfc_answer *out,
            struct sfc_error *err)
{
    struct sfc_rpc_future *future;
    int code = sfc_ask_start(client, ask, &future, err);
    return code == SFC_OK ? sfc_ask_finish(future, ask, out, err) : code;
}

void sfc_answer_free(struct sfc_answer *answer)
{
    if (answer->message != NULL) {
        protobuf_c_message_free_unpacked(answer->message, NULL);
        sfc_rpc_owned_free(&answer->owned);
        memset(answer, 0, sizeof *answer);
    }
}

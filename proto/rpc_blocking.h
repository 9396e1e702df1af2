/* Blocking calls of protobuf messages, for tools and compute threads: a thread that runs the loop,
 * and one call that packs the request, waits and unpacks the reply. */
#ifndef SFC_PROTO_RPC_BLOCKING_H
#define SFC_PROTO_RPC_BLOCKING_H

#include <protobuf-c/protobuf-c.h>

#include "proto/rpc.h"

/* A libuv loop with an RPC loop on a thread of its own. */
struct sfc_rpc_runner;

/* security: see sfc_rpc_loop_start. */
int sfc_rpc_runner_start(const struct sfc_security *security, struct sfc_rpc_runner **out,
                         struct sfc_error *err);
/* Stops the loop, joins the thread; clients must be freed before (sfc_rpc_runner_disconnect). NULL
 * is fine. */
void sfc_rpc_runner_stop(struct sfc_rpc_runner *runner);
struct sfc_rpc_loop *sfc_rpc_runner_loop(struct sfc_rpc_runner *runner);

/* Creates or frees a client on the loop thread and waits for it. */
int sfc_rpc_runner_connect(struct sfc_rpc_runner *runner, const char *address,
                           struct sfc_rpc_client **out, struct sfc_error *err);
/* sfc_rpc_client_like. */
int sfc_rpc_runner_connect_like(struct sfc_rpc_runner *runner, struct sfc_rpc_client *other,
                                struct sfc_rpc_client **out, struct sfc_error *err);
void sfc_rpc_runner_disconnect(struct sfc_rpc_runner *runner, struct sfc_rpc_client *client);

struct sfc_ask {
    const char *method; /* "/shardfc.v1.Scheduler/Status" */
    const ProtobufCMessage *message;
    struct sfc_bytes tensor; /* field 15; size 0 = none */
    unsigned deadline_ms;
    unsigned retries;
    const ProtobufCMessageDescriptor *reply_type;
};

struct sfc_answer {
    ProtobufCMessage *message; /* of reply_type */
    struct sfc_bytes tensor;   /* field 15 of the reply */
    struct sfc_rpc_owned owned;
};

/* Starts a call; any thread but the loop's. The future is ended by sfc_ask_finish only. */
int sfc_ask_start(struct sfc_rpc_client *client, const struct sfc_ask *ask,
                  struct sfc_rpc_future **out, struct sfc_error *err);
/* Waits and unpacks. On failure only out->owned.answered is written, and err starts with the
 * method's name. */
int sfc_ask_finish(struct sfc_rpc_future *future, const struct sfc_ask *ask, struct sfc_answer *out,
                   struct sfc_error *err);
/* Both in one. */
int sfc_ask(struct sfc_rpc_client *client, const struct sfc_ask *ask, struct sfc_answer *out,
            struct sfc_error *err);
void sfc_answer_free(struct sfc_answer *answer); /* an all-zero answer is fine */

#endif

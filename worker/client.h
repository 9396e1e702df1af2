/* Inside of the client library (worker/include/shardfc.h is the public face). */
#ifndef SFC_WORKER_CLIENT_H
#define SFC_WORKER_CLIENT_H

#include <pthread.h>

#include "proto/limits.h"
#include "proto/rpc_blocking.h"
#include "proto/shardfc.pb-c.h"
#include "worker/include/shardfc.h"

struct sfc_client {
    struct sfc_rpc_runner *runner;
    struct sfc_rpc_client *scheduler;
    char address[256];
};

/* The dense blocks of one shard. */
struct sfc_dense_share {
    uint32_t *blocks; /* ascending */
    size_t count;
    size_t floats;
};

struct sfc_member {
    struct sfc_client *client;
    uint64_t worker, session, run_id;
    uint64_t next_step;       /* sessions */
    struct sfc_answer answer; /* owns config and map */
    const Shardfc__V1__RunConfig *config;
    const Shardfc__V1__BlockMap *map;
    uint64_t dense_size;
    size_t shards;
    struct sfc_dense_share *dense; /* [shards] */

    pthread_rwlock_t lock; /* read: starting a call; write: cancelling */
    bool cancelled;
    struct sfc_rpc_client *scheduler; /* own channel, so that its calls can be cancelled */
    struct sfc_rpc_client **shard;    /* [shards] */
};

const Shardfc__V1__RunConfig *sfc_member_config(const struct sfc_member *member);

/* Starts a call to shard k (k < shards) or to the scheduler (k == shards), unless cancelled. */
int sfc_member_start(struct sfc_member *member, size_t k, const struct sfc_ask *ask,
                     struct sfc_rpc_future **out, struct sfc_error *err);
/* Start and finish. */
int sfc_member_ask(struct sfc_member *member, size_t k, const struct sfc_ask *ask,
                   struct sfc_answer *out, struct sfc_error *err);

/* First float and length of a dense block in the parameter vector. */
void sfc_dense_block_span(const struct sfc_member *member, uint32_t block, size_t *first,
                          size_t *count);

#endif

/* Inside of the client library (worker/include/shardfc.h is the public face). */
#ifndef SFC_WORKER_CLIENT_H
#define SFC_WORKER_CLIENT_H

#include <pthread.h>

#include "proto/base/spans.h"
#include "proto/limits.h"
#include "proto/rpc_blocking.h"
#include "proto/shardfc.pb-c.h"
#include "worker/include/shardfc.h"
#include "worker/synthetic.h"

struct sfc_client {
    struct sfc_rpc_runner *runner;
    struct sfc_rpc_client *scheduler;
    char address[SFC_RPC_ADDRESSES * (SFC_LIMIT_ADDRESS + 1)];
};

/* Some dense blocks. */
struct sfc_dense_share {
    uint32_t *blocks; /* ascending */
    size_t count;
    size_t floats;
};

/* A shard that some version of the block map names. */
struct sfc_link {
    struct sfc_link *next;
    uint32_t routes; /* that have it */
    char address[256];
    struct sfc_rpc_client *client; /* NULL: the membership was cancelled */
};

/* One version of the block map with its shards; never changed. Whoever makes calls by it holds it
 * until they are finished, so that a new version disturbs nobody. */
struct sfc_route {
    uint32_t users;           /* the member counts as one while it is the present route */
    struct sfc_answer answer; /* owns map; of the first route: the member's does */
    const Shardfc__V1__BlockMap *map;
    size_t shards;                 /* places of the map */
    struct sfc_link **links;       /* [shards]; NULL: nobody has this place */
    struct sfc_dense_share *dense; /* [shards]; what each one owns: pulled from it */
    struct sfc_dense_share *push;  /* [shards]; that and what it mirrors: pushed to it */
    size_t push_floats;            /* of all of them */
};

struct sfc_member {
    struct sfc_client *client;
    uint64_t worker, session, run_id;
    uint64_t next_step;       /* sessions */
    struct sfc_answer answer; /* owns config and the first map */
    const Shardfc__V1__RunConfig *config;
    uint64_t dense_size, dense_blocks;

    pthread_rwlock_t lock; /* read: starting a call; write: cancelling, changing links */
    bool cancelled;
    struct sfc_rpc_client *scheduler; /* own channel, so that its calls can be cancelled */
    struct sfc_link *links;

    struct {
        uint64_t id, first, last; /* id 0: nobody asks */
    } trace;                      /* of the last heartbeat: report_spans.h */

    pthread_mutex_t follow_lock; /* one thread at a time asks for the map */
    pthread_mutex_t route_lock;
    struct sfc_route *route; /* the present one */
};

/* How many addresses the scheduler may be at. */
unsigned sfc_client_addresses(const struct sfc_client *client);

const Shardfc__V1__RunConfig *sfc_member_config(const struct sfc_member *member);

/* sfc_member_ticket, which says when a grant came that a new block map had to be fetched for; 0: it
 * was there. */
int sfc_member_ticket_timed(struct sfc_member *member, enum sfc_ticket_kind kind,
                            struct sfc_ticket *ticket, uint64_t *granted_ns, struct sfc_error *err);

/* Classes as of the present route, and how the run came to them: at most `room` growths; returns
 * how many. */
uint64_t sfc_member_classes(struct sfc_member *member);
size_t sfc_member_growth(struct sfc_member *member, struct sfc_synthetic_growth *out, size_t room);

/* Starts a call, unless cancelled: to the shard at place k of a route, or to the scheduler. */
int sfc_member_start(struct sfc_member *member, const struct sfc_route *route, size_t k,
                     const struct sfc_ask *ask, struct sfc_rpc_future **out, struct sfc_error *err);
/* To the scheduler; start and finish. */
int sfc_member_ask(struct sfc_member *member, const struct sfc_ask *ask, struct sfc_answer *out,
                   struct sfc_error *err);

/* The present route, for calls; give it back with sfc_route_release. */
struct sfc_route *sfc_route_take(struct sfc_member *member);
void sfc_route_release(struct sfc_member *member, struct sfc_route *route); /* NULL is fine */
uint64_t sfc_route_version(struct sfc_member *member);                      /* of the present one */
size_t sfc_route_shards(const struct sfc_route *route); /* without empty places */
/* Floats of a gradient that go to shards, by the present map. */
uint64_t sfc_member_push_floats(struct sfc_member *member);
/* The route of a map, connected, becomes the present one. Takes the answer, whatever happens. */
int sfc_route_change(struct sfc_member *member, struct sfc_answer answer,
                     const Shardfc__V1__BlockMap *map, struct sfc_error *err);
/* "shard 7 at HOST:PORT: " in front of a message. */
void sfc_route_prefix(const struct sfc_route *route, size_t k, struct sfc_error *err);

/* What an exchange does is recorded as phases of this lap, which outlives it; NULL: it isn't. */
void sfc_record_exchange(struct sfc_exchange *exchange, struct sfc_lap *lap);

/* First float and length of a dense block in the parameter vector. */
void sfc_dense_block_span(const struct sfc_member *member, uint32_t block, size_t *first,
                          size_t *count);

#endif

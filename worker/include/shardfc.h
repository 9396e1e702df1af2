/* ShardFC's public C client: what a worker or a foreign framework needs to train against a class
 * layer that lives on shard servers. docs/PROTOCOL.md tells the order of the calls.
 *
 * Two ways in:
 *  - a *worker* joins a run (sfc_client_join), asks for tickets, announces labels and computes the
 *    micro-batches that it is granted;
 *  - a *session* (sfc_client_open_session) is for frameworks that bring their own data and
 * backbone: for every step it announces the labels of all micro-batches, exchanges features for
 * gradients, and says done. Opening a session voids the older ones.
 *
 * Threads: every function except the _free ones may be called from many threads at once with the
 * same client and member; a struct sfc_exchange belongs to one thread at a time. All calls block.
 *
 * Errors: int status as in proto/base/status.h. SFC_ESTALE: the run, step or attempt is no
 * longer the current one (a worker asks for another ticket; where the scheduler says so, joins
 * again). SFC_EUNAVAILABLE, SFC_ETIMEOUT: a peer does not answer, after the retries that the
 * protocol allows. SFC_ECANCELED: sfc_member_cancel was called. SFC_ECORRUPT: a peer's answer
 * breaks the protocol; the message says which shard and how. Out parameters are written on success
 * only. */
#ifndef SHARDFC_H
#define SHARDFC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"
#include "proto/security.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SFC_CLIENT_NO_LABEL UINT64_MAX /* label of a row of weight 0 */

struct sfc_client;   /* connection to a scheduler */
struct sfc_member;   /* a joined run or an open session: configuration, block map, shards */
struct sfc_exchange; /* buffers for the head exchange of one thread */

struct sfc_attempt_id {
    uint64_t incarnation;
    uint64_t counter;
};

struct sfc_run_info {
    uint64_t run_id;
    uint64_t seed;
    uint64_t classes; /* as of the block map that the member has now, */
    uint64_t samples; /* and so is the data set: a run can grow */
    uint64_t steps;
    uint64_t next_step; /* sessions: the first step to bring */
    uint32_t dim;
    uint32_t global_batch;
    uint32_t micro_batch;
    uint32_t shards;      /* of the block map that the member has now, */
    uint64_t map_version; /* and its version: it changes when shards come, go, or move blocks */
    uint64_t dense_size;  /* floats of the backbone's parameter vector; 0 = backbone "none" */
    double scale;
    const char *name; /* valid as long as the member */
    const char *backbone;
};

/* ---- connection */

/* Starts the network thread. scheduler: "HOST:PORT", or those of several schedulers of which one
 * leads, with commas between. security: of all connections, read in here only; NULL: plaintext, on
 * loopback. Connects lazily: a wrong address shows at the first call. */
int sfc_client_new(const char *scheduler, const struct sfc_security *security,
                   struct sfc_client **out, struct sfc_error *err);
/* After all members were freed. NULL is fine. */
void sfc_client_free(struct sfc_client *client);

/* ---- membership */

enum sfc_client_data { SFC_CLIENT_DATA_RECORDS, SFC_CLIENT_DATA_SYNTHETIC };

struct sfc_join {
    const char *name;     /* shown in status, e.g. host:pid */
    const char *numerics; /* numerics class of this process */
    uint32_t lanes;       /* micro-batches computed side by side */
    enum sfc_client_data data;
    const char *data_digest; /* RECORDS: of the data set that this worker reads */
    uint64_t samples;        /* RECORDS only, like the rest */
    uint32_t width, height, channels;
    bool flip;
    /* RECORDS: a set that is larger than the run's may begin with it. Then joining is answered with
     * *wanted (may be NULL), and asked again with so many samples and the digest of a set of them.
     */
    uint64_t begin_samples; /* 0: not known */
    const char *begin_digest;
    uint64_t *wanted;
};

/* Waits some seconds for a run to join. *out NULL with SFC_OK: no run yet, ask again. The caller
 * frees the member. */
int sfc_client_join(struct sfc_client *client, const struct sfc_join *join, struct sfc_member **out,
                    struct sfc_error *err);
/* run_id 0: the current run. *attempt serves every micro-batch of every step of this session. */
int sfc_client_open_session(struct sfc_client *client, const char *name, uint64_t run_id,
                            struct sfc_member **out, struct sfc_attempt_id *attempt,
                            struct sfc_error *err);
void sfc_member_info(struct sfc_member *member, struct sfc_run_info *out);
/* The block map changes while a run goes on. A member takes the new one by itself: with a grant
 * that goes with it, and in a session when shards refuse an exchange because of it. Whoever hears
 * of a new version earlier (sfc_pulse) may connect to new shards before that. Nothing is done when
 * the member has this version; 0: asks in any case. */
int sfc_member_follow_map(struct sfc_member *member, uint64_t version, struct sfc_error *err);
/* Calls that wait end with SFC_ECANCELED, as do later ones. */
void sfc_member_cancel(struct sfc_member *member);
/* After every other call on it returned. NULL is fine. */
void sfc_member_free(struct sfc_member *member);
/* Says goodbye: grants go to others at once. */
int sfc_member_leave(struct sfc_member *member, struct sfc_error *err);

struct sfc_pulse {
    bool known; /* false: the scheduler does not know this worker, join again */
    uint64_t run_id;
    uint64_t step; /* committed */
    uint64_t map_version;
    char state[32]; /* as in `shardfc status` */
};
/* One heartbeat; the scheduler holds it for about a second. A worker keeps one open all the time.
 */
int sfc_member_heartbeat(struct sfc_member *member, struct sfc_pulse *out, struct sfc_error *err);

/* ---- work */

enum sfc_ticket_kind { SFC_TICKET_DATA, SFC_TICKET_COMPUTE };
enum sfc_ticket_state { SFC_TICKET_NONE, SFC_TICKET_GRANTED, SFC_TICKET_REJOIN };

struct sfc_ticket {
    enum sfc_ticket_state state; /* NONE: no work now, ask again; REJOIN: join again */
    uint64_t step;
    uint32_t micro_batch;
    bool dropped;                  /* every row has weight 0 */
    struct sfc_attempt_id attempt; /* COMPUTE */
    uint64_t first_position;       /* of row 0 in the endless sample sequence */
    uint64_t *samples;             /* caller's buffer, micro_batch entries */
    bool grown;       /* the run's set has grown: positions alone don't say the epoch */
    uint64_t *epochs; /* with grown: of each row; caller's buffer like samples, or NULL */
};
/* Waits for work for about a second. ticket->samples must point to room for micro_batch ids. */
int sfc_member_ticket(struct sfc_member *member, enum sfc_ticket_kind kind,
                      struct sfc_ticket *ticket, struct sfc_error *err);

/* labels: micro_batch of them, SFC_CLIENT_NO_LABEL for rows of weight 0. Repeating it is harmless;
 * different labels for the same micro-batch are SFC_ECONFLICT. */
int sfc_member_announce(struct sfc_member *member, uint64_t step, uint32_t micro_batch,
                        const uint64_t *labels, const uint32_t *broken_rows, size_t broken_count,
                        const char *broken_reason, struct sfc_error *err);

struct sfc_work { /* one attempt at one micro-batch */
    uint64_t step;
    uint32_t micro_batch;
    struct sfc_attempt_id attempt;
};

/* Result of one head exchange. */
struct sfc_exchange_result {
    double loss_sum;        /* sum over rows of log-sum-exp - target logit */
    uint32_t zero_features; /* rows whose norm is below 1e-12 */
    uint8_t head_digest[16];
};
int sfc_exchange_new(struct sfc_member *member, struct sfc_exchange **out, struct sfc_error *err);
void sfc_exchange_free(struct sfc_exchange *exchange); /* NULL is fine */
/* features [micro_batch, dim], raw, finite; labels as announced. dfeatures [micro_batch, dim]: the
 * gradient of the loss (mean over the global batch) with respect to the raw features. */
int sfc_exchange_run(struct sfc_exchange *exchange, struct sfc_member *member,
                     const struct sfc_work *work, const float *features, const uint64_t *labels,
                     float *dfeatures, struct sfc_exchange_result *result, struct sfc_error *err);

/* Number of dense blocks = digests that Done carries; 0 with backbone "none". */
size_t sfc_member_dense_blocks(const struct sfc_member *member);
/* gradient [dense_size] goes to the shards that own its slices; digests [dense_blocks] are filled.
 */
int sfc_exchange_push_dense(struct sfc_exchange *exchange, struct sfc_member *member,
                            const struct sfc_work *work, const float *gradient, uint64_t *digests,
                            struct sfc_error *err);
/* params [dense_size] after `step`; waits until the step is applied. attempt: the grant that they
 * are for, NULL: none. SFC_ESTALE: it is void; the run may have gone back to an earlier step. */
int sfc_member_pull_dense(struct sfc_member *member, uint64_t step,
                          const struct sfc_attempt_id *attempt, float *params,
                          struct sfc_error *err);

/* *accepted false: another attempt of this micro-batch counts. */
int sfc_member_done(struct sfc_member *member, const struct sfc_work *work,
                    const struct sfc_exchange_result *result, const uint64_t *dense_digests,
                    bool *accepted, struct sfc_error *err);
/* Returns a grant; the scheduler gives it to somebody else. */
int sfc_member_give_up(struct sfc_member *member, const struct sfc_work *work, int code,
                       const char *reason, struct sfc_error *err);
/* Returns a data ticket (work->attempt is ignored). */
int sfc_member_give_up_data(struct sfc_member *member, const struct sfc_work *work, int code,
                            const char *reason, struct sfc_error *err);

/* ---- looking on */

struct sfc_history_point {
    uint64_t step;
    double loss, lr, images_per_s;
};
/* At most *count points after `after_step` of run run_id (0: the current or last run). *count
 * becomes the number written. */
int sfc_client_history(struct sfc_client *client, uint64_t run_id, uint64_t after_step,
                       struct sfc_history_point *points, size_t *count, struct sfc_error *err);

struct sfc_client_state {
    char state[32];
    char reason[256];
    uint64_t run_id, step, steps;
};
int sfc_client_status(struct sfc_client *client, struct sfc_client_state *out,
                      struct sfc_error *err);

#ifdef __cplusplus
}
#endif
#endif

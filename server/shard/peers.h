/* The other shards of a run, for one whose log lacks steps that it needs (a recovery, a way back):
 * their head inputs (labels, features, log-sum-exps) are equal everywhere, and each shard answers
 * ReadStep from its own log.
 *
 * Threads: new and free on the loop thread; read blocks, on one other thread at a time. */
#ifndef SFC_SHARD_PEERS_H
#define SFC_SHARD_PEERS_H

#include <stdatomic.h>

#include "proto/rpc.h"
#include "server/durable/lineage.h"
#include "server/durable/step_log.h"
#include "server/run/step_inputs.h"

struct sfc_peers;

/* map: with the addresses of all shards; lineage: what it makes void is not taken (borrowed). *out
 * is NULL when there is no other. */
int sfc_peers_new(struct sfc_rpc_loop *loop, const Shardfc__V1__BlockMap *map, uint32_t self,
                  uint64_t run_id, const struct sfc_step_shape *shape,
                  const struct sfc_lineage *lineage, struct sfc_peers **out, struct sfc_error *err);
/* No read is at work. NULL is fine. */
void sfc_peers_free(struct sfc_peers *peers);

/* Where a step is put together. */
struct sfc_peers_step {
    struct sfc_log_commit commit;
    uint64_t *labels;             /* [batch] */
    float *features;              /* [batch, dim] */
    struct sfc_attempt *attempts; /* [batch / micro_batch] */
    double *lse;                  /* [batch] */
    const char *from;             /* address of the shard that gave it, while peers live */
};
/* Where the parts of a step are in a record's body, without dense sums (FETCHED): the pointers of
 * *step. geometry: of the own log. SFC_ENOMEM. */
int sfc_peers_place(const struct sfc_log_geometry *geometry, struct sfc_log_body *body,
                    struct sfc_peers_step *step, struct sfc_error *err);
/* Fills *step from whichever shard has it. commit.step: the step; has_round: commit.round must be
 * what was committed. Of a skipped step only the commit is filled.
 * SFC_ENOTFOUND: every other shard says that it has no such step, or can't be believed; the text
 * has their words. SFC_EUNAVAILABLE: some don't answer, for as long as it makes sense to wait.
 * SFC_ECANCELED: *abandon was set. */
int sfc_peers_read(struct sfc_peers *peers, struct sfc_peers_step *step, bool has_round,
                   const atomic_bool *abandon, struct sfc_error *err);

#endif

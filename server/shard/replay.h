/* One logged step gone through again on any set of a shard's blocks: recovery does it with all of
 * them, a checkpoint with one. Bits don't depend on which blocks take part (kernels/backend.h, I8).
 */
#ifndef SFC_SHARD_REPLAY_H
#define SFC_SHARD_REPLAY_H

#include "kernels/backend.h"
#include "server/durable/step_log.h"

struct sfc_replay {
    const struct sfc_head_config *config; /* borrowed */
    struct sfc_log_body body;             /* what sfc_step_log_read gives */
    struct sfc_head_logits_item *logits;
    struct sfc_head_gradient_item *gradients;
    uint32_t *slots;
    uint64_t *exp_sums;
    float *targets;
    uint8_t *has_target;
};

/* SFC_ENOMEM. */
int sfc_replay_init(struct sfc_replay *replay, const struct sfc_head_config *config,
                    struct sfc_error *err);
void sfc_replay_close(struct sfc_replay *replay); /* zeroed is fine */

/* head or dense: NULL when none of its blocks takes part. inputs: of the Prepare that the commit
 * names; NULL where the commit applies nothing. dense_sums: packed
 * (sfc_dense_sums), of the blocks of dense alone. */
int sfc_replay_step(struct sfc_replay *replay, struct sfc_head *head, struct sfc_dense *dense,
                    const struct sfc_log_commit *commit, const struct sfc_log_prepare_view *inputs,
                    const void *dense_sums, struct sfc_error *err);

#endif

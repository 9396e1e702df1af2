/* Head inputs of a step as ReadStep carries them from a shard that has them to one that lost them:
 * how many rows fit in an answer, and what is checked of one before anything in it is used. Pure.
 */
#ifndef SFC_RUN_STEP_INPUTS_H
#define SFC_RUN_STEP_INPUTS_H

#include "proto/base/bytes.h"
#include "proto/base/digest.h"
#include "proto/shardfc.pb-c.h"
#include "server/core/types.h"

/* Of the run. */
struct sfc_step_shape {
    uint32_t batch;
    uint32_t micro_batch; /* divides batch */
    uint32_t dim;
    uint64_t classes;
};

/* A whole step, in memory of somebody else. */
struct sfc_step_inputs {
    const uint64_t *labels;             /* [batch] */
    const float *features;              /* [batch, dim] */
    const struct sfc_attempt *attempts; /* [batch / micro_batch] */
    const double *lse;                  /* [batch] */
};

/* Most rows of one answer, at least 1. */
uint32_t sfc_step_piece_rows(const struct sfc_step_shape *shape);

void sfc_step_inputs_digest(const struct sfc_step_shape *shape,
                            const struct sfc_step_inputs *inputs, struct sfc_digest *scratch,
                            uint8_t out[SFC_DIGEST_SIZE]);

/* The answer to a request for `rows` rows. SFC_OK: its round, rates and digest are there; where it
 * says apply, it has exactly these rows of labels (a class or none), finite LSE and features, and
 * one attempt per micro-batch. SFC_EINVAL names what is wrong. */
int sfc_step_reply_check(const Shardfc__V1__ReadStepReply *reply, struct sfc_bytes features,
                         const struct sfc_step_shape *shape, uint32_t rows, struct sfc_error *err);

#endif

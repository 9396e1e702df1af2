/* Checks the configuration of a run as a peer sends it, field by field, before anybody computes
 * sizes from it. What only a backend can know (which options it has) it checks itself. */
#ifndef SFC_PROTO_RUN_CONFIG_H
#define SFC_PROTO_RUN_CONFIG_H

#include <stdint.h>

#include "proto/base/status.h"
#include "proto/shardfc.pb-c.h"

/* Choices of the text fields, in the order of the enums of kernels/backend.h; NULL ends. */
extern const char *const sfc_run_margin_grads[];   /* exact, identity */
extern const char *const sfc_run_corrections[];    /* none, logq */
extern const char *const sfc_run_optimizers[];     /* sgd, adamw */
extern const char *const sfc_run_momentum_modes[]; /* sampled, dense */
extern const char *const sfc_run_dtypes[];         /* f32, bf16 */
extern const char *const sfc_run_roundings[];      /* stochastic, nearest */
/* Index of text in choices, -1 when it is none of them. */
int sfc_run_choice(const char *const *choices, const char *text);

/* SFC_OK, or SFC_EINVAL naming the field, its value and its bounds. Afterwards:
 * - every number lies within proto/limits.h, every double is finite, every text is one of its
 * choices;
 * - micro_batch divides global_batch, and classes / block_size gives at most SFC_LIMIT_BLOCKS
 * blocks;
 * - segments are empty exactly when backbone is "none", and their total length fits 64 bits and the
 *   limits. */
int sfc_run_config_check(const Shardfc__V1__RunConfig *config, struct sfc_error *err);

/* Floats of one segment and of the whole backbone; only after a successful check. */
uint64_t sfc_run_segment_length(const Shardfc__V1__DenseSegment *segment);
uint64_t sfc_run_dense_size(const Shardfc__V1__RunConfig *config);

/* The data set of a worker (JoinRequest) or of a run. */
int sfc_run_data_check(const Shardfc__V1__DataSet *data, struct sfc_error *err);

#endif

/* Step records whose content follows from (step, round), for tests of the step log. */
#ifndef SFC_TESTS_LOG_RIG_H
#define SFC_TESTS_LOG_RIG_H

#include "server/durable/step_log.h"

enum {
    RIG_BATCH = 6,
    RIG_MICRO_BATCH = 2,
    RIG_PIECES = 3,
    RIG_DIM = 5,
    RIG_DENSE = 7,
    RIG_HALVES = 2
};

/* Odd sizes, so that every array needs padding. */
extern const struct sfc_log_geometry rig_geometry;
void rig_identity(struct sfc_run_identity *out);

struct rig_step {
    uint64_t labels[RIG_BATCH];
    float features[RIG_BATCH * RIG_DIM];
    double lse[RIG_BATCH];
    float dense[RIG_DENSE]; /* as many bytes as the sums: 2 halves take 8, 5 floats 20 */
    struct sfc_attempt attempts[RIG_PIECES];
    const float *feature_pieces[RIG_PIECES];
    const double *lse_pieces[RIG_PIECES];
    struct sfc_log_prepare prepare; /* points at the above */
};
void rig_fill(struct rig_step *step, uint64_t number, struct sfc_attempt round);
/* The commit of a step: every seventh is skipped. */
struct sfc_log_commit rig_commit(uint64_t number, struct sfc_attempt round);
bool rig_same_commit(const struct sfc_log_commit *a, const struct sfc_log_commit *b);
/* view->dense may be NULL. */
bool rig_same(const struct sfc_log_prepare_view *view, uint64_t number, struct sfc_attempt round);

#endif

/* Backbones once more, in double, as plain loops over [batch, channels, height, width]: what the
 * lanes are tested against. Shares only the table of layers with the product. */
#ifndef SFC_TESTS_UNIT_MODEL_REFERENCE_H
#define SFC_TESTS_UNIT_MODEL_REFERENCE_H

#include "worker/model/layers.h"

struct reference {
    const struct sfc_model *model;
    uint32_t batch;
    double **tensors; /* layer_count + 1 */
    double
        *statistics; /* [size]: batch mean and unbiased variance where the table has statistics */
};

void reference_init(struct reference *r, const struct sfc_model *model, uint32_t batch);
void reference_close(struct reference *r);
/* training: batch statistics; otherwise those in params. Returns the features [batch, dim]. */
const double *reference_forward(struct reference *r, const double *params, const float *images,
                                bool training);

#endif

#include "server/run/step_inputs.h"

#include <inttypes.h>
#include <math.h>

#include "proto/limits.h"
#include "proto/tensor.h"

uint32_t sfc_step_piece_rows(const struct sfc_step_shape *shape)
{
    uint64_t rows = SFC_LIMIT_STEP_PIECE / (sizeof(float) * (uint64_t)shape->dim);
    return rows < shape->batch ? (uint32_t)rows : shape->batch;
}

_Static_assert(SFC_LIMIT_STEP_PIECE >= sizeof(float) * SFC_LIMIT_DIM, "a row fits in an answer");

void sfc_step_inputs_digest(const struct sfc_step_shape *shape,
                            const struct sfc_step_inputs *inputs, struct sfc_digest *scratch,
                            uint8_t out[SFC_DIGEST_SIZE])
{
    size_t batch = shape->batch;
    sfc_digest_reset(scratch);
    sfc_digest_update(scratch, inputs->labels, batch * sizeof *inputs->labels);
    sfc_digest_update(scratch, inputs->features, batch * shape->dim * sizeof *inputs->features);
    sfc_digest_update(scratch, inputs->attempts,
                      batch / shape->micro_batch * sizeof *inputs->attempts);
    sfc_digest_update(scratch, inputs->lse, batch * sizeof *inputs->lse);
    sfc_digest_final(scratch, out);
}

static int check_commit(const Shardfc__V1__ReadStepReply *r, struct sfc_error *err)
{
    if (!r->round)
        return sfc_fail(err, SFC_EINVAL, "round is missing");
    if (!(r->lr >= 0 && isfinite(r->lr)))
        return sfc_fail(err, SFC_EINVAL, "lr: %g is not a learning rate", r->lr);
    if (!(r->clip_scale >= 0 && r->clip_scale <= 1))
        return sfc_fail(err, SFC_EINVAL, "clip_scale: %g is not within 0..1", r->clip_scale);
    return SFC_OK;
}

static int check_counts(const Shardfc__V1__ReadStepReply *r, const struct sfc_step_shape *shape,
                        uint32_t rows, struct sfc_error *err)
{
    if (r->n_labels != rows || r->n_lse != rows)
        return sfc_fail(err, SFC_EINVAL, "%zu labels and %zu LSE for %u rows", r->n_labels,
                        r->n_lse, rows);
    if (r->n_attempts != shape->batch / shape->micro_batch)
        return sfc_fail(err, SFC_EINVAL, "%zu attempts for %u micro-batches", r->n_attempts,
                        shape->batch / shape->micro_batch);
    if (r->digest.len != SFC_DIGEST_SIZE)
        return sfc_fail(err, SFC_EINVAL, "a digest of %zu bytes", r->digest.len);
    return SFC_OK;
}

static int check_rows(const Shardfc__V1__ReadStepReply *r, const struct sfc_step_shape *shape,
                      uint32_t rows, struct sfc_error *err)
{
    for (uint32_t i = 0; i < rows; i++) {
        if (r->labels[i] >= shape->classes && r->labels[i] != SFC_CORE_LABEL_NONE)
            return sfc_fail(err, SFC_EINVAL, "labels[%u]: %" PRIu64 " is not below %" PRIu64, i,
                            r->labels[i], shape->classes);
        if (!isfinite(r->lse[i]))
            return sfc_fail(err, SFC_EINVAL, "lse[%u] is not finite", i);
    }
    return SFC_OK;
}

int sfc_step_reply_check(const Shardfc__V1__ReadStepReply *reply, struct sfc_bytes features,
                         const struct sfc_step_shape *shape, uint32_t rows, struct sfc_error *err)
{
    uint64_t dims[] = {rows, shape->dim};
    int code = check_commit(reply, err);
    if (code != SFC_OK || !reply->apply)
        return code;
    code = check_counts(reply, shape, rows, err);
    if (code == SFC_OK)
        code = check_rows(reply, shape, rows, err);
    if (code == SFC_OK)
        code = sfc_tensor_check(reply->payload_type, features, SHARDFC__V1__DTYPE__DTYPE_F32, dims,
                                2, "payload (features)", err);
    return code;
}

/* Any bytes as the answer of a shard to ReadStep: what the check accepts has exactly the rows that
 * were asked for. The first byte says how many. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "proto/wire.h"
#include "server/run/step_inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool condition)
{
    if (!condition) {
        abort();
    }
}

static void check_taken(const Shardfc__V1__ReadStepReply *r, struct sfc_bytes features,
                        const struct sfc_step_shape *shape, uint32_t rows)
{
    must(r->round != NULL && r->lr >= 0 && r->clip_scale >= 0 && r->clip_scale <= 1);
    if (!r->apply) {
        return;
    }
    must(r->n_labels == rows && r->n_lse == rows);
    must(r->n_attempts == shape->batch / shape->micro_batch);
    must(r->digest.len == SFC_DIGEST_SIZE);
    must(features.size == (size_t)rows * shape->dim * sizeof(float));
    for (uint32_t i = 0; i < rows; i++) {
        must(r->labels[i] < shape->classes || r->labels[i] == UINT64_MAX);
        must(isfinite(r->lse[i]));
    }
    for (size_t j = 0; j < r->n_attempts; j++) {
        must(r->attempts[j] != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct sfc_step_shape shape = {4, 2, 2, 100};
    struct sfc_bytes head, tensor, body;
    if (size == 0) {
        return 0;
    }
    uint32_t rows = 1 + data[0] % shape.batch;
    body = (struct sfc_bytes){data + 1, size - 1};
    if (sfc_wire_split(body, &head, &tensor, NULL) != SFC_OK) {
        return 0;
    }
    Shardfc__V1__ReadStepReply *reply =
        shardfc__v1__read_step_reply__unpack(NULL, head.size, head.data);
    if (reply == NULL) {
        return 0;
    }
    if (sfc_step_reply_check(reply, tensor, &shape, rows, NULL) == SFC_OK) {
        check_taken(reply, tensor, &shape, rows);
    }
    shardfc__v1__read_step_reply__free_unpacked(reply, NULL);
    return 0;
}

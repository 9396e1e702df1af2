#include "server/shard/replay.h"

#include <stdlib.h>
#include <string.h>

static size_t micro_batches(const struct sfc_replay *r)
{
    return r->config->batch / r->config->micro_batch;
}

int sfc_replay_init(struct sfc_replay *replay, const struct sfc_head_config *config,
                    struct sfc_error *err)
{
    struct sfc_replay r = {.config = config};
    size_t count = micro_batches(&r), rows = config->batch;
    r.logits = calloc(count, sizeof *r.logits);
    r.gradients = calloc(count, sizeof *r.gradients);
    r.slots = calloc(count, sizeof *r.slots);
    r.exp_sums = calloc(rows * 4, sizeof *r.exp_sums);
    r.targets = calloc(rows, sizeof *r.targets);
    r.has_target = calloc(rows, 1);
    if (!r.logits || !r.gradients || !r.slots || !r.exp_sums || !r.targets || !r.has_target) {
        sfc_replay_close(&r);
        return sfc_fail(err, SFC_ENOMEM, "no memory for the steps of the log");
    }
    *replay = r;
    return SFC_OK;
}

void sfc_replay_close(struct sfc_replay *r)
{
    sfc_log_body_free(&r->body);
    free(r->logits);
    free(r->gradients);
    free(r->slots);
    free(r->exp_sums);
    free(r->targets);
    free(r->has_target);
    memset(r, 0, sizeof *r);
}

static void set_items(struct sfc_replay *r, const struct sfc_log_prepare_view *v)
{
    const struct sfc_head_config *c = r->config;
    for (uint32_t j = 0; j < micro_batches(r); j++) {
        size_t row = (size_t)j * c->micro_batch;
        r->slots[j] = j;
        r->logits[j] = (struct sfc_head_logits_item){.slot = j,
                                                     .micro_batch = j,
                                                     .features = v->features + row * c->dim,
                                                     .exp_sum = r->exp_sums + 4 * row,
                                                     .target_logit = r->targets + row,
                                                     .has_target = r->has_target + row};
        r->gradients[j] = (struct sfc_head_gradient_item){.slot = j, .lse = v->lse + row};
    }
}

static int apply_head(struct sfc_replay *r, struct sfc_head *head,
                      const struct sfc_log_commit *commit, const struct sfc_log_prepare_view *v,
                      struct sfc_error *err)
{
    set_items(r, v);
    int code = sfc_head_plan(head, commit->step, v->labels, NULL, err);
    if (code == SFC_OK)
        code = sfc_head_logits(head, r->logits, micro_batches(r), err);
    if (code == SFC_OK)
        code = sfc_head_gradient(head, r->gradients, micro_batches(r), err);
    return code == SFC_OK ? sfc_head_commit(head, r->slots, commit->lr, err) : code;
}

int sfc_replay_step(struct sfc_replay *r, struct sfc_head *head, struct sfc_dense *dense,
                    const struct sfc_log_commit *commit, const struct sfc_log_prepare_view *inputs,
                    const void *dense_sums, struct sfc_error *err)
{
    int code = SFC_OK;
    if (!commit->apply)
        return head ? sfc_head_skip(head, commit->step, err) : SFC_OK;
    if (head)
        code = apply_head(r, head, commit, inputs, err);
    if (code == SFC_OK && dense)
        code = sfc_dense_load(dense, commit->step, dense_sums, err);
    if (code == SFC_OK && dense)
        code = sfc_dense_commit(dense, commit->clip_scale, commit->lr, err);
    return code;
}

#include <string.h>

#include "kernels/cpu/head.h"
#include "kernels/cpu/pool.h"

struct commit_call {
    struct sfc_cpu_head *head;
    const uint32_t *slots;
    struct sfc_update update;
};

/* p of n sampled rows over the whole batch, columns in order of the micro-batches: [tile, bp]. */
static void assemble(const struct commit_call *call, const struct sfc_cpu_slab *slab, size_t at,
                     size_t n, char *out)
{
    const struct sfc_cpu_head *head = call->head;
    const struct sfc_cpu_sizes *s = &head->sizes;
    size_t columns = head->config.micro_batch, m = columns * head->operand_bytes;
    size_t row = s->bp * head->operand_bytes, batch = head->config.batch * head->operand_bytes;
    for (size_t i = 0; i < n; i++, out += row) {
        for (size_t j = 0; j < s->micro_batches; j++) {
            const void *p = sfc_cpu_slot_z(head, slab, call->slots[j], at + i);
            if (head->operand == SFC_OPERAND_WIDE)
                head->simd->half->unpack(p, NULL, columns, SFC_STORE_BF16,
                                         (float *)(void *)(out + j * m));
            else
                memcpy(out + j * m, p, m);
        }
        memset(out + batch, 0, row - batch);
    }
    memset(out, 0, (s->tile - n) * row);
}

typedef void (*update_fn)(const struct sfc_store *store, const uint32_t *rows, size_t n, size_t dim,
                          size_t pitch, const float *dw, const float *inverse_norm,
                          const struct sfc_update *u);

static update_fn update_of(const struct sfc_cpu_head *head)
{
    if (head->config.optimizer == SFC_OPTIMIZER_ADAMW)
        return head->format == SFC_STORE_F32 ? head->simd->adamw : head->simd->half->adamw;
    return head->format == SFC_STORE_F32 ? head->simd->update : head->simd->half->update;
}

static void commit_block(void *arg, size_t index, unsigned worker_index)
{
    const struct commit_call *call = arg;
    struct sfc_cpu_head *head = call->head;
    struct sfc_cpu_worker *worker = &head->workers[worker_index];
    const struct sfc_cpu_block *block = &head->blocks[index];
    const struct sfc_cpu_sizes *s = &head->sizes;
    const struct sfc_store store = sfc_cpu_store(head, block, worker);
    for (size_t first = 0; first < block->count && !worker->error.code; first += s->tile) {
        size_t at = block->sample + first;
        size_t n = block->count - first < s->tile ? block->count - first : s->tile;
        assemble(call, block->slab, at, n, worker->product);
        if (sfc_gemm_run(&worker->commit, worker->stream, worker->product, head->call_x,
                         worker->result, worker->gemm, &worker->error))
            return;
        update_of(head)(&store, block->slab->rows + at, n, head->config.dim, s->pitch,
                        worker->result, block->slab->inverse_norm + at, &call->update);
    }
}

int sfc_cpu_head_commit(struct sfc_head_part *base, const uint32_t *slots, double lr,
                        struct sfc_error *err)
{
    struct sfc_cpu_head *head = (struct sfc_cpu_head *)base;
    const struct sfc_head_config *c = &head->config;
    struct commit_call call = {
        .head = head,
        .slots = slots,
        .update = {.gradient_scale = (float)(c->scale / c->batch),
                   .lr = (float)lr,
                   .momentum = (float)c->momentum,
                   .weight_decay = (float)c->weight_decay},
    };
    if (c->optimizer == SFC_OPTIMIZER_ADAMW)
        call.update.adamw =
            sfc_adamw_at(c->beta1, c->beta2, c->epsilon, c->weight_decay, lr, base->step);
    memset(head->call_x, 0, head->sizes.bp * head->sizes.pitch * head->operand_bytes);
    for (size_t j = 0; j < head->sizes.micro_batches; j++)
        sfc_gemm_pack(&head->workers[0].commit, sfc_cpu_slot_x(head, slots[j]), j * c->micro_batch,
                      c->micro_batch, head->call_x);
    sfc_cpu_pool_run(head->cpu->pool, commit_block, &call, head->block_count);
    return sfc_cpu_head_error(head, err);
}

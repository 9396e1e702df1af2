/* The plan of a step: what the host knows of each block goes to the device in one copy, which draws
 * the samples (plan.cu). */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/head.h"
#include "kernels/cuda/plan.h"
#include "kernels/hd/layout.h"
#include "kernels/lag.h"
#include "kernels/rng/sample.h"

#define ALIGNMENT 16

struct label {
    uint64_t label;
    uint32_t row;
};

/* What goes to the device with a plan, on either side; base NULL: it is only measured. */
struct upload {
    char *base;
    struct sfc_cuda_plan_block *block; /* [blocks] */
    struct sfc_cuda_plan_label *label; /* [batch] */
    uint32_t *positive;                /* [batch] rows in their blocks */
    size_t bytes;
};

struct sfc_cuda_plan {
    struct upload host, device; /* host: pinned */
    cudaEvent_t uploaded;       /* the host's side of the last plan may be overwritten */
    uint32_t *ages;             /* mode dense: device [blocks, 2] */
    uint32_t *host_ages;        /* mode dense: pinned [blocks, 2] */
    struct label *sorted;       /* [batch] */
    struct sfc_lag *lag;        /* mode dense: [steps + 1] */
    uint32_t *rows;             /* [positions] rows inside their blocks, for those who ask */
    bool rows_known;            /* of the present plan */
    struct sfc_error kept;      /* of a call that can't report it */
};

static bool is_dense(const struct sfc_cuda_head *head)
{
    return head->config.momentum_mode == SFC_MOMENTUM_DENSE;
}

static size_t round_up(size_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* ---- life */

static struct upload upload_at(const struct sfc_cuda_head *head, char *base)
{
    size_t label = round_up(head->block_count * sizeof(struct sfc_cuda_plan_block));
    size_t positive = label + round_up(head->config.batch * sizeof(struct sfc_cuda_plan_label));
    struct upload u = {.bytes = positive + head->config.batch * sizeof(uint32_t)};
    if (base) {
        u.base = base;
        u.block = (void *)base;
        u.label = (void *)(base + label);
        u.positive = (void *)(base + positive);
    }
    return u;
}

static size_t ages_bytes(const struct sfc_cuda_head *head)
{
    return is_dense(head) ? 2 * head->block_count * sizeof(uint32_t) : 0;
}

static size_t lag_bytes(const struct sfc_cuda_head *head)
{
    return is_dense(head) ? (size_t)(head->config.steps + 1) * sizeof(struct sfc_lag) : 0;
}

size_t sfc_cuda_plan_lay_out(struct sfc_cuda_head *head, struct sfc_cuda_carver *step)
{
    size_t bytes = upload_at(head, NULL).bytes;
    char *base = sfc_cuda_carve(step, bytes, 1);
    uint32_t *ages = sfc_cuda_carve(step, ages_bytes(head), 1);
    if (step->base) {
        head->plan = calloc(1, sizeof *head->plan); /* NULL: found by init */
        if (head->plan) {
            head->plan->device = upload_at(head, base);
            head->plan->ages = ages;
        }
    }
    return sizeof *head->plan + bytes + ages_bytes(head) + lag_bytes(head) +
           head->config.batch * sizeof(struct label) + head->sizes.positions * sizeof(uint32_t);
}

static int take_memory(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_plan *p = head->plan;
    if (p) {
        p->sorted = malloc(head->config.batch * sizeof *p->sorted);
        p->rows = malloc(head->sizes.positions * sizeof *p->rows);
        p->lag = is_dense(head) ? calloc(1, lag_bytes(head)) : NULL;
    }
    if (p && p->sorted && p->rows && (p->lag || !is_dense(head)))
        return SFC_OK;
    return sfc_fail(err, SFC_ENOMEM, "head: out of memory for samples of %zu rows",
                    head->sizes.positions);
}

int sfc_cuda_plan_init(struct sfc_cuda_head *head, struct sfc_error *err)
{
    void *pinned = NULL;
    int rc = take_memory(head, err);
    if (rc)
        return rc;
    struct sfc_cuda_plan *p = head->plan;
    rc = sfc_cuda_check(head->cuda, cudaEventCreateWithFlags(&p->uploaded, cudaEventDisableTiming),
                        "cudaEventCreateWithFlags for plans", err);
    if (!rc)
        rc = sfc_cuda_check(head->cuda, cudaMallocHost(&pinned, p->device.bytes),
                            "cudaMallocHost for plans", err);
    if (!rc)
        p->host = upload_at(head, pinned);
    if (!rc && is_dense(head))
        rc = sfc_cuda_check(head->cuda, cudaMallocHost((void **)&p->host_ages, ages_bytes(head)),
                            "cudaMallocHost for plans", err);
    return rc;
}

void sfc_cuda_plan_inherit(struct sfc_cuda_head *head, const struct sfc_cuda_head *from)
{
    head->plan->kept = from->plan->kept;
}

void sfc_cuda_plan_free(struct sfc_cuda_head *head)
{
    struct sfc_cuda_plan *p = head->plan;
    if (!p)
        return;
    if (p->uploaded) {
        cudaEventSynchronize(p->uploaded);
        cudaEventDestroy(p->uploaded);
    }
    cudaFreeHost(p->host.base);
    cudaFreeHost(p->host_ages);
    free(p->sorted);
    free(p->rows);
    free(p->lag);
    free(p);
    head->plan = NULL;
}

/* ---- what the host knows of a plan */

static int by_label(const void *a, const void *b)
{
    const struct label *x = a, *y = b;
    if (x->label != y->label)
        return x->label < y->label ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

static void sort_labels(struct sfc_cuda_head *head, const uint64_t *labels)
{
    struct sfc_cuda_plan *p = head->plan;
    for (uint32_t i = 0; i < head->config.batch; i++) {
        p->sorted[i] = (struct label){labels[i], i};
        p->host.label[i] = (struct sfc_cuda_plan_label){SFC_CUDA_NO_BLOCK, 0};
    }
    qsort(p->sorted, head->config.batch, sizeof *p->sorted, by_label);
}

/* Labels and distinct positives of one block, from entry *at of the sorted labels; *positives: of
 * the blocks before. */
static void block_labels(struct sfc_cuda_head *head, size_t index, size_t *at, uint32_t *positives)
{
    struct sfc_cuda_plan *p = head->plan;
    struct sfc_cuda_block *block = &head->blocks[index];
    uint64_t first = block->id * head->config.block_size, end = first + block->rows;
    size_t i = *at, batch = head->config.batch;
    while (i < batch && p->sorted[i].label < first)
        i++;
    block->positive = *positives;
    for (; i < batch && p->sorted[i].label < end; i++) {
        uint32_t row = (uint32_t)(p->sorted[i].label - first);
        if (*positives == block->positive || p->host.positive[*positives - 1] != row)
            p->host.positive[(*positives)++] = row;
        p->host.label[p->sorted[i].row] = (struct sfc_cuda_plan_label){(uint32_t)index, row};
    }
    block->positives = *positives - block->positive;
    *at = i;
}

/* -log of the probability that a negative is drawn with. */
static double drawn_correction(const struct sfc_cuda_head *head, const struct sfc_cuda_block *block)
{
    uint32_t negatives = block->count > block->positives ? block->count - block->positives : 0;
    if (head->config.correction != SFC_CORRECTION_LOGQ || !negatives)
        return 0;
    return -log((double)negatives / (double)(block->rows - block->positives));
}

/* The size and the place of the block's sample; none where the block is ahead of the step. */
static void place_block(struct sfc_cuda_head *head, size_t index)
{
    struct sfc_cuda_block *block = &head->blocks[index];
    block->count = sfc_head_left_out(&head->base, index, head->base.step)
                       ? 0
                       : sfc_sample_quota(block->rows, head->config.sample_ppm, block->positives);
    block->first_chunk = head->chunks;
    block->chunks = sfc_hd_chunks(block->count, head->sizes.chunk);
    head->chunks += block->chunks;
    head->plan->host.block[index] = (struct sfc_cuda_plan_block){
        .store = block->store,
        .last = head->last ? head->last + block->store : NULL,
        .id = (uint32_t)block->id,
        .rows = block->rows,
        .count = block->count,
        .positive = block->positive,
        .positives = block->positives,
        .first_chunk = (uint32_t)block->first_chunk,
        .chunks = (uint32_t)block->chunks,
        .add_positive = (float)head->exp_base,
        .add_drawn = (float)(head->exp_base + drawn_correction(head, block)),
    };
}

/* Returns the rows of all samples. */
static uint64_t arrange(struct sfc_cuda_head *head, const uint64_t *labels)
{
    size_t at = 0;
    uint32_t positives = 0;
    uint64_t sampled = 0;
    sort_labels(head, labels);
    head->chunks = 0;
    for (size_t i = 0; i < head->block_count; i++) {
        block_labels(head, i, &at, &positives);
        place_block(head, i);
        sampled += head->blocks[i].count;
    }
    head->tiles = (head->chunks + head->sizes.group - 1) / head->sizes.group;
    assert(head->tiles * head->sizes.group <= head->sizes.max_chunks);
    return sampled;
}

/* ---- on the device */

static int draw(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_plan *p = head->plan;
    cudaStream_t stream = head->cuda->stream;
    const struct sfc_cuda_plan_call call = {
        .key = sfc_hd_stream_key(head->config.seed, SFC_STREAM_SAMPLE),
        .step = head->base.step,
        .blocks = (uint32_t)head->block_count,
        .batch = head->config.batch,
        .chunk = (uint32_t)head->sizes.chunk,
        .chunks = (uint32_t)head->chunks,
        .all_chunks = (uint32_t)(head->tiles * head->sizes.group),
        .block = p->device.block,
        .label = p->device.label,
        .positive = p->device.positive,
        .rows = head->rows,
        .add = head->add,
        .chunk_block = head->chunk_block,
        .target = head->target,
        .ages = is_dense(head) ? p->ages : NULL,
    };
    int rc = sfc_cuda_check(head->cuda,
                            cudaMemcpyAsync(p->device.base, p->host.base, p->host.bytes,
                                            cudaMemcpyHostToDevice, stream),
                            "cudaMemcpyAsync of a plan", err);
    return rc ? rc
              : sfc_cuda_check(head->cuda, sfc_cuda_draw_plan(&call, stream),
                               "the samples of a plan", err);
}

/* The way from the state of every sampled row to the state before this step. */
static int fill_lag(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_plan *p = head->plan;
    cudaStream_t stream = head->cuda->stream;
    uint64_t before = head->base.step - 1, oldest = before;
    cudaError_t status =
        cudaMemcpyAsync(p->host_ages, p->ages, ages_bytes(head), cudaMemcpyDeviceToHost, stream);
    if (!status)
        status = cudaStreamSynchronize(stream);
    int rc = sfc_cuda_check(head->cuda, status, "the last steps of a plan's rows", err);
    for (size_t i = 0; !rc && i < head->block_count; i++) {
        const uint32_t *ages = p->host_ages + 2 * i;
        if (ages[1] > before)
            rc = sfc_fail(
                err, SFC_ESTATE, "head: block %llu has rows of step %u, the run is at step %llu",
                (unsigned long long)head->blocks[i].id, ages[1], (unsigned long long)before);
        oldest = ages[0] < oldest ? ages[0] : oldest;
    }
    if (rc)
        return rc;
    sfc_lag_table(head->base.rates, head->config.momentum, head->config.weight_decay, oldest,
                  before, p->lag);
    size_t bytes = (size_t)(before - oldest + 1) * sizeof *p->lag;
    return sfc_cuda_check(
        head->cuda,
        cudaMemcpyAsync(head->lag + oldest, p->lag + oldest, bytes, cudaMemcpyHostToDevice, stream),
        "cudaMemcpyAsync of the missed steps", err);
}

static int take_kept(struct sfc_cuda_plan *p, struct sfc_error *err)
{
    if (!p->kept.code)
        return SFC_OK;
    int rc = sfc_fail(err, p->kept.code, "%s", p->kept.text);
    p->kept.code = SFC_OK;
    return rc;
}

int sfc_cuda_head_plan(struct sfc_head_part *base, uint64_t step, const uint64_t *labels,
                       uint64_t *sampled, struct sfc_error *err)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)base;
    struct sfc_cuda_plan *p = head->plan;
    int rc = sfc_cuda_enter(head->cuda, err);
    if (!rc)
        rc = take_kept(p, err);
    if (!rc)
        rc = sfc_cuda_check(head->cuda, cudaEventSynchronize(p->uploaded),
                            "the plan before this one", err);
    if (rc)
        return rc;
    head->base.step = step;
    p->rows_known = false;
    uint64_t total = arrange(head, labels);
    rc = draw(head, err);
    if (!rc && is_dense(head))
        rc = fill_lag(head, err);
    int recorded =
        sfc_cuda_check(head->cuda, cudaEventRecord(p->uploaded, head->cuda->stream),
                       "cudaEventRecord for plans", rc ? NULL : err); /* of a failed one too */
    if (!rc)
        rc = recorded;
    if (!rc)
        *sampled = total;
    return rc;
}

/* ---- for those who ask */

static int fetch_rows(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct sfc_cuda_plan *p = head->plan;
    cudaStream_t stream = head->cuda->stream;
    int rc = sfc_cuda_enter(head->cuda, err);
    if (rc)
        return rc;
    cudaError_t status =
        cudaMemcpyAsync(p->rows, head->rows, head->chunks * head->sizes.chunk * sizeof *p->rows,
                        cudaMemcpyDeviceToHost, stream);
    if (!status)
        status = cudaStreamSynchronize(stream);
    rc = sfc_cuda_check(head->cuda, status, "the rows of a plan", err);
    for (size_t i = 0; !rc && i < head->block_count; i++) {
        const struct sfc_cuda_block *block = &head->blocks[i];
        uint32_t *rows = p->rows + block->first_chunk * head->sizes.chunk;
        for (uint32_t k = 0; k < block->count; k++)
            rows[k] -= block->store;
    }
    return rc;
}

/* What fails here is reported by the next plan. */
void sfc_cuda_head_sample(const struct sfc_head_part *base, size_t index, const uint32_t **rows,
                          uint32_t *count)
{
    struct sfc_cuda_head *head = (struct sfc_cuda_head *)(uintptr_t)base;
    const struct sfc_cuda_block *block = &head->blocks[index];
    struct sfc_cuda_plan *p = head->plan;
    if (!p->rows_known)
        p->rows_known = fetch_rows(head, &p->kept) == SFC_OK;
    *rows = p->rows + block->first_chunk * head->sizes.chunk;
    *count = p->rows_known ? block->count : 0;
}

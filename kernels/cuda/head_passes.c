#include <math.h>
#include <string.h>

#include "kernels/cuda/fused.h"
#include "kernels/cuda/head.h"
#include "kernels/cuda/range.h"

#define LOG2_E 1.44269504088896340736

/* ---- tiles over lanes */

/* A run of slots that follow each other: their columns are one product. */
struct run {
    uint32_t first, slots;
};

struct tile {
    struct sfc_cuda_head *head;
    struct sfc_cuda_lane *lane;
    cudaStream_t stream;
    size_t index, first; /* first position */
    size_t chunks;       /* of the plan; the others are padding */
    struct sfc_cuda_store store;
};

typedef int (*tile_fn)(const struct tile *tile, const void *call, struct sfc_error *err);

static cudaStream_t main_stream(const struct sfc_cuda_head *head)
{
    return head->cuda->stream;
}

/* Runs fn over all tiles, in turn on the lanes, after what is in the main stream and before what
 * comes next in it. */
static int over_tiles(struct sfc_cuda_head *head, tile_fn fn, const void *call,
                      struct sfc_error *err)
{
    const struct sfc_cuda *cuda = head->cuda;
    const struct sfc_cuda_sizes *s = &head->sizes;
    int rc = sfc_cuda_check(cuda, cudaEventRecord(head->ready, main_stream(head)),
                            "cudaEventRecord", err);
    for (int i = 0; !rc && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(cuda, cudaStreamWaitEvent(cuda->lane[i], head->ready, 0),
                            "cudaStreamWaitEvent", err);
    for (size_t t = 0; !rc && t < head->tiles; t++) {
        size_t lane = t % SFC_CUDA_LANES, first = t * s->group;
        struct tile tile = {head, &head->lanes[lane],     cuda->lane[lane], t, first * s->chunk,
                            0,    sfc_cuda_store_of(head)};
        tile.chunks = head->chunks - first < s->group ? head->chunks - first : s->group;
        tile.store.chunk_block += first;
        rc = fn(&tile, call, err);
    }
    for (int i = 0; i < SFC_CUDA_LANES; i++) { /* whatever was begun ends before anything else */
        cudaError_t status = cudaEventRecord(head->lanes[i].done, cuda->lane[i]);
        if (!status)
            status = cudaStreamWaitEvent(main_stream(head), head->lanes[i].done, 0);
        if (!rc)
            rc = sfc_cuda_check(cuda, status, "cudaStreamWaitEvent", err);
    }
    return rc;
}

static size_t tile_positions(const struct sfc_cuda_head *head)
{
    return head->sizes.group * head->sizes.chunk;
}

static void *operand_at(const struct sfc_cuda_head *head, void *array, size_t index)
{
    return (char *)array + index * sfc_cuda_operand_bytes(head);
}

static void *z_at(const struct sfc_cuda_head *head, size_t position, size_t column)
{
    size_t tile = position / tile_positions(head), at = position % tile_positions(head);
    return operand_at(head, head->z[tile], at * head->sizes.columns + column);
}

/* norms: rows of W, and what is known of their norms afterwards. Else: unit rows times scale /
 * batch, as dx needs them. */
static int gather(const struct tile *t, bool norms, struct sfc_error *err)
{
    struct sfc_cuda_head *head = t->head;
    struct sfc_cuda_gather_out out = {.tile = t->lane->tile};
    if (norms) {
        out.inverse_norm = head->inverse_norm + t->first;
        out.block_inverse = head->block_inverse;
        out.bad_block = head->bad_block;
    } else {
        out.times = head->inverse_norm + t->first;
        out.factor = (float)(head->config.scale / head->config.batch);
    }
    return sfc_cuda_check(head->cuda,
                          sfc_cuda_gather(&t->store, head->rows + t->first, tile_positions(head),
                                          head->half, &out, t->stream),
                          "the gathering of rows", err);
}

static struct sfc_cuda_columns columns_of(const struct sfc_cuda_head *head, const struct run *run)
{
    return (struct sfc_cuda_columns){(uint32_t)(run->first * head->sizes.mp),
                                     (uint32_t)(run->slots * head->sizes.mp),
                                     (uint32_t)head->sizes.columns};
}

/* The next run of a call: of the slots of the call that are marked, at most a batch of them at
 * once. *at: where to go on; false: there is no more. */
static bool next_run(const struct sfc_cuda_head *head, uint32_t *at, struct run *run)
{
    uint32_t slots = head->config.slots, i = *at;
    while (i < slots && !head->in_call[i])
        i++;
    run->first = i;
    while (i < slots && head->in_call[i] && i - run->first < head->sizes.micro_batches)
        i++;
    run->slots = i - run->first;
    *at = i;
    return run->slots > 0;
}

/* ---- copies through the pinned buffer, in pieces */

/* What becomes of a fetched piece. */
typedef void (*take_fn)(void *out, const void *in, size_t bytes);

static void take_copy(void *out, const void *in, size_t bytes)
{
    memcpy(out, in, bytes);
}

static void take_sum(void *out, const void *in, size_t bytes)
{
    int64_t *sum = out;
    const int64_t *more = in;
    for (size_t k = 0; k < bytes / sizeof *sum; k++)
        sum[k] += more[k];
}

/* Copies `rows` rows of `bytes` from the device, `stride` apart there, and takes them to memory of
 * the host. */
static int fetch_to(struct sfc_cuda_head *head, take_fn take, void *out, const void *from,
                    size_t rows, size_t bytes, size_t stride, const char *what,
                    struct sfc_error *err)
{
    size_t most = head->staging_bytes / bytes;
    for (size_t done = 0, n; done < rows; done += n) {
        n = rows - done < most ? rows - done : most;
        cudaError_t status =
            cudaMemcpy2DAsync(head->staging, bytes, (const char *)from + done * stride, stride,
                              bytes, n, cudaMemcpyDeviceToHost, main_stream(head));
        if (!status)
            status = cudaStreamSynchronize(main_stream(head));
        int rc = sfc_cuda_check(head->cuda, status, what, err);
        if (rc)
            return rc;
        take((char *)out + done * bytes, head->staging, n * bytes);
    }
    return SFC_OK;
}

static int fetch(struct sfc_cuda_head *head, void *out, const void *from, size_t rows, size_t bytes,
                 size_t stride, const char *what, struct sfc_error *err)
{
    return fetch_to(head, take_copy, out, from, rows, bytes, stride, what, err);
}

/* Copies bytes to the device; they are read before it returns. */
static int send(struct sfc_cuda_head *head, void *to, const void *from, size_t bytes,
                const char *what, struct sfc_error *err)
{
    for (size_t done = 0, n; done < bytes; done += n) {
        n = bytes - done < head->staging_bytes ? bytes - done : head->staging_bytes;
        memcpy(head->staging, (const char *)from + done, n);
        cudaError_t status = cudaMemcpyAsync((char *)to + done, head->staging, n,
                                             cudaMemcpyHostToDevice, main_stream(head));
        if (!status)
            status = cudaStreamSynchronize(main_stream(head));
        int rc = sfc_cuda_check(head->cuda, status, what, err);
        if (rc)
            return rc;
    }
    return SFC_OK;
}

static int clear(struct sfc_cuda_head *head, void *at, int byte, size_t bytes,
                 struct sfc_error *err)
{
    return sfc_cuda_check(head->cuda, cudaMemsetAsync(at, byte, bytes, main_stream(head)),
                          "cudaMemsetAsync", err);
}

/* ---- pass 1 */

static struct sfc_cuda_logits logits_of(const struct tile *t, const struct run *run)
{
    const struct sfc_cuda_head *head = t->head;
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cuda_sizes *s = &head->sizes;
    return (struct sfc_cuda_logits){
        .scale = (float)c->scale,
        .filter = c->has_filter ? (float)c->filter : 2.0f,
        .columns = columns_of(head, run),
        .half = head->half,
        .chunk = (uint32_t)s->chunk,
        .strips = sfc_cuda_strips(head),
        .first = t->first,
        .product = t->lane->product,
        .inverse_norm = head->inverse_norm + t->first,
        .add = head->add + t->first,
        .column_target = head->column_target,
        .z = z_at(head, t->first, 0),
        .exps = head->exps + t->index * s->group * sfc_cuda_strips(head) * s->columns,
        .target_product = head->target_product,
    };
}

static int fused_logits_run(const struct tile *t, const struct sfc_cuda_logits *l,
                            struct sfc_error *err)
{
    struct sfc_cuda_head *head = t->head;
    size_t pitch = head->sizes.pitch;
    struct sfc_cuda_matrix w = {t->lane->tile, tile_positions(head), pitch, pitch};
    struct sfc_cuda_matrix x = {operand_at(head, head->x, l->columns.first * pitch),
                                l->columns.count, pitch, pitch};
    return sfc_cuda_check(head->cuda, sfc_cuda_fused_logits(l, t->chunks, &w, &x, t->stream),
                          "the fused logits of a tile", err);
}

static int logits_run(const struct tile *t, const struct run *run, struct sfc_error *err)
{
    struct sfc_cuda_head *head = t->head;
    struct sfc_cuda_logits l = logits_of(t, run);
    if (head->fuses)
        return fused_logits_run(t, &l, err);
    struct sfc_cuda_gemm_shape shape = head->gemm[SFC_CUDA_LOGITS].shape;
    shape.columns = l.columns.count;
    int rc = sfc_cuda_gemm_run(&head->gemm[SFC_CUDA_LOGITS], head->cuda, &shape, t->lane->tile,
                               operand_at(head, head->x, l.columns.first * head->sizes.pitch),
                               t->lane->product, t->lane->workspace, t->stream, err);
    if (rc)
        return rc;
    return sfc_cuda_check(head->cuda, sfc_cuda_logits_tile(&l, t->chunks, t->stream),
                          "the logits of a tile", err);
}

static int logits_tile(const struct tile *t, const void *call, struct sfc_error *err)
{
    struct run run;
    uint32_t at = 0;
    (void)call;
    int rc = gather(t, true, err);
    while (!rc && next_run(t->head, &at, &run))
        rc = logits_run(t, &run, err);
    return rc;
}

/* Raw features and which micro-batch each slot has, to the device, and unit rows of them. */
static int load_features(struct sfc_cuda_head *head, const struct sfc_head_logits_item *items,
                         size_t n, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    size_t numbers = (size_t)c->micro_batch * c->dim;
    int rc = SFC_OK;
    memset(head->in_call, 0, c->slots * sizeof *head->in_call);
    for (uint32_t i = 0; i < c->slots; i++)
        head->table[i] = -1;
    for (size_t i = 0; !rc && i < n; i++) {
        head->in_call[items[i].slot] = true;
        head->table[items[i].slot] = (int32_t)items[i].micro_batch;
        rc = send(head, head->features + items[i].slot * numbers, items[i].features,
                  numbers * sizeof(float), "the features of a micro-batch", err);
    }
    if (!rc)
        rc = send(head, head->slot_table, head->table, c->slots * sizeof *head->table,
                  "the slots of a call", err);
    if (rc)
        return rc;
    struct sfc_cuda_features f = {
        .raw = head->features,
        .slot_micro = head->slot_table,
        .target = head->target,
        .slots = c->slots,
        .micro_batch = c->micro_batch,
        .mp = (uint32_t)head->sizes.mp,
        .dim = c->dim,
        .pitch = (uint32_t)head->sizes.pitch,
        .half = head->half,
        .x = head->x,
        .zero = head->zero,
        .column_target = head->column_target,
    };
    return sfc_cuda_check(head->cuda, sfc_cuda_unit_features(&f, main_stream(head)),
                          "the unit features", err);
}

static struct sfc_cuda_targets targets_of(const struct sfc_cuda_head *head, const struct run *run)
{
    const struct sfc_head_config *c = &head->config;
    return (struct sfc_cuda_targets){
        .m1 = c->margin_m1,
        .m2 = c->margin_m2,
        .m3 = c->margin_m3,
        .scale = c->scale,
        .identity = c->margin_grad == SFC_MARGIN_GRAD_IDENTITY,
        .columns = columns_of(head, run),
        .column_target = head->column_target,
        .target_product = head->target_product,
        .zero = head->zero,
        .inverse_norm = head->inverse_norm,
        .add = head->add,
        .factor = head->exp_factor,
        .target_z = head->target_z,
        .slope = head->slope,
        .limbs = head->limbs,
    };
}

static int add_exps(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct run run;
    uint32_t at = 0;
    int rc =
        clear(head, head->limbs, 0, head->sizes.columns * SFC_HD_LIMBS * sizeof *head->limbs, err);
    while (!rc && head->chunks && next_run(head, &at, &run)) { /* every block may be left out */
        struct sfc_cuda_columns columns = columns_of(head, &run);
        rc = sfc_cuda_check(head->cuda,
                            sfc_cuda_add_exps(head->exps, head->chunks, sfc_cuda_strips(head),
                                              head->exp_factor, &columns, head->limbs,
                                              main_stream(head)),
                            "the sums of exponentials", err);
        struct sfc_cuda_targets targets = targets_of(head, &run);
        if (!rc)
            rc = sfc_cuda_check(head->cuda, sfc_cuda_set_targets(&targets, main_stream(head)),
                                "the logits of the targets", err);
    }
    return rc;
}

/* Fails when the gathering met a row that is not finite. */
static int check_rows(struct sfc_cuda_head *head, struct sfc_error *err)
{
    uint32_t bad = UINT32_MAX;
    int rc =
        fetch(head, &bad, head->bad_block, 1, sizeof bad, sizeof bad, "the state of the rows", err);
    if (!rc && bad < head->block_count)
        rc = sfc_fail(err, SFC_ESTATE, "logits: block %llu has class centres that are not finite",
                      (unsigned long long)head->blocks[bad].id);
    return rc;
}

/* What one item gets of the answers; the arrays are of its slot. */
static void answer(struct sfc_cuda_head *head, struct sfc_head_logits_item *item, bool add,
                   const uint64_t *limbs, const float *target_z, const int32_t *target,
                   const uint8_t *zero)
{
    item->zero_features = 0;
    for (uint32_t r = 0; r < head->config.micro_batch; r++) {
        struct sfc_sum256 sum, before;
        uint64_t *exp_sum = item->exp_sum + 4 * (size_t)r;
        sfc_hd_carry(limbs + (size_t)r * SFC_HD_LIMBS, sum.word);
        if (add) {
            memcpy(before.word, exp_sum, sizeof before);
            sfc_sum256_add(&sum, &before);
        }
        memcpy(exp_sum, sum.word, sizeof sum);
        if (!add || target[r] >= 0) {
            item->has_target[r] = target[r] >= 0;
            item->target_logit[r] = target[r] >= 0 ? target_z[r] : 0;
        }
        item->zero_features += zero[r];
    }
}

static int fetch_answers(struct sfc_cuda_head *head, struct sfc_head_logits_item *items, size_t n,
                         bool add, struct sfc_error *err)
{
    size_t columns = head->sizes.columns, mp = head->sizes.mp;
    struct sfc_cuda_answer *a = &head->answer;
    int rc = fetch(head, a->limbs, head->limbs, columns, SFC_HD_LIMBS * sizeof *a->limbs,
                   SFC_HD_LIMBS * sizeof *a->limbs, "the sums of exponentials", err);
    if (!rc)
        rc = fetch(head, a->target_z, head->target_z, columns, sizeof *a->target_z,
                   sizeof *a->target_z, "the logits of the targets", err);
    if (!rc)
        rc = fetch(head, a->target, head->column_target, columns, sizeof *a->target,
                   sizeof *a->target, "the places of the targets", err);
    if (!rc)
        rc = fetch(head, head->slot_zero, head->zero, columns, 1, 1, "the zero features", err);
    for (size_t i = 0; !rc && i < n; i++) {
        size_t at = items[i].slot * mp;
        answer(head, &items[i], add, a->limbs + at * SFC_HD_LIMBS, a->target_z + at, a->target + at,
               head->slot_zero + at);
    }
    return rc;
}

static int run_logits(struct sfc_cuda_head *head, struct sfc_head_logits_item *items, size_t n,
                      bool add, struct sfc_error *err)
{
    int rc = sfc_cuda_enter(head->cuda, err);
    if (!rc)
        rc = load_features(head, items, n, err);
    if (!rc)
        rc = clear(head, head->block_inverse, 0, head->block_count * sizeof *head->block_inverse,
                   err);
    if (!rc)
        rc = clear(head, head->bad_block, 0xff, sizeof *head->bad_block, err);
    if (!rc)
        rc = over_tiles(head, logits_tile, NULL, err);
    if (!rc)
        rc = add_exps(head, err);
    if (!rc)
        rc = check_rows(head, err);
    return rc ? rc : fetch_answers(head, items, n, add, err);
}

int sfc_cuda_head_logits(struct sfc_head_part *base, struct sfc_head_logits_item *items, size_t n,
                         bool add, struct sfc_error *err)
{
    sfc_cuda_range_begin("shardfc logits");
    int rc = run_logits((struct sfc_cuda_head *)base, items, n, add, err);
    sfc_cuda_range_end();
    return rc;
}

/* ---- pass 2 */

struct gradient_call {
    bool wants_dx;
};

static int softmax_run(const struct tile *t, const struct run *run, struct sfc_error *err)
{
    struct sfc_cuda_head *head = t->head;
    const struct sfc_head_config *c = &head->config;
    struct sfc_cuda_softmax s = {
        .columns = columns_of(head, run),
        .half = head->half,
        .chunk = (uint32_t)head->sizes.chunk,
        .strips = sfc_cuda_strips(head),
        .mp = (uint32_t)head->sizes.mp,
        .first = t->first,
        .scale = (float)c->scale,
        .filtered = c->has_filter,
        .add = head->add + t->first,
        .high = head->high,
        .low = head->low,
        .column_target = head->column_target,
        .target_p = head->target_p,
        .z = z_at(head, t->first, 0),
        .not_finite = head->not_finite,
    };
    return sfc_cuda_check(head->cuda, sfc_cuda_softmax_tile(&s, t->chunks, t->stream),
                          "the softmax of a tile", err);
}

static int dx_run(const struct tile *t, const struct run *run, struct sfc_error *err)
{
    struct sfc_cuda_head *head = t->head;
    struct sfc_cuda_columns columns = columns_of(head, run);
    struct sfc_cuda_gemm_shape shape = head->gemm[SFC_CUDA_GRADIENT].shape;
    shape.rows = columns.count;
    int rc = sfc_cuda_gemm_run(&head->gemm[SFC_CUDA_GRADIENT], head->cuda, &shape,
                               z_at(head, t->first, columns.first), t->lane->tile, t->lane->product,
                               t->lane->workspace, t->stream, err);
    if (rc)
        return rc;
    return sfc_cuda_check(head->cuda,
                          sfc_cuda_add_dx(t->lane->product, head->half, t->chunks,
                                          (uint32_t)head->sizes.pitch, &columns, t->lane->dx,
                                          t->stream),
                          "the sums of dx", err);
}

static int gradient_tile(const struct tile *t, const void *arg, struct sfc_error *err)
{
    const struct gradient_call *call = arg;
    struct run run;
    uint32_t at = 0;
    int rc = call->wants_dx ? gather(t, false, err) : SFC_OK;
    while (!rc && next_run(t->head, &at, &run)) {
        rc = softmax_run(t, &run, err);
        if (!rc && call->wants_dx)
            rc = dx_run(t, &run, err);
    }
    return rc;
}

/* log2(e) times the log-sum-exp of each column as a sum of two floats; inf (so p = 0) for padding,
 * rows of weight 0 and features without direction. */
static int load_lse(struct sfc_cuda_head *head, const struct sfc_head_gradient_item *items,
                    size_t n, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    size_t columns = head->sizes.columns, mp = head->sizes.mp;
    struct sfc_cuda_answer *a = &head->answer;
    memset(head->in_call, 0, c->slots * sizeof *head->in_call);
    for (size_t i = 0; i < columns; i++) {
        a->high[i] = INFINITY;
        a->low[i] = 0;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = items[i].slot;
        const uint64_t *labels =
            head->base.labels + (size_t)head->base.slot_micro[slot] * c->micro_batch;
        head->in_call[slot] = true;
        for (uint32_t r = 0; r < c->micro_batch; r++) {
            size_t at = slot * mp + r;
            if (labels[r] == SFC_LABEL_NONE || head->slot_zero[at])
                continue;
            double lse = (items[i].lse[r] + head->exp_base) * LOG2_E;
            a->high[at] = (float)lse;
            a->low[at] = (float)(lse - (double)a->high[at]);
        }
    }
    int rc = send(head, head->high, a->high, columns * sizeof *a->high, "log-sum-exps", err);
    return rc ? rc : send(head, head->low, a->low, columns * sizeof *a->low, "log-sum-exps", err);
}

static int target_probabilities(struct sfc_cuda_head *head, struct sfc_error *err)
{
    struct run run;
    uint32_t at = 0;
    int rc = SFC_OK;
    while (!rc && next_run(head, &at, &run)) {
        struct sfc_cuda_targets targets = targets_of(head, &run);
        rc = sfc_cuda_check(
            head->cuda,
            sfc_cuda_target_p(&targets, head->high, head->low, head->target_p, main_stream(head)),
            "the probabilities of the targets", err);
    }
    return rc;
}

/* Of the slots of the call alone: another slot keeps what it has. */
static int clear_flags(struct sfc_cuda_head *head, const struct sfc_head_gradient_item *items,
                       size_t n, struct sfc_error *err)
{
    int rc = SFC_OK;
    for (size_t i = 0; !rc && i < n; i++)
        rc = clear(head, head->not_finite + items[i].slot, 0, sizeof *head->not_finite, err);
    return rc;
}

static int fetch_gradient(struct sfc_cuda_head *head, struct sfc_head_gradient_item *items,
                          size_t n, bool add, struct sfc_error *err)
{
    const struct sfc_head_config *c = &head->config;
    const struct sfc_cuda_sizes *s = &head->sizes;
    int rc = fetch(head, head->flags, head->not_finite, c->slots, sizeof *head->flags,
                   sizeof *head->flags, "the flags of the slots", err);
    for (size_t i = 0; !rc && items[0].dx && i < n; i++)
        rc = fetch_to(head, add ? take_sum : take_copy, items[i].dx,
                      head->lanes[0].dx + items[i].slot * s->mp * s->pitch, c->micro_batch,
                      c->dim * sizeof(uint64_t), s->pitch * sizeof(uint64_t), "dx", err);
    return rc;
}

static int run_gradient(struct sfc_cuda_head *head, struct sfc_head_gradient_item *items, size_t n,
                        bool add, struct sfc_error *err)
{
    size_t numbers = head->sizes.columns * head->sizes.pitch;
    struct gradient_call call = {items[0].dx != NULL};
    int rc = sfc_cuda_enter(head->cuda, err);
    if (!rc)
        rc = load_lse(head, items, n, err);
    if (!rc)
        rc = target_probabilities(head, err);
    if (!rc)
        rc = clear_flags(head, items, n, err);
    for (int i = 0; !rc && call.wants_dx && i < SFC_CUDA_LANES; i++)
        rc = clear(head, head->lanes[i].dx, 0, numbers * sizeof(uint64_t), err);
    if (!rc)
        rc = over_tiles(head, gradient_tile, &call, err);
    for (int i = 1; !rc && call.wants_dx && i < SFC_CUDA_LANES; i++)
        rc = sfc_cuda_check(
            head->cuda,
            sfc_cuda_join_dx(head->lanes[0].dx, head->lanes[i].dx, numbers, main_stream(head)),
            "the sums of dx", err);
    return rc ? rc : fetch_gradient(head, items, n, add, err);
}

int sfc_cuda_head_gradient(struct sfc_head_part *base, struct sfc_head_gradient_item *items,
                           size_t n, bool add, struct sfc_error *err)
{
    sfc_cuda_range_begin("shardfc gradient");
    int rc = run_gradient((struct sfc_cuda_head *)base, items, n, add, err);
    sfc_cuda_range_end();
    return rc;
}

bool sfc_cuda_head_finite(const struct sfc_head_part *base, const uint32_t *slots)
{
    const struct sfc_cuda_head *head = (const struct sfc_cuda_head *)base;
    for (size_t j = 0; j < head->sizes.micro_batches; j++)
        if (head->flags[slots[j]])
            return false;
    return true;
}

/* ---- pass 3 */

struct commit_call {
    bool in_order; /* the slots of the batch follow each other, from the first on */
    uint32_t first;
    struct sfc_cuda_update update;
};

static int commit_tile(const struct tile *t, const void *arg, struct sfc_error *err)
{
    const struct commit_call *call = arg;
    struct sfc_cuda_head *head = t->head;
    const struct sfc_cuda_sizes *s = &head->sizes;
    struct sfc_cuda_gemm_shape shape = head->gemm[SFC_CUDA_COMMIT].shape;
    const void *p = z_at(head, t->first, call->first * s->mp);
    const void *x = operand_at(head, head->x, call->first * s->mp * s->pitch);
    int rc = SFC_OK;
    if (!call->in_order) {
        rc = sfc_cuda_check(head->cuda,
                            sfc_cuda_assemble(z_at(head, t->first, 0), head->half,
                                              tile_positions(head), (uint32_t)s->columns,
                                              (const uint32_t *)head->slot_table,
                                              (uint32_t)s->micro_batches, (uint32_t)s->mp,
                                              t->lane->operand, t->stream),
                            "the probabilities of a batch", err);
        shape.lda = s->bp;
        p = t->lane->operand;
        x = head->batch_x;
    }
    if (!rc)
        rc = sfc_cuda_gemm_run(&head->gemm[SFC_CUDA_COMMIT], head->cuda, &shape, p, x,
                               t->lane->product, t->lane->workspace, t->stream, err);
    if (rc)
        return rc;
    return sfc_cuda_check(head->cuda,
                          sfc_cuda_update_rows(&t->store, head->rows + t->first,
                                               t->chunks * s->chunk, t->lane->product,
                                               head->inverse_norm + t->first, &call->update,
                                               t->stream),
                          "the update of rows", err);
}

/* Features of the batch's slots side by side, and where to find their columns. */
static int arrange_batch(struct sfc_cuda_head *head, const uint32_t *slots, struct sfc_error *err)
{
    const struct sfc_cuda_sizes *s = &head->sizes;
    size_t numbers = s->mp * s->pitch;
    size_t bytes = numbers * (head->half ? sizeof(uint16_t) : sizeof(float));
    int rc = send(head, head->slot_table, slots, s->micro_batches * sizeof *slots,
                  "the slots of a batch", err);
    for (size_t j = 0; !rc && j < s->micro_batches; j++)
        rc = sfc_cuda_check(head->cuda,
                            cudaMemcpyAsync(operand_at(head, head->batch_x, j * numbers),
                                            operand_at(head, head->x, slots[j] * numbers), bytes,
                                            cudaMemcpyDeviceToDevice, main_stream(head)),
                            "the features of a batch", err);
    return rc;
}

static struct sfc_cuda_update update_of(const struct sfc_cuda_head *head, double lr)
{
    const struct sfc_head_config *c = &head->config;
    struct sfc_cuda_update u = {
        .is_adamw = c->optimizer == SFC_OPTIMIZER_ADAMW,
        .gradient_scale = (float)(c->scale / c->batch),
        .lr = (float)lr,
        .momentum = (float)c->momentum,
        .weight_decay = (float)c->weight_decay,
    };
    if (u.is_adamw) {
        struct sfc_adamw a =
            sfc_adamw_at(c->beta1, c->beta2, c->epsilon, c->weight_decay, lr, head->base.step);
        u.adamw = (struct sfc_cuda_adamw){a.keep1, a.take1, a.keep2,   a.take2,
                                          a.rate,  a.root,  a.epsilon, a.decay};
    }
    return u;
}

static int run_commit(struct sfc_cuda_head *head, const uint32_t *slots, double lr,
                      struct sfc_error *err)
{
    struct commit_call call = {true, slots[0], update_of(head, lr)};
    int rc = sfc_cuda_enter(head->cuda, err);
    for (size_t j = 1; j < head->sizes.micro_batches; j++)
        call.in_order = call.in_order && slots[j] == slots[0] + j;
    if (!rc && !call.in_order)
        rc = arrange_batch(head, slots, err);
    if (rc)
        return rc; /* nothing was changed yet */
    rc = over_tiles(head, commit_tile, &call, err);
    if (!rc)
        rc = sfc_cuda_check(head->cuda, cudaStreamSynchronize(main_stream(head)),
                            "the update of the class centres", err);
    if (rc && err)
        err->code = SFC_EDEVICE; /* whatever it was: some rows may be updated */
    return rc ? SFC_EDEVICE : SFC_OK;
}

int sfc_cuda_head_commit(struct sfc_head_part *base, const uint32_t *slots, double lr,
                         struct sfc_error *err)
{
    sfc_cuda_range_begin("shardfc commit");
    int rc = run_commit((struct sfc_cuda_head *)base, slots, lr, err);
    sfc_cuda_range_end();
    return rc;
}

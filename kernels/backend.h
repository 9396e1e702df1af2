/* The one seam to the hardware. A backend holds class blocks ("head") and backbone blocks ("dense")
 * of one shard and computes on them. CPU, CUDA and the double-precision reference answer the same
 * tests (tests/unit/test_conformance.c).
 *
 * The maths, with its sources (An et al., "Partial FC", 2020; Deng et al., "ArcFace", 2019, eq. 3;
 * Wang et al., "CosFace", 2018, eq. 4; combined margin of insightface):
 *
 *   x^ = x / |x|  (f32; |x| < 1e-12 gives a zero row, gradient 0, counted)     [batch, dim]
 *   w^ = w / |w|                                                                [classes, dim]
 *   cos = clamp(x^ . w^, -1, 1)
 *   negative class: z = scale * cos; with a filter T, cos > T gives z = 0 and gradient 0, and the
 *     class stays in the log-sum-exp
 *   target class: theta = acos(cos), phi = m1 * theta + m2, k = floor(phi / pi),
 *     f = (-1)^k cos(phi) - 2k - m3, f' = df/dcos = (-1)^k m1 sin(phi) / max(sin(theta), 1e-4),
 *     z = scale * f; with SFC_MARGIN_GRAD_IDENTITY f' = 1
 *   LSE of a row = log of the sum of exp(z) over all sampled classes of all shards
 *   loss = mean over the global batch of (LSE - z_target)
 *   p = exp(z - LSE); dcos = scale * (p - [target]) * f' / batch   (f' = 1 for negatives)
 *   dx^ = sum over classes of dcos * w^;  dw^ = sum over rows of dcos * x^
 *   dw = (dw^ - w^ (w^ . dw^)) / |w|
 *   correction logq: z += -log(inclusion probability of the class) for sampled negatives
 *
 * Sample: see kernels/rng/sample.h. Update of sampled rows:
 *   SGD: g = dw + weight_decay * w; m = momentum * m + g; w = w - lr * m
 *   AdamW (Loshchilov and Hutter, 2019): m = beta1 * m + (1 - beta1) * dw;
 *     v = beta2 * v + (1 - beta2) * dw^2; m^ = m / (1 - beta1^t); v^ = v / (1 - beta2^t);
 *     w = w - lr * (m^ / (sqrt(v^) + epsilon) + weight_decay * w)
 * t is the step of the run, for a row that has seen few of them too and past skipped steps.
 * Mode sampled (AdamW has no other): rows not sampled are untouched. Mode dense:
 * rows not sampled take the same step with dw = 0; the blocks hold such rows as they were after the
 * last step that had them in its sample, with the number of that step, and the missed steps are one
 * linear map (kernels/lag.h) applied wherever the row is used. Only a commit writes the result
 * back.
 *
 * Invariants every backend keeps:
 * - I8: a block's new state and its contributions are a bitwise function of (its state, the step's
 *   inputs): not of neighbours, thread count, tiles, or how micro-batches are grouped into calls.
 * - Contributions that cross blocks are exact integers (kernels/exact_sum.h), so any placement
 *   of blocks on shards gives the same bits after the integer sum.
 * - Nothing in W or its moments changes before sfc_head_commit.
 *
 * Threads: objects of one backend are used by one thread at a time, but for sfc_head_check,
 * sfc_head_memory and sfc_backend_device_memory, which another may call meanwhile (a shard plans a
 * run while it computes for the one before); a backend runs its own threads inside. Errors are
 * status codes (proto/base/status.h); out parameters are written on success only. */
#ifndef SFC_KERNELS_BACKEND_H
#define SFC_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/status.h"

#define SFC_LABEL_NONE UINT64_MAX /* row of weight 0: no loss, no gradient, no positive class */

enum sfc_margin_grad { SFC_MARGIN_GRAD_EXACT, SFC_MARGIN_GRAD_IDENTITY };
enum sfc_correction { SFC_CORRECTION_NONE, SFC_CORRECTION_LOGQ };
enum sfc_optimizer { SFC_OPTIMIZER_SGD, SFC_OPTIMIZER_ADAMW };
enum sfc_momentum_mode { SFC_MOMENTUM_SAMPLED, SFC_MOMENTUM_DENSE };
enum sfc_dtype { SFC_DTYPE_F32, SFC_DTYPE_BF16 };
enum sfc_rounding { SFC_ROUNDING_STOCHASTIC, SFC_ROUNDING_NEAREST };
/* MOMENTUM: of AdamW the first moment. LAST_STEP (mode dense): per row the step after which its
 * values and momentum are stored, as a number in f32. SECOND_MOMENT: of AdamW, at least 0. */
enum sfc_block_part {
    SFC_PART_VALUES,
    SFC_PART_MOMENTUM,
    SFC_PART_LAST_STEP,
    SFC_PART_SECOND_MOMENT
};

struct sfc_head_config {
    uint64_t seed;
    uint64_t classes;
    uint32_t dim;         /* 1..SFC_MAX_DIM */
    uint32_t block_size;  /* classes per block; the last block may be shorter */
    uint32_t sample_ppm;  /* 1..1000000 */
    uint32_t batch;       /* rows of the global batch; a multiple of micro_batch */
    uint32_t micro_batch; /* rows of one slot */
    uint32_t slots;       /* attempts kept side by side, >= batch / micro_batch */
    double margin_m1, margin_m2, margin_m3;
    enum sfc_margin_grad margin_grad;
    double scale;
    bool has_filter;
    double filter;
    enum sfc_correction correction;
    enum sfc_optimizer optimizer;
    enum sfc_momentum_mode momentum_mode;
    double momentum;              /* of SGD */
    double beta1, beta2, epsilon; /* of AdamW */
    double weight_decay;
    double init_std;      /* W ~ N(0, init_std), keyed by (seed, class, column) */
    enum sfc_dtype dtype; /* of W and its moments */
    enum sfc_dtype gemm;  /* what the products' operands are rounded to; sums are f32. How operands
                             of bf16 are multiplied is the backend's choice and part of its numerics
                             class. */
    /* Of bf16 state by the update. Stochastic (kernels/rng/rounding.h) keeps the mean. Nearest
     * (ties to even) is there to compare with: it loses updates that are small against what they
     * change.
     */
    enum sfc_rounding rounding;
    uint64_t steps; /* mode dense: last step of the run, 1..2^24 (room for its history) */
};

#define SFC_MAX_DIM 8192u

/* Where the backend has a device with memory of its own, all of this is there (but for some MB). */
struct sfc_memory {
    uint64_t state_bytes;   /* W, its moments, per-row words */
    uint64_t step_bytes;    /* samples, kept logits, features, answers of all slots */
    uint64_t scratch_bytes; /* tiles and accumulators */
};

struct sfc_backend;
struct sfc_head;
struct sfc_dense;

/* ---- backend */

/* name: "cpu" or "reference" (double precision, slow, for tests) or "cuda[:N]", device 0 unless
 * said (a plugin: kernels/plugin.h). threads: >= 1, compute threads of the backend; never changes a
 * bit of any result. SFC_EUNSUPPORTED: not built in or no such device, with the cause in err. */
int sfc_backend_open(const char *name, unsigned threads, struct sfc_backend **out,
                     struct sfc_error *err);
void sfc_backend_close(struct sfc_backend *backend); /* NULL is fine */
/* Where the class blocks of heads that are made from now on live: in a file in the folder `dir`,
 * for blocks larger than memory, or (NULL, as at the beginning) in memory. The file is scratch: it
 * is made for the head, has no name, and ends with it or with the process. Its space is reserved by
 * sfc_head_new (SFC_ENOMEM with the numbers); state_bytes of struct sfc_memory is its size, the
 * rest is memory. Never changes a bit. SFC_EUNSUPPORTED: this backend has no such store; SFC_EIO:
 * no file can be made there. */
int sfc_backend_set_store(struct sfc_backend *backend, const char *dir, struct sfc_error *err);
/* Memory of the device that holds what this backend allocates, now; other programs take of it too.
 * A total of 0: it is the machine's memory. SFC_EDEVICE. */
struct sfc_device_memory {
    uint64_t total_bytes, free_bytes;
};
int sfc_backend_device_memory(const struct sfc_backend *backend, struct sfc_device_memory *out,
                              struct sfc_error *err);
const char *sfc_backend_name(const struct sfc_backend *backend);
/* Numerics class: backend, instruction set, library versions, numerics version of this build, e.g.
 * "cpu avx512_core_bf16 onednn-2.6.3 n1". Thread count is not part of it. */
const char *sfc_backend_numerics(const struct sfc_backend *backend);

/* ---- head: class blocks */

/* Checks every field; SFC_EINVAL names the field and its bounds, SFC_EUNSUPPORTED an option that
 * this backend does not have (yet). */
int sfc_head_check(const struct sfc_backend *backend, const struct sfc_head_config *config,
                   struct sfc_error *err);
uint64_t sfc_head_block_count(const struct sfc_head_config *config);
uint64_t sfc_head_block_rows(const struct sfc_head_config *config, uint64_t block);
/* About how much work a block is in steps that sample `rows` of it on average, in rows of a
 * product: a sample is worked on in tiles of equal length, and a block costs something whatever its
 * sample is. numerics: of the backend (sfc_backend_numerics). For planning: blocks compare by it.
 */
double sfc_head_work(const struct sfc_head_config *config, const char *numerics, uint64_t block,
                     double rows);
/* What a head with these blocks (or none) will use, before anything is allocated (I7). A head to
 * which they are added takes at most that more. */
int sfc_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                    const uint64_t *blocks, size_t count, struct sfc_memory *out,
                    struct sfc_error *err);
/* Allocates everything that the head will ever use and initialises the blocks (W from the seed,
 * momentum 0). blocks: ascending block ids; count 0: a head that holds nothing for now, and answers
 * zero sums. */
int sfc_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                 const uint64_t *blocks, size_t count, struct sfc_head **out,
                 struct sfc_error *err);
/* The same, but nothing is drawn: the state is zeros, for whoever writes all of it. */
int sfc_head_new_blank(struct sfc_backend *backend, const struct sfc_head_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_head **out,
                       struct sfc_error *err);
void sfc_head_free(struct sfc_head *head); /* NULL is fine */
/* What the head takes now, with all that was added and given back since. */
void sfc_head_used(const struct sfc_head *head, struct sfc_memory *out);

/* Blocks that come and go between two steps; what a step gives has the bits of a head that never
 * held others. All of these end the plan.
 *
 * Takes the blocks of `other`, with their state and block steps: so blocks are made and written
 * beside a head that goes on with its steps, and are its own in no time (no state is copied). On
 * success `other` is no more; on failure both are as they were. SFC_EINVAL: another backend or
 * configuration, or a block that head holds already. Mode dense: head's history goes on;
 * SFC_ESTATE: other's is longer. */
int sfc_head_attach(struct sfc_head *head, struct sfc_head *other, struct sfc_error *err);
/* sfc_head_new (or _new_blank) of these blocks, and attach. On failure head is as it was. */
int sfc_head_add(struct sfc_head *head, const uint64_t *blocks, size_t count, bool blank,
                 struct sfc_error *err);
/* Lets go of blocks. "cpu" gives their memory back to the system (with a store folder, the file's
 * space, where the file system can punch holes; else when all blocks that were made together have
 * gone). "cuda" has 16 MiB or one block in each piece of memory, and frees it when no block of it
 * is held any more. SFC_ENOTFOUND: one is not held here; nothing changed then. */
int sfc_head_remove(struct sfc_head *head, const uint64_t *blocks, size_t count,
                    struct sfc_error *err);

/* The configuration has more classes from now on. Blocks that are held keep their rows, so the last
 * block, if it gets more, has to be removed before, and added anew. Ends the plan. SFC_EINVAL:
 * fewer classes, or a configuration that can't be; SFC_ESTATE: a block that is held would get more
 * rows.
 */
int sfc_head_grow(struct sfc_head *head, uint64_t classes, struct sfc_error *err);

/* Raw state of a block as f32, exact for every dtype (written values are rounded to it) (elements
 * row-major [rows, dim]; LAST_STEP: [rows]); offset and count in elements of the part.
 * SFC_ENOTFOUND: not one of this head's blocks; SFC_EINVAL: range outside the block, or a part that
 * this configuration does not have. Reading changes nothing: a run that is read has the bits of one
 * that isn't. */
int sfc_head_read(struct sfc_head *head, uint64_t block, enum sfc_block_part part, uint64_t offset,
                  uint64_t count, float *out, struct sfc_error *err);
int sfc_head_write(struct sfc_head *head, uint64_t block, enum sfc_block_part part, uint64_t offset,
                   uint64_t count, const float *values, struct sfc_error *err);

/* The same of whole rows of a block, each at most once, in any order: [count, dim], LAST_STEP
 * [count]. SFC_EINVAL: a row outside the block. */
int sfc_head_read_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part part,
                       const uint32_t *rows, size_t count, float *out, struct sfc_error *err);
int sfc_head_write_rows(struct sfc_head *head, uint64_t block, enum sfc_block_part part,
                        const uint32_t *rows, size_t count, const float *values,
                        struct sfc_error *err);

/* Follows which rows of a block change, from now on (on: also if it was followed already; off: no
 * more). 4 bytes per row of such blocks. SFC_ENOTFOUND, SFC_ENOMEM. */
int sfc_head_track(struct sfc_head *head, uint64_t block, bool on, struct sfc_error *err);
/* Rows that commits of steps above `since` changed while the block was followed: ascending, at most
 * the block's; *count says how many. With a copy that was made when tracking began and the present
 * state of these rows somebody has the block as it is. Steps must go up meanwhile. SFC_ESTATE: the
 * block isn't followed, or not any more: writing it and sfc_head_set_block_step end it, and a
 * device that can't say what it changed. */
int sfc_head_changed(struct sfc_head *head, uint64_t block, uint64_t since, uint32_t *rows,
                     uint32_t *count, struct sfc_error *err);

/* Mode dense: the history of the run, rates[s - 1] = learning rate of step s or negative (skipped).
 * It belongs to the state like the blocks: what reads them must read it, what writes them must
 * write it, from step 1 on in order. It is the same on every shard. SFC_EINVAL: not mode dense, a
 * range that leaves a gap or ends after the last step. */
int sfc_head_read_rates(struct sfc_head *head, uint64_t offset, uint64_t count, float *out,
                        struct sfc_error *err);
int sfc_head_write_rates(struct sfc_head *head, uint64_t offset, uint64_t count, const float *rates,
                         struct sfc_error *err);

/* Begins step `step`: draws the sample of every block from (seed, step, block, positives in the
 * block) and forgets the slots of the step before. labels: [batch], < classes or SFC_LABEL_NONE.
 * May be called again for the same step (after an abort) with the same or other labels. *sampled:
 * classes sampled in all blocks of this head. Mode dense: the step must be the one after the
 * history (SFC_ESTATE). */
int sfc_head_plan(struct sfc_head *head, uint64_t step, const uint64_t *labels, uint64_t *sampled,
                  struct sfc_error *err);
/* A hint that `step` will be planned with these labels: rows of its sample that lie in a file begin
 * to be read. Changes nothing (the present plan goes on) and never waits for the disk. labels: as
 * for sfc_head_plan, borrowed. */
void sfc_head_prefetch(struct sfc_head *head, uint64_t step, const uint64_t *labels);
/* The sample of the present plan: ascending row numbers inside the block. Valid until the next
 * plan. */
int sfc_head_sample(const struct sfc_head *head, uint64_t block, const uint32_t **rows,
                    uint32_t *count, struct sfc_error *err);

/* Pass 1 for n micro-batches in one product. Slot numbers are < config.slots; a slot keeps its
 * logits until the next plan or until it is used again. SFC_ESTATE: no plan, or class centres that
 * are not finite (the message names the block). After an error the named slots are empty. */
struct sfc_head_logits_item {
    uint32_t slot;
    uint32_t micro_batch;   /* j: its rows are j * micro_batch ... of the plan's labels */
    const float *features;  /* [micro_batch, dim] raw; must be finite (SFC_EINVAL otherwise) */
    uint64_t *exp_sum;      /* out [micro_batch, 4]: kernels/exact_sum.h */
    float *target_logit;    /* out [micro_batch]: z of the target where owned, else 0 */
    uint8_t *has_target;    /* out [micro_batch]: 1 where this head owns the target's block */
    uint32_t zero_features; /* out: rows with |x| < 1e-12 */
};
int sfc_head_logits(struct sfc_head *head, struct sfc_head_logits_item *items, size_t n,
                    struct sfc_error *err);

/* Pass 2 for n micro-batches whose slots went through pass 1 in this plan. lse must be finite and
 * at least the local log-sum-exp - 1e-3 (SFC_EINVAL names the row). p replaces z in the slot. */
struct sfc_head_gradient_item {
    uint32_t slot;
    const double *lse; /* [micro_batch]: over all shards; ignored for rows of weight 0 */
    /* out [micro_batch, dim]: unit 2^-44 (kernels/exact_sum.h). NULL in all items of a call: not
     * wanted, and its product is left out (a step that is gone through again needs p alone) */
    int64_t *dx;
};
int sfc_head_gradient(struct sfc_head *head, struct sfc_head_gradient_item *items, size_t n,
                      struct sfc_error *err);

/* Says that this block's state is the one after `step`: plans of steps up to it leave the block out
 * (nothing of it is sampled, added to an answer or updated), later ones take it in. So blocks that
 * were copied at different steps (snapshots) come to the same step by going through the steps again
 * in order, with features and log-sum-exps as they were recorded: I8 makes the rest bitwise. Call
 * it before the block is written. A new head's blocks are at step 0. SFC_ENOTFOUND: not one of this
 * head's blocks. Ends the plan. */
int sfc_head_set_block_step(struct sfc_head *head, uint64_t block, uint64_t step,
                            struct sfc_error *err);

/* Pass 3: slots[j] is the slot that counts for micro-batch j (batch / micro_batch of them), all
 * through pass 2. dW of a block is one product over the whole batch, rows in order of j, then back
 * through the normalisation and the optimiser, straight into the block store. It ends the plan.
 * SFC_EDEVICE leaves the state undefined: it has to be read or written anew; every other error
 * leaves it untouched. */
int sfc_head_commit(struct sfc_head *head, const uint32_t *slots, double lr, struct sfc_error *err);
/* Ends step `step` without an update (a step that was not finite): the identity for every row. */
int sfc_head_skip(struct sfc_head *head, uint64_t step, struct sfc_error *err);
/* Whether the step may be committed with these slots and this learning rate: every p is finite, and
 * no class centre or moment would overflow, now or when rows that the step doesn't sample are
 * caught up (kernels/extent.h). False: skip it. A function of the state and the step's inputs, as
 * the bits are. Where the state is far out of bounds it may take a pass over all of it. */
bool sfc_head_finite(struct sfc_head *head, const uint32_t *slots, double lr);

/* ---- dense: blocks of the backbone's parameter vector */

enum sfc_dense_role { SFC_DENSE_WEIGHT, SFC_DENSE_WEIGHT_NO_DECAY, SFC_DENSE_STATISTIC };

struct sfc_dense_segment {
    uint64_t offset, length; /* in floats; segments tile [0, size) in order */
    enum sfc_dense_role role;
    double init_mean, init_std;
};

struct sfc_dense_config {
    uint64_t seed;
    uint64_t size;                            /* floats of the whole vector */
    uint32_t block_size;                      /* floats per block; the last may be shorter */
    uint32_t slots;                           /* attempts kept side by side */
    uint32_t micro_batches;                   /* per step */
    const struct sfc_dense_segment *segments; /* borrowed during sfc_dense_new only */
    size_t segment_count;
    enum sfc_optimizer optimizer;
    double momentum;              /* of SGD */
    double beta1, beta2, epsilon; /* of AdamW */
    double weight_decay;
    double statistic_momentum; /* 0.1: running = 0.9 * running + 0.1 * mean over micro-batches */
    /* BF16: summed gradients are rounded to the nearest bf16 (ties to even) before anything uses
     * them, so that a log may keep them in two bytes; statistics are not. */
    enum sfc_dtype sum_dtype;
};

int sfc_dense_memory(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                     const uint64_t *blocks, size_t count, struct sfc_memory *out,
                     struct sfc_error *err);
int sfc_dense_new(struct sfc_backend *backend, const struct sfc_dense_config *config,
                  const uint64_t *blocks, size_t count, struct sfc_dense **out,
                  struct sfc_error *err);
/* The same, but the state is zeros. */
int sfc_dense_new_blank(struct sfc_backend *backend, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_dense **out,
                        struct sfc_error *err);
void sfc_dense_free(struct sfc_dense *dense);
void sfc_dense_used(const struct sfc_dense *dense, struct sfc_memory *out);
/* Blocks that come and go between two steps, as for heads; vectors have the floats of all blocks of
 * the object in ascending order. What was pushed and prepared is forgotten. SFC_ENOMEM as well; on
 * failure both are as they were. Memory is freed when all blocks that were made together have gone;
 * an object whose blocks were not all made together takes a vector of the largest lot more. */
int sfc_dense_attach(struct sfc_dense *dense, struct sfc_dense *other, struct sfc_error *err);
int sfc_dense_add(struct sfc_dense *dense, const uint64_t *blocks, size_t count, bool blank,
                  struct sfc_error *err);
int sfc_dense_remove(struct sfc_dense *dense, const uint64_t *blocks, size_t count,
                     struct sfc_error *err);
int sfc_dense_read(struct sfc_dense *dense, uint64_t block, enum sfc_block_part part,
                   uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_dense_write(struct sfc_dense *dense, uint64_t block, enum sfc_block_part part,
                    uint64_t offset, uint64_t count, const float *values, struct sfc_error *err);
/* Floats of all blocks of this object, in block order: the length of push and pull vectors. */
uint64_t sfc_dense_length(const struct sfc_dense *dense);
/* Keeps the slice of one attempt: gradient of the weights (already divided by the global batch) and
 * batch statistics, [sfc_dense_length]. Copies. */
int sfc_dense_push(struct sfc_dense *dense, uint32_t slot, const float *slice,
                   struct sfc_error *err);
/* All values, [sfc_dense_length]. */
int sfc_dense_pull(struct sfc_dense *dense, float *out, struct sfc_error *err);

struct sfc_dense_sum {
    uint64_t block;
    double sum_of_squares; /* of the summed gradient, weights only, fixed order */
    bool finite;           /* every summed gradient and averaged statistic is finite, and no weight
                              or moment would overflow (kernels/extent.h) */
};
/* Adds the slices of slots[0..micro_batches) in this order (f32) and reports each block:
 * out [number of blocks]. Nothing in the state changes. step (>= 1) and lr are those of the update
 * that may follow; `finite` is said for clip scales up to 1. */
int sfc_dense_prepare(struct sfc_dense *dense, uint64_t step, double lr, const uint32_t *slots,
                      struct sfc_dense_sum *out, struct sfc_error *err);
/* Sums as they are kept: bf16 [halves], zeros up to a multiple of 8 bytes, f32 [floats], each in
 * the order of the blocks. sum_dtype BF16: the summed gradients are the halves and the statistics
 * the floats; F32: all are floats. */
struct sfc_dense_packing {
    uint64_t halves, floats;
};
/* Of these blocks, ascending ids within the vector. */
struct sfc_dense_packing sfc_dense_packing_of(const struct sfc_dense_config *config,
                                              const uint64_t *blocks, size_t count);
static inline uint64_t sfc_dense_packed_bytes(const struct sfc_dense_packing *packing)
{
    return (packing->halves * sizeof(uint16_t) + 7) / 8 * 8 + packing->floats * sizeof(float);
}
/* The sums of the last prepare or load, packed; out: 8-byte aligned. With them and the arguments of
 * the commit the step can be done again. SFC_ESTATE: there are none. */
int sfc_dense_sums(struct sfc_dense *dense, void *out, struct sfc_error *err);
/* Takes the place of push and prepare for a step that is gone through again: sums as sfc_dense_sums
 * gave them at `step`. SFC_EINVAL: one is not finite. */
int sfc_dense_load(struct sfc_dense *dense, uint64_t step, const void *sums, struct sfc_error *err);
/* Says that this block's state is the one after `step`: the commit of loaded sums of steps up to it
 * leaves the block as it is (see sfc_head_set_block_step). Sums of a prepare concern every block.
 */
int sfc_dense_set_block_step(struct sfc_dense *dense, uint64_t block, uint64_t step,
                             struct sfc_error *err);
/* Applies the sums of the last prepare or load: the optimiser as for class centres with
 * dw = clip_scale * sum, no decay for WEIGHT_NO_DECAY; statistics are averaged. */
int sfc_dense_commit(struct sfc_dense *dense, double clip_scale, double lr, struct sfc_error *err);

#endif

/* What a backend provides (private to kernels/). A head is a list of *parts*, each made of some
 * blocks by the backend; blocks that come later are parts of their own, or are taken into one where
 * the backend can (head_rearrange). What parts answer is added up: contributions are exact
 * integers, so the sum has the bits of one part with all blocks. The same for dense objects.
 *
 * kernels/backend.c, head*.c and dense*.c check every argument, keep the protocol state of the
 * slots and then call these functions, so a backend computes only: it may rely on
 * - a configuration that passed sfc_head_check, at least one block, ids that are ascending and in
 *   range;
 * - blocks addressed by their index in part->blocks, parts of blocks that the configuration has,
 *   ranges inside the block, last steps that are integers 0..config.steps, second moments >= 0;
 * - mode dense: part->done is the planned step - 1 in every pass;
 * - gradients: dx of all items of a call, or of none;
 * - labels in range or SFC_LABEL_NONE; finite features; slots and micro-batches in range, each slot
 *   at most once per call, passes in order; lse finite for every row with a label;
 * - commit slots that are distinct, in order of their micro-batches and through pass 2.
 *
 * It leaves out blocks that are ahead of the step (sfc_head_left_out, sfc_dense_left_out): an empty
 * sample, no update. Where a part can't let go of a block, the block is ahead of all steps.
 *
 * A backend embeds the base structures as the first member of its own and returns them from open
 * and *_new; backend.c, head*.c and dense*.c fill in and release the base members. */
#ifndef SFC_KERNELS_BACKEND_IMPL_H
#define SFC_KERNELS_BACKEND_IMPL_H

#include "kernels/backend.h"
#include "kernels/exact_sum.h"
#include "kernels/extent.h"

struct sfc_head_part;
struct sfc_dense_part;

struct sfc_head_ceilings {
    bool native;        /* bf16 operands are multiplied as such, not in f32 arithmetic */
    double gflops;      /* mean over the three products of a step */
    double read_gb_s;   /* contiguous reads */
    double update_gb_s; /* w and m read and written in place, contiguous */
    double exact_ms;    /* fixed-point additions of one step alone; 0: not measured */
};

/* Where a block of a rearranged part comes from: its index in the part or in the other one. */
struct sfc_head_place {
    bool other;
    size_t index;
};

enum sfc_slot_state { SFC_SLOT_EMPTY, SFC_SLOT_LOGITS, SFC_SLOT_GRADIENT };

struct sfc_backend_ops {
    const char *name;
    void (*close)(struct sfc_backend *backend);
    const char *(*numerics)(const struct sfc_backend *backend);

    int (*set_store)(struct sfc_backend *backend, const char *dir,
                     struct sfc_error *err); /* (optional) */
    /* (optional) where the backend's device has memory of its own */
    int (*device_memory)(const struct sfc_backend *backend, struct sfc_device_memory *out,
                         struct sfc_error *err);
    /* (optional, both) for benchmarks: what the device can do at best, measured in memory of this
     * size, with as many rows of W in a step */
    int (*head_ceilings)(struct sfc_backend *backend, const struct sfc_head_config *config,
                         uint64_t sampled, struct sfc_head_ceilings *out, struct sfc_error *err);
    uint64_t (*head_ceilings_memory)(const struct sfc_backend *backend);

    /* Mode dense is computed as it is defined: a commit changes every row. */
    bool eager_dense;
    /* (optional) what this backend can't do of a configuration whose fields are all in bounds */
    int (*head_check)(const struct sfc_backend *backend, const struct sfc_head_config *config,
                      struct sfc_error *err);
    int (*head_memory)(const struct sfc_backend *backend, const struct sfc_head_config *config,
                       const uint64_t *blocks, size_t count, struct sfc_memory *out,
                       struct sfc_error *err);
    /* blank: the state is zeros, else W is drawn from the seed. */
    int (*head_new)(struct sfc_backend *backend, const struct sfc_head_config *config,
                    const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                    struct sfc_error *err);
    void (*head_free)(struct sfc_head_part *part);
    int (*head_read)(struct sfc_head_part *part, size_t index, enum sfc_block_part what,
                     uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
    int (*head_write)(struct sfc_head_part *part, size_t index, enum sfc_block_part what,
                      uint64_t offset, uint64_t count, const float *values, struct sfc_error *err);
    /* (optional, both) the same of whole rows in any order; without: head_read and head_write */
    int (*head_read_rows)(struct sfc_head_part *part, size_t index, enum sfc_block_part what,
                          const uint32_t *rows, size_t count, float *out, struct sfc_error *err);
    int (*head_write_rows)(struct sfc_head_part *part, size_t index, enum sfc_block_part what,
                           const uint32_t *rows, size_t count, const float *values,
                           struct sfc_error *err);
    /* (optional) Between two steps: the part's blocks are those of `places` from now on, ascending
     * ids, of the part itself and of `other` (may be NULL; same configuration), which is freed.
     * Memory of blocks that are no more there is given back. Sets part->memory to what head_memory
     * counts. Called before the base members change; SFC_ENOMEM leaves both as they are. */
    int (*head_rearrange)(struct sfc_head_part *part, struct sfc_head_part *other,
                          const struct sfc_head_place *places, size_t count, struct sfc_error *err);
    int (*head_plan)(struct sfc_head_part *part, uint64_t step, const uint64_t *labels,
                     uint64_t *sampled, struct sfc_error *err);
    /* (optional) */
    void (*head_prefetch)(struct sfc_head_part *part, uint64_t step, const uint64_t *labels);
    void (*head_sample)(const struct sfc_head_part *part, size_t index, const uint32_t **rows,
                        uint32_t *count);
    /* add: what another part answered is in the items already: exp_sum and dx are added to, targets
     * that the part doesn't hold stay. */
    int (*head_logits)(struct sfc_head_part *part, struct sfc_head_logits_item *items, size_t n,
                       bool add, struct sfc_error *err);
    int (*head_gradient)(struct sfc_head_part *part, struct sfc_head_gradient_item *items, size_t n,
                         bool add, struct sfc_error *err);
    int (*head_commit)(struct sfc_head_part *part, const uint32_t *slots, double lr,
                       struct sfc_error *err);
    bool (*head_finite)(const struct sfc_head_part *part, const uint32_t *slots);
    /* After pass 1, of each block: the largest 1 / |w| of a sampled class (0 for a zero row). */
    void (*head_inverse_norms)(const struct sfc_head_part *part, double *out);
    /* Of each block whose `now` is forgotten (infinite), with all rows caught up with the plan
     * (kernels/extent.h), and of others where that is simpler. May take as long as a pass over
     * the state of these blocks; a step waits. */
    void (*head_extents)(struct sfc_head_part *part, struct sfc_extent *now);

    int (*dense_memory)(const struct sfc_backend *backend, const struct sfc_dense_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err);
    int (*dense_new)(struct sfc_backend *backend, const struct sfc_dense_config *config,
                     const uint64_t *blocks, size_t count, bool blank, struct sfc_dense_part **out,
                     struct sfc_error *err);
    void (*dense_free)(struct sfc_dense_part *part);
    int (*dense_read)(struct sfc_dense_part *part, size_t index, enum sfc_block_part what,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
    int (*dense_write)(struct sfc_dense_part *part, size_t index, enum sfc_block_part what,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err);
    int (*dense_push)(struct sfc_dense_part *part, uint32_t slot, const float *slice,
                      struct sfc_error *err);
    int (*dense_pull)(struct sfc_dense_part *part, float *out, struct sfc_error *err);
    int (*dense_prepare)(struct sfc_dense_part *part, const uint32_t *slots,
                         struct sfc_dense_sum *out, struct sfc_error *err);
    int (*dense_sums)(struct sfc_dense_part *part, void *out, struct sfc_error *err);
    int (*dense_load)(struct sfc_dense_part *part, const void *sums, struct sfc_error *err);
    /* Of the weights of each block; statistics don't count. */
    void (*dense_extents)(struct sfc_dense_part *part, struct sfc_extent *out);
    int (*dense_commit)(struct sfc_dense_part *part, double clip_scale, double lr,
                        struct sfc_error *err);
};

struct sfc_backend {
    const struct sfc_backend_ops *ops; /* set by the backend's open */
};

/* Base of a part of a head. The backend's head_new allocates it zeroed (as part of its own
 * structure); head_parts.c fills in the members before the first other call, so head_new and
 * head_free must not use them, the other functions may read them. */
struct sfc_head_part {
    struct sfc_head_part *next;
    struct sfc_head_config config;
    uint64_t *blocks; /* [block_count] ascending ids */
    size_t block_count;
    uint64_t *block_step; /* [block_count] set by the caller, else 0; SFC_BLOCK_GONE: removed */
    struct sfc_extents extents;
    struct sfc_memory memory;
    uint64_t step; /* planned */
    uint64_t done; /* mode dense: steps in the history */
    /* of the head */
    const uint64_t *labels;     /* [batch] of the present plan */
    const float *rates;         /* mode dense: [config.steps], kernels/lag.h; else NULL */
    const uint32_t *slot_micro; /* [slots] micro-batch that the slot holds */
};

#define SFC_BLOCK_GONE UINT64_MAX /* ahead of all steps */

/* Base of a part of a dense object; the same rules. config.segments is the object's. */
struct sfc_dense_part {
    struct sfc_dense_part *next;
    struct sfc_backend *backend;
    struct sfc_dense_config config;
    uint64_t *blocks;
    size_t block_count;
    uint64_t length; /* floats of all blocks */
    struct sfc_dense_packing packing;
    uint64_t *block_step; /* [block_count] set by the caller, else 0; SFC_BLOCK_GONE: removed */
    struct sfc_extents extents;
    struct sfc_memory memory;
    uint64_t step; /* of the sums */
    bool loaded;   /* they come from a load */
};

int sfc_backend_cpu_open(unsigned threads, struct sfc_backend **out, struct sfc_error *err);
int sfc_backend_reference_open(unsigned threads, struct sfc_backend **out, struct sfc_error *err);
/* kernels/cuda: what its plugin exports (the device by its number); and, where the backend is
 * linked instead of loaded, device 0. */
int sfc_backend_cuda_open(unsigned device, unsigned threads, struct sfc_backend **out,
                          struct sfc_error *err);
int sfc_backend_cuda_open_linked(unsigned threads, struct sfc_backend **out, struct sfc_error *err);

/* Index of a block id in an ascending list; count when it is not there. */
size_t sfc_block_index(const uint64_t *blocks, size_t count, uint64_t block);
/* Ascending, all < limit. what: "head" or "dense". */
int sfc_blocks_check(const char *what, const uint64_t *blocks, size_t count, uint64_t limit,
                     struct sfc_error *err);

/* The block's state has step `step` in it already. */
static inline bool sfc_head_left_out(const struct sfc_head_part *part, size_t index, uint64_t step)
{
    return part->block_step[index] >= step;
}

/* The same for a commit of the present sums. */
static inline bool sfc_dense_left_out(const struct sfc_dense_part *part, size_t index)
{
    return part->block_step[index] == SFC_BLOCK_GONE ||
           (part->loaded && part->block_step[index] >= part->step);
}

/* Whether a run with this optimiser has a part; LAST_STEP is for momentum mode dense alone. */
bool sfc_has_part(enum sfc_optimizer optimizer, bool last_step, enum sfc_block_part part);
/* Index of the first number that is not finite; n: none. Looks at many at once: nearly never one of
 * them is broken. */
size_t sfc_first_broken(const float *v, size_t n);
/* Values that may be written to a part: finite, second moments at least 0. what as above. */
int sfc_values_check(const char *what, uint64_t block, enum sfc_block_part part, uint64_t offset,
                     uint64_t count, const float *values, struct sfc_error *err);
/* beta1, beta2 and epsilon of AdamW within bounds (beta < 1, epsilon > 0). */
int sfc_adamw_check(const char *what, double beta1, double beta2, double epsilon,
                    struct sfc_error *err);

/* Where the floats begin behind the halves of packed sums. */
static inline size_t sfc_dense_packed_floats(const struct sfc_dense_packing *packing)
{
    const struct sfc_dense_packing halves = {.halves = packing->halves};
    return (size_t)sfc_dense_packed_bytes(&halves);
}
/* Sums of this role are halves. */
static inline bool sfc_dense_is_half(const struct sfc_dense_config *config,
                                     enum sfc_dense_role role)
{
    return config->sum_dtype == SFC_DTYPE_BF16 && role != SFC_DENSE_STATISTIC;
}

/* Blocks of a dense configuration, and the floats of one. */
uint64_t sfc_dense_block_count(const struct sfc_dense_config *config);
uint64_t sfc_dense_block_length(const struct sfc_dense_config *config, uint64_t block);

#endif

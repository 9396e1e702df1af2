/* Class blocks of the CPU backend (private). Files: head_new.c (sizes, memory, life), head_slab.c
 * (memory of blocks that come and go), head_store.c (reading and writing it), head_plan.c
 * (samples), head_passes.c (logits and gradient), head_commit.c (update), head_extent.c (overflow).
 *
 * A block's sample is worked on in tiles of `tile` rows, the same number for every block and step,
 * small enough to stay in a core's cache from the gather to the end of the product. So every matrix
 * product has one of a few fixed shapes:
 *
 *   logits    [tile, pitch] x [pitch, g * mp]    rows of W times unit features
 *   gradient  [g * mp, tile] x [tile, pitch]     p / |w| times rows of W, added up over the tiles
 *   commit    [tile, bp] x [bp, pitch]           p of the whole batch times unit features
 *
 * mp, bp, pitch: micro_batch, batch, dim rounded up to 16, filled with zeros. g: micro-batches in
 * one product, a power of two. A call for n micro-batches is cut into products of such sizes; where
 * oneDNN's kernel does not keep the bits of one micro-batch for every g, g is 1 (head->joint).
 *
 * Two formats: of what products multiply (head->operand: kernels/cpu/simd.h), and of what slots
 * keep of z and p: f32 beside f32 operands, else 16 bits (head->half), z as fixed-point cosines and
 * p in bf16. Operands rounded to bf16 are bf16 or f32 numbers, by the CPU (kernels/cpu/products.h).
 */
#ifndef SFC_KERNELS_CPU_HEAD_H
#define SFC_KERNELS_CPU_HEAD_H

#include <stdatomic.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/mapping.h"
#include "kernels/cpu/simd.h"

#define SFC_CPU_MAX_GROUPS 5   /* products of 1, 2, 4, 8, 16 micro-batches */
#define SFC_CPU_MAX_WIDTH  512 /* columns of a joint product */
#define SFC_CPU_MAX_BYTES  0x1p56

struct sfc_cpu_sizes {
    size_t pitch, mp, bp, tile;
    size_t tensors; /* of a row's record: weights and moments of the optimiser */
    size_t micro_batches;
    size_t groups;        /* sizes of products: 1 << 0 .. 1 << (groups - 1) */
    size_t call_rows;     /* rows of x in one call or one batch, padded */
    size_t full_block;    /* rows of a block that isn't the last */
    size_t scratch_bytes; /* of one worker, without oneDNN's */
};

/* Blocks that were made together, and their memory. */
struct sfc_cpu_slab {
    struct sfc_cpu_slab *next;
    size_t blocks;      /* that are still held */
    size_t store_rows;  /* rows of W of all blocks */
    size_t sample_rows; /* bound of the sampled rows of one plan */
    uint64_t state_bytes, step_bytes;
    struct sfc_cpu_mapping state, step;
    char *records;       /* [store_rows] of the store's format (kernels/cpu/simd.h) */
    uint32_t *last;      /* mode dense: [store_rows] the step that the record is of; else NULL */
    uint32_t *rows;      /* [sample_rows] of the plan */
    float *inverse_norm; /* [sample_rows] of W, written by pass 1 */
    float *add;          /* [sample_rows] added to z before exp: correction - shift */
    void *z;             /* [slots, sample_rows, mp] kept numbers */
    size_t sampled;      /* of the plan, while it is made */
};

struct sfc_cpu_block {
    uint64_t id;
    uint32_t rows;
    bool kept;                    /* while blocks are rearranged */
    struct sfc_cpu_slab *slab;    /* where it lies: */
    size_t store;                 /* first row in records and last */
    size_t sample;                /* first entry in rows, inverse_norm, add and z */
    uint32_t count;               /* sampled rows of the present plan */
    uint32_t oldest, newest;      /* mode dense: of the last steps of the sampled rows */
    uint32_t target, targets;     /* range in target_row, target_at */
    uint32_t positive, positives; /* range in positive */
};

struct sfc_cpu_worker {
    dnnl_stream_t stream;
    struct sfc_gemm logits[SFC_CPU_MAX_GROUPS], gradient[SFC_CPU_MAX_GROUPS], commit;
    struct sfc_cpu_mapping arena;
    void *tile;    /* [tile, pitch] operand */
    void *product; /* [tile, max(group columns, bp)]: cosines in f32, then p, an operand */
    float *row;    /* [2, pitch] of the update */
    float *result; /* [max(tile, call_rows), pitch]: dx of a block or dw */
    double *exps;  /* [call_rows] sums of exponentials of one block */
    struct sfc_sum256 *sums; /* [call_rows] */
    int64_t *dx;             /* [slots * micro_batch, dim] */
    void *sample;            /* sfc_sample_scratch */
    uint32_t *ahead;         /* rows of one block that a later step will sample */
    void *gemm;              /* oneDNN's scratchpad */
    struct sfc_error error;  /* the first of a pass */
};

struct sfc_cpu_label {
    uint64_t label;
    uint32_t row;
};

struct sfc_cpu_head {
    struct sfc_head_part base;
    struct sfc_cpu *cpu;
    const struct sfc_simd *simd;
    struct sfc_head_config config;
    struct sfc_cpu_sizes sizes;
    struct sfc_memory memory;
    bool joint;
    enum sfc_operand operand;
    bool half;                        /* operands are rounded to bf16 */
    size_t operand_bytes, kept_bytes; /* of one number */
    enum sfc_store_format format;
    struct sfc_cpu_block *blocks;
    size_t block_count;
    struct sfc_cpu_worker *workers;
    struct sfc_cpu_slab *slabs;
    struct sfc_cpu_mapping step;
    struct sfc_lag *lag; /* mode dense: [steps + 1] from after a row's step to the plan's */
    /* the plan */
    double exp_factor; /* the sums of exponentials are times this */
    uint64_t sampled;
    struct sfc_cpu_label *labels;                /* [batch] sorted */
    uint32_t *target_row, *target_at, *positive; /* [batch] */
    /* the slots */
    void *x;             /* [slots, micro_batch, pitch] unit features, operands */
    float *target_z;     /* [slots, micro_batch] logits of the targets held here */
    float *slope;        /* [slots, micro_batch] f' of the target */
    bool *zero;          /* [slots, micro_batch] the feature has no direction: gradient 0 */
    atomic_bool *finite; /* [slots] */
    /* the call */
    void *call_x; /* [call_rows, pitch] operands, packed for the products (kernels/cpu/gemm.h) */
    float *unit;  /* [pitch] one unit feature */
    float *high, *low; /* [call_rows] log-sum-exp */
};

/* Operand number `index` of an array of them. */
static inline void *sfc_cpu_at(const struct sfc_cpu_head *head, void *array, size_t index)
{
    return (char *)array + index * head->operand_bytes;
}

/* Kept number `index` of an array of them. */
static inline void *sfc_cpu_kept_at(const struct sfc_cpu_head *head, void *array, size_t index)
{
    return (char *)array + index * head->kept_bytes;
}

static inline void *sfc_cpu_slot_z(const struct sfc_cpu_head *head, const struct sfc_cpu_slab *slab,
                                   uint32_t slot, size_t row)
{
    return sfc_cpu_kept_at(head, slab->z,
                           ((size_t)slot * slab->sample_rows + row) * head->sizes.mp);
}

static inline void *sfc_cpu_slot_x(const struct sfc_cpu_head *head, uint32_t slot)
{
    return sfc_cpu_at(head, head->x, (size_t)slot * head->config.micro_batch * head->sizes.pitch);
}

static inline size_t sfc_cpu_record_bytes(const struct sfc_cpu_head *head)
{
    return head->sizes.tensors * sfc_tensor_bytes(head->format, head->config.dim);
}

/* A slab for these blocks (at least one) of a head whose sizes and formats are known: what it
 * takes, and making it. SFC_ELIMIT: more than any machine has. */
int sfc_cpu_slab_measure(const struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                         struct sfc_cpu_slab *out, struct sfc_error *err);
int sfc_cpu_slab_new(const struct sfc_cpu_head *head, const uint64_t *blocks, size_t count,
                     struct sfc_cpu_slab **out, struct sfc_error *err);
void sfc_cpu_slab_free(struct sfc_cpu_slab *slab); /* NULL is fine */

/* The block's part of the store; worker: whose scratch an update may use, NULL: there is none. */
struct sfc_store sfc_cpu_store(const struct sfc_cpu_head *head, const struct sfc_cpu_block *block,
                               const struct sfc_cpu_worker *worker);

/* What a head with these slabs (a list) and so many blocks takes. */
struct sfc_memory sfc_cpu_head_counted(const struct sfc_cpu_head *head,
                                       const struct sfc_cpu_slab *slabs, size_t blocks);
/* Numbers [k, k + n) of one tensor of a row. */
void sfc_cpu_get_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                         enum sfc_block_part part, size_t row, size_t k, size_t n, float *out);
void sfc_cpu_put_numbers(const struct sfc_cpu_head *head, const struct sfc_store *store,
                         enum sfc_block_part part, size_t row, size_t k, size_t n,
                         const float *values);
void sfc_cpu_put_done(void); /* before another thread may read what was put */

/* The shapes of the products; they depend on the configuration alone, never on which blocks are
 * held (I8). */
void sfc_cpu_product_sizes(const struct sfc_head_config *config, struct sfc_cpu_sizes *sizes);
/* Micro-batches of the next product when `rest` are left. */
size_t sfc_cpu_group(const struct sfc_cpu_head *head, size_t rest, size_t *log2);
/* The error of the first worker (by index) that had one, cleared. */
int sfc_cpu_head_error(struct sfc_cpu_head *head, struct sfc_error *err);
/* Gathers rows [first, first + n) of the block's sample into the worker's tile, pads it with zeros.
 */
void sfc_cpu_gather(struct sfc_cpu_head *head, struct sfc_cpu_worker *worker,
                    const struct sfc_cpu_block *block, size_t first, size_t n);

/* Sets head->joint (head_probe.c). */
int sfc_cpu_head_probe(struct sfc_cpu_head *head, struct sfc_error *err);

/* The head_* members of struct sfc_backend_ops. */
int sfc_cpu_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        const uint64_t *blocks, size_t count, struct sfc_memory *out,
                        struct sfc_error *err);
int sfc_cpu_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                     const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                     struct sfc_error *err);
int sfc_cpu_head_rearrange(struct sfc_head_part *part, struct sfc_head_part *other,
                           const struct sfc_head_place *places, size_t count,
                           struct sfc_error *err);
void sfc_cpu_head_free(struct sfc_head_part *head);
int sfc_cpu_head_read(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                      uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_cpu_head_write(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, const float *values, struct sfc_error *err);
int sfc_cpu_head_read_rows(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                           const uint32_t *rows, size_t count, float *out, struct sfc_error *err);
int sfc_cpu_head_write_rows(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                            const uint32_t *rows, size_t count, const float *values,
                            struct sfc_error *err);
int sfc_cpu_head_plan(struct sfc_head_part *head, uint64_t step, const uint64_t *labels,
                      uint64_t *sampled, struct sfc_error *err);
void sfc_cpu_head_prefetch(struct sfc_head_part *head, uint64_t step, const uint64_t *labels);
void sfc_cpu_head_sample(const struct sfc_head_part *head, size_t index, const uint32_t **rows,
                         uint32_t *count);
int sfc_cpu_head_logits(struct sfc_head_part *head, struct sfc_head_logits_item *items, size_t n,
                        bool add, struct sfc_error *err);
int sfc_cpu_head_gradient(struct sfc_head_part *head, struct sfc_head_gradient_item *items,
                          size_t n, bool add, struct sfc_error *err);
int sfc_cpu_head_commit(struct sfc_head_part *head, const uint32_t *slots, double lr,
                        struct sfc_error *err);
bool sfc_cpu_head_finite(const struct sfc_head_part *head, const uint32_t *slots);
void sfc_cpu_head_inverse_norms(const struct sfc_head_part *head, double *out);
void sfc_cpu_head_extents(struct sfc_head_part *head, struct sfc_extent *now);

#endif

/* Class blocks of the CUDA backend (private). Files: head_new.c (sizes, memory, life),
 * head_memory.c and head_rearrange.c (what stays when blocks come and go), head_plan.c and plan.cu
 * (samples), head_passes.c with logits.cu, gradient.cu and commit.cu (the three passes),
 * head_state.c and state.cu (first values, read, write, extents), gemm.c (products).
 *
 * The samples of all blocks lie one after the other in *chunks* of the same number of positions; a
 * block begins a chunk, and what is left of its last chunk is padding: rows of zeros that count for
 * nothing. So a pass is a row of equal products, whatever the blocks are, and no result depends on
 * what else is in a product:
 *
 *   logits    [positions, pitch] x [pitch, columns]  rows of W times unit features: cosines but for
 * |w| gradient  [columns, chunk] x [chunk, pitch]      p / |w| times rows of W, one product per
 * chunk commit    [positions, bp] x [bp, pitch]          p / |w| of the whole batch times unit
 * features
 *
 * A *tile* is `group` chunks; the lanes (streams) work on tiles in turn, each in its own scratch.
 * Lanes, tiles and groups never change a bit: products have one algorithm per kind, without split
 * sums (gemm.h), each chunk's part of an answer is rounded to an integer by itself, and integers
 * are added (kernels/exact_sum.h).
 *
 * Columns: slot s has the mp columns from s * mp on, micro_batch rounded up to 16; what is beyond
 * the micro-batch is zero features. */
#ifndef SFC_KERNELS_CUDA_HEAD_H
#define SFC_KERNELS_CUDA_HEAD_H

#include "kernels/adamw.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/kernels.h"
#include "kernels/hd/exact.h"

struct sfc_cuda_sizes {
    size_t pitch, mp, bp; /* dim, micro_batch, batch in columns of slots: micro_batches * mp */
    size_t micro_batches;
    size_t columns; /* slots * mp: of z and x */
    size_t tensors; /* of a record */
    size_t record;  /* bytes */
    size_t chunk, group;
    size_t full_block; /* rows of a block that is not the last */
    uint32_t shift;    /* of store rows: full_block is at most 1 << shift */
    size_t piece;      /* bytes of the state on its way between host and device */
    size_t tile;       /* bytes of the kept numbers of a tile */
    size_t max_chunks; /* of a plan; a multiple of group */
    size_t positions;  /* max_chunks * chunk */
};

/* Memory of a few blocks that were made together, on the device: given back when none of them is
 * held any more. */
struct sfc_cuda_slab {
    void *memory;
    size_t bytes, held;
    bool counted; /* by who is counting */
};

/* A block on the host's side. */
struct sfc_cuda_block {
    uint64_t id;
    uint32_t rows;
    uint32_t store; /* first store row: its index << shift */
    struct sfc_cuda_slab *slab;
    char *records;                /* device, in the slab: [rows, record] */
    uint32_t count;               /* sampled rows of the present plan */
    size_t first_chunk, chunks;   /* of the present plan */
    uint32_t positive, positives; /* range in the plan's positives */
};

struct sfc_cuda_lane {
    void *tile;      /* [group * chunk, pitch] operand */
    void *product;   /* f32 [group * chunk, max(bp, pitch)], or dx of chunks [group, bp, pitch] */
    void *operand;   /* [group * chunk, bp] p of the batch, where its slots are not in order */
    void *workspace; /* of products */
    unsigned long long *dx; /* [columns, pitch] its part of pass 2's answers */
    float *piece;           /* [sizes.piece bytes] */
    cudaEvent_t done;
};

/* A call's arrays on the host, [columns]. */
struct sfc_cuda_answer {
    uint64_t *limbs; /* [columns, SFC_HD_LIMBS] */
    float *target_z, *high, *low;
    int32_t *target;
};

struct sfc_cuda_head {
    struct sfc_head_part base;
    struct sfc_cuda *cuda;
    struct sfc_head_config config;
    struct sfc_cuda_sizes sizes;
    struct sfc_memory memory;
    enum sfc_cuda_format format;
    bool half;  /* operands and kept numbers have 16 bits */
    bool fuses; /* logits, by kernels/cuda/fused.h */
    struct sfc_cuda_block *blocks;
    size_t block_count;
    struct sfc_cuda_gemm gemm[SFC_CUDA_PRODUCTS];
    struct sfc_cuda_lane lanes[SFC_CUDA_LANES];

    /* device: tables of the blocks, [block_count] each */
    char **block_records;
    uint64_t *block_class; /* first class */
    uint32_t *block_rows;
    uint32_t *last; /* mode dense: [store rows] the step that a row is of; else NULL. Counted with a
                       step: in the slabs it would cost a page of each. */

    /* device: the plan (kernels/cuda/plan.cu) */
    uint32_t *rows;           /* [positions] store row, or SFC_CUDA_PADDING */
    float *add;               /* [positions] added to z before exp; -inf for padding */
    uint32_t *chunk_block;    /* [max_chunks] */
    int32_t *target;          /* [batch] position of the row's class, or -1 */
    struct sfc_cuda_lag *lag; /* mode dense: [steps + 1]: entries oldest .. step - 1 */
    size_t chunks, tiles;     /* of the present plan */
    double exp_factor;        /* the sums of exponentials are times this */
    double exp_base;          /* what `add` is of a positive: minus the shift and log(exp_factor) */

    /* device: the slots */
    void **z;              /* [max_chunks / group] a tile's kept numbers, [positions, columns] */
    void *x;               /* [columns, pitch] unit features, operands */
    float *target_z;       /* [columns] logits of the targets held here */
    float *slope;          /* [columns] f' of the target, 0 where the feature has no direction */
    float *target_product; /* [columns] the product at the target */
    float *target_p;       /* [columns] (p - 1) f' of the target */
    uint8_t *zero;         /* [columns] the feature has no direction */
    uint32_t *not_finite;  /* [slots] */
    int32_t
        *slot_table; /* [slots] of the call: micro-batches of slots, or slots of micro-batches */
    void *batch_x;   /* [bp, pitch] x of the batch, where its slots are not in order */

    /* device: pass results */
    float *inverse_norm;       /* [positions] of W, written by pass 1; 0 for padding */
    uint32_t *block_inverse;   /* [block_count] largest of the block as bits (they order alike) */
    uint32_t *bad_block;       /* the first that has a row that is not finite, or more than any */
    double *exps;              /* [max_chunks * strips, columns] parts of the sums */
    unsigned long long *limbs; /* [columns, 8]: 32-bit limbs of 256-bit sums, not yet carried */
    float *features;           /* [slots, micro_batch, dim] raw */
    float *high, *low;         /* [columns] log2(e) times the log-sum-exp */
    int32_t *column_target;    /* [columns] position of the column's target, or -1 */

    void *step_memory, *scratch_memory; /* device: what lies in them was carved; z and slabs have
                                           their own */
    cudaEvent_t ready;                  /* what the lanes wait for */
    size_t host_bytes;                  /* of host memory, pinned and not */

    /* host */
    void *host;                    /* what the arrays below lie in */
    bool *in_call;                 /* [slots] of the call in work */
    int32_t *table;                /* [slots] */
    uint32_t *flags;               /* [slots] not_finite after pass 2 */
    uint8_t *slot_zero;            /* [columns] zero after pass 1 */
    struct sfc_cuda_answer answer; /* of a call */

    /* host, pinned */
    void *staging; /* [staging_bytes] for copies in bounded pieces */
    size_t staging_bytes;

    /* whatever head_plan.c and head_state.c need on top */
    struct sfc_cuda_plan *plan;
    struct sfc_cuda_state *state;
};

/* What a head allocates, counted first and then taken: with `base` NULL it only counts. Every range
 * is 256-byte aligned. */
struct sfc_cuda_carver {
    char *base;
    size_t used;
};
void *sfc_cuda_carve(struct sfc_cuda_carver *carver, size_t count, size_t size);

/* Adds what the plan and the state need of the device's memory (they keep what they carve) and of
 * the host's; called once to count and once to take. Return the bytes of host memory. */
size_t sfc_cuda_plan_lay_out(struct sfc_cuda_head *head, struct sfc_cuda_carver *step);
size_t sfc_cuda_state_lay_out(struct sfc_cuda_head *head, struct sfc_cuda_carver *step);
/* Host memory of both, after the device memory was taken; the tables of the blocks go to the
 * device. */
int sfc_cuda_plan_init(struct sfc_cuda_head *head, struct sfc_error *err);
void sfc_cuda_plan_free(struct sfc_cuda_head *head); /* also of a head that was never initialised */
int sfc_cuda_state_init(struct sfc_cuda_head *head, struct sfc_error *err);
void sfc_cuda_state_free(struct sfc_cuda_head *head);
/* First values of all blocks; blank: zeros. */
int sfc_cuda_state_fill(struct sfc_cuda_head *head, bool blank, struct sfc_error *err);
/* What calls of `from` could not report is reported by head. */
void sfc_cuda_plan_inherit(struct sfc_cuda_head *head, const struct sfc_cuda_head *from);
void sfc_cuda_state_inherit(struct sfc_cuda_head *head, const struct sfc_cuda_head *from);

/* ---- device memory that stays where it is when a part's blocks change (head_memory.c) */

/* cudaMalloc; all: bytes of everything that `what` takes, for the message. */
int sfc_cuda_take(const struct sfc_cuda_head *head, const char *what, size_t bytes, size_t all,
                  void **out, struct sfc_error *err);
/* What CUDA takes for so many bytes. */
size_t sfc_cuda_whole_pages(size_t bytes);
/* What slabs of these blocks take. */
size_t sfc_cuda_slab_bytes(const struct sfc_cuda_head *head, const uint64_t *blocks, size_t count);
/* Takes the slabs of all head->blocks. */
int sfc_cuda_take_slabs(struct sfc_cuda_head *head, struct sfc_error *err);
void sfc_cuda_let_go(struct sfc_cuda_block *block);
/* What the slabs of head->blocks take. */
size_t sfc_cuda_slabs_held(const struct sfc_cuda_head *head);
static inline size_t sfc_cuda_tiles(const struct sfc_cuda_head *head)
{
    return head->sizes.max_chunks / head->sizes.group;
}
/* Takes the tiles of head->z that are not there yet. */
int sfc_cuda_take_tiles(struct sfc_cuda_head *head, struct sfc_error *err);
void sfc_cuda_free_tiles(struct sfc_cuda_head *head);

/* ---- steps of head_new.c that head_rearrange.c takes as well */

/* Sizes and memory of these blocks, whose number is head->block_count; everything that depends on
 * the configuration alone is there. */
int sfc_cuda_head_measure(struct sfc_cuda_head *head, const uint64_t *blocks,
                          struct sfc_error *err);
int sfc_cuda_head_number(struct sfc_cuda_head *head, const uint64_t *blocks, struct sfc_error *err);
/* Everything of a step, tables of the blocks included, but for scratch and kept numbers. */
int sfc_cuda_head_take_step(struct sfc_cuda_head *head, struct sfc_error *err);

/* Strips of a chunk: what one block of threads adds exponentials of. */
static inline uint32_t sfc_cuda_strips(const struct sfc_cuda_head *head)
{
    return (uint32_t)((head->sizes.chunk + SFC_CUDA_STRIP - 1) / SFC_CUDA_STRIP);
}

/* The store as kernels see it; step: the one in work. */
struct sfc_cuda_store sfc_cuda_store_of(const struct sfc_cuda_head *head);

/* Bytes of an operand's number. */
static inline size_t sfc_cuda_operand_bytes(const struct sfc_cuda_head *head)
{
    return head->half ? sizeof(uint16_t) : sizeof(float);
}

/* The shapes of a tile's products, [SFC_CUDA_PRODUCTS]; returns the columns that a slot adds. */
size_t sfc_cuda_head_shapes(struct sfc_cuda *cuda, const struct sfc_head_config *config,
                            struct sfc_cuda_gemm_shape *shapes);

/* The head_* members of struct sfc_backend_ops. */
int sfc_cuda_head_ceilings(struct sfc_backend *backend, const struct sfc_head_config *config,
                           uint64_t sampled, struct sfc_head_ceilings *out, struct sfc_error *err);
uint64_t sfc_cuda_head_ceilings_memory(const struct sfc_backend *backend);
int sfc_cuda_head_check(const struct sfc_backend *backend, const struct sfc_head_config *config,
                        struct sfc_error *err);
int sfc_cuda_head_memory(const struct sfc_backend *backend, const struct sfc_head_config *config,
                         const uint64_t *blocks, size_t count, struct sfc_memory *out,
                         struct sfc_error *err);
int sfc_cuda_head_new(struct sfc_backend *backend, const struct sfc_head_config *config,
                      const uint64_t *blocks, size_t count, bool blank, struct sfc_head_part **out,
                      struct sfc_error *err);
void sfc_cuda_head_free(struct sfc_head_part *head);
int sfc_cuda_head_rearrange(struct sfc_head_part *head, struct sfc_head_part *other,
                            const struct sfc_head_place *places, size_t count,
                            struct sfc_error *err);
int sfc_cuda_head_read(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                       uint64_t offset, uint64_t count, float *out, struct sfc_error *err);
int sfc_cuda_head_write(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                        uint64_t offset, uint64_t count, const float *values,
                        struct sfc_error *err);
int sfc_cuda_head_read_rows(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                            const uint32_t *rows, size_t count, float *out, struct sfc_error *err);
int sfc_cuda_head_write_rows(struct sfc_head_part *head, size_t index, enum sfc_block_part part,
                             const uint32_t *rows, size_t count, const float *values,
                             struct sfc_error *err);
int sfc_cuda_head_plan(struct sfc_head_part *head, uint64_t step, const uint64_t *labels,
                       uint64_t *sampled, struct sfc_error *err);
void sfc_cuda_head_sample(const struct sfc_head_part *head, size_t index, const uint32_t **rows,
                          uint32_t *count);
int sfc_cuda_head_logits(struct sfc_head_part *head, struct sfc_head_logits_item *items, size_t n,
                         bool add, struct sfc_error *err);
int sfc_cuda_head_gradient(struct sfc_head_part *head, struct sfc_head_gradient_item *items,
                           size_t n, bool add, struct sfc_error *err);
int sfc_cuda_head_commit(struct sfc_head_part *head, const uint32_t *slots, double lr,
                         struct sfc_error *err);
bool sfc_cuda_head_finite(const struct sfc_head_part *head, const uint32_t *slots);
void sfc_cuda_head_inverse_norms(const struct sfc_head_part *head, double *out);
void sfc_cuda_head_extents(struct sfc_head_part *head, struct sfc_extent *out);

#endif

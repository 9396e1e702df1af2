/* From a run's configuration (a protocol message) to what the kernels take, with the memory of any
 * set of blocks. Scheduler (to place and refuse) and shard (to open) use the same numbers. */
#ifndef SFC_RUN_SETUP_H
#define SFC_RUN_SETUP_H

#include "kernels/backend.h"
#include "proto/base/status.h"
#include "proto/shardfc.pb-c.h"

/* Attempts that a shard keeps beyond one per micro-batch: a straggler and its replacement side by
 * side. */
#define SFC_RUN_SPARE_SLOTS 2u
/* Copies of the parameters that PullDense answers from: one for the present step, one for the next,
 * and four that may be stuck in connections of workers that stopped reading, each at another step.
 */
#define SFC_RUN_PULL_COPIES 6u

struct sfc_run_setup {
    struct sfc_head_config head;
    struct sfc_dense_config dense;      /* size 0: no backbone */
    struct sfc_dense_segment *segments; /* owned; dense.segments points here */
    uint64_t class_blocks;
    uint64_t start_classes; /* before the run grew */
    uint64_t dense_blocks;
    uint32_t micro_batches;
    uint32_t slots;
};

/* config: already validated by sfc_run_config_check (proto/run_config.h); checked again here as far
 * as memory safety needs it. Release with sfc_run_setup_close. */
int sfc_run_setup_init(struct sfc_run_setup *setup, const Shardfc__V1__RunConfig *config,
                       struct sfc_error *err);
void sfc_run_setup_close(struct sfc_run_setup *setup); /* zeroed or closed is fine */

/* The run has grown to so many classes. */
void sfc_run_setup_set_classes(struct sfc_run_setup *setup, uint64_t classes);
/* The block came with a growth, or got rows by it: it is not what the seed and all steps make. */
bool sfc_run_block_grew(const struct sfc_run_setup *setup, uint64_t block);

/* Floats of a dense block. */
uint64_t sfc_run_dense_length(const struct sfc_run_setup *setup, uint64_t block);
/* Rows of a list of class blocks; floats of a list of dense blocks. */
uint64_t sfc_run_class_rows(const struct sfc_run_setup *setup, const uint64_t *blocks,
                            size_t count);
uint64_t sfc_run_dense_floats(const struct sfc_run_setup *setup, const uint64_t *blocks,
                              size_t count);
/* Bytes of a step's sums of a list of dense blocks, as they are logged. */
uint64_t sfc_run_packed_bytes(const struct sfc_run_setup *setup, const uint64_t *blocks,
                              size_t count);

/* Bytes of the largest block's state as snapshots hold it (of a run that has grown as far as its
 * block size goes), each part padded to a multiple of 64. */
#define SFC_RUN_BLOCK_PADDING 256u
uint64_t sfc_run_largest_block(const struct sfc_run_setup *setup);

struct sfc_run_memory {
    struct sfc_memory head;
    struct sfc_memory dense;
    uint64_t answers;    /* answers and inputs kept per slot, pulled parameters, labels */
    uint64_t messages;   /* features and calls of every micro-batch on their way */
    uint64_t durability; /* a block on its way to or from the disk, a step of the log */
    uint64_t mirror;     /* of a shard with mirrors, which adds it (sfc_run_mirror_memory) */
    uint64_t total;
};
/* What a shard with these blocks uses, before anything is allocated. */
int sfc_run_setup_memory(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                         const uint64_t *class_blocks, size_t class_count,
                         const uint64_t *dense_blocks, size_t dense_count,
                         struct sfc_run_memory *out, struct sfc_error *err);

/* What a mirror takes beside that: `mirrored` dense blocks of others, whose gradients are added
 * here; `gives`: others copy this shard's blocks; `takes`: it copies blocks of others. */
struct sfc_run_mirror {
    const uint64_t *dense_blocks, *mirrored; /* own; mirrored */
    size_t dense_count, mirrored_count;
    bool gives, takes;
};
struct sfc_run_mirror_memory {
    struct sfc_memory dense; /* where the dense blocks are */
    uint64_t host;           /* in memory, whatever the backend: sums, a block on its way */
};
int sfc_run_mirror_memory(const struct sfc_run_setup *setup, const struct sfc_backend *backend,
                          const struct sfc_run_mirror *mirror, struct sfc_run_mirror_memory *out,
                          struct sfc_error *err);
/* Bytes of a slice, or of packed sums, of these dense blocks, whichever is more. */
uint64_t sfc_run_slice_bytes(const struct sfc_run_setup *setup, const uint64_t *blocks,
                             size_t count);

#endif

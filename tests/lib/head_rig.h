/* Drives heads through whole steps for tests: blocks dealt out to several heads, micro-batches
 * grouped into calls, integers summed over heads as a worker does. Every failure of a head ends the
 * test. */
#ifndef SFC_TESTS_HEAD_RIG_H
#define SFC_TESTS_HEAD_RIG_H

#include "kernels/backend.h"

#define RIG_MAX_HEADS 64
#define RIG_CPU_NATIVE                                                                             \
    "cpu native" /* native bf16 products, chosen or not (kernels/cpu/products.h) */

struct rig_setup {
    const char *backend; /* as of sfc_backend_open, or RIG_CPU_NATIVE */
    unsigned threads;
    size_t heads;   /* block b belongs to head b % heads; at most RIG_MAX_HEADS */
    uint32_t group; /* micro-batches per call */
    bool reversed;  /* later micro-batches arrive first, in other slots */
};

struct rig {
    struct rig_setup setup;
    struct sfc_head_config config;
    struct sfc_backend *backend;
    struct sfc_head *head[RIG_MAX_HEADS];
    size_t *owner; /* [blocks] head of each */
};

/* What one step gives, summed over heads; arrays for the whole batch. */
struct rig_step {
    uint64_t *exp_sum; /* [batch, 4] */
    double *lse;       /* [batch] */
    float *target;     /* [batch] */
    uint8_t *owners;   /* [batch] heads that own the target */
    int64_t *dx;       /* [batch, dim] */
    uint64_t sampled;
    uint32_t zero_features; /* of the first head */
    double loss;            /* sum over rows with a label of (lse - target) / batch */
};

void rig_open(struct rig *rig, struct rig_setup setup, const struct sfc_head_config *config);
/* The same with the blocks in a file in the folder `store` (sfc_backend_set_store). */
void rig_open_in(struct rig *rig, struct rig_setup setup, const char *store,
                 const struct sfc_head_config *config);
void rig_close(struct rig *rig);
/* Copies blocks, ascending, of one head to another as it is now, and takes them out of the first.
 */
void rig_move(struct rig *rig, const uint64_t *blocks, size_t count, size_t to);
/* Copies a block of `from` to `to`: whole, or some rows. */
void rig_copy_block(struct rig *rig, struct sfc_head *from, struct sfc_head *to, uint64_t block);
void rig_copy_rows(struct rig *rig, struct sfc_head *from, struct sfc_head *to, uint64_t block,
                   const uint32_t *rows, size_t count);
void rig_step_init(struct rig_step *step, const struct sfc_head_config *config);
void rig_step_free(struct rig_step *step);

/* Plan, logits, gradient of every micro-batch; features [batch, dim]. */
void rig_forward(struct rig *rig, uint64_t number, const uint64_t *labels, const float *features,
                 struct rig_step *out);
/* Whether the step may be committed with this rate; rig_commit asserts that it may. */
bool rig_finite(struct rig *rig, double lr);
void rig_commit(struct rig *rig, double lr);
void rig_skip(struct rig *rig, uint64_t number);
/* Slot of micro-batch j. */
uint32_t rig_slot(const struct rig *rig, uint32_t j);
/* All classes, [classes, dim]; the last steps: [classes]. */
void rig_read(struct rig *rig, enum sfc_block_part part, float *out);
void rig_write(struct rig *rig, enum sfc_block_part part, const float *values);
/* Mode dense: the first `steps` rates, which all heads must have alike; values and momentum of all
 * classes as a dense optimiser would have them after them. */
void rig_read_rates(struct rig *rig, uint64_t steps, float *out);
void rig_write_rates(struct rig *rig, uint64_t steps, const float *rates);
void rig_read_now(struct rig *rig, uint64_t steps, float *w, float *m);
/* Marks sampled classes, [classes]; returns how many. */
uint64_t rig_sample(struct rig *rig, uint8_t *in);
/* oneDNN multiplies or emulates bf16 natively here, so RIG_CPU_NATIVE works. */
bool rig_has_native(void);

/* A configuration with the usual numbers: cosface 0.4, scale 64, momentum 0.9, decay 5e-4. */
struct sfc_head_config rig_config(uint64_t classes, uint32_t dim, uint32_t block_size,
                                  uint32_t batch, uint32_t micro_batch);

/* Test data, a function of the seed. Features lean towards the label's row of w [classes, dim], so
 * that cosines are spread out. */
enum rig_labels { RIG_UNIFORM, RIG_DUPLICATES, RIG_ONE_BLOCK, RIG_WITH_NONE };
void rig_labels(uint64_t seed, enum rig_labels kind, const struct sfc_head_config *config,
                uint64_t *labels);
void rig_features(uint64_t seed, const struct sfc_head_config *config, const uint64_t *labels,
                  const float *w, float *features);

#endif

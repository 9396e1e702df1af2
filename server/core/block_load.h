/* How much work each class block is, measured: the rows that a step samples of it. That is its
 * quota or its positives, whichever is more (kernels/rng/sample.h), so whoever has the labels of a
 * step knows it without asking a shard. Averages over about the last SFC_BLOCK_LOAD_STEPS steps. */
#ifndef SFC_CORE_BLOCK_LOAD_H
#define SFC_CORE_BLOCK_LOAD_H

#include "server/core/types.h"

#define SFC_BLOCK_LOAD_STEPS 256u

struct sfc_block_load_config {
    uint64_t classes;
    uint32_t block_size; /* >= 1 */
    uint32_t sample_ppm;
    uint32_t batch; /* labels of a step at most */
};

struct sfc_block_load {
    struct sfc_block_load_config config;
    uint32_t blocks;
    uint64_t steps;      /* noted */
    double *rows;        /* [blocks] of a step, on average; before the first step: the quota */
    uint32_t *positives; /* [blocks] of the step that is being noted */
    uint64_t *sorted;    /* [batch] */
};

int sfc_block_load_init(struct sfc_block_load *l, const struct sfc_block_load_config *config,
                        struct sfc_error *err);
void sfc_block_load_free(struct sfc_block_load *l); /* all-zero is fine */
/* The labels of one step, each as often as it comes; what is no class (SFC_CORE_LABEL_NONE) counts
 * nothing. At most `batch` are looked at. */
void sfc_block_load_note(struct sfc_block_load *l, const uint64_t *labels, uint32_t count);

#endif

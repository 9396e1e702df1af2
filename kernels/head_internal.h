/* A head above its parts: what kernels/head*.c share. Files: head_check.c (configuration),
 * head_parts.c (life, blocks that come and go), head_state.c (reading, writing, the history),
 * head_track.c (changed rows), head.c (the passes). */
#ifndef SFC_KERNELS_HEAD_INTERNAL_H
#define SFC_KERNELS_HEAD_INTERNAL_H

#include "kernels/backend_impl.h"

/* Which rows of a block changed since somebody asked for that. */
struct sfc_head_track {
    struct sfc_head_track *next;
    uint64_t block;
    uint64_t first; /* step of the first commit since then; 0: none yet */
    uint32_t rows;
    uint32_t changed[]; /* [rows] the last step that changed it, minus first, plus 1; 0: none */
};

struct sfc_head {
    struct sfc_backend *backend;
    struct sfc_head_config config;
    struct sfc_head_part *parts;
    struct sfc_head_track *tracks;
    bool planned;
    uint64_t step;
    uint64_t *labels;                /* [batch] of the present plan */
    float *rates;                    /* mode dense: [config.steps], kernels/lag.h; else NULL */
    uint64_t done;                   /* mode dense: steps in the history */
    enum sfc_slot_state *slot_state; /* [slots] */
    uint32_t *slot_micro;            /* [slots] micro-batch that the slot holds */
    double *slot_lse;                /* [slots, micro_batch] local log-sum-exp after pass 1 */
};

static inline bool sfc_head_is_dense(const struct sfc_head_config *config)
{
    return config->momentum_mode == SFC_MOMENTUM_DENSE;
}

static inline bool sfc_head_gone(const struct sfc_head_part *part, size_t index)
{
    return part->block_step[index] == SFC_BLOCK_GONE;
}

/* The part that holds the block, and its index there. SFC_ENOTFOUND: none does. */
int sfc_head_find(const struct sfc_head *head, uint64_t block, struct sfc_head_part **part,
                  size_t *index, struct sfc_error *err);
/* Tells the parts how long the history is. */
void sfc_head_set_done(struct sfc_head *head, uint64_t done);
/* Nothing is known any more of the changed rows of this block. */
void sfc_head_untrack(struct sfc_head *head, uint64_t block);
/* After the present plan was committed. */
void sfc_head_track_commit(struct sfc_head *head);

#endif

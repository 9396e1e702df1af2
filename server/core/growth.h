/* Identities that are added to a run while it lives. C(t), the number of identities of step t, is
 * the configuration's until the first growth; from the step of a growth on it is that growth's. New
 * identities first fill the last block, and then get blocks of their own. The samples of a grown
 * set come with the first epoch that begins at its data_step or later (kernels/rng/order.h): that
 * is a step behind those whose samples are being read already. Everything here is a function of the
 * configuration and of the list of growths, so a step that comes again has the same identities,
 * blocks and samples again. */
#ifndef SFC_CORE_GROWTH_H
#define SFC_CORE_GROWTH_H

#include "kernels/rng/order.h"
#include "server/core/types.h"

#define SFC_CORE_GROWTHS 64u /* of a run */

struct sfc_growth {
    uint64_t from_step; /* 1-based */
    uint64_t classes;   /* from this step on */
    uint64_t samples;   /* of the set that has them; 0: the run has no set (sessions) */
    uint64_t data_step; /* at least from_step */
};

struct sfc_growths {
    struct sfc_growth start; /* as the run was created; its steps: before those of growths */
    struct sfc_growth items[SFC_CORE_GROWTHS];
    uint32_t count;
};

/* May it follow those that there are? SFC_EINVAL: its step is not after theirs, it has not more
 * classes, or fewer samples, or its data_step is before its step or theirs. SFC_ELIMIT. */
int sfc_growths_check(const struct sfc_growths *growths, const struct sfc_growth *growth,
                      struct sfc_error *err);
/* After a successful check. */
void sfc_growths_add(struct sfc_growths *growths, const struct sfc_growth *growth);
/* Those that begin after the step are gone. */
void sfc_growths_cut(struct sfc_growths *growths, uint64_t step);

/* C(step); step 0, the initial state: that of step 1. */
uint64_t sfc_growths_classes(const struct sfc_growths *growths, uint64_t step);
/* Rows that a block has in a step; 0: it is not there yet. */
uint32_t sfc_growths_rows(const struct sfc_growths *growths, uint32_t block_size, uint64_t step,
                          uint64_t block);

/* What a step changes of the blocks, before it begins. */
struct sfc_growth_blocks {
    bool fills;            /* the block before `first` gets more rows */
    uint64_t first, count; /* new blocks */
};
struct sfc_growth_blocks sfc_growths_blocks(const struct sfc_growths *growths, uint32_t block_size,
                                            uint64_t step);
/* A replay from the state after `from` to the one after `to`: the first step in between before
 * which blocks change; 0: none. */
uint64_t sfc_growths_next(const struct sfc_growths *growths, uint64_t from, uint64_t to);

/* The sample order of the run: parts[SFC_CORE_GROWTHS + 1]; returns their number. 0: the run has no
 * set, or its positions are beyond any number. */
size_t sfc_growths_order(const struct sfc_growths *growths, uint32_t global_batch,
                         struct sfc_order_part *parts);

#endif

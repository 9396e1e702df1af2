/* What a run gave up. Each time it goes back to a step (a rewind, or the return to its last durable
 * step) the scheduler notes the step and the newest round that was given before: commits, Prepares
 * and snapshots of later steps from rounds up to that one are of no history that counts. They may
 * still be on the disk of a shard, or in an old copy of its folder. Pure. */
#ifndef SFC_DURABLE_LINEAGE_H
#define SFC_DURABLE_LINEAGE_H

#include "server/core/types.h"

#define SFC_LINEAGE_MAX 256u /* = SFC_LIMIT_RETURNS */

struct sfc_return {
    uint64_t step;           /* the run went back to */
    struct sfc_attempt last; /* newest round before that */
};

/* Steps and rounds both ascend. All zero: the run never went back. */
struct sfc_lineage {
    size_t count;
    struct sfc_return returns[SFC_LINEAGE_MAX];
};

/* Notes a return, the newest so far. Earlier ones to this step or a later one are contained in it
 * and go. When there is no room the two with the lowest steps become one that makes void what
 * either does, and with it what lies between their steps: more than need be, never less. */
void sfc_lineage_add(struct sfc_lineage *lineage, uint64_t step, struct sfc_attempt last);
/* From elsewhere. SFC_EINVAL: too many, or not ascending. */
int sfc_lineage_check(const struct sfc_return *returns, size_t count, struct sfc_error *err);
/* Is what a shard has of this step, from this round, of a history that was given up? */
bool sfc_lineage_void(const struct sfc_return *returns, size_t count, uint64_t step,
                      struct sfc_attempt round);

#endif

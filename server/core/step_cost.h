/* What a step costs: time = slowness * (base + load), where the load is that of a shard's blocks
 * and the base, in the same unit, is what every shard does whatever its blocks are (features that
 * come in, gradients that go out). The line through what shards measured says what the base is, as
 * far as their loads differ; the distance of a shard from that line is how slow it is. */
#ifndef SFC_CORE_STEP_COST_H
#define SFC_CORE_STEP_COST_H

#include "server/core/types.h"

struct sfc_step_cost {
    double load; /* of a shard's blocks */
    double time; /* measured, of a step; 0: not known */
    double slow; /* out: against the line; 0: not known */
};

/* Fills in `slow` of those whose time is known and returns the base, 0 where loads are too alike to
 * tell (or times fall with the load: then shards are of different speed). */
double sfc_step_cost_fit(struct sfc_step_cost *shards, uint32_t count);

#endif

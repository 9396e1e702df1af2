/* Which records and snapshots a folder shows to be of a history that the run gave up (a rewind, the
 * return to a durable step, a try at a step that was aborted). Rounds only rise: where a step was
 * open in a round, whatever there is of it or of later steps from an older round does not count.
 *
 * The scheduler knows more (server/durable/lineage.h): what the run gave up since the shard wrote
 * last is not to be seen here. Pure. */
#ifndef SFC_CTL_GIVEN_UP_H
#define SFC_CTL_GIVEN_UP_H

#include "server/core/types.h"

struct sfc_round_fact { /* of step there is something from this round */
    uint64_t step;
    struct sfc_attempt round;
};

/* All zero: none. */
struct sfc_round_facts {
    struct sfc_round_fact *facts;
    size_t count, room;
};

/* SFC_ENOMEM. */
int sfc_round_facts_add(struct sfc_round_facts *facts, uint64_t step, struct sfc_attempt round,
                        struct sfc_error *err);
/* After the last add, before the first question. */
void sfc_round_facts_order(struct sfc_round_facts *facts);
/* The newest fact that shows that this does not count, NULL: none does. */
const struct sfc_round_fact *sfc_round_facts_against(const struct sfc_round_facts *facts,
                                                     uint64_t step, struct sfc_attempt round);
void sfc_round_facts_free(struct sfc_round_facts *facts);

#endif

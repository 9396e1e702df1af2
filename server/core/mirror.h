/* Who mirrors whom. Each place of a map that has a shard gets mirrors: other shards that keep what
 * its blocks can be restored from should its machine be lost for good. Pure and deterministic. */
#ifndef SFC_CORE_MIRROR_H
#define SFC_CORE_MIRROR_H

#include "server/core/types.h"

#define SFC_CORE_MAX_MIRRORS 8u

struct sfc_mirror_place {
    bool present;     /* a shard of the run is there */
    const char *host; /* shards of one host fail together; "" is a host as well */
    bool missing;     /* nothing can be copied from it */
};

struct sfc_mirrors {
    uint32_t count;
    uint32_t at[SFC_CORE_MAX_MIRRORS]; /* places, ascending */
};

/* sets [count]: in: the mirrors of before; out: those of each place, `mirrors` of them or as many
 * others as there are. Of before those stay that are present, on another host where there are
 * enough such, and mirror no more than their share; of a place that is missing all that are
 * present: nobody else can restore it. New ones are on another host than the place,
 * and than its other mirrors, rather than not; then those that mirror the fewest, then the next
 * ones in the ring of places. */
void sfc_mirrors_choose(const struct sfc_mirror_place *places, uint32_t count, uint32_t mirrors,
                        struct sfc_mirrors *sets);
bool sfc_mirrors_have(const struct sfc_mirrors *set, uint32_t place);

/* Takes blocks of a shard that is lost. */
struct sfc_adopter {
    uint32_t place;
    uint64_t bytes; /* that it uses */
    uint64_t limit;
};

/* Each block, in order, to the adopter with the least bytes that has room for it; of equal ones to
 * the first. bytes: [blocks]; owner: [blocks] places. false: one fits nowhere. The adopters' bytes
 * are then with what they got. */
bool sfc_adopters_share(struct sfc_adopter *adopters, uint32_t count, const uint64_t *bytes,
                        uint32_t blocks, uint32_t *owner);

#endif

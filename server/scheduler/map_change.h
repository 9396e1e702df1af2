/* The block map that a change makes of another one. */
#ifndef SFC_SCHEDULER_MAP_CHANGE_H
#define SFC_SCHEDULER_MAP_CHANGE_H

#include <stdbool.h>

#include "proto/shardfc.pb-c.h"

struct sfc_map_change {
    uint64_t version; /* of the new map */
    uint32_t place;   /* whose shard changes, if address is not NULL */
    uint64_t shard;
    const char *address; /* "": the place is empty from now on; NULL: shards stay */
    const uint64_t *class_blocks, *dense_blocks; /* these go to `owner`, or each to its own one */
    size_t class_count, dense_count;
    uint32_t owner;
    const uint32_t *class_owners, *dense_owners; /* NULL: all go to `owner` */
    bool lost;                                   /* they are of a shard that does not come back */
};

/* A new message (sfc_message_free). NULL: no memory. Blocks must be of the map; places between its
 * last one and a new one are empty. */
Shardfc__V1__BlockMap *sfc_map_change(const Shardfc__V1__BlockMap *map,
                                      const struct sfc_map_change *change);
size_t sfc_map_owned(const Shardfc__V1__BlockMap *map, uint32_t place); /* blocks of both kinds */

#endif

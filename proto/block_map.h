/* What a block map says. */
#ifndef SFC_PROTO_BLOCK_MAP_H
#define SFC_PROTO_BLOCK_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/shardfc.pb-c.h"

/* The shard at `place` mirrors the one at `owner`. Places of the map. */
bool sfc_map_mirrors(const Shardfc__V1__BlockMap *map, uint32_t place, uint32_t owner);
/* Slices of this dense block's gradient go to `place`: its shard owns the block or mirrors the
 * owner. */
bool sfc_map_pushed(const Shardfc__V1__BlockMap *map, size_t dense_block, uint32_t place);

#endif

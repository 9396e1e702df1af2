/* Mirrors of a block map's shards (server/core/mirror.h). */
#ifndef SFC_SCHEDULER_MAP_MIRRORS_H
#define SFC_SCHEDULER_MAP_MIRRORS_H

#include <stdbool.h>

#include "proto/base/status.h"
#include "proto/shardfc.pb-c.h"

/* Gives each shard of the map `mirrors` others, as far as there are so many; those of before stay
 * where they can. missing: [places] of the map before, NULL: none. SFC_ENOMEM: the map is as it
 * was. */
int sfc_map_choose_mirrors(Shardfc__V1__BlockMap *map, uint32_t mirrors, const bool *missing,
                           struct sfc_error *err);

/* The host part of an address, cut to size; at least 256 bytes are enough. */
void sfc_host_of(const char *address, char *out, size_t size);

#endif

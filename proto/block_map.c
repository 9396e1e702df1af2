#include "proto/block_map.h"

bool sfc_map_mirrors(const Shardfc__V1__BlockMap *map, uint32_t place, uint32_t owner)
{
    const Shardfc__V1__ShardAddress *shard = map->shards[owner];
    for (size_t i = 0; i < shard->n_mirrors; i++)
        if (shard->mirrors[i] == place)
            return true;
    return false;
}

bool sfc_map_pushed(const Shardfc__V1__BlockMap *map, size_t dense_block, uint32_t place)
{
    uint32_t owner = map->dense_owner[dense_block];
    return owner == place || sfc_map_mirrors(map, place, owner);
}

#include "server/scheduler/map_change.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "server/core/types.h"
#include "server/run/messages.h"

/* NULL: no memory. */
static uint32_t *owners(const uint32_t *before, size_t n, const uint64_t *blocks, size_t count,
                        uint32_t owner, const uint32_t *each)
{
    uint32_t *after = malloc((n ? n : 1) * sizeof *after);
    if (!after)
        return NULL;
    if (n)
        memcpy(after, before, n * sizeof *after);
    for (size_t i = 0; i < count; i++)
        after[blocks[i]] = each ? each[i] : owner;
    return after;
}

Shardfc__V1__BlockMap *sfc_map_change(const Shardfc__V1__BlockMap *map,
                                      const struct sfc_map_change *c)
{
    Shardfc__V1__BlockMap m = *map, *copy = NULL;
    Shardfc__V1__ShardAddress changed = SHARDFC__V1__SHARD_ADDRESS__INIT, empty = changed;
    Shardfc__V1__ShardAddress *shards[SFC_CORE_MAX_SHARDS];
    m.version = c->version;
    m.lost_version = c->lost ? c->version : map->lost_version;
    m.class_owner = owners(map->class_owner, map->n_class_owner, c->class_blocks, c->class_count,
                           c->owner, c->class_owners);
    m.dense_owner = owners(map->dense_owner, map->n_dense_owner, c->dense_blocks, c->dense_count,
                           c->owner, c->dense_owners);
    if (c->address) {
        assert(c->place < SFC_CORE_MAX_SHARDS && map->n_shards <= SFC_CORE_MAX_SHARDS);
        memcpy(shards, map->shards, map->n_shards * sizeof(shards[0]));
        for (; m.n_shards <= c->place; m.n_shards++)
            shards[m.n_shards] = &empty;
        changed.shard = c->shard;
        changed.address = (char *)(uintptr_t)c->address;
        shards[c->place] = &changed;
        m.shards = shards;
    }
    if (m.class_owner && m.dense_owner)
        copy = sfc_message_copy(&m);
    free(m.class_owner);
    free(m.dense_owner);
    return copy;
}

size_t sfc_map_owned(const Shardfc__V1__BlockMap *map, uint32_t place)
{
    size_t n = 0;
    for (size_t b = 0; b < map->n_class_owner; b++)
        n += map->class_owner[b] == place;
    for (size_t b = 0; b < map->n_dense_owner; b++)
        n += map->dense_owner[b] == place;
    return n;
}

#include "server/scheduler/map_mirrors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "server/core/mirror.h"

struct choice {
    struct sfc_mirror_place places[SFC_CORE_MAX_SHARDS];
    struct sfc_mirrors sets[SFC_CORE_MAX_SHARDS];
    char hosts[SFC_CORE_MAX_SHARDS][SFC_LIMIT_ADDRESS + 1];
};

void sfc_host_of(const char *address, char *out, size_t size)
{
    const char *colon = strrchr(address, ':');
    snprintf(out, size, "%.*s", colon ? (int)(colon - address) : (int)strlen(address), address);
}

static void take_set(struct sfc_mirrors *set, const Shardfc__V1__ShardAddress *shard)
{
    for (size_t i = 0; i < shard->n_mirrors && set->count < SFC_CORE_MAX_MIRRORS; i++)
        set->at[set->count++] = shard->mirrors[i];
}

/* NULL: no memory. */
static uint32_t *copy_of(const struct sfc_mirrors *set)
{
    uint32_t *list = malloc(sizeof set->at);
    if (list)
        memcpy(list, set->at, set->count * sizeof *list);
    return list;
}

static int put_sets(Shardfc__V1__BlockMap *map, const struct choice *c, struct sfc_error *err)
{
    uint32_t *lists[SFC_CORE_MAX_SHARDS] = {0};
    bool room = true;
    for (size_t k = 0; k < map->n_shards && room; k++)
        room = c->sets[k].count == 0 || (lists[k] = copy_of(&c->sets[k])) != NULL;
    for (size_t k = 0; k < map->n_shards; k++) {
        if (!room) {
            free(lists[k]);
            continue;
        }
        free(map->shards[k]->mirrors);
        map->shards[k]->mirrors = lists[k];
        map->shards[k]->n_mirrors = c->sets[k].count;
    }
    return room ? SFC_OK : sfc_fail(err, SFC_ENOMEM, "no memory for the mirrors of the block map");
}

int sfc_map_choose_mirrors(Shardfc__V1__BlockMap *map, uint32_t mirrors, const bool *missing,
                           struct sfc_error *err)
{
    struct choice *c = calloc(1, sizeof *c);
    if (!c)
        return sfc_fail(err, SFC_ENOMEM, "no memory for the mirrors of the block map");
    for (size_t k = 0; k < map->n_shards && k < SFC_CORE_MAX_SHARDS; k++) {
        const char *address = map->shards[k]->address;
        sfc_host_of(address, c->hosts[k], sizeof c->hosts[k]);
        c->places[k] = (struct sfc_mirror_place){
            .present = address[0] != '\0', .host = c->hosts[k], .missing = missing && missing[k]};
        take_set(&c->sets[k], map->shards[k]);
    }
    sfc_mirrors_choose(c->places, (uint32_t)map->n_shards, mirrors, c->sets);
    int code = put_sets(map, c, err);
    free(c);
    return code;
}

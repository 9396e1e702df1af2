#include "server/core/block_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t sfc_default_block_size(uint64_t classes)
{
    uint32_t size = 1024;
    while (size < 8192 && (uint64_t)size * 2 <= classes / 64)
        size *= 2;
    return size;
}

uint64_t sfc_block_count(uint64_t items, uint64_t block_size)
{
    return items == 0 ? 0 : (items - 1) / block_size + 1;
}

static int check(const struct sfc_placement *p, uint32_t shard_count, struct sfc_error *err)
{
    if (p->classes < 1 || p->block_size < 1)
        return sfc_fail(err, SFC_EINVAL, "classes and block size must be at least 1");
    if (p->dense_size > 0 && p->dense_block_size < 1)
        return sfc_fail(err, SFC_EINVAL, "dense block size must be at least 1");
    if (shard_count < 1 || shard_count > SFC_CORE_MAX_SHARDS)
        return sfc_fail(err, SFC_EINVAL, "%u shards; 1..%u are possible", shard_count,
                        SFC_CORE_MAX_SHARDS);
    if (sfc_block_count(p->classes, p->block_size) > SFC_MAX_BLOCKS ||
        (p->dense_size > 0 && sfc_block_count(p->dense_size, p->dense_block_size) > SFC_MAX_BLOCKS))
        return sfc_fail(err, SFC_ELIMIT, "more than %u blocks: take a larger block size",
                        SFC_MAX_BLOCKS);
    return SFC_OK;
}

/* One kind of blocks: sizes of whole blocks and of the last one. */
struct blocks {
    uint32_t count;
    uint64_t bytes;
    uint64_t last_bytes;
    uint32_t *owner;
};

static int blocks_of(uint64_t items, uint32_t size, uint64_t item_bytes, struct blocks *out,
                     struct sfc_error *err)
{
    uint64_t total;
    if (__builtin_mul_overflow(items, item_bytes, &total) || total > UINT64_MAX / 4)
        return sfc_fail(err, SFC_EINVAL, "%llu items of %llu bytes: too many",
                        (unsigned long long)items, (unsigned long long)item_bytes);
    out->count = items == 0 ? 0 : (uint32_t)sfc_block_count(items, size);
    if (out->count == 0)
        return SFC_OK;
    uint64_t last = items - (uint64_t)(out->count - 1) * size;
    out->bytes = out->count > 1 ? (uint64_t)size * item_bytes : last * item_bytes;
    out->last_bytes = last * item_bytes;
    return SFC_OK;
}

/* Index of the shard with the least bytes that has room; shard_count: none. */
static uint32_t choose(const uint64_t *bytes, const struct sfc_placement_shard *shards,
                       uint32_t shard_count, uint64_t more)
{
    uint32_t best = shard_count;
    for (uint32_t k = 0; k < shard_count; k++) {
        uint64_t limit = shards[k].memory_limit;
        if (bytes[k] > limit || limit - bytes[k] < more)
            continue;
        if (best == shard_count || bytes[k] < bytes[best])
            best = k;
    }
    return best;
}

static bool place(struct blocks *b, uint64_t *bytes, const struct sfc_placement_shard *shards,
                  uint32_t shard_count)
{
    for (uint32_t i = 0; i < b->count; i++) {
        uint64_t more = i + 1 == b->count ? b->last_bytes : b->bytes;
        uint32_t k = choose(bytes, shards, shard_count, more);
        if (k == shard_count)
            return false;
        b->owner[i] = k;
        bytes[k] += more;
    }
    return true;
}

static int refuse(const struct sfc_placement *p, const struct sfc_placement_shard *shards,
                  uint32_t shard_count, struct sfc_error *err)
{
    char list[320];
    size_t used = 0;
    list[0] = '\0';
    for (uint32_t k = 0; k < shard_count && used < sizeof(list) - 1; k++) {
        int n =
            snprintf(list + used, sizeof(list) - used, "%sshard %llu: %.1f MiB", k > 0 ? ", " : "",
                     (unsigned long long)shards[k].id, (double)shards[k].memory_limit / (1 << 20));
        used += n > 0 ? (size_t)n : 0;
    }
    uint64_t blocks = p->classes * p->class_bytes + p->dense_size * p->dense_bytes;
    return sfc_fail(
        err, SFC_ENOMEM,
        "the run needs %.1f MiB for its blocks plus %.1f MiB on each shard; available: "
        "%s. Add shards, give them more (shardfc-shard --memory) or make the run smaller",
        (double)blocks / (1 << 20), (double)p->fixed_bytes / (1 << 20), list);
}

int sfc_block_map_place(const struct sfc_placement *p, const struct sfc_placement_shard *shards,
                        uint32_t shard_count, struct sfc_block_map *out, struct sfc_error *err)
{
    struct sfc_block_map map = {.version = 1, .shards = shard_count};
    struct blocks heads = {0}, dense = {0};
    int rc = check(p, shard_count, err);
    if (rc == SFC_OK)
        rc = blocks_of(p->classes, p->block_size, p->class_bytes, &heads, err);
    if (rc == SFC_OK)
        rc = blocks_of(p->dense_size, p->dense_block_size, p->dense_bytes, &dense, err);
    if (rc != SFC_OK)
        return rc;
    heads.owner = calloc(heads.count, sizeof(*heads.owner));
    dense.owner = calloc(dense.count + 1u, sizeof(*dense.owner));
    if (!heads.owner || !dense.owner) {
        rc = sfc_fail(err, SFC_ENOMEM, "block map of %u blocks", heads.count + dense.count);
        goto fail;
    }
    bool room = true;
    for (uint32_t k = 0; k < shard_count; k++) {
        map.bytes[k] = p->fixed_bytes;
        room = room && p->fixed_bytes <= shards[k].memory_limit;
    }
    if (!room || !place(&heads, map.bytes, shards, shard_count) ||
        !place(&dense, map.bytes, shards, shard_count)) {
        rc = refuse(p, shards, shard_count, err);
        goto fail;
    }
    map.class_blocks = heads.count;
    map.dense_blocks = dense.count;
    map.class_owner = heads.owner;
    map.dense_owner = dense.owner;
    *out = map;
    return SFC_OK;
fail:
    free(heads.owner);
    free(dense.owner);
    return rc;
}

void sfc_block_map_free(struct sfc_block_map *map)
{
    free(map->class_owner);
    free(map->dense_owner);
    memset(map, 0, sizeof(*map));
}

uint32_t sfc_block_map_blocks(const struct sfc_block_map *map, uint32_t shard, bool dense,
                              uint64_t *out)
{
    const uint32_t *owner = dense ? map->dense_owner : map->class_owner;
    uint32_t count = dense ? map->dense_blocks : map->class_blocks;
    uint32_t n = 0;
    for (uint32_t b = 0; b < count; b++) {
        if (owner[b] != shard)
            continue;
        if (out)
            out[n] = b;
        n++;
    }
    return n;
}

uint32_t sfc_block_map_count(const struct sfc_block_map *map, uint32_t shard, bool dense)
{
    return sfc_block_map_blocks(map, shard, dense, NULL);
}

uint32_t sfc_block_map_owner(const struct sfc_block_map *map, uint32_t block_size,
                             uint64_t class_id)
{
    uint64_t block = class_id / block_size;
    return block < map->class_blocks ? map->class_owner[block] : UINT32_MAX;
}

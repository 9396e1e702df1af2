/* Blocks and their owners. A block map is a property of a step: version -> owner of each block.
 *
 * Placement: each block, in order of its id, dense blocks after class blocks, goes to the shard
 * with the least bytes so far that has room for it; ties go to the lower index. Deterministic;
 * shards end up within one block of each other unless a memory limit binds. */
#ifndef SFC_CORE_BLOCK_MAP_H
#define SFC_CORE_BLOCK_MAP_H

#include "server/core/types.h"

#define SFC_MAX_BLOCKS (1u << 24)

struct sfc_placement_shard {
    uint64_t id;
    uint64_t memory_limit; /* bytes that the run may use on this shard */
};

struct sfc_placement {
    uint64_t classes;    /* >= 1 */
    uint32_t block_size; /* classes per block, >= 1 */
    uint64_t dense_size; /* floats of the backbone; 0 = none */
    uint32_t dense_block_size;
    uint64_t class_bytes; /* per class: state and kept rows */
    uint64_t dense_bytes; /* per float of a dense block: state and slots */
    uint64_t fixed_bytes; /* per shard: batch buffers, scratch */
};

struct sfc_block_map {
    uint64_t version;
    uint32_t shards;
    uint32_t class_blocks;
    uint32_t dense_blocks;
    uint32_t *class_owner;               /* [class_blocks] index of the shard; owned */
    uint32_t *dense_owner;               /* [dense_blocks] */
    uint64_t bytes[SFC_CORE_MAX_SHARDS]; /* needed per shard, by the estimate above */
};

/* The power of two at most classes / 64, within 1024 and 8192; fewer classes than one block: one
 * block (block_size stays 1024). */
uint32_t sfc_default_block_size(uint64_t classes);
/* ceil(items / block_size); 0 for no items. */
uint64_t sfc_block_count(uint64_t items, uint64_t block_size);

/* Version 1 of the map. SFC_EINVAL: impossible numbers. SFC_ENOMEM: the blocks don't fit; the
 * message has the bytes needed and, per shard, the bytes available. On success out owns memory
 * (sfc_block_map_free). */
int sfc_block_map_place(const struct sfc_placement *placement,
                        const struct sfc_placement_shard *shards, uint32_t shard_count,
                        struct sfc_block_map *out, struct sfc_error *err);
/* An all-zero map is fine. Leaves it all-zero. */
void sfc_block_map_free(struct sfc_block_map *map);
/* Writes ascending ids of one shard's blocks; out needs room for sfc_block_map_count() of them. */
uint32_t sfc_block_map_count(const struct sfc_block_map *map, uint32_t shard, bool dense);
uint32_t sfc_block_map_blocks(const struct sfc_block_map *map, uint32_t shard, bool dense,
                              uint64_t *out);
/* Index of the owner of a class; classes beyond the last block: UINT32_MAX. */
uint32_t sfc_block_map_owner(const struct sfc_block_map *map, uint32_t block_size,
                             uint64_t class_id);

#endif

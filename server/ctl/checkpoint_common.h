/* What writing and reading a checkpoint share: names, the block table, the state digest. */
#ifndef SFC_CTL_CHECKPOINT_COMMON_H
#define SFC_CTL_CHECKPOINT_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

#include "server/ctl/checkpoint.h"

#define SFC_CHECKPOINT_FORMAT  "shardfc-checkpoint"
#define SFC_CHECKPOINT_VERSION 2
/* With second moments, which readers of version 2 would take for damage. */
#define SFC_CHECKPOINT_VERSION_ADAMW 3
/* With changes of the learning rate, which readers of the other versions would not see. */
#define SFC_CHECKPOINT_VERSION_LR 4
/* of a run that has grown */
#define SFC_CHECKPOINT_VERSION_GROWN 5

/* The version that a checkpoint of this run has. */
int sfc_checkpoint_version(const Shardfc__V1__RunConfig *config, size_t lr_changes, size_t growths);
/* Of a list that somebody allocated item by item. */
void sfc_growths_free(Shardfc__V1__Growth **growths, size_t count);

struct sfc_block_entry {
    uint64_t elements; /* of values */
    uint64_t floats;   /* of all parts: the file */
    XXH128_hash_t digest;
    int present;
};

/* The blocks of a run: class blocks, dense blocks, history. */
struct sfc_block_table {
    uint64_t count[SFC_CHECKPOINT_KINDS];
    struct sfc_block_entry *entry[SFC_CHECKPOINT_KINDS];
};

int sfc_block_table_init(struct sfc_block_table *table, const Shardfc__V1__RunConfig *config,
                         uint64_t step, struct sfc_error *err);
void sfc_block_table_free(struct sfc_block_table *table);

void sfc_block_file_name(Shardfc__V1__BlockKind kind, uint64_t block, char out[32]);
void sfc_digest_hex(XXH128_hash_t digest, char out[SFC_DIGEST_HEX]);
int sfc_digest_parse(const char *hex, XXH128_hash_t *out);
/* Digest of (step, configuration without name, all blocks). */
int sfc_state_digest(const struct sfc_block_table *table, const Shardfc__V1__RunConfig *config,
                     uint64_t step, char out[SFC_DIGEST_HEX], struct sfc_error *err);

#endif

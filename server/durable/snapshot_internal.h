/* Private to server/durable: what snapshot_store.c (list, reading) and snapshot_write.c share. */
#ifndef SFC_DURABLE_SNAPSHOT_INTERNAL_H
#define SFC_DURABLE_SNAPSHOT_INTERNAL_H

#include "server/durable/snapshot_file.h"
#include "server/durable/snapshot_store.h"

#ifndef SFC_PLANT_BUG
#define SFC_PLANT_BUG                                                                              \
    0 /* tests/unit builds the store with each known bug to prove that it is caught */
#endif

#define SFC_SNAPSHOT_DIRECT ((size_t)4 << 20) /* bytes of a direct write */

#define SFC_SNAPSHOT_TMP ".tmp" /* behind the name of a snapshot that is being written */

struct sfc_snapshot_store {
    struct sfc_folder *folder;
    struct sfc_run_identity identity;
    struct sfc_snapshot_key *keys; /* by kind, block, newest first */
    size_t count, room;
    struct sfc_snapshot_key *voids; /* hidden for good: of a history that was given up */
    size_t void_count;
    struct sfc_snapshot_write *writing;
    uint64_t horizon; /* see sfc_snapshot_store_keep_from */
    uint64_t top;     /* later snapshots are hidden */
    bool pinned;      /* see sfc_snapshot_store_pin */
    uint64_t pinned_step;
    bool remains; /* a temporary file was removed, and its name may still be on the disk */
    void *buffer; /* of the last read */
    size_t buffer_size;
    struct sfc_snapshot_scratch scratch; /* of reading */
    uint8_t *direct;                     /* [SFC_SNAPSHOT_DIRECT], once one was asked for */
    struct sfc_digest *digest;           /* of the write at work */
    struct sfc_packer *packer;           /* NULL: snapshots are written raw */
};

/* Room for one more key. SFC_ENOMEM. */
int sfc_snapshot_store_reserve(struct sfc_snapshot_store *store, struct sfc_error *err);
/* After reserve: puts the key in its place; false: it is there already. */
bool sfc_snapshot_store_add(struct sfc_snapshot_store *store, const struct sfc_snapshot_key *key);
/* Deletes what need not be kept of the block. */
void sfc_snapshot_store_prune(struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                              uint64_t block);
/* First position of a block in keys, and how many there are; hidden ones don't count. */
size_t sfc_snapshot_store_find(const struct sfc_snapshot_store *store, enum sfc_snapshot_kind kind,
                               uint64_t block, size_t *count);

#endif

/* What the files of a mirror share: mirror.c (which blocks, what they need), mirror_copy.c (the
 * copy of one block at a time). */
#ifndef SFC_SHARD_MIRROR_PARTS_H
#define SFC_SHARD_MIRROR_PARTS_H

#include "server/shard/mirror.h"
#include "server/shard/shard_internal.h"

struct sfc_mirror_block {
    struct sfc_snapshot_block id;
    uint32_t place;     /* of its owner */
    uint64_t rows;      /* a class block's, which a growth changes */
    uint64_t since;     /* the log has its gradients of the steps after this one; class blocks: 0 */
    size_t count;       /* of its copies here that are known, 0..2 */
    uint64_t stamps[2]; /* newest first */
};

/* One block on its way. */
struct sfc_mirror_copy {
    unsigned refs;             /* the mirror, and the call on its way */
    struct sfc_mirror *mirror; /* NULL: it has let go */
    struct sfc_rpc_client *client;
    char address[SFC_LIMIT_ADDRESS + 1]; /* of the client */
    uint64_t id;
    enum {
        SFC_MIRROR_ASKED,   /* BeginCopy */
        SFC_MIRROR_READING, /* pieces */
        SFC_MIRROR_HELD,    /* whole: until this shard's durable step has reached it */
        SFC_MIRROR_WRITING
    } phase;
    bool calling;
    bool placed; /* the owner keeps a copy for this one, as far as is known */
    struct sfc_snapshot_block block;
    uint32_t place;
    struct sfc_snapshot_key key;
    struct sfc_snapshot_shape shape;
    uint64_t bytes, received;
    void *parts[SFC_SNAPSHOT_PARTS]; /* in mirror->data */
};

struct sfc_mirror {
    struct sfc_shard_run *run;
    struct sfc_mirror_block *blocks; /* by kind, then ascending */
    size_t count;
    struct sfc_sweep sweep;            /* of them, in this order */
    struct sfc_mirror_copy *copy;      /* NULL: none */
    void *data;                        /* 64-byte aligned, sfc_run_largest_block */
    uint64_t hold;                     /* of the copy under way: the log is kept behind this step */
    uint64_t retry_ms, good_ms;        /* nothing is asked before; when a copy last worked */
    char reason[SFC_LIMIT_ERROR_TEXT]; /* why the last copy failed; "": it worked */
    uint32_t reason_place;
};

/* mirror.c */
/* A copy is on the disk. */
void sfc_mirror_kept(struct sfc_mirror *mirror, const struct sfc_snapshot_key *key);
/* Begins the next copy if one is due. */
void sfc_mirror_kick(struct sfc_mirror *mirror);

/* mirror_copy.c */
/* Makes a copy of this block; none is at work. */
void sfc_mirror_copy_begin(struct sfc_mirror *mirror, const struct sfc_mirror_block *block);
/* What can go on now does. */
void sfc_mirror_copy_tick(struct sfc_mirror *mirror);
/* Ends the one at work; what is being written goes on to be. */
void sfc_mirror_copy_end(struct sfc_mirror *mirror);
/* Ends it in every case: nothing is being written any more. */
void sfc_mirror_copy_free(struct sfc_mirror *mirror);

#endif

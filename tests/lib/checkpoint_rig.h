/* A small run and its checkpoint, for tests of the readers. */
#ifndef SFC_TESTS_CHECKPOINT_RIG_H
#define SFC_TESTS_CHECKPOINT_RIG_H

#include "server/ctl/checkpoint.h"

enum { CHECKPOINT_RIG_STEP = 7 };

struct checkpoint_rig {
    Shardfc__V1__RunConfig config; /* one that may run; points at the rest */
    Shardfc__V1__DataSet data;
    Shardfc__V1__DenseSegment segment, *segments[1];
    uint64_t shape[1];
};

/* Momentum mode dense, so that a history is there: 3 class blocks, 2 dense blocks. */
void checkpoint_rig_init(struct checkpoint_rig *rig);
/* Writes it to dir, which must not exist, as of step CHECKPOINT_RIG_STEP. */
int checkpoint_rig_write(const struct checkpoint_rig *rig, const char *dir,
                         char digest[SFC_DIGEST_HEX], struct sfc_error *err);
/* Writes a file, from its beginning; aborts where it can't. */
void checkpoint_rig_file(const char *dir, const char *name, const void *data, size_t size);
/* XXH3-128 of some bytes in hex. */
void checkpoint_rig_digest(const void *data, size_t size, char out[SFC_DIGEST_HEX]);

#endif

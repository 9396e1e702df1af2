/* Brings the blocks of a run back: each from its newest snapshot (or the seed), then the logged
 * steps again in order up to the scheduler's last commit. Blocks that are ahead of a step are left
 * out of it, so that all meet at the end with the bits they had.
 *
 * A step that the log lacks below the last commit (damage, a lost segment) comes from another
 * shard, which has the same head inputs, and goes into the own log again. Its dense gradient is
 * nowhere else: where a dense block needs it, recovery refuses.
 *
 * One object per recovery. run is called on the compute thread; progress and abandon from any. */
#ifndef SFC_SHARD_RECOVERY_H
#define SFC_SHARD_RECOVERY_H

#include <stdatomic.h>

#include "kernels/backend.h"
#include "proto/base/spans.h"
#include "server/shard/peers.h"
#include "server/shard/storage.h"

struct sfc_recovery {
    struct sfc_storage *storage; /* opened; its log is opened here */
    struct sfc_log_commit last;  /* step: where to */
    bool has_last;               /* false: nothing is committed yet */
    struct sfc_lineage lineage;  /* what was given up */
    struct sfc_peers *peers;     /* who may have what the log lacks; NULL: nobody */
    bool durable;                /* the log is flushed before the blocks are said to be there */
    struct sfc_spans *spans;     /* what it does is recorded here; NULL: it isn't */
    atomic_bool abandon;         /* run ends with SFC_ECANCELED soon */
    _Atomic uint64_t step;       /* gone through so far */
    _Atomic uint64_t eta_ms;     /* 0: not known yet */
    /* in the end: steps that came from peers, and why */
    uint64_t fetched;
    char damage[256];
};

/* head's blocks are as the seed makes them. An error leaves them undefined. */
int sfc_recovery_run(struct sfc_recovery *recovery, struct sfc_head *head, struct sfc_dense *dense,
                     struct sfc_error *err);

#endif

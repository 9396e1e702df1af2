/* A run that stands still at a step while its state is read (calls Hold, ReadBlock, Release). The
 * hold is a lease: sfc_hold_read renews it when half of its time has passed. */
#ifndef SFC_CTL_HOLD_H
#define SFC_CTL_HOLD_H

#include "server/ctl/command.h"

#define SFC_HOLD_PIECE (1u << 18) /* elements of one ReadBlock call: 1 MiB */

struct sfc_hold {
    struct sfc_cluster *cluster; /* borrowed */
    struct sfc_answer answer;
    uint64_t id, run_id;
    uint64_t start_classes; /* as the run began; config->classes of the reply: those of its map */
    double renewed;         /* seconds */
};

/* Waits until the run stands still at at_step (0: the next boundary). A reply that lacks the
 * configuration or the map is SFC_ECORRUPT. Release also after a failure. */
int sfc_hold_acquire(struct sfc_hold *hold, struct sfc_cluster *cluster, uint64_t at_step,
                     struct sfc_error *err);
void sfc_hold_release(struct sfc_hold *hold);
/* Step, configuration and map; valid until the next call with this hold. */
const Shardfc__V1__HoldReply *sfc_hold_reply(const struct sfc_hold *hold);
/* The reply's configuration gets the classes of its map, so that blocks are those that there are;
 * returns those that it had. */
uint64_t sfc_hold_reply_grow(Shardfc__V1__HoldReply *reply);
/* Address of the shard that owns a block, valid as long as the map. */
int sfc_map_owner(const Shardfc__V1__BlockMap *map, Shardfc__V1__BlockKind kind, uint64_t block,
                  const char **out, struct sfc_error *err);
/* Elements [offset, offset + count) of a part of a block from its owner. */
int sfc_hold_read(struct sfc_hold *hold, Shardfc__V1__BlockKind kind, uint64_t block,
                  Shardfc__V1__BlockPart part, uint64_t offset, uint64_t count, float *out,
                  struct sfc_error *err);

#endif

/* The state of a run after one step, read while the run goes on (calls Hold with watch, PinStep,
 * ReadBlock, UnpinStep). The pins are leases: sfc_pins_read renews them, and takes them anew when
 * this machine, or a shard's, was silent for longer; then the logs still have what the step is made
 * from, or it is refused. A shard that dies meanwhile is waited for, and its blocks are then made
 * from what it has on its disk. Blocks may move and shards may join and leave meanwhile: a shard
 * reads blocks that it had when it was pinned, and of a step to come those of the map at that
 * step. */
#ifndef SFC_CTL_PINS_H
#define SFC_CTL_PINS_H

#include "server/ctl/command.h"

struct sfc_pins {
    uint64_t start_classes;      /* as the run began */
    struct sfc_cluster *cluster; /* borrowed */
    struct sfc_answer answer;    /* of the scheduler at first: run, configuration, map */
    struct sfc_answer newest;    /* the same with a newer map, where there is one */
    uint64_t committed;          /* step of its newest answer */
    uint64_t id;                 /* of the pin on every shard, 0: none */
    uint64_t step;
    double renewed; /* seconds */
    uint32_t lease_ms;
    bool waited, again;            /* for a shard, of one that had let go: said once */
    uint64_t incarnation, counter; /* the round of the step's commit; 0: not known */
};

/* Pins the state after at_step (0: the newest committed step) on every shard and waits until the
 * step is committed. SFC_EUNSUPPORTED or SFC_ENOMEM: a shard can't (it keeps no log, or has no room
 * for it), but the run can be held instead (hold.h). SFC_EINVAL: no such step, with the range that
 * there is. Release also after a failure. */
int sfc_pins_acquire(struct sfc_pins *pins, struct sfc_cluster *cluster, uint64_t at_step,
                     struct sfc_error *err);
void sfc_pins_release(struct sfc_pins *pins);
const Shardfc__V1__BlockMap *sfc_pins_map(const struct sfc_pins *pins);
const Shardfc__V1__RunConfig *sfc_pins_config(const struct sfc_pins *pins);
/* Elements [offset, offset + count) of a part of a block from its owner. */
int sfc_pins_read(struct sfc_pins *pins, Shardfc__V1__BlockKind kind, uint64_t block,
                  Shardfc__V1__BlockPart part, uint64_t offset, uint64_t count, float *out,
                  struct sfc_error *err);

#endif

/* How much of the step log may go: the least of what the shards of a run need.
 *
 * A shard's own floor says that its recovery needs the steps after it. Since a shard that has lost
 * the inputs of a step asks another for them, nobody deletes more than all can spare; as long as
 * one has not said its floor nobody deletes anything. Only a shard whose log is full goes by what
 * it needs itself (server/shard/durability_log.c): the others' floors don't rise while it holds the
 * run up. A floor that goes down (a damaged snapshot: an older one counts) is taken as it is. A
 * place may have no member of the run: it keeps nobody waiting. */
#ifndef SFC_CORE_LOG_FLOOR_H
#define SFC_CORE_LOG_FLOOR_H

#include "server/core/types.h"

struct sfc_log_floor {
    uint32_t shards; /* places */
    bool *member;    /* [shards] */
    uint64_t *own;   /* [shards] floor + 1; 0 = not said yet */
};

/* Every place has a member. */
int sfc_log_floor_init(struct sfc_log_floor *f, uint32_t shards, struct sfc_error *err);
void sfc_log_floor_free(struct sfc_log_floor *f); /* all-zero is fine */
/* Another shard is at this place now, or none: what was said there is forgotten. */
void sfc_log_floor_set_member(struct sfc_log_floor *f, uint32_t shard, bool member);
void sfc_log_floor_note(struct sfc_log_floor *f, uint32_t shard, uint64_t floor);
/* The steps up to *out may go everywhere. false: not every shard has said its floor. */
bool sfc_log_floor_least(const struct sfc_log_floor *f, uint64_t *out);

#endif

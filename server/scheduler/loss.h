/* Shards that do not come back. One that is missing for longer than the run's grace time, or that a
 * person gives up, is taken out of the run by an order (orders.h) as soon as shards that mirror it
 * say that they can restore every block of it, and unless it has the only copies of the blocks of
 * another one that is missing. Until then it is waited for: it may still come back.
 * What people want is durable before it is answered, beside the run's goal. Loop thread. */
#ifndef SFC_SCHEDULER_LOSS_H
#define SFC_SCHEDULER_LOSS_H

#include "server/scheduler/scheduler_internal.h"

void sfc_loss_tick(struct sfc_sched_run *run);
/* How the order ended; from orders.c. */
void sfc_loss_done(struct sfc_sched_run *run, uint64_t number, int code, const char *text);

/* May a person give the shard up? *text (size bytes): what will be done. SFC_EINVAL: no member of
 * the run. SFC_ESTATE: it answers, or its blocks can't be restored; the message says what is
 * missing. */
int sfc_loss_check(struct sfc_sched_run *run, uint64_t shard, char *text, size_t size,
                   struct sfc_error *err);
/* A member that does not answer has been missed for no longer than the way back takes after this
 * scheduler restarted: what is refused because of it is to be asked again. */
bool sfc_loss_may_register(const struct sfc_sched_run *run);
/* The wishes of now and this one; they are to be stored (sfc_scale_store_lost). */
struct sfc_wishes sfc_loss_wishes(const struct sfc_sched_run *run, uint64_t shard);

/* The shards that the one at `place` mirrors, and who can restore them as well. wards:
 * [SFC_CORE_MAX_SHARDS]; their number. */
uint32_t sfc_loss_wards(struct sfc_sched_run *run, uint32_t place, struct sfc_run_ward *wards);

/* What will become of the missing shard at this place, for people; "" = nothing special. */
void sfc_loss_say(struct sfc_sched_run *run, uint32_t place, char *out, size_t size);

/* ---- what mirrors say (mirror_views.c) */
void sfc_mirrors_take(struct sfc_shard_info *info, const Shardfc__V1__ShardHeartbeatRequest *r);
void sfc_mirrors_forget(struct sfc_shard_info *info);
/* What the shard at place `mirror` says of the blocks of the one at `place`; NULL: nothing that
 * counts. */
const struct sfc_mirror_view *sfc_mirrors_view(struct sfc_sched_run *run, uint32_t mirror,
                                               uint32_t place);
/* Blocks that nobody could restore if their shard was lost now. */
uint64_t sfc_mirrors_left(struct sfc_sched_run *run);
/* Notes how many there are, for the time that is left. */
void sfc_mirrors_tick(struct sfc_sched_run *run);
/* Seconds until there are none; 0: not known. */
double sfc_mirrors_eta(const struct sfc_sched_run *run);

#endif

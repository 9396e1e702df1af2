/* What the files of a run's durability share: durability.c (memory, steps, the end, status),
 * durability_open.c (opening, recovering, closing), durability_snapshots.c, durability_log.c,
 * durability_back.c (rewinds) and durability_change.c (blocks that come and go). Loop thread,
 * unless they say otherwise. */
#ifndef SFC_SHARD_DURABILITY_PARTS_H
#define SFC_SHARD_DURABILITY_PARTS_H

#include "server/shard/shard_internal.h"

static inline struct sfc_durability *sfc_durability_of(struct sfc_shard_run *run)
{
    return &run->durability;
}

/* durability_open.c */
/* Steps that a run can go back, beside what a crash needs: as many as were asked for, as far as the
 * log stays within its limit with records of the present dense blocks. */
uint64_t sfc_durability_window(const struct sfc_durability *d);
/* What the disk must lead to when the run is at `step`. */
uint64_t sfc_durability_horizon(const struct sfc_durability *d, uint64_t step);
/* What a snapshot of each block takes on disk: free() it. NULL: SFC_ENOMEM. */
uint64_t *sfc_durability_file_bytes(const struct sfc_shard_run *run, struct sfc_error *err);

/* durability_snapshots.c */
/* Notes what the disk says at `place`, and says it once; "": it works again. */
void sfc_durability_say_error(struct sfc_shard_run *run, char *place, const char *text);
/* A step that begins here does not end before the shard does. */
bool sfc_durability_finish_holds(const struct sfc_shard_run *run);
/* A flush that waits goes on, if nothing holds it any more. */
void sfc_durability_release_flush(struct sfc_shard_run *run);
/* Every block may have a snapshot now: then a flush that waits for the base goes on. */
void sfc_durability_base_done(struct sfc_shard_run *run);
/* The snapshot on its way goes on, as the pace allows. */
void sfc_durability_write_piece(struct sfc_shard_run *run);
/* Begins the next snapshot that is due, if none is at work. */
void sfc_durability_kick(struct sfc_shard_run *run);

/* durability_log.c */
/* The flush at work has ended. */
void sfc_durability_flush_end(struct sfc_shard_run *run, int code, const char *text);
/* Gives the flush to the log thread. */
void sfc_durability_flush_now(struct sfc_shard_run *run);
/* Log of steps up to this one may go as far as this shard is concerned. */
uint64_t sfc_durability_own_floor(const struct sfc_shard_run *run, bool mirror);
/* The log is full: frees what it can without waiting for the other shards. */
void sfc_durability_make_room(struct sfc_shard_run *run);

/* durability_back.c */
/* The run can be rewound to this step, with a log of the steps after `from`; if it was trimmed
 * meanwhile, the snapshot thread looks again. */
void sfc_durability_note_oldest(struct sfc_shard_run *run, uint64_t from, uint64_t oldest);
/* The first plan says where the run is: what the disk has of later steps goes. */
void sfc_durability_settle(struct sfc_shard_run *run);

#endif

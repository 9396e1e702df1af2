/* The step log of a shard: what every step needs to be done again, on disk before the shard says
 * Ready.
 *
 * Life of a run, in the order of calls:
 *
 *   fresh     sfc_run_folder_remove, sfc_run_folder_open(create), sfc_snapshot_store_open,
 *             sfc_step_log_create
 *   recover   sfc_run_folder_open, sfc_snapshot_store_open, for each block sfc_snapshot_store_read
 * (or the seed), then sfc_step_log_recover with `from` = least stamp restored + 1 and the
 * scheduler's last commit; for step = from .. last: sfc_step_log_commit_of, and where it says
 * apply, sfc_step_log_read of the round it names, then replay; then go on as after create Prepare
 * sfc_step_log_append_prepare, sfc_step_log_flush; Ready only when both said SFC_OK. If one failed,
 * the step is not in the log: answer the error, and call both again for the next try Commit
 * sfc_step_log_append_commit (no flush) floor     sfc_step_log_trim with the least floor of all
 * shards that the scheduler announced; sfc_snapshot_store_floor is the own one stop
 * sfc_step_log_close, sfc_snapshot_store_close, sfc_folder_close, sfc_run_folder_remove
 *
 * What the log promises: after append_prepare and flush said SFC_OK the record, and every commit
 * given before, survives any crash. A record that is not whole is never returned. Commits are kept
 * in memory and written together with the next Prepare (the scheduler knows the last one): a flush
 * that fails loses none of them.
 *
 * After a failed write or sync a segment is never written again: it counts up to its last durable
 * record, and the log goes on in a new segment. Prepares that were appended but not flushed are
 * then no longer in the log.
 *
 * Threads: one at a time. Nothing is logged; what a person should read is in the report. */
#ifndef SFC_DURABLE_STEP_LOG_H
#define SFC_DURABLE_STEP_LOG_H

#include "server/durable/file_layer.h"
#include "server/durable/lineage.h"
#include "server/durable/log_codec.h"
#include "server/durable/log_index.h"

struct sfc_step_log;

struct sfc_step_log_config {
    struct sfc_run_identity identity;
    struct sfc_log_geometry geometry;
    uint64_t segment_bytes; /* a new segment begins behind this many; 0: 128 MiB */
    uint64_t limit_bytes;   /* of all segments; 0: no limit. sfc_step_log_default_limit */
    uint64_t reserve_bytes; /* of the disk that stay free */
    /* recover: digests of other sets of dense blocks that this shard has had (dense_list.h):
     * segments of them are part of the log. Borrowed during the call. */
    const uint64_t *former;
    size_t former_count;
};

/* Bytes that one step takes on disk, records and padding included. */
uint64_t sfc_step_log_step_bytes(const struct sfc_log_geometry *geometry);
/* A fifth of the free space, at least 16 steps. */
uint64_t sfc_step_log_default_limit(const struct sfc_log_geometry *geometry, uint64_t free_space);
/* SFC_EINVAL: room for less than 4 steps. 0, no limit, is fine. */
int sfc_step_log_check_limit(const struct sfc_log_geometry *geometry, uint64_t limit,
                             struct sfc_error *err);

/* A log with nothing in it. The folder is borrowed and must outlive the log; it must hold no
 * segments (SFC_EEXIST). Writes nothing yet. */
int sfc_step_log_create(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                        struct sfc_step_log **out, struct sfc_error *err);

/* What recovery found; texts are for the program's log. */
struct sfc_step_log_report {
    uint64_t first_step, last_step; /* of the Prepares in the log; 0: none */
    uint64_t bytes, records, segments;
    uint64_t torn_bytes;   /* behind the last whole record: dropped */
    uint64_t void_records; /* of what the run gave up */
    uint64_t torn_records; /* at least so many records; none that replay needs */
    uint64_t missing;      /* steps of from..last that the log can't give (only with peers) */
    uint64_t first_missing;
    char gap[256];    /* of first_missing, where no damage explains it; "": nothing is missing */
    char torn[256];   /* "" or: file, bytes, why */
    char damage[256]; /* "" or the first bytes that were durable once and are damaged now, where
                         replay doesn't need them, or peers have the step: file, bytes, why. Say it
                         loudly. */
};

struct sfc_step_log_recovery {
    uint64_t from; /* first step that is to be replayed, at least 1; last.step + 1: none */
    bool has_last; /* false: the run has no commit yet, and nothing is to be replayed */
    bool peers;    /* missing steps can be had elsewhere: report them instead of failing */
    struct sfc_log_commit last;        /* the scheduler's last one; ignored without has_last */
    const struct sfc_lineage *lineage; /* records that it makes void are not there; NULL: none */
};

/* Reads every record, drops a torn tail, removes remains of failed segments, and goes on in a new
 * segment. Takes the last commit into the log where it isn't there. SFC_ECORRUPT: a step of
 * from..last is not there whole; names the damage (file, bytes) and what to do. Damage elsewhere
 * doesn't stop recovery: it is in the report. SFC_ESTALE: files of another run, configuration,
 * numerics class or geometry. SFC_EUNSUPPORTED: another format version. */
int sfc_step_log_recover(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                         const struct sfc_step_log_recovery *recovery, struct sfc_step_log **out,
                         struct sfc_step_log_report *report, struct sfc_error *err);
/* Writes nothing more. NULL is fine. */
void sfc_step_log_close(struct sfc_step_log *log);

/* Borrowed during the call only; nothing is copied on the way to the file. */
struct sfc_log_prepare {
    uint64_t step;
    struct sfc_attempt round;
    double lr;
    const uint64_t *labels;       /* [batch] */
    const float *const *features; /* [micro-batches]: each [micro_batch, dim], raw as received */
    const struct sfc_attempt *attempts; /* [micro-batches]: the ones that count */
    const double *const *lse;           /* [micro-batches]: each [micro_batch] */
    const void *dense; /* sums as commit applies them, as in sfc_log_prepare_view; NULL if none */
};
/* SFC_ELIMIT: the log is at its limit, or the disk at its reserve or full; the text says which,
 * from which step on the log is needed, and what to do; nothing was written, and the call may be
 * repeated when the floor has moved. SFC_EIO: the disk failed; may be repeated too. */
int sfc_step_log_append_prepare(struct sfc_step_log *log, const struct sfc_log_prepare *prepare,
                                struct sfc_error *err);
/* The same for a committed step that the log lacks and another shard gave: without dense sums,
 * which nobody else has. */
int sfc_step_log_append_fetched(struct sfc_step_log *log, const struct sfc_log_prepare *prepare,
                                struct sfc_error *err);
/* Kept in memory until it is durable with the next flush. SFC_ENOMEM. */
int sfc_step_log_append_commit(struct sfc_step_log *log, const struct sfc_log_commit *commit,
                               struct sfc_error *err);
/* Writes commits that wait, then makes everything appended so far durable. */
int sfc_step_log_flush(struct sfc_step_log *log, struct sfc_error *err);

/* Provisional steps: append_prepare without flush for some of them, until a flush makes all
 * durable. While one is out the limit must not stop the run: what would make room can't be deleted
 * before the next durable step. */
void sfc_step_log_without_limit(struct sfc_step_log *log, bool without);
/* A failed write or sync took inputs of steps whose commit was given: such steps have to be done
 * again, or the log be recovered at a step that was durable. */
bool sfc_step_log_lost(const struct sfc_step_log *log);

/* Steps from now on are of other dense blocks: they go to a new segment. What was appended before
 * is made durable; where that fails the log behaves as after any failed sync. The limit is not
 * checked. */
void sfc_step_log_set_geometry(struct sfc_step_log *log, const struct sfc_log_geometry *geometry);

/* Deletes segments whose steps are all <= floor. An error leaves the log usable. */
int sfc_step_log_trim(struct sfc_step_log *log, uint64_t floor, struct sfc_error *err);

/* The commit of a step: SFC_ENOTFOUND when the log has none. The last one given for a step counts.
 */
int sfc_step_log_commit_of(const struct sfc_step_log *log, uint64_t step,
                           struct sfc_log_commit *out, struct sfc_error *err);
/* Where records are read to, one after another. Zeroed: no room yet. A record's size depends on the
 * dense blocks that the shard had, so whoever reads makes the room. */
struct sfc_log_body {
    uint8_t *data; /* 64-byte aligned */
    size_t size;
};
/* Room for at least `size` bytes; what was there is lost if it grows. SFC_ENOMEM. */
int sfc_log_body_room(struct sfc_log_body *body, size_t size, struct sfc_error *err);
void sfc_log_body_free(struct sfc_log_body *body); /* zeroed afterwards */

/* Bytes of the largest record that the log has, or gets before the next set_geometry. */
size_t sfc_step_log_body_size(const struct sfc_step_log *log);
/* Reads the Prepare of (step, round) into body, which *out points into, and checks it again.
 * SFC_ENOTFOUND: not in the log; SFC_ECORRUPT names file and offset; SFC_ENOMEM. */
int sfc_step_log_read(struct sfc_step_log *log, uint64_t step, struct sfc_attempt round,
                      struct sfc_log_body *body, struct sfc_log_prepare_view *out,
                      struct sfc_error *err);

/* The newest committed step whose sums are not there: its record is of none of these sets of dense
 * blocks (digests), or came from another shard, or is missing. 0: all have them. */
uint64_t sfc_step_log_sums_since(const struct sfc_step_log *log, const uint64_t *digests,
                                 size_t count);

/* Where the record of (step, round) is. SFC_ENOTFOUND. */
int sfc_step_log_find(const struct sfc_step_log *log, uint64_t step, struct sfc_attempt round,
                      struct sfc_log_place_of *out, struct sfc_error *err);
/* Reads it there as sfc_step_log_read does, but through a folder object of the caller's: while
 * another thread uses the log. SFC_ENOTFOUND: its segment has been deleted meanwhile. */
int sfc_step_log_read_at(struct sfc_folder *folder, const struct sfc_log_geometry *geometry,
                         const struct sfc_log_place_of *place, struct sfc_log_body *body,
                         struct sfc_log_prepare_view *out, struct sfc_error *err);

struct sfc_step_log_state {
    uint64_t first_step, last_step; /* of the Prepares in the log; 0: none */
    uint64_t bytes, limit_bytes;
    uint64_t segments;
    uint64_t failures; /* writes and syncs that failed so far */
};
void sfc_step_log_state(const struct sfc_step_log *log, struct sfc_step_log_state *out);

#endif

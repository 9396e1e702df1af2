/* Private to server/durable, what the files of the step log share: step_log.c (what callers do),
 * step_log_segment.c (the open segment), step_log_write.c (one write), step_log_carry.c (the last
 * records of the process before), step_log_read.c, step_log_recover.c (opening). */
#ifndef SFC_DURABLE_STEP_LOG_INTERNAL_H
#define SFC_DURABLE_STEP_LOG_INTERNAL_H

#include "server/durable/log_index.h"
#include "server/durable/step_log.h"

#ifndef SFC_PLANT_BUG
#define SFC_PLANT_BUG                                                                              \
    0 /* tests/unit builds the log with each known bug to prove that it is caught */
#endif

#define SFC_LOG_COMMIT_BYTES (SFC_LOG_RECORD_HEADER + SFC_LOG_COMMIT_BODY)
/* Parts of a write besides the pieces of features and LSE: segment header, commits, record header,
 * lr, labels, padding, attempts, sums, padding. */
#define SFC_LOG_FIXED_PARTS 9u

_Static_assert(SFC_LOG_COMMIT_BYTES % 8 == 0, "records begin at multiples of 8");

struct sfc_log_part { /* a segment on disk */
    uint64_t number;
    uint64_t length;   /* bytes that count; of the open one: appended so far */
    uint64_t max_step; /* of its records */
};

/* The pieces of one write, in order. */
struct sfc_log_gather {
    struct sfc_bytes *parts;
    size_t count;
    uint64_t size;
};

struct sfc_step_log {
    struct sfc_folder *folder;
    struct sfc_step_log_config config;
    struct sfc_log_layout layout;
    uint64_t step_bytes;
    struct sfc_log_part *parts; /* ascending; the last one is open when file is not NULL */
    size_t part_count, part_room;
    struct sfc_file *file;
    uint64_t durable;  /* bytes of the open segment that survive a crash */
    bool name_durable; /* of the open segment */
    bool headless;     /* the open segment's header is not written yet: nothing in it counts */
    uint64_t next_number;
    struct sfc_log_index index;
    struct sfc_log_commit *waiting; /* commits that are not durable yet, in order */
    size_t waiting_count, waiting_room;
    size_t waiting_written;   /* so many of them are in the open segment */
    struct sfc_bytes *gather; /* parts of one write */
    uint8_t *commit_bytes;    /* of the waiting commits */
    size_t commit_room;
    struct sfc_digest *digest;
    /* The newest segment of the process before: what is behind carry_from was read, but may be in
     * the page cache only, where no sync helps that follows one that failed. It is written again
     * before anything else. carry_segment 0: nothing. */
    uint64_t carry_segment, carry_from;
    struct sfc_log_geometry carry_geometry;
    struct sfc_file *reading; /* a closed segment that reads come from */
    uint64_t reading_number;
    uint64_t failures;
    uint64_t committed; /* greatest step of a commit that was given */
    bool unlimited;     /* limit_bytes does not count now */
    bool lost;          /* see sfc_step_log_lost */
};

/* A log without segments. Frees nothing of the caller's on failure. */
int sfc_step_log_new(struct sfc_folder *folder, const struct sfc_step_log_config *config,
                     struct sfc_step_log **out, struct sfc_error *err);

/* ---- the open segment */

/* Room for one more segment. SFC_ENOMEM. */
int sfc_step_log_reserve_part(struct sfc_step_log *log, struct sfc_error *err);
/* Makes the next segment; it is the last of log->parts, of length 0. */
int sfc_log_open_segment(struct sfc_step_log *log, struct sfc_error *err);
void sfc_log_close_segment(struct sfc_step_log *log);
struct sfc_log_part *sfc_log_open_part(const struct sfc_step_log *log);
void sfc_log_encode_header(const struct sfc_step_log *log, uint8_t out[SFC_LOG_SEGMENT_HEADER]);
/* Everything in it is durable afterwards. */
int sfc_log_sync_segment(struct sfc_step_log *log, struct sfc_error *err);
/* The open segment is never written again: it counts up to its last durable record, and a segment
 * with none goes. What is behind is cut off; where that fails, the header of the next segment says
 * that it doesn't count. */
void sfc_log_give_up_segment(struct sfc_step_log *log);
/* Makes the open segment durable, where there is one; when that fails it is given up. */
int sfc_log_make_durable(struct sfc_step_log *log, struct sfc_error *err);

/* ---- one write */

void sfc_log_put(struct sfc_log_gather *g, const void *data, size_t size);
/* Appends to the open segment, which is given up on failure; what was appended before is made
 * durable then. */
int sfc_log_write_parts(struct sfc_step_log *log, const struct sfc_log_gather *g,
                        struct sfc_error *err);
/* The commits that wait and a record, in a new segment where none is open. prepare: NULL, only
 * commits. Room in the index has been reserved. */
int sfc_log_append_raw(struct sfc_step_log *log, enum sfc_log_type type,
                       const struct sfc_log_prepare *prepare, struct sfc_error *err);

/* ---- the last records of the process before */

/* Writes them again, with the commits that were there, before the first write of this process. The
 * old records stay where they are until the new ones are durable, and until a recovery finds that
 * they don't count. Nothing to do: SFC_OK. */
int sfc_log_carry_over(struct sfc_step_log *log, struct sfc_error *err);

/* ---- reading */

size_t sfc_log_body_size_at(const struct sfc_log_geometry *geometry,
                            const struct sfc_log_place_of *place);
/* The file of a segment; the log closes it. */
int sfc_log_file_of(struct sfc_step_log *log, uint64_t segment, struct sfc_file **out,
                    struct sfc_error *err);
/* *out points into body. SFC_ECORRUPT: not what was written; SFC_ENOMEM. */
int sfc_log_read_record(struct sfc_file *file, const struct sfc_log_geometry *geometry,
                        const struct sfc_log_place_of *place, struct sfc_log_body *body,
                        struct sfc_log_prepare_view *out, struct sfc_error *err);
void sfc_log_close_reading(struct sfc_step_log *log);

#endif

/* Private to server/durable: what step_log.c (writing) and step_log_recover.c (opening) share. */
#ifndef SFC_DURABLE_STEP_LOG_INTERNAL_H
#define SFC_DURABLE_STEP_LOG_INTERNAL_H

#include "server/durable/log_index.h"
#include "server/durable/step_log.h"

#ifndef SFC_PLANT_BUG
#define SFC_PLANT_BUG                                                                              \
    0 /* tests/unit builds the log with each known bug to prove that it is caught */
#endif

struct sfc_log_part { /* a segment on disk */
    uint64_t number;
    uint64_t length;   /* bytes that count; of the open one: appended so far */
    uint64_t max_step; /* of its records */
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
/* Room for one more segment. SFC_ENOMEM. */
int sfc_step_log_reserve_part(struct sfc_step_log *log, struct sfc_error *err);

#endif

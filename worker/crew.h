/* The threads that work on one joined run: lanes and readers. */
#ifndef SFC_WORKER_CREW_H
#define SFC_WORKER_CREW_H

#include "worker/step_client.h"
#include "worker/totals.h"

/* Why a crew stopped working. */
enum sfc_crew_end {
    SFC_CREW_WORKING,
    SFC_CREW_REJOIN,   /* the scheduler restarted or forgot us */
    SFC_CREW_RUN_OVER, /* finished, failed or replaced */
    SFC_CREW_STOPPED,  /* the program was told to stop */
    SFC_CREW_FATAL,    /* this worker can't compute the run */
};

struct sfc_crew;

struct sfc_crew_options {
    uint32_t lanes;
    uint64_t cache_bytes;
    const struct sfc_dataset *set; /* NULL: synthetic */
    const struct sfc_lane_device *device;
    struct sfc_spans *spans;          /* borrowed; NULL: nothing is recorded */
    struct sfc_worker_totals *totals; /* borrowed; what is done is added */
};

/* Allocates what the run needs and starts the threads. The member stays the caller's, who frees it
 * after the crew. */
int sfc_crew_new(struct sfc_member *member, const struct sfc_crew_options *options,
                 struct sfc_crew **out, struct sfc_error *err);
/* Ends and joins the threads. NULL is fine. */
void sfc_crew_free(struct sfc_crew *crew);
/* The first end counts; calls that wait are cancelled. err (may be NULL) says why, for FATAL. Any
 * thread. */
void sfc_crew_stop(struct sfc_crew *crew, enum sfc_crew_end end, const struct sfc_error *err);
enum sfc_crew_end sfc_crew_state(struct sfc_crew *crew, struct sfc_error *err);
/* Step `step` is committed: what only earlier steps needed may go. */
void sfc_crew_committed(struct sfc_crew *crew, uint64_t step);
/* A lane computes one micro-batch for longer than this (0: any time is fine): its device is stuck.
 */
bool sfc_crew_late(struct sfc_crew *crew, uint64_t ms);
/* Bytes that the crew has allocated or will, for the log. */
uint64_t sfc_crew_memory(struct sfc_crew *crew);

struct sfc_crew_counters {
    uint64_t micro_batches; /* done and accepted */
    uint64_t given_up;
    uint64_t batches_read;
};
void sfc_crew_counters(struct sfc_crew *crew, struct sfc_crew_counters *out);

#endif
